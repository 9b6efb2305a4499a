"""A case in, an MR volume of a brain with known tissue and lesions out.

The anatomy is real: the skull-stripped T1 average and the grey and white matter maps of the ICBM 152 template of the
Montreal Neurological Institute, which nilearn ships (the notice of 1993-2009 Louis Collins, McConnell Brain Imaging
Centre, Montreal Neurological Institute, McGill University permits use, copying and distribution with that notice; the
files are read from the installed nilearn and never copied into this project). A patient is one smooth folding-free
deformation of it, one draw of tissue contrast, and the lesions of the patient's diagnosis.

The template is read at its native 1 mm: nilearn's 2 mm version is resampled from it at each call, which takes longer
and blurs the tissue maps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from shared.config import HospitalConfig, SimulationConfig
from shared.errors import ConfigError
from shared.seeding import numpy_generator
from simulation.hospitals.cohort import Case, simulated_cohorts
from simulation.hospitals.deform import deform, draw_deformation
from simulation.hospitals.lesions import LESION_KINDS, draw_lesions, insert
from simulation.hospitals.scanner import FAST_NOISE, acquire_mr, degraded_exposure, draw_exposure
from simulation.hospitals.volume import Floats, Geometry, Renderer, Source, Stored, Vector, Volume, axial, grid_mm

MASKS = ("grey matter", "white matter", "lesion")
GREY, WHITE, LESION = 1, 2, 3
FIELD_OF_VIEW_MM = 192.0
OWN_SPACING_MM: Vector = (5.0, 2.0, 2.0)
CENTRE_RAS_MM = (0.0, -18.0, 20.0)  # of the template, at the centre of the volume: ventricles and basal ganglia
LONGEST_MM = 120.0  # slices farther apart leave the brain
WHITE_SIGNAL = 0.82  # T1 signal of white matter in the template
STORED_WHITE = 900.0
FAST_PSF_MM = 0.8
LESION_DEPTH_MM = 13.0

Labels: TypeAlias = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True, eq=False)
class Template:
    """T1 signal and tissue probabilities in [0, 1], float32 (X, Y, Z) at 1 mm, axes to R, A, S."""

    t1: Floats
    grey: Floats
    white: Floats
    origin_ras_mm: Vector


@dataclass(frozen=True, slots=True)
class Contrast:
    """What a patient's age and physiology do to the T1 signal, relative to white matter at 1."""

    grey: float
    white: float
    receiver_gain: float


def load_template() -> Template:
    from nilearn.datasets import load_mni152_gm_template, load_mni152_template, load_mni152_wm_template

    images = [load(resolution=1) for load in (load_mni152_template, load_mni152_gm_template, load_mni152_wm_template)]
    assert np.array_equal(images[0].affine[:3, :3], np.eye(3)), "the template's axes are R, A, S at 1 mm"
    t1, grey, white = (np.asarray(image.dataobj, dtype=np.float32) for image in images)
    x, y, z = (float(value) for value in images[0].affine[:3, 3])
    return Template(t1, grey, white, (x, y, z))


def draw_contrast(rng: np.random.Generator) -> Contrast:
    return Contrast(float(rng.uniform(-0.06, 0.06)), float(rng.uniform(-0.04, 0.04)), float(rng.uniform(0.8, 1.2)))


def anatomy(template: Template, points_ras_mm: Floats, contrast: Contrast) -> tuple[Floats, Labels]:
    """T1 signal (1 is white matter) and labels 0, GREY, WHITE at points (3, D, H, W) of the template's space."""
    from scipy.ndimage import map_coordinates

    voxels = points_ras_mm - np.asarray(template.origin_ras_mm, dtype=np.float32).reshape(3, 1, 1, 1)
    t1, grey, white = (
        map_coordinates(v, voxels, order=1, mode="constant") for v in (template.t1, template.grey, template.white)
    )
    signal = t1 / np.float32(WHITE_SIGNAL) + grey * np.float32(contrast.grey) + white * np.float32(contrast.white)
    other = 1 - grey - white  # cerebrospinal fluid and background
    label = np.argmax(np.stack([other, grey, white]), axis=0).astype(np.uint8)
    return np.maximum(signal, 0).astype(np.float32), label


def cohorts(config: SimulationConfig, hospitals: Sequence[HospitalConfig]) -> tuple[tuple[Case, ...], ...]:
    slices = config.hospitals.slices
    for hospital in hospitals:
        between = (hospital.scanner.spacing_mm or OWN_SPACING_MM)[0]
        if slices * between > LONGEST_MM:
            raise ConfigError(
                f"hospital {hospital.name!r}: {slices} slices {between:g} mm apart reach beyond the brain; "
                f"lower hospitals.slices to {int(LONGEST_MM / between)} or the scanner's slice spacing"
            )
    return simulated_cohorts(config, hospitals)


def _geometry(hospital: HospitalConfig, slices: int) -> tuple[Geometry, tuple[int, int, int]]:
    spacing = hospital.scanner.spacing_mm or OWN_SPACING_MM
    shape = (slices, round(FIELD_OF_VIEW_MM / spacing[1]), round(FIELD_OF_VIEW_MM / spacing[2]))
    return axial(shape[1], shape[2], slices, spacing), shape


def _deep_white(label_DHW: Labels, pixel_mm: tuple[float, float]) -> npt.NDArray[np.bool_]:
    """White matter at least `LESION_DEPTH_MM` below the brain's surface: room for a lesion."""
    from scipy.ndimage import distance_transform_edt

    depth_mm = np.stack([distance_transform_edt(label_HW > 0, sampling=pixel_mm) for label_HW in label_DHW])
    return np.asarray((label_DHW == WHITE) & (depth_mm >= LESION_DEPTH_MM))


def _stored(received: Floats, gain: float) -> Stored:
    scaled = received * np.float32(STORED_WHITE * gain)
    stored: npt.NDArray[np.uint16] = np.clip(np.rint(scaled), 0, 4095).astype(np.uint16)
    return stored


def renderer(config: SimulationConfig) -> Renderer:
    template = load_template()
    seed = config.campaign.seed

    def render(case: Case, hospital: HospitalConfig) -> Volume:
        geometry, shape = _geometry(hospital, config.hospitals.slices)
        grid, pixel_mm = grid_mm(geometry, shape), geometry.pixel_spacing_mm
        rng = numpy_generator(seed, "hospitals", case.site, case.number, "anatomy")
        deformation, contrast = draw_deformation(rng), draw_contrast(rng)
        from_lps = np.asarray([-1, -1, 1], dtype=np.float32).reshape(3, 1, 1, 1)
        centre = np.asarray(CENTRE_RAS_MM, dtype=np.float32).reshape(3, 1, 1, 1)
        signal, label = anatomy(template, deform(deformation, grid * from_lps) + centre, contrast)

        lesion_rng = numpy_generator(seed, "hospitals", case.site, case.number, "lesions")
        if case.diagnosis in LESION_KINDS:
            lesions = draw_lesions(
                lesion_rng, LESION_KINDS[case.diagnosis], grid, candidates_DHW=_deep_white(label, pixel_mm)
            )
            signal, lesion_DHW = insert(signal, lesions, grid)
            label[lesion_DHW] = LESION

        exposure = draw_exposure(hospital.scanner, numpy_generator(seed, "hospitals", case.site, case.number, "scan"))
        fast = degraded_exposure(exposure, noise_factor=FAST_NOISE, extra_psf_mm=FAST_PSF_MM)
        gain = contrast.receiver_gain
        return Volume(
            stored_DHW=_stored(acquire_mr(signal, exposure, grid, pixel_mm), gain),
            label_DHW=label,
            geometry=geometry,
            bits_stored=12,
            degraded_DHW=_stored(acquire_mr(signal, fast, grid, pixel_mm), gain) if case.paired else None,
        )

    return render


SOURCE = Source("MR", MASKS, ("none", *LESION_KINDS), cohorts, renderer, "HEAD T1")
