"""A PACS over DIMSE: C-ECHO and C-FIND, C-GET or C-MOVE, C-STORE (PS3.4 annexes A to C, study root)."""

from __future__ import annotations

import socket
import ssl
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydicom.dataset import Dataset
from pydicom.filereader import read_file_meta_info
from pydicom.multival import MultiValue
from pynetdicom import build_context, build_role, evt
from pynetdicom.sop_class import (
    StudyRootQueryRetrieveInformationModelFind as FIND,
)  # fmt: skip
from pynetdicom.sop_class import (
    StudyRootQueryRetrieveInformationModelGet as GET,
)
from pynetdicom.sop_class import (
    StudyRootQueryRetrieveInformationModelMove as MOVE,
)
from pynetdicom.sop_class import (
    Verification,
)

from client.ingest.pacs.config import DimseConfig, Pacs
from client.ingest.pacs.entity import MOST_CONTEXTS, PLAIN, entity, get_contexts
from client.ingest.pacs.intake import Intake
from client.ingest.pacs.listen import CANNOT_UNDERSTAND, OUT_OF_RESOURCES, SUCCESS, storage_server
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
from client.ingest.pacs.tls import client_context
from client.ingest.validate import PARSE_ERRORS, silent
from shared.errors import DataError, WardroundError

PENDING = (0xFF00, 0xFF01)
WARNING = (0xB000, 0xB006, 0xB007)
LOCAL_ERRORS = (AttributeError, ValueError, TypeError, KeyError, RuntimeError)
"""What pynetdicom raises where a request cannot be sent: no context, no association, nothing that can be encoded."""


@dataclass(frozen=True, slots=True)
class _ToSend:
    path: Path
    kind: tuple[str, str]
    """SOP class, transfer syntax."""


class DimseSource:
    """See client/ingest/pacs/source.py."""

    def __init__(self, pacs: Pacs, dimse: DimseConfig) -> None:
        self._pacs, self._dimse = pacs, dimse

    def echo(self) -> str:
        with self._asking([build_context(Verification), build_context(FIND)]) as association:
            _check_status(association.send_c_echo())
            # A question about a study that cannot be: an answer without matches says that queries are answered.
            self._matches(association, _question("STUDY", StudyInstanceUID="1.2.826.0.1.3680043.8.498.0"))
        return f"{self._dimse.title} at {self._pacs.where} answers C-ECHO and C-FIND"

    def find(
        self, modality: str, body_part: str | None = None, dates: Dates = ALL_DATES, *, limit: int | None = None
    ) -> tuple[FoundStudy, ...]:
        """Body parts are asked for and compared here: matching by them is optional for a PACS (PS3.4 C.6.2.1.3)."""
        question = _question(
            "STUDY", StudyDate=str(dates), ModalitiesInStudy=modality, StudyInstanceUID="", PatientID=""
        )
        found: list[FoundStudy] = []
        with self._asking([build_context(FIND)]) as association:
            answers = {_told(row, "StudyInstanceUID"): row for row in self._matches(association, question)}
            ordered = sorted(answers.items(), key=lambda item: (_told(item[1], "StudyDate"), item[0]))
            for uid, row in ordered:
                study = FoundStudy(uid, _told(row, "PatientID"), _told(row, "StudyDate"))
                if is_uid(uid) and dates.hold(study.date) and self._has(association, study, row, modality, body_part):
                    found.append(study)
                if limit is not None and len(found) >= limit:
                    break
        return tuple(found)

    def fetch(self, study_uid: str, folder: Path) -> Fetched:
        check_uid(study_uid)
        intake = Intake(study_uid, folder, self._pacs.most_files, self._pacs.most_bytes)
        trouble: list[WardroundError] = []
        store = _storing(intake, trouble)
        try:
            if self._dimse.retrieve == "get":
                self._get(study_uid, intake, store)
            else:
                self._move(study_uid, intake, store)
        except TransferError as error:
            intake.failed[error.failure] += 1
        if trouble:
            raise trouble[0]
        return intake.fetched()

    def send(self, files: Sequence[Path]) -> Sent:
        stored, failed = 0, Counter[Failure]()
        for batch in _by_contexts(files, failed):
            left = len(batch)
            try:
                with self._associated(_store_contexts(batch)) as association:
                    for one in batch:
                        failure = _store(association, one.path)
                        left -= 1
                        stored += failure is None
                        if failure is not None:
                            failed[failure] += 1
                        if failure is Failure.CUT_OFF:
                            raise TransferError(failure)
            except TransferError as error:
                if error.failure in (Failure.NO_CONNECTION, Failure.REFUSED) and not stored:
                    raise spoken(error.failure, self._pacs.where) from None
                if left:
                    failed[error.failure] += left
        return Sent(stored, dict(failed))

    # ------------------------------------------------------------------------------------------------ associations

    @contextmanager
    def _asking(self, contexts: list[Any]) -> Iterator[Any]:
        """An association for questions: a failure of it is the caller's, in one line."""
        try:
            with self._associated(contexts) as association:
                yield association
        except TransferError as error:
            raise spoken(error.failure, self._pacs.where) from None

    @contextmanager
    def _associated(self, contexts: list[Any], store: Callable[[Any], int] | None = None) -> Iterator[Any]:
        """An association, released at the end and aborted after `study_s`. TransferError where there is none."""
        dimse = self._dimse
        opened = threading.Event()
        handlers: list[Any] = [(evt.EVT_CONN_OPEN, lambda event: opened.set())]
        roles = []
        if store is not None:
            handlers.append((evt.EVT_C_STORE, store))
            uids = {str(context.abstract_syntax) for context in contexts} - {str(GET)}
            roles = [build_role(uid, scp_role=True) for uid in sorted(uids)]
        tls = None if dimse.ca is None else (client_context(dimse.ca, dimse.certificate, dimse.key), dimse.host)
        begun = time.monotonic()
        try:
            association = entity(self._pacs).associate(
                dimse.host, dimse.port, contexts=contexts, ae_title=dimse.title, ext_neg=roles, evt_handlers=handlers,
                tls_args=tls,
            )  # fmt: skip
        except (OSError, UnicodeError):  # a host name that nobody knows
            raise TransferError(Failure.NO_CONNECTION) from None
        if not association.is_established:
            raise TransferError(self._why_not(association, opened.is_set(), time.monotonic() - begun))
        timer = threading.Timer(self._pacs.study_s, association.abort, kwargs={"block": False})
        timer.daemon = True
        timer.start()
        try:
            yield association
        finally:
            timer.cancel()
            if association.is_established:
                association.release()

    def _why_not(self, association: Any, opened: bool, seconds: float) -> Failure:
        if association.is_rejected:
            return Failure.REFUSED
        if not opened:
            return Failure.NO_CONNECTION if self._dimse.ca is None else _why_no_tls(self._pacs, self._dimse)
        return Failure.TIMEOUT if seconds >= self._pacs.connect_s else Failure.CUT_OFF

    # ----------------------------------------------------------------------------------------------------- C-FIND

    def _matches(self, association: Any, question: Dataset) -> list[Dataset]:
        rows: list[Dataset] = []
        try:
            for status, row in association.send_c_find(question, FIND):
                if _check_status(status) not in PENDING:
                    return rows
                if row is not None:
                    rows.append(row)
                if len(rows) > MOST_STUDIES:
                    association.abort()
                    raise TransferError(Failure.TOO_MANY)
        except LOCAL_ERRORS:
            raise TransferError(Failure.NOT_ACCEPTED) from None
        raise TransferError(Failure.CUT_OFF)

    def _has(self, association: Any, study: FoundStudy, row: Dataset, modality: str, body_part: str | None) -> bool:
        told = _told(row, "ModalitiesInStudy")
        if body_part is None and told:
            return any(same_word(modality, one) for one in told.split("\\"))
        question = _question(
            "SERIES", StudyInstanceUID=study.uid, SeriesInstanceUID="", Modality=modality, BodyPartExamined=""
        )
        return any(
            same_word(modality, _told(one, "Modality"))
            and (body_part is None or same_word(body_part, _told(one, "BodyPartExamined")))
            for one in self._matches(association, question)
        )

    # ------------------------------------------------------------------------------------------- C-GET and C-MOVE

    def _get(self, study_uid: str, intake: Intake, store: Callable[[Any], int]) -> None:
        with self._associated(get_contexts(GET), store) as association:
            _sub_operations(association, intake, lambda: association.send_c_get(_study(study_uid), GET))

    def _move(self, study_uid: str, intake: Intake, store: Callable[[Any], int]) -> None:
        listen = self._pacs.listen
        assert listen is not None
        with (
            storage_server(self._pacs, listen, [self._dimse.title], store),
            self._associated([build_context(MOVE)]) as association,
        ):
            _sub_operations(
                association, intake, lambda: association.send_c_move(_study(study_uid), self._pacs.title, MOVE)
            )


def _sub_operations(association: Any, intake: Intake, request: Callable[[], Any]) -> None:
    """Read the responses of a C-GET or C-MOVE to the end (PS3.4 C.4.2.1.4, C.4.3.1.4)."""
    try:
        for status, _ in request():
            code = status.get("Status")
            if code is None:
                raise TransferError(Failure.CUT_OFF)
            if code in PENDING:
                continue
            failed = int(status.get("NumberOfFailedSuboperations") or 0)
            if failed > 0:
                intake.failed[Failure.SUB_OPERATION] += failed
            if code not in (SUCCESS, *WARNING) and not failed:
                raise TransferError(Failure.PACS_ERROR)
            return
    except LOCAL_ERRORS:
        raise TransferError(Failure.NOT_ACCEPTED) from None
    raise TransferError(Failure.CUT_OFF)


def _storing(intake: Intake, trouble: list[WardroundError]) -> Callable[[Any], int]:
    """The handler of sub-operations. It runs in threads of pynetdicom, so a full disk is kept for the caller."""

    def store(event: Any) -> int:
        try:
            intake.write((event.encoded_dataset(),))
        except TransferError as error:
            intake.failed[error.failure] += 1
            return OUT_OF_RESOURCES
        except DataError as error:
            trouble.append(error)
            return OUT_OF_RESOURCES
        except LOCAL_ERRORS:
            intake.failed[Failure.DAMAGED] += 1
            return CANNOT_UNDERSTAND
        return SUCCESS

    return store


# ----------------------------------------------------------------------------------------------------------- C-STORE


def _by_contexts(files: Sequence[Path], failed: Counter[Failure]) -> Iterator[list[_ToSend]]:
    """Files whose SOP classes and transfer syntaxes fit into one association, in their order."""
    batch: list[_ToSend] = []
    kinds: set[tuple[str, str]] = set()
    for path in files:
        one = _to_send(path)
        if one is None:
            failed[Failure.UNREADABLE] += 1
            continue
        if len(kinds | {one.kind}) > MOST_CONTEXTS:
            yield batch
            batch, kinds = [], set()
        batch.append(one)
        kinds.add(one.kind)
    if batch:
        yield batch


def _to_send(path: Path) -> _ToSend | None:
    try:
        with silent():
            meta = read_file_meta_info(path)
            return _ToSend(path, (str(meta.MediaStorageSOPClassUID), str(meta.TransferSyntaxUID)))
    except PARSE_ERRORS:
        return None


def _store_contexts(batch: Sequence[_ToSend]) -> list[Any]:
    """Compressed files go as they are; plain ones in either plain syntax."""
    plain = {str(uid) for uid in PLAIN}
    kinds = dict.fromkeys((uid, "" if syntax in plain else syntax) for uid, syntax in (one.kind for one in batch))
    return [build_context(uid, [syntax] if syntax else PLAIN) for uid, syntax in kinds]


def _store(association: Any, path: Path) -> Failure | None:
    """None where the PACS keeps it (PS3.4 B.2.3: warnings are stored too)."""
    if not association.is_established:
        return Failure.CUT_OFF
    try:
        with silent():
            status = association.send_c_store(path)
    except ValueError:
        return Failure.NOT_ACCEPTED
    except PARSE_ERRORS:
        return Failure.UNREADABLE if association.is_established else Failure.CUT_OFF
    code = status.get("Status")
    if code is None:
        return Failure.CUT_OFF
    if code == SUCCESS or code in WARNING:
        return None
    return _FAILURES.get(code, Failure.REFUSED if code >> 12 == 0xC or code >> 8 == 0xA9 else Failure.PACS_ERROR)


_FAILURES = {0x0122: Failure.NOT_ACCEPTED, 0x0124: Failure.REFUSED}


# --------------------------------------------------------------------------------------------------------- small


def _question(level: str, **keys: str) -> Dataset:
    question = Dataset()
    question.QueryRetrieveLevel = level
    for keyword, value in keys.items():
        setattr(question, keyword, value)
    return question


def _study(uid: str) -> Dataset:
    return _question("STUDY", StudyInstanceUID=uid)


def _told(row: Dataset, keyword: str) -> str:
    """A value of an answer as text, several with backslashes between; "" where there is none or it is broken."""
    try:
        with silent():
            value = row.get(keyword)
    except PARSE_ERRORS:
        return ""
    if value is None:
        return ""
    return "\\".join(map(str, value)) if isinstance(value, MultiValue) else str(value).strip()


def _check_status(status: Dataset) -> int:
    """The status of a response; TransferError where it says no, or where there was no response."""
    code = status.get("Status")
    if code is None:
        raise TransferError(Failure.TIMEOUT)
    if code != SUCCESS and code not in (*PENDING, *WARNING):
        raise TransferError(_FAILURES.get(code, Failure.PACS_ERROR))
    return int(code)


def _why_no_tls(pacs: Pacs, dimse: DimseConfig) -> Failure:
    """pynetdicom does not say why a handshake failed: one more, to tell nobody there from a wrong certificate."""
    assert dimse.ca is not None
    context = client_context(dimse.ca, dimse.certificate, dimse.key)
    try:
        with (
            socket.create_connection((dimse.host, dimse.port), timeout=pacs.connect_s) as wire,
            context.wrap_socket(wire, server_hostname=dimse.host),
        ):
            return Failure.REFUSED
    except ssl.SSLCertVerificationError:
        return Failure.UNTRUSTED
    except ssl.SSLError:
        return Failure.REFUSED
    except (OSError, UnicodeError):
        return Failure.NO_CONNECTION
