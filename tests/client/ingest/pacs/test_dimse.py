"""DIMSE against a PACS in this process that misbehaves, and our own storage SCP."""

from __future__ import annotations

import ssl
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pydicom
import pytest
from pydicom.dataset import Dataset
from pynetdicom import AE, AllStoragePresentationContexts, build_context, evt
from pynetdicom.sop_class import (
    CTImageStorage,
    StudyRootQueryRetrieveInformationModelFind,
    StudyRootQueryRetrieveInformationModelGet,
    StudyRootQueryRetrieveInformationModelMove,
    Verification,
)

from client.folder import SiteFolder
from client.ingest.pacs import connect
from client.ingest.pacs.config import DimseConfig, ListenConfig, Pacs
from client.ingest.pacs.listen import Inbox, storage_server
from client.ingest.pacs.source import Failure, Source
from shared.config import MachineConfig
from shared.errors import ConfigError, PeerError, RefusedError
from shared.trust import keystore
from tests.client.ingest.conftest import IDENTITY, new_image, write_series
from tests.client.ingest.pacs.orthanc import free_port

STUDY = new_image().StudyInstanceUID
Start = Callable[..., int]


@pytest.fixture
def scp() -> Iterator[Start]:
    """scp(EVENT=handler, ..., tls=context) -> port of a PACS that knows WARDROUND alone."""
    servers: list[Any] = []

    def start(tls: ssl.SSLContext | None = None, **handlers: Any) -> int:
        ae: Any = AE(ae_title="PACS")
        ae.require_calling_aet = ["WARDROUND"]
        ae.require_called_aet = True
        for uid in (
            Verification,
            StudyRootQueryRetrieveInformationModelFind,
            StudyRootQueryRetrieveInformationModelGet,
            StudyRootQueryRetrieveInformationModelMove,
        ):
            ae.add_supported_context(uid)
        for context in AllStoragePresentationContexts[:100]:
            ae.add_supported_context(context.abstract_syntax, scu_role=True, scp_role=True)
        bound = [(getattr(evt, f"EVT_{name}"), handler) for name, handler in handlers.items()]
        server = ae.start_server(("127.0.0.1", 0), block=False, evt_handlers=bound, ssl_context=tls)
        servers.append(server)
        return int(server.socket.getsockname()[1])

    yield start
    for server in servers:
        server.shutdown()


def source(port: int, title: str = "WARDROUND", listen: ListenConfig | None = None, **values: Any) -> Source:
    times = {"connect_s": 2.0, "answer_s": 1.0, "study_s": 20.0}
    limits = {name: values.pop(name) for name in list(values) if name in ("most_files", "most_gb", "study_s")}
    dimse = DimseConfig(host="127.0.0.1", port=port, title=values.pop("called", "PACS"), **values)
    return connect(Pacs(title=title, dimse=dimse, listen=listen, **{**times, **limits}))


def read(paths: list[Path]) -> list[Dataset]:
    return [pydicom.dcmread(path) for path in paths]


def same(ds: Dataset) -> tuple[Any, ...]:
    """What must not change on the way; the encoding of values may."""
    return str(ds.SOPInstanceUID), str(ds.PatientName), ds.ImagePositionPatient, ds.PixelData


def getting(images: list[Dataset]) -> Callable[[Any], Iterator[Any]]:
    def handle(event: Any) -> Iterator[Any]:
        yield len(images)
        for image in images:
            yield 0xFF00, image

    return handle


def test_a_study_comes_by_get_and_by_move(tmp_path: Path, scp: Start) -> None:
    files = write_series(tmp_path / "in", 3)
    ours = free_port()

    def moving(event: Any) -> Iterator[Any]:
        yield "127.0.0.1", ours, {"ae_title": "WARDROUND", "contexts": [build_context(CTImageStorage)]}
        yield from getting(read(files))(event)

    port = scp(C_GET=getting(read(files)), C_MOVE=moving)
    pacs = {"get": source(port), "move": source(port, retrieve="move", listen=ListenConfig(port=ours))}
    for name, one in pacs.items():
        (tmp_path / name).mkdir()
        fetched = one.fetch(STUDY, tmp_path / name)
        assert fetched.failed == {}, name
        assert [same(ds) for ds in read(list(fetched.files))] == [same(ds) for ds in read(files)]
        assert sorted(path.name for path in (tmp_path / name).iterdir()) == ["000001.dcm", "000002.dcm", "000003.dcm"]


def test_limits_and_strangers_are_counted(tmp_path: Path, scp: Start) -> None:
    files = write_series(tmp_path / "in", 3)
    stranger = write_series(tmp_path / "in", 1, patient="2")
    port = scp(C_GET=getting(read([*files, *stranger])))
    (tmp_path / "a").mkdir()
    fetched = source(port).fetch(STUDY, tmp_path / "a")
    assert (len(fetched.files), fetched.failed) == (3, {Failure.OTHER_STUDY: 1})
    (tmp_path / "b").mkdir()
    fetched = source(port, most_files=2).fetch(STUDY, tmp_path / "b")
    # Ours says why, and the PACS that its sub-operations failed.
    assert (len(fetched.files), fetched.failed) == (2, {Failure.TOO_MANY: 2, Failure.SUB_OPERATION: 2})


def test_an_association_lost_in_the_midst_keeps_what_came(tmp_path: Path, scp: Start) -> None:
    files = write_series(tmp_path / "in", 3)

    def dying(event: Any) -> Iterator[Any]:
        yield 3
        yield 0xFF00, pydicom.dcmread(files[0])
        event.assoc.abort()
        yield 0xFF00, pydicom.dcmread(files[1])

    (tmp_path / "out").mkdir()
    fetched = source(scp(C_GET=dying)).fetch(STUDY, tmp_path / "out")
    assert (len(fetched.files), fetched.failed) == (1, {Failure.CUT_OFF: 1})


def test_silence_and_a_study_without_end_run_into_their_times(tmp_path: Path, scp: Start) -> None:
    def silent(event: Any) -> Iterator[Any]:
        time.sleep(3)
        yield 0

    image = tmp_path / "one"
    image.mkdir()
    assert source(scp(C_GET=silent)).fetch(STUDY, image).failed == {Failure.CUT_OFF: 1}
    begun = time.monotonic()
    forever = read(write_series(tmp_path / "in", 1)) * 20_000
    fetched = source(scp(C_GET=getting(forever)), study_s=1.0, most_files=100_000).fetch(STUDY, image)
    assert Failure.CUT_OFF in fetched.failed
    assert time.monotonic() - begun < 10


def test_an_unknown_title_on_either_side_is_refused_in_one_line(scp: Start, tmp_path: Path) -> None:
    port = scp()
    for one in (source(port, title="ROGUE"), source(port, called="OTHER")):
        with pytest.raises(RefusedError, match=rf"127\.0\.0\.1:{port}: refused.*AE titles"):
            one.echo()
        assert one.fetch(STUDY, tmp_path).failed == {Failure.REFUSED: 1}


def test_a_pacs_that_is_away_is_one_line_with_host_and_port(tmp_path: Path) -> None:
    one = source(free_port())
    for ask in (one.echo, lambda: one.find("CT"), lambda: one.send(write_series(tmp_path, 1))):
        with pytest.raises(PeerError, match=r"127\.0\.0\.1:\d+: no connection"):
            ask()
    assert one.fetch(STUDY, tmp_path).failed == {Failure.NO_CONNECTION: 1}


@pytest.mark.parametrize("host", ["pacs.invalid", "a b", "x" * 80])
def test_a_host_that_nobody_knows_is_one_line_too(tmp_path: Path, host: str) -> None:
    one = connect(Pacs(dimse=DimseConfig(host=host, port=104, title="PACS", plain=True), connect_s=1))
    with pytest.raises(PeerError, match="no connection to the PACS"):
        one.echo()
    assert one.fetch(STUDY, tmp_path).failed == {Failure.NO_CONNECTION: 1}


@pytest.mark.parametrize("host", ["pacs.invalid", "x" * 80])
def test_an_address_to_listen_on_that_nobody_knows_is_said_so(host: str) -> None:
    pacs = listening(free_port(), host=host, plain=True)
    assert pacs.listen is not None
    with (
        pytest.raises(ConfigError, match="not of this machine"),
        storage_server(pacs, pacs.listen, ["CT1"], lambda event: 0),
    ):
        pass


def test_answers_are_compared_with_what_was_asked_and_come_once_each(scp: Start) -> None:
    def answers(event: Any) -> Iterator[Any]:
        asked = event.identifier
        if asked.QueryRetrieveLevel == "SERIES":
            row = Dataset()
            row.SeriesInstanceUID, row.Modality = f"{asked.StudyInstanceUID}.1", "MR"
            row.BodyPartExamined = "Brain" if asked.StudyInstanceUID == "1.2.3" else "CHEST"
            yield 0xFF00, row
            return
        for uid, modalities in (
            ("1.2.3", ["SR", "MR"]),
            ("1.2.4", "MR"),
            ("1.2.3", "MR"),
            ("1.2.5", "CT"),
            ("x", "MR"),
        ):
            row = Dataset()
            row.add_new("StudyInstanceUID", "UI", uid)
            row.ModalitiesInStudy, row.StudyDate, row.PatientID = modalities, "20240101", IDENTITY["PatientID"]
            yield 0xFF00, row

    one = source(scp(C_FIND=answers, C_ECHO=lambda event: 0x0000))
    assert [study.uid for study in one.find("MR")] == ["1.2.3", "1.2.4"]
    assert [study.uid for study in one.find("MR", "BRAIN")] == ["1.2.3"]
    assert IDENTITY["PatientID"] not in repr(one.find("MR"))
    assert "C-FIND" in one.echo()


def test_a_query_that_fails_is_a_peer_error(scp: Start) -> None:
    with pytest.raises(PeerError, match="error of the PACS"):
        source(scp(C_FIND=lambda event: iter([(0xC000, None)]))).find("MR")


def test_what_the_pacs_says_of_each_file_is_counted(tmp_path: Path, scp: Start) -> None:
    files = write_series(tmp_path, 4)
    broken = tmp_path / "broken.dcm"
    broken.write_bytes(b"no DICOM")
    statuses = iter([0x0000, 0xB000, 0xA700, 0x0122])
    sent = source(scp(C_STORE=lambda event: next(statuses))).send([broken, *files, tmp_path / "gone"])
    assert sent.stored == 2
    assert sent.failed == {Failure.UNREADABLE: 2, Failure.PACS_ERROR: 1, Failure.NOT_ACCEPTED: 1}


def test_an_association_lost_while_sending_counts_the_rest(tmp_path: Path, scp: Start) -> None:
    seen: list[int] = []

    def store(event: Any) -> int:
        seen.append(1)
        if len(seen) == 2:
            event.assoc.abort()
        return 0x0000

    sent = source(scp(C_STORE=store)).send(write_series(tmp_path, 4))
    assert (sent.stored, sent.failed) == (1, {Failure.CUT_OFF: 3})


def test_tls_is_verified(tmp_path: Path, scp: Start, tls: Path) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tls / "server.crt", tls / "server.key")
    port = scp(tls=context, C_FIND=lambda event: iter(()), C_ECHO=lambda event: 0x0000)
    assert "answers" in source(port, ca=str(tls / "ca.crt")).echo()
    with pytest.raises(PeerError, match="certificate of the PACS not trusted"):
        source(port, ca=str(tls / "other.crt")).echo()


# ------------------------------------------------------------------------------------------------- our own SCP


@pytest.fixture
def site(tmp_path: Path) -> SiteFolder:
    keystore.create_secret(tmp_path / "site.secret")
    return SiteFolder(tmp_path, "north", "localhost", 8443, MachineConfig())


def listening(port: int, **values: Any) -> Pacs:
    listen = ListenConfig(port=port, peers=("CT1",), **values)
    return Pacs(dimse=DimseConfig(host="127.0.0.1", port=1, title="PACS"), listen=listen, answer_s=5)


def as_node(port: int, title: str = "CT1") -> Source:
    dimse = DimseConfig(host="127.0.0.1", port=port, title="WARDROUND")
    return connect(Pacs(title=title, dimse=dimse, connect_s=5, answer_s=5))


def test_what_a_scanner_sends_lies_whole_in_the_inbox_once_each(tmp_path: Path, site: SiteFolder) -> None:
    files = write_series(tmp_path / "in", 3)
    pacs = listening(free_port())
    assert pacs.listen is not None
    inbox = Inbox.open(site, pacs.listen)
    with storage_server(pacs, pacs.listen, pacs.listen.peers, inbox.take) as port:
        assert as_node(port).send([*files, files[0]]).stored == 4
        with pytest.raises(RefusedError):
            as_node(port, title="ROGUE").send(files)
    kept = sorted(site.inbox.iterdir())
    uids = {pydicom.dcmread(path).SOPInstanceUID for path in files}
    assert {pydicom.dcmread(path).SOPInstanceUID for path in kept} == uids
    assert len(kept) == 3
    assert not any(uid in path.name for uid in uids for path in kept)
    assert site.inbox.stat().st_mode & 0o077 == 0
    assert list((site.folder / "inbox.part").iterdir()) == []


def test_a_full_inbox_refuses_and_keeps_nothing_half(tmp_path: Path, site: SiteFolder) -> None:
    files = write_series(tmp_path / "in", 3)
    pacs = listening(free_port(), most_gb=1.5 * files[0].stat().st_size / 1e9)
    assert pacs.listen is not None
    inbox = Inbox.open(site, pacs.listen)
    with storage_server(pacs, pacs.listen, pacs.listen.peers, inbox.take) as port:
        sent = as_node(port).send(files)
    assert (sent.stored, sent.failed) == (1, {Failure.PACS_ERROR: 2})
    assert len(list(site.inbox.iterdir())) == 1
    assert (inbox.stored, inbox.refused) == (1, 2)


def test_a_node_that_dies_in_the_midst_leaves_nothing(tmp_path: Path, site: SiteFolder) -> None:
    pacs = listening(free_port())
    assert pacs.listen is not None
    inbox = Inbox.open(site, pacs.listen)
    with storage_server(pacs, pacs.listen, pacs.listen.peers, inbox.take) as port:
        ae: Any = AE(ae_title="CT1")
        ae.add_requested_context(CTImageStorage)
        association = ae.associate("127.0.0.1", port, ae_title="WARDROUND")
        big = new_image(Rows=2048, Columns=2048, PixelData=bytes(2 * 2048 * 2048))
        big.file_meta = pydicom.dataset.FileMetaDataset()
        big.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.1"
        sending = threading.Thread(target=lambda: association.send_c_store(big), daemon=True)
        wire = association.dul.socket.socket
        sending.start()
        wire.close()
        time.sleep(0.5)
    assert all(pydicom.dcmread(path).PixelData == big.PixelData for path in site.inbox.iterdir())
    assert list((site.folder / "inbox.part").iterdir()) == []


def test_a_port_that_is_taken_is_said_so(site: SiteFolder) -> None:
    pacs = listening(free_port())
    assert pacs.listen is not None
    with (
        storage_server(pacs, pacs.listen, ["CT1"], lambda event: 0),
        pytest.raises(ConfigError, match="another program has the port"),
        storage_server(pacs, pacs.listen, ["CT1"], lambda event: 0),
    ):
        pass
