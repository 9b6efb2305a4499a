"""Somebody who is not the site they say: at the join and at the services, over real sockets, with real certificates.

Every attempt is refused for the reason that is meant to stop it, in words without a secret, and the coordinator's
folder is as it was, byte by byte (wrong secrets alone are counted).
"""

from __future__ import annotations

import datetime as dt
import json
import re
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from client import join as joining
from client.folder import SiteFolder
from server import enrol, folder, invitations, registry
from server.folder import Coordinator
from shared.errors import ConfigError, DataError, PeerError, RefusedError
from shared.reach import free_port
from shared.trust import certificates
from shared.trust.identity import Identity, create_identity, sign
from shared.trust.invitations import Invitation, join_statement, read_invitation, renew_statement
from shared.trust.site_certificates import ORGANISATION, create_request, issue_site
from shared.wire.enrol import enrol_pb2, enrol_pb2_grpc
from shared.wire.enrol.limits import JOIN_OPTIONS

NOW = dt.datetime.now(dt.UTC)


@dataclass
class World:
    """A federation whose services answer, the clock of which a test may turn, and one site that is in."""

    coordinator: Coordinator
    site: SiteFolder
    now: dt.datetime = NOW

    def invite(self, name: str) -> Invitation:
        return invitations.invite(self.coordinator, name, 7, self.now)

    def state(self) -> dict[str, bytes]:
        """All that a join or a call could change; the log of what was refused may grow."""
        root = self.coordinator.folder
        return {str(path.relative_to(root)): path.read_bytes() for part in ("ca", "sites", "invitations")
                for path in sorted((root / part).rglob("*")) if path.is_file()}  # fmt: skip


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    root = tmp_path_factory.mktemp("forged")
    ports = {"join_port": free_port(), "services_port": free_port()}
    coordinator = replace(folder.found(root / "c", "test", ("127.0.0.1",), 8443, NOW), **ports)
    folder.save(coordinator)
    world = World(coordinator, None)  # type: ignore[arg-type]
    servers = enrol.start(coordinator, "127.0.0.1", lambda: world.now)
    world.site = joining.join(world.invite("north"), root / "north", NOW)
    yield world
    for server in servers:
        server.stop(0)


@pytest.fixture
def world(made: World) -> Iterator[World]:
    made.now = NOW
    yield made
    made.now = NOW


def asked(identity: Identity, token: str, /, **changed: Any) -> Any:
    """A join request as an honest site makes it, with what a forger changes."""
    request = changed.pop("csr", None) or create_request(identity.name)[0]
    values = {
        "token": token,
        "site": identity.name,
        "csr": request,
        "identity": json.dumps(identity.public.to_json()),
        "proof": sign(identity, join_statement(token, request)),
        "version": "0.1.0",
    }
    return enrol_pb2.JoinRequest(**(values | changed))


def call_join(world: World, request: Any) -> Any:
    address = ("127.0.0.1", world.coordinator.join_port)
    credentials = grpc.ssl_channel_credentials(world.coordinator.authority.read_bytes())
    with joining._channel(address, credentials, None) as channel:
        return enrol_pb2_grpc.EnrolmentStub(channel).Join(request, timeout=20)


def call_site(
    world: World, certificate: bytes, key: bytes, ask: Callable[[Any], Any] | None = None, **options: Any
) -> Any:
    """A call at the services under a certificate of the adversary's choice."""
    address = ("127.0.0.1", world.coordinator.services_port)
    credentials = grpc.ssl_channel_credentials(world.coordinator.authority.read_bytes(), key, certificate)
    with joining._channel(address, credentials, None) as channel:
        stub = enrol_pb2_grpc.SiteStub(channel)
        return ask(stub) if ask else stub.List(enrol_pb2.ListRequest(), **({"timeout": 20} | options))


def refused(world: World, reason: str, attempt: Callable[[], Any], error: type[Exception] = RefusedError) -> None:
    """For this reason, and nothing has changed."""
    before = world.state()
    with pytest.raises(error, match=reason) as caught:
        attempt()
    assert world.state() == before
    assert not re.search(r"[0-9a-f]{64}", str(caught.value)), "no token in words"


# ------------------------------------------------------------------------------------------- the invitation


def test_a_used_invitation_is_refused_whoever_replays_it(world: World, tmp_path: Path) -> None:
    invitation, identity = world.invite("used"), create_identity("used")
    request = asked(identity, invitation.token)
    assert call_join(world, request).federation == "test"
    refused(world, "was used already", lambda: call_join(world, request))
    refused(world, "was used already", lambda: joining.join(invitation, tmp_path / "again", NOW))
    assert not (tmp_path / "again").exists()


def test_an_expired_invitation_is_refused_at_both_ends(world: World, tmp_path: Path) -> None:
    invitation = world.invite("late")
    world.now = NOW + dt.timedelta(days=8)
    request = asked(create_identity("late"), invitation.token)
    refused(world, "expired on", lambda: call_join(world, request))
    refused(world, "expired on", lambda: joining.join(invitation, tmp_path / "late", world.now))


def test_a_newer_invitation_makes_the_older_void(world: World) -> None:
    older = world.invite("twice")
    world.invite("twice")
    request = asked(create_identity("twice"), older.token)
    refused(world, "void .a newer one was made", lambda: call_join(world, request))


def test_a_forged_token_is_refused_and_five_end_the_invitation(world: World) -> None:
    invitation, identity = world.invite("guessed"), create_identity("guessed")
    name, _, secret = invitation.token.partition(".")
    forged = f"{name}.{secret[:-1]}{'0' if secret[-1] != '0' else '1'}"
    for _ in range(invitations.MAX_WRONG):
        with pytest.raises(RefusedError, match="token of this invitation is wrong"):
            call_join(world, asked(identity, forged))
    refused(world, "void .too many wrong secrets", lambda: call_join(world, asked(identity, invitation.token)))
    assert "guessed" not in world.coordinator.site_keys()


def test_guessing_is_slowed_down_and_locks_nobody_out(world: World) -> None:
    identity = create_identity("slow")
    guesses = [asked(identity, invitations.new_token()) for _ in range(enrol.GUESSES + 1)]
    for guess in guesses[:-1]:
        with pytest.raises(RefusedError, match="unknown here|too many wrong tokens"):
            call_join(world, guess)
    refused(world, "too many wrong tokens", lambda: call_join(world, guesses[-1]))
    assert call_join(world, asked(identity, world.invite("slow").token)).certificate


def test_an_invitation_is_for_one_name(world: World) -> None:
    invitation = world.invite("west")
    other = create_identity("east")
    refused(world, "for another site than 'east'", lambda: call_join(world, asked(other, invitation.token)))
    refused(world, "keys are of another site", lambda: call_join(world, asked(other, invitation.token, site="west")))


@pytest.mark.parametrize("token", ["", "a.b", "../../ca/ca.key", "0" * 32 + "." + "0" * 63 + "\n", "x" * 60_000])
def test_a_token_that_none_can_be_touches_no_file(world: World, token: str) -> None:
    refused(
        world, "not one that `invite` made", lambda: call_join(world, asked(create_identity("n"), token)), DataError
    )


def test_a_changed_invitation_is_refused_at_the_site(world: World) -> None:
    invitation = world.invite("hall")
    mine = certificates.create_authority("test", NOW).certificate.decode()
    with pytest.raises(RefusedError, match="not the one that its fingerprint is of"):
        read_invitation(replace(invitation, authority=mine).to_text())
    for text in ("", "[]", "{", '{"wardround": "invitation", "format": 2}', "[" * 100_000, "{}" + " " * 20_000):
        with pytest.raises(DataError):
            read_invitation(text)
    with pytest.raises(DataError, match="a name, an address or a date"):
        read_invitation(replace(invitation, site="../north").to_text())


def test_a_false_coordinator_learns_no_token(world: World, tmp_path: Path) -> None:
    """Another authority's server at the address: the site ends the connection before it has said anything."""
    stranger = folder.found(tmp_path / "c", "test", ("127.0.0.1",), 8443, NOW)
    stranger = replace(stranger, join_port=free_port(), services_port=free_port())
    servers = enrol.start(stranger, "127.0.0.1", lambda: NOW)
    try:
        invitation = replace(world.invite("hill"), join=f"127.0.0.1:{stranger.join_port}")
        refused(
            world, "certificates was not accepted", lambda: joining.join(invitation, tmp_path / "s", NOW), PeerError
        )
        assert not (tmp_path / "s").exists()
    finally:
        for server in servers:
            server.stop(0)


# ------------------------------------------------------------------------------------------- keys and requests


def test_the_key_of_another_site_is_refused(world: World) -> None:
    """Its public half is no secret: north's identity, renamed or as it is, under an invitation for `thief`."""
    invitation, thief = world.invite("thief"), create_identity("thief")
    north = json.loads(world.site.public_identity.read_text())
    for identity, reason in (
        (north, "keys are of another site"),
        (north | {"name": "thief"}, "exchange key of thief is not signed"),
        (thief.public.to_json() | {"key": north["key"]}, "exchange key of thief is not signed"),
    ):
        request = asked(thief, invitation.token, identity=json.dumps(identity))
        refused(world, reason, lambda request=request: call_join(world, request))


def test_a_key_that_is_admitted_already_does_not_join_under_another_name(world: World) -> None:
    invitation = world.invite("double")
    own = joining._identity(world.site)
    renamed = Identity("double", own.key, own.exchange)
    refused(world, "admitted already, as site 'north'", lambda: call_join(world, asked(renamed, invitation.token)),
            DataError)  # fmt: skip


def test_a_proof_over_another_request_or_invitation_is_refused(world: World) -> None:
    invitation, site = world.invite("swap"), create_identity("swap")
    request, other = create_request("swap")[0], create_request("swap")[0]
    for proof in (
        sign(site, join_statement(invitation.token, other)),
        sign(site, join_statement(world.invite("else").token, request)),
        sign(site, renew_statement("swap", request)),
        b"",
    ):
        refused(
            world,
            "signature is not by the key of swap",
            lambda proof=proof: call_join(world, asked(site, invitation.token, csr=request, proof=proof)),
        )


def request_of(subject: x509.Name, *extensions: x509.ExtensionType, curve: Any = ec.SECP384R1) -> bytes:
    builder = x509.CertificateSigningRequestBuilder().subject_name(subject)
    for extension in extensions:
        builder = builder.add_extension(extension, critical=True)
    request = builder.sign(ec.generate_private_key(curve()), hashes.SHA384())
    return request.public_bytes(serialization.Encoding.DER)


def name_of(site: str, organisation: str = ORGANISATION) -> x509.Name:
    parts = ((NameOID.ORGANIZATION_NAME, organisation), (NameOID.COMMON_NAME, site))
    return x509.Name([x509.NameAttribute(kind, value) for kind, value in parts])


def forged_requests() -> list[tuple[str, bytes]]:
    more = x509.Name([*name_of("plant"), x509.NameAttribute(NameOID.COMMON_NAME, "north")])
    good = request_of(name_of("plant"))
    return [
        ("another name", request_of(name_of("north"))),
        ("another name", request_of(name_of("plant", "Wardround coordinator"))),
        ("another name", request_of(more)),
        ("asks for extensions", request_of(name_of("plant"), x509.BasicConstraints(ca=True, path_length=None))),
        (
            "asks for extensions",
            request_of(name_of("plant"), x509.SubjectAlternativeName([x509.DNSName("fl.example.org")])),
        ),
        ("not of a P-384 key", request_of(name_of("plant"), curve=ec.SECP256R1)),
        ("not signed by its own key", good[:-1] + bytes([good[-1] ^ 1])),
        ("cannot be read", b"\x30\x03abc"),
        ("cannot be read", certificates.create_authority("x", NOW).certificate),
        ("4097 bytes", bytes(4097)),
    ]


@pytest.mark.parametrize(("reason", "request_der"), forged_requests(), ids=lambda it: it if isinstance(it, str) else "")
def test_a_request_for_more_than_a_sites_certificate_is_refused(world: World, reason: str, request_der: bytes) -> None:
    invitation, site = world.invite("plant"), create_identity("plant")
    refused(
        world, reason, lambda: call_join(world, asked(site, invitation.token, csr=request_der)),
        (RefusedError, DataError),  # type: ignore[arg-type]
    )  # fmt: skip


def test_what_is_not_an_identity_is_refused(world: World) -> None:
    invitation, site = world.invite("odd"), create_identity("odd")
    for text in ("", "[]", "[" * 4000, "{}", "x" * 5000, json.dumps(site.public.to_json() | {"more": "1"})):
        request = asked(site, invitation.token, identity=text)
        refused(world, "public identity", lambda request=request: call_join(world, request), DataError)


def test_a_message_over_the_limit_is_not_read(world: World) -> None:
    invitation, site = world.invite("large"), create_identity("large")
    request = asked(site, invitation.token, version="x" * 70_000)
    refused(world, "larger than max", lambda: call_join(world, request))


# ------------------------------------------------------------------------------------------- certificates


def new_certificate(
    authority: certificates.Pair, site: str, now: dt.datetime = NOW, days: int = 30
) -> tuple[bytes, bytes]:
    request, key = create_request(site)
    return issue_site(authority, site, request, now, days), key


def test_a_certificate_of_another_authority_ends_the_handshake(world: World) -> None:
    """Also of one with the very same name."""
    forged = new_certificate(certificates.create_authority("test", NOW), "north")
    refused(world, "certificates was not accepted", lambda: call_site(world, *forged), PeerError)


def test_no_certificate_ends_the_handshake(world: World) -> None:
    credentials = grpc.ssl_channel_credentials(world.coordinator.authority.read_bytes())

    def attempt() -> None:
        with joining._channel(("127.0.0.1", world.coordinator.services_port), credentials, None) as channel:
            enrol_pb2_grpc.SiteStub(channel).List(enrol_pb2.ListRequest(), timeout=20)

    refused(world, "certificates was not accepted", attempt, PeerError)


def test_an_expired_certificate_ends_the_handshake_and_is_told_at_the_site(world: World) -> None:
    past = NOW - dt.timedelta(days=60)
    forged = new_certificate(folder.authority_of(world.coordinator), "north", past)
    refused(world, "certificates was not accepted", lambda: call_site(world, *forged), PeerError)
    with pytest.raises(RefusedError, match="ended on"):
        joining.certificate_of(world.site, NOW + dt.timedelta(days=400))


def test_the_servers_and_the_signers_certificates_are_no_sites(world: World) -> None:
    """Of this authority, but for another purpose."""
    c = world.coordinator
    server = (c.server_certificate.read_bytes(), c.server_key.read_bytes())
    signer = certificates.issue_signer(folder.authority_of(c), NOW)
    for pair in (server, (signer.certificate, signer.key)):
        refused(world, "certificates was not accepted", lambda pair=pair: call_site(world, *pair), PeerError)
        with pytest.raises(RefusedError, match="not a site's"):
            registry.known_site(c, pair[0], NOW)


def test_a_certificate_for_a_name_that_is_not_in_is_refused(world: World) -> None:
    forged = new_certificate(folder.authority_of(world.coordinator), "nobody")
    refused(world, "nobody is not in this federation", lambda: call_site(world, *forged))


def test_a_certificate_without_its_key_is_worth_nothing(world: World) -> None:
    certificate, _ = joining._pair(world.site)
    _, other = create_request("north")
    before = world.state()
    with pytest.raises((PeerError, RefusedError, ValueError, RuntimeError)):
        call_site(world, certificate, other)
    assert world.state() == before


def test_a_revoked_site_is_refused_and_needs_a_new_invitation_and_new_keys(world: World, tmp_path: Path) -> None:
    site = joining.join(world.invite("gone"), tmp_path / "gone", NOW)
    pair, identity = joining._pair(site), joining._identity(site)
    assert registry.revoke(world.coordinator, "gone", NOW).certificates == 1
    refused(world, "certificate of site gone was revoked", lambda: call_site(world, *pair))
    refused(world, "certificate of site gone was revoked", lambda: joining.renew(site, NOW))
    invitation = world.invite("gone")
    refused(world, "this key was revoked", lambda: call_join(world, asked(identity, invitation.token)))
    back = joining.join(invitation, tmp_path / "back", NOW)
    assert joining.waiting(back) == []
    refused(world, "certificate of site gone was revoked", lambda: call_site(world, *pair))
    assert joining.waiting(world.site) == []  # the others never noticed
    listed = x509.load_pem_x509_crl(world.coordinator.revocation_list.read_bytes())
    serial = x509.load_pem_x509_certificate(pair[0]).serial_number
    assert listed.get_revoked_certificate_by_serial_number(serial) is not None
    assert len(list(listed)) == 1


def test_a_site_renews_for_itself_alone_and_not_by_its_certificate_alone(world: World) -> None:
    pair, other = joining._pair(world.site), create_identity("north")
    own = joining._identity(world.site)

    def renewing(request: bytes, proof: bytes) -> Callable[[], Any]:
        asked_for = enrol_pb2.RenewRequest(csr=request, proof=proof)
        return lambda: call_site(world, *pair, lambda stub: stub.Renew(asked_for, timeout=20))

    mine, south = create_request("north")[0], create_request("south")[0]
    refused(world, "another name", renewing(south, sign(own, renew_statement("north", south))))
    refused(world, "not by the key of north", renewing(mine, sign(other, renew_statement("north", mine))))
    refused(world, "not by the key of north", renewing(mine, sign(own, renew_statement("south", mine))))


def test_nobody_leaves_for_another(world: World) -> None:
    pair = joining._pair(world.site)
    leave = enrol_pb2.LeaveRequest(site="south")
    refused(world, "for no other site", lambda: call_site(world, *pair, lambda stub: stub.Leave(leave, timeout=20)))
    assert "north" in world.coordinator.site_keys()


def test_a_file_is_asked_for_by_name_and_never_by_path(world: World) -> None:
    pair = joining._pair(world.site)
    for name in ("../ca/ca.key", "/etc/passwd", "..", ""):
        asked_for = enrol_pb2.FetchRequest(kind="campaign", name=name, sha256=bytes(32))
        refused(
            world, "no such file",
            lambda asked_for=asked_for: call_site(world, *pair, lambda stub: list(stub.Fetch(asked_for, timeout=20))),
        )  # fmt: skip


def test_a_site_sees_the_campaigns_that_name_it_and_no_others(world: World, tmp_path: Path) -> None:
    from server.shelf import publish

    for name, sites in (("ours", {"north": {}}), ("theirs", {"south": {}})):
        publish(world.coordinator, name, json.dumps({"manifest": {"sites": sites}}).encode())
    offered = joining.waiting(world.site)
    assert [one.name for one in offered] == ["ours.json"]
    assert joining.fetch(world.site, offered[0]).read_bytes() == b'{"manifest": {"sites": {"north": {}}}}'
    theirs = (world.coordinator.campaigns / "theirs.json").read_bytes()
    hidden = enrol_pb2.FetchRequest(
        kind="campaign", name="theirs.json", sha256=__import__("hashlib").sha256(theirs).digest()
    )
    pair = joining._pair(world.site)
    refused(world, "no such file", lambda: call_site(world, *pair, lambda stub: list(stub.Fetch(hidden, timeout=20))))
    with pytest.raises(ConfigError, match="published already"):
        publish(world.coordinator, "ours", b"{}")


def test_a_call_without_an_end_is_refused(world: World) -> None:
    pair = joining._pair(world.site)
    for timeout in (None, 1e6):
        refused(world, "needs a deadline", lambda timeout=timeout: call_site(world, *pair, timeout=timeout), DataError)


def test_what_a_coordinator_answers_is_checked_as_a_strangers(world: World, tmp_path: Path) -> None:
    """A certificate for another key, another name or of another authority is not put into the folder."""
    authority = folder.authority_of(world.coordinator)
    before = world.site.certificate.read_bytes()
    _, key = create_request("north")
    for certificate in (
        new_certificate(authority, "north")[0],
        new_certificate(authority, "south")[0],
        new_certificate(certificates.create_authority("test", NOW), "north")[0],
        b"",
    ):
        with pytest.raises(RefusedError, match="no certificate for this site"):
            joining._keep(world.site.folder, "north", certificate, key, authority.certificate, NOW)
    assert world.site.certificate.read_bytes() == before


@pytest.mark.parametrize("name", ["key", "exchange.key", "tls.pem"])
def test_a_key_that_others_can_read_stops_every_command(world: World, name: str) -> None:
    from client.folder import read

    path = world.site.folder / name
    path.chmod(0o640)
    try:
        with pytest.raises(RefusedError, match=f"{name} must have mode 0600, got 0640"):
            read(world.site.folder)
    finally:
        path.chmod(0o600)


# ------------------------------------------------------------------------------------------- calls that send nothing


def test_calls_to_join_that_send_nothing_are_ended_and_the_port_answers_again(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Anybody may begin a call, and each holds a worker until its connection is too old."""
    ages = {"grpc.max_connection_age_ms", "grpc.max_connection_age_grace_ms"}
    assert all(value <= 20_000 for key, value in JOIN_OPTIONS if key in ages)
    assert ages <= dict(JOIN_OPTIONS).keys()
    quick = [(key, 300 if key in ages else value) for key, value in JOIN_OPTIONS]
    monkeypatch.setattr(enrol, "JOIN_OPTIONS", quick)
    coordinator = replace(world.coordinator, join_port=free_port(), services_port=free_port())
    servers = enrol.start(coordinator, "127.0.0.1", lambda: world.now)
    credentials = grpc.ssl_channel_credentials(coordinator.authority.read_bytes())
    target, over = f"127.0.0.1:{coordinator.join_port}", threading.Event()
    channels = [
        grpc.secure_channel(target, credentials, (("grpc.use_local_subchannel_pool", 1),))
        for _ in range(2 * enrol.WORKERS)
    ]

    def silence() -> Iterator[bytes]:
        over.wait(30)
        yield from ()

    try:
        calls = [one.stream_unary("/wardround.enrol.v1.Enrolment/Join").future(silence()) for one in channels]
        assert all(call.code() != grpc.StatusCode.OK for call in calls), "each was ended by the server"
        held = replace(world, coordinator=coordinator)
        refused(held, "is not one that `invite` made", lambda: call_join(held, enrol_pb2.JoinRequest()), DataError)
    finally:
        over.set()
        for each in (*channels, *(server.stop(0) for server in servers)):
            each.wait() if hasattr(each, "wait") else each.close()
