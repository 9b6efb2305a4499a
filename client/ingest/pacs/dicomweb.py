"""A PACS over DICOMweb: QIDO-RS to find, WADO-RS to fetch, STOW-RS to send (PS3.18 10.6, 10.4, 10.5)."""

from __future__ import annotations

import secrets
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from client.ingest.pacs.config import DicomwebConfig, Pacs
from client.ingest.pacs.intake import Intake
from client.ingest.pacs.multipart import Parts, boundary_of
from client.ingest.pacs.source import (
    ALL_DATES,
    MOST_STUDIES,
    Dates,
    Failure,
    Fetched,
    FoundStudy,
    Sent,
    TransferError,
    check_uid,
    is_uid,
    same_word,
    spoken,
)  # fmt: skip
from client.ingest.pacs.web import BLOCK_BYTES, asked
from shared.errors import DataError

JSON = "application/dicom+json"
PAGE = 500
BATCH_FILES, BATCH_BYTES = 50, 256 << 20

STUDY_DATE, MODALITIES, MODALITY = "00080020", "00080061", "00080060"
BODY_PART, PATIENT_ID, STUDY_UID, SERIES_UID = "00180015", "00100020", "0020000D", "0020000E"
FAILED, REFERENCED, FAILURE_REASON = "00081198", "00081199", "00081197"

Row = Mapping[str, Any]


class DicomwebSource:
    """See client/ingest/pacs/source.py."""

    def __init__(self, pacs: Pacs, web: DicomwebConfig) -> None:
        self._pacs, self._web = pacs, web
        self._studies = web.url.rstrip("/") + "/studies"

    def echo(self) -> str:
        try:
            self._page(self._studies, {"limit": "1"})
        except TransferError as error:
            raise spoken(error.failure, self._pacs.where) from None
        return f"{self._pacs.where} answers queries over DICOMweb"

    def find(
        self, modality: str, body_part: str | None = None, dates: Dates = ALL_DATES, *, limit: int | None = None
    ) -> tuple[FoundStudy, ...]:
        """Servers may ignore a key that they do not match by (PS3.18 8.3.4): every answer is compared here again."""
        query = {"ModalitiesInStudy": modality, "includefield": MODALITIES}
        if str(dates):
            query["StudyDate"] = str(dates)
        found = []
        try:
            rows = sorted(self._rows(self._studies, query, STUDY_UID), key=_by_date)
            for row in rows:
                study = FoundStudy(_text(row, STUDY_UID), _text(row, PATIENT_ID), _text(row, STUDY_DATE))
                if dates.hold(study.date) and self._has(study, row, modality, body_part):
                    found.append(study)
                if limit is not None and len(found) >= limit:
                    break
        except TransferError as error:
            raise spoken(error.failure, self._pacs.where) from None
        return tuple(found)

    def fetch(self, study_uid: str, folder: Path) -> Fetched:
        check_uid(study_uid)
        intake = Intake(study_uid, folder, self._pacs.most_files, self._pacs.most_bytes)
        accept = 'multipart/related; type="application/dicom"; transfer-syntax=*'
        try:
            with asked(self._pacs, self._web, f"{self._studies}/{study_uid}", accept=accept) as answer:
                answer.expect(200, 206)
                for media_type, blocks in Parts(answer.blocks(), boundary_of(answer.content_type)):
                    if media_type == "application/dicom":
                        intake.write(blocks)
                    else:
                        intake.failed[Failure.NOT_UNDERSTOOD] += 1
        except TransferError as error:
            intake.failed[error.failure] += 1
        return intake.fetched()

    def send(self, files: Sequence[Path]) -> Sent:
        stored, failed = 0, Counter[Failure]()
        for batch in _batches(files, failed):
            try:
                sent = self._store(batch)
            except TransferError as error:
                if error.failure is Failure.NO_CONNECTION and not stored:
                    raise spoken(error.failure, self._pacs.where) from None
                failed[error.failure] += len(batch)
            else:
                stored += sent.stored
                failed.update(sent.failed)
        return Sent(stored, dict(failed))

    # ------------------------------------------------------------------------------------------------------- QIDO

    def _has(self, study: FoundStudy, row: Row, modality: str, body_part: str | None) -> bool:
        """Whether one series of the study is of the modality and the body part."""
        told = _texts(row, MODALITIES)
        if body_part is None and told:
            return any(same_word(modality, one) for one in told)
        series = self._rows(
            f"{self._studies}/{study.uid}/series", {"Modality": modality, "includefield": BODY_PART}, SERIES_UID
        )
        return any(
            same_word(modality, _text(one, MODALITY))
            and (body_part is None or same_word(body_part, _text(one, BODY_PART)))
            for one in series
        )

    def _rows(self, url: str, query: Mapping[str, str], key: str) -> list[Row]:
        """All pages, each thing once. Ends at a page without news: servers cap pages, and some know no offset."""
        rows: dict[str, Row] = {}
        offset = 0
        while True:
            page = self._page(url, {**query, "limit": str(PAGE), "offset": str(offset)})
            before = len(rows)
            for row in page:
                if is_uid(uid := _text(row, key)):
                    rows.setdefault(uid, row)
            if len(rows) > MOST_STUDIES:
                raise TransferError(Failure.TOO_MANY)
            if len(rows) == before:
                return list(rows.values())
            offset += len(page)

    def _page(self, url: str, query: Mapping[str, str]) -> list[Row]:
        with asked(self._pacs, self._web, url, accept=JSON, query=query) as answer:
            answer.expect(200, 204, 206)
            if answer.status == 204:
                return []
            values = answer.json()
        if not isinstance(values, list) or not all(isinstance(row, dict) for row in values):
            raise TransferError(Failure.NOT_UNDERSTOOD)
        return values

    # ------------------------------------------------------------------------------------------------------- STOW

    def _store(self, batch: Sequence[Path]) -> Sent:
        boundary = secrets.token_hex(16)
        url = (self._web.stow_url or self._web.url).rstrip("/") + "/studies"
        headers = {
            "Content-Type": f'multipart/related; type="application/dicom"; boundary={boundary}',
            "Content-Length": str(_length(batch, boundary)),
        }
        with asked(self._pacs, self._web, url, accept=JSON, body=_body(batch, boundary), headers=headers) as answer:
            if answer.status == 413 and len(batch) > 1:
                half = len(batch) // 2
                first, second = self._store(batch[:half]), self._store(batch[half:])
                return Sent(first.stored + second.stored, Counter(first.failed) + Counter(second.failed))
            answer.expect(200, 202, 409)
            values = answer.json()
        return _sent(values[0] if isinstance(values, list) and len(values) == 1 else values, len(batch))


def _batches(files: Sequence[Path], failed: Counter[Failure]) -> Iterator[list[Path]]:
    batch: list[Path] = []
    num_bytes = 0
    for path in files:
        try:
            size = path.stat().st_size
        except OSError:
            failed[Failure.UNREADABLE] += 1
            continue
        if batch and (len(batch) >= BATCH_FILES or num_bytes + size > BATCH_BYTES):
            yield batch
            batch, num_bytes = [], 0
        batch.append(path)
        num_bytes += size
    if batch:
        yield batch


def _head(boundary: str) -> bytes:
    return f"--{boundary}\r\nContent-Type: application/dicom\r\n\r\n".encode()


def _length(batch: Sequence[Path], boundary: str) -> int:
    envelope = len(_head(boundary)) + len(b"\r\n")
    return sum(envelope + path.stat().st_size for path in batch) + len(f"--{boundary}--\r\n")


def _body(batch: Sequence[Path], boundary: str) -> Iterator[bytes]:
    for path in batch:
        yield _head(boundary)
        try:
            with path.open("rb") as file:
                while block := file.read(BLOCK_BYTES):
                    yield block
        except OSError:
            raise DataError("a file to send can no longer be read; do not change it before it is sent") from None
        yield b"\r\n"
    yield f"--{boundary}--\r\n".encode()


def _sent(values: Any, files: int) -> Sent:
    """The Store Instances Response (PS3.18 10.5.3.2): what the origin server says of every instance."""
    if not isinstance(values, dict):
        raise TransferError(Failure.NOT_UNDERSTOOD)
    stored = min(files, len(_items(values, REFERENCED)))
    failed: Counter[Failure] = Counter()
    for item in _items(values, FAILED)[: files - stored]:
        failed[_store_failure(_text(item, FAILURE_REASON))] += 1
    unsaid = files - stored - sum(failed.values())
    if unsaid:
        failed[Failure.NOT_UNDERSTOOD] += unsaid
    return Sent(stored, failed)


def _store_failure(reason: str) -> Failure:
    """PS3.18 table 10.5.3-2, and PS3.4 B.2.3 for the ranges."""
    code = int(reason) if reason.isdecimal() else 0
    if code in (0x0122, 0x0112):
        return Failure.NOT_ACCEPTED
    return Failure.REFUSED if code in (0x0124,) or code >> 12 == 0xC or code >> 8 == 0xA9 else Failure.PACS_ERROR


def _items(values: Row, tag: str) -> list[Row]:
    element = values.get(tag)
    items = element.get("Value") if isinstance(element, dict) else None
    return [item for item in items if isinstance(item, dict)] if isinstance(items, list) else []


def _texts(row: Row, tag: str) -> list[str]:
    """Values of an element of the DICOM JSON model (PS3.18 F.2) as texts."""
    element = row.get(tag)
    values = element.get("Value") if isinstance(element, dict) else None
    return [str(value) for value in values if isinstance(value, str | int)] if isinstance(values, list) else []


def _text(row: Row, tag: str) -> str:
    return next(iter(_texts(row, tag)), "")


def _by_date(row: Row) -> tuple[str, str]:
    return _text(row, STUDY_DATE), _text(row, STUDY_UID)
