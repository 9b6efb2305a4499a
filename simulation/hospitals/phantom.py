"""A case in, a CT-like body of ellipses in Hounsfield units out: a field of view of 320 mm in milliseconds.

Fat ring, muscle, spine, two organs (one of them the `organ`), and in patients with the diagnosis `lesion` one or two
bright lesions inside the organ, long enough along the body that nearly every slice shows one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from shared.config import HospitalConfig, SimulationConfig
from shared.errors import ConfigError
from shared.seeding import numpy_generator
from simulation.hospitals.cohort import Case, simulated_cohorts
from simulation.hospitals.scanner import LOW_DOSE_NOISE, acquire_ct, degraded_exposure, draw_exposure
from simulation.hospitals.volume import Floats, Renderer, Source, Stored, Volume, axial, grid_mm

FIELD_OF_VIEW_MM = 320.0
SLICE_MM = 5.0
AIR_HU, FAT_HU, BRIGHTEST_HU = -1000.0, -90.0, 200.0
INTERCEPT_HU = -1024.0
MASKS = ("organ", "lesion")


@dataclass(frozen=True, slots=True)
class Ellipsoid:
    """Centre and half-axes in mm along L, P, S; value in HU."""

    centre_mm: tuple[float, float, float]
    half_mm: tuple[float, float, float]
    value_hu: float


@dataclass(frozen=True, slots=True)
class Body:
    """Painted in this order: later ones over earlier ones."""

    tissues: tuple[Ellipsoid, ...]
    organ: Ellipsoid
    lesions: tuple[Ellipsoid, ...]


def draw_body(rng: np.random.Generator, length_mm: float, *, diseased: bool) -> Body:
    """`length_mm`: how far the slices reach along the body."""
    width, depth = rng.uniform(125, 148), rng.uniform(88, 108)
    endless = 50 * length_mm + 1000
    fat = float(rng.uniform(8, 14))
    tissues = (
        Ellipsoid((0, 0, 0), (width, depth, endless), FAT_HU),
        Ellipsoid((0, 0, 0), (width - fat, depth - fat, endless), float(rng.uniform(25, 50))),
        Ellipsoid((0, depth - fat - 26, 0), (19, 17, endless), 350.0),
        Ellipsoid(
            (rng.uniform(45, 60), rng.uniform(-15, 10), 0), (28, 24, 1.5 * length_mm), float(rng.uniform(60, 75))
        ),
    )
    centre = (float(rng.uniform(-48, -36)), float(rng.uniform(-22, -6)), float(rng.uniform(-0.1, 0.1) * length_mm))
    half = (float(rng.uniform(52, 64)), float(rng.uniform(42, 52)), 1.2 * length_mm)
    organ = Ellipsoid(centre, half, float(rng.uniform(95, 115)))
    lesions = tuple(_draw_lesion(rng, organ, length_mm, side) for side in (-1, 1)[: int(rng.integers(1, 3))])
    return Body(tissues, organ, lesions if diseased else ())


def _draw_lesion(rng: np.random.Generator, organ: Ellipsoid, length_mm: float, side: int) -> Ellipsoid:
    x, y, _ = organ.centre_mm
    centre = (
        x + side * float(rng.uniform(0.35, 0.5)) * organ.half_mm[0],
        y + float(rng.uniform(-0.25, 0.25)) * organ.half_mm[1],
        float(rng.uniform(-0.1, 0.1)) * length_mm,
    )
    half = (float(rng.uniform(14, 20)), float(rng.uniform(14, 20)), 0.75 * length_mm)
    return Ellipsoid(centre, half, float(rng.uniform(180, BRIGHTEST_HU)))


def _radius(ellipsoid: Ellipsoid, grid: Floats) -> Floats:
    """1 on the surface, below 1 inside."""
    parts = zip(grid, ellipsoid.centre_mm, ellipsoid.half_mm, strict=True)
    squared = sum(((axis - np.float32(centre)) / np.float32(half)) ** 2 for axis, centre, half in parts)
    return np.asarray(np.sqrt(squared), dtype=np.float32)


def paint(body: Body, grid: Floats, pixel_mm: float) -> tuple[Floats, npt.NDArray[np.uint8]]:
    """HU (D, H, W) with edges one pixel wide, and labels 1 organ, 2 lesion where the pixel's centre lies inside."""
    image_hu = np.full(grid.shape[1:], AIR_HU, dtype=np.float32)
    label = np.zeros(grid.shape[1:], dtype=np.uint8)
    layers = [(shape, 0) for shape in body.tissues] + [(body.organ, 1)] + [(shape, 2) for shape in body.lesions]
    for shape, code in layers:
        radius = _radius(shape, grid)
        inside = np.clip((1 - radius) * np.float32(min(shape.half_mm[:2]) / pixel_mm) + np.float32(0.5), 0, 1)
        image_hu += inside * (np.float32(shape.value_hu) - image_hu)
        if code:
            label[radius < 1] = code
    return image_hu, label


def _stored(image_hu: Floats) -> Stored:
    stored: npt.NDArray[np.int16] = np.clip(np.rint(image_hu - np.float32(INTERCEPT_HU)), 0, 4095).astype(np.int16)
    return stored


def cohorts(config: SimulationConfig, hospitals: Sequence[HospitalConfig]) -> tuple[tuple[Case, ...], ...]:
    for hospital in hospitals:
        if (hospital.scanner.contrast_gamma, hospital.scanner.bias_field) != (1.0, 0.0):
            raise ConfigError(
                f"hospital {hospital.name!r}: a CT scanner is calibrated in HU; remove contrast_gamma and bias_field, "
                "or choose data=mni"
            )
    return simulated_cohorts(config, hospitals)


def renderer(config: SimulationConfig) -> Renderer:
    rows, columns = config.campaign.data.image_size
    slices = config.hospitals.slices

    def render(case: Case, hospital: HospitalConfig) -> Volume:
        scanner = hospital.scanner
        spacing = scanner.spacing_mm or (SLICE_MM, FIELD_OF_VIEW_MM / rows, FIELD_OF_VIEW_MM / columns)
        shape = (slices, round(FIELD_OF_VIEW_MM / spacing[1]), round(FIELD_OF_VIEW_MM / spacing[2]))
        geometry = axial(shape[1], shape[2], slices, spacing)
        grid, pixel_mm = grid_mm(geometry, shape), geometry.pixel_spacing_mm
        rng = numpy_generator(config.campaign.seed, "hospitals", case.site, case.number, "body")
        body = draw_body(rng, slices * spacing[0], diseased=case.diagnosis == "lesion")
        image_hu, label = paint(body, grid, min(pixel_mm))
        exposure = draw_exposure(scanner, rng)
        low_dose = degraded_exposure(exposure, noise_factor=LOW_DOSE_NOISE)
        return Volume(
            stored_DHW=_stored(acquire_ct(image_hu, exposure, pixel_mm, BRIGHTEST_HU)),
            label_DHW=label,
            geometry=geometry,
            bits_stored=16,
            intercept=INTERCEPT_HU,
            degraded_DHW=_stored(acquire_ct(image_hu, low_dose, pixel_mm, BRIGHTEST_HU)) if case.paired else None,
        )

    return render


SOURCE = Source("CT", MASKS, ("none", "lesion"), cohorts, renderer, "ABDOMEN")
