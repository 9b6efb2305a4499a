"""Bench `aggregate`: N Flower replies of 25 M float32 in, their weighted mean out, one reply in memory at a time.

Rival: a plain loop that decodes the same bytes, checks them finite and adds them weighted in place, in float32. Ours
adds in float64 and checks a reply whole before it adds any of it. Both take every reply in turn, so that a busy
machine slows both. Peak memory is that of a process of its own per N, in which only ours runs. Hashing, which Flower's
transport does on either side, is in neither time and stands in `hash_s`.
"""

from __future__ import annotations

import hashlib
import io
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
from flwr.app import RecordDict

from server.collect import WeightedSum
from shared.types import Arrays, Update
from shared.weights import parts_of
from shared.wire.arrays import encode_array
from shared.wire.flower import to_content, to_record
from shared.wire.messages import ReceivedUpdate, Record, header_bytes, read_answer, update_header
from simulation.bench import Case

TARGET = 1.3
PEAK_MB = 600.0
FLAT = 0.10
SIZES = (10, 50)
SHAPES: dict[str, tuple[int, ...]] = {
    **{f"recogniser.down.{level}.weight": (512, 512, 3, 3) for level in range(5)},
    **{f"recogniser.up.{level}.weight": (512, 512, 3, 3) for level in range(5)},
    "enhancer.first.weight": (512, 256, 3, 3),
    "enhancer.last.weight": (256, 100, 3, 3),
    **{f"recogniser.down.{level}.bias": (512,) for level in range(5)},
    **{f"recogniser.up.{level}.bias": (512,) for level in range(5)},
}
"""25.0 M values, cut as a U-Net's are."""


def run() -> list[Case]:
    """One case per N, each measured in processes of its own."""
    peaks = {n: _in_process("peak", n)["peak_mb"] for n in SIZES}
    return [_case(n, _in_process("time", n), peaks) for n in SIZES]


def _case(n: int, times: dict[str, float], peaks: dict[int, float]) -> Case:
    ratio, memory_ratio = times["ours"] / times["rival"], peaks[n] / peaks[SIZES[0]]
    return {
        "bench": "aggregate",
        "case": f"n={n}",
        "ours": round(times["ours"], 4),
        "rival": round(times["rival"], 4),
        "ratio": round(ratio, 4),
        "target": TARGET,
        "holds": ratio <= TARGET and abs(memory_ratio - 1) <= FLAT and peaks[n] <= PEAK_MB,
        "peak_mb": round(peaks[n], 1),
        "memory_ratio": round(memory_ratio, 4),
        "hash_s": round(times["hash"], 4),
    }


def _in_process(mode: str, n: int) -> dict[str, float]:
    command = [sys.executable, "-m", "simulation.bench.aggregate", mode, str(n)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    measured: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return measured


def replies(n: int, shapes: dict[str, tuple[int, ...]]) -> Iterator[RecordDict]:
    """Contents of `n` replies as they come off Flower's transport, made one by one.

    Site i drew 100 + i samples, and all of them moved every part: where a count is 0, ours has less to do.
    """
    rng = np.random.Generator(np.random.PCG64(0))
    for i in range(n):
        images = dict.fromkeys(parts_of(shapes), 100 + i)
        header = update_header(Update(f"site-{i}", 1, 100 + i, {})) | {"shapes": shapes, "images": images}
        yield to_content(Record(header_bytes("update", header), _random_arrays(rng, shapes)))


def _random_arrays(rng: np.random.Generator, shapes: dict[str, tuple[int, ...]]) -> dict[str, bytes]:
    return {name: encode_array(rng.random(shape, dtype=np.float32)) for name, shape in shapes.items()}


def empty_sum(shapes: dict[str, tuple[int, ...]], n: int) -> WeightedSum:
    weights: Arrays = {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}
    return WeightedSum(weights, round=1, max_samples=100 + n)


def add_ours(total: WeightedSum, content: RecordDict, i: int) -> None:
    update = read_answer(to_record(content))
    assert isinstance(update, ReceivedUpdate)
    total.add(update, site=f"site-{i}")


def add_plainly(sums: dict[str, npt.NDArray[np.float32]], content: RecordDict, weight: float) -> None:
    """The rival: numpy's own reader, as Flower's `Array.numpy` calls it."""
    for name, data in to_record(content).arrays.items():
        values = np.load(io.BytesIO(data), allow_pickle=False)
        if not np.isfinite(values).all():
            raise ValueError(name)
        sums[name] += np.float32(weight) * values


def measure_peak(n: int, shapes: dict[str, tuple[int, ...]]) -> dict[str, float]:
    total = empty_sum(shapes, n)
    for i, content in enumerate(replies(n, shapes)):
        add_ours(total, content, i)
        del content
    total.mean()
    return {"peak_mb": peak_mb()}


def measure_time(n: int, shapes: dict[str, tuple[int, ...]]) -> dict[str, float]:
    """Seconds of ours, of the rival, and of one SHA-256 over the same bytes."""
    total = empty_sum(shapes, n)
    sums = {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}
    seconds = {"ours": 0.0, "rival": 0.0, "hash": 0.0}

    def timed(what: str, call: Any, *arguments: Any) -> Any:
        began = time.perf_counter()
        result = call(*arguments)
        seconds[what] += time.perf_counter() - began
        return result

    for i, content in enumerate(replies(n, shapes)):
        steps = [("ours", add_ours, (total, content, i)), ("rival", add_plainly, (sums, content, 100 + i))]
        for what, call, arguments in steps if i % 2 else reversed(steps):
            timed(what, call, *arguments)
        timed("hash", _hash, content)
        del content
    mean = timed("ours", total.mean)
    weight = sum(100 + i for i in range(n))
    plain = timed("rival", lambda: {name: values / np.float32(weight) for name, values in sums.items()})
    assert all(np.allclose(mean[name], plain[name], rtol=1e-3) for name in shapes)
    return seconds


def _hash(content: RecordDict) -> None:
    for array in content["arrays"].values():
        hashlib.sha256(array.data).digest()


def peak_mb() -> float:
    """High-water mark of this process's resident memory in MB (10^6 bytes)."""
    with open("/proc/self/status") as status:
        kib = next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))
    return kib * 1024 / 1e6


if __name__ == "__main__":
    MEASURES = {"peak": measure_peak, "time": measure_time}
    print(json.dumps(MEASURES[sys.argv[1]](int(sys.argv[2]), SHAPES)))
