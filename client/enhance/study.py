"""A study's files and an installed release in, a folder of derived DICOM objects with a report out.

OUT/series-001/IM0001.dcm ... SEG.dcm diagnosis.json   one folder for each series that was enhanced
OUT/report.html                                        pictures for the person at the hospital

Everything is written into a hidden folder beside OUT, which is renamed when all is there: nothing half-written is ever
visible, whenever the program is killed; the next run removes what a killed one left. The study itself is only read.
"""

from __future__ import annotations

import errno
import glob
import json
import os
import shutil
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from client.enhance.find import Found, Progress, find
from client.enhance.reasons import NotEnhanced
from client.enhance.release import InUse, in_use
from client.enhance.report import report
from client.enhance.series import Enhanced, Options, enhance_stack
from client.ingest.series import Stack
from shared.config import MachineConfig
from shared.errors import ConfigError, DataError
from shared.files import sync

if TYPE_CHECKING:
    from client.installed import Installed

SPARE_BYTES = 64 << 20
"""Left free on the disk."""
MOST_NAME_BYTES = 200
"""Of the out folder; the hidden one beside it has a longer name, and a file system takes 255."""


@dataclass(frozen=True, slots=True)
class Summary:
    """Counts and places; no identifier."""

    series: tuple[Enhanced, ...]
    refused: Counter[str]
    """Reason -> series."""
    files: tuple[Path, ...]
    """Every DICOM file written, for a PACS."""
    release: str
    seconds: float
    stages: dict[str, float] = field(default_factory=dict)

    @property
    def slices(self) -> int:
        return sum(one.planes for one in self.series)


def enhance_study(
    source: Path,
    out: Path,
    installed: Installed,
    machine: MachineConfig,
    options: Options,
    on_progress: Progress = lambda stage, done, total: None,
    *,
    second: Path | None = None,
) -> Summary:
    """Enhance every series that the release is for; the others are counted under their reason.

    Raises ConfigError for places that cannot be, RefusedError for a release without an enhancer, DataError where
    nothing at all was enhanced, where the disk is full, or where a second acquisition does not fit.
    """
    started = time.perf_counter()
    _check_out(out)
    found = find(source, out, installed.campaign.data, on_progress)
    if not found.stacks:
        raise _nothing(found.refused)
    _check_space(found.stacks, out)
    release = in_use(installed, machine)
    if second is not None:
        from client.enhance.second import adapted

        release = adapted(release, found.stacks, second, out, on_progress)
    manifest = installed.manifest
    options = replace(
        options,
        calibration=_dict_or_none(manifest.calibration),
        descriptors=_dict_or_none(manifest.descriptors),
    )
    with _written_whole(out) as partial:
        done, refused = _enhanced(found, partial, release, options, on_progress)
        if not done:
            raise _nothing(refused)
        (partial / "report.html").write_text(report(done, refused, release, options))
    stages = {name: sum(one.seconds[name] for one in done) for name in ("decode", "network", "encode")}
    files = tuple(out / one.folder / path.name for one in done for path in one.files)
    return Summary(tuple(done), refused, files, release.words, time.perf_counter() - started, stages)


def _enhanced(
    found: Found, partial: Path, release: InUse, options: Options, on_progress: Progress
) -> tuple[list[Enhanced], Counter[str]]:
    done: list[Enhanced] = []
    refused = Counter(found.refused)
    total, slices = sum(stack.num_frames for stack in found.stacks), 0

    def advance(planes: int) -> None:
        nonlocal slices
        slices += planes
        on_progress("enhance", min(slices, total), total)

    for stack in found.stacks:
        place = partial / f"series-{len(done) + 1:03d}"
        before = slices
        try:
            one = enhance_stack(stack, place, release, options, advance)
        except NotEnhanced as refusal:
            refused[refusal.reason] += 1
            shutil.rmtree(place, ignore_errors=True)
        else:
            if one.diagnosis is not None:
                (place / "diagnosis.json").write_text(json.dumps(one.diagnosis, indent=1) + "\n")
            done.append(one)
        slices = before + stack.num_frames
    return done, refused


def _dict_or_none(value: Mapping[str, Any] | None) -> dict[str, Any] | None:
    return None if value is None else dict(value)


def _nothing(refused: Counter[str]) -> DataError:
    reasons = ", ".join(f"{count} x {reason}" for reason, count in refused.most_common()) or "no image was found"
    return DataError(f"nothing could be enhanced: {reasons}; give a study of the release's modality")


# --------------------------------------------------------------------------------------------------------------- out


def _check_out(out: Path) -> None:
    if out.name in ("", "..") or len(os.fsencode(out.name)) > MOST_NAME_BYTES or out.is_symlink():
        raise ConfigError(
            f"the out folder needs a name of its own, at most {MOST_NAME_BYTES} bytes long: not a link, not '.'"
        )
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"the out folder {out.name!r} is not empty; give a new folder, nothing is written over")
    if not out.absolute().parent.is_dir():
        raise ConfigError(f"the folder that is to hold {out.name!r} does not exist; make it first")


def _check_space(stacks: tuple[Stack, ...], out: Path) -> None:
    """Twice the pixels at 16 bits: images, masks and pictures."""
    pixels = sum(stack.num_frames * stack.first.shape[1] * stack.first.shape[2] for stack in stacks)
    if shutil.disk_usage(out.absolute().parent).free < 4 * pixels + SPARE_BYTES:
        raise _full()


def _full() -> DataError:
    return DataError("the disk of the out folder has no room for the enhanced study; nothing was written, make room")


@contextmanager
def _written_whole(out: Path) -> Iterator[Path]:
    """A hidden folder that becomes `out` when the block ends well, and is removed when it does not."""
    parent, prefix = out.absolute().parent, f".{out.name}.partial-"
    _sweep(parent, prefix)
    partial = parent / f"{prefix}{os.getpid()}"
    try:
        partial.mkdir(mode=0o700)
        yield partial
        for folder, _, names in os.walk(partial):
            for name in names:
                sync(Path(folder) / name)
            sync(Path(folder))
        os.replace(partial, out)  # over an empty folder or none: one step
        sync(parent)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise _full() from None
        raise ConfigError("the out folder cannot be written; check its permissions") from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _sweep(parent: Path, prefix: str) -> None:
    """Remove what killed runs left; a run that is alive keeps its folder."""
    for left in parent.glob(f"{glob.escape(prefix)}*"):
        number = left.name.removeprefix(prefix)
        if number.isdecimal() and _alive(int(number)):
            continue
        shutil.rmtree(left, ignore_errors=True)


def _alive(pid: int) -> bool:
    with suppress(PermissionError):
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return False
    return pid != os.getpid()
