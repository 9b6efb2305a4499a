"""Medical Segmentation Decathlon, task 4, in; MR hospitals by intensity protocol out.

Antonelli et al., The Medical Segmentation Decathlon, Nature Communications 2022 (CC BY-SA 4.0). `data.root` holds
labels.csv (id, image, mask, protocol), images/*.nii.gz and masks/*.nii.gz with 1 anterior, 2 posterior. The data come
in two natural intensity protocols, `uint8-range` and `wide-range`; HospitalConfig.protocol names one by its beginning.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from shared.config import HospitalConfig, SimulationConfig
from shared.errors import ConfigError, DataError
from simulation.hospitals.cohort import Case, cohort, refuse_simulation_of_real_data
from simulation.hospitals.dataset import deal, geometry_of, read_labels, read_nifti, root_of, slices_last, stored_mr
from simulation.hospitals.volume import Renderer, Source, Volume

MASKS = ("anterior", "posterior")


def _rows(config: SimulationConfig) -> dict[str, dict[str, str]]:
    return {row["id"]: row for row in read_labels(root_of(config), ("id", "image", "mask", "protocol"))}


def cohorts(config: SimulationConfig, hospitals: Sequence[HospitalConfig]) -> tuple[tuple[Case, ...], ...]:
    refuse_simulation_of_real_data(hospitals, "hippocampus")
    rows = _rows(config)
    protocols = sorted({row["protocol"] for row in rows.values()})
    for hospital in hospitals:
        if hospital.protocol is not None and not any(name.startswith(hospital.protocol) for name in protocols):
            raise ConfigError(
                f"hospital {hospital.name!r}: protocol must begin one of {protocols}, got {hospital.protocol!r}"
            )

    def fits(hospital: HospitalConfig, item: str) -> bool:
        return hospital.protocol is None or rows[item]["protocol"].startswith(hospital.protocol)

    dealt = deal(config, hospitals, sorted(rows), fits)
    return tuple(cohort(config, h, items, [None] * len(items)) for h, items in zip(hospitals, dealt, strict=True))


def renderer(config: SimulationConfig) -> Renderer:
    root, rows = root_of(config), _rows(config)

    def render(case: Case, hospital: HospitalConfig) -> Volume:
        values, affine = read_nifti(root / rows[case.item]["image"])
        label, _ = read_nifti(root / rows[case.item]["mask"])
        if label.shape != values.shape or not np.isin(label, (0, 1, 2)).all():
            raise DataError(
                f"the mask of {case.item} in data.root must hold 0, 1, 2 on the image's grid; fetch it again"
            )
        stored, slope = stored_mr(slices_last(values))
        return Volume(
            stored_DHW=stored,
            label_DHW=slices_last(label).astype(np.uint8),
            geometry=geometry_of(affine),
            bits_stored=16,
            slope=slope,
        )

    return render


SOURCE = Source("MR", MASKS, (), cohorts, renderer, "HIPPOCAMPUS T1")
