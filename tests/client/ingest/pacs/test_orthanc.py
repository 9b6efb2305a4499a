"""A real PACS: what is sent is found, comes back by three ways with the same pixels, and reaches the store once."""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom.data import get_testdata_file

from client import folder
from client.cli import main
from client.ingest.pacs import connect
from client.ingest.pacs.config import DicomwebConfig, DimseConfig, ListenConfig, Pacs
from client.ingest.pacs.source import Failure, Source
from client.ingest.store import Store
from shared.config import CampaignConfig, save_campaign
from shared.errors import RefusedError
from shared.trust import certificates
from tests.client.ingest.conftest import write_series
from tests.client.ingest.pacs import orthanc as servers

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not servers.is_there(), reason=servers.MISSING)]
ODD = ("693_J2KI.dcm", "MR_small_RLE.dcm", "MR_small_jpeg_ls_lossless.dcm", "CT_small.dcm", "image_dfl.dcm")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[servers.Orthanc]:
    with servers.orthanc(tmp_path_factory.mktemp("orthanc")) as server:
        yield server


@pytest.fixture(scope="module")
def sources(server: servers.Orthanc, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Source]:
    secret = tmp_path_factory.mktemp("secret") / "password"
    secret.write_text(servers.PASSWORD + "\n")
    secret.chmod(0o600)
    web = DicomwebConfig(url=server.url, user=servers.USER, password_file=str(secret))
    dimse = DimseConfig(host="127.0.0.1", port=server.dicom, title=servers.TITLE)
    listen = ListenConfig(port=server.ours)
    return {
        "dicomweb": connect(Pacs(dicomweb=web)),
        "get": connect(Pacs(title=servers.OURS, dimse=dimse)),
        "move": connect(Pacs(title=servers.OURS, dimse=replace(dimse, retrieve="move"), listen=listen)),
        "rogue": connect(Pacs(title="ROGUE", dimse=dimse)),
        "no password": connect(Pacs(dicomweb=DicomwebConfig(url=server.url))),
    }


def pixels(paths: Any) -> dict[str, np.ndarray]:
    return {str(ds.SOPInstanceUID): ds.pixel_array for ds in map(pydicom.dcmread, paths)}


def test_three_ways_in_give_the_pixels_that_two_ways_out_took(tmp_path: Path, sources: dict[str, Source]) -> None:
    series = write_series(tmp_path / "in", 3, BodyPartExamined="BRAIN")
    others = write_series(tmp_path / "in", 2, patient="2", BodyPartExamined="CHEST")
    odd = [Path(str(get_testdata_file(name, download=False))) for name in ODD]
    first, second = sources["dicomweb"].send([*series, *odd]), sources["get"].send([*others, *odd])
    assert (first.stored, first.failed, second.stored, second.failed) == (8, {}, 7, {})
    sent = pixels([*series, *others, *odd])
    for name in ("dicomweb", "get", "move"):
        source = sources[name]
        assert "answers" in source.echo()
        assert len(source.find("CT", "BRAIN")) == len(source.find("CT", "chest")) == 1
        studies = {study.uid for modality in ("CT", "MR", "NM", "OT") for study in source.find(modality)}
        got: dict[str, np.ndarray] = {}
        for number, uid in enumerate(sorted(studies)):
            place = tmp_path / name / str(number)
            place.mkdir(parents=True)
            fetched = source.fetch(uid, place)
            assert fetched.failed == {}, name
            got |= pixels(fetched.files)
        assert got.keys() == sent.keys(), name
        for uid, image in sent.items():
            np.testing.assert_array_equal(got[uid], image)


def test_who_is_not_known_is_refused(sources: dict[str, Source]) -> None:
    for name in ("rogue", "no password"):
        with pytest.raises(RefusedError):
            sources[name].echo()


@pytest.mark.parametrize("name", ["dicomweb", "get", "move"])
def test_a_study_that_is_gone_is_counted(tmp_path: Path, sources: dict[str, Source], name: str) -> None:
    fetched = sources[name].fetch("1.2.3.4.5", tmp_path)
    assert fetched.files == ()
    assert set(fetched.failed) <= {Failure.NOT_THERE, Failure.PACS_ERROR, Failure.NOTHING_CAME}
    assert sum(fetched.failed.values()) == 1


@pytest.mark.parametrize("kind", ["dicomweb", "get", "move"])
def test_the_command_line_checks_queries_and_ingests_twice_the_same(
    tmp_path: Path, server: servers.Orthanc, sources: dict[str, Source], campaign: CampaignConfig, kind: str,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    patient = {"dicomweb": "5", "get": "6", "move": "7"}[kind]
    year = f"20{patient}0"
    files = write_series(tmp_path / "in", 3, patient=patient, StudyDate=f"{year}0102", BodyPartExamined="HEAD")
    files += write_series(tmp_path / "in", 3, patient=patient + "1", StudyDate=f"{year}0203", BodyPartExamined="HEAD")
    files += write_series(tmp_path / "in", 3, patient=patient + "2", StudyDate=f"{year}0203", BodyPartExamined="FOOT")
    assert sources["dicomweb"].send(files).stored == 9
    site = new_site(tmp_path, server, kind)
    path = tmp_path / "campaign.json"
    save_campaign(campaign, path)
    assert main(["check", str(site), "pacs"]) == 0
    words = ["ingest", str(site), "--pacs", "--modality", "CT", "--body-part", "HEAD", "--from", f"{year}-01-01",
             "--to", f"{year}-12-31", "--campaign", str(path)]  # fmt: skip
    assert main(words) == 0
    store = Store.open(folder.read(site).store)
    assert len({record.patient for record in store.series}) == len(store.series) == 2
    index = (site / "store" / "index.json").read_bytes()
    assert main(words) == 0
    assert (site / "store" / "index.json").read_bytes() == index
    assert not (site / "fetched").exists()
    shown = capsys.readouterr()
    for secret in (servers.PASSWORD, "Quillfeather", "MRN-7741902", "1.2.826"):
        assert secret not in shown.out + shown.err
    assert main([word.replace(f"{year}-", "1990-") for word in words]) == 2
    assert "no study of this query" in capsys.readouterr().err


def new_site(tmp_path: Path, server: servers.Orthanc, kind: str) -> Path:
    """A site's folder whose pacs.json names the server."""
    authority = certificates.create_authority("test", dt.datetime.now(dt.UTC))
    (tmp_path / "ca.crt").write_bytes(authority.certificate)
    site = tmp_path / "site"
    folder.create(site, "north", "localhost:8443", tmp_path / "ca.crt")
    values: dict[str, Any] = {"dicomweb": {"url": server.url, "user": servers.USER, "password_file": "pacs.password"}}
    if kind != "dicomweb":
        dimse = {"host": "127.0.0.1", "port": server.dicom, "title": servers.TITLE, "retrieve": kind}
        values = {"title": servers.OURS, "dimse": dimse, "listen": {"port": server.ours}}
    (site / "pacs.json").write_text(json.dumps(values))
    (site / "pacs.password").write_text(servers.PASSWORD)
    (site / "pacs.password").chmod(0o600)
    return site
