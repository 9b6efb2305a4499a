"""The walk: stable, inside the folder, and never stuck."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from client.ingest import sources
from client.ingest.reasons import Quarantined, Reason
from client.ingest.run import ingest
from client.ingest.sources import open_file, walk
from shared.config import DataConfig
from shared.errors import ConfigError, DataError


def test_the_order_is_by_name_whatever_the_order_on_the_disk(tmp_path: Path) -> None:
    for name in ("b/2", "b/1", "a", "c/x/y", "B"):
        (tmp_path / "source" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "source" / name).write_text(name)
    root = (tmp_path / "source").resolve()
    found = [str(file.path.relative_to(root)) for file in walk(tmp_path / "source", tmp_path / "store")]
    assert found == ["B", "a", "b/1", "b/2", "c/x/y"]


def test_links_pipes_and_folders_outside_are_counted_and_never_opened(
    hospital: Any, data: DataConfig, tmp_path: Path
) -> None:
    hospital.write_series(tmp_path / "outside", 2)
    source = tmp_path / "source"
    source.mkdir()
    (source / "folder").symlink_to(tmp_path / "outside", target_is_directory=True)
    (source / "file.dcm").symlink_to(next((tmp_path / "outside").rglob("*.dcm")))
    (source / "gone.csv").symlink_to(tmp_path / "nowhere.csv")
    os.mkfifo(source / "pipe.dcm")
    report = ingest(source, tmp_path / "store", data, secret=hospital.secret, mask_codes={}, diagnosis_codes={})
    assert report.table() == (("skipped", "link or special file", 4),)


def test_a_file_that_became_a_link_or_went_away_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "target").write_text("x")
    (tmp_path / "link").symlink_to(tmp_path / "target")
    for name in ("link", "gone"):
        with pytest.raises(Quarantined) as refusal:
            open_file(tmp_path / name)
        assert refusal.value.reason == Reason.UNREADABLE


def test_a_source_or_store_in_the_wrong_place_is_refused(tmp_path: Path) -> None:
    source = tmp_path / "source"
    with pytest.raises(ConfigError, match="does not exist"):
        walk(source, tmp_path / "store")
    source.mkdir()
    with pytest.raises(DataError, match="holds no file"):
        walk(source, tmp_path / "store")
    (source / "x").write_text("x")
    with pytest.raises(ConfigError, match="must be a folder"):
        walk(source / "x", tmp_path / "store")
    for store in (source, source / "store", tmp_path):
        with pytest.raises(ConfigError, match="must lie apart"):
            walk(source, store)


def test_folders_without_end_and_folders_without_access_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "source" / "a" / "b" / "c").mkdir(parents=True)
    (tmp_path / "source" / "a" / "b" / "c" / "x").write_text("x")
    assert len(walk(tmp_path / "source", tmp_path / "store")) == 1
    monkeypatch.setattr(sources, "MAX_FOLDER_DEPTH", 2)
    with pytest.raises(DataError, match="nest deeper than 2"):
        walk(tmp_path / "source", tmp_path / "store")

    def denied(path: object) -> None:
        raise PermissionError(13, "denied", str(path))

    monkeypatch.setattr(os, "scandir", denied)
    with pytest.raises(DataError, match="cannot be read") as refusal:
        walk(tmp_path / "source", tmp_path / "store")
    assert str(tmp_path) not in str(refusal.value)
