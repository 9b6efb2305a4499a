"""The list of what may leave, held against what leaves: a whole simulated run of every kind, each message looked at.

The oracle is the program itself: every answer that crosses the border in a run is taken apart here, by other code than
the policy's. The list must hold all of it (complete), and nothing that no run of the kind ever sends (no wider).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import client.app
from shared.config import (
    AugmentConfig,
    CampaignConfig,
    DegradeConfig,
    DrawConfig,
    EnhancerConfig,
    GenerateConfig,
    LabelsConfig,
    LearnConfig,
    MachineConfig,
    ObjectiveConfig,
    PhaseConfig,
    PrivacyConfig,
    SecAggConfig,
    SelfRegConfig,
    StrategyConfig,
    build,
    to_dict,
)
from shared.leaving import Figure, Leaves, leaving
from shared.types import Plan
from shared.wire.messages import Record
from simulation.bench.stores import write_random_store
from simulation.run import run_federation

LENGTH = PhaseConfig(rounds=1, local_steps=2, batch_size=2)
Sent = list[tuple[Plan, dict[str, Any], Mapping[str, bytes]]]


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> Sent:
    """Every answer as it goes out, after the policy; what the policy rounds or refuses shows here."""
    kept: Sent = []
    through = client.app.permitted

    def looked_at(record: Record, plan: Plan, setup: Any) -> Record:
        out = through(record, plan, setup)
        kept.append((plan, json.loads(out.header), out.arrays))
        return out

    monkeypatch.setattr(client.app, "permitted", looked_at)
    return kept


def whole(campaign: CampaignConfig) -> CampaignConfig:
    return build(CampaignConfig, to_dict(campaign))


def alone(campaign: CampaignConfig, **more: Any) -> CampaignConfig:
    """A recogniser without an enhancer."""
    nothing = {"degrade": DegradeConfig(kind="none"), "enhance": EnhancerConfig(kind="none")}
    return replace(campaign, **nothing, objective=ObjectiveConfig(kind="plain"), **more)


def multimix(campaign: CampaignConfig) -> CampaignConfig:
    learn = LearnConfig(kind="multimix", mask_ssl="federated", pseudo_labels=True, threshold=0.0)
    half = dict.fromkeys(("coast", "north", "valley"), LabelsConfig(masks=4, diagnoses=0.5))
    return replace(campaign, learn=learn, data=replace(campaign.data, labels=half))


KINDS = {
    "gradprom": lambda c: c,
    "plain": lambda c: replace(c, objective=ObjectiveConfig(kind="plain")),
    "promoted": lambda c: replace(c, strategy=StrategyConfig(kind="fedavg", promotion="layer")),
    "critic": lambda c: replace(c, objective=ObjectiveConfig(kind="todnet-gated", warmup=0.5)),
    "multimix": multimix,
    "regularised": lambda c: replace(c, selfreg=SelfRegConfig(consistency_weight=0.015, distillation_weight=0.015)),
    "alone": alone,
    "diagnoses": lambda c: alone(c, learn=LearnConfig(kind="enc", segment=False)),
    "masked": lambda c: replace(c, secagg=SecAggConfig(kind="masked"), rounds=replace(c.rounds, quorum=3)),
    "patient": lambda c: replace(
        c, privacy=PrivacyConfig(kind="patient", epsilon=1000, delta=1e-2, patients=2.0, slices=1)
    ),
    "site": lambda c: replace(
        c,
        privacy=PrivacyConfig(kind="site", epsilon=1000, delta=1e-2),
        strategy=StrategyConfig(kind="fedavg", weight_by="equal"),
        secagg=SecAggConfig(kind="masked"),
        rounds=replace(c.rounds, quorum=3),
    ),
}


def run(campaign: CampaignConfig, tmp_path: Path, patients: int = 12) -> None:
    stores = {
        name: write_random_store(tmp_path / name, campaign.data, patients=patients, slices=2, seed=seed)
        for seed, name in enumerate(("coast", "north", "valley"))
    }
    run_federation(campaign, stores, tmp_path / "run", "inprocess", MachineConfig(device="cpu", threads=1))


@pytest.mark.parametrize("kind", KINDS)
def test_all_that_leaves_is_on_the_list_and_all_of_the_list_leaves(
    campaign: CampaignConfig, sent: Sent, tmp_path: Path, kind: str
) -> None:
    campaign = whole(KINDS[kind](campaign))
    run(campaign, tmp_path)
    check(campaign, sent)


@pytest.mark.slow
def test_what_leaves_in_a_generators_phases_is_on_the_list_of_each(
    campaign: CampaignConfig, sent: Sent, tmp_path: Path
) -> None:
    drawn = DrawConfig(variants=1, steps=1, memorised_share=1.0)
    generate = GenerateConfig(kind="emit-diff", autoencoder=LENGTH, denoiser=LENGTH, controlnet=LENGTH, draw=drawn)
    generating = whole(alone(campaign, generate=generate, augment=AugmentConfig(kind="emit-diff", mix="images")))
    run(generating, tmp_path)
    check(generating, sent)


# ------------------------------------------------------------------------------------------- the oracle


def check(campaign: CampaignConfig, sent: Sent) -> None:
    lists = leaving(campaign)
    left: dict[str, set[str]] = {}
    assert {header["kind"] for _, header, _ in sent} >= {"card", "masked" if campaign.secagg.masked else "update"}
    for plan, header, arrays in sent:
        if header["kind"] == "card":
            assert header["counts"].keys() == set(next(iter(lists.values())).counts)
        elif header["kind"] in ("update", "masked"):
            phase = phase_of(campaign, plan)
            closing = plan.action == "evaluate"
            seen(phase, header, lists[phase], arrays, left, closing=closing)
        else:
            assert header.keys() == {"format", "kind", "site", "round", header["kind"]}
            assert not arrays
    for phase, leaves in lists.items():
        listed = {*leaves.training, *leaves.metrics, *leaves.closing}
        assert listed - left[phase] <= rare(campaign), phase


def phase_of(campaign: CampaignConfig, plan: Plan) -> str:
    from shared.config import campaign_digest

    digests = {campaign_digest(campaign.in_phase(phase)): str(phase) for phase in campaign.phases}
    return digests.get(plan.config_digest, "")


def seen(
    phase: str,
    header: dict[str, Any],
    leaves: Leaves,
    arrays: Mapping[str, bytes],
    left: dict[str, set[str]],
    *,
    closing: bool,
) -> None:
    metrics = {**leaves.metrics, **leaves.closing} if closing else leaves.metrics
    shapes = header.get("stands_for", header["shapes"])
    expected = {} if closing else {name: list(shape) for name, shape in leaves.arrays.items()}
    expected |= {} if closing else {f"added.{name}": list(leaves.arrays[name]) for name in leaves.added}
    assert shapes == expected
    assert arrays.keys() == ({"masked"} if header["kind"] == "masked" else expected.keys())
    for name, value in header["training"].items():
        if name == "privacy.cosine":  # of simulations alone
            continue
        assert within(leaves.training[name], value), name
        assert float(f"{value:.6g}") == value
    for name, moments in header["evaluation"].items():
        figure, count = metrics[name], moments["count"]
        assert count > 0
        assert within(figure, moments["total"] / count), name
        assert all(within(figure, point) for point in moments["quantiles"]), name
        assert figure.quantiles or not moments["quantiles"], name
    left.setdefault(phase, set()).update(header["training"], header["evaluation"])


def within(figure: Figure, value: float) -> bool:
    margin = 1e-5 * max(1.0, abs(figure.low), abs(figure.high))
    return figure.low - margin <= value <= figure.high + margin


def rare(campaign: CampaignConfig) -> set[str]:
    """What leaves only where the data has it: bins that some patient falls into, lesions that are there at all."""
    bins = {f"accept.calibration.{name}{number}" for name in ("count", "confidence", "correct") for number in range(10)}
    return bins | {f"accept.lesions.{name}" for name in ("before", "after", "erased")}
