"""PneumoniaMNIST in, label-skewed hospitals of single chest X-rays out.

Yang et al., MedMNIST v2, Scientific Data 2023 (CC BY 4.0); images of Kermany et al. 2018. `data.root` holds labels.csv
(split, index, label_name) and one .npz with arrays `<split>_images` (N, 28, 28) uint8. One image is one patient; the
patients of two sites are disjoint, and each site's mix of diagnoses follows HospitalConfig.balance.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import numpy.typing as npt

from shared.config import HospitalConfig, SimulationConfig
from shared.errors import ConfigError, DataError
from shared.seeding import numpy_generator
from simulation.hospitals.cohort import Case, cohort, diagnoses_of, refuse_protocol, refuse_simulation_of_real_data
from simulation.hospitals.dataset import read_labels, root_of
from simulation.hospitals.volume import Geometry, Renderer, Source, Volume

DIAGNOSES = ("normal", "pneumonia")
PIXEL_MM = 10.0  # the set does not tell; a child's chest of about 28 cm over 28 pixels
_NOWHERE = Geometry((0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (PIXEL_MM, PIXEL_MM), 1.0)


def cohorts(config: SimulationConfig, hospitals: Sequence[HospitalConfig]) -> tuple[tuple[Case, ...], ...]:
    refuse_simulation_of_real_data(hospitals, "pneumonia")
    refuse_protocol(hospitals, "pneumonia")
    left: dict[str | None, list[str]] = {name: [] for name in DIAGNOSES}
    for row in read_labels(root_of(config), ("split", "index", "label_name")):
        if row["label_name"] not in left:
            raise DataError(f"labels.csv of data.root: label_name must be one of {list(DIAGNOSES)}")
        left[row["label_name"]].append(f"{row['split']}/{row['index']}")
    for name in DIAGNOSES:
        order = numpy_generator(config.campaign.seed, "hospitals", "deal", name).permutation(len(left[name]))
        left[name] = [left[name][index] for index in order]
    return tuple(_cohort(config, hospital, left) for hospital in hospitals)


def _cohort(config: SimulationConfig, hospital: HospitalConfig, left: dict[str | None, list[str]]) -> tuple[Case, ...]:
    """Takes its images out of `left`."""
    diagnoses = diagnoses_of(config, hospital)
    for name in set(diagnoses):
        if diagnoses.count(name) > len(left.get(name, [])):
            raise ConfigError(
                f"hospital {hospital.name!r} asks for {diagnoses.count(name)} images of {name!r}, but data.root has "
                f"{len(left.get(name, []))} left; lower its patients, its balance or the number of sites"
            )
    return cohort(config, hospital, [left[name].pop() for name in diagnoses], diagnoses)


def renderer(config: SimulationConfig) -> Renderer:
    images = _read_images(root_of(config))

    def render(case: Case, hospital: HospitalConfig) -> Volume:
        split, index = case.item.split("/")
        if split not in images or not index.isdigit() or int(index) >= len(images[split]):
            raise DataError(
                "labels.csv of data.root names an image that the .npz does not hold; fetch the data set again"
            )
        return Volume(stored_DHW=images[split][int(index)][None], label_DHW=None, geometry=_NOWHERE, bits_stored=8)

    return render


def _read_images(root: Path) -> dict[str, npt.NDArray[np.uint8]]:
    """Split name -> (N, H, W) uint8."""
    archives = sorted(root.glob("*.npz"))
    if len(archives) != 1:
        raise DataError(f"data.root must hold one .npz of images, got {len(archives)}")
    try:
        with np.load(archives[0], allow_pickle=False) as arrays:
            images = {key.removesuffix("_images"): arrays[key] for key in arrays.files if key.endswith("_images")}
    except (OSError, ValueError, EOFError, BadZipFile, zlib.error):
        raise DataError("the .npz of data.root cannot be read; fetch the data set again") from None
    if not images or any(stack.ndim != 3 or stack.dtype != np.uint8 for stack in images.values()):
        raise DataError("the .npz of data.root must hold <split>_images arrays, (N, H, W) uint8")
    return images


SOURCE = Source("DX", (), DIAGNOSES, cohorts, renderer, "CHEST")
