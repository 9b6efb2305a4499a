"""A query into the store: batches, patients together, a PACS that goes away, and nothing left on the disk."""

from __future__ import annotations

import datetime as dt
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from client import cli
from client.folder import SiteFolder
from client.ingest.pacs import studies
from client.ingest.pacs.source import ALL_DATES, Dates, Failure, Fetched, FoundStudy, Sent
from client.ingest.pacs.studies import Query, ingest_studies
from client.ingest.reasons import IngestReport, Reason
from shared.config import CampaignConfig, MachineConfig, save_campaign
from shared.errors import ConfigError, DataError, PeerError
from tests.client.ingest.conftest import write_series
from tests.client.ingest.pacs.orthanc import free_port
from tests.client.release_files import authority, site_of

QUERY = Query("MR", None, ALL_DATES, None, with_segmentations=False)


@dataclass
class Scripted:
    """A PACS as a list of studies; `failing` says which do not come, and why."""

    held: dict[str, list[FoundStudy]]
    failing: dict[str, Failure] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    dates: list[Dates] = field(default_factory=list)

    def echo(self) -> str:
        return "here"

    def find(
        self, modality: str, body_part: str | None = None, dates: Dates = ALL_DATES, *, limit: int | None = None
    ) -> tuple[FoundStudy, ...]:
        self.dates.append(dates)
        return tuple(self.held.get(modality, ())[:limit])

    def fetch(self, study_uid: str, folder: Path) -> Fetched:
        self.asked.append(study_uid)
        assert folder.stat().st_mode & 0o077 == 0
        if study_uid in self.failing:
            return Fetched((), {self.failing[study_uid]: 1})
        path = folder / "000001.dcm"
        path.write_text(study_uid)
        return Fetched((path,), {})

    def send(self, files: Sequence[Path]) -> Sent:
        raise AssertionError


@dataclass
class Store:
    """What an ingest was given: the names of studies in each folder."""

    batches: list[list[str]] = field(default_factory=list)
    tables: list[int] = field(default_factory=list)

    def __call__(self, folder: Path) -> IngestReport:
        self.batches.append(sorted(path.read_text() for path in folder.rglob("*.dcm")))
        self.tables.append(len(list(folder.glob("*.csv"))))
        files = len(self.batches[-1])
        return IngestReport({("stored", Reason.IMAGE): files}, files, 0, 0, 0, 0, 0, files, 0)


def silent(done: int, total: int) -> None:
    assert 1 <= done <= total


@pytest.fixture
def site(tmp_path: Path) -> SiteFolder:
    return SiteFolder(tmp_path, "north", "localhost", 8443, MachineConfig())


def many(number: int, patients: int = 10**9) -> list[FoundStudy]:
    return [FoundStudy(f"1.{index}", f"P{index % patients}") for index in range(number)]


def test_the_disk_holds_one_batch_and_nothing_in_the_end(site: SiteFolder) -> None:
    store = Store()
    outcome = ingest_studies(Scripted({"MR": many(50)}), site, QUERY, store, on_study=silent)
    assert [len(batch) for batch in store.batches] == [20, 20, 10]
    assert len({uid for batch in store.batches for uid in batch}) == outcome.fetched == outcome.files == 50
    assert ("stored", "image", 50) in outcome.table()
    assert not (site.folder / "fetched").exists()


def test_large_studies_are_ingested_as_they_come(site: SiteFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(studies, "BATCH_BYTES", 5)
    store = Store()
    ingest_studies(Scripted({"MR": many(4)}), site, QUERY, store, on_study=silent)
    assert [len(batch) for batch in store.batches] == [2, 2]


def test_studies_of_one_patient_stay_together_with_their_segmentations(site: SiteFolder) -> None:
    held = {
        "MR": many(30, patients=15),
        "SEG": [FoundStudy("2.1", "P3", "20250101"), FoundStudy("2.2", "stranger"), FoundStudy("1.4", "P4")],
    }
    pacs, store = Scripted(held), Store()
    dates = Dates(dt.date(2024, 1, 1), dt.date(2024, 12, 31))
    query = Query("MR", None, dates, None, with_segmentations=True)
    ingest_studies(pacs, site, query, store, on_study=silent)
    # A mask may be drawn later than the images are made.
    assert pacs.dates == [dates, Dates(dates.first)]
    for batch in store.batches:
        for uid in batch:
            if uid.startswith("1."):
                assert f"1.{(int(uid[2:]) + 15) % 30}" in batch
    assert next(batch for batch in store.batches if "2.1" in batch).count("1.3") == 1
    assert sorted(pacs.asked) == sorted([study.uid for study in held["MR"]] + ["2.1"])


def test_a_study_that_does_not_come_is_counted_and_the_others_are_stored(site: SiteFolder) -> None:
    failing = {"1.1": Failure.CUT_OFF, "1.2": Failure.NO_CONNECTION, "1.4": Failure.NO_CONNECTION}
    store = Store()
    outcome = ingest_studies(Scripted({"MR": many(6)}, failing), site, QUERY, store, on_study=silent)
    assert store.batches == [["1.0", "1.3", "1.5"]]
    assert (outcome.fetched, outcome.skipped) == (3, 3)
    assert ("not fetched", "no connection to the PACS", 2) in outcome.table()


def test_a_pacs_that_goes_away_is_said_so_after_what_came_is_stored(site: SiteFolder) -> None:
    failing = {f"1.{index}": Failure.NO_CONNECTION for index in range(4, 60)}
    pacs, store = Scripted({"MR": many(60)}, failing), Store()
    with pytest.raises(PeerError, match="went away after 4 of 60 studies"):
        ingest_studies(pacs, site, QUERY, store, on_study=silent)
    assert store.batches == [["1.0", "1.1", "1.2", "1.3"]]
    assert len(pacs.asked) == 7
    assert not (site.folder / "fetched").exists()


def test_nothing_found_and_nothing_fetched_are_two_errors(site: SiteFolder) -> None:
    with pytest.raises(ConfigError, match="no study of this query"):
        ingest_studies(Scripted({}), site, QUERY, Store(), on_study=silent)
    failing = {"1.0": Failure.REFUSED, "1.1": Failure.REFUSED}
    with pytest.raises(DataError, match="none of 2 studies could be fetched: refused"):
        ingest_studies(Scripted({"MR": many(2)}, failing), site, QUERY, Store(), on_study=silent)


def test_what_a_killed_run_left_is_gone_before_anything_new_comes(site: SiteFolder) -> None:
    left = site.folder / "fetched" / "000000"
    left.mkdir(parents=True)
    (left / "000001.dcm").write_text("old")
    store = Store()
    ingest_studies(Scripted({"MR": many(1)}), site, QUERY, store, on_study=silent)
    assert store.batches == [["1.0"]]


def test_two_fetches_of_one_site_do_not_meet(site: SiteFolder) -> None:
    def ingest(folder: Path) -> IngestReport:
        with pytest.raises(DataError, match="another command is fetching"):
            ingest_studies(Scripted({"MR": many(1)}), site, QUERY, Store(), on_study=silent)
        assert folder.exists()
        return Store()(folder)

    ingest_studies(Scripted({"MR": many(1)}), site, QUERY, ingest, on_study=silent)


def test_tables_are_there_in_every_batch(site: SiteFolder, tmp_path: Path) -> None:
    table = tmp_path / "diagnoses.csv"
    table.write_text("PatientID,diagnosis\n")
    store = Store()
    ingest_studies(Scripted({"MR": many(30)}), site, QUERY, store, tables=[table], on_study=silent)
    assert store.tables == [1, 1]


# ---------------------------------------------------------------------------------------------------- commands


@pytest.fixture
def made(tmp_path: Path, campaign: CampaignConfig) -> tuple[Path, Path]:
    save_campaign(campaign, tmp_path / "campaign.json")
    return site_of(tmp_path / "site", authority()).folder, tmp_path / "campaign.json"


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ([], "either SOURCE"),
        (["src", "--pacs"], "either SOURCE"),
        (["--pacs", "--modality", "MR"], "one of the campaign's: CT"),
        (["--pacs", "--body-part", "BRA*"], "no wildcards"),
        (["--pacs", "--from", "yesterday"], "2024-01-31"),
        (["--pacs", "--from", "2024-02-01", "--to", "2024-01-01"], "--from must not be after"),
        (["--pacs", "--limit", "0"], "--limit must be 1 or more"),
        (["--pacs"], "no pacs.json"),
    ],
)
def test_wrong_use_is_said_in_one_line(
    made: tuple[Path, Path], words: list[str], reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["ingest", str(made[0]), *words, "--campaign", str(made[1])]) == 2
    error = capsys.readouterr().err
    assert reason in error
    assert error.count("\n") == 1


def test_check_has_a_row_for_a_pacs_that_is_configured(
    made: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    site, _ = made
    assert cli.main(["check", str(site), "pacs"]) == 2
    capsys.readouterr()
    cli.main(["check", str(site)])
    assert "PACS" not in capsys.readouterr().out
    (site / "pacs.json").write_text(f'{{"dicomweb": {{"url": "http://127.0.0.1:{free_port()}/dicom-web"}}}}')
    assert cli.main(["check", str(site), "pacs"]) == 4
    shown = capsys.readouterr()
    assert "no connection to the PACS" in shown.err
    cli.main(["check", str(site)])
    assert "no connection to the PACS" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("storescu") is None, reason="needs dcmtk's storescu: apt-get install dcmtk")
def test_receive_takes_files_of_another_program_until_it_is_stopped(made: tuple[Path, Path], tmp_path: Path) -> None:
    site, _ = made
    port = free_port()
    dimse = {"host": "127.0.0.1", "port": 1, "title": "PACS"}
    (site / "pacs.json").write_text(json.dumps({"dimse": dimse, "listen": {"port": port, "peers": ["CT1"]}}))
    files = [str(path) for path in write_series(tmp_path / "in", 3)]
    process = subprocess.Popen([sys.executable, "-m", "client.cli", "receive", str(site)], stdout=subprocess.PIPE)
    try:
        send = ["storescu", "-aet", "CT1", "-aec", "WARDROUND", "127.0.0.1", str(port), *files]
        for _ in range(100):
            done = subprocess.run(send, capture_output=True, check=False)
            if done.returncode == 0:
                break
            time.sleep(0.2)
        assert done.returncode == 0
        send[2] = "ROGUE"
        assert subprocess.run(send, capture_output=True, check=False).returncode != 0
        assert len(list((site / "inbox").iterdir())) == 3
    finally:
        process.terminate()
        out = process.communicate(timeout=30)[0]
    assert process.returncode == 0
    assert b"Received 3 files" in out
