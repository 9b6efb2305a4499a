"""A release and a site's store in, what the release does here out: aggregates, and the release's own gates on them.

Nothing is trained and nothing leaves: the figures are shown to the site's operator, who may send them. They are those
of the closing evaluation of a campaign that take no quantiles and describe no image, so a file of them tells a
coordinator no more than taking part does.

A site that took no part is judged on all of its labelled patients. One that did is judged on its test patients alone.
Which those are follows from the store (client/dataset.py); of patients that were ingested since, or anew, it cannot be
told here whether they trained, and the answer says so.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from client.folder import SiteFolder
from client.releases import campaign_of, installed, verified
from shared.acceptance import PREFIX, Gate, gates_of
from shared.checkpoint import write_atomically
from shared.config import CampaignConfig, ReleaseConfig, build
from shared.errors import ConfigError
from shared.release_manifest import Manifest
from shared.types import Metrics
from shared.wire.messages import metrics_json

if TYPE_CHECKING:
    from client.dataset import Slices
    from shared.networks import Networks

FORMAT = 1
HEADLINE = ("psnr_db", "ssim", "dice", "accuracy", "auc")
INSTALLED = "installed"


@dataclass(frozen=True, slots=True, eq=False)
class Validation:
    """What a release does at this site; aggregates alone."""

    site: str
    name: str
    version: int
    digest: str
    adapted: bool
    """Whether the weights are those that this site adapted."""
    patients: int
    took_part: bool
    left_out: int
    """Patients that are not judged, because this site took part and they may have trained."""
    metrics: Metrics
    gates: tuple[Gate, ...]

    @property
    def failed(self) -> tuple[Gate, ...]:
        """Gates that decide and do not hold here."""
        return tuple(gate for gate in self.gates if gate.decides and not gate.holds)


def validate(site: SiteFolder, release: str) -> Validation:
    """Judge a release's file, or (`installed`) what is in force, on the site's store.

    Raises what `verified` or `installed` raise; DataError where the store has no labelled patients, or follows another
    rule than the release's campaign.
    """
    from client.acceptance import accepted
    from client.evaluate import evaluate, summarise

    manifest, campaign, networks, adapted = _opened(site, release)
    took_part = site.name in manifest.sites
    judged, left_out = _slices(site, campaign, took_part)
    figures = summarise(evaluate(networks, judged, campaign, site.machine))
    metrics = {
        **{key: replace(moments, quantiles=()) for key, moments in sorted(figures.items())},
        **accepted(networks, judged, campaign, site.machine),
    }
    allowed = {key: moments for key, moments in metrics.items() if key.startswith(PREFIX) or _is_headline(key)}
    metrics = {key: moments for key, moments in allowed.items() if moments.count}
    patients = len(set(judged.patient_N.tolist()))
    gates = gates_of({site.name: metrics}, build(ReleaseConfig, manifest.gates_config), {site.name: patients})
    return Validation(
        site.name,
        manifest.name,
        manifest.version,
        manifest.digest,
        adapted,
        patients,
        took_part,
        left_out,
        metrics,
        tuple(gate for gate in gates if gate.site == site.name),
    )


def to_json(validation: Validation) -> dict[str, Any]:
    """What `--out` writes and `--json` prints: plain values."""
    return {
        "format": FORMAT,
        "release": {key: getattr(validation, key) for key in ("name", "version", "digest")},
        **{key: getattr(validation, key) for key in ("site", "adapted", "patients", "took_part", "left_out")},
        "metrics": metrics_json(validation.metrics),
        "gates": [asdict(gate) for gate in validation.gates],
    }


def write(path: Path, values: Mapping[str, Any]) -> None:
    """In one step; ConfigError where it cannot be written there."""
    try:
        write_atomically(path, (json.dumps(values, indent=1, allow_nan=False) + "\n").encode())
    except OSError:
        raise ConfigError(f"{path.name} cannot be written there; give a file in a folder that may be written") from None


def _opened(site: SiteFolder, release: str) -> tuple[Manifest, CampaignConfig, Networks, bool]:
    if release == INSTALLED:
        one = installed(site)
        return one.manifest, one.campaign, one.networks(), one.personal is not None
    from client.installed import arrays_of, fitting

    file = verified(site, Path(release))
    campaign = campaign_of(file)
    return file.manifest, campaign, fitting(campaign, arrays_of(file.files["weights.safetensors"])), False


def _slices(site: SiteFolder, campaign: CampaignConfig, took_part: bool) -> tuple[Slices, int]:
    """What is judged, and how many patients are left out of it."""
    from client.dataset import merge_slices, open_site

    data = open_site(site.store, site.name, campaign)
    if took_part:
        return data.test, data.counts["train_patients"] + data.counts["validation_patients"]
    return merge_slices([data.train, data.validation, data.test]), 0


def _is_headline(key: str) -> bool:
    state, _, name = key.partition(".")
    return state in ("degraded", "enhanced", "clean") and name in HEADLINE
