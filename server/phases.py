"""A campaign with a generator in, its phases one after the other out: each is a run of rounds of its own.

    for each phase:  what it trains <- initial weights or what the phase before left
                     what it does not train -> every site, once, with the handshake
                     rounds as ever (server/rounds.py), in phases/<name> of the run's folder; `train` in the folder

Only what a phase trains travels in its rounds. A run goes on in the phase, and at the round, where it was lost: phases
before it end again at once, from their checkpoints. After the autoencoder's phase the scale of its latents is fixed:
1 / root of the mean square of latents over some training images of every site, reported as a sum and a count. A site
that is far from the others there is not believed.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from server.asking import Run
from server.plan import Frozen
from server.records import PHASES, RoundRecord
from server.rounds import CampaignResult, run_campaign
from shared.config import CampaignConfig, Phase
from shared.errors import DataError
from shared.events import PhaseStarted
from shared.types import Arrays
from shared.weights import arrays_digest

SCALE = "latents.scale"
SQUARE = "latents.square"
"""Metric of the autoencoder's phase: the mean square of an image's latents."""
LEAST = 1e-12
"""Mean squares of latents lie between this and its inverse."""
BELIEVED = 10.0
"""Times the median of sites, and its inverse: scanners differ, but all sites' images go through one autoencoder."""

Initial = Callable[[CampaignConfig, Arrays], tuple[Arrays, Arrays]]
"""(campaign in a phase, what the phases before have left) -> (weights to start with, what is frozen)."""


def run_phases(run: Run, initial: Initial) -> CampaignResult:
    """Every phase of `run.campaign` in order; the result of the last, with the generator's arrays among its weights.

    Raises what run_campaign raises, and DataError where the sites' latents have no spread to take a scale from.
    """
    phases = run.campaign.phases
    left: Arrays = {}
    records: tuple[RoundRecord, ...] = ()
    for number, phase in enumerate(phases, start=1):
        run.on_event(PhaseStarted(phase, number, len(phases)))
        result = _run_phase(run, phase, left, initial)
        left = {**left, **result.state.weights}
        if phase == "autoencoder":
            left[SCALE] = latent_scale(result.records[-1])
        records = (*records, *result.records)
    return CampaignResult(replace(result.state, weights=left), records)


def _run_phase(run: Run, phase: Phase, left: Arrays, initial: Initial) -> CampaignResult:
    campaign = run.campaign.in_phase(phase)
    folder = run.run_dir if phase == "train" else run.run_dir / PHASES / phase
    folder.mkdir(parents=True, exist_ok=True)
    weights, frozen = initial(campaign, left)
    here = replace(run, campaign=campaign, run_dir=folder, phase=phase, frozen=Frozen(frozen, arrays_digest(frozen)))
    return run_campaign(here, lambda: weights)


def latent_scale(closing: RoundRecord) -> npt.NDArray[np.float32]:
    """(1,) float32, from the closing evaluation of the autoencoder's phase.

    A site that says what cannot be, or is further than BELIEVED from the (logarithmic) median of sites, is left out: no
    site alone decides the scale for all, whatever it counts. Of two that far from one another neither is believed.
    """
    found = [site[SQUARE] for site in closing["evaluation"].values() if SQUARE in site]
    told = [(float(site["count"]), float(site["total"])) for site in found]
    told = [(count, total) for count, total in told if count > 0 and LEAST < total / count < 1 / LEAST]
    middle = float(np.median([math.log(total / count) for count, total in told])) if told else 0.0
    told = [(count, total) for count, total in told if abs(math.log(total / count) - middle) <= math.log(BELIEVED)]
    if not told:
        raise DataError(
            "the autoencoder's latents have no usable spread at the sites; give generate.autoencoder more rounds or a "
            "lower learning_rate, in a new campaign"
        )
    count, total = map(sum, zip(*told, strict=True))
    return np.array([(total / count) ** -0.5], np.float32)
