"""What the coordinator needs of a transport: who is there, send, receive one. Small, so that a test can script it.

Nothing of Flower in here: server/rounds.py and server/collect.py are written against this page only.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Protocol

from shared.types import Action
from shared.wire.messages import Record


@dataclass(frozen=True, slots=True)
class Peer:
    """A connected peer: the transport's number for it, and the site name it was registered under (empty: none)."""

    id: int
    name: str = ""


@dataclass(frozen=True, slots=True)
class Failure:
    """No content came back, and why, in our own words: a peer's error text is not repeated."""

    reason: str


class Link(Protocol):
    def peers(self) -> Sequence[Peer]:
        """Who is online now, in a fixed order."""
        ...

    def send(self, action: Action, record: Record, peers: Sequence[Peer]) -> dict[str, Peer]:
        """Tickets to receive the replies with, in the order of `peers`; a peer that could not be reached has none."""
        ...

    def receive(self, tickets: Collection[str], timeout_s: float) -> tuple[str, Record | Failure] | None:
        """One reply to any of `tickets`, earlier tickets first where several wait; None when none came in time."""
        ...
