"""Is this coordinator well: one row per thing that must hold, and a warning before something ends."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from server import invitations, processes, registry
from server.folder import Coordinator
from shared.errors import RefusedError, WardroundError
from shared.trust import certificates, keystore
from shared.trust.site_certificates import SiteCertificate

WARN_DAYS = 30
AUTHORITY_WARN_DAYS = 365
"""A new authority means new files at every site, so a year is short."""


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table; `exit_code` is 0 when it holds, `warning` when it will not for long."""

    what: str
    answer: str
    exit_code: int = 0
    warning: bool = False


def check(coordinator: Coordinator, now: dt.datetime) -> tuple[Row, ...]:
    """Every row is tried, whatever the others say."""
    return (
        _row("keys", lambda: _keys(coordinator)),
        _row("authority", lambda: _authority(coordinator, now)),
        _row("server certificate", lambda: _server(coordinator, now)),
        *(_site(site, said, now) for site, said in registry.certificates_of(coordinator, now).items()),
        _row("invitations", lambda: _invitations(coordinator, now)),
        _row("gateway", lambda: _gateway(coordinator)),
        _row("serving", lambda: _serving(coordinator)),
    )


def _row(what: str, answer: Callable[[], Row | str]) -> Row:
    try:
        said = answer()
        return said if isinstance(said, Row) else Row(what, said)
    except WardroundError as error:
        return Row(what, str(error), error.exit_code)


def _keys(coordinator: Coordinator) -> str:
    def private() -> Iterator[str]:
        for path in coordinator.keys:
            keystore.check_private(path)
            yield path.name

    return f"private, mode 0600: {', '.join(private())}"


def _authority(coordinator: Coordinator, now: dt.datetime) -> Row:
    authority = coordinator.authority.read_bytes()
    days = certificates.days_left(authority, now)
    if days < 0:
        raise RefusedError(f"the federation's authority ended {-days} days ago; found a new federation")
    print_ = certificates.fingerprint(authority)
    return Row("authority", f"valid for {days} days more; SHA-256 {print_}", warning=days < AUTHORITY_WARN_DAYS)


def _server(coordinator: Coordinator, now: dt.datetime) -> Row:
    days = certificates.days_left(coordinator.server_certificate.read_bytes(), now)
    if days < 0:
        raise RefusedError(f"the server certificate ended {-days} days ago; start serve again, which renews it")
    soon = days < certificates.RENEW_BEFORE_DAYS
    return Row("server certificate", f"valid for {days} days more{'; start serve again' if soon else ''}", warning=soon)


def _site(site: str, said: SiteCertificate | str, now: dt.datetime) -> Row:
    what = f"certificate of {site}"
    if isinstance(said, str):
        return Row(what, said, RefusedError.exit_code)
    days = said.days_left(now)
    soon = days < WARN_DAYS
    late = "; it should have been renewed by the site: wardround-site renew" if soon else ""
    return Row(what, f"valid for {days} days more{late}", warning=soon)


def _invitations(coordinator: Coordinator, now: dt.datetime) -> str:
    found = [one.site for one in invitations.invitations(coordinator) if one.state(now).startswith("open")]
    return f"open for {', '.join(found)}" if found else "none is open"


def _gateway(coordinator: Coordinator) -> Row:
    gateway = coordinator.gateway
    if gateway is None:
        return Row("gateway", "none: only this machine reaches the coordinator; see: wardround-coordinator gateway")
    ports = gateway.ports
    return Row("gateway", f"{gateway.host}: {ports.fleet} training, {ports.join} joins, {ports.services} services")


def _serving(coordinator: Coordinator) -> str:
    processes.reach(coordinator)
    return "the SuperLink answers"
