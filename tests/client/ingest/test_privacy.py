"""An attack with a list: every identifying value of the input is looked for in everything that ingest leaves behind."""

from __future__ import annotations

import io
import logging
import re
import shutil
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import nullcontext, redirect_stderr, redirect_stdout
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest

from client.ingest import store as stores
from client.ingest.prepare import HEADER_KEYWORDS
from client.ingest.reasons import Reason
from client.ingest.run import ingest
from client.ingest.store import Store
from shared.config import DataConfig, DeidentifyConfig, IntensityConfig
from shared.errors import WardroundError

OPTIONS = ("retain_longitudinal_modified_dates", "retain_patient_characteristics", "retain_device_identity")
PERSONAL_VRS = {"PN", "UI", "DA", "DT", "TM", "LO", "SH", "ST", "LT", "UT", "AE", "UC"}
# Words of the standard, of technique and of our own vocabulary are no identifiers.
HARMLESS_KEYWORDS = {
    "Manufacturer", "ManufacturerModelName", "CodeMeaning", "CodeValue", "CodingSchemeDesignator", "ConvolutionKernel",
    "SoftwareVersions", "RescaleType", "SequenceName", "SOPClassUID", "TransferSyntaxUID", "ImplementationVersionName",
    "ReferencedSOPClassUID", "MediaStorageSOPClassUID", "SegmentLabel", "SegmentAlgorithmName", "FilterType",
    "ImagedNucleus", "TransmitCoilName", "ReceiveCoilName", "LUTExplanation", "WindowCenterWidthExplanation",
    "ContextIdentifier", "MappingResource", "ContextUID", "MappingResourceUID", "StackID",
}  # fmt: skip


def identifying_values(folder: Path) -> set[str]:
    """Names, their parts, IDs, UIDs, dates, free text, file and folder names: of all files that parse."""
    found: set[str] = set()
    for path in folder.rglob("*"):
        relative = path.relative_to(folder)
        found |= {part for name in relative.parts for part in (name, Path(name).stem)}
        if not path.is_file():
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                ds = pydicom.dcmread(path, force=True, stop_before_pixels=True)
                found |= set(_values_of(ds)) | set(_values_of(getattr(ds, "file_meta", pydicom.Dataset())))
            except Exception:  # noqa: BLE001 - whatever a broken file raises, it has no values then
                continue
    parts = {part for value in found for part in re.split(r"[\^\s=,]+", value)}
    standard = re.compile(r"1\.2\.840\.10008\.")
    return {value for value in found | parts if len(value) >= 6 and not standard.match(value)}


def _values_of(ds: pydicom.Dataset) -> Iterator[str]:
    for element in ds.iterall():
        if element.VR in PERSONAL_VRS and element.keyword not in HARMLESS_KEYWORDS:
            values = element.value if isinstance(element.value, pydicom.multival.MultiValue) else [element.value]
            yield from (str(value).strip() for value in values)


def leaks(values: set[str], content: bytes) -> list[str]:
    """Values found in bytes, as UTF-8 and as UTF-16, in any case."""
    folded = content.lower()
    found = [
        value
        for value in sorted(values)
        if value.lower().encode() in folded or value.lower().encode("utf-16-le") in folded
    ]
    # Digits in the middle of a longer number (a spacing, a mean) are not a date or an ID.
    return [
        value
        for value in found
        if not value.isdigit() or re.search(rb"(?<![\d.])" + value.encode() + rb"(?!\d)", folded)
    ]


def kept_by_the_profile(folder: Path) -> set[str]:
    """Makers, models and modalities: some files repeat them in other attributes and in file names."""
    found: set[str] = set()
    for path in (path for path in folder.rglob("*") if path.is_file()):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                ds = pydicom.dcmread(path, stop_before_pixels=True)
            except pydicom.errors.InvalidDicomError:
                continue
            technical = ("Manufacturer", "ManufacturerModelName", "Modality")
            found |= {str(ds.get(keyword, "")).casefold() for keyword in technical}
    return found


@pytest.fixture
def vocabulary(hospital: Any, data: DataConfig, tmp_path: Path) -> bytes:
    """What an ingest says and keeps of a file that identifies nobody: words of ours and of the standard."""
    blank = dict.fromkeys(hospital.identity, "")
    hospital.write_series(tmp_path / "blank", 1, **{**blank, "PatientID": "n"}, BurnedInAnnotation="YES")
    run = Run(tmp_path / "blank", tmp_path / "blank-store", data, hospital.secret)
    return run.said + run.names + run.kept + " ".join((*Reason, *HEADER_KEYWORDS)).encode()


class Run:
    """One ingest with everything that it says collected."""

    def __init__(self, source: Path, store: Path, data: DataConfig, secret: bytes) -> None:
        stream = io.StringIO()
        handler = logging.StreamHandler(stream)
        root = logging.getLogger()
        level = root.level
        root.addHandler(handler)
        root.setLevel(logging.DEBUG)
        try:
            with redirect_stdout(stream), redirect_stderr(stream), warnings.catch_warnings():
                warnings.simplefilter("always")
                report = ingest(source, store, data, secret=secret, mask_codes={}, diagnosis_codes={})
            stream.write(repr(report) + str(report.table()))
        except WardroundError as error:
            stream.write(str(error) + "".join(traceback.format_exception_only(error)) + repr(error.__cause__))
        finally:
            root.removeHandler(handler)
            root.setLevel(level)
        self.said = stream.getvalue().encode()
        self.names = "\n".join(str(path.relative_to(store)) for path in store.rglob("*")).encode()
        self.kept = b"\n".join(path.read_bytes() for path in store.rglob("*") if path.is_file())


@pytest.fixture
def busy(hospital: Any, tmp_path: Path) -> Path:
    """A source with good series, labels, a table, and every kind of broken file, each full of identifiers."""
    source = tmp_path / "Quillfeather Ottoline 19430917"
    source.mkdir()
    hospital.write_series(source, 3)
    hospital.write_series(source, 3, patient="2", PatientName="Featherstone^Ignatius", PatientBirthDate="19660102")
    hospital.write_series(source, 2, patient="3", BurnedInAnnotation="YES")
    hospital.write_series(source, 2, patient="4", PixelData=b"\0\0")
    hospital.write_series(source, 2, patient="5", ImageOrientationPatient=[1, 0, 0, 1, 0, 0])
    hospital.write_series(source, 2, patient="6", Manufacturer="Zephyrhill Infirmary workshop")
    images = [hospital.new_image(index) for index in range(3)]
    seg = hospital.new_segmentation({1: np.ones((3, 8, 6), dtype=bool)}, images)
    hospital.save(seg, source / "labels" / "Ottoline Quillfeather seg.dcm")
    orphan = hospital.new_segmentation({1: np.ones((1, 8, 6), dtype=bool)}, [hospital.new_image(patient="404")])
    hospital.save(orphan, source / "labels" / "Wilhelmina.dcm")
    patient = hospital.identity["PatientID"]
    (source / "diagnoses.csv").write_text(f"PatientID,diagnosis\n{patient}-1,none\n{patient}-2,Thistlewood knows\n")
    (source / "letter to Dr Thistlewood.txt").write_text("Dear Barnaby, Ottoline Quillfeather ...")
    name = b"Quillfeather^Ottoline"
    (source / "bad-Marchbanks.dcm").write_bytes(b"\0" * 128 + b"DICM" + b"\x10\x00\x10\x00PN" + b"\xff\xff" + name)
    whole = next(iter(source.rglob("*.dcm"))).read_bytes()
    (source / "cut-Marchbanks.dcm").write_bytes(whole[: len(whole) // 2])
    (source / "ends in a name.dcm").write_bytes(whole.replace(b"19430917", b"1943-XX!").replace(b"2\\3", b"x\\y"))
    return source


@pytest.mark.parametrize("options", [(), OPTIONS], ids=["basic", "all options"])
def test_nothing_that_identifies_anybody_is_left_behind(
    busy: Path,
    hospital: Any,
    make_data: Callable[..., DataConfig],
    vocabulary: bytes,
    tmp_path: Path,
    options: tuple[str, ...],
) -> None:
    data = make_data(deidentify=DeidentifyConfig(options=options))
    values = identifying_values(busy) | {"Barnaby", "Thistlewood", "Wilhelmina", "Ottoline again"}
    if "retain_device_identity" in options:
        values -= {"SN-998877", "SCAN-BAY-9"}
    assert {"Quillfeather", "MRN-7741902-1", "19430917", "ACC5550123", "20230314", "REQ-31337"} <= values
    values -= set(leaks(values, vocabulary))
    assert "Quillfeather" in values
    run = Run(busy, tmp_path / "store", data, hospital.secret)
    for channel in (run.said, run.names, run.kept):
        assert leaks(values, channel) == []
    store = Store.open(tmp_path / "store")
    assert len(store.series) == 3
    assert b"quarantined" in run.said
    assert leaks({"Acme"}, run.kept) == ["Acme"], "what the profile keeps is there: the search finds what there is"


def test_nothing_of_the_odd_files_is_left_behind(
    hospital: Any, make_data: Callable[..., DataConfig], vocabulary: bytes, tmp_path: Path
) -> None:
    spec = find_spec("pydicom")
    assert spec is not None
    assert spec.origin is not None
    shutil.copytree(Path(spec.origin).parent / "data" / "test_files", tmp_path / "source")
    data = make_data(
        modalities=("CT", "MR", "CR", "NM", "OT", "RTDOSE"),
        intensity=IntensityConfig(rule="percentile", low=0, high=100),
        deidentify=DeidentifyConfig(options=("retain_patient_characteristics",)),
    )
    values = identifying_values(tmp_path / "source")
    values -= set(leaks(values, vocabulary))
    kept = kept_by_the_profile(tmp_path / "source")
    values = {value for value in values if not any(value.casefold() in technical for technical in kept)}
    assert len(values) > 500
    run = Run(tmp_path / "source", tmp_path / "store", data, hospital.secret)
    for channel in (run.said, run.names):
        assert leaks(values, channel) == []
    index = (tmp_path / "store" / "index.json").read_bytes()
    found = leaks(values, index)
    assert found == [], found


@pytest.mark.parametrize("failure", ["no folder", "a file", "other rule", "other secret", "full disk", "lock", "index"])
def test_no_error_names_a_path_or_a_person(
    hospital: Any,
    data: DataConfig,
    make_data: Callable[..., DataConfig],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    failure: str,
) -> None:
    source, store = tmp_path / "Quillfeather", tmp_path / "store"
    hospital.write_series(source, 1)
    secret = hospital.secret
    ingest(source, store, data, secret=secret, mask_codes={}, diagnosis_codes={})
    if failure == "no folder":
        source = tmp_path / "Ottoline"
    elif failure == "a file":
        source = next(path for path in source.rglob("*.dcm"))
    elif failure == "other rule":
        data = make_data(masks=("spleen",))
    elif failure == "other secret":
        secret = b"z" * 32
    elif failure == "index":
        (store / "index.json").write_text('{"Quillfeather')
    elif failure == "full disk":
        hospital.write_series(source, 1, patient="2")
        monkeypatch.setattr(stores, "write_array", _full)
    held = stores.locked(store) if failure == "lock" else nullcontext()
    with held, pytest.raises(WardroundError) as refusal:
        ingest(source, store, data, secret=secret, mask_codes={}, diagnosis_codes={})
    message = str(refusal.value)
    assert "\n" not in message
    assert not re.search("Quill|Ottoline|QUILL|/|MRN", message)
    assert refusal.value.__cause__ is None
    assert refusal.value.__context__ is None or refusal.value.__suppress_context__


def _full(path: Path, array: np.ndarray) -> None:
    raise OSError(28, "No space left on device", str(path))
