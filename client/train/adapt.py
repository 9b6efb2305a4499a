"""A release's networks and a site's slices in; a copy with an adapted enhancer, and a record, out. No file is touched.

    none        the copy as it is
    finetune    every weight of the enhancer
    lastblocks  those of the last `blocks` and of the end; a block is a convolution with what follows it up to the next
    fedbn       scales and shifts of the norms alone (Li et al. 2021, https://arxiv.org/abs/2102.07623)
    tgd         redundant kernels alone (client/train/tgd.py)

Whatever the method, what it does not train is bit for bit what it was: gradients are masked, the optimiser is fresh and
nothing decays. The recogniser never moves; where it steers, its gradient passes the same masks before the gate looks,
so that <d, g> >= |g|^2 holds for what moves.

`rehearse`, against forgetting, adds the enhancement loss of every second image of the release's reference set to that
of the site's (experience replay); the others are left for who decides whether the adaptation is kept. To take away only
what goes against them (A-GEM, Chaudhry et al. 2019, https://arxiv.org/abs/1812.00420) was tried in its place: on the
simulated hospitals it kept a quarter of what is forgotten without, rehearsal seven eighths.

loss=noise2noise (Lehtinen et al. 2018, https://arxiv.org/abs/1803.04189) learns towards a second acquisition instead of
the clean image. The least squares answer is the mean of what a second acquisition shows given the first; that is the
clean image where noise has mean 0 and is independent between the two.
    degrade=pairs   the two images of a pair are the two acquisitions, each the input for the other
    others          two independent draws of the campaign's degradation of the one image in the store. The draws are
                    independent given that image, and only given it: what it has of noise is in both, and is learnt as
                    anatomy. So this shows what would be reached without clean images, where they are there to be drawn
                    from; it is no way to denoise the store's images themselves, and two draws on a noisy acquisition
                    never stand in for a second one
A degradation that draws nothing (blur, downsample) is the same twice: towards itself nothing is learnt, so it is
refused. What a draw leaves biased stays biased: clamped noise at the ends of the scale, the magnitude of missing lines
of k-space, the blur of `composite`.
"""

from __future__ import annotations

import contextlib
import copy
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from client.batches import evaluation_batch, training_batches
from client.dataset import Slices
from client.reading import BATCH_SIZE, read
from client.train import gradprom, tgd
from client.train.alone import alone
from client.train.local import batch_gradients, learning_rate
from client.train.optimiser import AdamW
from shared.batch import Batch
from shared.config import CampaignConfig, DegradeConfig, LearnConfig, MachineConfig, ObjectiveConfig, PersonaliseConfig
from shared.enhance.kernels import NORMS, last_modules, wiring
from shared.errors import ConfigError, DataError, RefusedError
from shared.images.degrade import degrade_batch, draw
from shared.images.quality import psnr_db_B
from shared.networks import Networks, placed
from shared.seeding import generator

NOISY = ("gaussian", "poisson", "composite", "kspace", "low_dose", "pairs")
"""Degradations that two draws differ in."""
ONLINE_PHI = 0.4
"""Published for one study (TGD-N2N)."""
MOST_REFERENCE = 64
"""Images of the dropping test."""
_OBJECTIVES = {"none": "mse-wgan", "joint": "frozen", "gradprom": "todnet-gated"}
"""By `steer`: objectives under which the recogniser does not learn. Their critics are not built here."""

OnStep = Callable[[int, int], None]


class Images(Protocol):
    """Pairs of images: shared.reference.Reference, or Slices."""

    @property
    def clean_NCHW(self) -> Tensor: ...

    @property
    def degraded_NCHW(self) -> Tensor | None: ...


@dataclass(frozen=True, slots=True, eq=False)
class Trained:
    """What a method trains."""

    free: Mapping[str, Tensor]
    """Parameter of the enhancer -> bool of its shape."""
    masks: tgd.Masks | None = None
    """tgd, activation form: whose layers cut gradients."""
    record: Mapping[str, Any] | None = None


def adapt(
    networks: Networks,
    train: Slices,
    campaign: CampaignConfig,
    config: PersonaliseConfig,
    machine: MachineConfig,
    *,
    reference: Images | None = None,
    on_step: OnStep | None = None,
) -> tuple[Networks, Mapping[str, Any]]:
    """Adapt the enhancer to a site's training slices; `networks` stay as they are.

    `reference`: images of the release for tgd's dropping test; without it the training slices are taken. The record
    holds numbers and words for JSON: method, steps, trained_share, loss_begin, loss_end, seconds and, where they are
    known, gate_open_rate, mean_cosine, phi, dropping.
    Raises ConfigError for what cannot be adapted so, DataError where there is nothing to learn from or a gradient is
    not finite, RefusedError where no kernel is redundant.
    """
    return _adapt(networks, train, _own(campaign, config, campaign.degrade), config, machine, reference, on_step)


def adapt_online(
    networks: Networks,
    first_NCHW: Tensor,
    second_NCHW: Tensor,
    campaign: CampaignConfig,
    config: PersonaliseConfig,
    machine: MachineConfig,
    *,
    on_step: OnStep | None = None,
) -> tuple[Networks, Mapping[str, Any]]:
    """Noise2Noise between two independent acquisitions (or halves) of one study, each the input for the other.

    float32 on the campaign's scale, slice by slice of the same place. Returns a fresh copy, for this study alone, and
    the record; tgd.phi is 0.4 where none is given. There are no labels: what steers has labels=pseudo.
    """
    if first_NCHW.shape != second_NCHW.shape or first_NCHW.ndim != 4:
        shapes = tuple(first_NCHW.shape), tuple(second_NCHW.shape)
        raise DataError(f"two acquisitions must have the same slices and size, got {shapes[0]} and {shapes[1]}")
    if torch.equal(first_NCHW, second_NCHW):
        raise DataError("the second acquisition is the first one again; Noise2Noise needs independent noise")
    count, _, height, width = first_NCHW.shape
    slices = Slices(
        clean_NCHW=second_NCHW.float(),
        mask_NHW=torch.zeros(count, height, width, dtype=torch.uint8),
        has_mask_N=torch.zeros(count, dtype=torch.bool),
        diagnosis_N=torch.full((count,), -1),
        patient_N=torch.zeros(count, dtype=torch.int64),
        identity=tuple(f"study/{number}" for number in range(count)),
        degraded_NCHW=first_NCHW.float(),
    )
    phi = ONLINE_PHI if config.tgd.phi is None else config.tgd.phi
    online = replace(config, loss="noise2noise", tgd=replace(config.tgd, phi=phi))
    own = _own(campaign, online, DegradeConfig(kind="pairs"))
    return _adapt(networks, slices, own, online, machine, None, on_step)


def _own(campaign: CampaignConfig, config: PersonaliseConfig, degrade: DegradeConfig) -> CampaignConfig:
    """The campaign as the adaptation trains by it: its own rates and seed, no other site, no generator."""
    if campaign.enhance.kind == "none":
        raise ConfigError("this release has no enhancer (enhance=none), so there is nothing to adapt to a scanner")
    objective, learn = campaign.objective, campaign.learn
    steered = ObjectiveConfig(
        kind=_OBJECTIVES[config.steer],  # type: ignore[arg-type]
        task_weight=config.task_weight,
        mask_weight=objective.mask_weight,
        diagnosis_weight=objective.diagnosis_weight,
    )
    training = replace(
        campaign.training,
        batch_size=config.batch_size,
        local_steps=config.steps,
        learning_rate=config.learning_rate,
        optimiser="adam",
        adam_states="one",
        schedule="cosine",
        weight_decay=0.0,
        # The mean is what Noise2Noise converges to, and only the squared error asks for it.
        enhance_loss="mse" if config.loss == "noise2noise" else campaign.training.enhance_loss,
    )
    measured = campaign.enhance.data_consistency and degrade.kind == "kspace"
    return alone(
        campaign,
        training,
        seed=config.seed,
        degrade=degrade,
        enhance=replace(campaign.enhance, data_consistency=measured),
        learn=LearnConfig(segment=learn.segment, diagnose=learn.diagnose),
        objective=steered,
    )


def _adapt(
    networks: Networks,
    slices: Slices,
    own: CampaignConfig,
    config: PersonaliseConfig,
    machine: MachineConfig,
    reference: Images | None,
    on_step: OnStep | None,
) -> tuple[Networks, Mapping[str, Any]]:
    began = time.perf_counter()
    adapted = replace(
        networks, enhancer=copy.deepcopy(networks.enhancer), recogniser=copy.deepcopy(networks.recogniser)
    )
    placed(adapted, machine)
    record = {"method": config.method, "loss": config.loss, "steer": config.steer, "labels": config.labels}
    if config.method == "none":
        return adapted, {**record, "steps": 0, "trained_share": 0.0}
    _check(slices, own, config)
    if config.labels == "pseudo":
        slices = pseudo_labelled(adapted, slices, own, machine, "clean" if config.loss == "clean" else "enhanced")
    trained = _trained(adapted, slices, own, config, machine, reference)
    if tgd.share(trained.free) == 0:
        raise RefusedError(
            f"method={config.method}: no kernel of the enhancer is redundant in all that reads it; raise tgd.phi"
        )
    adapted.recogniser.requires_grad_(False).eval()
    for name, parameter in adapted.enhancer.named_parameters():
        # torch's GroupNorm crashes in channels-last memory where its weights need a gradient and its input does not:
        # only the beginning of a network is left out as a whole.
        parameter.requires_grad_(config.method != "lastblocks" or bool(trained.free[name].any()))
    # Nothing in these networks drifts in training mode; where something does, tgd keeps it with its protected kernels.
    adapted.enhancer.train(config.method != "tgd")
    remembered = rehearsed(reference) if config.rehearse > 0 else None
    with tgd.cut(adapted.enhancer, trained.masks) if trained.masks else contextlib.nullcontext():
        measured = _loop(adapted, slices, own, config, machine, trained.free, remembered, on_step)
    adapted.enhancer.requires_grad_(True).eval()
    adapted.recogniser.requires_grad_(True)
    if config.method in ("tgd", "lastblocks", "fedbn"):
        wrong = tgd.touched(networks.enhancer, adapted.enhancer, trained.free)
        assert not wrong, f"protected weights moved: {wrong}"
    spent = {"steps": config.steps, "trained_share": tgd.share(trained.free), "seconds": time.perf_counter() - began}
    return adapted, {**record, **spent, **measured, **(trained.record or {})}


def _check(slices: Slices, own: CampaignConfig, config: PersonaliseConfig) -> None:
    if not len(slices):
        raise DataError("there is no slice to adapt to; ingest more studies")
    if config.loss == "noise2noise" and own.degrade.kind not in NOISY:
        raise ConfigError(
            f"loss=noise2noise needs two acquisitions that differ, and degrade={own.degrade.kind} draws nothing; "
            "choose loss=clean"
        )
    labelled = bool(own.masks and slices.has_mask_N.any()) or bool(own.diagnoses and (slices.diagnosis_N >= 0).any())
    if config.steer != "none" and config.labels == "own" and not labelled:
        raise ConfigError(f"steer={config.steer} needs labels, and these images have none; choose labels=pseudo")


def _loop(
    networks: Networks,
    slices: Slices,
    own: CampaignConfig,
    config: PersonaliseConfig,
    machine: MachineConfig,
    free: Mapping[str, Tensor],
    remembered: tuple[Tensor, Tensor] | None,
    on_step: OnStep | None,
) -> dict[str, float]:
    theta = gradprom.trained(networks.enhancer)
    device = theta[0].device
    wanted = {name for name, parameter in networks.enhancer.named_parameters() if parameter.requires_grad}
    free_D = torch.cat([mask.reshape(-1) for name, mask in free.items() if name in wanted]).to(device)
    blocks = [parameter.numel() for parameter in theta]
    optimiser = AdamW(theta, learning_rate=config.learning_rate, weight_decay=0.0)
    second, recalled = (generator(config.seed, "personalise", name) for name in ("second", "memory"))
    losses, gates, cosines, micro_size = list[Tensor](), list[Tensor](), list[Tensor](), config.batch_size
    coming = training_batches(
        slices, own, site="personalise", round=1, steps=config.steps, pin=device.type == "cuda"
    )  # fmt: skip
    with contextlib.closing(coming) as batches:
        for step, batch in enumerate(batches):
            shown = twice_acquired(batch, own, second) if config.loss == "noise2noise" else batch
            moved = shown.to(device, channels_last=machine.channels_last)
            found, micro_size = batch_gradients(networks, moved, own, machine, gradprom.gradients, micro_size)
            d_D = torch.where(free_D, found.enhance_D, 0.0)
            if found.task_D:
                v_TD = [torch.where(free_D, v_D, 0.0) for v_D in found.task_D]
                steered = gradprom.direction(d_D, v_TD, own.objective, blocks)
                d_D = steered.d_D
                gates.append(steered.gate_open)
                cosines.append(steered.cosine)
            if remembered is not None:
                r_D = torch.where(free_D, memory_gradient_D(networks, remembered, own, config, machine, recalled), 0.0)
                d_D = d_D + config.rehearse * r_D
            d_D, norm_d = gradprom.clipped(d_D, own.training.clip_norm)
            gradprom.require_finite(torch.isfinite(norm_d) & torch.isfinite(found.enhance_loss))
            gradprom.assign(theta, d_D)
            optimiser.learning_rate = learning_rate(own, step / config.steps)
            optimiser.step()
            losses.append(found.enhance_loss)
            if on_step is not None:
                on_step(step + 1, config.steps)
    tenth = math.ceil(len(losses) / 10)
    columns = {"loss_begin": losses[:tenth], "loss_end": losses[-tenth:]}
    columns |= {"gate_open_rate": gates, "mean_cosine": cosines}
    return {name: float(torch.stack(values).mean()) for name, values in columns.items() if values}


def rehearsed(reference: Images | None) -> tuple[Tensor, Tensor]:
    """(degraded_NCHW, clean_NCHW) of every second reference image, the first among them."""
    if reference is None or reference.degraded_NCHW is None or len(reference.clean_NCHW) < 2:
        raise ConfigError("rehearse needs a release with two reference images or more; set rehearse=0")
    return reference.degraded_NCHW[::2], reference.clean_NCHW[::2]


def judging(count: int) -> slice:
    """Of `count` reference images, those that `rehearsed` leaves alone."""
    return slice(1, count, 2)


def memory_gradient_D(
    networks: Networks,
    remembered: tuple[Tensor, Tensor],
    own: CampaignConfig,
    config: PersonaliseConfig,
    machine: MachineConfig,
    rng: torch.Generator,
) -> Tensor:
    """The gradient of the enhancement loss on reference images drawn with `rng`."""
    theta = gradprom.trained(networks.enhancer)
    chosen_B = torch.randint(len(remembered[0]), (config.batch_size,), generator=rng)
    layout = torch.channels_last if machine.channels_last else torch.contiguous_format
    degraded_BCHW, clean_BCHW = (
        images[chosen_B].to(theta[0].device).contiguous(memory_format=layout) for images in remembered
    )
    loss = gradprom.fidelity(own)(networks.enhancer(degraded_BCHW).float(), clean_BCHW)
    return gradprom.flat(torch.autograd.grad(loss, theta))


def twice_acquired(batch: Batch, own: CampaignConfig, rng: torch.Generator) -> Batch:
    """The batch with a second acquisition as what it is to become, instead of the clean image."""
    if own.degrade.kind == "pairs":
        swapped_B111 = (torch.rand(batch.size, generator=rng) < 0.5)[:, None, None, None]
        first_BCHW = torch.where(swapped_B111, batch.clean_BCHW, batch.degraded_BCHW)
        second_BCHW = torch.where(swapped_B111, batch.degraded_BCHW, batch.clean_BCHW)
        return replace(batch, degraded_BCHW=first_BCHW, clean_BCHW=second_BCHW)
    drawn = [draw(own.degrade, rng, own.data) for _ in range(batch.size)]
    return replace(batch, clean_BCHW=degrade_batch(batch.clean_BCHW, drawn))


def pseudo_labelled(
    networks: Networks, slices: Slices, own: CampaignConfig, machine: MachineConfig, state: str
) -> Slices:
    """The slices with what the networks say of them, in place of the site's labels; a patient has one diagnosis."""
    said = read(networks, slices, own, machine)[state]
    mask_NHW, has_mask_N, diagnosis_N = slices.mask_NHW, torch.zeros_like(slices.has_mask_N), slices.diagnosis_N
    if said.found_NHW is not None:
        mask_NHW, has_mask_N = said.found_NHW, torch.ones_like(has_mask_N)
    diagnosis_N = torch.full_like(diagnosis_N, -1)
    if said.probabilities_NK is not None:
        given_NK = torch.from_numpy(said.probabilities_NK)
        of_patient_NK = torch.zeros(int(slices.patient_N.max()) + 1, given_NK.shape[1], dtype=given_NK.dtype)
        diagnosis_N = of_patient_NK.index_add_(0, slices.patient_N, given_NK)[slices.patient_N].argmax(1)
    return replace(slices, mask_NHW=mask_NHW, has_mask_N=has_mask_N, diagnosis_N=diagnosis_N)


# ------------------------------------------------------------------------------------------- what is trained


def _trained(
    networks: Networks,
    slices: Slices,
    own: CampaignConfig,
    config: PersonaliseConfig,
    machine: MachineConfig,
    reference: Images | None,
) -> Trained:
    enhancer = networks.enhancer
    match config.method:
        case "lastblocks":
            return Trained(_named(enhancer, last_modules(enhancer, wiring(enhancer, own.data.channels), config.blocks)))
        case "fedbn":
            norms = [name for name, module in enhancer.named_modules() if isinstance(module, NORMS)]
            free = _named(enhancer, norms)
            if tgd.share(free) == 0:
                raise ConfigError(
                    f"method=fedbn trains scales and shifts of norms, and enhance={own.enhance.kind} has none; choose "
                    "another method"
                )
            return Trained(free)
        case "tgd":
            return _redundant(enhancer, slices, own, config, machine, reference)
        case _:
            return Trained(
                {name: torch.ones_like(each, dtype=torch.bool) for name, each in enhancer.named_parameters()}
            )


def _named(network: nn.Module, modules: list[str]) -> dict[str, Tensor]:
    """All weights of these modules."""
    chosen = tuple(f"{name}." for name in modules)
    return {
        name: torch.full_like(parameter, name.startswith(chosen), dtype=torch.bool)
        for name, parameter in network.named_parameters()
    }


def _redundant(
    enhancer: nn.Module,
    slices: Slices,
    own: CampaignConfig,
    config: PersonaliseConfig,
    machine: MachineConfig,
    reference: Images | None,
) -> Trained:
    asked = config.tgd
    wired = wiring(enhancer, own.data.channels)
    scores_G = tgd.group_scores_G(enhancer, wired, asked.neighbours)
    record: dict[str, Any] = {"form": asked.form, "phi": asked.phi}
    if asked.phi is None:
        degraded_NCHW, clean_NCHW = _pairs(slices, own, reference)
        curve = tgd.dropping_test(
            enhancer,
            wired,
            scores_G,
            asked.phis,
            lambda network: float(enhanced_psnr_db_N(network, degraded_NCHW, clean_NCHW, machine).mean()),
        )
        record |= {"phi": tgd.chosen_phi(curve, asked), "dropping": curve}
    masks = tgd.masks_of(wired, scores_G, float(record["phi"]), asked.first_layer)
    free = tgd.retrained(enhancer, masks)
    return Trained(free, masks if asked.form == "activation" else None, record)


def _pairs(slices: Slices, own: CampaignConfig, reference: Images | None) -> tuple[Tensor, Tensor]:
    """Degraded and clean images of the dropping test."""
    if reference is not None and reference.degraded_NCHW is not None and len(reference.clean_NCHW):
        return reference.degraded_NCHW, reference.clean_NCHW
    chosen = torch.linspace(0, len(slices) - 1, min(len(slices), MOST_REFERENCE)).round().long()
    batch = evaluation_batch(slices, own, chosen)
    return batch.degraded_BCHW, batch.clean_BCHW


@torch.no_grad()
def enhanced_psnr_db_N(
    enhancer: nn.Module, degraded_NCHW: Tensor, clean_NCHW: Tensor, machine: MachineConfig
) -> Tensor:
    """PSNR of every enhanced image, clamped to [0, 1] as when it is written; on the CPU."""
    device = next(enhancer.parameters()).device
    layout = torch.channels_last if machine.channels_last else torch.contiguous_format
    values = []
    for degraded_BCHW, clean_BCHW in zip(
        torch.split(degraded_NCHW, BATCH_SIZE), torch.split(clean_NCHW, BATCH_SIZE), strict=True
    ):
        moved_BCHW = degraded_BCHW.to(device).contiguous(memory_format=layout)
        values.append(psnr_db_B(clean_BCHW.to(device), enhancer(moved_BCHW).float().clamp(0, 1)).cpu())
    return torch.cat(values)
