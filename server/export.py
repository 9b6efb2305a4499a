"""A run folder in, its recogniser or enhancer of the last finished round out as an ONNX file.

A run folder is a coordinator's (runs/NAME), or one that `wardround-simulate` left: its federation/ with the campaign
and the checkpoints, the folder of a seed above that, or the whole where it has one seed.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from server.about import read_about
from shared.checkpoint import load_latest
from shared.config import CampaignConfig, campaign_digest, load_campaign
from shared.errors import ConfigError, DataError

if TYPE_CHECKING:
    from shared.export import Comparison, Written
    from shared.export_metadata import Network

CAMPAIGN = "campaign.json"
SALIENCY = "saliency"


@dataclass(frozen=True, slots=True)
class Exported:
    """What stands in the file."""

    campaign: str
    network: Network
    round: int
    written: Written


def export_run(run_dir: Path, path: Path, network: Network = "recogniser") -> Exported:
    """Write the network of the last finished round of `run_dir` to `path`.

    Raises DataError for a folder without a campaign or a finished round and for a damaged checkpoint, RefusedError for
    a checkpoint of another campaign, ConfigError for a `path` that cannot be written, for an enhancer that the campaign
    does not have or that needs more than an image, and where ONNX is not installed.
    """
    from shared.export import export_enhancer, export_recogniser
    from shared.networks import build_networks
    from shared.weights import load_arrays

    folder = _folder(run_dir)
    campaign = load_campaign(folder / CAMPAIGN)
    checkpoint = load_latest(folder / "checkpoints", _agreed_digest(folder, campaign))
    if checkpoint is None:
        raise DataError("the run has no checkpoint yet; export it after its first round")
    networks = build_networks(campaign)
    load_arrays(networks, checkpoint.state.weights)
    if network == "enhancer":
        written = export_enhancer(networks.enhancer, campaign, path)
    else:
        written = export_recogniser(networks.recogniser, campaign, path)
    return Exported(campaign.name, network, checkpoint.state.round, written)


def comparison_shown(comparison: Comparison | None) -> str:
    """How far the file's outputs are from torch's, in a sentence."""
    if comparison is None:
        return "onnxruntime is missing here: nothing was compared with torch. pip install onnxruntime and export again."
    differences = ", ".join(_difference_shown(name, comparison) for name in comparison.largest)
    return (
        f"Compared with torch on {comparison.images} random images, largest differences (of the largest value where "
        f"that is above 1): {differences}."
    )


def _difference_shown(name: str, comparison: Comparison) -> str:
    shown = f"{name} {comparison.largest[name]:.1e}{' of its largest value' if name == SALIENCY else ''}"
    if not comparison.beyond[name]:
        return shown
    share = f"{100 * comparison.beyond[name]:.2g} % of its values"
    return f"{shown} (in {share} rounding moved a ReLU across its corner)"


def _folder(run_dir: Path) -> Path:
    """The folder with the campaign and its checkpoints."""
    for folder in (run_dir, run_dir / "federation"):
        if (folder / CAMPAIGN).is_file():
            return folder
    seeds = sorted(path.parents[1] for path in run_dir.glob(f"seed-*/federation/{CAMPAIGN}"))
    if not seeds:
        if (run_dir / "cells").is_dir():
            raise DataError(
                "the folder is a study's, which keeps figures, not weights; run the cell that you want with a run_dir "
                "of its own (the study's report shows the command) and export that"
            )
        raise DataError(
            f"no {CAMPAIGN} in the run folder; give the folder of a run, of a coordinator or of wardround-simulate"
        )
    if len(seeds) > 1:
        names = ", ".join(seed.name for seed in seeds)
        raise ConfigError(f"the run folder holds {names}; give the folder of one of them")
    return seeds[0] / "federation"


def _agreed_digest(folder: Path, campaign: CampaignConfig) -> str:
    """As it was when the run began: a newer Wardround may have given the campaign more keys since."""
    return str(read_about(folder).get("config_digest", campaign_digest(campaign)))
