"""A generator's phases over a scripted link: what travels when, what is frozen, and where a lost run goes on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from server import asking
from server.phases import latent_scale, run_phases
from server.rounds import CampaignResult, Run
from shared.config import AugmentConfig, CampaignConfig, GenerateConfig, PhaseConfig
from shared.errors import DataError, PeerError
from shared.events import Event, PhaseStarted
from shared.generate.average import averaged
from shared.types import Arrays, Moments, Plan, SiteCard, Update
from shared.weights import architecture_digest, arrays_digest
from shared.wire.messages import refusal_record
from tests.server.test_rounds import ScriptedLink, Sites

PARTS: dict[str, Arrays] = {
    "autoencoder": {"autoencoder.w": np.zeros(3, np.float32)},
    "denoiser": {"denoiser.w": np.zeros((2, 2), np.float32), "prompts.w": np.zeros(2, np.float32)},
    "controlnet": {"controlnet.w": np.zeros(5, np.float32)},
    "train": {"recogniser.v": np.ones(4, np.float32)},
}


def initial(campaign: CampaignConfig, left: Arrays) -> tuple[Arrays, Arrays]:
    return PARTS[campaign.generate.phase], dict(left)


class Generating(Sites):
    """Every site learns 1 everywhere; its latents have a mean square of 4."""

    def card(self, site: str, plan: Plan) -> SiteCard:
        return SiteCard(site, plan.config_digest, plan.architecture_digest, "0.1.0", {"patients": 3})

    def update(self, site: str, plan: Plan) -> Update:
        evaluation = {"latents.square": Moments(2, 8.0, 40.0)}
        if plan.action == "evaluate":
            return Update(site, plan.round, 0, {}, {}, evaluation)
        learned = {name: np.ones_like(values) for name, values in plan.weights.items()}
        images = {"encoder": 2} if "recogniser.v" in learned else {}
        return Update(site, plan.round, 2, learned, {"loss": 0.5}, evaluation, images=images)


@pytest.fixture
def generating(campaign: CampaignConfig) -> CampaignConfig:
    length = PhaseConfig(rounds=2, local_steps=2, batch_size=2)
    generate = GenerateConfig(kind="emit-diff", ema=0.0, autoencoder=length, denoiser=length, controlnet=length)
    return replace(campaign, generate=generate)


@pytest.fixture
def link() -> ScriptedLink:
    return ScriptedLink(Generating(["a", "b", "c"]))


def run(
    campaign: CampaignConfig, link: ScriptedLink, run_dir: Path, events: list[Event] | None = None
) -> CampaignResult:
    run_dir.mkdir(exist_ok=True)
    on_event = events.append if events is not None else asking.ignore
    return run_phases(Run(campaign, link, run_dir, on_event=on_event, now=link.now), initial)


def test_a_phase_sends_what_it_trains_and_its_handshake_what_it_does_not(
    generating: CampaignConfig, link: ScriptedLink, tmp_path: Path
) -> None:
    events: list[Event] = []
    result = run(generating, link, tmp_path / "run", events)
    seen = [plan for site, plan in link.sites.plans if site == "a"]
    sent = [(plan.action, {name.partition(".")[0] for name in plan.weights}) for plan in seen]
    before: set[str] = set()
    expected = []
    for own, left in (
        ({"autoencoder"}, {"latents"}),
        ({"denoiser", "prompts"}, set()),
        ({"controlnet"}, set()),
    ):
        expected += [("handshake", before), ("train", own), ("train", own), ("evaluate", own)]
        before = before | own | left
    assert sent == expected
    assert [event.phase for event in events if isinstance(event, PhaseStarted)] == [
        "autoencoder",
        "denoiser",
        "controlnet",
    ]
    assert [record["phase"] for record in result.records] == ["autoencoder"] * 3 + ["denoiser"] * 3 + ["controlnet"] * 3
    assert set(result.state.weights) == {
        *PARTS["autoencoder"],
        *PARTS["denoiser"],
        *PARTS["controlnet"],
        "latents.scale",
    }
    assert all(float(values.ravel()[0]) == 2.0 for name, values in result.state.weights.items() if name[0] != "l")


def test_every_plan_of_a_phase_names_what_is_frozen_by_one_digest(
    generating: CampaignConfig, link: ScriptedLink, tmp_path: Path
) -> None:
    run(generating, link, tmp_path / "run")
    handshakes = {plan.config_digest: plan for _, plan in link.sites.plans if plan.action == "handshake"}
    assert len(handshakes) == 3
    for _, plan in link.sites.plans:
        assert plan.frozen_digest == arrays_digest(handshakes[plan.config_digest].weights)


def test_latents_are_scaled_to_unit_spread_over_all_sites_images(
    generating: CampaignConfig, link: ScriptedLink, tmp_path: Path
) -> None:
    result = run(generating, link, tmp_path / "run")
    np.testing.assert_allclose(result.state.weights["latents.scale"], [0.5])


@pytest.mark.parametrize("total", [0.0, -1.0, 1e30])
def test_latents_without_usable_spread_end_the_run_with_the_way_out(total: float) -> None:
    closing = {"evaluation": {"a": {"latents.square": {"count": 2, "total": total, "total_sq": 1.0}}}}
    with pytest.raises(DataError, match=r"generate\.autoencoder"):
        latent_scale(closing)


def told(**totals: tuple[int, float]) -> dict[str, Any]:
    means = {site: {"count": count, "total": total, "total_sq": 0.0} for site, (count, total) in totals.items()}
    return {"evaluation": {site: {"latents.square": mean} for site, mean in means.items()}}


@pytest.mark.parametrize("lie", [(2**53, 2.0**53 * 1e9), (4, 1e-9), (1, -1e300), (0, 5.0), (1, 1e300)])
def test_a_site_that_lies_about_its_latents_does_not_decide_the_scale_of_all(lie: tuple[int, float]) -> None:
    honest = told(a=(2, 8.0), b=(6, 30.0))
    pooled = (38.0 / 8) ** -0.5
    np.testing.assert_allclose(latent_scale(honest), [pooled], rtol=1e-6)
    np.testing.assert_allclose(latent_scale(told(a=(2, 8.0), b=(6, 30.0), liar=lie)), [pooled], rtol=1e-6)
    silent = {"evaluation": {**honest["evaluation"], "quiet": {}}}
    np.testing.assert_allclose(latent_scale(silent), [pooled], rtol=1e-6)


def test_of_two_sites_that_contradict_one_another_neither_is_believed() -> None:
    with pytest.raises(DataError, match=r"generate\.autoencoder"):
        latent_scale(told(a=(2, 8.0), b=(2, 8e6)))


def test_a_lost_run_goes_on_in_the_phase_where_it_was_lost(
    generating: CampaignConfig, link: ScriptedLink, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run(generating, ScriptedLink(Generating(["a", "b", "c"])), tmp_path / "whole")
    link.replies[("a", "train", 2)] = lambda plan: None if "denoiser.w" in plan.weights else link.sites.reply("a", plan)
    strict = replace(generating, rounds=replace(generating.rounds, quorum=3, retries=0))
    with pytest.raises(PeerError):
        run(strict, link, tmp_path / "run")
    again = ScriptedLink(Generating(["a", "b", "c"]))
    resumed = run(strict, again, tmp_path / "run")
    trained = [(sorted(plan.weights)[0], plan.round) for site, plan in again.sites.plans if plan.action == "train"]
    assert ("autoencoder.w", 1) not in trained
    assert ("denoiser.w", 1) not in trained
    assert ("denoiser.w", 2) in trained
    for name, values in whole.state.weights.items():
        np.testing.assert_array_equal(values, resumed.state.weights[name])


def test_a_site_that_lost_what_is_frozen_gets_it_again_with_the_next_handshake(
    generating: CampaignConfig, link: ScriptedLink, tmp_path: Path
) -> None:
    def lost(plan: Plan) -> object:
        if "denoiser.w" in plan.weights:
            return refusal_record("DataError", "the generator's autoencoder is not at this site")
        return link.sites.reply("b", plan)

    link.replies[("b", "train", 1)] = lost  # type: ignore[assignment]
    result = run(replace(generating, rounds=replace(generating.rounds, quorum=2)), link, tmp_path / "run")
    asked = [plan for site, plan in link.sites.plans if site == "b" and plan.action == "handshake"]
    assert len([plan for plan in asked if "autoencoder.w" in plan.weights and "denoiser.w" not in plan.weights]) == 2
    by_phase = {(record["phase"], record["round"]): record for record in result.records}
    assert by_phase[("denoiser", 1)]["participants"] == ["a", "c"]
    assert by_phase[("denoiser", 2)]["participants"] == ["a", "b", "c"]


def test_a_phase_ends_with_the_moving_average_of_its_rounds(
    generating: CampaignConfig, link: ScriptedLink, tmp_path: Path
) -> None:
    averaging = replace(generating, generate=replace(generating.generate, ema=0.5))
    result = run(averaging, link, tmp_path / "run")
    expected = 1.0  # after round 1
    expected = (1 / 3) * expected + (2 / 3) * 2.0  # decay_2 = min(0.5, 1/3)
    np.testing.assert_allclose(result.state.weights["denoiser.w"], expected, rtol=1e-6)
    closing = [plan for _, plan in link.sites.plans if plan.action == "evaluate" and "denoiser.w" in plan.weights]
    np.testing.assert_allclose(closing[0].weights["denoiser.w"], expected, rtol=1e-6)


def test_an_average_over_many_rounds_forgets_by_the_decay() -> None:
    average: Arrays | None = None
    for number in range(1, 30):
        average = averaged(average, {"w": np.array([float(number)], np.float32)}, number, 0.5)
    # A decay of 1/2 leaves n - 1 of rounds 1 .. n that grow by one each.
    np.testing.assert_allclose(average["w"], [28.0], atol=1e-3)  # type: ignore[index]


def test_training_with_synthetic_images_is_the_last_phase_and_lies_in_the_runs_own_folder(
    generating: CampaignConfig, link: ScriptedLink, tmp_path: Path
) -> None:
    whole = replace(generating, augment=AugmentConfig(kind="emit-diff", mix="images"))
    result = run(whole, link, tmp_path / "run")
    assert (tmp_path / "run" / "rounds.jsonl").is_file()
    assert (tmp_path / "run" / "phases" / "denoiser" / "rounds.jsonl").is_file()
    handshakes = [plan for site, plan in link.sites.plans if site == "a" and plan.action == "handshake"]
    assert {name.partition(".")[0] for name in handshakes[-1].weights} == {
        *("autoencoder", "latents", "denoiser", "prompts", "controlnet"),
    }
    assert "recogniser.v" in result.state.weights
    assert architecture_digest(PARTS["train"]) == link.sites.plans[-1][1].architecture_digest
