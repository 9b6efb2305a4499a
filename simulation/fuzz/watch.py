"""A target, a seed and numbers in; one report per input out, whatever the input does to the process that reads it.

The process says on a pipe which input it begins and how it went. It ends with the run, is started again when it died or
was killed, and goes on behind the input that it died of.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import resource
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from client.ingest import decoder
from shared.seeding import numpy_generator
from simulation.fuzz import Finding

Make = Callable[[np.random.Generator], tuple[str, Any]]
"""What was made, and the input."""
Read = Callable[[Any], str]
"""The input's outcome; Finding where its reader failed."""
TARGETS = ("dicom", "wire", "release")
LIMIT_S = 60.0
"""Wall clock of one input on a machine that others use too; an input takes about a hundredth of a second."""
MEMORY_BYTES = 2 << 30
"""Resident, of one input; the largest image that the ingest accepts is 1 GiB as float32."""
ADDRESS_BYTES = 16 << 30


@dataclass(frozen=True, slots=True)
class Report:
    """What one input was made of, and what became of it."""

    made: str
    outcome: str = ""
    finding: tuple[str, ...] = ()
    """Kind and place."""
    seconds: float = 0.0
    peak_bytes: int = 0
    decoders_lost: tuple[str, ...] = ()


def one(target: str, seed: int, number: int) -> Report:
    """One input, read in this process."""
    make, read = importlib.import_module(f"simulation.fuzz.{target}").target()
    return _report(make, read, target, seed, number)


def watched(target: str, seed: int, numbers: range) -> Iterator[tuple[int, Report]]:
    """Every input of `numbers` in their order."""
    start = numbers.start
    while start < numbers.stop:
        process = subprocess.Popen(
            [sys.executable, "-m", "simulation.fuzz.watch", target, str(seed), str(start), str(numbers.stop)],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        try:
            for number, report in _reports(process, start):
                start = number + 1
                yield number, report
        finally:
            process.kill()
            process.wait()
            assert process.stdout is not None
            process.stdout.close()


def _reports(process: subprocess.Popen[bytes], start: int) -> Iterator[tuple[int, Report]]:
    """Until the process has no more inputs, or an input has ended it."""
    assert process.stdout is not None
    number, made, began = start, "start", time.monotonic()
    pending = b""
    while True:
        ready, _, _ = select.select([process.stdout], [], [], max(0.0, began + LIMIT_S - time.monotonic()))
        if not ready:
            yield number, Report(made, finding=("hang", f"over {LIMIT_S:.0f} s"), seconds=LIMIT_S)
            return
        block = os.read(process.stdout.fileno(), 1 << 16)
        if not block:
            code = process.wait()
            if code:
                name = signal.Signals(-code).name if code < 0 else f"exit {code}"
                yield number, Report(made, finding=("crash", name), seconds=time.monotonic() - began)
            return
        *lines, pending = (pending + block).split(b"\n")
        for line in lines:
            message = json.loads(line)
            if "begin" in message:
                number, made, began = message["begin"], message["made"], time.monotonic()
                continue
            message["finding"], message["decoders_lost"] = tuple(message["finding"]), tuple(message["decoders_lost"])
            yield number, Report(**message)
            number, made = number + 1, "the next"


# ----------------------------------------------------------------------------------------------- in the watched process


def main(target: str, seed: int, start: int, stop: int) -> None:
    pipe = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    make, read = importlib.import_module(f"simulation.fuzz.{target}").target()
    gc.freeze()  # libraries' objects: not looked through again with every input
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_BYTES, ADDRESS_BYTES))
    for number in range(start, stop):
        report = _report(make, read, target, seed, number, pipe)
        print(json.dumps(asdict(report)), file=pipe, flush=True)


def _report(make: Make, read: Read, target: str, seed: int, number: int, pipe: IO[str] | None = None) -> Report:
    made, content = make(numpy_generator(seed, "fuzz", target, number))
    if pipe is not None:
        print(json.dumps({"begin": number, "made": made}), file=pipe, flush=True)
    before, decoders = _forget_peak(), dict(decoder.lost)
    started, outcome = time.monotonic(), ""
    finding: tuple[str, ...] = ()
    try:
        outcome = read(content)
    except Finding as found:
        finding = tuple(map(str, found.args))
    seconds, peak = time.monotonic() - started, _peak_bytes()
    if not finding and peak - before > MEMORY_BYTES:
        finding = ("memory", f"{(peak - before) >> 20} MiB")
    lost = (f"{made.split(':')[0]} {code}" for code, count in decoder.lost.items() if count > decoders.get(code, 0))
    return Report(made, outcome, finding, seconds, peak, tuple(lost))


def _forget_peak() -> int:
    """Begin a new count of peak memory; the bytes now."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    return _peak_bytes()


def _peak_bytes() -> int:
    with suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:5]))
