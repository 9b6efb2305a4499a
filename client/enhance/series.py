"""One stack in; its derived series, segmentation and score in a folder, and what a report shows of it, out.

    decode   read, decode, orient, resample, scale       a thread, a few instances ahead
    network  enhancer and recogniser                     here
    encode   resample back, stored values, DICOM, write  a thread

A stack whose planes are not its frames (sagittal slices of a campaign that learnt from axial ones) is held as a volume
in between, decoded before and encoded after the network.
"""

from __future__ import annotations

import datetime as dt
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from pydicom.dataset import Dataset
from torch import Tensor

from client.enhance.decode import Decoded, all_decoded, ends_of
from client.enhance.derived import Series, derived, new_uid, save
from client.enhance.diagnosis import score
from client.enhance.encode import corrected
from client.enhance.grid import Layout, layout_of
from client.enhance.pipeline import ahead_of, behind, switching
from client.enhance.reasons import NotEnhanced, as_refusal
from client.enhance.release import Answer, InUse, answer
from client.enhance.release import field as field_of
from client.enhance.uncertainty import spread
from client.ingest.intensity import Ends, scaled
from client.ingest.pixels import to_channels
from client.ingest.reasons import Reason
from client.ingest.series import Stack
from client.ingest.validate import reading, text

MOST_VOLUME_VALUES = 1 << 26
"""Of a stack that is held as a volume; 256 MB as float32."""
SERIES_OFFSET = 9000
Floats = npt.NDArray[np.float32]
Done = Callable[[int], None]


@dataclass(frozen=True, slots=True)
class Options:
    """What a study is enhanced with beside the release."""

    now: dt.datetime
    draws: int = 8
    """Noise draws of the planes that the report shows; 0 for none."""
    pictures: int = 3
    """Planes of each series that the report shows."""
    calibration: dict[str, Any] | None = None
    descriptors: dict[str, Any] | None = None
    """The release's, of its manifest."""


@dataclass(frozen=True, slots=True, eq=False)
class Shown:
    """One plane on the campaign's grid, as the report shows it; (H, W) on the campaign's scale."""

    plane: int
    before_HW: Tensor
    after_HW: Tensor
    found_HW: Tensor | None
    spread_HW: Tensor | None


@dataclass(frozen=True, slots=True, eq=False)
class Enhanced:
    """What became of one stack."""

    folder: str
    modality: str
    planes: int
    files: tuple[Path, ...]
    """DICOM files written, the segmentation last."""
    diagnosis: dict[str, Any] | None
    shown: tuple[Shown, ...]
    unusual: Any
    """shared.images.descriptors.Unusual, or None where the release has no descriptors."""
    clipped_share: float
    """Of the pixels: outside the campaign's scale, where the enhancer saw the end of the scale only."""
    unsegmented: str = ""
    """Why there is no DICOM segmentation of masks that were found, in words."""
    seconds: dict[str, float] = field(default_factory=dict)
    """decode, network, encode: each stage's own time, which overlap."""


@dataclass(slots=True, eq=False)
class _Running:
    """What adds up while a stack runs: heads without pixels, masks, probabilities, times."""

    heads: list[Dataset] = field(default_factory=list)
    sources: list[Dataset] = field(default_factory=list)
    files: list[Path] = field(default_factory=list)
    masks: list[npt.NDArray[np.uint8]] = field(default_factory=list)
    probabilities: list[Tensor] = field(default_factory=list)
    described: list[dict[str, Tensor]] = field(default_factory=list)
    shown: list[Shown] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(("decode", "network", "encode"), 0.0))
    clipped: int = 0
    pixels: int = 0
    planes: int = 0


def enhance_stack(stack: Stack, place: Path, release: InUse, options: Options, on_plane: Done) -> Enhanced:
    """Write the stack's derived objects below `place`, a folder of its own; raises NotEnhanced, OSError (disk)."""
    layout = layout_of(stack, release.campaign.data)
    if not layout.by_frame and stack.num_frames * stack.first.shape[1] * stack.first.shape[2] > MOST_VOLUME_VALUES:
        raise NotEnhanced(Reason.TOO_MANY_PIXELS)
    running = _Running()
    started = time.perf_counter()
    between, kept = ends_of(stack, release.campaign.data)
    running.seconds["decode"] += time.perf_counter() - started
    series = Series(new_uid(), SERIES_OFFSET, {}, options.now)
    place.mkdir(parents=True)
    run = _by_frame if layout.by_frame else _by_volume
    chosen = _chosen(stack.num_frames if layout.by_frame else _planes(stack, layout), options.pictures)
    work = _Work(stack, layout, between, release, options, series, place, running, chosen, on_plane)
    run(work, all_decoded(stack, kept))
    return _finished(work)


@dataclass(frozen=True, slots=True, eq=False)
class _Work:
    stack: Stack
    layout: Layout
    between: Ends
    release: InUse
    options: Options
    series: Series
    place: Path
    running: _Running
    chosen: frozenset[int]
    on_plane: Done


def _planes(stack: Stack, layout: Layout) -> int:
    return (stack.num_frames, *stack.first.shape[1:])[layout.axes[0]]


def _chosen(planes: int, pictures: int) -> frozenset[int]:
    count = min(planes, pictures)
    return frozenset((2 * place + 1) * planes // (2 * count) for place in range(count))


def _by_frame(work: _Work, instances: Iterator[Decoded]) -> None:
    def prepared() -> Iterator[tuple[Decoded, Tensor]]:
        for decoded in _timed(work, "decode", instances):
            started = time.perf_counter()
            planes = _scaled(work, _values(work, decoded))
            work.running.seconds["decode"] += time.perf_counter() - started
            yield decoded, planes

    with switching(), ahead_of(prepared()) as ready, behind() as hand_over:
        for decoded, image_FCHW in ready:
            said = _answered(work, image_FCHW)
            hand_over(partial(_give_back, work, decoded, said))


def _by_volume(work: _Work, instances: Iterator[Decoded]) -> None:
    """Planes across the frames: everything is decoded first."""
    layout, order = work.layout, list(work.layout.order)
    all_of = list(_timed(work, "decode", instances))
    values_DHWC = np.concatenate([_values(work, decoded) for decoded in all_of])[order]
    image_FCHW = _scaled(work, values_DHWC, oriented=False)
    del values_DHWC
    correction, found = _back(work, _answered(work, image_FCHW))
    place_of = np.argsort(order)
    correction = layout.as_acquired(correction)[place_of]
    found = None if found is None else layout.as_acquired(found)[place_of]
    start = 0
    with behind() as hand_over:
        for decoded in all_of:
            part = slice(start, start + len(decoded.stored_FHWC))
            mask = None if found is None else found[part]
            hand_over(partial(_encode, work, decoded, correction[part], mask))
            start = part.stop


def _timed(work: _Work, stage: str, items: Iterator[Decoded]) -> Iterator[Decoded]:
    while True:
        started = time.perf_counter()
        item = next(items, None)
        work.running.seconds[stage] += time.perf_counter() - started
        if item is None:
            return
        yield item


# ------------------------------------------------------------------------------------------------------------- decode


def _values(work: _Work, decoded: Decoded) -> Floats:
    """In the modality's unit and the campaign's channels; frames oriented where a plane is a frame."""
    values = to_channels(decoded.values_FHWC(), work.release.campaign.data.channels)
    return work.layout.oriented(values) if work.layout.by_frame else values


def _scaled(work: _Work, values_DHWC: Floats, *, oriented: bool = True) -> Tensor:
    """image_FCHW on the campaign's grid and scale."""
    if not oriented:
        values_DHWC = work.layout.oriented(values_DHWC)
    rule = work.release.campaign.data.ingest.intensity
    running, low, high = work.running, work.between.low, work.between.high
    running.clipped += int(((values_DHWC < low) | (values_DHWC > high)).sum())
    running.pixels += values_DHWC.size
    channels = [work.layout.resampled(values_DHWC[..., channel]) for channel in range(values_DHWC.shape[-1])]
    return torch.from_numpy(np.ascontiguousarray(scaled(np.stack(channels, axis=1), work.between, clip=rule.clip)))


# ------------------------------------------------------------------------------------------------------------ network


def _answered(work: _Work, image_FCHW: Tensor) -> Answer:
    from shared.images.descriptors import descriptors

    started = time.perf_counter()
    running, first = work.running, work.running.planes
    said = answer(work.release, image_FCHW)
    if said.probabilities_FK is not None:
        running.probabilities.append(said.probabilities_FK)
    running.planes += len(image_FCHW)
    running.seconds["network"] += time.perf_counter() - started
    if work.options.descriptors:
        running.described.append(descriptors(field_of(work.release, image_FCHW)))
    here = sorted(plane - first for plane in work.chosen if first <= plane < first + len(image_FCHW))
    for plane in here:
        running.shown.append(_shown(work, image_FCHW[plane : plane + 1], said, plane, first))
    work.on_plane(len(image_FCHW))
    return said


def _shown(work: _Work, image_1CHW: Tensor, said: Answer, plane: int, first: int) -> Shown:
    draws = work.options.draws
    return Shown(
        first + plane,
        image_1CHW[0].mean(0),
        (image_1CHW[0] + said.correction_FCHW[plane]).mean(0),
        None if said.found_FHW is None else said.found_FHW[plane].clone(),
        spread(work.release, image_1CHW, draws, first + plane)[0] if draws else None,
    )


# ------------------------------------------------------------------------------------------------------------- encode


def _back(work: _Work, said: Answer) -> tuple[Floats, npt.NDArray[np.uint8] | None]:
    """(correction_FHWC in the modality's unit, found_FHW) on the acquired pixels; frames as acquired where a plane is a
    frame."""
    layout, width = work.layout, np.float32(work.between.high - work.between.low)
    channels = [layout.back(channel.numpy()) * width for channel in said.correction_FCHW.unbind(1)]
    correction, found = np.stack(channels, axis=-1), None
    if said.found_FHW is not None:
        found = layout.labels_back(said.found_FHW.numpy())
    if layout.by_frame:
        correction = layout.as_acquired(correction)
        found = None if found is None else layout.as_acquired(found)
    return correction, found


def _give_back(work: _Work, decoded: Decoded, said: Answer) -> None:
    started = time.perf_counter()
    correction_FHWC, found_FHW = _back(work, said)
    work.running.seconds["encode"] += time.perf_counter() - started
    _encode(work, decoded, correction_FHWC, found_FHW)


def _encode(work: _Work, decoded: Decoded, correction_FHWC: Floats, found_FHW: npt.NDArray[np.uint8] | None) -> None:
    started = time.perf_counter()
    running, source = work.running, decoded.dataset
    stored_FHWC = corrected(decoded, correction_FHWC)
    path = work.place / f"IM{len(running.files) + 1:04d}.dcm"
    with as_refusal():
        with reading(Reason.MALFORMED):
            number = SERIES_OFFSET + int(source.get("SeriesNumber") or 0) % 1000
            series = replace(work.series, number=number, instances={text(source, "SOPInstanceUID"): new_uid()})
            ds = derived(decoded, stored_FHWC, series, work.release)
        save(ds, path)
    running.files.append(path)
    del ds.PixelData
    running.heads.append(ds)
    running.sources.append(source)
    if found_FHW is not None:
        running.masks.append(np.ascontiguousarray(found_FHW))
    running.seconds["encode"] += time.perf_counter() - started


def _finished(work: _Work) -> Enhanced:
    """The segmentation and the score, when every image is there."""
    from client.enhance.segmentation import segmentation

    running, release, options = work.running, work.release, work.options
    started, unsegmented = time.perf_counter(), ""
    if running.masks:
        series = replace(work.series, number=int(running.heads[0].SeriesNumber))
        masks_FHW, slice_mm = np.concatenate(running.masks), work.layout.slice_mm
        seg = segmentation(running.heads, running.sources, masks_FHW, series, release, slice_mm)
        if isinstance(seg, str):
            unsegmented = seg
        else:
            save(seg, work.place / "SEG.dcm")
            running.files.append(work.place / "SEG.dcm")
    running.seconds["encode"] += time.perf_counter() - started
    diagnosis = None
    if running.probabilities:
        diagnosis = score(
            torch.cat(running.probabilities).numpy(),
            release.campaign.diagnoses,
            options.calibration,
            series_uid=work.series.uid,
            release=f"{release.name} v{release.version}",
            digest=release.digest,
        )
    return Enhanced(
        folder=work.place.name,
        modality=work.stack.first.modality,
        planes=running.planes,
        files=tuple(running.files),
        diagnosis=diagnosis,
        shown=tuple(running.shown),
        unusual=_unusual(running, options),
        clipped_share=running.clipped / max(1, running.pixels),
        unsegmented=unsegmented,
        seconds=dict(running.seconds),
    )


def _unusual(running: _Running, options: Options) -> Any:
    if not options.descriptors or not running.described:
        return None
    from shared.images.descriptors import how_unusual

    names = running.described[0]
    values = {name: torch.cat([each[name] for each in running.described]) for name in names}
    return how_unusual(values, options.descriptors)
