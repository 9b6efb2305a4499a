"""Random de-identified stores for measurements: a campaign's data rule in, stores without any DICOM out."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from client.ingest.store import Index, SeriesRecord, array_path, campaign_rule, locked, write_array, write_index
from shared.config import DataConfig, build, to_dict
from shared.seeding import derived_seed, numpy_generator


def write_random_store(folder: Path, data: DataConfig, *, patients: int, slices: int, seed: int) -> Path:
    """One series of `slices` random images per patient, each patient with a mask and a diagnosis in turn.

    Images are blobs of the diagnosis' brightness on noise, so that there is something to learn.
    """
    with locked(folder):
        series = {}
        for number in range(patients):
            record = _record(number, data, slices, seed)
            rng = numpy_generator(seed, "store", number)
            _write_arrays(folder, record, len(data.masks), rng)
            series[record.key] = record
        # Built anew, as a site builds it from the campaign's file: there 1 has become 1.0.
        rule = {"campaign": campaign_rule(build(DataConfig, to_dict(data))), "labels": {}}
        write_index(folder, Index(rule=rule, secret_check="none", generation=1, series=series))
    return folder


def _record(number: int, data: DataConfig, slices: int, seed: int) -> SeriesRecord:
    key = f"{derived_seed(seed, 'series', number):016x}"
    return SeriesRecord(
        key=key,
        patient=f"patient-{key}",
        study=f"study-{key}",
        modality=data.ingest.modalities[0],
        shape=(slices, data.channels, *data.image_size),
        spacing_mm=(1.0, 1.0, 1.0),
        has_mask=bool(data.masks),
        diagnosis=number % len(data.diagnoses) if data.diagnoses else -1,
        generation=1,
    )


def _write_arrays(folder: Path, record: SeriesRecord, num_masks: int, rng: np.random.Generator) -> None:
    depth, channels, height, width = record.shape
    image_DCHW = rng.random((depth, channels, height, width), dtype=np.float32) * 0.3
    mask_DHW = np.zeros((depth, height, width), np.uint8)
    rows, columns = np.ogrid[:height, :width]
    for plane in range(depth):
        for code in range(1, max(num_masks, 1) + 1):
            centre_row, centre_column = rng.integers(8, height - 8), rng.integers(8, width - 8)
            blob_HW = (rows - centre_row) ** 2 + (columns - centre_column) ** 2 < (min(height, width) / 8) ** 2
            image_DCHW[plane, :, blob_HW] += 0.2 + 0.4 * max(record.diagnosis, 0) + 0.1 * code
            mask_DHW[plane, blob_HW] = code
    write_array(array_path(folder, record, "image"), np.clip(image_DCHW, 0, 1))
    if record.has_mask:
        write_array(array_path(folder, record, "mask"), mask_DHW)
