"""A tiny release, signed by an authority of the test's own, and sites that trust it."""

from __future__ import annotations

import datetime as dt
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save

from client import folder
from client.folder import SiteFolder
from shared.config import CampaignConfig, ReleaseConfig, build, campaign_digest, to_dict
from shared.networks import build_networks
from shared.release import Manifest, ReleaseFile, file_record, signed, write_release
from shared.trust import certificates, signing
from shared.trust.certificates import Pair
from shared.types import Arrays
from shared.weights import architecture_digest, to_arrays

NOW = dt.datetime(2026, 11, 22, tzinfo=dt.UTC)


def authority(name: str = "test") -> Pair:
    return certificates.create_authority(name, NOW)


def site_of(folder_: Path, of: Pair, name: str = "north") -> SiteFolder:
    """A site that trusts `of`."""
    folder_.parent.mkdir(parents=True, exist_ok=True)
    certificate = folder_.with_suffix(".ca")
    certificate.write_bytes(of.certificate)
    folder.create(folder_, name, "127.0.0.1:8443", certificate)
    return folder.read(folder_)


def weights_of(campaign: CampaignConfig, version: int = 1) -> Arrays:
    """Other weights for every version."""
    arrays = to_arrays(build_networks(build(CampaignConfig, to_dict(campaign))))
    return {name: values + np.float32(version / 1000) for name, values in arrays.items()}


def a_release(
    campaign: CampaignConfig,
    by: Pair,
    *,
    name: str = "demo",
    version: int = 1,
    arrays: Arrays | None = None,
    further: dict[str, bytes] | None = None,
    signer: Pair | None = None,
    **changed: Any,
) -> ReleaseFile:
    """Whole and signed; `changed` replaces fields of the manifest before it is signed."""
    arrays = weights_of(campaign, version) if arrays is None else arrays
    files = {
        "campaign.json": (json.dumps(to_dict(campaign), indent=1, sort_keys=True) + "\n").encode(),
        "weights.safetensors": save(arrays),
        "card.html": b"<!doctype html><title>card</title>",
        **(further or {}),
    }
    manifest = Manifest(
        name=name,
        version=version,
        made_at=NOW.isoformat(timespec="seconds"),
        federation={"name": "test", "authority": certificates.fingerprint(by.certificate)},
        campaign_digest=campaign_digest(campaign),
        architecture_digest=architecture_digest(weights_of(campaign)),
        wardround="0.1.0",
        versions={"torch": "2.13.0"},
        files={file: file_record(content) for file, content in files.items()},
        sites={"north": {"patients": 6}},
        rows=[],
        gates=[],
        privacy={"epsilon": None, "words": "no noise is added"},
        lesion=campaign.masks[-1] if campaign.masks else None,
        gates_config=to_dict(ReleaseConfig()),
    )
    return signed(replace(manifest, **changed), files, signer or signing.create_signer(by, NOW))


def released(path: Path, campaign: CampaignConfig, by: Pair, **how: Any) -> Path:
    """The file of `a_release`."""
    write_release(path, a_release(campaign, by, **how))
    return path
