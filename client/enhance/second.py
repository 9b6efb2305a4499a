"""A second acquisition of the same study in; the release with its enhancer adapted to this study alone out.

Noise2Noise between the two (client/train/adapt.py), on planes as the networks learnt them. Every series of the study
must meet one of the second folder with the same slices, size, spacing and place; which one is found by geometry.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from client.enhance.decode import all_decoded, ends_of
from client.enhance.find import Progress, find
from client.enhance.grid import layout_of
from client.enhance.reasons import NotEnhanced
from client.enhance.release import InUse
from client.ingest.intensity import scaled
from client.ingest.pixels import to_channels
from client.ingest.series import Stack
from shared.config import DataConfig, PersonaliseConfig, load
from shared.errors import DataError
from shared.images.intensity import pad_or_crop

SAME_MM = 0.01


def adapted(release: InUse, stacks: Sequence[Stack], folder: Path, out: Path, on_progress: Progress) -> InUse:
    """Raises DataError where the geometries differ, in words."""
    from client.train.adapt import adapt_online

    data = release.campaign.data
    others = find(folder, out, data, on_progress).stacks
    pairs = [(stack, _partner(stack, others)) for stack in stacks]
    firsts, seconds = zip(*((_planes(one, data), _planes(other, data)) for one, other in pairs), strict=True)
    config = load("personalise", (), PersonaliseConfig)
    networks, record = adapt_online(
        release.networks, torch.cat(firsts), torch.cat(seconds), release.campaign, config, release.machine
    )
    for network in networks.all.values():
        network.eval()
    both = ", ".join(filter(None, (release.personal, f"{record.get('method', config.method)} on this study")))
    return replace(release, networks=networks, personal=both)


def _partner(stack: Stack, others: Sequence[Stack]) -> Stack:
    for other in others:
        if _same_place(stack, other):
            return other
    first = stack.first
    raise DataError(
        f"a second acquisition must have the same geometry; a series of {stack.num_frames} x {first.shape[1]} x "
        f"{first.shape[2]} pixels has no partner of the same size, spacing and place in the folder of --second "
        f"({len(others)} series); leave --second out, or give the repeated acquisition"
    )


def _same_place(one: Stack, other: Stack) -> bool:
    if one.num_frames != other.num_frames or len(one.instances) != len(other.instances):
        return False
    for a, b in zip(one.instances, other.instances, strict=True):
        same = a.shape == b.shape and a.modality == b.modality and a.planes.placed == b.planes.placed
        if not same or not np.allclose(a.planes.spacing_hw, b.planes.spacing_hw, atol=SAME_MM):
            return False
        if a.planes.placed and not (
            np.allclose(a.planes.positions_F3, b.planes.positions_F3, atol=SAME_MM)
            and np.allclose(a.planes.row_direction, b.planes.row_direction, atol=1e-3)
            and np.allclose(a.planes.column_direction, b.planes.column_direction, atol=1e-3)
        ):
            return False
    return True


def _planes(stack: Stack, data: DataConfig) -> Tensor:
    """image_NCHW as training has them: the campaign's grid, scale and size."""
    try:
        layout = layout_of(stack, data)
        between, kept = ends_of(stack, data)
        decoded = all_decoded(stack, kept)
        values_DHWC = np.concatenate([to_channels(one.values_FHWC(), data.channels) for one in decoded])
    except NotEnhanced as refusal:
        raise DataError(
            f"the two acquisitions cannot be used together ({refusal.reason}); leave --second out"
        ) from None
    values_DHWC = layout.oriented(values_DHWC[list(layout.order)])
    channels = [layout.resampled(values_DHWC[..., channel]) for channel in range(data.channels)]
    image = scaled(np.stack(channels, axis=1), between, clip=data.ingest.intensity.clip)
    return pad_or_crop(torch.from_numpy(np.ascontiguousarray(image)), data.image_size)
