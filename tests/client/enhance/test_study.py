from __future__ import annotations

from pathlib import Path

import pydicom

from client.enhance.series import Options
from client.enhance.study import enhance_study
from client.installed import Installed
from shared.config import MachineConfig
from tests.client.enhance.conftest import errors_of, needs_dciodvfy, write_ct


def test_a_series_comes_back_beside_itself(
    tmp_path: Path, installed: Installed, machine: MachineConfig, options: Options
) -> None:
    paths = write_ct(tmp_path / "study")
    before = [path.read_bytes() for path in paths]
    summary = enhance_study(tmp_path / "study", tmp_path / "out", installed, machine, options)
    assert summary.slices == 3
    assert [path.name for path in summary.files] == ["IM0001.dcm", "IM0002.dcm", "IM0003.dcm", "SEG.dcm"]
    assert all(path.is_file() for path in summary.files)
    assert [path.read_bytes() for path in paths] == before
    changed = [pydicom.dcmread(path).pixel_array for path in summary.files[:3]]
    original = [pydicom.dcmread(path).pixel_array for path in paths]
    assert any((a != b).any() for a, b in zip(changed, original, strict=True))
    assert (tmp_path / "out" / "series-001" / "diagnosis.json").is_file()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "release", "study"]


@needs_dciodvfy
def test_derived_ct_and_its_segmentation_have_no_errors(
    tmp_path: Path, installed: Installed, machine: MachineConfig, options: Options
) -> None:
    paths = write_ct(tmp_path / "study")
    assert [errors_of(path) for path in paths] == [[]] * 3
    summary = enhance_study(tmp_path / "study", tmp_path / "out", installed, machine, options)
    for path in summary.files:
        assert errors_of(path) == []
