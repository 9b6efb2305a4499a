"""`wardround-coordinator export --network generator`: what a run's phases left, bit for bit, to start from."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from server import cli
from server.about import write_about
from server.app import initial_of_phase
from server.phases import run_phases
from server.rounds import Run
from shared.config import CampaignConfig, SimulationConfig, load, save_campaign
from shared.errors import PeerError
from shared.generate.networks import build_generator, parts_arrays
from shared.types import Arrays, Moments, Plan, SiteCard, Update
from shared.weights import parts_of
from tests.server.test_export import fails
from tests.server.test_rounds import ScriptedLink, Sites

LENGTHS = [f"generate.{phase}.{length}" for phase in ("autoencoder", "denoiser", "controlnet")
           for length in ("rounds=2", "local_steps=2", "batch_size=2")]  # fmt: skip
ALONE = ["experiment=phantom", "name=tiny", "rounds=2", "generate=emit-diff", *LENGTHS]
WHOLE = [*ALONE, "augment=emit-diff", "degrade=none", "enhance=none", "objective=plain"]
GENERATOR = ("--network", "generator")


class Drifting(Sites):
    """Every site moves all weights by a hundredth of its number, a half more in each round."""

    def card(self, site: str, plan: Plan) -> SiteCard:
        return SiteCard(site, plan.config_digest, plan.architecture_digest, "0.1.0", {"patients": 3})

    def update(self, site: str, plan: Plan) -> Update:
        number = self.names.index(site) + 1
        evaluation = {"latents.square": Moments(2, 3.0 + number / 7, 40.0)}
        if plan.action == "evaluate":
            return Update(site, plan.round, 0, {}, {}, evaluation)
        step = np.float32(number * plan.round / 150)
        moved = {name: np.full_like(values, step) for name, values in plan.weights.items()}
        images = dict.fromkeys(parts_of(plan.weights), 2)
        return Update(site, plan.round, 2, moved, {"loss": 0.5, "samples": 2.0}, evaluation, images=images)


@dataclass(frozen=True)
class Finished:
    campaign: CampaignConfig
    run_dir: Path
    weights: Arrays


def composed(overrides: list[str]) -> CampaignConfig:
    return load("simulation", overrides, SimulationConfig).campaign


def finish(campaign: CampaignConfig, run_dir: Path, link: ScriptedLink | None = None) -> Finished:
    """A run folder as a coordinator leaves it, and what the run itself returned."""
    run_dir.mkdir(parents=True, exist_ok=True)
    save_campaign(campaign, run_dir / "campaign.json")
    write_about(run_dir, campaign)
    link = link or ScriptedLink(Drifting(["a", "b", "c"]))
    result = run_phases(Run(campaign, link, run_dir, now=link.now), initial_of_phase)
    return Finished(campaign, run_dir, result.state.weights)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    return finish(composed(WHOLE), tmp_path_factory.mktemp("finished") / "run")


def test_the_file_holds_what_the_run_returned_bit_for_bit(
    finished: Finished, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "generator.safetensors"
    assert cli.main(["export", str(finished.run_dir), str(file), *GENERATOR]) == 0
    shown = capsys.readouterr().out
    assert "the generator of tiny: autoencoder, latents, denoiser, prompts, controlnet\n" in shown
    assert "generate.start=" in shown
    found = load_file(file)
    expected = {name: values for name, values in finished.weights.items() if name.partition(".")[0] != "recogniser"}
    assert found.keys() == expected.keys()
    assert float(found["latents.scale"][0]) != 1.0
    for name, values in expected.items():
        np.testing.assert_array_equal(found[name], values, err_msg=name)


def test_a_campaign_starts_from_the_file(finished: Finished, tmp_path: Path) -> None:
    file = tmp_path / "generator.safetensors"
    assert cli.main(["export", str(finished.run_dir), str(file), *GENERATOR]) == 0
    started = replace(finished.campaign, seed=9, generate=replace(finished.campaign.generate, start=str(file)))
    generator = build_generator(started)
    for name, values in parts_arrays(generator, generator.all).items():
        np.testing.assert_array_equal(values, finished.weights[name], err_msg=name)


def test_the_recogniser_that_was_trained_with_its_images_is_exported_too(
    finished: Finished, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["export", str(finished.run_dir), str(tmp_path / "recogniser.onnx")]) == 0
    assert "the recogniser of tiny after round 2\n" in capsys.readouterr().out


def test_a_run_of_a_generator_alone_has_no_other_network_and_one_without_has_no_generator(
    campaign: CampaignConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, one, network, reason in (
        ("alone", composed(ALONE), "recogniser", "a generator of images and no recogniser"),
        ("alone", composed(ALONE), "enhancer", "a generator of images and no enhancer"),
        ("without", campaign, "generator", "trained no generator"),
    ):
        (tmp_path / name).mkdir(exist_ok=True)
        save_campaign(one, tmp_path / name / "campaign.json")
        fails(capsys, tmp_path / name, tmp_path / "file", 2, reason, "--network", network)


def test_phases_that_are_not_over_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    strict = composed([*ALONE, "round.quorum=3", "round.retries=0"])
    link = ScriptedLink(Drifting(["a", "b", "c"]))
    for action, number in (("evaluate", 3), ("train", 2)):
        # First the closing evaluation of the autoencoder's phase is lost, which its scale comes from, then a round.
        link.replies = {("a", action, number): lambda _: None}  # type: ignore[dict-item]
        with pytest.raises(PeerError):
            finish(strict, tmp_path / action, link)
        reason = "phase autoencoder is not over"
        fails(capsys, tmp_path / action, tmp_path / "file", 5, reason, *GENERATOR)


def test_a_file_of_a_generator_that_cannot_be_written_is_refused(
    finished: Finished, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fails(capsys, finished.run_dir, tmp_path / "none" / "x", 2, "x cannot be written there", *GENERATOR)
    fails(capsys, finished.run_dir, tmp_path, 2, "cannot be written there", *GENERATOR)
    os.mkfifo(tmp_path / "pipe")
    fails(capsys, finished.run_dir, tmp_path / "pipe", 2, "pipe cannot be written there", *GENERATOR)
    assert (tmp_path / "pipe").is_fifo()
