from __future__ import annotations

import builtins
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from shared import export
from shared.config import CampaignConfig, EnhancerConfig, LearnConfig, RecogniserConfig, campaign_digest
from shared.errors import ConfigError, DataError
from shared.export import export_recogniser
from shared.networks import build_networks
from shared.recognise.saliency import saliency_of

ROOT = Path(__file__).parents[2]


@pytest.fixture
def made(campaign: CampaignConfig) -> Callable[..., CampaignConfig]:
    def make(kind: str, *, bridge: bool = False, **learn: bool) -> CampaignConfig:
        return replace(
            campaign,
            enhance=EnhancerConfig(kind="none"),
            degrade=replace(campaign.degrade, kind="none"),
            objective=replace(campaign.objective, kind="plain"),
            recognise=RecogniserConfig(kind=kind, channels=4, depth=3, dropout=0.25),  # type: ignore[arg-type]
            learn=LearnConfig(kind="umtls" if bridge else "umtl", saliency=bridge, **learn),
        )

    return make


def trained(campaign: CampaignConfig) -> nn.Module:
    """Weights that are not those of the start: norms and biases would be 1 and 0."""
    recogniser, rng = build_networks(campaign).recogniser, torch.Generator().manual_seed(5)
    with torch.no_grad():
        for weight in recogniser.parameters():
            weight.add_(0.1 * torch.randn(weight.shape, generator=rng))
    return recogniser.train()


def run(path: Path, image: torch.Tensor) -> dict[str, np.ndarray[Any, Any]]:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    assert [given.name for given in session.get_inputs()] == ["image_BCHW"]
    return dict(
        zip([out.name for out in session.get_outputs()], session.run(None, {"image_BCHW": image.numpy()}), strict=True)
    )


@pytest.mark.parametrize(
    ("kind", "bridge"),
    [("unet", False), ("unet", True), ("multimix", True), ("attention-unet", False)],
)
def test_the_file_says_what_the_network_says(
    kind: str, bridge: bool, made: Callable[..., CampaignConfig], tmp_path: Path
) -> None:
    campaign = made(kind, bridge=bridge)
    recogniser, path = trained(campaign), tmp_path / "recogniser.onnx"
    names = export_recogniser(recogniser, campaign, path)
    assert names == ("mask_logits", "diagnosis_logits", "saliency")[: 2 if kind == "attention-unet" else 3]
    for count in (1, 5):
        image = torch.rand(count, 1, 32, 32, generator=torch.Generator().manual_seed(100 + count))
        found = run(path, image)
        assert tuple(found) == names
        with torch.inference_mode():
            said = recogniser(image)
        np.testing.assert_allclose(found["mask_logits"], said.mask_logits_BKHW, rtol=0, atol=1e-4)
        np.testing.assert_allclose(found["diagnosis_logits"], said.diagnosis_logits_BN, rtol=0, atol=1e-4)
        if "saliency" in names:
            np.testing.assert_allclose(found["saliency"], saliency_of(recogniser, image), rtol=0, atol=1e-4)
            assert found["saliency"].max() > 1e-3, "that would agree with anything"


@pytest.mark.parametrize(
    ("learn", "names"),
    [({"segment": False}, ("diagnosis_logits", "saliency")), ({"diagnose": False}, ("mask_logits",))],
)
def test_a_head_that_the_campaign_does_not_have_is_no_output(
    learn: dict[str, bool], names: tuple[str, ...], made: Callable[..., CampaignConfig], tmp_path: Path
) -> None:
    campaign, path = made("unet", **learn), tmp_path / "recogniser.onnx"
    assert export_recogniser(trained(campaign), campaign, path) == names
    assert tuple(run(path, torch.rand(2, 1, 32, 32))) == names


def test_the_file_tells_what_it_needs_and_nothing_of_this_machine(
    made: Callable[..., CampaignConfig], tmp_path: Path
) -> None:
    campaign, path = made("unet", bridge=True), tmp_path / "recogniser.onnx"
    export_recogniser(trained(campaign), campaign, path)
    model = onnx.load(path)
    told = {entry.key: entry.value for entry in model.metadata_props}
    assert json.loads(told["masks"]) == ["background", "organ", "lesion"]
    assert json.loads(told["diagnoses"]) == ["none", "lesion"]
    assert json.loads(told["image_size"]) == [32, 32]
    assert (told["intensity_rule"], told["intensity_low"], told["intensity_high"]) == ("window", "-160.0", "240.0")
    assert (told["recogniser"], told["judges"]) == ("unet", "images as they are")
    assert told["campaign_digest"] == campaign_digest(campaign)
    assert told["wardround"]
    data = path.read_bytes()
    for trace in (str(ROOT), ".py", "site-packages", str(Path.home())):
        assert trace.encode() not in data, trace
    assert not list(tmp_path.glob(".*")), "no partial file is left"


def test_a_file_that_says_something_else_is_refused_and_not_written(
    made: Callable[..., CampaignConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    campaign, path = made("unet"), tmp_path / "recogniser.onnx"
    whole = export._converted

    def tampered(evaluated: Any, of: CampaignConfig) -> onnx.ModelProto:
        model = whole(evaluated, of)
        weights = next(found for found in model.graph.initializer if found.name.endswith("diagnosis_head.bias"))
        moved = onnx.numpy_helper.to_array(weights) + np.float32(0.5)
        weights.CopyFrom(onnx.numpy_helper.from_array(moved, weights.name))
        return model

    monkeypatch.setattr(export, "_converted", tampered)
    with pytest.raises(DataError, match=r"differs from the trained one by .*, allowed are 1e-04"):
        export_recogniser(trained(campaign), campaign, path)
    assert not path.exists()


def test_without_onnx_the_way_out_is_named(
    made: Callable[..., CampaignConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = builtins.__import__

    def without(name: str, *rest: Any) -> Any:
        if name.split(".")[0] == "onnxscript":
            raise ImportError(name)
        return real(name, *rest)

    campaign = made("unet")
    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ConfigError, match=r"pip install 'wardround\[export\]'"):
        export_recogniser(trained(campaign), campaign, tmp_path / "x.onnx")


def test_a_place_that_cannot_be_written_is_refused_before_the_work(
    made: Callable[..., CampaignConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export, "_converted", lambda *_: pytest.fail("worked"))
    campaign = made("unet")
    (tmp_path / "file").touch()
    for path in (tmp_path, tmp_path / "none" / "x.onnx", tmp_path / "file" / "x.onnx"):
        with pytest.raises(ConfigError, match="cannot be written there"):
            export_recogniser(trained(campaign), campaign, path)
