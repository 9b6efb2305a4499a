"""A brain in, the same brain with lesions of one kind and their mask out. Draw, then insert.

kind_a: compact bright blob with a soft edge. kind_b: ring, a dark centre in a bright rim. Lesions are spread along the
slices so that nearly every slice of a diseased patient shows one: the recogniser learns a diagnosis from single slices.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from simulation.hospitals.volume import Floats, Vector

HALF_HEIGHT_MM = (8.0, 11.0)
APART_MM = 11.0  # slices between the centres of two neighbours
BARREL_END = 0.25  # share of the cross-section that is left at the last slice


@dataclass(frozen=True, slots=True)
class LesionKind:
    radius_mm: tuple[float, float]  # in the slice
    centre_signal: float  # white matter is 1
    rim_signal: float
    rim_width: float  # of the radius; 0: no rim
    softness: float  # of the radius


LESION_KINDS = {
    "kind_a": LesionKind(radius_mm=(6.0, 9.0), centre_signal=1.35, rim_signal=0, rim_width=0, softness=0.15),
    "kind_b": LesionKind(radius_mm=(9.0, 13.0), centre_signal=0.3, rim_signal=1.35, rim_width=0.38, softness=0.06),
}


@dataclass(frozen=True, slots=True)
class Lesion:
    kind: LesionKind
    centre_mm: Vector
    half_axes_mm: Vector
    angle: float  # of the in-plane axes
    lobes: tuple[tuple[float, float], ...]  # (amplitude, phase) of the outline's 2nd, 3rd, ... harmonic


def draw_lesions(
    rng: np.random.Generator, kind: LesionKind, grid_mm: Floats, *, candidates_DHW: npt.NDArray[np.bool_]
) -> tuple[Lesion, ...]:
    """One lesion about every `APART_MM` along the slices, each centred in a candidate pixel away from the others."""
    heights = grid_mm[2, :, 0, 0]
    low, high = float(heights.min()), float(heights.max())
    count = max(2, round((high - low) / APART_MM))
    lesions: list[Lesion] = []
    for index in range(count):
        height = low + (index + 0.5 + float(rng.uniform(-0.2, 0.2))) * (high - low) / count
        nearest = int(np.abs(heights - height).argmin())
        lesions.append(
            _draw_lesion(rng, kind, _centre(rng, grid_mm[:, nearest], candidates_DHW[nearest], lesions), height)
        )
    return tuple(lesions)


def _centre(
    rng: np.random.Generator, grid_mm: Floats, candidates_HW: npt.NDArray[np.bool_], others: list[Lesion]
) -> tuple[float, float]:
    """Of 20 random candidates the one farthest from the two lesions before: neighbours in height must not merge."""
    x, y = grid_mm[0][candidates_HW], grid_mm[1][candidates_HW]
    if not x.size:
        return 0.0, 0.0
    picks = rng.integers(x.size, size=20)
    gaps = [np.hypot(x[picks] - o.centre_mm[0], y[picks] - o.centre_mm[1]) for o in others[-2:]]
    best = picks[int(np.argmax(np.min(gaps, axis=0)))] if gaps else picks[0]
    return float(x[best]), float(y[best])


def _draw_lesion(rng: np.random.Generator, kind: LesionKind, centre: tuple[float, float], height: float) -> Lesion:
    return Lesion(
        kind=kind,
        centre_mm=(*centre, height),
        half_axes_mm=(
            float(rng.uniform(*kind.radius_mm)),
            float(rng.uniform(*kind.radius_mm)),
            float(rng.uniform(*HALF_HEIGHT_MM)),
        ),
        angle=float(rng.uniform(0, np.pi)),
        lobes=tuple((float(rng.uniform(0, 0.3 / order)), float(rng.uniform(0, 2 * np.pi))) for order in (2, 3, 4)),
    )


def _radius(lesion: Lesion, grid_mm: Floats) -> Floats:
    """1 on the lobed outline, below 1 inside."""
    x, y, z = (axis - np.float32(c) for axis, c in zip(grid_mm, lesion.centre_mm, strict=True))
    cosine, sine = np.float32(np.cos(lesion.angle)), np.float32(np.sin(lesion.angle))
    a, b, c = (np.float32(half) for half in lesion.half_axes_mm)
    u, v, w = (cosine * x + sine * y) / a, (cosine * y - sine * x) / b, z / c
    around = np.arctan2(v, u)
    outline = 1 + sum(
        np.float32(amp) * np.sin(order * around + np.float32(phase))
        for order, (amp, phase) in enumerate(lesion.lobes, 2)
    )
    # A barrel with flat ends, not an ellipsoid: every slice that meets the lesion cuts its centre as well as its rim.
    barrel = np.sqrt(np.maximum(1 - w**4, np.float32(BARREL_END)))
    return np.where(w**4 < 1 - BARREL_END, np.hypot(u, v) / (outline * barrel), np.float32(9)).astype(np.float32)


def _sigmoid(value: Floats) -> Floats:
    return np.asarray(1 / (1 + np.exp(-np.clip(value, -30, 30))), dtype=np.float32)


def insert(signal_DHW: Floats, lesions: tuple[Lesion, ...], grid_mm: Floats) -> tuple[Floats, npt.NDArray[np.bool_]]:
    """The signal with lesions, and the mask of every pixel inside an outline."""
    signal, mask = signal_DHW.copy(), np.zeros(signal_DHW.shape, dtype=bool)
    for lesion in lesions:
        kind, radius = lesion.kind, _radius(lesion, grid_mm)
        inside = _sigmoid((1 - radius) / np.float32(kind.softness))
        core = _sigmoid((1 - kind.rim_width - radius) / np.float32(kind.softness)) if kind.rim_width else inside
        tissue = core * np.float32(kind.centre_signal) + (1 - core) * np.float32(kind.rim_signal or kind.centre_signal)
        signal += inside * (tissue - signal)
        mask |= radius < 1
    return signal, mask
