"""A release in, a MONAI bundle out: a folder that programs of the MONAI family read.

    LICENSE  docs/README.md  docs/card.html
    configs/metadata.json      what MONAI's metadata schema asks for
    configs/inference.json     for monai.bundle.ConfigParser: network_def, inferer, dataset, dataloader, run
    configs/campaign.json      what the networks are built from
    configs/manifest.json      of the release, as it was signed
    models/weights.safetensors models/enhancer.onnx models/recogniser.onnx

There is no models/model.pt: that is a pickle, which can run any code on the machine that opens it, and weights from
another institution must not. The configuration loads the safetensors file instead, through `load` below, for which
Wardround has to be installed; the ONNX files need neither that nor torch.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn

from shared import release as files
from shared.config import CampaignConfig, build
from shared.errors import ConfigError, DataError
from shared.export import export_enhancer, export_recogniser
from shared.export_metadata import Network, input_meaning, output_meanings, preparation
from shared.networks import Networks, build_networks
from shared.release import ReleaseFile
from shared.weights import load_arrays

SCHEMA = "https://github.com/Project-MONAI/MONAI-extra-test-data/releases/download/0.8.1/meta_schema_20240725.json"


class Enhanced(nn.Module):
    """The enhancer, its output held within 0..1 as in the ONNX file."""

    def __init__(self, enhancer: nn.Module) -> None:
        super().__init__()
        self.enhancer = enhancer

    def forward(self, image_BCHW: Tensor) -> Tensor:
        enhanced_BCHW: Tensor = self.enhancer(image_BCHW).clamp(0, 1)
        return enhanced_BCHW


class Segmented(nn.Module):
    """The recogniser's mask logits; where it segments nothing, its diagnosis logits."""

    def __init__(self, recogniser: nn.Module) -> None:
        super().__init__()
        self.recogniser = recogniser

    def forward(self, image_BCHW: Tensor) -> Tensor:
        said = self.recogniser(image_BCHW)
        logits: Tensor | None = said.mask_logits_BKHW
        return said.diagnosis_logits_BN if logits is None else logits


def load(folder: str, network: Network) -> nn.Module:
    """The network of a bundle in `folder`, in evaluation: what `network_def` of its configuration is.

    Raises DataError where the weights are not those of the campaign beside them.
    """
    root = Path(folder)
    try:
        contents = (root / "configs" / files.CAMPAIGN).read_bytes(), (root / "models" / files.WEIGHTS).read_bytes()
    except OSError:
        raise DataError("the bundle has no campaign or no weights; export it again") from None
    _, networks = networks_of(*contents)
    return (Enhanced(networks.enhancer) if network == "enhancer" else Segmented(networks.recogniser)).eval()


def networks_of(campaign_json: bytes, weights: bytes) -> tuple[CampaignConfig, Networks]:
    """The campaign and its networks with these weights; DataError where they are not of one another."""
    from safetensors import SafetensorError
    from safetensors.numpy import load as load_tensors

    try:
        campaign = build(CampaignConfig, json.loads(campaign_json))
        arrays = load_tensors(weights)
    except (ValueError, RecursionError, ConfigError, SafetensorError, KeyError):
        raise DataError(
            "the campaign or the weights cannot be read; install the version of Wardround that the release was made "
            "with, or fetch the release again"
        ) from None
    networks = build_networks(campaign)
    load_arrays(networks, arrays)
    return campaign, networks


def infer(network: nn.Module, inferer: Callable[..., Tensor], batches: Iterable[Any], out: str) -> list[str]:
    """What `run` of the configuration does: write the output of every image to `out` under the image's name, .npy."""
    import torch

    Path(out).mkdir(parents=True, exist_ok=True)
    written = []
    for batch in batches:
        with torch.no_grad():
            said_BCHW = inferer(batch["image"], network)
        for name, said in zip(batch["name"], said_BCHW, strict=True):
            np.save(Path(out) / f"{name}.npy", np.asarray(said.cpu(), dtype=np.float32))
            written.append(str(name))
    return written


def write_bundle(folder: Path, release: ReleaseFile, networks: Networks, campaign: CampaignConfig) -> tuple[str, ...]:
    """Write the bundle to a new folder, which appears when all of it is there; returns its files.

    Raises ConfigError for a folder that is there or cannot be made, and as the ONNX exports do.
    """
    if folder.exists() or not folder.parent.is_dir():
        raise ConfigError(f"{folder.name} is there already or has no folder above it; give a new folder for the bundle")
    partial = folder.with_name(f".partial-{os.getpid()}-{folder.name}")
    try:
        for part in ("configs", "models", "docs"):
            (partial / part).mkdir(parents=True)
        whole = campaign.enhance.kind != "none" and not campaign.enhance.data_consistency
        network: Network = "enhancer" if whole else "recogniser"
        if whole:
            export_enhancer(networks.enhancer, campaign, partial / "models" / "enhancer.onnx")
        export_recogniser(networks.recogniser, campaign, partial / "models" / "recogniser.onnx")
        _write(partial, release, campaign, network)
        os.rename(partial, folder)
    except OSError:
        raise ConfigError(f"{folder.name} cannot be written there; give a new folder on a disk with room") from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return tuple(sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()))


def _write(folder: Path, release: ReleaseFile, campaign: CampaignConfig, network: Network) -> None:
    for name, place in ((files.CAMPAIGN, "configs"), (files.WEIGHTS, "models"), (files.CARD, "docs")):
        (folder / place / name).write_bytes(release.files[name])
    (folder / "configs" / files.MANIFEST).write_bytes(release.manifest_bytes)
    for name, values in (("metadata", metadata(release, campaign, network)), ("inference", inference(network))):
        (folder / "configs" / f"{name}.json").write_text(json.dumps(values, indent=4) + "\n")
    (folder / "docs" / "README.md").write_text(_readme(release, campaign, network))
    (folder / "LICENSE").write_text(_license(release))


def metadata(release: ReleaseFile, campaign: CampaignConfig, network: Network) -> dict[str, Any]:
    """configs/metadata.json, of the network that network_def is."""
    manifest, number = release.manifest, f"{release.manifest.version}.0.0"
    masks = ["background", *campaign.masks]
    labels = masks if campaign.masks else list(campaign.diagnoses)
    verb = "Enhance" if network == "enhancer" else "Segment" if campaign.masks else "Classify"
    return {
        "schema": SCHEMA,
        "version": number,
        "changelog": {number: f"release {manifest.digest}"},
        "monai_version": _version("monai"),
        "pytorch_version": _version("torch").partition("+")[0],
        "numpy_version": _version("numpy"),
        "required_packages_version": {"wardround": manifest.wardround, "safetensors": _version("safetensors")},
        "name": manifest.name,
        "task": f"{verb} {'/'.join(campaign.data.ingest.modalities)} slices",
        "description": f"The {network} of the Wardround campaign {campaign.name}, trained by federated rounds.",
        "authors": f"The sites of the federation {manifest.federation['name']}: {', '.join(manifest.sites)}",
        "copyright": f"The sites of the federation {manifest.federation['name']}",
        "data_source": f"{len(manifest.sites)} sites; their counts stand in docs/card.html",
        "data_type": "npy",
        "image_classes": input_meaning(campaign, network),
        "label_classes": ", ".join(labels),
        "pred_classes": output_meanings(campaign)[_output(campaign, network)],
        "eval_metrics": _metrics(manifest.rows),
        "intended_use": manifest.intended_use,
        "references": ["https://arxiv.org/abs/1602.05629"],
        "network_data_format": {
            "inputs": {"image": _image(campaign, "image")},
            "outputs": {"pred": _predicted(campaign, network, labels)},
        },
    }


def inference(network: Network) -> dict[str, Any]:
    """configs/inference.json; images are .npy files (channel, row, column) that are prepared as the README says."""
    image = "$[{'image': str(path), 'name': path.stem} for path in sorted(pathlib.Path(@dataset_dir).glob('*.npy'))]"
    return {
        # With a name of its own: MONAI's parser makes no name of one with dots.
        "imports": ["$import pathlib", "$import torch", "$import shared.export_bundle as bundle"],
        "bundle_root": ".",
        "dataset_dir": "$@bundle_root + '/images'",
        "output_dir": "$@bundle_root + '/eval'",
        "device": "$torch.device('cpu')",
        "network_def": {"_target_": "shared.export_bundle.load", "folder": "@bundle_root", "network": network},
        "network": "$@network_def.to(@device)",
        "preprocessing": {
            "_target_": "Compose",
            "transforms": [
                {"_target_": "LoadImaged", "keys": "image", "reader": "NumpyReader", "image_only": True},
                {"_target_": "EnsureTyped", "keys": "image", "device": "@device", "track_meta": False},
            ],
        },
        "dataset": {"_target_": "Dataset", "data": image, "transform": "@preprocessing"},
        "dataloader": {"_target_": "DataLoader", "dataset": "@dataset", "batch_size": 1, "num_workers": 0},
        "inferer": {"_target_": "SimpleInferer"},
        "run": ["$bundle.infer(@network, @inferer, @dataloader, @output_dir)"],
    }


def _image(campaign: CampaignConfig, kind: str) -> dict[str, Any]:
    channels = campaign.data.channels
    return {
        "type": "image",
        "format": "magnitude" if kind == "image" else kind,
        "modality": "/".join(campaign.data.ingest.modalities),
        "num_channels": channels,
        "spatial_shape": list(campaign.data.image_size),
        "dtype": "float32",
        "value_range": [0, 1],
        "is_patch_data": False,
        "channel_def": {str(place): "image" for place in range(channels)},
    }


def _predicted(campaign: CampaignConfig, network: Network, labels: list[str]) -> dict[str, Any]:
    if network == "enhancer":
        return _image(campaign, "image")
    return {
        **_image(campaign, "segmentation" if campaign.masks else "classification"),
        "num_channels": len(labels),
        "spatial_shape": list(campaign.data.image_size) if campaign.masks else [],
        "value_range": [],
        "channel_def": {str(place): name for place, name in enumerate(labels)},
    }


def _output(campaign: CampaignConfig, network: Network) -> str:
    return "enhanced" if network == "enhancer" else "mask_logits" if campaign.masks else "diagnosis_logits"


def _metrics(rows: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    over_all = [row for row in rows if row.get("setting") == "federated" and row.get("test_site") == "all"]
    keys = ("psnr_db", "ssim", "dice", "accuracy")
    return {key: float(row[key]) for row in over_all for key in keys if row.get(key) is not None}


def _readme(release: ReleaseFile, campaign: CampaignConfig, network: Network) -> str:
    manifest = release.manifest
    steps = "\n".join(f"{place}. {step}" for place, step in enumerate(preparation(campaign.data), start=1))
    return f"""# {manifest.name} v{manifest.version}

{manifest.intended_use}

The {network} of the campaign {campaign.name} of the federation {manifest.federation["name"]}, as MONAI's `network_def`.
Release digest: `{release.digest}`. What it was trained on, how it was judged and what it must not be used for stands in
card.html. The signature of the release is in the .release file: install that at a site, not this folder.

## From DICOM to an image of this bundle

{steps}

Save each as a float32 .npy file of (channel, row, column) into `images/`, and run with MONAI and Wardround installed:

    python -m monai.bundle run --config_file configs/inference.json --meta_file configs/metadata.json

## Why there is no models/model.pt

It would be a pickle, which can run any code on the machine that opens it. The weights are models/weights.safetensors,
which holds numbers alone; models/*.onnx need neither Wardround nor torch.
"""


def _license(release: ReleaseFile) -> str:
    name = release.manifest.federation["name"]
    return (
        f"The weights in this folder are of the sites of the federation {name}, who released them for the use that "
        "docs/README.md states.\nThis file grants no further right; ask them for one.\n\n"
        "Wardround, which the configuration imports, is under the Apache License 2.0.\n"
    )


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:  # not needed to write a bundle
        return "unknown"
