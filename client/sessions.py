"""What a site must remember between the messages of a masked round, each of which is answered by a new process.

    <home>/secagg/<campaign digest>.session   the live session's secrets; a new offer takes its place
                                   .opened    round -> the sites whose sum this site helped to open
                                   .lock      held while a session goes from one state to the next

In: frozen sessions of shared.secagg.protocol. Out: the same again, or a refusal. A session is on the disk before the
reply that it belongs to leaves: a site that was killed in between has sent nothing, and masks nothing twice. It is gone
before its reveal leaves, which therefore leaves once.

A round that failed is tried again, and a site trains to the same update. Sums over two sets of sites that differ by
one of them would show that one's update; so a site remembers for how many sets, and which, it opened a round, also
after a restart, and shared.secagg.protocol.reveal refuses what they would tell together.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shared.checkpoint import write_atomically
from shared.errors import DataError, RefusedError
from shared.files import sync
from shared.locks import locked
from shared.trust.keystore import check_private, private_folder

if TYPE_CHECKING:
    from shared.secagg.protocol import SiteSession, Terms

FOLDER = "secagg"


@contextmanager
def alone(home: Path, terms: Terms) -> Iterator[None]:
    """One process at a time moves the sessions of a campaign on: two messages at once cannot both be its first."""
    private_folder(home / FOLDER)
    with locked(_path(home, terms, "lock")):
        yield


def keep(home: Path, session: SiteSession) -> None:
    """Write and sync; the session that was there before is gone."""
    _write(_path(home, session.terms, "session"), session.to_json())


def kept(home: Path, terms: Terms) -> SiteSession:
    """The live session, which must be that of `terms`; RefusedError otherwise."""
    from shared.secagg.protocol import SiteSession

    gone = RefusedError(
        f"session {terms.session[:8]} is not the live one of this campaign here: it was revealed, or a later offer "
        "took its place; offer again"
    )
    path = _path(home, terms, "session")
    values = _read(path) if path.exists() else None
    if values is None:
        raise gone
    session = SiteSession.from_json(values)
    if session.terms != terms:
        raise gone
    return session


def drop(home: Path, terms: Terms) -> None:
    """The session's secrets are no longer here; synced."""
    _path(home, terms, "session").unlink(missing_ok=True)
    sync(home / FOLDER)


def opened(home: Path, terms: Terms) -> tuple[tuple[str, ...], ...]:
    """The sets of sites whose sum of this round this site helped to open, in this campaign, whatever the session."""
    return tuple(tuple(sites) for sites in _opened(home, terms).get(str(terms.round), []))


def note_opening(home: Path, terms: Terms, survivors: tuple[str, ...]) -> None:
    """Remember, before the reveal leaves, whose sum it opens."""
    rounds = _opened(home, terms)
    sets = rounds.setdefault(str(terms.round), [])
    if list(survivors) not in sets:
        sets.append(list(survivors))
    _write(_path(home, terms, "opened"), rounds)


def _opened(home: Path, terms: Terms) -> dict[str, list[list[str]]]:
    path = _path(home, terms, "opened")
    if not path.exists():
        return {}
    rounds = _read(path)
    if rounds is None:
        raise DataError(
            "the list of sums that this site helped to open is damaged; no more of this campaign are opened here; "
            "agree on one with another seed"
        )
    return rounds


def _path(home: Path, terms: Terms, kind: str) -> Path:
    return home / FOLDER / f"{terms.campaign_digest}.{kind}"


def _read(path: Path) -> dict[str, Any] | None:
    """None for a damaged file."""
    check_private(path)
    try:
        values = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    return values if isinstance(values, dict) else None


def _write(path: Path, values: object) -> None:
    write_atomically(path, json.dumps(values).encode(), 0o600)
