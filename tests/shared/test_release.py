"""A release file: what is written is read; every byte that is not what a writer writes there is refused."""

from __future__ import annotations

import contextlib
import datetime as dt
import io
import json
import os
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from shared.errors import ConfigError, DataError, RefusedError, WardroundError
from shared.release import Manifest, ReleaseFile, file_record, read_release, signed, unpack, write_release
from shared.trust.certificates import create_authority, fingerprint
from shared.trust.signing import create_signer, verify

NOW = dt.datetime(2026, 11, 22, 12, tzinfo=dt.UTC)
AUTHORITY = create_authority("test", NOW)
SIGNER = create_signer(AUTHORITY, NOW)
FILES = {"campaign.json": b"{}", "weights.safetensors": bytes(range(200)), "card.html": b"<p>card</p>"}


def manifest(named: dict[str, bytes] = FILES, **changes: Any) -> Manifest:
    gate = {"gate": "gain", "site": "a", "value": 1.5, "limit": 0.0, "holds": True, "decides": True, "n": 9}
    values: dict[str, Any] = {
        "name": "liver",
        "version": 3,
        "made_at": NOW.isoformat(),
        "federation": {"name": "test", "authority": fingerprint(AUTHORITY.certificate)},
        "campaign_digest": "ab" * 32,
        "architecture_digest": "cd" * 32,
        "wardround": "0.1",
        "versions": {"torch": "2"},
        "files": {name: file_record(data) for name, data in named.items()},
        "sites": {"a": {"patients": 9}},
        "rows": [{"setting": "federated", "test_site": "a", "psnr_db": 30.25, "gate": None}],
        "gates": [gate, {**gate, "value": None, "holds": False, "decides": False, "n": 0}],
        "privacy": {"epsilon": None, "words": "none"},
        "calibration": {"bins": [{"count": 1, "confidence": 0.95, "correct": 1.0}] * 10},
        "descriptors": {"mean": {"a": {"count": 4, "mean": 0.5, "std": 0.1}}},
        "lesion": "lesion",
        "gates_config": {"erased": 0.05},
    }
    return Manifest(**{**values, **changes})


def release(files: dict[str, bytes] = FILES, **changes: Any) -> ReleaseFile:
    return signed(manifest(files, **changes), files, SIGNER)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "liver-v3.release"
    write_release(path, release())
    return path


def checked(path: Path) -> ReleaseFile:
    """What a site does with a file before anything else."""
    found = read_release(path)
    verify(AUTHORITY.certificate, found.signer_pem, found.manifest_bytes, found.signature, NOW)
    return found


def test_what_was_written_is_read_and_the_digest_is_of_the_manifests_bytes(path: Path) -> None:
    found = checked(path)
    assert found.files == FILES
    assert found.manifest == manifest()
    assert found.digest == found.manifest.digest
    with_reference = {**FILES, "reference.safetensors": b"images"}
    write_release(path, release(with_reference))
    assert checked(path).files == with_reference


def test_the_file_is_a_zip_of_stored_entries_to_every_other_program(path: Path) -> None:
    """The oracle is Python's own zipfile."""
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        names = ["manifest.json", "manifest.sig", "signer.pem", "campaign.json", "weights.safetensors", "card.html"]
        assert archive.namelist() == names
        assert {entry.compress_type for entry in archive.infolist()} == {zipfile.ZIP_STORED}
        assert archive.read("weights.safetensors") == FILES["weights.safetensors"]
    assert not [each for each in path.parent.iterdir() if each != path]  # nothing half-written is left


def test_a_flip_of_any_bit_is_refused(path: Path) -> None:
    """One bit of every third byte, in turn: whichever check it meets, none lets it through."""
    content = path.read_bytes()
    passed = []
    for place in range(0, len(content), 3):
        path.write_bytes(content[:place] + bytes([content[place] ^ 1 << place % 8]) + content[place + 1 :])
        with contextlib.suppress(WardroundError):
            checked(path)
            passed.append(place)
    assert passed == []


def test_a_file_that_is_cut_short_anywhere_is_no_release(path: Path) -> None:
    content = path.read_bytes()
    for length in range(0, len(content), 11):
        path.write_bytes(content[:length])
        with pytest.raises(DataError):
            read_release(path)
    path.write_bytes(content + b"\0")
    with pytest.raises(DataError, match="behind its entries"):
        read_release(path)


def zipped(entries: list[tuple[str, bytes]], method: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, data in entries:
            archive.writestr(zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0)), data, compress_type=method)
    return buffer.getvalue()


def parts() -> list[tuple[str, bytes]]:
    made = release()
    head = {"manifest.json": made.manifest_bytes, "manifest.sig": made.signature, "signer.pem": made.signer_pem}
    return list({**head, **made.files}.items())


def encrypted(content: bytes) -> bytes:
    return content[:6] + b"\x01" + content[7:]


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (lambda: zipped(parts()[:4] + parts()[3:]), "two entries campaign.json"),
        (lambda: zipped([*parts(), parts()[-1]]), "two entries card.html"),
        (lambda: zipped(parts(), zipfile.ZIP_DEFLATED), "manifest.json of the release is compressed"),
        (lambda: zipped([*parts()[:3], ("../../campaign.json", b"{}"), *parts()[4:]]), "where campaign.json belongs"),
        (lambda: zipped([*parts()[:3], ("/etc/passwd", b"{}"), *parts()[4:]]), "where campaign.json belongs"),
        (lambda: zipped([*parts(), ("evil.py", b"x")]), "'evil.py' where reference.safetensors belongs"),
        (lambda: zipped(parts()[1:]), "where manifest.json belongs"),
        (lambda: zipped([("manifest.json", b"0" * (2**22 + 1)), *parts()[1:]]), "has at most 4194304 bytes"),
        (lambda: encrypted(zipped(parts())), "encrypted"),
        (lambda: b"PK\x05\x06" + bytes(18), "not a release"),
        (lambda: b"", "not a release"),
        (lambda: b"MZ" + zipped(parts()), "not a release"),
    ],
)
def test_an_archive_of_another_make_is_refused_with_what_is_wrong(
    content: Callable[[], bytes], reason: str, tmp_path: Path
) -> None:
    path = tmp_path / "x.release"
    path.write_bytes(content())
    with pytest.raises(DataError, match=reason):
        read_release(path)


def test_a_length_that_the_file_does_not_have_takes_no_memory(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[18:26] = (2**22).to_bytes(4, "little") * 2  # of the manifest: within its limit, beyond the file
    path.write_bytes(content)
    with pytest.raises(DataError, match="cut short within manifest.json"):
        read_release(path)
    with path.open("r+b") as file:
        file.truncate(2**34)  # a sparse file
    with pytest.raises(DataError, match="at most"):
        read_release(path)


def test_a_path_that_is_no_file_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no release file 'none'"):
        read_release(tmp_path / "none")
    os.mkfifo(tmp_path / "pipe")
    for name in ("pipe", "."):
        with pytest.raises(DataError, match="not a plain file"):
            read_release(tmp_path / name)


def test_a_file_that_is_not_the_manifests_is_refused_though_the_archive_is_whole(tmp_path: Path) -> None:
    path, made = tmp_path / "x.release", release()
    write_release(path, replace(made, files={**made.files, "weights.safetensors": b"other"}))
    assert unpack(path).files["weights.safetensors"] == b"other"
    with pytest.raises(RefusedError, match=r"weights.safetensors of the release is not the file"):
        read_release(path)


def test_a_reference_that_the_manifest_does_not_name_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.release"
    path.write_bytes(zipped([*parts(), ("reference.safetensors", b"x")]))
    with pytest.raises(DataError):
        read_release(path)


def test_a_file_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be written there"):
        write_release(tmp_path / "none" / "x.release", release())
    large = {**FILES, "card.html": b"x" * (2**23 + 1)}
    with pytest.raises(ConfigError, match=r"card.html of a release has at most"):
        write_release(tmp_path / "x.release", release(large))
    assert list(tmp_path.iterdir()) == []


# ------------------------------------------------------------------------------------------------------------ manifest


def dumped(values: dict[str, Any]) -> bytes:
    return json.dumps(values, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def values() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(manifest().to_json())
    return found


def test_a_manifest_is_canonical_json_and_comes_back_equal() -> None:
    content = manifest().to_json()
    assert content == dumped(json.loads(content))
    assert Manifest.from_json(content) == manifest()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (dumped({**values(), "extra": 1}), "'extra'"),
        (dumped({key: value for key, value in values().items() if key != "gates"}), "'gates'"),
        (dumped({**values(), "format": 2}), "of format 2, this Wardround reads 1"),
        (dumped({**values(), "format": True}), "canonical|format"),
        (json.dumps(values()).encode(), "canonical"),
        (manifest().to_json() + b" ", "canonical"),
        (manifest().to_json().replace(b'"version":3', b'"version":3,"version":3'), "canonical"),
        (manifest().to_json().replace(b"30.25", b"NaN"), "rows"),
        (manifest().to_json().replace(b"30.25", b"1e999"), "rows"),
        (manifest().to_json().replace(b"30.25", b"9" * 5000), "not readable"),
        (manifest().to_json().replace(b"30.25", b"9" * 50), "rows"),
        (manifest().to_json().replace(b'"none"', b'"\\ud800"'), "privacy"),
        (b"[" * 100_000, "not readable"),
        (b"\xff\xfe", "not readable"),
        (b"[]", "not readable"),
        (b"", "not readable"),
    ],
)
def test_a_manifest_of_another_form_is_refused(content: bytes, reason: str) -> None:
    with pytest.raises(DataError, match=reason):
        Manifest.from_json(content)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("name", "<b>liver</b>"),
        ("name", "../liver"),
        ("name", 5),
        ("version", 0),
        ("version", True),
        ("version", 1.0),
        ("version", 10**7),
        ("made_at", "yesterday"),
        ("made_at", "2026-11-22T12:00:00"),
        ("made_at", "2026-11-22T12:00:00+01:00"),
        ("federation", {"name": "test"}),
        ("federation", {"name": "test", "authority": "AB" * 32}),
        ("campaign_digest", "ab"),
        ("files", {"card.html": {"sha256": "ab" * 32, "bytes": -1}}),
        ("sites", {"<script>": {"patients": 1}}),
        ("sites", {"a": {"patients": "1"}}),
        ("sites", [1]),
        ("rows", [{"psnr_db": float("inf")}]),
        ("rows", [{"psnr_db": [1]}]),
        ("gates", [{"gate": "gain"}]),
        ("gates", [{**values()["gates"][0], "holds": 1}]),
        ("gates", [{**values()["gates"][0], "value": float("nan")}]),
        ("privacy", {"epsilon": "0", "words": ""}),
        ("privacy", {"epsilon": None, "words": "a\x00b"}),
        ("calibration", {"bins": []}),
        ("calibration", {"bins": [{"count": 1, "confidence": 1.5, "correct": 1.0}] * 10}),
        ("descriptors", {"mean": {"a": {"mean": 1.0}}}),
        ("lesion", ""),
        ("gates_config", {"erased": None}),
        ("intended_use", "x" * 4001),
    ],
)
def test_a_field_of_another_kind_is_refused_by_name(field: str, value: Any) -> None:
    with pytest.raises(DataError, match=field):
        manifest(**{field: value})
