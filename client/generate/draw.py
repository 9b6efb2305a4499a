"""A trained generator and a site's training slices in, the site's synthetic images and a report of the guards out.

Each image has the mask of one training slice, its own seed and the prompt of its diagnosis; nothing but the training
split is drawn from. Batches that were drawn are kept in `folder` under a name that stands for everything they depend on
(weights, settings, seeds, slices): a drawing that was interrupted goes on where it was, and draws the same.

To calibrate the guard against memorising, some images are drawn from hints of held-out patients too; they are compared,
and thrown away.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from client.dataset import Slices, Synthetic
from client.generate.agreement import Segmenter
from client.generate.asks import Asks, asked, asked_apart
from client.generate.guards import guarded
from client.ingest.arrays import read_array, write_array
from shared.config import CampaignConfig, MachineConfig, to_dict, without_places
from shared.errors import DataError
from shared.generate.hints import hint_of
from shared.generate.networks import Generator, parts_arrays
from shared.generate.prompts import prompt_tokens
from shared.generate.sampling import BATCH_SIZE, sample
from shared.networks import placed
from shared.weights import arrays_digest

OnProgress = Callable[[int, int], None]
MOST_HELD_OUT = 128
"""Images drawn from held-out patients, at most: the guard needs a median of them."""


@dataclass(frozen=True, slots=True, eq=False)
class Drawn:
    """What may be used, and how that was decided."""

    synthetic: Synthetic
    report: Mapping[str, Any]
    """Plain JSON values; client/generate/guards.py names them. `refused`: nothing may be used, for `reason`."""


def draw_synthetic(
    generator: Generator,
    train: Slices,
    campaign: CampaignConfig,
    machine: MachineConfig,
    *,
    site: str,
    held_out: Slices | None = None,
    segmenter: Segmenter | None = None,
    folder: Path | None = None,
    on_progress: OnProgress | None = None,
) -> Drawn:
    """The site's synthetic images, guarded; `on_progress(done, total)` counts images.

    `held_out`: slices that no site trained the generator with (the validation split). `segmenter` judges masks; where
    it is needed (draw.keep < 1) and not given, one is trained on the site's training slices. A site that has no mask in
    a campaign with masks gets no image.
    """
    asks, notes = asked(train, campaign)
    apart = asked_apart(held_out, campaign, MOST_HELD_OUT) if held_out is not None and len(asks) else _nothing()
    total = len(asks) + len(apart)
    _check_fits(total, train, campaign)

    def advance(done: int) -> None:
        if on_progress is not None:
            on_progress(done, total)

    digest = generator_digest(generator)
    image_SCHW = _drawn(generator, digest, train, asks, campaign, machine, folder, advance)
    pairs = None
    if held_out is not None and len(apart):

        def advance_further(done: int) -> None:
            advance(len(asks) + done)

        drawn_MCHW = _drawn(generator, digest, held_out, apart, campaign, machine, folder, advance_further)
        pairs = drawn_MCHW, held_out.clean_NCHW
    used_S, report = guarded(image_SCHW, asks, train, campaign, machine, site=site, held_out=pairs, segmenter=segmenter)
    synthetic = Synthetic(image_SCHW[used_S], asks.source_S[used_S], asks.diagnosis_S[used_S])
    return Drawn(synthetic, {**report, "notes": list(notes), "generator": digest})


def _check_fits(images: int, train: Slices, campaign: CampaignConfig) -> None:
    """All images of a site are in memory at once, and once more while they are put together. Raises DataError before
    hours are spent on a drawing that the system would kill."""
    gigabytes = 2 * images * train.clean_NCHW[:1].numel() * 4 / 1e9
    there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    if gigabytes > there:
        raise DataError(
            f"generate.draw.variants={campaign.generate.draw.variants} asks for {images} images, which need "
            f"{gigabytes:.0f} GB of memory, and this machine has {there:.0f}; ask for fewer variants in a new campaign"
        )


def _nothing() -> Asks:
    none_S = torch.zeros(0, dtype=torch.int64)
    return Asks(none_S, none_S, none_S.bool(), ())


def conditions(
    generator: Generator, slices: Slices, asks: Asks, campaign: CampaignConfig, device: torch.device
) -> tuple[Tensor, Tensor]:
    """(hint_BCHW, token_BW) of what is asked for, as the ControlNet learnt them."""
    image_BCHW = slices.clean_NCHW[asks.source_S].to(device)
    mask_BHW = slices.mask_NHW[asks.source_S].long().to(device)
    with torch.inference_mode():
        hint_BCHW = hint_of(
            campaign.generate, image_BCHW, mask_BHW, len(campaign.data.masks), generator.hed,
            has_mask_B=slices.has_mask_N[asks.source_S], relabelled_B=asks.relabelled_S.to(device),
        )  # fmt: skip
    acquired = [slices.acquired[int(source)] for source in asks.source_S] if slices.acquired else []
    return hint_BCHW, prompt_tokens(campaign, acquired, asks.diagnosis_S)


def drawn_batch(
    generator: Generator,
    slices: Slices,
    asks: Asks,
    campaign: CampaignConfig,
    machine: MachineConfig,
    device: torch.device,
) -> Tensor:
    """What is asked for in one batch, (B, C, H, W) in [0, 1] on the CPU; the generator is on `device` (`placed`).

    Raises DataError for values that are not finite.
    """
    hint_BCHW, token_BW = conditions(generator, slices, asks, campaign, device)
    draw, prediction = campaign.generate.draw, campaign.generate.prediction
    image_BCHW = sample(generator, hint_BCHW, token_BW, draw, prediction, asks.seeds, machine=machine).cpu()
    if not image_BCHW.isfinite().all():
        raise DataError(
            "the generator draws values that are not finite, so none of its images may be used; train it again with a "
            "lower learning_rate, in a new campaign"
        )
    return image_BCHW


def generator_digest(generator: Generator) -> str:
    """SHA-256 over all weights of a generator."""
    return arrays_digest(parts_arrays(generator, generator.all))


def _drawn(
    generator: Generator,
    digest: str,
    slices: Slices,
    asks: Asks,
    campaign: CampaignConfig,
    machine: MachineConfig,
    folder: Path | None,
    advance: Callable[[int], None],
) -> Tensor:
    """All that is asked for, batch by batch, on the CPU."""
    device = placed(generator, machine)
    parts = [slices.clean_NCHW[:0].float()]
    done = 0
    for start in range(0, len(asks), BATCH_SIZE):
        batch = asks.rows(slice(start, start + BATCH_SIZE))
        path = None if folder is None else folder / f"{_batch_digest(digest, slices, batch, campaign)}.npy"
        image_BCHW = _kept(path, (len(batch), *slices.clean_NCHW.shape[1:]))
        if image_BCHW is None:
            image_BCHW = drawn_batch(generator, slices, batch, campaign, machine, device)
            if path is not None:
                path.parent.mkdir(parents=True, exist_ok=True)
                write_array(path, image_BCHW.numpy())
        parts.append(image_BCHW)
        done += len(batch)
        advance(done)
    return torch.cat(parts)


def _kept(path: Path | None, shape: tuple[int, ...]) -> Tensor | None:
    """A batch that was drawn before; None where it has to be drawn, also where the file is damaged."""
    if path is None:
        return None
    try:
        image_BCHW = np.array(read_array(path))
    except (OSError, ValueError, EOFError, DataError):
        return None
    whole = image_BCHW.shape == shape and image_BCHW.dtype == np.float32 and np.isfinite(image_BCHW).all()
    return torch.from_numpy(image_BCHW) if whole else None


def _batch_digest(digest: str, slices: Slices, asks: Asks, campaign: CampaignConfig) -> str:
    """Of all that the images of one batch depend on."""
    generate = without_places({"generate": to_dict(campaign.generate)})["generate"]
    for other in ("phase", "ema", "autoencoder", "denoiser", "controlnet", "start", "task"):  # of training alone
        generate.pop(other, None)
    for other in ("variants", "classes", "keep", "memorised_share"):
        del generate["draw"][other]
    acquired = [slices.acquired[int(source)] for source in asks.source_S] if slices.acquired else []
    content = hashlib.sha256(json.dumps([digest, generate, acquired, asks.seeds], sort_keys=True).encode())
    for values in (slices.clean_NCHW[asks.source_S], slices.mask_NHW[asks.source_S], asks.diagnosis_S):
        content.update(values.contiguous().numpy().tobytes())
    content.update(asks.relabelled_S.numpy().tobytes())
    return content.hexdigest()[:32]
