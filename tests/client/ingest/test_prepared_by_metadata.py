"""What an exported network's file says of its input is enough to prepare an image as a site does."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
import torch
from scipy import ndimage

from client.ingest.run import ingest
from client.ingest.store import Store
from shared.config import CampaignConfig, IngestConfig, IntensityConfig
from shared.export_metadata import metadata
from shared.images.intensity import pad_or_crop

Array = np.ndarray[Any, Any]


def prepared(folder: Path, told: Mapping[str, str]) -> Array:
    """(D, 1, H, W) from DICOM files and the metadata alone: a slower twin of the ingest, in float64."""
    files = [pydicom.dcmread(path) for path in folder.rglob("*.dcm")]
    first = files[0]
    row, column = np.array(first.ImageOrientationPatient, float).reshape(2, 3)
    files.sort(key=lambda file: float(np.cross(row, column) @ np.array(file.ImagePositionPatient, float)))
    values = np.stack([file.pixel_array * float(file.RescaleSlope) + float(file.RescaleIntercept) for file in files])
    lowest, highest = (end * float(first.RescaleSlope) + float(first.RescaleIntercept) for end in (-(2**15), 2**15 - 1))
    if first.PhotometricInterpretation == "MONOCHROME1":
        values = lowest + highest - values
    low, high = lowest, highest
    if told["intensity_rule"] != "range":
        low, high = float(told["intensity_low"]), float(told["intensity_high"])
    if told["intensity_rule"] == "percentile":
        low, high = np.percentile(values, (low, high))
    if len(values) >= 8:  # the series of these tests are axial, so that axes are flipped only
        values = values[:: 1 if np.cross(row, column)[2] > 0 else -1, :: int(column[1]), :: int(row[0])]
    wanted = json.loads(told["spacing_mm"])
    if wanted is not None:
        own = (5.0, *map(float, first.PixelSpacing))
        for axis, (new, old) in enumerate(zip(wanted, own, strict=True)):
            values = resampled(values, axis, new / old)
    values = (values - low) / (high - low)
    if json.loads(told["intensity_clip"]):
        values = values.clip(0, 1)
    for axis, size in zip((1, 2), json.loads(told["image_size"]), strict=True):
        values = fitted(values, axis, size, float(told["size_fill"]))
    return values[:, None]


def resampled(values: Array, axis: int, factor: float) -> Array:
    if factor > 1:
        values = ndimage.gaussian_filter1d(values, (factor - 1) / 2, axis, mode="nearest")
    size = values.shape[axis]
    places = np.arange(0, size - 1 + 1e-6, factor)
    return np.apply_along_axis(lambda line: np.interp(places, np.arange(size), line), axis, values)


def fitted(values: Array, axis: int, wanted: int, fill: float) -> Array:
    """The extra one of an odd difference is the last."""
    size = values.shape[axis]
    before = abs(wanted - size) // 2
    if size >= wanted:
        return values.take(range(before, before + wanted), axis)
    margins = [(0, 0)] * values.ndim
    margins[axis] = (before, wanted - size - before)
    return np.pad(values, margins, constant_values=fill)


@pytest.mark.parametrize(
    ("rule", "spacing_mm", "image_size", "slices", "header"),
    [
        (IntensityConfig(rule="percentile", low=5, high=95), None, (16, 24), 3, {}),
        (IntensityConfig(rule="percentile", low=0.5, high=99.5, clip=False), (6.0, 0.5, 0.5), (16, 24), 3, {}),
        (IntensityConfig(rule="window", low=-950, high=-400), (7.0, 3.0, 1.0), (8, 8), 9, {}),
        (IntensityConfig(rule="window", low=-950, high=-400, clip=False), None, (8, 8), 9, {"flipped": True}),
        (IntensityConfig(rule="window", low=-950, high=-400), None, (8, 8), 3, {"flipped": True}),
        (IntensityConfig(rule="range"), (5.0, 1.9, 2.9), (8, 8), 3, {"PhotometricInterpretation": "MONOCHROME1"}),
    ],
)
def test_the_metadata_of_an_exported_network_prepares_an_image_as_the_ingest_does(
    rule: IntensityConfig,
    spacing_mm: tuple[float, float, float] | None,
    image_size: tuple[int, int],
    slices: int,
    header: dict[str, Any],
    campaign: CampaignConfig,
    hospital: Any,
    tmp_path: Path,
) -> None:
    if header.pop("flipped", False):
        header = {"ImageOrientationPatient": [-1, 0, 0, 0, 1, 0]}
    hospital.write_series(tmp_path / "source", slices, **header)
    agreed = IngestConfig(modalities=("CT",), spacing_mm=spacing_mm, intensity=rule)
    data = replace(campaign.data, kind="store", ingest=agreed, image_size=image_size)
    ingest(tmp_path / "source", tmp_path / "store", data, secret=hospital.secret, mask_codes={}, diagnosis_codes={})
    store = Store.open(tmp_path / "store")
    told = metadata(replace(campaign, data=data), "recogniser", ())

    of_store = store.rule["campaign"]["ingest"]
    assert json.loads(told["spacing_mm"]) == of_store["spacing_mm"]
    assert json.loads(told["modalities"]) == of_store["modalities"]
    assert json.loads(told["intensity_clip"]) == of_store["intensity"]["clip"]
    assert told["intensity_rule"] == of_store["intensity"]["rule"]

    (record,) = store.series
    trained_on = pad_or_crop(torch.from_numpy(np.array(store.image(record.key))), image_size).numpy()
    assert np.ptp(trained_on) > 0.005
    np.testing.assert_allclose(prepared(tmp_path / "source", told), trained_on, rtol=0, atol=1e-5)
