"""A run folder or a release in, its recogniser or enhancer out as an ONNX file; of a run that of the last finished
round, or the generator that its phases left, as a safetensors file. A release also as a MONAI bundle.

A run folder is a coordinator's (runs/NAME), or one that `wardround-simulate` left: its federation/ with the campaign
and the checkpoints, the folder of a seed above that, or the whole where it has one seed.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from server.about import read_about
from server.phases import SCALE, latent_scale
from server.records import PHASES, read_records
from server.rounds import CHECKPOINTS, ended
from shared.checkpoint import load_latest, write_atomically
from shared.config import CampaignConfig, campaign_digest, load_campaign
from shared.errors import ConfigError, DataError
from shared.types import Arrays

if TYPE_CHECKING:
    from shared.export import Comparison, Written
    from shared.export_metadata import Network
    from shared.networks import Networks

CAMPAIGN = "campaign.json"
SALIENCY = "saliency"


@dataclass(frozen=True, slots=True)
class Exported:
    """What stands in the file."""

    campaign: str
    network: Network
    state: str
    """After which round, or of which release, in words."""
    written: Written


@dataclass(frozen=True, slots=True, eq=False)
class Trained:
    """Networks with their weights, and where these are from."""

    campaign: CampaignConfig
    networks: Networks
    state: str


@dataclass(frozen=True, slots=True)
class ExportedGenerator:
    """What stands in the file of a generator."""

    campaign: str
    networks: tuple[str, ...]
    """Those that the run trained; the others stay as the campaign started them."""


def export_network(source: Path, path: Path, network: Network = "recogniser") -> Exported:
    """Write the network of the last finished round of a run folder, or of a release file, to `path`.

    Raises DataError for a folder without a campaign or a finished round and for a damaged checkpoint or release,
    RefusedError for a checkpoint of another campaign, ConfigError for a `path` that cannot be written, for an enhancer
    that the campaign does not have or that needs more than an image, for a run of a generator alone, and where ONNX is
    not installed.
    """
    from shared.export import export_enhancer, export_recogniser

    trained = _of_release(source) if source.is_file() else _of_run(source, network)
    if network == "enhancer":
        written = export_enhancer(trained.networks.enhancer, trained.campaign, path)
    else:
        written = export_recogniser(trained.networks.recogniser, trained.campaign, path)
    return Exported(trained.campaign.name, network, trained.state, written)


def export_bundle(source: Path, folder: Path) -> tuple[str, ...]:
    """Write a release as a MONAI bundle to a new `folder`; returns what stands in it.

    Raises ConfigError for a run folder (a bundle tells what only a release knows) and for a folder that is there.
    """
    from shared.export_bundle import write_bundle
    from shared.release import read_release

    if not source.is_file():
        raise ConfigError("a bundle is made of a release: wardround-coordinator release DIR RUN_DIR OUT comes first")
    trained = _of_release(source)
    return write_bundle(folder, read_release(source), trained.networks, trained.campaign)


def _of_run(run_dir: Path, network: Network) -> Trained:
    from shared.networks import build_networks
    from shared.weights import load_arrays

    folder = run_folder(run_dir)
    campaign = load_campaign(folder / CAMPAIGN)
    if campaign.phases and "train" not in campaign.phases:
        raise ConfigError(f"the run trained a generator of images and no {network}; export it with --network generator")
    checkpoint = load_latest(folder / CHECKPOINTS, agreed_digest(folder, campaign))
    if checkpoint is None:
        raise DataError("the run has no checkpoint yet; export it after its first round")
    networks = build_networks(campaign)
    load_arrays(networks, checkpoint.state.weights)
    return Trained(campaign, networks, f"after round {checkpoint.state.round}")


def _of_release(path: Path) -> Trained:
    """Whoever exports a release has its file; that it is whole is checked, who signed it is for sites to check."""
    from shared.export_bundle import networks_of
    from shared.release import CAMPAIGN, WEIGHTS, read_release

    release = read_release(path)
    campaign, networks = networks_of(release.files[CAMPAIGN], release.files[WEIGHTS])
    return Trained(campaign, networks, f"of the release {release.manifest.name} v{release.manifest.version}")


def export_generator(run_dir: Path, path: Path) -> ExportedGenerator:
    """Write what the generator's phases of a run have trained to `path`, a safetensors file for generate.start.

    Raises DataError and RefusedError as `export_network` does, and for phases that are not over; ConfigError for a
    campaign that trained no generator and a `path` that cannot be written.
    """
    from safetensors.numpy import save

    from shared.export import check_writable, unwritable

    check_writable(path)
    folder = run_folder(run_dir)
    campaign = load_campaign(folder / CAMPAIGN)
    if not campaign.generate.phases:
        raise ConfigError("the run trained no generator; choose the recogniser or the enhancer with --network")
    arrays = generator_arrays(folder, campaign)
    try:
        write_atomically(path, save(arrays, metadata={"campaign": campaign.name}))
    except OSError:
        raise unwritable(path) from None
    return ExportedGenerator(campaign.name, tuple(dict.fromkeys(name.partition(".")[0] for name in arrays)))


def generator_arrays(folder: Path, campaign: CampaignConfig) -> Arrays:
    """What server.phases.run_phases left of the generator when the run in `folder` ended: of each phase the weights
    that it ended with, and the scale of latents."""
    left: Arrays = {}
    for phase in campaign.generate.phases:
        place, own = folder / PHASES / phase, campaign.in_phase(phase)
        checkpoint = load_latest(place / CHECKPOINTS, campaign_digest(own))
        closing = read_records(place)[-1:]
        last = own.rounds.rounds
        if checkpoint is None or checkpoint.state.round < last or not closing or closing[0]["round"] <= last:
            raise DataError(
                f"the generator's phase {phase} is not over; resume the run, and export when it is finished"
            )
        left |= ended(own, checkpoint.state).weights
        if phase == "autoencoder":
            left[SCALE] = latent_scale(closing[0])
    return {name: values.copy(order="C") for name, values in left.items()}


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


def run_folder(run_dir: Path) -> Path:
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


def agreed_digest(folder: Path, campaign: CampaignConfig) -> str:
    """As it was when the run began: a newer Wardround may have given the campaign more keys since."""
    if campaign.phases:  # each is a campaign of its own to its checkpoints
        return campaign_digest(campaign.in_phase("train"))
    return str(read_about(folder).get("config_digest", campaign_digest(campaign)))
