"""DICOMweb against a server that misbehaves: everything is counted with a reason, nothing is fatal, nothing leaks."""

from __future__ import annotations

import base64
import datetime as dt
import json
import ssl
import threading
import time
from http.server import BaseHTTPRequestHandler as Request
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from client.ingest.pacs import connect
from client.ingest.pacs.config import DicomwebConfig, Pacs
from client.ingest.pacs.multipart import Parts
from client.ingest.pacs.source import Dates, Failure, Source, TransferError
from shared.errors import DataError, PeerError, RefusedError
from tests.client.ingest.conftest import IDENTITY, new_image, write_series
from tests.client.ingest.pacs.conftest import Serve, answer

STUDY = new_image().StudyInstanceUID
KIND = 'multipart/related; type="application/dicom"; boundary=XYZ'


def source(port: int, **values: Any) -> Source:
    times = {"connect_s": 2.0, "answer_s": 0.5, "study_s": 5.0, **values}
    return connect(Pacs(dicomweb=DicomwebConfig(url=f"http://127.0.0.1:{port}/dicom-web/"), **times))


def body(files: list[Path], end: bytes = b"--XYZ--\r\n") -> bytes:
    parts = [b"--XYZ\r\nContent-Type: application/dicom\r\n\r\n" + path.read_bytes() + b"\r\n" for path in files]
    return b"".join(parts) + end


# ------------------------------------------------------------------------------------------------------- multipart


@pytest.mark.parametrize("size", [1, 2, 3, 7, 64, 10_000])
def test_parts_are_the_same_however_the_network_cuts_them(size: int) -> None:
    contents = [b"first", b"\r\n--XY", b"", b"\r\n\r\n--X" * 50, bytes(range(256))]
    whole = b"preamble\r\n" + b"".join(b"--XYZ\r\nA: b\r\n\r\n" + c + b"\r\n" for c in contents) + b"--XYZ--epilogue"
    blocks = (whole[i : i + size] for i in range(0, len(whole), size))
    assert [b"".join(part) for _, part in Parts(blocks, b"XYZ")] == contents


@pytest.mark.parametrize("end", [b"", b"--X", b"\r\n--XYZ", b"\r\n--XYZ\r\nA: b"])
def test_a_body_without_its_closing_boundary_was_cut_off(end: bytes) -> None:
    parts = Parts(iter([b"--XYZ\r\nA: b\r\n\r\ncontent" + end]), b"XYZ")
    with pytest.raises(TransferError) as error:
        [b"".join(part) for _, part in parts]
    assert error.value.failure is Failure.CUT_OFF


def test_headers_without_end_are_refused() -> None:
    endless = iter([b"--XYZ\r\n"] + [b"A: b\r\n" * 1000] * 100)
    with pytest.raises(TransferError) as error:
        list(Parts(endless, b"XYZ"))
    assert error.value.failure is Failure.NOT_UNDERSTOOD


# ------------------------------------------------------------------------------------------------------------ fetch


def test_a_study_arrives_byte_for_byte_under_names_of_ours(tmp_path: Path, serve: Serve) -> None:
    files = write_series(tmp_path / "in", 3)
    (tmp_path / "out").mkdir()
    fetched = source(serve(lambda request: answer(request, 200, KIND, body(files)))).fetch(STUDY, tmp_path / "out")
    assert fetched.failed == {}
    assert [path.read_bytes() for path in fetched.files] == [path.read_bytes() for path in files]
    assert [path.name for path in fetched.files] == ["000001.dcm", "000002.dcm", "000003.dcm"]


def test_a_damaged_instance_another_study_and_a_copy_are_left_out(tmp_path: Path, serve: Serve) -> None:
    files = write_series(tmp_path / "in", 2)
    stranger = write_series(tmp_path / "in", 1, patient="2")
    damaged = tmp_path / "damaged"
    damaged.write_bytes(b"MRN-7741902 " * 100)
    content = body([files[0], damaged, *stranger, files[0], files[1]])
    (tmp_path / "out").mkdir()
    fetched = source(serve(lambda request: answer(request, 200, KIND, content))).fetch(STUDY, tmp_path / "out")
    assert fetched.failed == {Failure.DAMAGED: 1, Failure.OTHER_STUDY: 1, Failure.REPEATED: 1}
    assert sorted(tmp_path.glob("out/*")) == sorted(fetched.files)
    assert len(fetched.files) == 2


def trickle(request: Request) -> None:
    request.send_response(200)
    request.send_header("Content-Type", KIND)
    request.end_headers()
    while True:
        request.wfile.write(b"x")
        time.sleep(0.05)


def endless(request: Request) -> None:
    request.send_response(200)
    request.send_header("Content-Type", KIND)
    request.end_headers()
    request.wfile.write(b"--XYZ\r\nContent-Type: application/dicom\r\n\r\n")
    while True:
        request.wfile.write(bytes(1 << 16))


MISBEHAVIOUR = {
    "500": (lambda r: answer(r, 500, "text/html", b"<h1>" + STUDY.encode()), Failure.PACS_ERROR),
    "401": (lambda r: answer(r, 401, "text/plain", b""), Failure.REFUSED),
    "404": (lambda r: answer(r, 404, "text/plain", b""), Failure.NOT_THERE),
    "wrong type": (lambda r: answer(r, 200, "text/html", b"<html>"), Failure.NOT_UNDERSTOOD),
    "no boundary": (lambda r: answer(r, 200, "multipart/related", b"--"), Failure.NOT_UNDERSTOOD),
    "json parts": (
        lambda r: answer(r, 200, KIND, b"--XYZ\r\nContent-Type: application/json\r\n\r\n{}\r\n--XYZ--"),
        Failure.NOT_UNDERSTOOD,
    ),
    "nothing": (lambda r: answer(r, 200, KIND, b"--XYZ--"), Failure.NOTHING_CAME),
    "no HTTP": (lambda r: r.wfile.write(b"\0\xff" * 100), Failure.CUT_OFF),
    "silence": (lambda r: time.sleep(2), Failure.TIMEOUT),
    "a drip": (trickle, Failure.TIMEOUT),
    "endless": (endless, Failure.TOO_LARGE),
}  # fmt: skip


@pytest.mark.parametrize("how", MISBEHAVIOUR)
def test_whatever_a_server_does_is_one_reason_and_no_file(tmp_path: Path, serve: Serve, how: str) -> None:
    respond, failure = MISBEHAVIOUR[how]
    begun = time.monotonic()
    fetched = source(serve(respond), most_gb=0.005, study_s=1.0).fetch(STUDY, tmp_path)
    assert (fetched.files, fetched.failed) == ((), {failure: 1})
    assert list(tmp_path.iterdir()) == []
    assert time.monotonic() - begun < 4


@pytest.mark.parametrize("lie", [0, 10_000])
def test_what_came_whole_before_a_cut_is_kept(tmp_path: Path, serve: Serve, lie: int) -> None:
    files = write_series(tmp_path / "in", 3)
    content = body(files, end=b"")[:-500]
    (tmp_path / "out").mkdir()
    port = serve(lambda request: answer(request, 200, KIND, content, len(content) + lie))
    fetched = source(port).fetch(STUDY, tmp_path / "out")
    assert fetched.failed == {Failure.CUT_OFF: 1}
    assert [path.read_bytes() for path in fetched.files] == [path.read_bytes() for path in files[:2]]
    assert len(list((tmp_path / "out").iterdir())) == 2


def test_more_instances_than_allowed_end_the_study(tmp_path: Path, serve: Serve) -> None:
    files = write_series(tmp_path / "in", 4)
    (tmp_path / "out").mkdir()
    port = serve(lambda request: answer(request, 200, KIND, body(files)))
    fetched = source(port, most_files=2).fetch(STUDY, tmp_path / "out")
    assert (len(fetched.files), fetched.failed) == (2, {Failure.TOO_MANY: 1})


def test_a_full_disk_is_bad_data_in_one_line_without_a_path(
    tmp_path: Path, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = write_series(tmp_path / "in", 1)

    def full(self: Path, target: Path) -> Path:
        raise OSError(28, "No space left on device", str(self))

    monkeypatch.setattr(Path, "rename", full)
    port = serve(lambda request: answer(request, 200, KIND, body(files)))
    (tmp_path / "out").mkdir()
    with pytest.raises(DataError, match="free disk space") as error:
        source(port).fetch(STUDY, tmp_path / "out")
    assert str(tmp_path) not in str(error.value)
    assert list((tmp_path / "out").iterdir()) == []


# ------------------------------------------------------------------------------------------ credentials, redirects, TLS


def with_password(tmp_path: Path, url: str, **values: Any) -> Source:
    secret = tmp_path / "password"
    secret.write_text("hunter2\n")
    secret.chmod(0o600)
    web = DicomwebConfig(url=url, user="amy", password_file=str(secret), **values)
    return connect(Pacs(dicomweb=web, connect_s=2, answer_s=2))


def test_a_redirect_is_not_followed_and_the_password_goes_nowhere_else(tmp_path: Path, serve: Serve) -> None:
    elsewhere: list[str] = []
    other = serve(lambda request: elsewhere.append(request.headers.get("Authorization", "")))
    asked: list[str] = []

    def redirect(request: Request) -> None:
        asked.append(request.headers["Authorization"])
        request.send_response(307)
        request.send_header("Location", f"http://127.0.0.1:{other}/studies")
        request.send_header("Content-Length", "0")
        request.end_headers()

    pacs = with_password(tmp_path, f"http://127.0.0.1:{serve(redirect)}/dicom-web")
    assert pacs.fetch(STUDY, tmp_path).failed == {Failure.REDIRECTED: 1}
    with pytest.raises(PeerError, match="follow no redirect"):
        pacs.echo()
    assert elsewhere == []
    assert {base64.b64decode(value.removeprefix("Basic ")) for value in asked} == {b"amy:hunter2"}


def test_nothing_of_the_environment_leads_a_request_astray(
    tmp_path: Path, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "ALL_PROXY", "REQUESTS_CA_BUNDLE"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    port = serve(lambda request: answer(request, 200, "application/dicom+json", b"[]"))
    assert "answers" in with_password(tmp_path, f"http://127.0.0.1:{port}").echo()


def test_a_pacs_that_is_away_is_one_line_with_host_and_port(tmp_path: Path) -> None:
    pacs = source(9)
    for ask in (pacs.echo, lambda: pacs.find("CT"), lambda: pacs.send([write_series(tmp_path, 1)[0]])):
        with pytest.raises(PeerError, match=r"127\.0\.0\.1:9: no connection.*firewall") as error:
            ask()
        assert "\n" not in str(error.value)
    assert pacs.fetch(STUDY, tmp_path).failed == {Failure.NO_CONNECTION: 1}


def test_a_wrong_password_is_a_refusal_that_does_not_show_it(tmp_path: Path, serve: Serve) -> None:
    port = serve(lambda request: answer(request, 401, "text/plain", b"hunter2 is wrong"))
    with pytest.raises(RefusedError, match="check user and password") as error:
        with_password(tmp_path, f"http://127.0.0.1:{port}").echo()
    assert "hunter2" not in str(error.value)


def test_tls_is_verified_by_issuer_and_by_host_name(tmp_path: Path, serve: Serve, tls: Path) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tls / "server.crt", tls / "server.key")
    seen: list[str] = []

    def respond(request: Request) -> None:
        seen.append(request.headers["Authorization"])
        answer(request, 200, "application/dicom+json", b"[]")

    port = serve(respond, tls=context)
    assert "answers" in with_password(tmp_path, f"https://127.0.0.1:{port}/", ca=str(tls / "ca.crt")).echo()
    assert len(seen) == 1
    for url, ca in ((f"https://127.0.0.1:{port}/", tls / "other.crt"), (f"https://127.0.0.2:{port}/", tls / "ca.crt")):
        with pytest.raises(PeerError, match="not trusted|no connection"):
            with_password(tmp_path, url, ca=str(ca)).echo()
    assert len(seen) == 1


def test_a_server_that_wants_a_certificate_of_ours_refuses_who_has_none(
    tmp_path: Path, serve: Serve, tls: Path
) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tls / "server.crt", tls / "server.key")
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(tls / "ca.crt")
    port = serve(lambda request: answer(request, 200, "application/dicom+json", b"[]"), tls=context)
    with pytest.raises((RefusedError, PeerError), match=r"refused|lost"):
        with_password(tmp_path, f"https://127.0.0.1:{port}/", ca=str(tls / "ca.crt")).echo()


# ------------------------------------------------------------------------------------------------------------- find


def row(number: int, date: str = "20240105", modalities: tuple[str, ...] = ("MR",)) -> dict[str, Any]:
    return {
        "0020000D": {"vr": "UI", "Value": [f"1.2.{number}"]},
        "00080020": {"vr": "DA", "Value": [date]},
        "00080061": {"vr": "CS", "Value": list(modalities)},
        "00100020": {"vr": "LO", "Value": [IDENTITY["PatientID"]]},
    }


@pytest.mark.parametrize("cap", [7, 1000])
@pytest.mark.parametrize("knows_offset", [True, False])
def test_pages_are_put_together_once_each(serve: Serve, cap: int, knows_offset: bool) -> None:
    rows = [row(number) for number in range(20)]

    def respond(request: Request) -> None:
        query = parse_qs(urlsplit(request.path).query)
        offset = int(query["offset"][0]) if knows_offset else 0
        page = rows[offset : offset + min(cap, int(query["limit"][0]))]
        answer(request, 200, "application/dicom+json", json.dumps(page).encode()) if page else answer(
            request, 204, "application/dicom+json", b""
        )

    found = source(serve(respond)).find("MR")
    assert len({study.uid for study in found}) == len(found) == (20 if knows_offset else min(cap, 20))
    assert IDENTITY["PatientID"] not in repr(found)
    assert "1.2.3" not in repr(found)


def test_a_server_that_ignores_keys_is_compared_with_what_was_asked(serve: Serve) -> None:
    rows = [row(1), row(2, date="20230101"), row(3, modalities=("CT",)), row(4, modalities=("SR", "MR")), {"x": 1}]
    bodies = {"1.2.1": "HEAD", "1.2.4": "brain"}

    def respond(request: Request) -> None:
        path = urlsplit(request.path).path.split("/")
        values: list[Any] = rows
        if path[-1] == "series":
            part = {"vr": "CS", "Value": [bodies[path[-2]]]} if path[-2] in bodies else {"vr": "CS"}
            uid, modality = {"Value": [path[-2] + ".1"]}, {"Value": ["CT" if path[-2] == "1.2.3" else "MR"]}
            values = [{"0020000E": uid, "00080060": modality, "00180015": part}]
        answer(request, 200, "application/json", json.dumps(values).encode())

    pacs = source(serve(respond))
    dates = Dates(dt.date(2024, 1, 1), dt.date(2024, 12, 31))
    assert [study.uid for study in pacs.find("MR", None, dates)] == ["1.2.1", "1.2.4"]
    assert [study.uid for study in pacs.find("MR")] == ["1.2.2", "1.2.1", "1.2.4"]
    assert [study.uid for study in pacs.find("MR", "BRAIN", dates)] == ["1.2.4"]
    assert [study.uid for study in pacs.find("MR", limit=2)] == ["1.2.2", "1.2.1"]


@pytest.mark.parametrize("content", [b"", b"{}", b"[1]", b"null", b"[" * 10_000, b"\xff"])
def test_an_answer_that_is_not_the_json_model_is_said_so(serve: Serve, content: bytes) -> None:
    port = serve(lambda request: answer(request, 200, "application/dicom+json", content))
    with pytest.raises(PeerError, match="not DICOM as the standard says"):
        source(port).find("MR")


# ------------------------------------------------------------------------------------------------------------- send


def stow(status: int, stored: int, reasons: list[int]) -> Any:
    values = {
        "00081199": {"vr": "SQ", "Value": [{}] * stored},
        "00081198": {"vr": "SQ", "Value": [{"00081197": {"vr": "US", "Value": [reason]}} for reason in reasons]},
    }

    def respond(request: Request) -> None:
        request.rfile.read(int(request.headers["Content-Length"]))
        answer(request, status, "application/dicom+json", json.dumps(values).encode())

    return respond


@pytest.mark.parametrize(
    ("stored", "reasons", "failed"),
    [
        (3, [], {}),
        (2, [0x0122], {Failure.NOT_ACCEPTED: 1}),
        (1, [0xA700, 0xC000], {Failure.PACS_ERROR: 1, Failure.REFUSED: 1}),
        (1, [], {Failure.NOT_UNDERSTOOD: 2}),
        (9, [0xA700] * 9, {}),
    ],
)
def test_what_the_pacs_says_of_each_file_is_counted(
    tmp_path: Path, serve: Serve, stored: int, reasons: list[int], failed: dict[Failure, int]
) -> None:
    sent = source(serve(stow(202, stored, reasons))).send(write_series(tmp_path, 3))
    assert (sent.stored, dict(sent.failed)) == (min(stored, 3), failed)


def test_what_is_sent_is_a_multipart_body_of_the_files(tmp_path: Path, serve: Serve) -> None:
    got: list[bytes] = []
    files = write_series(tmp_path, 3)

    def respond(request: Request) -> None:
        content = request.rfile.read(int(request.headers["Content-Length"]))
        boundary = request.headers["Content-Type"].rpartition("boundary=")[2].encode()
        got.extend(b"".join(part) for _, part in Parts(iter([content]), boundary))
        answer(request, 200, "application/dicom+json", json.dumps({"00081199": {"Value": [{}] * 3}}).encode())

    assert source(serve(respond)).send([*files, tmp_path / "gone.dcm"]).failed == {Failure.UNREADABLE: 1}
    assert got == [path.read_bytes() for path in files]


def test_a_batch_that_is_too_large_for_the_server_is_halved(tmp_path: Path, serve: Serve) -> None:
    lock, requests = threading.Lock(), []

    def respond(request: Request) -> None:
        content = request.rfile.read(int(request.headers["Content-Length"]))
        with lock:
            requests.append(content.count(b"DICM"))
        if content.count(b"DICM") > 1:
            return answer(request, 413, "text/plain", b"")
        return answer(request, 200, "application/dicom+json", json.dumps({"00081199": {"Value": [{}]}}).encode())

    sent = source(serve(respond)).send(write_series(tmp_path, 3))
    assert (sent.stored, sent.failed) == (3, {})
    assert requests == [3, 1, 2, 1, 1]


def test_a_batch_that_fails_as_a_whole_is_counted_file_by_file(tmp_path: Path, serve: Serve) -> None:
    port = serve(lambda request: answer(request, 503, "text/plain", b""))
    sent = source(port).send(write_series(tmp_path, 3))
    assert (sent.stored, sent.failed) == (0, {Failure.PACS_ERROR: 3})
