"""The coordinator's gRPC service (shared/wire/enrol.proto): one join per invitation, and what joined sites ask for.

Two ports on loopback, which the gateway passes on untouched: Enrolment under the server's certificate alone, Site under
mutual TLS with the federation's authority, both TLS 1.3. A request is bounded before it is read, has a deadline, and is
refused in words that hold no secret. State is the coordinator's folder, so a restart forgets nothing.

    python -m server.enrol DIR        started and kept up by `wardround-coordinator serve`
"""

from __future__ import annotations

import datetime as dt
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

# Cipher suites for RSA, which no certificate of ours fits: TLS 1.2 finds none in common, TLS 1.3 has its own list. gRPC
# has no other word for a lowest version; read when its library is loaded.
os.environ["GRPC_SSL_CIPHER_SUITES"] = "ECDHE-RSA-AES256-GCM-SHA384"

import grpc

from server import folder, invitations, registry
from server.folder import Coordinator
from server.shelf import Shelf
from shared.errors import DataError, RefusedError, WardroundError
from shared.trust import keystore
from shared.trust.identity import PublicIdentity, verify
from shared.trust.invitations import join_statement, renew_statement
from shared.trust.site_certificates import SiteCertificate
from shared.wire.enrol import enrol_pb2, enrol_pb2_grpc
from shared.wire.enrol.limits import CHUNK, JOIN_OPTIONS, LONGEST_CALL_S, SERVER_OPTIONS, bounded_json

WORKERS = 8
GUESSES = 10
"""Unknown invitations per minute that are looked at; a right one is looked at always, so guessing locks nobody out."""
MINUTE_S = 60.0
Clock = Callable[[], dt.datetime]


class Guesses:
    """How often an unknown invitation was tried in the last minute."""

    def __init__(self) -> None:
        self._times: deque[float] = deque()
        self._lock = threading.Lock()

    def count(self) -> None:
        """One more; RefusedError once there were too many."""
        with self._lock:
            now = time.monotonic()
            while self._times and now - self._times[0] > MINUTE_S:
                self._times.popleft()
            if len(self._times) >= GUESSES:
                raise RefusedError("too many wrong tokens in this minute; wait, then try once more")
            self._times.append(now)


class EnrolmentService(enrol_pb2_grpc.EnrolmentServicer):  # type: ignore[misc]
    """Join."""

    def __init__(self, coordinator: Coordinator, clock: Clock) -> None:
        self._coordinator, self._clock, self._guesses = coordinator, clock, Guesses()

    def Join(self, request: Any, context: Any) -> Any:
        with _answering(context):
            certificate = join(self._coordinator, request, self._clock(), self._guesses)
            return enrol_pb2.JoinAnswer(certificate=certificate, federation=self._coordinator.name)


def join(coordinator: Coordinator, request: Any, now: dt.datetime, guesses: Guesses) -> bytes:
    """A certificate (PEM) for a site that holds an invitation, checked in this order; nothing changes before (6).

    (1) the invitation holds         (2) a public identity  (3) in the invitation's name
    (4) its key signed this request  (5) the key is nobody else's and was never revoked
    (6) a certificate is made for the request; the invitation is used up; the site is admitted
    """
    with registry.registering(coordinator):
        # (1)
        try:
            invitation = invitations.checked(coordinator, request.token, request.site, now)
        except invitations.UnknownInvitation:
            guesses.count()
            raise
        # (2)
        identity = PublicIdentity.from_json(bounded_json(request.identity))
        # (3)
        if identity.name != invitation.site:
            raise RefusedError("the keys are of another site than the invitation; every site makes its own")
        # (4)
        verify(identity, join_statement(request.token, request.csr), request.proof)
        # (5)
        folder.check_admissible(coordinator, identity.name, identity.key)
        # (6)
        certificate = registry.issue(coordinator, identity.name, request.csr, now)
        invitations.mark_used(coordinator, invitation, now)
        registry.keep_certificate(coordinator, identity.name, certificate)
        folder.admit_key(coordinator, identity.name, identity.key, identity)
    version = "".join(filter(str.isprintable, request.version))[:20]
    _tell(f"site {identity.name} joined with Wardround {version}; key {identity.fingerprint}")
    _record(coordinator, "admin.site_joined", site=identity.name, key=identity.fingerprint, version=version)
    return certificate


class SiteService(enrol_pb2_grpc.SiteServicer):  # type: ignore[misc]
    """What a site asks for under its certificate. Every call begins with who calls."""

    def __init__(self, coordinator: Coordinator, clock: Clock) -> None:
        self._coordinator, self._clock, self._shelf = coordinator, clock, Shelf(coordinator)

    def _site(self, context: Any) -> SiteCertificate:
        shown = context.auth_context().get("x509_pem_cert", [b""])[0]
        return registry.known_site(self._coordinator, shown, self._clock())

    def Renew(self, request: Any, context: Any) -> Any:
        with _answering(context):
            site = self._site(context).site
            return enrol_pb2.RenewAnswer(certificate=renew(self._coordinator, site, request, self._clock()))

    def List(self, request: Any, context: Any) -> Any:
        with _answering(context):
            files = self._shelf.files(self._site(context).site)
            listed = [enrol_pb2.File(kind=one.kind, name=one.name, size=one.size, sha256=one.sha256) for one in files]
            return enrol_pb2.ListAnswer(files=listed)

    def Fetch(self, request: Any, context: Any) -> Iterator[Any]:
        with _answering(context):
            site = self._site(context).site
            path = self._shelf.file(site, request.kind, request.name, request.sha256)
            _tell(f"site {site} fetches {request.kind} {path.name}")
            with path.open("rb") as file:
                while data := file.read(CHUNK):
                    yield enrol_pb2.Chunk(data=data)

    def Leave(self, request: Any, context: Any) -> Any:
        with _answering(context):
            site = self._site(context).site
            if request.site != site:
                raise RefusedError(f"site {site} can say that it leaves, and for no other site")
            registry.revoke(self._coordinator, site, self._clock())
            _tell(f"site {site} has left")
            _record(self._coordinator, "admin.site_left", site=site)
            return enrol_pb2.LeaveAnswer()


def renew(coordinator: Coordinator, site: str, request: Any, now: dt.datetime) -> bytes:
    """A new certificate (PEM) for a site that is in; its Flower key signed the request. The old one ends by itself."""
    line = coordinator.site_keys()[site].read_text().strip()
    verify(PublicIdentity(site, line, "", ""), renew_statement(site, request.csr), request.proof)
    with registry.registering(coordinator):
        certificate = registry.issue(coordinator, site, request.csr, now)
        registry.keep_certificate(coordinator, site, certificate)
    _tell(f"site {site} has a new certificate")
    _record(coordinator, "admin.certificate_renewed", site=site)
    return certificate


class _answering:
    """Errors of this house become a status and their words; anything else a status without words."""

    def __init__(self, context: Any) -> None:
        self._context = context

    def __enter__(self) -> None:
        left = self._context.time_remaining()
        if left is None or left > LONGEST_CALL_S:
            words = f"every call needs a deadline of at most {LONGEST_CALL_S:.0f} s"
            self._context.abort(grpc.StatusCode.INVALID_ARGUMENT, words)

    def __exit__(self, kind: Any, error: BaseException | None, _: Any) -> None:
        if isinstance(error, WardroundError):
            refused = isinstance(error, RefusedError)
            status = grpc.StatusCode.PERMISSION_DENIED if refused else grpc.StatusCode.INVALID_ARGUMENT
            _tell(f"refused: {error}")
            self._context.abort(status, str(error))
        if isinstance(error, Exception) and kind is not Exception:  # abort raises a bare Exception
            _tell(f"internal error: {kind.__name__}")
            self._context.abort(grpc.StatusCode.INTERNAL, "the coordinator failed; see its logs/enrol.log")


def start(coordinator: Coordinator, bind: str, clock: Clock) -> list[Any]:
    """Both servers, started; raises DataError where a port is taken."""
    made = []
    for service, add, port, mutual in (
        (EnrolmentService, enrol_pb2_grpc.add_EnrolmentServicer_to_server, coordinator.join_port, False),
        (SiteService, enrol_pb2_grpc.add_SiteServicer_to_server, coordinator.services_port, True),
    ):
        options = SERVER_OPTIONS if mutual else JOIN_OPTIONS
        server = grpc.server(ThreadPoolExecutor(WORKERS), options=options, maximum_concurrent_rpcs=2 * WORKERS)
        add(service(coordinator, clock), server)
        host = f"[{bind}]" if ":" in bind else bind
        try:
            server.add_secure_port(f"{host}:{port}", _credentials(coordinator, mutual=mutual))
        except RuntimeError:
            raise DataError(f"port {port} on {bind} is in use; stop what listens there") from None
        server.start()
        made.append(server)
    return made


def _credentials(coordinator: Coordinator, *, mutual: bool) -> Any:
    """Read again when the server's certificate was renewed: no restart, no site notices."""
    known: list[tuple[bytes, Any]] = []

    def current() -> Any:
        certificate = coordinator.server_certificate.read_bytes()
        if not known or known[0][0] != certificate:
            pair = (keystore.read_private(coordinator.server_key), certificate)
            roots = coordinator.authority.read_bytes() if mutual else None
            known[:] = [(certificate, grpc.ssl_server_certificate_configuration([pair], roots))]
        return known[0][1]

    return grpc.dynamic_ssl_server_credentials(current(), current, require_client_authentication=mutual)


def _tell(words: str) -> None:
    print(f"{dt.datetime.now(dt.UTC):%Y-%m-%d %H:%M:%S} {words}", flush=True)


def _record(coordinator: Coordinator, event: str, **facts: str) -> None:
    from server.audit import record

    record(coordinator, event, **facts)


def main(arguments: list[str]) -> int:
    """Serve DIR until SIGTERM."""
    import signal

    coordinator = folder.read(Path(arguments[0]))
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    try:
        servers = start(coordinator, arguments[1], lambda: dt.datetime.now(dt.UTC))
    except WardroundError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    _tell(f"join on port {coordinator.join_port}, services on port {coordinator.services_port}")
    stop.wait()
    for waiting in [server.stop(2.0) for server in servers]:
        waiting.wait(3.0)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
