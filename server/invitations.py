"""Invitations that the coordinator made: one file each, used once, ended by their day, a revocation or wrong secrets.

invitations/ID.json   site, hash of the secret, made_at, expires, used_at, wrong, void
"""

from __future__ import annotations

import datetime as dt
import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from server.folder import Coordinator
from server.registry import registering
from shared.checkpoint import write_atomically
from shared.errors import ConfigError, DataError, RefusedError
from shared.trust import certificates, keystore
from shared.trust.invitations import Invitation, is_secret, new_token, secret_hash, split_token
from shared.trust.names import checked_name

DEFAULT_DAYS = 7
MAX_DAYS = 90
MAX_WRONG = 5
"""Wrong secrets under a right ID, after which an invitation is void: nobody guesses an ID."""


class UnknownInvitation(RefusedError):
    """No invitation has this ID: what a guess looks like."""


@dataclass(frozen=True, slots=True)
class Issued:
    """One invitation, without its secret."""

    id: str
    site: str
    secret_hash: str
    made_at: str
    expires: str
    used_at: str = ""
    wrong: int = 0
    void: str = ""
    """Why it does not count any more."""

    def state(self, now: dt.datetime) -> str:
        """In words: open, used, expired or void."""
        if self.used_at:
            return f"used on {self.used_at[:10]}"
        if self.void:
            return f"void: {self.void}"
        if now > dt.datetime.fromisoformat(self.expires):
            return f"expired on {self.expires[:10]}"
        return f"open until {self.expires[:10]}"


def invite(coordinator: Coordinator, site: str, days: int, now: dt.datetime) -> Invitation:
    """A new invitation for a site that is not in yet; those that were open for it are void."""
    checked_name("site name", site)
    if not 0 < days <= MAX_DAYS:
        raise ConfigError(f"--days must lie in 1..{MAX_DAYS}, got {days}")
    with registering(coordinator):
        if site in coordinator.site_keys():
            raise ConfigError(
                f"site {site!r} is in this federation already; revoke it first, and its next part begins with an "
                "invitation"
            )
        _void(coordinator, site, "a newer one was made", now)
        token = new_token()
        identifier, secret = split_token(token)
        expires = (now + dt.timedelta(days=days)).astimezone(dt.UTC).isoformat(timespec="seconds")
        made_at = now.astimezone(dt.UTC).isoformat(timespec="seconds")
        _write(coordinator, Issued(identifier, site, secret_hash(secret), made_at, expires))
    authority = coordinator.authority.read_bytes()
    dialled = coordinator.dialled()
    host = f"[{dialled.host}]" if ":" in dialled.host else dialled.host
    return Invitation(
        federation=coordinator.name,
        site=site,
        expires=expires,
        coordinator=f"{host}:{dialled.ports.fleet}",
        join=f"{host}:{dialled.ports.join}",
        services=f"{host}:{dialled.ports.services}",
        gateway=coordinator.gateway is not None,
        authority_fingerprint=certificates.fingerprint(authority),
        authority=authority.decode(),
        token=token,
    )


def invitations(coordinator: Coordinator) -> list[Issued]:
    """Every invitation, oldest first."""
    found = [_read(path) for path in (coordinator.folder / "invitations").glob("[!.]*.json")]
    return sorted(found, key=lambda each: (each.made_at, each.id))


def checked(coordinator: Coordinator, token: str, site: str, now: dt.datetime) -> Issued:
    """The invitation of a token, if (1) there is one (2) with this secret (3) not used (4) not void (5) not expired
    (6) for this site.  Raises RefusedError; a wrong secret is counted. Caller holds `registering`.
    """
    # (1)
    identifier, secret = split_token(token)
    path = _path(coordinator, identifier)
    if not path.is_file():
        raise UnknownInvitation("this invitation is unknown here; ask the coordinator for one")
    one = _read(path)
    # (2)
    if not is_secret(secret, one.secret_hash):
        wrong = one.wrong + 1
        void = one.void or ("too many wrong secrets" if wrong >= MAX_WRONG else "")
        _write(coordinator, replace(one, wrong=wrong, void=void))
        raise RefusedError("the token of this invitation is wrong; ask the coordinator for a new invitation")
    # (3)
    if one.used_at:
        raise RefusedError(
            f"this invitation was used already, on {one.used_at[:16]} UTC; if that was not you, tell the coordinator, "
            "who revokes the site and invites it anew"
        )
    # (4)
    if one.void:
        raise RefusedError(f"this invitation is void ({one.void}); ask the coordinator for a new one")
    # (5)
    if now > dt.datetime.fromisoformat(one.expires):
        raise RefusedError(f"this invitation expired on {one.expires[:10]}; ask the coordinator for a new one")
    # (6)
    if one.site != site:
        raise RefusedError(f"this invitation is for another site than {site!r}; every site has its own")
    return one


def mark_used(coordinator: Coordinator, one: Issued, now: dt.datetime) -> None:
    """It counts once. Caller holds `registering`."""
    _write(coordinator, replace(one, used_at=now.astimezone(dt.UTC).isoformat(timespec="seconds")))


def void_of(coordinator: Coordinator, site: str, why: str, now: dt.datetime) -> None:
    """What was open for a site counts no more."""
    with registering(coordinator):
        _void(coordinator, site, why, now)


def _void(coordinator: Coordinator, site: str, why: str, now: dt.datetime) -> None:
    for one in invitations(coordinator):
        if one.site == site and one.state(now).startswith("open"):
            _write(coordinator, replace(one, void=why))


def _path(coordinator: Coordinator, identifier: str) -> Path:
    return coordinator.folder / "invitations" / f"{identifier}.json"


def _write(coordinator: Coordinator, one: Issued) -> None:
    keystore.private_folder(coordinator.folder / "invitations")
    write_atomically(_path(coordinator, one.id), (json.dumps(asdict(one), indent=1) + "\n").encode())


def _read(path: Path) -> Issued:
    try:
        return Issued(**json.loads(path.read_text()))
    except (OSError, ValueError, TypeError, RecursionError):
        raise DataError(f"invitations/{path.name} is damaged; remove it and invite the site again") from None
