"""MNI hospitals: real anatomy in the right place, tissues in T1 order, lesions one can see and tell apart."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from shared.config import HospitalConfig, ScannerConfig, SimulationConfig
from shared.errors import ConfigError
from simulation.hospitals import brain, write_hospitals
from simulation.hospitals.brain import GREY, LESION, WHITE, Contrast, Template, anatomy
from simulation.hospitals.cohort import Case, simulated_cohorts
from simulation.hospitals.volume import Volume
from tests.simulation.hospitals.conftest import patients_of, read_series, stored_DHW

Make = Callable[..., SimulationConfig]

template = lru_cache(brain.load_template)
SITE = HospitalConfig(name="north", patients=9, scanner=ScannerConfig(spacing_mm=(5, 3, 3), psf_mm=0.8, noise=0.01))


@pytest.fixture
def rendered(make: Make, monkeypatch: pytest.MonkeyPatch) -> list[tuple[Case, Volume]]:
    """Nine patients, three of each diagnosis, twelve slices; the template is read once for all tests."""
    monkeypatch.setattr(brain, "load_template", template)
    config = make("mni", SITE, slices=12)
    (cases,) = simulated_cohorts(config, (SITE,))
    render = brain.renderer(config)
    return [(case, render(case, SITE)) for case in cases]


def _ring(mask_HW: npt.NDArray[np.bool_], low_px: int, high_px: int) -> npt.NDArray[np.bool_]:
    from scipy.ndimage import binary_dilation

    outer, inner = (binary_dilation(mask_HW, iterations=n) for n in (high_px, low_px))
    return np.asarray(outer & ~inner)


def test_points_of_the_template_keep_their_place_and_value() -> None:
    """nilearn's own affine says where a voxel lies; sampling there returns it."""
    from nilearn.datasets import load_mni152_template

    image = load_mni152_template(resolution=1)
    values = image.get_fdata(dtype=np.float32)
    voxels = np.argwhere(values > 0.5)[::5000]
    points = (np.c_[voxels, np.ones(len(voxels))] @ image.affine.T)[:, :3].T.reshape(3, 1, 1, -1)
    signal, _ = anatomy(template(), points.astype(np.float32), Contrast(0.0, 0.0, 1.0))
    np.testing.assert_allclose(signal.ravel() * brain.WHITE_SIGNAL, values[tuple(voxels.T)], atol=1e-4)


def test_front_is_up_and_patient_right_is_left_of_the_picture(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """A template with one bright voxel to the right and front must show it in the upper left quadrant (L, P axes)."""
    marked = np.zeros((197, 233, 189), np.float32)
    marked[98 + 40 - 8 : 98 + 40 + 8, 134 + 30 - 8 : 134 + 30 + 8, :] = 1  # R 40 mm, A 30 mm
    fake = Template(marked, np.zeros_like(marked), marked, (-98.0, -134.0, -72.0))
    monkeypatch.setattr(brain, "load_template", lambda: fake)
    config = make("mni", SITE, slices=2)
    (cases,) = simulated_cohorts(config, (SITE,))
    healthy = next(case for case in cases if case.diagnosis == "none")
    image_HW = brain.renderer(config)(healthy, SITE).stored_DHW[0].astype(float)
    rows, columns = np.indices(image_HW.shape)
    bright = image_HW > 500
    assert rows[bright].mean() < 31.5 - 8
    assert columns[bright].mean() < 31.5 - 8


def test_tissues_are_present_and_in_t1_order(rendered: list[tuple[Case, Volume]]) -> None:
    for _, volume in rendered:
        assert volume.label_DHW is not None
        mean = [float(volume.stored_DHW[volume.label_DHW == code].mean()) for code in (0, GREY, WHITE)]
        assert mean[0] < 0.3 * mean[1]
        assert mean[1] < 0.95 * mean[2]
        for code in (GREY, WHITE):
            assert 0.08 < (volume.label_DHW == code).mean() < 0.35


def test_only_the_diseased_have_lesions_and_nearly_every_slice_shows_one(rendered: list[tuple[Case, Volume]]) -> None:
    for case, volume in rendered:
        assert volume.label_DHW is not None
        shown = (volume.label_DHW == LESION).any(axis=(1, 2)).mean()
        if case.diagnosis == "none":
            assert shown == 0
        else:
            assert shown >= 0.9
            # Not specks: on average over the slices at least 9 pixels of 3 mm.
            assert (volume.label_DHW == LESION).sum(axis=(1, 2)).mean() >= 9


def test_lesions_stand_out_from_their_surroundings_and_the_kinds_from_each_other(
    rendered: list[tuple[Case, Volume]],
) -> None:
    """kind_a is brighter than its surroundings throughout; kind_b is dark inside a bright rim."""
    from scipy.ndimage import binary_erosion

    for case, volume in rendered:
        if case.diagnosis == "none":
            continue
        assert volume.label_DHW is not None
        centre, rim, around = [], [], []
        for image_HW, label_HW in zip(volume.stored_DHW, volume.label_DHW, strict=True):
            lesion = label_HW == LESION
            core = binary_erosion(lesion, iterations=2)
            centre.append(image_HW[core])
            rim.append(image_HW[lesion & ~binary_erosion(lesion)])
            around.append(image_HW[_ring(lesion, 1, 3) & (label_HW > 0)])
        inside, edge, outside = (float(np.median(np.concatenate(part))) for part in (centre, rim, around))
        assert edge > 1.05 * outside
        if case.diagnosis == "kind_a":
            assert inside > 1.25 * outside
        else:
            assert inside < 0.6 * outside


def test_scanners_of_two_sites_make_different_images_of_one_patient(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(brain, "load_template", template)
    config = make("mni", SITE, slices=2)
    (cases,) = simulated_cohorts(config, (SITE,))
    render = brain.renderer(config)
    noisy = HospitalConfig(
        name="north", patients=9, scanner=ScannerConfig(spacing_mm=(5, 3, 3), noise=0.1, bias_field=0.4)
    )
    one, other = render(cases[0], SITE), render(cases[0], noisy)
    np.testing.assert_array_equal(one.label_DHW, other.label_DHW)
    assert np.abs(one.stored_DHW.astype(float) - other.stored_DHW).mean() > 20


def test_written_pair_and_orientation(make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(brain, "load_template", template)
    hospital = HospitalConfig(name="north", patients=1, paired=1.0, scanner=ScannerConfig(spacing_mm=(4, 3, 3)))
    (site,) = write_hospitals(make("mni", hospital, slices=2), tmp_path)
    (patient,) = patients_of(site)
    clean, fast = read_series(site, patient, 1), read_series(site, patient, 2)
    assert (clean[0].ProtocolName, fast[0].ProtocolName) == ("HEAD T1 STANDARD", "HEAD T1 FAST")
    assert (clean[0].NumberOfAverages, fast[0].NumberOfAverages) == (9, 1)
    assert clean[0].FrameOfReferenceUID == fast[0].FrameOfReferenceUID
    assert clean[0].SOPClassUID == "1.2.840.10008.5.1.4.1.1.4"
    assert [float(image.ImagePositionPatient[2]) for image in clean] == [-2, 2]
    assert (clean[0].Rows, clean[0].Columns) == (64, 64)
    a, b = stored_DHW(clean).astype(float), stored_DHW(fast).astype(float)
    assert np.corrcoef(a.ravel(), b.ravel())[0, 1] > 0.95
    assert b[:, :4, :4].std() > a[:, :4, :4].std() + 5  # air


def test_slices_beyond_the_brain_are_refused(make: Make, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"lower hospitals\.slices to 24"):
        write_hospitals(make("mni", slices=40), tmp_path / "out")
    assert not (tmp_path / "out").exists()
