"""A campaign as a file that sites approve, and the digest by which everyone knows that it is the same one."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import typing
from pathlib import Path
from typing import Any

from shared.config.build import build
from shared.config.campaign import CampaignConfig
from shared.errors import ConfigError

_PLACES = {("data", "root"), ("objective", "vgg_weights")}


def to_dict(config: Any) -> dict[str, Any]:
    """A dataclass as plain JSON values (tuples become lists)."""
    return typing.cast(dict[str, Any], json.loads(json.dumps(dataclasses.asdict(config))))


def campaign_digest(campaign: CampaignConfig) -> str:
    """SHA-256 over the campaign's canonical JSON, places (folders) left out. Equal digests: same agreement."""
    # Built anew, so that 1 and 1.0 in a field of float are one agreement, before and after a file.
    values = to_dict(build(CampaignConfig, to_dict(campaign)))
    for group, key in _PLACES:
        del values[group][key]
    return hashlib.sha256(json.dumps(values, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def save_campaign(campaign: CampaignConfig, path: Path) -> None:
    """Write the campaign as JSON: the file that a coordinator hands out and a site approves."""
    path.write_text(json.dumps(to_dict(campaign), indent=1, sort_keys=True) + "\n")


def load_campaign(path: Path) -> CampaignConfig:
    """Read a campaign file; raises ConfigError with the first thing wrong in it."""
    try:
        values = json.loads(path.read_text())
    except FileNotFoundError:
        raise ConfigError(f"no campaign file named {path.name!r}; ask the coordinator for it") from None
    except (OSError, ValueError, RecursionError):
        raise ConfigError(
            f"campaign file {path.name!r} is not readable JSON; ask the coordinator for it again"
        ) from None
    return build(CampaignConfig, values)
