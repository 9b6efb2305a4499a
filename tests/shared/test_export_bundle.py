"""MONAI bundles of a release: MONAI's own parser reads them, and what they say is what torch says."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from safetensors.numpy import save

from server import cli
from server.export import export_bundle
from shared.config import CampaignConfig, to_dict
from shared.errors import ConfigError, DataError
from shared.export_bundle import load, networks_of
from shared.networks import Networks, build_networks
from shared.release import file_record, write_release
from shared.weights import to_arrays
from tests.shared.test_release import release

REQUIRED = ("version", "changelog", "monai_version", "pytorch_version", "numpy_version", "required_packages_version",
            "task", "description", "authors", "copyright", "network_data_format")  # fmt: skip
"""By MONAI's schema of metadata, which `schema` in the file names."""


def written(path: Path, campaign: CampaignConfig) -> Networks:
    """A release of networks that change their input."""
    networks = build_networks(campaign)
    rng = torch.Generator().manual_seed(1)
    for network in networks.all.values():
        for values in network.parameters():
            values.data += 0.1 * torch.randn(values.shape, generator=rng)
    files = {
        "campaign.json": json.dumps(to_dict(campaign)).encode(),
        "weights.safetensors": save(to_arrays(networks)),
        "card.html": b"<p>card</p>",
    }
    write_release(path, release(files))
    return networks


def parsed(bundle: Path, images: Path) -> Any:
    from monai.bundle import ConfigParser

    parser = ConfigParser()
    parser.read_config(str(bundle / "configs" / "inference.json"))
    parser.read_meta(str(bundle / "configs" / "metadata.json"))
    parser["bundle_root"], parser["dataset_dir"] = str(bundle), str(images)
    return parser


@pytest.mark.filterwarnings("ignore")
def test_monai_runs_the_bundle_and_says_what_torch_says(campaign: CampaignConfig, tmp_path: Path) -> None:
    networks = written(tmp_path / "x.release", campaign)
    bundle, images = tmp_path / "bundle", tmp_path / "images"
    assert cli.main(["export", str(tmp_path / "x.release"), "--bundle", str(bundle)]) == 0
    images.mkdir()
    image = torch.rand(3, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    for number, each in enumerate(image):
        np.save(images / f"slice{number}.npy", each.numpy())
    with torch.no_grad():
        expected = networks.enhancer(image).clamp(0, 1).numpy()
        masks = networks.recogniser.eval()(image).mask_logits_BKHW.numpy()
    assert np.abs(expected - image.numpy()).max() > 0.01  # it does something
    parser = parsed(bundle, images)
    assert [*parser.get_parsed_content("run")] == [["slice0", "slice1", "slice2"]]
    found = np.stack([np.load(bundle / "eval" / f"slice{number}.npy") for number in range(3)])
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)
    assert parser.get_parsed_content("network_def").training is False
    for name, wanted in (("enhancer", expected), ("recogniser", masks)):
        session = onnxruntime.InferenceSession(bundle / "models" / f"{name}.onnx", providers=["CPUExecutionProvider"])
        np.testing.assert_allclose(session.run(None, {"image_BCHW": image.numpy()})[0], wanted, rtol=0, atol=1e-4)
    with torch.no_grad():
        np.testing.assert_allclose(load(str(bundle), "recogniser")(image), masks, rtol=0, atol=1e-5)


def test_the_metadata_has_what_the_schema_asks_for_and_no_file_is_a_pickle(
    campaign: CampaignConfig, tmp_path: Path
) -> None:
    written(tmp_path / "x.release", campaign)
    names = export_bundle(tmp_path / "x.release", tmp_path / "bundle")
    assert names == (
        "LICENSE", "configs/campaign.json", "configs/inference.json", "configs/manifest.json", "configs/metadata.json",
        "docs/README.md", "docs/card.html", "models/enhancer.onnx", "models/recogniser.onnx",
        "models/weights.safetensors",
    )  # fmt: skip
    metadata = json.loads((tmp_path / "bundle" / "configs" / "metadata.json").read_text())
    assert set(REQUIRED) <= metadata.keys()
    image = metadata["network_data_format"]["inputs"]["image"]
    assert (image["num_channels"], image["spatial_shape"], image["dtype"]) == (1, [32, 32], "float32")
    assert metadata["network_data_format"]["outputs"]["pred"]["num_channels"] == 1
    assert "pickle" in (tmp_path / "bundle" / "docs" / "README.md").read_text()


def test_a_campaign_without_an_enhancer_is_a_bundle_of_its_recogniser(campaign: CampaignConfig, tmp_path: Path) -> None:
    alone = replace(
        campaign, enhance=replace(campaign.enhance, kind="none"), objective=replace(campaign.objective, kind="plain")
    )
    written(tmp_path / "x.release", alone)
    names = export_bundle(tmp_path / "x.release", tmp_path / "bundle")
    assert "models/enhancer.onnx" not in names
    metadata = json.loads((tmp_path / "bundle" / "configs" / "metadata.json").read_text())
    assert metadata["network_data_format"]["outputs"]["pred"]["channel_def"] == {
        "0": "background", "1": "organ", "2": "lesion"
    }  # fmt: skip


def test_the_onnx_of_a_release_agrees_with_torch(
    campaign: CampaignConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    networks, out = written(tmp_path / "x.release", campaign), tmp_path / "x.onnx"
    assert cli.main(["export", str(tmp_path / "x.release"), str(out), "--network", "enhancer"]) == 0
    assert "the enhancer of tiny of the release liver v3" in capsys.readouterr().out
    image = torch.rand(2, 1, 32, 32)
    session = onnxruntime.InferenceSession(out, providers=["CPUExecutionProvider"])
    with torch.no_grad():
        expected = networks.enhancer(image).clamp(0, 1)
    np.testing.assert_allclose(session.run(None, {"image_BCHW": image.numpy()})[0], expected, rtol=0, atol=1e-4)


def test_what_cannot_be_a_bundle_is_refused(campaign: CampaignConfig, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="a bundle is made of a release"):
        export_bundle(tmp_path, tmp_path / "bundle")
    written(tmp_path / "x.release", campaign)
    with pytest.raises(ConfigError, match="is there already"):
        export_bundle(tmp_path / "x.release", tmp_path)
    assert cli.main(["export", str(tmp_path / "x.release")]) == 2
    weights = save(to_arrays(build_networks(campaign)))
    other = replace(campaign, recognise=replace(campaign.recognise, channels=8))
    with pytest.raises(DataError, match="recogniser"):
        networks_of(json.dumps(to_dict(other)).encode(), weights)
    for wrong in ((b"{", weights), (b"{}", weights), (json.dumps(to_dict(campaign)).encode(), weights[:-9])):
        with pytest.raises(DataError, match="cannot be read"):
            networks_of(*wrong)
    with pytest.raises(DataError, match="no campaign"):
        load(str(tmp_path / "none"), "enhancer")
    assert file_record(b"")["bytes"] == 0
