"""`wardround-coordinator export`: a run folder's last round as a file that other programs run."""

from __future__ import annotations

import os
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from server import cli
from server.about import write_about
from server.export import comparison_shown
from shared.checkpoint import FederationState, save_round
from shared.config import CampaignConfig, campaign_digest, save_campaign
from shared.export import Comparison
from shared.networks import build_networks
from shared.weights import architecture_digest, to_arrays


def finish(run_dir: Path, campaign: CampaignConfig, rounds: int) -> Path:
    """A run folder as a coordinator leaves it; the weights of round r are those of seed r."""
    run_dir.mkdir(parents=True)
    save_campaign(campaign, run_dir / "campaign.json")
    write_about(run_dir, campaign)
    for number in range(1, rounds + 1):
        weights = to_arrays(build_networks(replace(campaign, seed=number)))
        digests = campaign_digest(campaign), architecture_digest(weights)
        save_round(run_dir / "checkpoints", FederationState(campaign.name, *digests, number, weights), {})
    return run_dir


def fails(capsys: pytest.CaptureFixture[str], run_dir: Path, file: Path, code: int, reason: str, *options: str) -> None:
    assert cli.main(["export", str(run_dir), str(file), *options]) == code
    error = capsys.readouterr().err
    assert reason in error
    assert error.startswith("wardround-coordinator: ")
    assert error.count("\n") == 1
    assert not file.is_file()


@pytest.mark.parametrize("layout", ["", "federation", "seed-3/federation"])
def test_the_last_rounds_recogniser_is_written_from_every_kind_of_run_folder(
    layout: str, campaign: CampaignConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    finish(tmp_path / "run" / layout, campaign, 2)
    file = tmp_path / "recogniser.onnx"
    assert cli.main(["export", str(tmp_path / "run"), str(file)]) == 0
    shown = capsys.readouterr().out
    assert "the recogniser of tiny after round 2\n" in shown
    number = r"\d\.\de-\d\d"
    assert re.search(
        f"Compared .* 6 random images.*: mask_logits {number}, diagnosis_logits {number}, saliency ", shown
    )
    image = torch.rand(2, 1, 32, 32, generator=torch.Generator().manual_seed(1))
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    masks, diagnoses, _ = session.run(None, {"image_BCHW": image.numpy()})
    with torch.no_grad():
        expected = build_networks(replace(campaign, seed=2)).recogniser.eval()(image)
    np.testing.assert_allclose(masks, expected.mask_logits_BKHW, rtol=0, atol=1e-4)
    np.testing.assert_allclose(diagnoses, expected.diagnosis_logits_BN, rtol=0, atol=1e-4)
    told = {entry.key: entry.value for entry in onnx.load(file).metadata_props}
    assert told["judges"] == "images that enhance=cnn3 put out, held within 0..1"


def test_the_enhancer_is_written_on_request_and_feeds_the_recogniser(
    campaign: CampaignConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    campaign = replace(campaign, enhance=replace(campaign.enhance, kind="todnet", depth=2, output="tanh"))
    run_dir, file = finish(tmp_path / "run", campaign, 1), tmp_path / "enhancer.onnx"
    assert cli.main(["export", str(run_dir), str(file), "--network", "enhancer"]) == 0
    shown = capsys.readouterr().out
    assert "the enhancer of tiny after round 1\nOutputs: enhanced;" in shown
    assert re.search(r"largest differences .*: enhanced \d\.\de-\d\d\.", shown)
    image = torch.rand(2, 1, 32, 32, generator=torch.Generator().manual_seed(1))
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    (enhanced,) = session.run(None, {"image_BCHW": image.numpy()})
    np.testing.assert_allclose(enhanced, image.tanh(), rtol=0, atol=1e-4)  # its residual starts at zero


def test_an_enhancer_that_cannot_be_a_file_is_refused_with_the_reason(
    campaign: CampaignConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, network = tmp_path / "enhancer.onnx", ("--network", "enhancer")
    without = replace(
        campaign, enhance=replace(campaign.enhance, kind="none"), objective=replace(campaign.objective, kind="plain")
    )
    consistent = replace(
        campaign,
        enhance=replace(campaign.enhance, data_consistency=True),
        degrade=replace(campaign.degrade, kind="kspace"),
    )
    fails(capsys, finish(tmp_path / "without", without, 1), file, 2, "has no enhancer (enhance=none)", *network)
    fails(capsys, finish(tmp_path / "kspace", consistent, 1), file, 2, "takes the measured k-space", *network)


def test_a_study_keeps_figures_and_no_weights(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "study" / "cells").mkdir(parents=True)
    fails(capsys, tmp_path / "study", tmp_path / "x.onnx", 5, "a study's, which keeps figures, not weights")


def test_what_was_compared_is_told() -> None:
    assert "onnxruntime is missing here: nothing was compared" in comparison_shown(None)
    apart = Comparison(6, {"mask_logits": 2e-6, "saliency": 0.023}, {"mask_logits": 0.0, "saliency": 0.0052})
    assert comparison_shown(apart).endswith(
        ": mask_logits 2.0e-06, saliency 2.3e-02 of its largest value (in 0.52 % of its values rounding moved a ReLU "
        "across its corner)."
    )


def test_a_folder_that_holds_no_run_or_several_is_refused_with_the_way_out(
    campaign: CampaignConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "recogniser.onnx"
    fails(capsys, tmp_path / "none", file, 5, "give the folder of a run")
    fails(capsys, finish(tmp_path / "fresh", campaign, 0), file, 5, "no checkpoint yet; export it after its first")
    for seed in (0, 1):
        finish(tmp_path / "two" / f"seed-{seed}" / "federation", campaign, 1)
    fails(capsys, tmp_path / "two", file, 2, "holds seed-0, seed-1; give the folder of one of them")


def test_a_damaged_checkpoint_and_one_of_another_campaign_are_refused(
    campaign: CampaignConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, run_dir = tmp_path / "recogniser.onnx", finish(tmp_path / "run", campaign, 2)
    other = finish(tmp_path / "other", replace(campaign, seed=9), 1)
    weights = run_dir / "checkpoints" / "round_00002" / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    fails(capsys, run_dir, file, 5, "checkpoint round_00002 is damaged: weights.safetensors does not have the SHA-256")
    shutil.rmtree(run_dir / "checkpoints")
    shutil.copytree(other / "checkpoints", run_dir / "checkpoints")
    fails(capsys, run_dir, file, 3, "belongs to campaign digest")
    (run_dir / "campaign.json").write_text("{")
    fails(capsys, run_dir, file, 2, "not readable JSON")


def test_weights_that_are_not_the_campaigns_are_refused(
    campaign: CampaignConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_dir = finish(tmp_path / "run", campaign, 1)
    wider = replace(campaign, recognise=replace(campaign.recognise, channels=6))
    save_campaign(wider, run_dir / "campaign.json")
    fails(capsys, run_dir, tmp_path / "recogniser.onnx", 5, "recogniser.")


def test_a_file_that_cannot_be_written_is_refused(
    campaign: CampaignConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_dir = finish(tmp_path / "run", campaign, 1)
    fails(capsys, run_dir, tmp_path / "none" / "x.onnx", 2, "x.onnx cannot be written there")
    fails(capsys, run_dir, tmp_path, 2, "cannot be written there; give a file in a folder that exists")
    os.mkfifo(tmp_path / "pipe")  # what is no file would be replaced by one, as /dev/null for root
    fails(capsys, run_dir, tmp_path / "pipe", 2, "pipe cannot be written there")
    assert (tmp_path / "pipe").is_fifo()


def test_a_run_of_before_the_campaign_had_its_newest_keys_is_exported(
    campaign: CampaignConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run_dir = finish(tmp_path / "run", campaign, 1)
    monkeypatch.setattr("server.export.campaign_digest", lambda _: "0" * 64)
    assert cli.main(["export", str(run_dir), str(tmp_path / "x.onnx")]) == 0
    capsys.readouterr()
    (run_dir / "about.json").unlink()
    fails(capsys, run_dir, tmp_path / "y.onnx", 3, "belongs to campaign digest")
