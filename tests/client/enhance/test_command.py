from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest

import client.ingest.pacs
from client import cli_enhance, folder, releases
from client.cli import main
from client.ingest.pacs.source import Fetched, Sent
from client.installed import Installed
from shared.config import MachineConfig
from tests.client.enhance.conftest import write_ct


class Pacs:
    """One study, and room for as many files as it is told."""

    def __init__(self, keeps: int) -> None:
        self.keeps, self.places, self.got = keeps, [], []  # type: ignore[var-annotated]

    def echo(self) -> str:
        return "there"

    def fetch(self, study_uid: str, place: Path) -> Fetched:
        self.places.append((place, os.stat(place).st_mode & 0o777))
        return Fetched(tuple(write_ct(place, 2)) if study_uid == "1.2.3" else (), {})

    def send(self, files: Sequence[Path]) -> Sent:
        self.got = [path.name for path in files]
        return Sent(min(self.keeps, len(files)), {})


@pytest.fixture
def site(tmp_path: Path, installed: Installed, machine: MachineConfig, monkeypatch: pytest.MonkeyPatch) -> Path:
    place = tmp_path / "site"
    place.mkdir()
    monkeypatch.setattr(folder, "read", lambda path: SimpleNamespace(folder=place, machine=machine))
    monkeypatch.setattr(releases, "installed", lambda site: installed)
    monkeypatch.setattr(cli_enhance, "record", lambda *_, **__: None)
    return place


def test_a_study_is_enhanced_and_counted(site: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_ct(tmp_path / "study", 2)
    assert main(["enhance", str(site), str(tmp_path / "study"), str(tmp_path / "out"), "--draws", "0", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["slices"] == 2
    assert told["series"][0]["files"] == ["IM0001.dcm", "IM0002.dcm", "SEG.dcm"]
    assert told["stored_in_pacs"] is None
    assert main(["enhance", str(site), str(tmp_path / "study"), str(tmp_path / "out")]) == 2
    assert "not empty" in capsys.readouterr().err


def test_a_study_comes_from_the_pacs_and_goes_back(
    site: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pacs = Pacs(keeps=3)
    monkeypatch.setattr(client.ingest.pacs, "source_of", lambda site: pacs)
    assert main(["enhance", str(site), "1.2.3", str(tmp_path / "out"), "--pacs", "--send", "--draws", "0"]) == 0
    assert "The PACS keeps 3 derived files" in capsys.readouterr().out
    assert pacs.got == ["IM0001.dcm", "IM0002.dcm", "SEG.dcm"]
    ((place, mode),) = pacs.places
    assert place.parent == site
    assert mode == 0o700
    assert not place.exists()


def test_what_a_pacs_does_not_have_or_keep_is_told(
    site: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client.ingest.pacs, "source_of", lambda site: Pacs(keeps=1))
    assert main(["enhance", str(site), "9.9", str(tmp_path / "out"), "--pacs", "--draws", "0"]) == 5
    assert "no image of that study" in capsys.readouterr().err
    assert main(["enhance", str(site), "1.2.3", str(tmp_path / "out"), "--pacs", "--send", "--draws", "0"]) == 4
    assert "keeps 1 of 3 derived files" in capsys.readouterr().err
    assert (tmp_path / "out" / "report.html").is_file()


@pytest.mark.parametrize("draws", ["1", "-1", str(cli_enhance.MOST_DRAWS + 1)])
def test_a_number_of_draws_without_a_spread_is_refused(
    site: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], draws: str
) -> None:
    assert main(["enhance", str(site), str(tmp_path), str(tmp_path / "out"), "--draws", draws]) == 2
    assert "--draws" in capsys.readouterr().err
