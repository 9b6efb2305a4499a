"""Hospitals on disk: byte-equal for equal seeds, re-used when whole, rewritten when not, refused when not ours."""

from __future__ import annotations

import csv
import hashlib
import json
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from shared.config import HospitalConfig, ScannerConfig, SimulationConfig
from shared.errors import ConfigError
from simulation.hospitals import write_hospitals
from tests.simulation.hospitals.conftest import patients_of

Make = Callable[..., SimulationConfig]

TWO = (
    HospitalConfig(name="north", patients=3, paired=0.5, scanner=ScannerConfig(noise=0.01, psf_mm=2.0)),
    HospitalConfig(name="hill", patients=2, mask_codes={"organ": 7, "lesion": 3}),
)


def tree_digest(folder: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        digest.update(str(path.relative_to(folder)).encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def test_same_seed_same_bytes_in_another_process(make: Make, tmp_path: Path) -> None:
    config = make("phantom", *TWO)
    write_hospitals(config, tmp_path / "here")
    program = (
        "import sys; from pathlib import Path; from shared.config import SimulationConfig, build; import json;"
        "from simulation.hospitals import write_hospitals;"
        "write_hospitals(build(SimulationConfig, json.loads(sys.argv[1])), Path(sys.argv[2]))"
    )
    from shared.config import to_dict

    arguments = [json.dumps(to_dict(config)), str(tmp_path / "there")]
    subprocess.run([sys.executable, "-c", program, *arguments], check=True, timeout=120)
    assert tree_digest(tmp_path / "here") == tree_digest(tmp_path / "there")


def test_another_seed_changes_every_image(make: Make, tmp_path: Path) -> None:
    for seed in (0, 1):
        write_hospitals(make("phantom", *TWO, seed=seed), tmp_path / str(seed))
    images = [{p.read_bytes() for p in (tmp_path / seed).rglob("*.dcm")} for seed in ("0", "1")]
    assert not images[0] & images[1]


def test_layout_is_what_ingest_expects(make: Make, tmp_path: Path) -> None:
    north, hill = write_hospitals(make("phantom", *TWO), tmp_path)
    assert (north, hill) == (tmp_path / "north", tmp_path / "hill")
    assert sorted(path.name for path in hill.iterdir()) == ["diagnoses.csv", "labels", "site.json", "studies"]
    assert json.loads((hill / "site.json").read_text()) == {
        "name": "hill",
        "mask_codes": {"organ": 7, "lesion": 3},
        "diagnosis_codes": {"none": "none", "lesion": "lesion"},
    }
    assert json.loads((north / "site.json").read_text())["mask_codes"] == {"organ": 1, "lesion": 2}
    with (north / "diagnoses.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["PatientID"] for row in rows] == patients_of(north)
    assert Counter(row["diagnosis"] for row in rows) == {"none": 2, "lesion": 1}


def test_label_and_diagnosis_shares_are_on_disk(make: Make, tmp_path: Path) -> None:
    hospital = HospitalConfig(name="north", patients=10, labelled=0.3, diagnosed=0.6, paired=0.2)
    (site,) = write_hospitals(make("phantom", hospital, slices=1), tmp_path)
    assert len(list((site / "labels").glob("*.dcm"))) == 3
    assert len((site / "diagnoses.csv").read_text().splitlines()) == 1 + 6
    assert len(list(site.glob("studies/*/series-001"))) == 10
    assert len(list(site.glob("studies/*/series-002"))) == 2


def test_a_whole_folder_is_used_again_and_progress_tells(make: Make, tmp_path: Path) -> None:
    told: list[tuple[str, int, int]] = []

    def on_progress(site: str, done: int, total: int) -> None:
        told.append((site, done, total))

    config = make("phantom", *TWO)
    first = write_hospitals(config, tmp_path, on_progress=on_progress)
    assert told == [("north", 1, 3), ("north", 2, 3), ("north", 3, 3), ("hill", 1, 2), ("hill", 2, 2)]
    written = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    assert write_hospitals(config, tmp_path, on_progress=on_progress) == first
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == written
    assert len(told) == 5


@pytest.mark.parametrize("loss", ["marker", "image", "interrupted"])
def test_a_half_written_folder_is_written_afresh(make: Make, tmp_path: Path, loss: str) -> None:
    config = make("phantom", *TWO)
    if loss == "interrupted":

        def stop(site: str, done: int, total: int) -> None:
            if site == "hill":
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            write_hospitals(config, tmp_path / "a", on_progress=stop)
    else:
        write_hospitals(config, tmp_path / "a")
        lost = tmp_path / "a" / "hospitals.json" if loss == "marker" else next((tmp_path / "a").rglob("IM0002.dcm"))
        content = lost.read_text() if loss == "marker" else ""
        lost.unlink() if loss == "image" else lost.write_text(content.replace(json.loads(content)["recipe"], "other"))
    write_hospitals(config, tmp_path / "a")
    write_hospitals(config, tmp_path / "b")
    assert tree_digest(tmp_path / "a") == tree_digest(tmp_path / "b")


def test_another_recipe_replaces_the_old_hospitals(make: Make, tmp_path: Path) -> None:
    write_hospitals(make("phantom", *TWO), tmp_path)
    write_hospitals(make("phantom", TWO[1], slices=2), tmp_path)
    assert not list((tmp_path / "north").rglob("*.dcm"))
    assert len(list((tmp_path / "hill" / "studies").rglob("*.dcm"))) == 2 * 2


def test_data_of_somebody_else_are_refused_and_untouched(make: Make, tmp_path: Path) -> None:
    theirs = tmp_path / "hill" / "studies" / "keep.dcm"
    theirs.parent.mkdir(parents=True)
    theirs.write_bytes(b"theirs")
    with pytest.raises(ConfigError, match="'hill' holds data that this program did not write"):
        write_hospitals(make("phantom", *TWO), tmp_path)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [theirs]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"kind": "store"}, "data.kind=store has no hospitals to write"),
        ({"masks": ("organ", "liver")}, "data.masks: data=phantom knows"),
        ({"diagnoses": ("none", "flu")}, "data.diagnoses: data=phantom knows"),
    ],
)
def test_what_the_data_cannot_give_is_refused(
    make: Make, tmp_path: Path, change: dict[str, object], reason: str
) -> None:
    config = make("phantom")
    data = replace(config.campaign.data, **change)
    with pytest.raises(ConfigError, match=reason):
        write_hospitals(replace(config, campaign=replace(config.campaign, data=data)), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_no_slices_and_no_sites_are_refused(make: Make, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"hospitals\.slices must be 1 or more"):
        write_hospitals(make("phantom", slices=0), tmp_path)
    config = make("phantom")
    with pytest.raises(ConfigError, match=r"hospitals\.sites is empty"):
        write_hospitals(replace(config, hospitals=replace(config.hospitals, sites=())), tmp_path)


@pytest.mark.parametrize(
    ("kind", "hospital", "reason"),
    [
        ("phantom", HospitalConfig(name="a", patients=1, scanner=ScannerConfig(bias_field=0.1)), "calibrated in HU"),
        ("phantom", HospitalConfig(name="a", patients=1, protocol="wide"), "has no natural parts"),
        ("mni", HospitalConfig(name="a", patients=1, protocol="wide"), "has no natural parts"),
    ],
)
def test_what_a_kind_would_ignore_is_refused(
    make: Make, tmp_path: Path, kind: str, hospital: HospitalConfig, reason: str
) -> None:
    with pytest.raises(ConfigError, match=reason):
        write_hospitals(make(kind, hospital), tmp_path / "out")
    assert not (tmp_path / "out").exists()
