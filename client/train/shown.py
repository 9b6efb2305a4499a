"""A site's slices in, what a step of a generator's training sees out; everything random is drawn here.

Latents, hints and tokens are worked out once per slice, in fixed batches in the slices' order, and kept in the process
until the networks that made them change: the same numbers in every round, in whatever process it runs.

Augmentation (training.augment): the autoencoder and the edge detector see flips and shifts, as a recogniser does. From
then on latents are known before the step, and a latent is four pixels wide: half of the images are mirror images,
encoded as such, and nothing is shifted. (Mirrored latents would not do: encoding does not commute with mirroring.)
Hints are images and mirrored as they are.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from typing import Any, TypeVar

import torch
from torch import Tensor

from client.batches import Augmentation, augmented, draw_augmentation
from client.dataset import Slices
from shared.config import CampaignConfig, GenerateConfig, MachineConfig
from shared.generate.hints import hint_of
from shared.generate.networks import Generator, parts_arrays
from shared.generate.prompts import dropped, prompt_tokens
from shared.generate.schedule import TIMES, draw_times
from shared.seeding import generator as seeded
from shared.weights import arrays_digest

BATCH_SIZE = 32
"""Of what is worked out once per slice; not a choice of the machine's: convolutions round by it."""


@dataclass(frozen=True, slots=True, eq=False)
class Pictures:
    """B images for the edge detector or the autoencoder."""

    image_BCHW: Tensor
    mask_BHW: Tensor
    """int64, 0 where the slice has none."""
    noise_BCHW: Tensor
    """Shaped like the latents."""


@dataclass(frozen=True, slots=True, eq=False)
class Latents:
    """B images for the denoiser or the ControlNet."""

    latent_BCHW: Tensor
    noise_BCHW: Tensor
    time_B: Tensor
    token_BW: Tensor
    hint_BCHW: Tensor | None
    mask_BHW: Tensor
    has_mask_B: Tensor
    diagnosis_B: Tensor
    early_B: Tensor
    """Noised no further than generate.task.latest_time. Stays on the CPU: how many they are must be known there."""


Shown = TypeVar("Shown", bound=Pictures | Latents)


def size_of(shown: Pictures | Latents) -> int:
    return len(shown.noise_BCHW)


def moved(shown: Shown, device: torch.device, *, channels_last: bool) -> Shown:
    """On `device`, images and latents in the machine's memory order."""
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    on_device: dict[str, Any] = {
        name: value.to(device, memory_format=memory_format if value.ndim == 4 else torch.preserve_format)
        for name, value in _tensors(shown).items()
        if name != "early_B"
    }
    return replace(shown, **on_device)


def parts(shown: Shown, size: int) -> list[Shown]:
    """Parts of at most `size` images, in order."""
    if size >= size_of(shown):
        return [shown]
    split = {name: torch.split(value, size) for name, value in _tensors(shown).items()}
    return [replace(shown, **dict(zip(split, values, strict=True))) for values in zip(*split.values(), strict=True)]


def _tensors(shown: Pictures | Latents) -> dict[str, Tensor]:
    return {each.name: value for each in fields(shown) if isinstance(value := getattr(shown, each.name), Tensor)}


def order(count: int, size: int, steps: int, rng: torch.Generator) -> Iterator[Tensor]:
    """`steps` times `size` indices; each of `count` comes once before any comes again."""
    passes = -(-steps * size // count)
    index_S = torch.cat([torch.randperm(count, generator=rng) for _ in range(passes)])[: steps * size]
    return iter(torch.split(index_S, size))


Randoms = Mapping[str, torch.Generator]


def randoms(campaign: CampaignConfig, *purpose: str | int) -> Randoms:
    """One stream for each thing that is drawn: what is switched off moves nothing else."""
    names = ("order", "augment", "noise", "time", "text", "hint")
    return {name: seeded(campaign.seed, *purpose, campaign.generate.phase, name) for name in names}


def draw_pictures(
    generator: Generator, slices: Slices, chosen_B: Tensor, campaign: CampaignConfig, rngs: Randoms
) -> Pictures:
    height, width = slices.clean_NCHW.shape[-2:]
    drawn = [Augmentation(False, 0, 0)] * len(chosen_B)
    if campaign.training.augment:
        drawn = [draw_augmentation(height, width, rngs["augment"]) for _ in chosen_B]
    noise_BCHW = torch.randn(len(chosen_B), *generator.latent_shape, generator=rngs["noise"])
    image_BCHW, mask_BHW = (augmented(each[chosen_B], drawn) for each in (slices.clean_NCHW, slices.mask_NHW))
    return Pictures(image_BCHW, mask_BHW.long(), noise_BCHW)


@dataclass(frozen=True, slots=True, eq=False)
class Tables:
    """What is known of N slices before the first step; on the CPU."""

    latent_FNCHW: Tensor
    """Scaled. F: as they are and, where images are augmented, mirrored."""
    hint_NCHW: Tensor | None
    """In the ControlNet's phase."""
    token_NW: Tensor


def tables_of(
    generator: Generator, slices: Slices, campaign: CampaignConfig, machine: MachineConfig, *, mirrored: bool
) -> Tables:
    """The generator is on its machine's device already."""
    acquired = slices.acquired or (("", ""),) * len(slices)
    makers = [name for name in ("autoencoder", "latents", "hed") if name in generator.all]
    digest = arrays_digest(parts_arrays(generator, makers))
    latent_FNCHW = _latents(generator, slices, machine, mirrored, digest)
    hint_NCHW = None
    if campaign.generate.phase == "controlnet":
        hint_NCHW = _hints(generator, slices, campaign.generate, len(campaign.data.masks), machine, digest)
    return Tables(latent_FNCHW, hint_NCHW, prompt_tokens(campaign, acquired, slices.diagnosis_N))


def forget() -> None:
    """Let go of all latents and hints, and of the slices and networks that they came from."""
    _latents.cache_clear()
    _hints.cache_clear()


@lru_cache(maxsize=32)
@torch.no_grad()
def _latents(generator: Generator, slices: Slices, machine: MachineConfig, mirrored: bool, digest: str) -> Tensor:
    del digest  # of the networks' weights: part of what the cache asks for
    device = generator.latents.scale.device
    found = []
    with torch.autocast(device.type, torch.bfloat16, enabled=machine.precision == "bfloat16"):
        for image_NCHW in [slices.clean_NCHW, slices.clean_NCHW.flip(-1)][: 1 + mirrored]:
            batches = torch.split(image_NCHW, BATCH_SIZE)
            found.append(torch.cat([generator.encode(image.to(device)).float().cpu() for image in batches]))
    return torch.stack(found)


@lru_cache(maxsize=32)
@torch.no_grad()
def _hints(
    generator: Generator,
    slices: Slices,
    generate: GenerateConfig,
    num_masks: int,
    machine: MachineConfig,
    digest: str,
) -> Tensor:
    del machine, digest
    device = generator.latents.scale.device
    columns = (slices.clean_NCHW, slices.mask_NHW, slices.has_mask_N)
    batches = zip(*(torch.split(column, BATCH_SIZE) for column in columns), strict=True)
    return torch.cat(
        [
            hint_of(
                generate, image.to(device), mask.long().to(device), num_masks, generator.hed, has_mask_B=known
            ).float().cpu()
            for image, mask, known in batches
        ]
    )  # fmt: skip


def draw_latents(tables: Tables, slices: Slices, chosen_B: Tensor, campaign: CampaignConfig, rngs: Randoms) -> Latents:
    generate, count = campaign.generate, len(chosen_B)
    mirror_B = torch.randint(len(tables.latent_FNCHW), (count,), generator=rngs["augment"])
    latent_BCHW = tables.latent_FNCHW[mirror_B, chosen_B]
    time_B = draw_times(count, generate.prediction, rngs["time"])
    hint_BCHW = None
    if tables.hint_NCHW is not None:
        stays_B = torch.rand(count, generator=rngs["hint"]) >= generate.drop_hint
        hint_BCHW = _mirrored(tables.hint_NCHW[chosen_B], mirror_B) * stays_B[:, None, None, None]
    return Latents(
        latent_BCHW=latent_BCHW,
        noise_BCHW=torch.randn(latent_BCHW.shape, generator=rngs["noise"]),
        time_B=time_B,
        token_BW=dropped(tables.token_NW[chosen_B], generate.drop_text, rngs["text"]),
        hint_BCHW=hint_BCHW,
        mask_BHW=_mirrored(slices.mask_NHW[chosen_B], mirror_B).long(),
        has_mask_B=slices.has_mask_N[chosen_B],
        diagnosis_B=slices.diagnosis_N[chosen_B],
        early_B=time_B <= generate.task.latest_time * TIMES,
    )


def _mirrored(images: Tensor, mirror_B: Tensor) -> Tensor:
    where = mirror_B.bool().view(-1, *(1,) * (images.ndim - 1))
    return torch.where(where, images.flip(-1), images)


def judged_latents(
    tables: Tables, slices: Slices, chosen_B: Tensor, campaign: CampaignConfig, times: int
) -> Sequence[Latents]:
    """The images with their prompts and hints at `times` times each, one in every 1/times of the schedule; times and
    noise come from the image's identity alone: every model, everywhere, is judged on the same."""
    rngs = [
        seeded(campaign.seed, "evaluation", campaign.generate.phase, slices.identity[int(index)]) for index in chosen_B
    ]
    shape, shown = tables.latent_FNCHW.shape[2:], []
    for part in range(times):
        share_B = torch.stack([(part + torch.rand((), generator=rng)) / times for rng in rngs])
        time_B = share_B * TIMES
        shown.append(
            Latents(
                latent_BCHW=tables.latent_FNCHW[0, chosen_B],
                noise_BCHW=torch.stack([torch.randn(shape, generator=rng) for rng in rngs]),
                time_B=time_B.long() if campaign.generate.prediction == "noise" else time_B.clamp(min=1),
                token_BW=tables.token_NW[chosen_B],
                hint_BCHW=None if tables.hint_NCHW is None else tables.hint_NCHW[chosen_B],
                mask_BHW=slices.mask_NHW[chosen_B].long(),
                has_mask_B=slices.has_mask_N[chosen_B],
                diagnosis_B=slices.diagnosis_N[chosen_B],
                early_B=torch.zeros(len(chosen_B), dtype=torch.bool),
            )
        )
    return shown
