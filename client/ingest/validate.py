"""A file of a hospital in; its DICOM dataset, or one reason of the fixed vocabulary, out.

pydicom warns, logs and raises with values of the file in the text (names and UIDs among them). So every call into it
goes through `reading()`: warnings and third-party loggers are silent inside, and whatever a parser raises becomes a
reason, without its message and without its cause.
"""

from __future__ import annotations

import logging
import os
import struct
import threading
import warnings
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, BinaryIO

import pydicom
from pydicom import config as pydicom_config
from pydicom.dataset import Dataset, FileDataset
from pydicom.errors import BytesLengthException, InvalidDicomError
from pydicom.filereader import read_dataset
from pydicom.uid import DeflatedExplicitVRLittleEndian, MediaStorageDirectoryStorage, SegmentationStorage

from client.ingest.reasons import Quarantined, Reason, Skipped
from client.ingest.sources import MAX_FILE_BYTES, SourceFile, open_file

MAX_PIXELS = 1 << 28
"""Samples of one instance: rows x columns x frames x channels; 1 GB as float32."""
MAX_FRAMES = 10_000
MAX_SIDE = 1 << 15
MAX_INFLATED_BYTES = 1 << 29
FREELY_INFLATED_BYTES, MOST_INFLATION = 1 << 26, 100
"""A deflated dataset of more than the first is at most so many times as large as its file: images halve, bombs grow a
thousandfold."""

# What parsers and decoders raise on broken input. Errors of our own logic (AssertionError) pass.
PARSE_ERRORS = (
    InvalidDicomError,
    BytesLengthException,
    AttributeError,
    LookupError,
    TypeError,
    ValueError,
    ArithmeticError,
    RuntimeError,
    OSError,
    EOFError,
    MemoryError,
    struct.error,
    zlib.error,
)
LOUD = ("pydicom", "pylibjpeg", "openjpeg", "libjpeg", "rle", "jpeg_ls", "highdicom")

# PS3.3 C.8: classes whose pixels often carry text drawn by a device or a person.
TEXT_CLASSES = (
    "1.2.840.10008.5.1.4.1.1.6",  # ultrasound, also .6.1 .6.2
    "1.2.840.10008.5.1.4.1.1.3",  # ultrasound multi-frame, also .3.1
    "1.2.840.10008.5.1.4.1.1.7",  # secondary capture, also .7.1 to .7.4
    "1.2.840.10008.5.1.4.1.1.77.1",  # photographs, endoscopy, microscopy
    "1.2.840.10008.5.1.4.1.1.104",  # encapsulated documents
)
TEXT_MODALITIES = frozenset({"US", "IVUS", "SC", "OT", "ES", "GM", "XC", "DOC", "OP", "SM", "BDUS", "DMS"})
TEXT_WORDS = ("SCREEN", "CAPTURE", "REPORT", "DOSE INFO", "PATIENT PROTOCOL")


class _Quiet:
    """What third parties may say, for the whole process: silent from the first who asks to the last who is done.

    Loggers and warning filters belong to the process and not to a thread: if each block restored what it had found, the
    end of one would give the loggers back while another thread still reads.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._before = ExitStack()

    def begin(self) -> None:
        with self._lock:
            if not self._inside:
                self._before.enter_context(_silenced())
            self._inside += 1

    def end(self) -> None:
        with self._lock:
            self._inside -= 1
            if not self._inside:
                self._before.close()


_quiet = _Quiet()


@contextmanager
def silent() -> Iterator[None]:
    """Inside, third parties neither log nor warn: their texts hold values of the file."""
    _quiet.begin()
    try:
        yield
    finally:
        _quiet.end()


@contextmanager
def _silenced() -> Iterator[None]:
    loggers = [logging.getLogger(name) for name in LOUD]
    before = [(logger, logger.handlers, logger.propagate) for logger in loggers]
    mode = pydicom_config.settings.reading_validation_mode
    for logger in loggers:
        # Reaches their children too, as `disabled` would not; levels would, and cost a walk over all loggers.
        logger.handlers, logger.propagate = [logging.NullHandler()], False
    pydicom_config.settings.reading_validation_mode = pydicom_config.IGNORE
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        pydicom_config.settings.reading_validation_mode = mode
        for logger, handlers, propagate in before:
            logger.handlers, logger.propagate = handlers, propagate


@contextmanager
def reading(failure: Reason) -> Iterator[None]:
    """Inside, third parties are silent; anything they raise becomes Quarantined(failure)."""
    try:
        with silent():
            yield
    except PARSE_ERRORS:
        raise Quarantined(failure) from None


def read_header(source: SourceFile) -> FileDataset:
    """Everything before the pixels. Skipped for what is no DICOM image; Quarantined for what is broken."""
    return _read(source, header_only=True)


def read_whole(source: SourceFile) -> FileDataset:
    """The dataset with its pixels."""
    return _read(source, header_only=False)


def _read(source: SourceFile, *, header_only: bool) -> FileDataset:
    if not source.regular:
        raise Skipped(Reason.LINK)
    with open_file(source.path) as file, reading(Reason.MALFORMED):
        # Its size now: a file may have grown since the folder was walked.
        _check_kind(file, os.fstat(file.fileno()).st_size)
        dataset = pydicom.dcmread(file, stop_before_pixels=header_only)
        _touch(dataset)
        return dataset


def _check_kind(file: BinaryIO, num_bytes: int) -> None:
    """Preamble, size, transfer syntax and inflated size, before anything is parsed."""
    start = file.read(132)
    if start[128:] != b"DICM":
        # Group 0002 or 0008 first, in either byte order: DICOM written without its envelope.
        bare = start[:2] in (b"\x08\x00", b"\x02\x00", b"\x00\x08", b"\x00\x02") and len(start) > 8
        if bare:
            raise Quarantined(Reason.NO_PREAMBLE)
        raise Skipped(Reason.NOT_DICOM)
    if num_bytes > MAX_FILE_BYTES:
        raise Quarantined(Reason.TOO_LARGE)
    meta = _file_meta(file)
    syntax = str(meta.get("TransferSyntaxUID") or "")
    if str(meta.get("MediaStorageSOPClassUID") or "") == MediaStorageDirectoryStorage:
        raise Skipped(Reason.DIRECTORY)
    if not syntax:
        raise Quarantined(Reason.NO_TRANSFER_SYNTAX)
    if syntax == DeflatedExplicitVRLittleEndian:
        _check_inflation(file, num_bytes)
    file.seek(0)


def _check_inflation(file: BinaryIO, num_bytes: int) -> None:
    """Ends at the limit instead of filling the memory; the parser would inflate without one."""
    most = min(MAX_INFLATED_BYTES, max(FREELY_INFLATED_BYTES, MOST_INFLATION * num_bytes))
    stream, inflated = zlib.decompressobj(-zlib.MAX_WBITS), 0
    while not stream.eof and (packed := stream.unconsumed_tail or file.read(1 << 16)):
        inflated += len(stream.decompress(packed, 1 << 20))
        if inflated > most:
            raise Quarantined(Reason.TOO_LARGE)


def _file_meta(file: BinaryIO) -> Dataset:
    """Group 0002 only: always explicit VR little endian (PS3.10 7.1)."""
    file.seek(132)
    meta: Dataset = read_dataset(file, False, True, stop_when=lambda tag, vr, length: tag >> 16 != 2)
    return meta


def _touch(dataset: Dataset) -> None:
    """Convert every value now, inside `reading`, so that no later access can raise a parser's error."""
    for part in (dataset, getattr(dataset, "file_meta", None) or Dataset()):
        for _ in part.iterall():
            pass


def check_image(dataset: Dataset, modalities: tuple[str, ...]) -> None:
    """(1) an image at all (2) of the campaign's modalities (3) within limits (4) without text in its pixels."""
    # (1)
    modality = text(dataset, "Modality").upper()
    if modality == "SEG" or sop_class(dataset) == SegmentationStorage:
        return
    if dataset.get("Rows") is None or dataset.get("Columns") is None:
        raise Skipped(Reason.NO_IMAGE) if not _claims_pixels(dataset, modalities) else Quarantined(Reason.NO_PIXELS)
    # (2)
    if not modality:
        raise Quarantined(Reason.NO_MODALITY)
    if modality not in modalities:
        raise Skipped(Reason.MODALITY)
    # (3)
    check_limits(dataset)
    # (4)
    image_type = " ".join(str(word).upper() for word in _values(dataset.get("ImageType")))
    burned_in = text(dataset, "BurnedInAnnotation").upper()
    if burned_in == "YES":
        raise Quarantined(Reason.BURNED_IN)
    if any(word in image_type for word in TEXT_WORDS):
        raise Quarantined(Reason.MAY_SHOW_TEXT)
    if burned_in != "NO" and (modality in TEXT_MODALITIES or _is_text_class(sop_class(dataset))):
        raise Quarantined(Reason.MAY_SHOW_TEXT)
    if "LOCALIZER" in image_type.split():
        raise Skipped(Reason.LOCALISER)


def check_limits(dataset: Dataset) -> None:
    """Quarantined where the header announces more pixels than the limits allow, or none."""
    with reading(Reason.MALFORMED):
        rows, columns = int(dataset.Rows), int(dataset.Columns)
        samples, frames = int(dataset.get("SamplesPerPixel") or 1), num_frames(dataset)
        if min(rows, columns, samples, frames) < 1:
            raise Quarantined(Reason.MALFORMED)
        if max(rows, columns) > MAX_SIDE or frames > MAX_FRAMES or rows * columns * samples * frames > MAX_PIXELS:
            raise Quarantined(Reason.TOO_MANY_PIXELS)


def num_frames(dataset: Dataset) -> int:
    """Frames of an instance, 1 where the attribute is absent or empty; ValueError on nonsense."""
    value = dataset.get("NumberOfFrames")
    return 1 if value in (None, "") else int(str(value))


def text(dataset: Dataset, keyword: str) -> str:
    """A value as trimmed text, "" for absent."""
    value = dataset.get(keyword)
    return "" if value is None else str(value).strip(" \0\r\n\t")


def sop_class(dataset: Dataset) -> str:
    """The SOP class, from the file meta information where the dataset's own is blank."""
    meta = getattr(dataset, "file_meta", None) or Dataset()
    return text(dataset, "SOPClassUID") or text(meta, "MediaStorageSOPClassUID")


def sop_instance(dataset: Dataset) -> str:
    """The SOP instance UID, from the file meta information where the dataset's own is blank."""
    meta = getattr(dataset, "file_meta", None) or Dataset()
    return text(dataset, "SOPInstanceUID") or text(meta, "MediaStorageSOPInstanceUID")


def _claims_pixels(dataset: Dataset, modalities: tuple[str, ...]) -> bool:
    return text(dataset, "Modality").upper() in modalities


def _is_text_class(uid: str) -> bool:
    return any(uid == known or uid.startswith(known + ".") for known in TEXT_CLASSES)


def _values(value: Any) -> list[Any]:
    if value is None or isinstance(value, str):
        return [value or ""]
    return list(value)
