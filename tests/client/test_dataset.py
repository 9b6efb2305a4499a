from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from client.dataset import merge, open_site, split_patients
from client.ingest.store import ARRAYS, Index, SeriesRecord, array_path, campaign_rule, write_array, write_index
from shared.config import CampaignConfig, DegradeConfig
from shared.errors import DataError


def write_store(
    folder: Path, campaign: CampaignConfig, records: Sequence[SeriesRecord], rule: Mapping[str, object] | None = None
) -> Path:
    """A store whose image values are the record's place in the list, and whose masks are 1 in one pixel."""
    (folder / ARRAYS).mkdir(parents=True)
    for number, record in enumerate(records):
        write_array(array_path(folder, record, "image"), np.full(record.shape, number / 100, np.float32))
        if record.has_mask:
            depth, _, height, width = record.shape
            mask = np.zeros((depth, height, width), np.uint8)
            mask[:, height // 2, width // 2] = 1
            write_array(array_path(folder, record, "mask"), mask)
    index = Index(
        {"campaign": rule or campaign_rule(campaign.data)}, "check", 0, {record.key: record for record in records}
    )
    write_index(folder, index)
    return folder


def hexed(name: str) -> str:
    return name.encode().hex()


def series(patient: str, **changes: object) -> SeriesRecord:
    record = SeriesRecord(hexed(patient), patient, "study", "CT", (3, 1, 20, 40), (1.0, 1.0, 1.0), True, 0)
    return replace(record, **changes)  # type: ignore[arg-type]


def some_patients(count: int, masked: int) -> list[SeriesRecord]:
    return [
        series(f"p{number:02}", has_mask=number < masked, diagnosis=number % 3 - 1, shape=(number % 3 + 1, 1, 20, 40))
        for number in range(count)
    ]


def test_every_slice_is_in_one_split_on_the_campaigns_grid(campaign: CampaignConfig, tmp_path: Path) -> None:
    records = some_patients(12, masked=6)
    data = open_site(write_store(tmp_path / "store", campaign, records), "a", campaign)
    parts = (data.train, data.validation, data.test)
    names = [name for part in parts for name in part.identity]
    assert sorted(names) == sorted(f"a/{record.key}/{d}" for record in records for d in range(record.shape[0]))
    for part in parts:
        assert part.clean_NCHW.shape == (len(part), 1, 32, 32)
        assert part.mask_NHW.shape == (len(part), 32, 32)
        for place, name in enumerate(part.identity):
            record = next(record for record in records if record.key == name.split("/")[1])
            value = records.index(record) / 100
            # 20 x 40 becomes 32 x 32: six empty rows above, four columns cut on each side.
            assert torch.allclose(part.clean_NCHW[place, 0, 6:26], torch.tensor(value))
            assert part.clean_NCHW[place, 0, :6].abs().max() == 0
            assert int(part.mask_NHW[place].sum()) == int(record.has_mask)
            assert int(part.mask_NHW[place, 16, 16]) == int(record.has_mask)
            assert bool(part.has_mask_N[place]) == record.has_mask
            assert int(part.diagnosis_N[place]) == record.diagnosis


def test_counts_are_the_data_sheets(campaign: CampaignConfig, tmp_path: Path) -> None:
    records = some_patients(12, masked=6)
    data = open_site(write_store(tmp_path / "store", campaign, records), "a", campaign)
    assert data.counts["patients"] == data.counts["series"] == 12
    assert data.counts["slices"] == sum(record.shape[0] for record in records)
    assert data.counts["masks"] == 6
    assert data.counts["diagnoses.none"] == data.counts["diagnoses.lesion"] == 4
    splits = [data.counts[f"{name}_patients"] for name in ("train", "validation", "test")]
    assert sum(splits) == 12
    assert min(splits[0], splits[2]) >= 1


@pytest.mark.parametrize("patients", [2, 3, 4, 7, 20])
@pytest.mark.parametrize("masked", [0, 1, 2, 5])
def test_a_split_keeps_patients_apart_and_labels_in_train_and_test(
    campaign: CampaignConfig, patients: int, masked: int
) -> None:
    masked = min(masked, patients)
    known = {f"p{number}": (number < masked, number % 2) for number in range(patients)}
    train, validation, test = split_patients(known, campaign)
    assert sorted([*train, *validation, *test]) == sorted(known)
    assert train
    assert test
    if masked:
        assert any(known[name][0] for name in train)
    if masked >= 2:
        assert any(known[name][0] for name in test)
    assert (train, validation, test) == split_patients(dict(reversed(known.items())), campaign)


def test_the_test_split_sees_every_diagnosis_that_there_is_enough_of(campaign: CampaignConfig) -> None:
    known = {f"p{number}": (False, int(number >= 16)) for number in range(20)}
    for seed in range(5):
        _, _, test = split_patients(known, replace(campaign, seed=seed))
        assert {known[name][1] for name in test} == {0, 1}


def test_another_seed_splits_otherwise(campaign: CampaignConfig) -> None:
    known = {f"p{number}": (True, -1) for number in range(20)}
    assert split_patients(known, campaign)[2] != split_patients(known, replace(campaign, seed=1))[2]


def test_a_missing_store_is_refused(campaign: CampaignConfig, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no store"):
        open_site(tmp_path / "nowhere", "a", campaign)


def test_an_empty_store_is_refused(campaign: CampaignConfig, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no series"):
        open_site(write_store(tmp_path / "store", campaign, []), "a", campaign)


def test_a_single_patient_is_refused(campaign: CampaignConfig, tmp_path: Path) -> None:
    records = [series("p0"), series("p0", key=hexed("second"))]
    with pytest.raises(DataError, match="two patients or more .* got 1"):
        open_site(write_store(tmp_path / "store", campaign, records), "a", campaign)


def test_no_label_anywhere_is_refused(campaign: CampaignConfig, tmp_path: Path) -> None:
    records = [series(name, has_mask=False, diagnosis=-1) for name in "abc"]
    with pytest.raises(DataError, match="mask or a diagnosis"):
        open_site(write_store(tmp_path / "store", campaign, records), "a", campaign)


@pytest.mark.parametrize("label", ["mask", "diagnosis"])
def test_labels_that_the_campaign_has_no_name_for_are_refused(
    campaign: CampaignConfig, tmp_path: Path, label: str
) -> None:
    records = [series("a"), series("b", diagnosis=99 if label == "diagnosis" else 0), series("c")]
    store = write_store(tmp_path / "store", campaign, records)
    if label == "mask":
        path = array_path(store, records[1], "mask")
        np.save(path, np.full(np.load(path).shape, len(campaign.data.masks) + 1, np.uint8))
    with pytest.raises(DataError, match="none of data.masks and data.diagnoses"):
        open_site(store, "a", campaign)


def test_a_store_of_another_rule_is_refused(campaign: CampaignConfig, tmp_path: Path) -> None:
    other = campaign_rule(replace(campaign.data, masks=("organ", "cyst")))
    store = write_store(tmp_path / "store", campaign, [series("a"), series("b")], other)
    with pytest.raises(DataError, match="another rule"):
        open_site(store, "a", campaign)


def with_pairs(campaign: CampaignConfig) -> CampaignConfig:
    return replace(campaign, degrade=DegradeConfig(kind="pairs"))


def test_real_pairs_stand_beside_their_clean_slices(campaign: CampaignConfig, tmp_path: Path) -> None:
    clean = [series(name, pair=hexed("low" + name)) for name in "abcd"]
    degraded = [series(name, key=hexed("low" + name), role="degraded", has_mask=False) for name in "abcd"]
    records = [*clean, *degraded, series("e")]
    data = open_site(write_store(tmp_path / "store", campaign, records), "s", with_pairs(campaign))
    assert data.counts["patients"] == 4  # e has no partner
    for part in (data.train, data.test):
        assert part.degraded_NCHW is not None
        difference = (part.degraded_NCHW - part.clean_NCHW)[:, 0, 10, 10]
        assert torch.allclose(difference, torch.tensor(0.04))


def test_degraded_partners_are_no_training_images_of_their_own(campaign: CampaignConfig, tmp_path: Path) -> None:
    records = [series(name, pair=hexed("low" + name)) for name in "ab"]
    records += [series(name, key=hexed("low" + name), role="degraded", has_mask=False) for name in "ab"]
    data = open_site(write_store(tmp_path / "store", campaign, records), "s", campaign)
    assert data.counts["series"] == 2
    assert data.train.degraded_NCHW is None


def test_pairs_without_a_pair_are_refused(campaign: CampaignConfig, tmp_path: Path) -> None:
    store = write_store(tmp_path / "store", campaign, [series("a"), series("b")])
    with pytest.raises(DataError, match="degraded partner"):
        open_site(store, "s", with_pairs(campaign))


def test_merging_keeps_identities_and_keeps_patients_apart(campaign: CampaignConfig, tmp_path: Path) -> None:
    sites = [
        open_site(write_store(tmp_path / name, campaign, some_patients(6, masked=3)), name, campaign) for name in "ab"
    ]
    pooled = merge(sites)
    assert pooled.site == "pooled"
    assert pooled.train.identity == sites[0].train.identity + sites[1].train.identity
    patients = [len(set(data.train.patient_N.tolist())) for data in (*sites, pooled)]
    assert patients[2] == patients[0] + patients[1]
    assert pooled.counts["slices"] == sites[0].counts["slices"] + sites[1].counts["slices"]
    assert torch.equal(pooled.test.clean_NCHW, torch.cat([data.test.clean_NCHW for data in sites]))
