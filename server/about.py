"""What a run was, kept beside its rounds: the agreed digest, the versions that ran, the sites and their counts.

about.json is written when a run starts and when a site joins, so that a report made years later by a newer Wardround
still tells what was agreed on and what ran. Counts only, as sites sent them in their cards.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from shared.checkpoint import write_atomically
from shared.config import CampaignConfig, campaign_digest
from shared.errors import DataError

FILE = "about.json"
_PACKAGES = ("wardround", "torch", "flwr", "numpy")


def versions() -> dict[str, str]:
    """Of Python and of the packages that decide about a result, where they are installed."""
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:  # run from a source tree, or without torch
            continue
    return found


def write_about(run_dir: Path, campaign: CampaignConfig) -> None:
    """Start or resume a run: digest and versions of now, sites as known."""
    _write(run_dir, {**read_about(run_dir), "config_digest": campaign_digest(campaign), "versions": versions()})


def add_site(run_dir: Path, site: str, counts: Mapping[str, int]) -> None:
    """A site joined; joining again replaces its counts."""
    about = read_about(run_dir)
    _write(run_dir, {**about, "sites": {**about["sites"], site: dict(counts)}})


def read_about(run_dir: Path) -> dict[str, Any]:
    """{"config_digest", "versions", "sites"}; only `sites`, empty, for a run that has no such file."""
    path = run_dir / FILE
    if not path.is_file():
        return {"sites": {}}
    try:
        about = json.loads(path.read_text())
        usable = isinstance(about["sites"], dict)
    except (OSError, ValueError, KeyError, TypeError):
        usable = False
    if not usable:
        raise DataError(f"{FILE} is damaged; delete it: a report can do without it, a resumed run writes it anew")
    return dict(about)


def _write(run_dir: Path, about: Mapping[str, Any]) -> None:
    write_atomically(run_dir / FILE, (json.dumps(about, indent=1, sort_keys=True) + "\n").encode())
