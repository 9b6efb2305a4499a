"""privacy=patient: a round of training in which no patient's part can be told from noise (DP-SGD with the gate inside).

Abadi et al. 2016, https://arxiv.org/abs/1607.00133, algorithm 1, with a patient in the place of an example:

    draw       every training patient is in a step with probability rate, independently (Poisson sampling)
    c          [g, v, r] of the patient's drawn slices, summed over them: gradients of the main loss on the enhancer, of
               recognition on the enhancer, of recognition on the recogniser; those of them that the objective has
    sum        of c min(1, clip_norm / |c|) over the drawn patients: one patient more or less moves it by clip_norm
    noised     (sum + N(0, (multiplier clip_norm)^2)) / (rate patients), one draw for all three: one mechanism
    gate       GradProm's, and all that follows, sees the noised g and v alone: what is made of them costs nothing more

Draws, noise, augmentation and dropout are the operating system's randomness; the accountant's gain from sampling rests
on that nobody knows who was drawn. A step in which nobody was drawn is a step of noise. A gradient that is not finite
adds nothing, for an error would tell of it. Two training sets are neighbours when one has a patient that the other has
not; which patients train (client/dataset.py) and how many is taken as known. How long a step takes tells how many were
drawn: the answer has no time, but who sees messages come has a clock (docs/security.md).
"""

from __future__ import annotations

import copy
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from client.batches import drawn_batch
from client.dataset import Slices
from client.privacy import COSINE, MULTIPLIER, cosine
from client.train import gradprom
from client.train.gradprom import Gradients, Optimisers
from client.train.local import OnStep, gradients_form, learning_rate
from client.train.terms import Share
from shared.batch import Batch
from shared.config import CampaignConfig, MachineConfig
from shared.errors import DataError
from shared.networks import Networks, placed
from shared.privacy.noise import normal, uniform
from shared.privacy.parts import only_trained
from shared.recognise.losses import Labelled
from shared.types import Arrays
from shared.weights import difference, parts_of, to_arrays


@dataclass(frozen=True, slots=True, eq=False)
class Layout:
    """How a patient's concatenated gradient is put together: lengths of its parts, 0 for one that is not there."""

    enhance: int
    task: int
    recogniser: int

    @property
    def total(self) -> int:
        return self.enhance + self.task + self.recogniser


def train_private(
    networks: Networks,
    slices: Slices,
    campaign: CampaignConfig,
    machine: MachineConfig,
    *,
    site: str,
    round: int,
    steps: int,
    multiplier: float,
    on_step: OnStep | None = None,
    compare: bool = False,
    rng: torch.Generator | None = None,
) -> Mapping[str, float]:
    """Train `networks` in place for `steps` steps of 1-based `round`; noise is `multiplier` times privacy.clip_norm.

    The record is `covered`; its samples are what is expected, privacy.patients * privacy.slices * steps rounded. Only
    with `compare`, which no deployed site may ask for (client/privacy.py), it has privacy.cosine: of the round's change
    of weights with that of the same draws without clipping and noise.
    `rng` is for tests: all that is drawn comes from it. Raises DataError where there is no training patient or weights
    are no longer finite, RefusedError for BatchNorm, ConfigError where privacy.trained leaves nothing.
    """
    patients = len(set(slices.patient_N.tolist()))
    if not patients:
        raise DataError("privacy=patient draws training patients, and this site has none; ingest more studies")
    rate = min(1.0, campaign.privacy.patients / patients)
    secret = rng or torch.Generator().manual_seed(int.from_bytes(os.urandom(8), "big") >> 1)
    with only_trained(networks, campaign, machine) as used, _secret_dropout(secret):
        device = placed(networks, used)
        began = to_arrays(networks)
        learner = _Learner.of(networks, campaign)
        twin = _Learner.of(_copied(networks), campaign) if compare else None
        for step in range(steps):
            progress = ((round - 1) + step / steps) / campaign.rounds.rounds
            drawn = [
                drawn_batch(slices, chosen_B, campaign, secret).to(device, channels_last=used.channels_last)
                for chosen_B in draw_patients(slices.patient_N, rate, campaign.privacy.slices, secret, rng)
            ]
            expected = rate * patients
            learner.step(drawn, campaign, used, progress, expected, multiplier, rng)
            if twin is not None:
                twin.step(drawn, campaign, used, progress, expected, None, rng)
            if on_step is not None:
                on_step(step + 1, steps)
        ended = to_arrays(networks)
    gradprom.require_finite(torch.tensor(all(bool(torch.isfinite(torch.from_numpy(a)).all()) for a in ended.values())))
    samples = int(campaign.privacy.patients * campaign.privacy.slices * steps + 0.5)
    record = covered(campaign, ended, round=round, steps=steps, samples=samples, multiplier=multiplier)
    if twin is not None:
        record[COSINE] = _cosine(began, ended, to_arrays(twin.networks))
    return record


def covered(
    campaign: CampaignConfig, names: Iterable[str], *, round: int, steps: int, samples: int, multiplier: float
) -> dict[str, float]:
    """What may leave of a training record under privacy, of either unit: settings, and no losses, gates or times.

    Every site tells the same `samples`, those that its settings lead to, and for each part of the networks (`names` are
    those of their arrays) as many images: a site that counted 0 would keep its share of the noise out of the sum.
    """
    images = {f"images.{part}": float(samples) for part in parts_of(names)}
    rate = learning_rate(campaign, ((round - 1) + (steps - 1) / steps) / campaign.rounds.rounds)
    return {"samples": float(samples), **images, "learning_rate": rate, MULTIPLIER: multiplier}


def draw_patients(
    patient_N: Tensor, rate: float, most: int, secret: torch.Generator, rng: torch.Generator | None = None
) -> Iterator[Tensor]:
    """Indices of up to `most` slices of each patient that a Poisson sample of `rate` has drawn; maybe of none."""
    patients = sorted(set(patient_N.tolist()))
    for patient, luck in zip(patients, uniform(len(patients), rng), strict=True):
        if luck >= rate:
            continue
        of_patient = (patient_N == patient).nonzero()[:, 0]
        yield of_patient[torch.randperm(len(of_patient), generator=secret)[:most]]


def clipped_sum(
    gradients: Sequence[Tensor], clip_norm: float | None, size: int, device: torch.device | None = None
) -> Tensor:
    """The sum of patients' gradients (each of length `size`), each with its L2 norm cut to `clip_norm` at most; one
    that is not finite counts as 0. So is the sum over nobody."""
    total_D = torch.zeros(size, device=device)
    for each_D in gradients:
        norm = torch.linalg.vector_norm(each_D, dtype=torch.float64)
        scale = torch.ones_like(norm) if clip_norm is None else (clip_norm / norm.clamp(min=_TINY)).clamp(max=1.0)
        # Each value is finite where their float64 norm is.
        total_D += torch.where(torch.isfinite(norm), scale.to(each_D.dtype) * each_D.nan_to_num(0.0, 0.0, 0.0), 0.0)
    return total_D


_TINY = torch.finfo(torch.float32).tiny


def patient_gradient(
    networks: Networks, batch: Batch, campaign: CampaignConfig, machine: MachineConfig, *, warm: bool
) -> Tensor:
    """[g, v, r] of one patient's slices: gradients of losses that are summed over the slices."""
    one = torch.ones((), dtype=torch.int64, device=batch.clean_BCHW.device)
    of_sum = Share(float(batch.size), Labelled(one, one))
    device_type = batch.clean_BCHW.device.type
    with torch.autocast(device_type, torch.bfloat16, enabled=machine.precision == "bfloat16"):
        found = gradients_form(campaign, warm=warm)(networks, batch, of_sum, campaign)
    parts = [found.enhance_D, *found.task_D, *([] if found.recogniser_D is None else [found.recogniser_D])]
    return torch.cat(parts)


def layout_of(networks: Networks, campaign: CampaignConfig, *, warm: bool) -> Layout:
    """What `patient_gradient` is made of, whoever is drawn."""
    theta, phi = (
        sum(each.numel() for each in gradprom.trained(network)) for network in (networks.enhancer, networks.recogniser)
    )
    objective = campaign.objective
    steers = objective.steers and not warm and campaign.enhance.kind != "none"
    learns = objective.learns or warm
    return Layout(theta, theta if steers else 0, phi if learns else 0)


@dataclass(frozen=True, slots=True, eq=False)
class _Learner:
    networks: Networks
    optimisers: Optimisers

    @classmethod
    def of(cls, networks: Networks, campaign: CampaignConfig) -> _Learner:
        enhancer = gradprom.make_optimiser(networks.enhancer, campaign)
        return cls(networks, Optimisers(enhancer, gradprom.make_optimiser(networks.recogniser, campaign)))

    def step(
        self,
        drawn: Sequence[Batch],
        campaign: CampaignConfig,
        machine: MachineConfig,
        progress: float,
        expected: float,
        multiplier: float | None,
        rng: torch.Generator | None,
    ) -> None:
        """One step on the patients that were drawn; without a multiplier neither clipped nor noised."""
        networks, warm = self.networks, progress < campaign.objective.warmup
        networks.enhancer.train()
        networks.recogniser.train(campaign.objective.learns or warm)
        for optimiser in (self.optimisers.enhancer, self.optimisers.recogniser):
            optimiser.learning_rate = learning_rate(campaign, progress)
        layout = layout_of(networks, campaign, warm=warm)
        gradients = [patient_gradient(networks, batch, campaign, machine, warm=warm) for batch in drawn]
        clip = None if multiplier is None else campaign.privacy.clip_norm
        total_D = clipped_sum(gradients, clip, layout.total, next(networks.recogniser.parameters()).device)
        if multiplier is not None:
            total_D = noised(total_D, multiplier * campaign.privacy.clip_norm, rng)
        gradprom.update(networks, self.optimisers, apart(total_D / expected, layout), campaign, check=False)


def noised(total_D: Tensor, std: float, rng: torch.Generator | None) -> Tensor:
    """The sum with independent noise of N(0, std^2) on every value, added in float64."""
    noise_D = torch.from_numpy(normal(total_D.numel(), std, rng))
    return (total_D.cpu().double() + noise_D).float().to(total_D.device)


def apart(mean_D: Tensor, layout: Layout) -> Gradients:
    """The noised parts, as gradprom.update takes them. No loss is told."""
    g_D, v_D, r_D = torch.split(mean_D, [layout.enhance, layout.task, layout.recogniser])
    nothing = torch.zeros((), device=mean_D.device)
    return Gradients(g_D, (v_D,) if layout.task else (), r_D if layout.recogniser else None, nothing, nothing)


@contextmanager
def _secret_dropout(secret: torch.Generator) -> Iterator[None]:
    """torch's dropout knows the global generator only; inside, its seed is drawn, and outside it was never touched."""
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices):
        torch.manual_seed(int(torch.randint(2**62, (), generator=secret)))
        yield


def _copied(networks: Networks) -> Networks:
    return replace(networks, enhancer=copy.deepcopy(networks.enhancer), recogniser=copy.deepcopy(networks.recogniser))


def _cosine(began: Arrays, ended: Arrays, true: Arrays) -> float:
    return cosine(difference(ended, began), difference(true, began))
