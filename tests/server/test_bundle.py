"""The bundle: a manifest for sites to check, and no code."""

from __future__ import annotations

import io
import tomllib
import zipfile
from pathlib import Path

import pytest
from flwr.cli.build import build_fab_from_disk

from client.approvals import BUNDLE_FILES, MAX_BUNDLE, check_bundle
from server.bundle import write_bundle, write_run_config
from shared.errors import RefusedError

DIGEST, MANIFEST = "ab" * 32, "ef" * 32


def test_what_flower_makes_of_it_holds_no_code_and_passes_a_site(tmp_path: Path) -> None:
    """The oracle on one side is Flower's own builder, on the other the check that sites make."""
    built = build_fab_from_disk(write_bundle(tmp_path, DIGEST, MANIFEST))
    names = zipfile.ZipFile(io.BytesIO(built)).namelist()
    assert set(names) == BUNDLE_FILES
    assert not any(name.endswith((".py", ".pyc", ".so", ".whl")) for name in names)
    assert len(built) < MAX_BUNDLE / 10
    assert check_bundle(built, {DIGEST: MANIFEST}) == DIGEST
    with pytest.raises(RefusedError, match="not approved here"):
        check_bundle(built, {"cd" * 32: MANIFEST})


def test_code_put_beside_the_manifest_travels_but_is_refused(tmp_path: Path) -> None:
    app = write_bundle(tmp_path, DIGEST, MANIFEST)
    (app / "client").mkdir()
    (app / "client" / "app.py").write_text("app = None\n")
    with pytest.raises(RefusedError, match="no code is taken from outside"):
        check_bundle(build_fab_from_disk(app), {DIGEST: MANIFEST})


def test_the_same_campaign_gives_the_same_bytes(tmp_path: Path) -> None:
    first = build_fab_from_disk(write_bundle(tmp_path / "a", DIGEST, MANIFEST))
    assert build_fab_from_disk(write_bundle(tmp_path / "b", DIGEST, MANIFEST)) == first
    assert build_fab_from_disk(write_bundle(tmp_path / "c", "cd" * 32, MANIFEST)) != first
    assert build_fab_from_disk(write_bundle(tmp_path / "d", DIGEST, "cd" * 32)) != first


def test_components_are_those_of_the_installed_package(tmp_path: Path) -> None:
    app = tomllib.loads((write_bundle(tmp_path, DIGEST, MANIFEST) / "pyproject.toml").read_text())["tool"]["flwr"][
        "app"
    ]
    assert app["components"] == {"serverapp": "server.app:app", "clientapp": "client.app:app"}
    assert app["config"].keys() == {"run-dir", "sites"}  # Flower refuses values for keys that are not there


def test_run_values_are_read_back_as_written(tmp_path: Path) -> None:
    path = write_run_config(tmp_path / "run.toml", 'runs/a "b"', ("north", "south"))
    assert tomllib.loads(path.read_text()) == {"run-dir": 'runs/a "b"', "sites": "north,south"}
