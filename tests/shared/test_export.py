from __future__ import annotations

import builtins
import sys
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
from shared.config import CampaignConfig, EnhancerConfig, LearnConfig, RecogniserConfig
from shared.errors import ConfigError, DataError
from shared.export import export_enhancer, export_recogniser
from shared.export_metadata import metadata
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


def trained(campaign: CampaignConfig, name: str = "recogniser") -> nn.Module:
    """Weights that are not those of the start: norms and biases would be 1 and 0, and an enhancer the identity."""
    network, rng = build_networks(campaign).all[name], torch.Generator().manual_seed(5)
    with torch.no_grad():
        for weight in network.parameters():
            weight.add_(0.1 * torch.randn(weight.shape, generator=rng))
    return network.train()


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
    names = export_recogniser(recogniser, campaign, path).outputs
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
            saliency = saliency_of(recogniser, image).numpy()
            largest_B111 = saliency.max((1, 2, 3), keepdims=True)
            assert largest_B111.min() > 0
            np.testing.assert_allclose(found["saliency"] / largest_B111, saliency / largest_B111, rtol=0, atol=1e-3)


@pytest.mark.parametrize(
    ("learn", "names"),
    [({"segment": False}, ("diagnosis_logits", "saliency")), ({"diagnose": False}, ("mask_logits",))],
)
def test_a_head_that_the_campaign_does_not_have_is_no_output(
    learn: dict[str, bool], names: tuple[str, ...], made: Callable[..., CampaignConfig], tmp_path: Path
) -> None:
    campaign, path = made("unet", **learn), tmp_path / "recogniser.onnx"
    assert export_recogniser(trained(campaign), campaign, path).outputs == names
    assert tuple(run(path, torch.rand(2, 1, 32, 32))) == names


def test_the_file_tells_what_it_needs_and_nothing_of_this_machine(
    made: Callable[..., CampaignConfig], tmp_path: Path
) -> None:
    campaign, path = made("unet", bridge=True), tmp_path / "recogniser.onnx"
    outputs = export_recogniser(trained(campaign), campaign, path).outputs
    model = onnx.load(path)
    told = {entry.key: entry.value for entry in model.metadata_props}
    assert told == metadata(campaign, "recogniser", outputs)
    assert "the metadata of this file" in model.graph.doc_string
    for output in model.graph.output:
        assert output.doc_string == told[output.name]
    (given,) = model.graph.input
    assert "images of 1 x 32 x 32" in given.doc_string
    assert told["intensity_scale"] in given.doc_string
    data = path.read_bytes()
    for trace in (str(ROOT), ".py", "site-packages", str(Path.home())):
        assert trace.encode() not in data, trace
    assert not list(tmp_path.glob(".*")), "no partial file is left"


@pytest.mark.parametrize("kind", ["cnn3", "unet", "srresnet", "todnet", "todnet tanh", "todnet attention"])
def test_the_file_of_an_enhancer_puts_out_what_its_recogniser_judges(
    kind: str, campaign: CampaignConfig, tmp_path: Path
) -> None:
    name, _, form = kind.partition(" ")
    enhance = EnhancerConfig(
        kind=name,  # type: ignore[arg-type]
        channels=4,
        depth=2,
        attention=form == "attention",
        output="tanh" if form == "tanh" else "linear",
    )
    # 40 is no multiple of the 16 places between which attention is paid: the last of its windows is a part.
    campaign = replace(campaign, data=replace(campaign.data, image_size=(40, 24)), enhance=enhance)
    enhancer, path = trained(campaign, "enhancer"), tmp_path / "enhancer.onnx"
    written = export_enhancer(enhancer, campaign, path)
    assert written.outputs == ("enhanced",)
    assert written.comparison is not None
    assert written.comparison.largest["enhanced"] <= 1e-4
    for count in (1, 5):
        image = torch.rand(count, 1, 40, 24, generator=torch.Generator().manual_seed(100 + count))
        with torch.inference_mode():
            enhanced = enhancer(image).clamp(0, 1)
        assert ((enhanced > 0) & (enhanced < 1) & ((enhanced - image).abs() > 0.01)).float().mean() > 0.05
        np.testing.assert_allclose(run(path, image)["enhanced"], enhanced, rtol=0, atol=1e-4)
    told = {entry.key: entry.value for entry in onnx.load(path).metadata_props}
    assert (told["network"], told["enhancer"]) == ("enhancer", name)
    assert told["enhances"] == "images that degrade=gaussian made worse"
    assert "masks" not in told


def test_an_enhancer_that_is_not_there_or_needs_more_than_an_image_is_refused(
    campaign: CampaignConfig, tmp_path: Path
) -> None:
    path = tmp_path / "enhancer.onnx"
    without = replace(
        campaign, enhance=EnhancerConfig(kind="none"), objective=replace(campaign.objective, kind="plain")
    )
    with pytest.raises(ConfigError, match=r"has no enhancer \(enhance=none\)"):
        export_enhancer(build_networks(without).enhancer, without, path)
    consistent = replace(
        campaign,
        degrade=replace(campaign.degrade, kind="kspace"),
        enhance=EnhancerConfig(kind="cnn3", channels=4, data_consistency=True),
    )
    with pytest.raises(ConfigError, match="takes the measured k-space"):
        export_enhancer(build_networks(consistent).enhancer, consistent, path)
    assert not path.exists()


def test_a_leap_at_a_corner_is_told_from_a_graph_that_is_wrong() -> None:
    """A leap is at a few places of one image; a wrong border in all images, a wrong batch in whole images."""
    right = np.full((6, 1, 16, 16), 1e-6, np.float32)
    leap, border, batch = right.copy(), right.copy(), right.copy()
    leap[2, :, 3:9, 4:8] = 0.1
    border[:, :, 0] = 0.1
    batch[1:] = 0.1
    assert [export._agrees(found, 1e-3, everywhere=False) for found in (right, leap, border, batch)] == [
        *(True, True),
        *(False, False),
    ]
    assert [export._agrees(found, 1e-3, everywhere=True) for found in (right, leap)] == [True, False]
    assert not export._agrees(np.full_like(right, np.inf), 1e-3, everywhere=False)


def test_without_onnxruntime_nothing_is_compared(
    made: Callable[..., CampaignConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    campaign, path = made("unet"), tmp_path / "recogniser.onnx"
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert export_recogniser(trained(campaign), campaign, path).comparison is None
    assert path.is_file()


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
    with pytest.raises(DataError, match=r"diagnosis_logits of the exported network differs from .*, allowed are 1e-04"):
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
