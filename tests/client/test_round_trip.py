"""Back to the hospital: studies in a real PACS, through ingest, a release and enhancement, and back as derived DICOM.

Orthanc and dicomweb-client judge: neither is ours.
"""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset

from client.cli import main
from client.folder import SiteFolder
from client.ingest.pacs import source_of
from client.ingest.store import Store
from client.releases import install
from shared.config import (
    EnhancerConfig,
    HospitalConfig,
    RecogniserConfig,
    SimulationConfig,
    load,
    save_campaign,
)  # fmt: skip
from simulation.hospitals import write_hospitals
from tests.client.ingest.pacs import orthanc as servers
from tests.client.release_files import authority, released, site_of

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not servers.is_there(), reason=servers.MISSING)]
GEOMETRY = ("Rows", "Columns", "PixelSpacing", "ImageOrientationPatient", "FrameOfReferenceUID")
IDENTITY = ("PatientID", "PatientName", "PatientBirthDate", "PatientSex", "StudyInstanceUID", "StudyDate", "StudyID",
            "AccessionNumber")  # fmt: skip


@dataclass(frozen=True)
class Trip:
    site: SiteFolder
    originals: dict[str, Dataset]
    """SOP instance UID -> image, as it lay on the hospital's disk."""
    study: str
    out: Path
    client: Any
    """dicomweb-client: another's words for the same standard."""


@pytest.fixture(scope="module")
def trip(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trip]:
    place = tmp_path_factory.mktemp("trip")
    config = load("simulation", ["experiment=phantom", "sites=2", "seed=3"], SimulationConfig)
    north = HospitalConfig(name="north", patients=2)
    harbour = HospitalConfig(name="harbour", patients=2)
    config = replace(config, hospitals=replace(config.hospitals, sites=(north, harbour)))
    campaign = replace(
        config.campaign,
        enhance=EnhancerConfig(kind="cnn3", channels=4),
        recognise=RecogniserConfig(kind="unet", channels=4, depth=2),
    )
    hospital = write_hospitals(config, place / "hospitals")[0]
    files = sorted(hospital.rglob("*.dcm"))
    read = [pydicom.dcmread(path) for path in files]
    by = authority()
    site = site_of(place / "site", by)
    save_campaign(campaign, place / "campaign.json")
    with servers.orthanc(place / "orthanc") as server:
        web = {"url": server.url, "user": servers.USER, "password_file": "pacs.password"}
        site.pacs.write_text(json.dumps({"dicomweb": web}))
        (site.folder / "pacs.password").write_text(servers.PASSWORD)
        (site.folder / "pacs.password").chmod(0o600)
        assert source_of(site).send(files).stored == len(files)
        words = ["ingest", str(site.folder), "--pacs", "--campaign", str(place / "campaign.json")]
        words += ["--labels", str(hospital / "site.json"), "--tables", str(hospital / "diagnoses.csv")]
        assert main(words) == 0
        install(site, released(place / "demo.release", campaign, by), dt.datetime.now(dt.UTC))
        images = {str(ds.SOPInstanceUID): ds for ds in read if ds.Modality != "SEG"}
        study = str(next(iter(images.values())).StudyInstanceUID)
        assert main(["enhance", str(site.folder), study, str(place / "out"), "--pacs", "--send", "--draws", "0"]) == 0
        yield Trip(site, images, study, place / "out", _client(server))


def _client(server: servers.Orthanc) -> Any:
    import requests
    from dicomweb_client.api import DICOMwebClient

    session = requests.Session()
    session.auth, session.trust_env = (servers.USER, servers.PASSWORD), False
    return DICOMwebClient(server.url, session=session)


def _series(trip: Trip) -> dict[str, list[Dataset]]:
    """Series of the study in the PACS -> its instances."""
    rows = trip.client.search_for_series(trip.study)
    return {uid: trip.client.retrieve_series(trip.study, uid) for uid in (row["0020000E"]["Value"][0] for row in rows)}


def _derived(trip: Trip) -> tuple[list[Dataset], list[Dataset]]:
    """Images and segmentations that were not there before."""
    before = {str(ds.SeriesInstanceUID) for ds in trip.originals.values()}
    label_uids = set(_labels(trip))
    new = [ds for uid, items in _series(trip).items() if uid not in before for ds in items]
    return [ds for ds in new if ds.Modality != "SEG"], [
        ds for ds in new if ds.Modality == "SEG" and str(ds.SOPInstanceUID) not in label_uids
    ]


def _labels(trip: Trip) -> list[str]:
    folder = trip.out.parent / "hospitals" / "north" / "labels"
    return [str(pydicom.dcmread(path, stop_before_pixels=True).SOPInstanceUID) for path in folder.glob("*.dcm")]


def test_the_store_was_filled_from_the_pacs_with_masks_and_without_identities(trip: Trip) -> None:
    store = Store.open(trip.site.store)
    assert len({record.patient for record in store.series}) == 2
    assert any(record.has_mask for record in store.series)
    index = (trip.site.store / "index.json").read_text()
    assert not any(str(ds.PatientID) in index for ds in trip.originals.values())
    assert not (trip.site.folder / "fetched").exists()


def test_the_pacs_finds_the_derived_series_beside_the_original(trip: Trip) -> None:
    images, segmentations = _derived(trip)
    of_study = [ds for ds in trip.originals.values() if trip.study == ds.StudyInstanceUID]
    assert images
    assert segmentations
    assert all(ds.ImageType[0] == "DERIVED" for ds in images)
    assert {str(ds.SOPInstanceUID) for ds in images}.isdisjoint(trip.originals)
    kept = {str(ds.SOPInstanceUID): ds for items in _series(trip).values() for ds in items}
    for ds in of_study:
        assert kept[str(ds.SOPInstanceUID)].PixelData == ds.PixelData


def test_references_lead_to_the_originals_and_geometry_is_theirs(trip: Trip) -> None:
    images, segmentations = _derived(trip)
    for ds in images:
        sources = [str(item.ReferencedSOPInstanceUID) for item in ds.SourceImageSequence]
        assert len(sources) == 1
        original = trip.originals[sources[0]]
        for keyword in (*GEOMETRY, "ImagePositionPatient"):
            assert ds.get(keyword) == original.get(keyword), keyword
        assert ds.pixel_array.shape == original.pixel_array.shape
    known = set(trip.originals) | {str(ds.SOPInstanceUID) for ds in images}
    positions = {str(ds.ImagePositionPatient) for ds in images}
    for seg in segmentations:
        referenced = {
            str(item.ReferencedSOPInstanceUID)
            for series in seg.ReferencedSeriesSequence
            for item in series.ReferencedInstanceSequence
        }
        assert referenced
        assert referenced <= known
        assert (seg.Rows, seg.Columns) == (images[0].Rows, images[0].Columns)
        assert seg.FrameOfReferenceUID == images[0].FrameOfReferenceUID
        for frame in seg.PerFrameFunctionalGroupsSequence:
            assert str(frame.PlanePositionSequence[0].ImagePositionPatient) in positions


def test_the_hospitals_own_copy_keeps_the_identities_of_the_original(trip: Trip) -> None:
    images, segmentations = _derived(trip)
    original = next(ds for ds in trip.originals.values() if trip.study == ds.StudyInstanceUID)
    for ds in (*images, *segmentations):
        for keyword in IDENTITY:
            assert ds.get(keyword) == original.get(keyword), keyword


def test_what_the_pacs_keeps_is_what_was_written(trip: Trip) -> None:
    written = {str(ds.SOPInstanceUID): ds for ds in map(pydicom.dcmread, trip.out.rglob("*.dcm"))}
    images, segmentations = _derived(trip)
    kept = {str(ds.SOPInstanceUID): ds for ds in (*images, *segmentations)}
    assert kept.keys() == written.keys()
    for uid, ds in kept.items():
        np.testing.assert_array_equal(ds.pixel_array, written[uid].pixel_array)
