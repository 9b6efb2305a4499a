from __future__ import annotations

from pathlib import Path

import pydicom
import pytest

from client.enhance.series import Options
from client.enhance.study import enhance_study
from client.installed import Installed
from shared.config import MachineConfig, PersonaliseConfig
from shared.errors import DataError
from tests.client.enhance.conftest import write_ct


def test_a_second_acquisition_adapts_the_enhancer_for_this_study_alone(
    tmp_path: Path, installed: Installed, machine: MachineConfig, options: Options, monkeypatch: pytest.MonkeyPatch
) -> None:
    from client.enhance import second

    monkeypatch.setattr(second, "load", lambda *_: PersonaliseConfig(steps=3, batch_size=2))
    write_ct(tmp_path / "one", 3, seed=1)
    write_ct(tmp_path / "two", 3, seed=2, series="2")
    alone = enhance_study(tmp_path / "one", tmp_path / "a", installed, machine, options)
    both = enhance_study(tmp_path / "one", tmp_path / "b", installed, machine, options, second=tmp_path / "two")
    first, adapted = (pydicom.dcmread(summary.files[0]) for summary in (alone, both))
    assert (first.pixel_array != adapted.pixel_array).any()
    assert "lastblocks on this study" in adapted.ContributingEquipmentSequence[0].ContributionDescription
    # Nothing of it stays in the release.
    again = enhance_study(tmp_path / "one", tmp_path / "c", installed, machine, options)
    assert (pydicom.dcmread(again.files[0]).pixel_array == first.pixel_array).all()


@pytest.mark.parametrize("other", [{"count": 2}, {"side": 24}, {"PixelSpacing": [2, 2]}])
def test_another_geometry_is_refused_in_words(
    tmp_path: Path, installed: Installed, machine: MachineConfig, options: Options, other: dict
) -> None:
    write_ct(tmp_path / "one", count=3)
    write_ct(tmp_path / "two", **{"count": 3, "seed": 2, "series": "2", **other})
    with pytest.raises(DataError, match="same geometry; a series of 3 x 32 x 32 pixels has no partner"):
        enhance_study(tmp_path / "one", tmp_path / "out", installed, machine, options, second=tmp_path / "two")
    assert not (tmp_path / "out").exists()
