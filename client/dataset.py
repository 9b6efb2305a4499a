"""A site's store in, its slices out: on the campaign's grid, split by patient, as tensors.

A patient is in exactly one of train, validation and test, by a rule that needs no file: patients with and without masks
are shared out apart, spread over the diagnoses and within each ordered by a hash of (campaign.seed, pseudonym), so that
test and training both see every label that there is enough of. All slices of a site are held in memory (64 x 64: 16 kB
each).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from client.ingest.store import SeriesRecord, Store, rule_digest
from client.labels import scarce
from shared.config import CampaignConfig, SplitConfig
from shared.errors import DataError
from shared.images.intensity import pad_or_crop


@dataclass(frozen=True, slots=True, eq=False)
class Slices:
    """All slices of the patients of one split; N slices."""

    clean_NCHW: Tensor
    """float32 on the campaign's scale."""
    mask_NHW: Tensor
    """uint8 campaign codes; 0 where `has_mask_N` is False."""
    has_mask_N: Tensor
    diagnosis_N: Tensor
    """int64, -1 unknown; a patient's diagnosis stands on each of its slices."""
    patient_N: Tensor
    """int64 index of the patient, unique within this value."""
    identity: tuple[str, ...]
    """Site, series key and slice number: stays with the slice when sites are merged."""
    degraded_NCHW: Tensor | None = None
    """The real degraded partner of each slice, where the campaign learns from pairs."""
    spacing_N2: Tensor | None = None
    """float32 row and column spacing in mm; 0 where the store does not know it."""
    acquired: tuple[tuple[str, str], ...] = ()
    """Modality (0008,0060) and Body Part Examined (0018,0015) of each slice, as its store has them: for prompts alone,
    and not to be told to anybody."""
    synthetic: Synthetic | None = None
    """What a generator drew from these slices; only of a training split."""

    def __len__(self) -> int:
        return self.clean_NCHW.shape[0]


@dataclass(frozen=True, slots=True, eq=False)
class Synthetic:
    """Images that a generator drew, each for one slice of a training split, whose mask it has; S images."""

    image_SCHW: Tensor
    """float32 on the campaign's scale."""
    source_S: Tensor
    """int64 index of the slice."""
    diagnosis_S: Tensor
    """int64 that of the slice, or the one that was asked for instead; -1 unknown."""

    def __len__(self) -> int:
        return self.image_SCHW.shape[0]


@dataclass(frozen=True, slots=True, eq=False)
class SiteData:
    """One site's three splits, and counts for its data sheet."""

    site: str
    train: Slices
    validation: Slices
    test: Slices
    counts: Mapping[str, int]
    """patients, series, slices, masks (series with one), diagnoses.<name> and train/validation/test_patients."""


def open_site(store: Path, site: str, campaign: CampaignConfig) -> SiteData:
    """Read a site's store for a campaign.

    Raises DataError: no store or an empty one, a store made by another rule, fewer than two patients, no label of any
    kind, and for `degrade=pairs` no pair.
    """
    opened = Store.open(store)
    if opened.rule_digest != rule_digest(campaign.data):
        raise DataError(
            "the store was ingested by another rule than the campaign's (modalities, spacing, intensity, masks, "
            "diagnoses); ingest again into a new store for this campaign"
        )
    records = [record for record in opened.series if record.role == "image"]
    if campaign.degrade.kind == "pairs":
        records = [record for record in records if record.pair is not None]
        if not records:
            raise DataError("degrade=pairs needs series with a degraded partner, got none; choose another degrade=")
    patients = _patients(records)
    if len(patients) < 2:
        raise DataError(
            f"a site needs two patients or more (one to train, one to test), got {len(patients)}; ingest more studies"
        )
    labelled = any(record.has_mask or record.diagnosis >= 0 for record in records)
    if not labelled and not campaign.learn.streams:  # streams of unlabelled images are something to learn from
        raise DataError("no series of the store has a mask or a diagnosis; ingest the site's labels with its images")
    train, validation, test = (
        _slices(opened, [record for record in records if record.patient in chosen], site, campaign)
        for chosen in split_patients(patients, campaign)
    )
    counts = _counts((train, validation, test), records, patients, campaign)
    budget = (campaign.data.labels or {}).get(site)
    if budget is not None:
        train = scarce(train, budget, campaign.seed)
    return SiteData(site, train, validation, test, counts)


def _patients(records: Sequence[SeriesRecord]) -> dict[str, tuple[bool, int]]:
    """Pseudonym -> (any mask, diagnosis)."""
    patients: dict[str, tuple[bool, int]] = {}
    for record in records:
        has_mask, diagnosis = patients.get(record.patient, (False, -1))
        patients[record.patient] = (has_mask or record.has_mask, max(diagnosis, record.diagnosis))
    return patients


def split_patients(
    patients: Mapping[str, tuple[bool, int]], campaign: CampaignConfig
) -> tuple[set[str], set[str], set[str]]:
    """(has a mask, diagnosis) by pseudonym in, the pseudonyms of train, validation and test out.

    Train and test hold one patient or more. Masked patients are shared out on their own, so each split has its part of
    them; a single masked patient trains.
    """

    def order(name: str) -> tuple[int, str]:
        return patients[name][1], hashlib.sha256(f"{campaign.seed}\x1f{name}".encode()).hexdigest()

    assert len(patients) >= 2
    train: set[str] = set()
    validation: set[str] = set()
    test: set[str] = set()
    groups = [[name for name in sorted(patients, key=order) if patients[name][0] is wanted] for wanted in (True, False)]
    sizes = [_shares(len(group), campaign.data.split) for group in groups]
    if not any(size[2] for size in sizes) or not any(size[0] for size in sizes):
        # One patient with a mask and one without: the labelled one trains.
        sizes = [(1, 0, 0), (0, 0, 1)]
    for group, (_, num_validation, num_test) in zip(groups, sizes, strict=True):
        for_test = _spread(group, num_test)
        rest = [name for name in group if name not in for_test]
        for_validation = _spread(rest, num_validation)
        test |= for_test
        validation |= for_validation
        train |= set(rest) - for_validation
    return train, validation, test


def _spread(names: Sequence[str], count: int) -> set[str]:
    """`count` names at even distances: of names ordered by diagnosis, every diagnosis its part."""
    return {names[(2 * place + 1) * len(names) // (2 * count)] for place in range(count)}


def _shares(patients: int, split: SplitConfig) -> tuple[int, int, int]:
    """Whole patients of each split: one or more in test and train where there are two, the first in train."""
    if patients < 2:
        return patients, 0, 0
    test = min(max(1, round(split.test * patients)), patients - 1)
    validation = min(round(split.validation * patients), patients - test - 1)
    return patients - test - validation, validation, test


def _slices(store: Store, records: Sequence[SeriesRecord], site: str, campaign: CampaignConfig) -> Slices:
    size, channels = campaign.data.image_size, campaign.data.channels
    index = {name: number for number, name in enumerate(sorted({record.patient for record in records}))}
    clean, degraded, masks, identity, spacing, acquired = [], [], [], [], [], []
    for record in records:
        image_DCHW = _image(store, record.key, campaign)
        clean.append(image_DCHW)
        if campaign.degrade.kind == "pairs":
            assert record.pair is not None
            degraded.append(_image(store, record.pair, campaign))
        mask_DHW = store.mask(record.key)
        empty_DHW = torch.zeros(len(image_DCHW), *size, dtype=torch.uint8)
        _check_codes(record, 0 if mask_DHW is None else int(mask_DHW.max(initial=0)), campaign)
        masks.append(empty_DHW if mask_DHW is None else pad_or_crop(torch.from_numpy(np.array(mask_DHW)), size))
        identity += [f"{site}/{record.key}/{number}" for number in range(len(image_DCHW))]
        spacing += [record.spacing_mm[1:]] * len(image_DCHW)
        acquired += [(record.modality, record.header.get("BodyPartExamined", ""))] * len(image_DCHW)
    none = torch.zeros(0, channels, *size)

    def repeated(values: list[int]) -> Tensor:
        return torch.tensor(values, dtype=torch.int64).repeat_interleave(torch.tensor([len(c) for c in clean]).long())

    return Slices(
        clean_NCHW=torch.cat(clean) if clean else none,
        mask_NHW=torch.cat(masks) if masks else none[:, 0].byte(),
        has_mask_N=repeated([int(record.has_mask) for record in records]).bool(),
        diagnosis_N=repeated([record.diagnosis for record in records]),
        patient_N=repeated([index[record.patient] for record in records]),
        identity=tuple(identity),
        degraded_NCHW=(torch.cat(degraded) if degraded else none) if campaign.degrade.kind == "pairs" else None,
        spacing_N2=torch.tensor(spacing, dtype=torch.float32).reshape(-1, 2),
        acquired=tuple(acquired),
    )


def _check_codes(record: SeriesRecord, largest: int, campaign: CampaignConfig) -> None:
    """DataError for a label that the campaign has no name for; the digest of the index says nothing of array files."""
    if largest > len(campaign.data.masks) or record.diagnosis >= len(campaign.data.diagnoses):
        raise DataError(
            "a series of the store has a label that is none of data.masks and data.diagnoses; ingest the source folder "
            "again"
        )


def _image(store: Store, key: str, campaign: CampaignConfig) -> Tensor:
    image_DCHW = torch.from_numpy(np.array(store.image(key)))
    if image_DCHW.shape[1] != campaign.data.channels:
        raise DataError(f"data.channels is {campaign.data.channels}, a series of the store has {image_DCHW.shape[1]}")
    return pad_or_crop(image_DCHW, campaign.data.image_size)


def _counts(
    parts: Sequence[Slices],
    records: Sequence[SeriesRecord],
    patients: Mapping[str, tuple[bool, int]],
    campaign: CampaignConfig,
) -> dict[str, int]:
    counts = {
        "patients": len(patients),
        "series": len(records),
        "slices": sum(len(part) for part in parts),
        "masks": sum(record.has_mask for record in records),
    }
    for code, name in enumerate(campaign.data.diagnoses):
        counts[f"diagnoses.{name}"] = sum(diagnosis == code for _, diagnosis in patients.values())
    for name, part in zip(("train", "validation", "test"), parts, strict=True):
        counts[f"{name}_patients"] = len(set(part.patient_N.tolist()))
    return counts


def merge(datas: Sequence[SiteData], site: str = "pooled") -> SiteData:
    """All sites' data in one place, split as they were: only a simulation can do this."""
    counts: dict[str, int] = {}
    for data in datas:
        for key, value in data.counts.items():
            counts[key] = counts.get(key, 0) + value
    train, validation, test = (
        merge_slices([getattr(data, name) for data in datas]) for name in ("train", "validation", "test")
    )
    return SiteData(site, train, validation, test, counts)


def merge_slices(parts: Sequence[Slices]) -> Slices:
    """Slices one after the other; patients of different parts stay different."""
    offset, patients = 0, []
    for part in parts:
        patients.append(part.patient_N + offset)
        offset += int(part.patient_N.max()) + 1 if len(part) else 0
    degraded = [part.degraded_NCHW for part in parts if part.degraded_NCHW is not None]
    assert len(degraded) in (0, len(parts)), "one campaign, so all parts have pairs or none"
    spacing = [part.spacing_N2 for part in parts if part.spacing_N2 is not None]
    acquired = tuple(words for part in parts for words in part.acquired)
    return Slices(
        clean_NCHW=torch.cat([part.clean_NCHW for part in parts]),
        mask_NHW=torch.cat([part.mask_NHW for part in parts]),
        has_mask_N=torch.cat([part.has_mask_N for part in parts]),
        diagnosis_N=torch.cat([part.diagnosis_N for part in parts]),
        patient_N=torch.cat(patients),
        identity=tuple(name for part in parts for name in part.identity),
        degraded_NCHW=torch.cat(degraded) if degraded else None,
        spacing_N2=torch.cat(spacing) if len(spacing) == len(parts) else None,
        acquired=acquired,
        synthetic=_merged_synthetic(parts),
    )


def _merged_synthetic(parts: Sequence[Slices]) -> Synthetic | None:
    found, offset = [], 0
    for part in parts:
        if part.synthetic is not None:
            found.append(replace(part.synthetic, source_S=part.synthetic.source_S + offset))
        offset += len(part)
    if not found:
        return None
    return Synthetic(
        torch.cat([each.image_SCHW for each in found]),
        torch.cat([each.source_S for each in found]),
        torch.cat([each.diagnosis_S for each in found]),
    )
