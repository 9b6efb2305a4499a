"""A campaign as a file that sites approve, and the digest by which everyone knows that it is the same one."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
import typing
from pathlib import Path
from typing import Any

from shared.config.build import build
from shared.config.campaign import CampaignConfig
from shared.errors import ConfigError

_PLACES = {
    *(("data", "root"), ("objective", "vgg_weights")),
    *(("generate", "hed_weights"), ("generate", "text_encoder"), ("generate", "start")),
}
_OF_PROGRAMS = {("data", "test_root"), ("study", "roots"), ("", "run_dir")}
_OVERRIDE = re.compile(
    r"""((?:^|[\s+])(?:data\.root|data\.test_root|objective\.vgg_weights|generate\.(?:hed_weights|text_encoder|start))=)"""
    r"""('[^']*'|"[^"]*"|\S+)"""
)


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


def agreed_phase(campaign: CampaignConfig, digest: str) -> CampaignConfig | None:
    """The campaign itself, or the phase of it, that `digest` is of; None where it is of neither. Who agreed to a
    campaign has agreed to its phases."""
    if campaign_digest(campaign) == digest:
        return campaign
    phases = (campaign.in_phase(phase) for phase in campaign.phases)
    return next((phase for phase in phases if campaign_digest(phase) == digest), None)


def without_places(values: Any) -> Any:
    """Plain values of a config (or of a part of one) without the folders and files of the machine that it is on: for
    records and reports, which are handed on. Overrides that name a place keep their key."""
    return _without(values, "")


def _without(values: Any, group: str) -> Any:
    if isinstance(values, dict):
        kept = {key: value for key, value in values.items() if (group, key) not in _PLACES | _OF_PROGRAMS}
        return {key: _without(value, key) for key, value in kept.items()}
    if isinstance(values, list):
        return [_without(value, "") for value in values]
    return _OVERRIDE.sub(r"\1PLACE", values) if isinstance(values, str) else values


def save_campaign(campaign: CampaignConfig, path: Path) -> None:
    """Write the campaign as JSON: the file that a coordinator hands out and a site approves."""
    path.write_text(json.dumps(to_dict(campaign), indent=1, sort_keys=True) + "\n")


def load_campaign(path: Path) -> CampaignConfig:
    """Read a campaign file; raises ConfigError with the first thing wrong in it.

    Of a signed manifest (shared/manifest.py) the campaign in it; whether the signature holds is asked where a site
    approves.
    """
    try:
        values = json.loads(path.read_text())
    except FileNotFoundError:
        raise ConfigError(f"no campaign file named {path.name!r}; ask the coordinator for it") from None
    except (OSError, ValueError, RecursionError):
        raise ConfigError(
            f"campaign file {path.name!r} is not readable JSON; ask the coordinator for it again"
        ) from None
    if isinstance(values, dict) and isinstance(values.get("manifest"), dict):
        values = values["manifest"].get("campaign")
    campaign = build(CampaignConfig, values)
    require_whole(campaign)
    return campaign


def require_whole(campaign: CampaignConfig) -> None:
    """Raises ConfigError for a campaign of one phase, which is neither run nor approved by itself."""
    if campaign.generate.phase != "all":
        raise ConfigError(
            f"generate.phase={campaign.generate.phase} is set by the program that runs the phases; leave it at all"
        )
