"""A run that is over in, a signed release out: weights of its last round, what was measured of them, and the gates that
they passed.

releases/NAME/v00001.release   in the coordinator's folder: every release that was made, as sites get it

A version is taken by the file of its number appearing there, whole, while this process holds the folder's lock: two
coordinators at once get two versions, and one that is killed leaves either no release or all of it.
"""

from __future__ import annotations

import datetime as dt
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from server.about import read_about, versions
from server.closing import closing_record
from server.export import CAMPAIGN, agreed_digest, run_folder
from server.folder import Coordinator, release_signer
from server.records import is_closing, read_records
from server.rounds import CHECKPOINTS
from shared import release as files
from shared.acceptance import calibration_of, descriptors_of, gates_of, is_judged, require_gates
from shared.checkpoint import load_latest
from shared.config import CampaignConfig, ReleaseConfig, campaign_digest, load_campaign, to_dict
from shared.errors import ConfigError, DataError, RefusedError
from shared.locks import locked
from shared.privacy.words import in_release
from shared.release import Manifest, ReleaseFile
from shared.trust import certificates, keystore
from shared.trust.names import checked_name
from shared.types import Arrays, Metrics
from shared.weights import architecture_digest
from shared.wire.messages import read_metrics

FOLDER = "releases"
NO_PRIVACY = (
    "Trained without differential privacy: no bound is proven on what the weights tell of single patients. Images "
    "never left their sites."
)


@dataclass(frozen=True, slots=True, eq=False)
class Finished:
    """A run that is over: what a release is made of."""

    campaign: CampaignConfig
    weights: Arrays
    evaluation: Mapping[str, Metrics]
    """Site -> the closing evaluation of these weights."""
    rows: tuple[Mapping[str, Any], ...]
    sites: Mapping[str, Mapping[str, int]]
    versions: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Made:
    manifest: Manifest
    digest: str


def make_release(
    coordinator: Coordinator, run_dir: Path, out: Path, config: ReleaseConfig, now: dt.datetime,
    *, name: str | None = None, reference: Path | None = None,
) -> Made:  # fmt: skip
    """Sign the weights of the run in `run_dir` and write the release to `out`.

    Raises RefusedError where a deciding gate does not hold or the run measured none, DataError for a run that is not
    over or is damaged, ConfigError for a name, a reference set or a place that cannot be used.
    """
    if not out.parent.is_dir() or out.is_dir():
        raise ConfigError(f"{out.name} cannot be written there; give a file in a folder that exists")
    run = finished(run_dir)
    gates = gates_of(run.evaluation, config, {site: n["test_patients"] for site, n in run.sites.items() if n})
    require_gates(gates, config)
    name = checked_name("release name", name or run.campaign.name)
    entries = {
        files.CAMPAIGN: (json.dumps(to_dict(run.campaign), indent=1, sort_keys=True) + "\n").encode(),
        files.WEIGHTS: _saved(run.weights),
        **({} if reference is None else {files.REFERENCE: _reference(reference, run.campaign)}),
    }
    with locked(keystore.private_folder(coordinator.folder / FOLDER) / ".lock"):  # one release at a time
        manifest = Manifest(
            name=name,
            version=next_version(coordinator, name),
            made_at=now.astimezone(dt.UTC).isoformat(timespec="seconds"),
            federation={
                "name": coordinator.name,
                "authority": certificates.fingerprint(coordinator.authority.read_bytes()),
            },
            campaign_digest=campaign_digest(run.campaign),
            architecture_digest=architecture_digest(run.weights),
            wardround=versions().get("wardround", "unknown"),
            versions=dict(run.versions),
            files={entry: files.file_record(data) for entry, data in entries.items()},
            sites=run.sites,
            rows=[_plain(row) for row in run.rows],
            gates=[asdict(gate) for gate in gates],
            privacy=in_release(run.campaign, NO_PRIVACY),
            calibration=calibration_of(run.evaluation),
            descriptors=descriptors_of(run.evaluation),
            lesion=run.campaign.masks[-1] if run.campaign.masks else None,
            gates_config=to_dict(config),
        )
        with locked(coordinator.folder / "ca" / ".lock"):  # the audit log and campaigns are signed by the same
            signer = release_signer(coordinator, now)
        release = _with_card(manifest, entries, signer)
        files.write_release(_place(coordinator, name, manifest.version), release)
    files.write_release(out, release)
    return Made(manifest, release.digest)


def finished(run_dir: Path) -> Finished:
    """What a release needs of a run folder; of a coordinator (runs/NAME) or of wardround-simulate."""
    folder = run_folder(run_dir)
    agreed = load_campaign(folder / CAMPAIGN)
    if agreed.phases and "train" not in agreed.phases:
        raise ConfigError("the run trained a generator of images; a release is of an enhancer and a recogniser")
    checkpoint = load_latest(folder / CHECKPOINTS, agreed_digest(folder, agreed))
    records = read_records(folder)
    last = agreed.rounds.rounds
    over = bool(records) and is_closing(records[-1]) and records[-1]["round"] == last + 1
    if checkpoint is None or checkpoint.state.round != last or not over:
        raise DataError("the run is not over; resume it, and release it after its closing evaluation")
    evaluation = {site: read_metrics(metrics) for site, metrics in records[-1].get("evaluation", {}).items()}
    if not is_judged(evaluation):
        raise RefusedError(
            "the closing evaluation has no accept.* figures of every site, which the gates are asked of: the run is of "
            "an older Wardround; install this version at the sites and run the campaign again"
        )
    about = read_about(folder)
    return Finished(
        campaign=_released(agreed),
        weights=_checked(agreed, checkpoint.state.weights),
        evaluation=evaluation,
        rows=tuple(closing_record(folder)["rows"]),
        sites={site: dict(about["sites"].get(site, {})) for site in sorted(evaluation)},
        versions=about.get("versions", {}),
    )


def made_releases(coordinator: Coordinator) -> list[Manifest]:
    """Every release of this coordinator, by name and version."""
    found = sorted((coordinator.folder / FOLDER).glob("*/v*.release"))
    return [files.read_manifest(path) for path in found if not path.name.startswith(".")]


def next_version(coordinator: Coordinator, name: str) -> int:
    """One more than the highest that there is of this name."""
    names = (path.name for path in (coordinator.folder / FOLDER / name).glob("v*.release"))
    taken = [int(digits) for file in names if (digits := file[1:].removesuffix(".release")).isdecimal()]
    return max(taken, default=0) + 1


def _place(coordinator: Coordinator, name: str, version: int) -> Path:
    return keystore.private_folder(coordinator.folder / FOLDER / name) / f"v{version:05d}.release"


def _with_card(manifest: Manifest, entries: Mapping[str, bytes], signer: certificates.Pair) -> ReleaseFile:
    """The card is made of the manifest that it is not named in yet."""
    from server.card import render_card

    whole = {**entries, files.CARD: render_card(manifest).encode()}
    named = {entry: files.file_record(data) for entry, data in whole.items()}
    return files.signed(replace(manifest, files=named), whole, signer)


def _released(campaign: CampaignConfig) -> CampaignConfig:
    """Without the places of this machine; those whose presence says something keep a word."""
    generate = campaign.generate
    word: dict[str, Any] = {
        name: getattr(generate, name) and "PLACE" for name in ("hed_weights", "text_encoder", "start")
    }
    objective = replace(campaign.objective, vgg_weights=campaign.objective.vgg_weights and "PLACE")
    data = replace(campaign.data, root=None)
    return replace(campaign, data=data, objective=objective, generate=replace(generate, **word))


def _checked(campaign: CampaignConfig, weights: Arrays) -> Arrays:
    """The weights in the networks' order; DataError where this version builds other networks of the campaign."""
    from shared.networks import build_networks
    from shared.weights import load_arrays, to_arrays

    networks = build_networks(campaign)
    load_arrays(networks, weights)
    return to_arrays(networks)


def _saved(weights: Arrays) -> bytes:
    from safetensors.numpy import save

    return save(weights)


def _reference(path: Path, campaign: CampaignConfig) -> bytes:
    from shared.reference import load_reference, to_bytes

    reference = load_reference(path)
    expected, got = (campaign.data.channels, *campaign.data.image_size), tuple(reference.clean_NCHW.shape[1:])
    if got != expected:
        raise ConfigError(
            f"the reference set has images of {got}, the campaign of {expected}; make one with the campaign's data "
            "and data.image_size"
        )
    if int(reference.mask_NHW.max()) > len(campaign.data.masks):
        raise ConfigError("the reference set has mask codes that the campaign has no name for; make one of its data")
    return to_bytes(reference)


def _plain(row: Mapping[str, Any]) -> dict[str, Any]:
    """What is not finite was not measured."""
    return {key: None if isinstance(value, float) and not math.isfinite(value) else value for key, value in row.items()}
