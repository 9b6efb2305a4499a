"""The release in force and the site's store in, an adapted enhancer in force out, or a reason why not.

    1  the release, its reference set, the store as the release's campaign reads it
    2  figures before: held-out local test patients, and the reference set
    3  adapt on the training split (client/train/adapt.py); the validation split decides nothing and is not looked at
    4  the same figures after
    5  kept, if every condition holds; else the release stays as it was

The test patients decide whether to keep, not how to adapt: with one adaptation the gain is that of patients whom
nothing was fitted to. Who tries one configuration after another on the same patients and keeps the best has fitted to
them; the record tells the configuration, not how many there were.

An adaptation begins at the release, never at the adaptation in force, so that what is kept depends on the release and
the data alone. One at a time: a lock, which the kernel frees when the process dies. Nothing is written before the
decision; client/installed.py then puts weights and record in force by one rename.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch

from client.dataset import Slices, open_site
from client.evaluate import evaluate
from client.folder import SiteFolder
from client.releases import Installed, drop_personal, installed, keep_personal, writing
from client.train.adapt import adapt, judging
from client.train.alone import alone
from client.train.gates import lower_bound
from shared.config import CampaignConfig, DegradeConfig, LearnConfig, MachineConfig, PersonaliseConfig, to_dict
from shared.errors import ConfigError, RefusedError
from shared.locks import exclusive
from shared.networks import Networks
from shared.trust import keystore
from shared.weights import ENHANCER, to_arrays

if TYPE_CHECKING:
    from shared.reference import Reference

CONFIDENCE = 0.95
LEAST_PATIENTS = 2
Values = npt.NDArray[np.float64]
OnProgress = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True)
class Figures:
    """Of one enhancer; NaN where there is nothing to measure."""

    psnr_db_P: Values
    """Mean over each held-out patient's slices."""
    dice: float
    reference_psnr_db: float
    reference_dice: float


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of one adaptation."""

    kept: bool
    reasons: tuple[str, ...]
    """Why not: each names a figure and its limit."""
    record: Mapping[str, Any]
    """Configuration, adaptation, figures before and after; counts and means alone."""


def personalise(
    site: SiteFolder,
    config: PersonaliseConfig,
    now: dt.datetime,
    *,
    without_reference: bool = False,
    on_progress: OnProgress = lambda stage, done, total: None,
) -> Outcome:
    """Adapt the release in force and keep it only if it is better here and no worse on the reference set.

    Raises ConfigError and DataError for what cannot be adapted, RefusedError where nothing could be decided: a release
    without a reference set, fewer than two held-out patients.
    """
    if config.method == "none":
        raise ConfigError("method=none adapts nothing; choose finetune, lastblocks, fedbn or tgd")
    with _locked(site):
        release = installed(site)
        reference = _reference(release, without_reference)
        data = open_site(site.store, site.name, release.campaign)
        patients = len(set(data.test.patient_N.tolist()))
        if patients < LEAST_PATIENTS:
            raise RefusedError(
                f"a gain needs {LEAST_PATIENTS} held-out patients or more to be told from chance, got {patients}; "
                "ingest more studies"
            )
        networks = release.networks(adapted=False)
        deciding = _deciding(reference) if config.rehearse > 0 else reference
        on_progress("judging the release", 0, 1)
        before = figures_of(networks, data.test, deciding, release.campaign, site.machine)
        on_progress("judging the release", 1, 1)
        adapted, record = adapt(
            networks,
            data.train,
            release.campaign,
            config,
            site.machine,
            reference=reference,
            on_step=lambda done, total: on_progress("adapting", done, total),
        )
        on_progress("judging the adaptation", 0, 1)
        after = figures_of(adapted, data.test, deciding, release.campaign, site.machine)
        on_progress("judging the adaptation", 1, 1)
        reasons = reasons_against(before, after, config)
        record = {
            **record,
            "made_at": now.isoformat(timespec="seconds"),
            "release": release.digest,
            "config": to_dict(config),
            "figures": compared(before, after),
        }
        if not reasons:
            _keep(site, release, adapted, record)
        return Outcome(not reasons, reasons, record)


def drop(site: SiteFolder) -> bool:
    """Back to the release as it came; False where nothing was adapted. Works on a damaged record too."""
    with _locked(site), writing(site):
        release = installed(site, personal=False)
        there = (release.folder / "personal.json").exists()
        drop_personal(release)
        return there


def figures_of(
    networks: Networks, test: Slices, reference: Reference | None, campaign: CampaignConfig, machine: MachineConfig
) -> Figures:
    """Held-out patients by the campaign's own degradation (or pairs), the reference set as it is."""
    values = evaluate(networks, test, campaign, machine).values
    patient_N = test.patient_N.numpy()
    psnr_db_P = np.array([values["enhanced.psnr_db"][patient_N == patient].mean() for patient in np.unique(patient_N)])
    of_reference: Mapping[str, Values] = {}
    if reference is not None:
        of_reference = evaluate(networks, *_as_slices(reference, campaign), machine).values
    return Figures(
        psnr_db_P,
        _mean(values, "enhanced.dice"),
        _mean(of_reference, "enhanced.psnr_db"),
        _mean(of_reference, "enhanced.dice"),
    )


def reasons_against(before: Figures, after: Figures, config: PersonaliseConfig) -> tuple[str, ...]:
    """Every condition that does not hold. What is not finite holds nothing."""
    reasons = []
    least = gain_bound_db(before, after)
    if not least > config.least_gain_db:
        reasons.append(
            f"held-out patients gain {_gain_db(before, after):.3f} dB, at least {least:.3f} dB with 95 % confidence; "
            f"more than least_gain_db={config.least_gain_db:g} is needed"
        )
    for what, unit, limit_name, old, new in (
        ("PSNR", " dB", "margin_db", before.reference_psnr_db, after.reference_psnr_db),
        ("Dice", "", "margin_dice", before.reference_dice, after.reference_dice),
    ):
        if not np.isnan(old) and not old - new <= getattr(config, limit_name):
            reasons.append(
                f"the release's reference set loses {old - new:.3f}{unit} of {what}, more than "
                f"{limit_name}={getattr(config, limit_name):g}"
            )
    return tuple(reasons)


def gain_bound_db(before: Figures, after: Figures) -> float:
    """Lower bound of a one-sided 95 % interval of the mean paired gain over patients (Student)."""
    return float(lower_bound(torch.from_numpy(after.psnr_db_P - before.psnr_db_P), CONFIDENCE))


def compared(before: Figures, after: Figures) -> dict[str, Any]:
    """For the record: None where there was nothing to measure."""
    pairs = {
        "psnr_db": (float(before.psnr_db_P.mean()), float(after.psnr_db_P.mean())),
        "dice": (before.dice, after.dice),
        "reference.psnr_db": (before.reference_psnr_db, after.reference_psnr_db),
        "reference.dice": (before.reference_dice, after.reference_dice),
    }
    found: dict[str, Any] = {"patients": len(before.psnr_db_P)}
    for name, (old, new) in pairs.items():
        found[name] = None if np.isnan(old) else {"before": old, "after": new}
    return {**found, "gain_db": _gain_db(before, after), "gain_bound_db": gain_bound_db(before, after)}


def _gain_db(before: Figures, after: Figures) -> float:
    return float((after.psnr_db_P - before.psnr_db_P).mean())


def _mean(values: Mapping[str, Values], key: str) -> float:
    """Over the images that have the metric; NaN where there is none."""
    finite = np.asarray(values.get(key, []), dtype=np.float64)
    finite = finite[np.isfinite(finite)]
    return float(finite.mean()) if finite.size else float("nan")


def _reference(release: Installed, without: bool) -> Reference | None:
    reference = release.reference()
    if reference is not None and len(reference):
        return reference
    if not without:
        raise RefusedError(
            "the release has no reference set, so nothing could tell what an adaptation forgets; to adapt it all the "
            "same: --without-reference"
        )
    return None


def _deciding(reference: Reference | None) -> Reference | None:
    """The reference images that are not rehearsed."""
    if reference is None:
        return None
    rest = judging(len(reference))
    return replace(
        reference,
        clean_NCHW=reference.clean_NCHW[rest],
        degraded_NCHW=reference.degraded_NCHW[rest],
        mask_NHW=reference.mask_NHW[rest],
        has_mask_N=reference.has_mask_N[rest],
    )


def _as_slices(reference: Reference, campaign: CampaignConfig) -> tuple[Slices, CampaignConfig]:
    """The reference set as pairs, and a campaign that reads pairs."""
    count = len(reference)
    slices = Slices(
        clean_NCHW=reference.clean_NCHW,
        mask_NHW=reference.mask_NHW,
        has_mask_N=reference.has_mask_N.bool(),
        diagnosis_N=torch.full((count,), -1),
        patient_N=torch.arange(count),
        identity=tuple(f"reference/{number}" for number in range(count)),
        degraded_NCHW=reference.degraded_NCHW,
    )
    pairs = alone(
        campaign,
        campaign.training,
        degrade=DegradeConfig(kind="pairs"),
        enhance=replace(campaign.enhance, data_consistency=False),
        learn=LearnConfig(segment=campaign.learn.segment, diagnose=campaign.learn.diagnose),
    )
    return slices, pairs


def _keep(site: SiteFolder, release: Installed, adapted: Networks, record: Mapping[str, Any]) -> None:
    weights = {name: values for name, values in to_arrays(adapted).items() if name.startswith(ENHANCER)}
    with writing(site):
        if installed(site, personal=False).digest != release.digest:
            raise RefusedError(
                "another release came into force meanwhile, so the adaptation is not kept; start it again"
            )
        keep_personal(release, weights, record)


def _locked(site: SiteFolder) -> AbstractContextManager[None]:
    return exclusive(
        keystore.private_folder(site.folder / "releases") / ".personalise.lock",
        busy="another personalise is at work at this site; wait until it ends",
        unwritable="the folder of releases cannot be written; check its permissions and the disk",
    )
