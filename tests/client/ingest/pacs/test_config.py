"""pacs.json: what is refused when it is read, and what never shows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from client.folder import SiteFolder
from client.ingest.pacs.config import Pacs, read_pacs
from shared.config import MachineConfig, build
from shared.errors import ConfigError, DataError, RefusedError


@pytest.fixture
def site(tmp_path: Path) -> SiteFolder:
    return SiteFolder(tmp_path, "north", "localhost", 8443, MachineConfig())


def write(site: SiteFolder, values: Any) -> Pacs:
    site.pacs.write_text(json.dumps(values))
    return read_pacs(site)


def test_a_missing_file_is_answered_with_what_to_write(site: SiteFolder) -> None:
    with pytest.raises(ConfigError, match="no pacs.json: write it"):
        read_pacs(site)


@pytest.mark.parametrize("content", ["", "{", '{"dicomweb": ', "[" * 100_000])
def test_a_damaged_file_is_bad_data(site: SiteFolder, content: str) -> None:
    site.pacs.write_text(content)
    with pytest.raises(DataError):
        read_pacs(site)


DIMSE = {"host": "127.0.0.1", "port": 104, "title": "PACS"}


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({}, "exactly one"),
        ({"dicomweb": {"url": "https://a/b"}, "dimse": DIMSE}, "exactly one"),
        ({"dicomweb": {"url": "https://a/b", "verify": False}}, "unknown key 'dicomweb.verify'"),
        ({"dicomweb": {"url": "http://pacs.example.org/b"}}, "http to another machine"),
        ({"dicomweb": {"url": "https://a/b", "stow_url": "http://pacs.example.org/b"}}, "stow_url is http"),
        ({"dicomweb": {"url": "https://amy:secret@a/b"}}, "no credentials"),
        ({"dicomweb": {"url": "ftp://a/b"}}, "must be https"),
        ({"dicomweb": {"url": "https://a/b\r\nX: y"}}, "plain ASCII|not a URL|must be"),
        ({"dicomweb": {"url": "https://a/b", "user": "amy"}}, "go together"),
        ({"dicomweb": {"url": "https://a/b", "ca": "none.crt"}}, "not there"),
        ({"dicomweb": {"url": "https://a/b", "ca": "x" * 300}}, "not there"),
        ({"dimse": {**DIMSE, "host": "10.0.0.1"}}, "without TLS"),
        ({"dimse": {**DIMSE, "title": "SEVENTEEN LETTERS"}}, "AE title"),
        ({"dimse": {**DIMSE, "title": "A\\B"}}, "AE title"),
        ({"dimse": {**DIMSE, "port": 0}}, "1 to 65535"),
        ({"dimse": {**DIMSE, "retrieve": "move"}}, "needs listen"),
        ({"dimse": DIMSE, "listen": {"host": "0.0.0.0"}}, "listen without TLS"),
        ({"dimse": DIMSE, "title": ""}, "AE title"),
        ({"dimse": DIMSE, "answer_s": 0}, "above 0"),
    ],
)
def test_what_cannot_be_kept_is_refused(site: SiteFolder, values: Any, words: str) -> None:
    with pytest.raises(ConfigError, match=words) as error:
        write(site, values)
    assert "secret" not in str(error.value)
    assert "\n" not in str(error.value)


def test_a_secret_that_others_may_read_is_refused_and_never_shown(site: SiteFolder) -> None:
    secret = site.folder / "pacs.password"
    secret.write_text("hunter2\n")
    secret.chmod(0o644)
    values = {"dicomweb": {"url": "https://a/b", "user": "amy", "password_file": "pacs.password"}}
    with pytest.raises(RefusedError, match="0600"):
        write(site, values)
    secret.chmod(0o600)
    pacs = write(site, values)
    assert "hunter2" not in repr(pacs)
    assert pacs.where == "a:443"


def test_plain_connections_are_there_for_who_asks_for_them() -> None:
    build(Pacs, {"dimse": {**DIMSE, "host": "10.0.0.1", "plain": True}})
    build(Pacs, {"dicomweb": {"url": "http://10.0.0.1/dicom-web", "plain": True}})
    build(Pacs, {"dicomweb": {"url": "http://[::1]:8042/dicom-web"}})


@pytest.mark.parametrize(
    "values",
    [
        {"dicomweb": {"url": "https://a/b", "plain": "hunter2"}},
        {"dimse": {**DIMSE, "port": "hunter2"}},
        {"dimse": {**DIMSE, "retrieve": "hunter2"}},
        {"dimse": "hunter2"},
    ],
)
def test_a_value_under_the_wrong_key_is_not_repeated(site: SiteFolder, values: Any) -> None:
    with pytest.raises(ConfigError) as refusal:
        write(site, values)
    assert "hunter2" not in str(refusal.value)
    assert "pacs.json" in str(refusal.value)
