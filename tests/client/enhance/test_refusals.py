from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset

from client.enhance import derived
from client.enhance.series import Options
from client.enhance.study import enhance_study
from client.installed import Installed
from shared.config import CampaignConfig, EnhancerConfig, MachineConfig, ObjectiveConfig
from shared.errors import ConfigError, DataError, RefusedError
from tests.client.enhance.conftest import image, make_installed, save_dicom, write_ct

LOSSY = {"LossyImageCompression": "01"}
CT = np.full((16, 16), 1024, np.uint16)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.481.2"}, "SOP class not supported"),
        ({"PixelData": None}, "pixel data missing"),
        ({"Modality": "MR"}, "modality is not the release's"),
        ({"PixelData": b"\0\0"}, "pixel data truncated or not decodable"),
        ({"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]}, "localiser"),
        ({"BitsAllocated": 32}, "stored values are not of 8 or 16 bits"),
        ({"SamplesPerPixel": 3, "PhotometricInterpretation": "RGB"}, "colour image, and the release is for grey ones"),
        (
            {"SamplesPerPixel": 3, "PhotometricInterpretation": "RGB", "NumberOfFrames": 2} | LOSSY,
            "lossy multi-frame colour",
        ),
        ({"SeriesInstanceUID": None}, "study, series or instance UID missing"),
        ({"SOPInstanceUID": "1.2.03.4"}, "instance UID is not valid"),
    ],
)  # fmt: skip
def test_what_cannot_be_enhanced_is_refused_with_its_reason(
    tmp_path: Path, installed: Installed, machine: MachineConfig, options: Options, values: dict, reason: str
) -> None:
    save_dicom(image(0, CT, **values), tmp_path / "study" / "a.dcm")
    with pytest.raises(DataError, match=f"nothing could be enhanced: 1 x {reason}"):
        enhance_study(tmp_path / "study", tmp_path / "out", installed, machine, options)
    assert names(tmp_path) == ["release", "study"]


def test_one_series_that_cannot_be_enhanced_does_not_stop_the_others(
    tmp_path: Path, installed: Installed, machine: MachineConfig, options: Options
) -> None:
    write_ct(tmp_path / "study" / "good", 1)
    for number, broken in enumerate(({"PixelData": b"\0\0"}, {"Modality": "MR"}, {"PixelData": b"\0\0"})):
        save_dicom(image(0, CT, series=f"7{number}", **broken), tmp_path / "study" / f"{number}.dcm")
    (tmp_path / "study" / "notes.txt").write_text("not DICOM")
    summary = enhance_study(tmp_path / "study", tmp_path / "out", installed, machine, options)
    assert names(tmp_path / "out") == ["report.html", "series-001"]
    assert summary.refused == {
        "pixel data truncated or not decodable": 2,
        "modality is not the release's": 1,
        "not a DICOM file": 1,
    }


def test_a_second_file_of_the_same_instance_is_counted_and_not_enhanced(
    tmp_path: Path, installed: Installed, machine: MachineConfig, options: Options
) -> None:
    save_dicom(image(0, CT), tmp_path / "study" / "a.dcm")
    save_dicom(image(0, CT + 1), tmp_path / "study" / "b.dcm")
    summary = enhance_study(tmp_path / "study", tmp_path / "out", installed, machine, options)
    assert summary.refused == {"instance UID met before: the first file counts": 1}
    assert len(list((tmp_path / "out" / "series-001").glob("IM*.dcm"))) == 1


def test_what_was_enhanced_already_is_not_enhanced_again(
    tmp_path: Path, installed: Installed, machine: MachineConfig, options: Options
) -> None:
    write_ct(tmp_path / "study", 1)
    enhance_study(tmp_path / "study", tmp_path / "out", installed, machine, options)
    with pytest.raises(DataError, match="1 x enhanced already"):
        enhance_study(tmp_path / "out", tmp_path / "again", installed, machine, options)


def test_an_out_folder_that_is_not_empty_or_lies_inside_the_study_is_refused(
    tmp_path: Path, installed: Installed, machine: MachineConfig, options: Options
) -> None:
    write_ct(tmp_path / "study", 1)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("keep")
    with pytest.raises(ConfigError, match="not empty"):
        enhance_study(tmp_path / "study", tmp_path / "out", installed, machine, options)
    with pytest.raises(ConfigError, match="lie apart"):
        enhance_study(tmp_path / "study", tmp_path / "study" / "out", installed, machine, options)
    with pytest.raises(ConfigError, match="does not exist"):
        enhance_study(tmp_path / "none", tmp_path / "new", installed, machine, options)
    assert (tmp_path / "out" / "mine.txt").read_text() == "keep"
    assert names(tmp_path / "study") == ["slice-0.dcm"]


@pytest.mark.parametrize("name", [".", "x" * 300, "x" * 240, "link"])
def test_an_out_folder_that_could_not_be_put_in_place_is_refused_before_any_work(
    tmp_path: Path,
    installed: Installed,
    machine: MachineConfig,
    options: Options,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
) -> None:
    (tmp_path / "study").mkdir()  # empty: whoever looks into it says so
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to("empty")
    monkeypatch.chdir(tmp_path / "empty")
    out = Path(name) if name == "." else tmp_path / name
    with pytest.raises(ConfigError, match="a name of its own"):
        enhance_study(tmp_path / "study", out, installed, machine, options)


def test_a_release_without_an_enhancer_is_refused(
    tmp_path: Path, campaign: CampaignConfig, machine: MachineConfig, options: Options
) -> None:
    write_ct(tmp_path / "study", 1)
    alone = replace(campaign, enhance=EnhancerConfig(kind="none"), objective=ObjectiveConfig(kind="plain"))
    with pytest.raises(RefusedError, match="no enhancer"):
        enhance_study(tmp_path / "study", tmp_path / "out", make_installed(tmp_path / "r", alone), machine, options)


def test_a_full_disk_leaves_nothing_behind(
    tmp_path: Path, installed: Installed, machine: MachineConfig, options: Options, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_ct(tmp_path / "study", 3)
    import client.enhance.series as series

    written: list[Path] = []

    def save(ds: object, path: Path) -> None:
        if written:
            raise OSError(errno.ENOSPC, "No space left on device")
        path.write_bytes(b"half")
        written.append(path)

    monkeypatch.setattr(series, "save", save)
    with pytest.raises(DataError, match="no room"):
        enhance_study(tmp_path / "study", tmp_path / "out", installed, machine, options)
    assert written
    assert names(tmp_path) == ["release", "study"]


KILLED = """
import os, signal, sys
from pathlib import Path
import client.enhance.series as series, client.enhance.study as study
root = Path(sys.argv[1])
with study._written_whole(root / "out") as partial:
    (partial / "IM0001.dcm").write_bytes(b"half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_kill_leaves_nothing_visible_and_the_next_run_sweeps_up(
    tmp_path: Path, installed: Installed, machine: MachineConfig, options: Options
) -> None:
    done = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], cwd=Path(__file__).parents[3], check=False)
    assert done.returncode == -signal.SIGKILL
    left = [name for name in names(tmp_path) if name.startswith(".out.partial-")]
    assert len(left) == 1
    assert "out" not in names(tmp_path)
    write_ct(tmp_path / "study", 1)
    enhance_study(tmp_path / "study", tmp_path / "out", installed, machine, options)
    assert names(tmp_path) == ["out", "release", "study"]
    assert os.stat(tmp_path / "out").st_mode & 0o077 == 0


def test_an_image_that_only_its_file_meta_information_names_is_refused(
    tmp_path: Path, installed: Installed, machine: MachineConfig, options: Options
) -> None:
    path = save_dicom(image(0, CT), tmp_path / "study" / "a.dcm")
    ds = pydicom.dcmread(path)
    ds.SOPClassUID = ""
    ds.save_as(path)
    with pytest.raises(DataError, match="nothing could be enhanced: 1 x SOP class not supported"):
        enhance_study(path.parent, tmp_path / "out", installed, machine, options)


def test_an_element_that_cannot_be_carried_over_costs_its_series_and_no_other(
    tmp_path: Path, installed: Installed, machine: MachineConfig, options: Options, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_dicom(image(0, CT), tmp_path / "study" / "a.dcm")
    save_dicom(image(0, CT, series="2", SeriesDescription="BROKEN"), tmp_path / "study" / "b.dcm")
    describe = derived._identify

    def failing(ds: Dataset, source: Dataset, series: derived.Series) -> None:
        if source.SeriesDescription == "BROKEN":
            raise ValueError("invalid literal")
        describe(ds, source, series)

    monkeypatch.setattr(derived, "_identify", failing)
    summary = enhance_study(tmp_path / "study", tmp_path / "out", installed, machine, options)
    assert len(summary.series) == 1
    assert summary.refused == {"header malformed": 1}
    assert names(tmp_path / "out") == ["report.html", "series-001"]


def test_a_derived_enhanced_mr_image_says_nothing_that_only_an_original_may_say() -> None:
    for storage, kept in (("4", True), ("4.1", False)):
        ds = Dataset()
        ds.SOPClassUID, ds.PulseSequenceName, ds.EchoTime = f"1.2.840.10008.5.1.4.1.1.{storage}", "SE", 4
        derived._drop_stale(ds)
        assert ("PulseSequenceName" in ds, "EchoTime" in ds) == (kept, True)
