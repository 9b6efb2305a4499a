"""Generators that arrived at a site: its folder in, one row for each out. No weights are read, and no torch."""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass
from pathlib import Path

from client.generators import CAMPAIGN
from shared.config import CampaignConfig, campaign_digest, load_campaign
from shared.errors import ConfigError, DataError, WardroundError

NETWORKS = ("autoencoder", "latents", "denoiser", "prompts", "controlnet")


@dataclass(frozen=True, slots=True)
class Arrived:
    """One campaign's generator, whole or in parts."""

    digest: str
    campaign: CampaignConfig
    arrived_at: str
    """When its newest network came."""
    size_bytes: int
    missing: tuple[str, ...]
    """Networks that have not come yet: its phases are not over."""


def arrived(generators: Path) -> tuple[Arrived, ...]:
    """All of them, the oldest first. Raises DataError for a folder that is not what it says."""
    found = [_read(path.parent) for path in generators.glob(f"*/{CAMPAIGN}")]
    return tuple(sorted(found, key=lambda each: (each.arrived_at, each.digest)))


def named(generators: Path, campaign: str) -> Arrived:
    """The generator of a campaign's name, or of its digest's first 8 characters or more; raises ConfigError."""
    everyone = arrived(generators)
    found = [each for each in everyone if each.campaign.name == campaign]
    if len(campaign) >= 8:
        found = [each for each in everyone if each.digest.startswith(campaign)] or found
    if len(found) != 1:
        got = "no generator" if not found else f"{len(found)} generators"
        raise ConfigError(
            f"{got} of campaign {campaign[:40]!r}; name one by its digest, see: wardround-site generators"
        )
    return found[0]


def _read(folder: Path) -> Arrived:
    damaged = DataError(
        f"generator {folder.name[:12]} does not belong to the campaign beside it; remove its folder, it comes again "
        "with the campaign's next round"
    )
    try:
        campaign = load_campaign(folder / CAMPAIGN)
        digest = campaign_digest(campaign)
        files = {path.stem: path.stat() for path in folder.glob("[!.]*.safetensors")}  # with a dot: of a killed program
    except (WardroundError, OSError):
        raise damaged from None
    if digest != folder.name:
        raise damaged
    newest = max((file.st_mtime for file in files.values()), default=(folder / CAMPAIGN).stat().st_mtime)
    needed = (*NETWORKS, "hed") if campaign.generate.edges == "hed" else NETWORKS
    return Arrived(
        digest,
        campaign,
        dt.datetime.fromtimestamp(newest, dt.UTC).isoformat(timespec="seconds"),
        sum(file.st_size for file in files.values()),
        tuple(name for name in needed if name not in files),
    )
