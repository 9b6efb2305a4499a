"""A run folder in, its recogniser of the last finished round out as an ONNX file.

A run folder is a coordinator's (runs/NAME), or one that `wardround-simulate` left: its federation/ with the campaign
and the checkpoints, the folder of a seed above that, or the whole where it has one seed.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from server.about import read_about
from shared.checkpoint import load_latest
from shared.config import CampaignConfig, campaign_digest, load_campaign
from shared.errors import ConfigError, DataError

CAMPAIGN = "campaign.json"


@dataclass(frozen=True, slots=True)
class Exported:
    """What stands in the file."""

    campaign: str
    round: int
    outputs: tuple[str, ...]


def export_run(run_dir: Path, path: Path) -> Exported:
    """Write the recogniser of the last finished round of `run_dir` to `path`.

    Raises DataError for a folder without a campaign or a finished round and for a damaged checkpoint, RefusedError for
    a checkpoint of another campaign, ConfigError for a `path` that cannot be written and where ONNX is not installed.
    """
    from shared.export import export_recogniser
    from shared.networks import build_networks
    from shared.weights import load_arrays

    folder = _folder(run_dir)
    campaign = load_campaign(folder / CAMPAIGN)
    checkpoint = load_latest(folder / "checkpoints", _agreed_digest(folder, campaign))
    if checkpoint is None:
        raise DataError("the run has no checkpoint yet; export it after its first round")
    networks = build_networks(campaign)
    load_arrays(networks, checkpoint.state.weights)
    outputs = export_recogniser(networks.recogniser, campaign, path)
    return Exported(campaign.name, checkpoint.state.round, outputs)


def _folder(run_dir: Path) -> Path:
    """The folder with the campaign and its checkpoints."""
    for folder in (run_dir, run_dir / "federation"):
        if (folder / CAMPAIGN).is_file():
            return folder
    seeds = sorted(path.parents[1] for path in run_dir.glob(f"seed-*/federation/{CAMPAIGN}"))
    if not seeds:
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
