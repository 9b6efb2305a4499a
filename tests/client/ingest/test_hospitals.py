"""Simulated hospitals end to end: images, both kinds of SEG, the table, real pairs, and no identity left."""

from __future__ import annotations

import csv
import json
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import numpy as np
import pydicom
import pytest

from client.ingest.keys import keyed_id
from client.ingest.reasons import IngestReport
from client.ingest.run import ingest
from client.ingest.series import lookup_key
from client.ingest.store import Store
from shared.config import HospitalConfig, SimulationConfig, load
from simulation.hospitals import write_hospitals

SECRET = b"h" * 32
NORTH = HospitalConfig(name="north", patients=3, labelled=0.67, paired=1.0)
HARBOUR = HospitalConfig(name="harbour", patients=2, mask_codes={"organ": 5, "lesion": 9}, diagnosed=0.5)


@pytest.fixture(scope="module")
def sites(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Path, IngestReport]]:
    """Site -> its folder, its store and the report."""
    folder = tmp_path_factory.mktemp("hospitals")
    config = load("simulation", ["experiment=phantom", "sites=2", "seed=3"], SimulationConfig)
    config = replace(config, hospitals=replace(config.hospitals, sites=(NORTH, HARBOUR)))
    found = {}
    for site in write_hospitals(config, folder / "written"):
        words = json.loads((site / "site.json").read_text())
        codes = {key: words[key] for key in ("mask_codes", "diagnosis_codes")}
        store = folder / "stores" / site.name
        found[site.name] = (site, store, ingest(site, store, config.campaign.data, secret=SECRET, **codes))
    return found


def volumes(site: Path) -> dict[str, list[pydicom.Dataset]]:
    """Keyed patient -> the slices of the clean series, by a second and slower way."""
    series = defaultdict(list)
    for path in (site / "studies").rglob("*.dcm"):
        ds = pydicom.dcmread(path)
        if "LOW" not in ds.SeriesDescription:
            series[keyed_id(SECRET, "patient", "", ds.PatientID)].append(ds)
    return {key: sorted(slices, key=lambda ds: ds.ImagePositionPatient[2]) for key, slices in series.items()}


def test_nothing_is_quarantined_and_every_file_is_counted(sites: dict[str, tuple[Path, Path, IngestReport]]) -> None:
    for site, _, report in sites.values():
        assert report.files == sum(path.is_file() for path in site.rglob("*"))
        assert report.count("quarantined") == 0
    north, harbour = sites["north"][2], sites["harbour"][2]
    assert (north.patients, north.series_new, north.pairs, north.masks, north.diagnoses) == (3, 6, 3, 2, 6)
    assert (harbour.patients, harbour.series_new, harbour.pairs, harbour.masks, harbour.diagnoses) == (2, 2, 0, 2, 1)


@pytest.mark.parametrize("name", ["north", "harbour"])
def test_pixels_are_those_of_the_files_in_the_campaigns_window(
    sites: dict[str, tuple[Path, Path, IngestReport]], name: str
) -> None:
    site, folder, _ = sites[name]
    store, written = Store.open(folder), volumes(site)
    clean = [record for record in store.series if record.role == "image"]
    assert len(clean) == len(written)
    for record in clean:
        hu = np.stack([ds.pixel_array * float(ds.RescaleSlope) + float(ds.RescaleIntercept)
                       for ds in written[record.patient]])  # fmt: skip
        expected = np.clip((hu + 160) / 400, 0, 1)
        np.testing.assert_allclose(store.image(record.key)[:, 0], expected, atol=1e-6)


def test_masks_and_diagnoses_reach_their_patient_in_campaign_codes(
    sites: dict[str, tuple[Path, Path, IngestReport]],
) -> None:
    for name, codes in (("north", {1: 1, 2: 2}), ("harbour", {5: 1, 9: 2})):
        site, folder, _ = sites[name]
        store = Store.open(folder)
        ids = {keyed_id(SECRET, "patient", "", row.name): row.name for row in (site / "studies").iterdir()}
        with (site / "diagnoses.csv").open() as file:
            words = {row["PatientID"]: row["diagnosis"] for row in csv.DictReader(file)}
        for record in (record for record in store.series if record.role == "image"):
            patient = ids[record.patient]
            assert record.diagnosis == {None: -1, "none": 0, "lesion": 1}[words.get(patient)]
            label = site / "labels" / f"{patient}.dcm"
            assert record.has_mask == label.exists()
            mask = store.mask(record.key)
            if mask is not None:
                ds = pydicom.dcmread(label)
                voxels = _voxels(ds)
                assert {code: int((mask == code).sum()) for code in (1, 2)} == {
                    codes[number]: voxels.get(number, 0) for number in codes
                }
                image = store.image(record.key)[:, 0]
                assert image[mask == 1].mean() > image[mask == 0].mean() + 0.2, "the organ is where the mask is"


def _voxels(ds: pydicom.Dataset) -> dict[int, int]:
    """Segment number -> voxels, straight from the file."""
    pixels = ds.pixel_array.reshape(-1, ds.Rows, ds.Columns)
    if ds.SegmentationType == "LABELMAP":
        return {int(number): int((pixels == number).sum()) for number in np.unique(pixels) if number}
    counts: dict[int, int] = defaultdict(int)
    for frame, group in zip(pixels, ds.PerFrameFunctionalGroupsSequence, strict=True):
        counts[int(group.SegmentIdentificationSequence[0].ReferencedSegmentNumber)] += int(frame.sum())
    return counts


def test_the_degraded_partner_is_the_same_anatomy_with_more_noise(
    sites: dict[str, tuple[Path, Path, IngestReport]],
) -> None:
    store = Store.open(sites["north"][1])
    clean = [record for record in store.series if record.role == "image"]
    for record in clean:
        assert record.pair is not None
        partner = store.record(record.pair)
        assert (partner.role, partner.patient, partner.shape) == ("degraded", record.patient, record.shape)
        image, low = store.image(record.key), store.image(partner.key)
        assert np.corrcoef(image.ravel(), low.ravel())[0, 1] > 0.9
        assert np.abs(np.diff(low, axis=-1)).mean() > np.abs(np.diff(image, axis=-1)).mean()


def test_no_invented_identity_is_in_the_store(sites: dict[str, tuple[Path, Path, IngestReport]]) -> None:
    for site, folder, _ in sites.values():
        values: set[str] = {site_file.stem for site_file in (site / "labels").iterdir()}
        for path in (site / "studies").rglob("*.dcm"):
            ds = pydicom.dcmread(path, stop_before_pixels=True)
            values |= {
                str(element.value)
                for element in ds.iterall()
                if element.VR in ("PN", "LO", "SH", "ST", "LT", "UI", "DA")
                and element.keyword not in ("Manufacturer", "ManufacturerModelName", "ConvolutionKernel", "SOPClassUID")
                and not str(element.value).startswith("1.2.840.10008")
                and len(str(element.value)) > 4
            }
        assert len(values) > 20
        content = b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file()).lower()
        assert [value for value in values if value.lower().encode() in content] == []
        assert lookup_key("x", SECRET) != keyed_id(SECRET, "patient", "", "x")
