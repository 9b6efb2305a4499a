"""A round of training as the campaign's privacy lets it be: the budget is charged first, then the site trains.

privacy=none      client/train/local.py; nothing is charged
privacy=patient   client/train/private.py: noise in every step
privacy=site      client/train/local.py on what privacy.trained names; the update is clipped and noised when it leaves
                  (client/protect.py), and of the record only what no image decides goes with it. A site that cannot
                  train, or whose numbers overflow, sends noise alone: that it fails would tell of its images
"""

from __future__ import annotations

import logging
from collections.abc import Mapping

from client import privacy
from client.dataset import Slices
from client.site import SiteSetup
from client.train.local import OnStep, TrainingState, train_round
from client.train.private import covered, train_private
from shared.config import CampaignConfig
from shared.errors import DataError
from shared.masking import most_samples
from shared.networks import Networks
from shared.privacy.parts import only_trained
from shared.weights import load_arrays, to_arrays

log = logging.getLogger("wardround.site")


def train_charged(
    networks: Networks,
    slices: Slices,
    campaign: CampaignConfig,
    setup: SiteSetup,
    *,
    round: int,
    on_step: OnStep | None = None,
) -> tuple[Mapping[str, float], TrainingState | None, float]:
    """Train `networks` in place for 1-based `round`; the record, the state where there is one, and the noise multiplier
    that was charged for (0 without privacy). Raises RefusedError where the budget does not allow the round."""
    site, steps = setup.name, campaign.training.local_steps
    if not campaign.privacy.on:
        training, state = train_round(
            networks, slices, campaign, setup.machine, site=site, round=round, steps=steps, on_step=on_step
        )
        return training, state, 0.0
    multiplier = privacy.charge(setup, campaign, round, len(set(slices.patient_N.tolist())))
    if campaign.privacy.kind == "patient":
        training = train_private(
            networks,
            slices,
            campaign,
            setup.machine,
            site=site,
            round=round,
            steps=steps,
            multiplier=multiplier,
            on_step=on_step,
            compare=privacy.compares(setup),
        )
        return training, None, multiplier
    began = to_arrays(networks)
    with only_trained(networks, campaign, setup.machine) as machine:
        try:
            train_round(networks, slices, campaign, machine, site=site, round=round, steps=steps, on_step=on_step)
        except DataError as error:
            log.warning("round %d sends noise alone: %s", round, error)
            load_arrays(networks, began)
    samples = most_samples(campaign)
    training = covered(campaign, began, round=round, steps=steps, samples=samples, multiplier=multiplier)
    return training, None, multiplier
