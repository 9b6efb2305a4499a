"""A site's side of enrolment (shared/wire/enrol.proto): join once, then renew, list, fetch and leave under mutual TLS.

In: an invitation, or a site's folder. Out: a folder whose certificate is in force, or files in fetched/. Private keys
are made here and stay here. What the coordinator answers is checked as if a stranger had: a certificate must be of the
authority of the invitation, for this site's own key and name.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import hashlib
import importlib.metadata
import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc

from client import folder
from client.folder import SiteFolder
from client.proxy import Proxy, proxy_of, proxy_to
from shared.errors import ConfigError, DataError, PeerError, RefusedError, WardroundError
from shared.files import sync
from shared.trust import keystore
from shared.trust.identity import Identity, load_identity, sign
from shared.trust.invitations import Invitation, join_statement, renew_statement
from shared.trust.names import checked_address, checked_name
from shared.trust.site_certificates import SiteCertificate, belongs, create_request, read_site_certificate
from shared.wire.enrol import enrol_pb2, enrol_pb2_grpc
from shared.wire.enrol.limits import CALL_S, CHUNK, FETCH_S, MAX_ANSWER, MAX_CAMPAIGN, MAX_RELEASE

_KINDS = {"campaign": MAX_CAMPAIGN, "release": MAX_RELEASE}
_REFUSED = (grpc.StatusCode.PERMISSION_DENIED, grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.UNAUTHENTICATED)


@dataclass(frozen=True, slots=True)
class Waiting:
    """A file that the coordinator offers to this site."""

    kind: str
    name: str
    size: int
    sha256: bytes


def join(invitation: Invitation, home: Path, now: dt.datetime, proxy: str = "") -> SiteFolder:
    """Make the site's folder with keys of its own and join by the invitation; leaves no folder where that fails."""
    if now > invitation.expires_at:
        raise RefusedError(f"this invitation expired on {invitation.expires[:10]}; ask the coordinator for a new one")
    folder.check_new(home)
    authority = invitation.authority.encode()
    address = checked_address(invitation.join)
    way = proxy_to(address[0], proxy)
    existed = home.exists()
    try:
        folder.make_keys(home, invitation.site, authority)
        identity = load_identity(invitation.site, home / "key", home / "exchange.key")
        request, key = create_request(invitation.site)
        asked = enrol_pb2.JoinRequest(
            token=invitation.token,
            site=invitation.site,
            csr=request,
            identity=json.dumps(identity.public.to_json()),
            proof=sign(identity, join_statement(invitation.token, request)),
            version=importlib.metadata.version("wardround"),
        )
        with _channel(address, grpc.ssl_channel_credentials(authority), way) as channel:
            answer = enrol_pb2_grpc.EnrolmentStub(channel).Join(asked, timeout=CALL_S)
        _keep(home, invitation.site, answer.certificate, key, authority, now)
        values = {"name": invitation.site, "coordinator": invitation.coordinator, "services": invitation.services}
        folder.finish(home, {**values, "gateway": invitation.gateway, **({"proxy": proxy} if proxy else {})})
    except BaseException:
        _undo(home, existed=existed)
        raise
    return folder.read(home)


def _undo(home: Path, *, existed: bool) -> None:
    """Take away what this join made, keys that nobody knows."""
    for entry in home.iterdir() if home.is_dir() else ():
        shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
    if not existed and home.is_dir():
        home.rmdir()


def certificate_of(site: SiteFolder, now: dt.datetime) -> SiteCertificate | None:
    """What the site's certificate says; None where the site was made by hand. Raises RefusedError once it has ended."""
    if not site.certificate.exists():
        return None
    return read_site_certificate(site.certificate.read_bytes(), site.authority.read_bytes(), now)


def renew(site: SiteFolder, now: dt.datetime) -> SiteCertificate:
    """A new key and certificate, asked for under the old one; the old ones stay until the new ones are whole."""
    request, key = create_request(site.name)
    asked = enrol_pb2.RenewRequest(csr=request, proof=sign(_identity(site), renew_statement(site.name, request)))
    with _services(site) as stub:
        answer = stub.Renew(asked, timeout=CALL_S)
    return _keep(site.folder, site.name, answer.certificate, key, site.authority.read_bytes(), now)


def renew_if_due(site: SiteFolder, now: dt.datetime) -> SiteCertificate | None:
    """Renew in the last third of the certificate's life; None where it is not due."""
    said = certificate_of(site, now)
    return renew(site, now) if said is not None and said.renews(now) else None


def waiting(site: SiteFolder) -> list[Waiting]:
    """What the coordinator offers: campaigns that name this site, and releases."""
    with _services(site) as stub:
        answer = stub.List(enrol_pb2.ListRequest(), timeout=CALL_S)
    return [_waiting(one) for one in answer.files]


def fetch(site: SiteFolder, one: Waiting, on_bytes: Callable[[int], None] = lambda _: None) -> Path:
    """Bring one file to fetched/, whole or not at all; one that is there already is kept. Nothing is approved by it."""
    place = keystore.private_folder(site.fetched / f"{one.kind}s") / one.name
    if place.is_file() and _sum(place) == one.sha256:
        return place
    partial = place.with_name(f".partial-{one.name}")
    digest, size = hashlib.sha256(), 0
    try:
        with _services(site) as stub, partial.open("wb") as file:
            asked = enrol_pb2.FetchRequest(kind=one.kind, name=one.name, sha256=one.sha256)
            for chunk in stub.Fetch(asked, timeout=FETCH_S):
                size += len(chunk.data)
                if size > one.size:
                    raise DataError(f"{one.name} is longer than was announced; tell the coordinator")
                digest.update(chunk.data)
                file.write(chunk.data)
                on_bytes(size)
        if digest.digest() != one.sha256:
            raise DataError(f"{one.name} did not arrive whole; fetch it again")
        partial.replace(place)
    finally:
        partial.unlink(missing_ok=True)
    return place


def say_leaving(site: SiteFolder) -> None:
    """Tell the coordinator that this site leaves: its certificate and its key count no more from then on."""
    with _services(site) as stub:
        stub.Leave(enrol_pb2.LeaveRequest(site=site.name), timeout=CALL_S)


# ------------------------------------------------------------------------------------------- keys and certificates


def _identity(site: SiteFolder) -> Identity:
    return load_identity(site.name, site.key, site.exchange_key)


def _keep(home: Path, name: str, certificate: bytes, key: bytes, authority: bytes, now: dt.datetime) -> SiteCertificate:
    """Check a certificate that was answered and put it into the folder with its key."""
    try:
        said = read_site_certificate(certificate, authority, now)
        if said.site != name or not belongs(certificate, key):
            raise RefusedError("it is for another site or another key")
    except WardroundError as error:
        raise RefusedError(f"the coordinator's answer is no certificate for this site: {error}") from None
    partial = home / ".new-tls.pem"
    partial.unlink(missing_ok=True)
    keystore.write_private(partial, key.strip() + b"\n" + certificate.strip() + b"\n")
    partial.replace(home / "tls.pem")
    sync(home)
    return said


def _pair(site: SiteFolder) -> tuple[bytes, bytes]:
    """Certificate and key, each PEM."""
    key, begin, certificate = keystore.read_private(site.certificate).partition(b"-----BEGIN CERTIFICATE-----")
    return begin + certificate, key


# ------------------------------------------------------------------------------------------- the channel


@contextlib.contextmanager
def _services(site: SiteFolder) -> Iterator[Any]:
    """The Site service under this site's certificate."""
    if site.services is None or not site.certificate.exists():
        raise ConfigError(
            "this site was made by hand and has no certificate; the coordinator invites it: wardround-site join"
        )
    certificate, key = _pair(site)
    credentials = grpc.ssl_channel_credentials(site.authority.read_bytes(), key, certificate)
    with _channel(site.services, credentials, proxy_of(site)) as channel:
        yield enrol_pb2_grpc.SiteStub(channel)


@contextlib.contextmanager
def _channel(address: tuple[str, int], credentials: Any, proxy: Proxy | None) -> Iterator[Any]:
    """A TLS channel; what goes wrong on it ends in one line."""
    host, port = address
    way = ("grpc.enable_http_proxy", 0) if proxy is None else ("grpc.http_proxy", proxy.url)
    options = (("grpc.max_receive_message_length", MAX_ANSWER + CHUNK), ("grpc.enable_retries", 0), way)
    target = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    channel = grpc.secure_channel(target, credentials, options)
    try:
        yield channel
    except grpc.RpcError as error:
        raise _in_words(error, target, proxy) from None
    finally:
        channel.close()


def _in_words(error: Any, target: str, proxy: Proxy | None) -> WardroundError:
    """A status of gRPC as an error of this house; of a peer's words, only short printable ones."""
    code, words = error.code(), "".join(filter(str.isprintable, error.details() or ""))[:400]
    if code in _REFUSED:
        return RefusedError(f"the coordinator refused: {words}")
    if code == grpc.StatusCode.INVALID_ARGUMENT:
        return DataError(f"the coordinator could not use what was sent: {words}")
    through = f" through the proxy {proxy.where}" if proxy else ""
    if code == grpc.StatusCode.DEADLINE_EXCEEDED:
        return PeerError(f"{target}{through} did not answer in time; try again")
    if code == grpc.StatusCode.UNAVAILABLE:
        return PeerError(
            f"{target}{through} does not answer, or one of the two certificates was not accepted; is it serving, does "
            "the firewall allow it outbound, does a proxy open TLS?"
        )
    return PeerError(f"{target}{through} failed ({code.name}); ask the coordinator to look into logs/enrol.log")


def _waiting(one: Any) -> Waiting:
    """One row of a list, checked: its name becomes a file's."""
    stem, dot, ending = one.name.partition(".")
    if one.kind not in _KINDS or not 0 < one.size <= _KINDS[one.kind] or len(one.sha256) != 32:
        raise DataError("the coordinator offers a file of unknown kind or size; ask for it by another way")
    if dot + ending != {"campaign": ".json", "release": ".release"}[one.kind]:
        raise DataError("the coordinator offers a file with an odd name; ask for it by another way")
    for part in stem.rsplit("-v", 1):
        checked_name("file name", part)
    return Waiting(one.kind, one.name, one.size, one.sha256)


def _sum(path: Path) -> bytes:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()
