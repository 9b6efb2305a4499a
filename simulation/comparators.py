"""One campaign's data in, the models that a federation is held against out: local per site, pooled, and a judge.

Budget, in images drawn: a local model as many as its site draws in the federation; pooled as many as all sites
together, over the same cosine: in as many steps more, or (compare.pooled_batch=all) in batches as much larger. Both
begin with the federation's first weights and keep their optimiser from round to round, which a federated site cannot:
the comparison is not made easy for the federation.

On a CPU the models train side by side, one thread each: at 64 x 64 two models on two cores take half the time of one
after the other, where two threads on one model gain little. Every draw comes from a generator of its own, so the
weights are the same either way; networks with dropout, which torch draws globally, and GPUs take turns.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeVar

from client.dataset import SiteData, Slices
from client.train.local import TrainingState, train_round
from shared.config import CampaignConfig, CompareConfig, MachineConfig, StrategyConfig
from shared.networks import Networks, build_networks, resolved_device
from shared.seeding import derived_seed
from simulation.progress import ModelStep

OnStep = Callable[[ModelStep], None]
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True, eq=False)
class Model:
    """Trained networks and what they cost; `site` is whose data they saw ("all": everybody's)."""

    setting: str
    site: str
    networks: Networks
    samples_seen: float
    seconds: float


def train_comparators(
    campaign: CampaignConfig,
    datas: Sequence[SiteData],
    together: SiteData,
    config: CompareConfig,
    machine: MachineConfig,
    on_step: OnStep,
) -> list[Model]:
    """The models that `config` asks for: local ones in the order of `datas`, pooled, judge."""
    lanes, single = lanes_of(campaign, machine)
    work: list[Callable[[OnStep], Model]] = []
    if config.pooled:  # first, since it takes longest
        work.append(partial(train_pooled, campaign, together, len(datas), config.pooled_batch, single))
    if config.local:
        work += [partial(train_local, campaign, data, single) for data in datas]
    if config.judge:
        work.append(partial(train_judge, campaign, together, single))
    return sorted(side_by_side(work, lanes, on_step), key=lambda model: _ORDER.index(model.setting))


_ORDER = ("local", "pooled", "judge")


def lanes_of(campaign: CampaignConfig, machine: MachineConfig) -> tuple[int, MachineConfig]:
    """How many models work at a time, and the machine as each of them sees it."""
    if resolved_device(machine).type != "cpu":
        return 1, machine
    lanes = 1 if campaign.recognise.dropout > 0 or machine.compile else machine.threads
    return lanes, replace(machine, threads=1)


class _Stopped(Exception):
    """Another lane failed, or the person pressed Ctrl-C."""


def side_by_side(work: Sequence[Callable[[OnStep], Result]], lanes: int, on_step: OnStep) -> list[Result]:
    """Run all of `work` in `lanes` threads; the first error ends every lane at its next step and is raised."""
    stop = threading.Event()

    def watched(step: ModelStep) -> None:
        if stop.is_set():
            raise _Stopped
        on_step(step)

    with ThreadPoolExecutor(lanes) as pool:
        futures = [pool.submit(each, watched) for each in work]
        try:
            wait(futures, return_when=FIRST_EXCEPTION)
        finally:  # all done, one failed, or Ctrl-C
            stop.set()
            pool.shutdown(wait=True, cancel_futures=True)
    failures = [error for future in futures if not future.cancelled() and (error := future.exception()) is not None]
    for error in failures:
        if not isinstance(error, _Stopped):
            raise error
    return [future.result() for future in futures]


def train_local(campaign: CampaignConfig, data: SiteData, machine: MachineConfig, on_step: OnStep) -> Model:
    """One site on its own: the batches that it draws in the federation, without the others' weights."""
    steps = campaign.training.local_steps
    return _model("local", data.site, alone(campaign), data.train, machine, data.site, steps, on_step)


def train_pooled(
    campaign: CampaignConfig, data: SiteData, sites: int, batch: str, machine: MachineConfig, on_step: OnStep
) -> Model:
    """All sites' data in one place: `sites` times the steps of one site, or (batch "all") `sites` times its batch."""
    training = campaign.training
    steps = training.local_steps * (sites if batch == "site" else 1)
    size = training.batch_size * (1 if batch == "site" else sites)
    apart = replace(alone(campaign), training=replace(training, batch_size=size))
    return _model("pooled", "all", apart, data.train, machine, "pooled", steps, on_step)


def train_judge(campaign: CampaignConfig, data: SiteData, machine: MachineConfig, on_step: OnStep) -> Model:
    """A recogniser that never saw an enhanced image: other first weights, all sites' clean images, warm-up only."""
    apart = replace(
        alone(campaign),
        seed=derived_seed(campaign.seed, "judge"),
        objective=replace(campaign.objective, kind="plain", warmup=_ALMOST_ALL),
    )
    steps = campaign.training.local_steps
    return _model("judge", "all", apart, data.train, machine, "judge", steps, on_step)


_ALMOST_ALL = 1 - 1e-9
"""Of the steps are warm-up, which is training on clean images."""


def alone(campaign: CampaignConfig) -> CampaignConfig:
    """Without a federation there is nothing to pull back to: no FedProx term."""
    return replace(campaign, strategy=StrategyConfig(kind="fedavg"))


def _model(
    setting: str,
    site: str,
    campaign: CampaignConfig,
    slices: Slices,
    machine: MachineConfig,
    name: str,
    steps: int,
    on_step: OnStep,
) -> Model:
    networks, records = trained_alone(campaign, slices, machine, name=name, steps=steps, on_step=on_step)
    samples, seconds = (sum(record[key] for record in records) for key in ("samples", "seconds"))
    return Model(setting, site, networks, samples, seconds)


def trained_alone(
    campaign: CampaignConfig, slices: Slices, machine: MachineConfig, *, name: str, steps: int, on_step: OnStep
) -> tuple[Networks, list[Mapping[str, float]]]:
    """`steps` steps in each of the campaign's rounds, one optimiser from the first to the last; a record per round."""
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
    return networks, records


def _step_done(on_step: OnStep, name: str, before: int, total: int, step: int, steps: int) -> None:
    on_step(ModelStep(name if name in ("pooled", "judge") else f"local: {name}", before + step, total))
