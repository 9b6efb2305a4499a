"""Compressed pixel data in, stored values out, by a child process that may die: `decoded`.

JPEG, JPEG-LS and JPEG 2000 are read by C++ libraries, and one evil file may make such a library crash, hang or take
all memory. So no native decoder runs in the process that holds the store: a child decodes, one for the life of this
process, with a bound on memory, on the time for a file and on the files that it decodes. It gets the pixel attributes
and the fragments, nothing that names a patient and no path, and cannot write a file. What it answers is a JSON line
and raw bytes, both checked here: a child that was taken over can give wrong pixels, which an evil file could anyway.
A child that dies costs one file (UNDECODABLE) and a new child.

Costs, on one core: 0.6 s for the first compressed file of a run; 0.3 ms for a small image and 1.5 ms for 512 x
512 pixels of 16 bits on top of the decoding itself (10 ms for JPEG-LS, 50 ms for JPEG 2000).
"""

from __future__ import annotations

import atexit
import json
import math
import os
import resource
import subprocess
import sys
import threading
from collections import Counter
from contextlib import suppress
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from client.ingest.reasons import Quarantined, Reason

MEMORY_BYTES = 6 << 30
"""Address space of the child: the largest image that the limits allow, four times, and the libraries."""
SECONDS, SAMPLES_PER_SECOND = 10.0, 1e6
"""Time for a file: the first, and as much as its samples take at this speed, a fifth of what JPEG 2000 does."""
MOST_FILES = 5_000
"""Of one child: what a library leaks ends with it."""
MOST_HEADER_BYTES = 4096
KINDS = frozenset({"|u1", "|i1", "<u2", "<i2", "<u4", "<i4", "<f4", "<f8"})
PLAIN = (
    *("rows", "columns", "samples_per_pixel", "number_of_frames"),
    *("bits_allocated", "bits_stored", "pixel_representation"),
)


def decoded(pixels: dict[str, Any], fragments: bytes) -> npt.NDArray[Any]:
    """The array that pydicom makes of an encapsulated PixelData, YBR as RGB.

    `pixels`: PLAIN as whole numbers, `photometric_interpretation`, `planar_configuration` (or None), `offsets` (the two
    extended offset tables in hexadecimal, or None) and `syntax`.
    Quarantined(UNDECODABLE) for whatever the child cannot decode, or does not survive.
    """
    with _lock:
        return _current().decoded(pixels, fragments)


class _Child:
    """A decoding process and the pipes to it."""

    def __init__(self) -> None:
        path = {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "PYTHONSAFEPATH": "1", "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "client.ingest.decoder"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=path,
        )
        self.owner = os.getpid()
        self.files = 0

    @property
    def usable(self) -> bool:
        return self.owner == os.getpid() and self.process.poll() is None and self.files < MOST_FILES

    def decoded(self, pixels: dict[str, Any], fragments: bytes) -> npt.NDArray[Any]:
        self.files += 1
        samples = math.prod(int(pixels[name]) for name in PLAIN[:4])
        timer = threading.Timer(SECONDS + samples / SAMPLES_PER_SECOND, self.process.kill)
        timer.daemon = True
        timer.start()
        try:
            assert self.process.stdin is not None
            assert self.process.stdout is not None
            _send(self.process.stdin, pixels, fragments)
            answer, content = _receive(self.process.stdout, 8 * samples, MOST_HEADER_BYTES)
        except (OSError, EOFError, ValueError, MemoryError):
            self.end()
            lost[self.process.returncode] += 1
            raise Quarantined(Reason.UNDECODABLE) from None
        finally:
            timer.cancel()
        return _array(answer, content, samples)

    def end(self) -> None:
        """Kill it and wait; a child of another process is left to that one."""
        if self.owner != os.getpid():
            return
        self.process.kill()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                with suppress(OSError):
                    pipe.close()
        self.process.wait()


lost: Counter[int] = Counter()
"""Exit code of a child (negative: the signal) -> how many files ended one."""
_child: _Child | None = None
_lock = threading.Lock()


def _current() -> _Child:
    global _child
    if _child is None or not _child.usable:
        end()
        try:
            _child = _Child()
        except OSError:
            raise Quarantined(Reason.UNDECODABLE) from None
    return _child


@atexit.register
def end() -> None:
    """End the child, if there is one; the next compressed file starts another."""
    global _child
    if _child is not None:
        _child.end()
    _child = None


def _array(answer: dict[str, Any], content: bytes, samples: int) -> npt.NDArray[Any]:
    """What the child says, as an array; Quarantined unless it is one of as many values as were announced."""
    kind, shape = answer.get("kind"), answer.get("shape")
    if kind not in KINDS or not isinstance(shape, list) or not all(type(size) is int and size > 0 for size in shape):
        raise Quarantined(Reason.UNDECODABLE)
    if math.prod(shape) > samples or len(content) != math.prod(shape) * np.dtype(kind).itemsize:
        raise Quarantined(Reason.UNDECODABLE)
    return np.frombuffer(content, kind).reshape(shape)


def _send(pipe: IO[bytes], header: dict[str, Any], content: bytes | memoryview) -> None:
    line = json.dumps({**header, "bytes": len(content)}).encode() + b"\n"
    pipe.write(line)
    pipe.write(content)
    pipe.flush()


def _receive(pipe: IO[bytes], most: int, most_header: int) -> tuple[dict[str, Any], bytes]:
    """EOFError at the end, ValueError for what is no message or announces more than `most` bytes."""
    line = pipe.readline(most_header)
    if not line:
        raise EOFError
    header = json.loads(line)
    size = header.get("bytes") if isinstance(header, dict) else None
    if type(size) is not int or not 0 <= size <= most:
        raise ValueError
    content = pipe.read(size)
    if len(content) < size:
        raise EOFError
    return header, content


# -------------------------------------------------------------------------------------------------------- in the child


def main() -> None:
    """Decode what comes on stdin until it ends."""
    requests, answers = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints must not stand between two answers
    for limit, most in ((resource.RLIMIT_AS, MEMORY_BYTES), (resource.RLIMIT_CORE, 0), (resource.RLIMIT_FSIZE, 0)):
        resource.setrlimit(limit, (most, most))
    while True:
        try:
            pixels, fragments = _receive(requests, sys.maxsize, sys.maxsize)
        except EOFError:
            return
        try:
            array = np.ascontiguousarray(_pixel_array(pixels, fragments))
            array = array.astype(array.dtype.newbyteorder("<"), copy=False)
            content = array.reshape(-1).view(np.uint8).data
            header: dict[str, Any] = {"kind": array.dtype.str, "shape": list(array.shape)}
        except Exception:  # noqa: BLE001 - a decoder may raise anything, and that it did is all that goes back
            header, content = {}, memoryview(b"")
        _send(answers, header, content)


def _pixel_array(pixels: dict[str, Any], fragments: bytes) -> npt.NDArray[Any]:
    import gdcm  # type: ignore[import-untyped]
    from pydicom.pixels import get_decoder
    from pydicom.uid import UID

    gdcm.Trace.WarningOff()
    gdcm.Trace.ErrorOff()
    gdcm.Trace.DebugOff()
    options: dict[str, Any] = {name: int(pixels[name]) for name in PLAIN}
    options["photometric_interpretation"] = str(pixels["photometric_interpretation"])
    if pixels["planar_configuration"] is not None:
        options["planar_configuration"] = int(pixels["planar_configuration"])
    if pixels["offsets"] is not None:
        options["extended_offsets"] = tuple(map(bytes.fromhex, pixels["offsets"]))
    array: npt.NDArray[Any] = get_decoder(UID(pixels["syntax"])).as_array(
        fragments, pixel_keyword="PixelData", **options
    )[0]
    return array


if __name__ == "__main__":
    main()
