"""One campaign's data in, the models that a federation is held against out: local per site, pooled, and a judge.

Budget, in images drawn: a local model as many as its site draws in the federation; pooled as many as all sites
together, in as many steps more, over the same cosine. Both begin with the federation's first weights and keep their
optimiser from round to round, which a federated site cannot: the comparison is not made easy for the federation.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial

from client.dataset import SiteData, Slices
from client.train.local import TrainingState, train_round
from shared.config import CampaignConfig, MachineConfig, StrategyConfig
from shared.networks import Networks, build_networks
from shared.seeding import derived_seed
from simulation.progress import ModelStep

OnStep = Callable[[ModelStep], None]


@dataclass(frozen=True, slots=True, eq=False)
class Model:
    """Trained networks and what they cost; `site` is whose data they saw ("all": everybody's)."""

    setting: str
    site: str
    networks: Networks
    samples_seen: float
    seconds: float


def train_local(campaign: CampaignConfig, data: SiteData, machine: MachineConfig, on_step: OnStep) -> Model:
    """One site on its own: the batches that it draws in the federation, without the others' weights."""
    steps = campaign.training.local_steps
    trained = _trained(_alone(campaign), data.train, machine, name=data.site, steps=steps, on_step=on_step)
    return Model("local", data.site, *trained)


def train_pooled(
    campaign: CampaignConfig, data: SiteData, sites: int, machine: MachineConfig, on_step: OnStep
) -> Model:
    """All sites' data in one place, `sites` times the steps of one site."""
    steps = campaign.training.local_steps * sites
    return Model(
        "pooled", "all", *_trained(_alone(campaign), data.train, machine, name="pooled", steps=steps, on_step=on_step)
    )


def train_judge(campaign: CampaignConfig, data: SiteData, machine: MachineConfig, on_step: OnStep) -> Model:
    """A recogniser that never saw an enhanced image: other first weights, all sites' clean images, warm-up only."""
    apart = replace(
        _alone(campaign),
        seed=derived_seed(campaign.seed, "judge"),
        objective=replace(campaign.objective, kind="plain", warmup=ALMOST_ALL),
    )
    steps = campaign.training.local_steps
    return Model("judge", "all", *_trained(apart, data.train, machine, name="judge", steps=steps, on_step=on_step))


ALMOST_ALL = 1 - 1e-9
"""Of the steps are warm-up, which is training on clean images."""


def _alone(campaign: CampaignConfig) -> CampaignConfig:
    """Without a federation there is nothing to pull back to: no FedProx term."""
    return replace(campaign, strategy=StrategyConfig(kind="fedavg"))


def _trained(
    campaign: CampaignConfig, slices: Slices, machine: MachineConfig, *, name: str, steps: int, on_step: OnStep
) -> tuple[Networks, float, float]:
    networks = build_networks(campaign)
    rounds = campaign.rounds.rounds
    state: TrainingState | None = None
    records: list[Mapping[str, float]] = []
    for number in range(1, rounds + 1):
        record, state = train_round(
            networks,
            slices,
            campaign,
            machine,
            site=name,
            round=number,
            steps=steps,
            state=state,
            on_step=partial(_step_done, on_step, name, (number - 1) * steps, rounds * steps),
        )
        records.append(record)
    return networks, sum(record["samples"] for record in records), sum(record["seconds"] for record in records)


def _step_done(on_step: OnStep, name: str, before: int, total: int, step: int, steps: int) -> None:
    on_step(ModelStep(name if name in ("pooled", "judge") else f"local: {name}", before + step, total))
