"""What happens during a campaign, as frozen values: for a progress display, a log, a status file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias


@dataclass(frozen=True, slots=True)
class SiteJoined:
    site: str
    counts: Mapping[str, int]
    audit: tuple[int, str] = (0, "")
    """Number and SHA-256 of the last entry of its audit log."""


@dataclass(frozen=True, slots=True)
class SiteRefused:
    """`site` is empty where a peer was refused before it gave a name."""

    site: str
    reason: str


@dataclass(frozen=True, slots=True)
class PhaseStarted:
    """A campaign with a generator begins phase `number` of `phases`, or goes through it again when it is resumed."""

    phase: str
    number: int
    phases: int


@dataclass(frozen=True, slots=True)
class RoundStarted:
    """`round` is rounds + 1 in the closing evaluation; `attempt` counts from 1."""

    round: int
    rounds: int
    attempt: int
    sites: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class SiteStep:
    """A site finished `step` of `steps` local steps (in-process runs only: a deployed site does not call home)."""

    site: str
    round: int
    step: int
    steps: int


@dataclass(frozen=True, slots=True)
class SiteReplied:
    """`reason` is empty when the reply counts, else why it was dropped."""

    site: str
    round: int
    reason: str


@dataclass(frozen=True, slots=True)
class RoundFailed:
    """Too few replies; `attempts_left` more tries follow."""

    round: int
    reason: str
    attempts_left: int


@dataclass(frozen=True, slots=True)
class RoundFinished:
    """`record` is the line of rounds.jsonl."""

    round: int
    rounds: int
    record: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class CampaignResumed:
    """The run goes on after `round`, from its checkpoint."""

    round: int


Event: TypeAlias = (
    SiteJoined
    | SiteRefused
    | PhaseStarted
    | RoundStarted
    | SiteStep
    | SiteReplied
    | RoundFailed
    | RoundFinished
    | CampaignResumed
)
