"""A coordinator's folder in, its audit log out: `audit.jsonl`, signed with the key that releases are signed with.

That key is renewed every few years; its certificate is an entry of the log (`audit.signer`), so that whoever has ca.crt
can verify all of it. `audit_days` in coordinator.json says for how long entries are kept (default 2190, six years).
"""

from __future__ import annotations

import argparse
import datetime as dt
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

from server.folder import Coordinator, read, release_signer
from shared.audit import ANCHOR, AuditLog, Scalar, days_of
from shared.errors import RefusedError, WardroundError
from shared.events import CampaignResumed, Event, RoundFailed, RoundFinished, SiteJoined, SiteRefused
from shared.locks import locked
from shared.trust.line_signatures import signer_of

LOG = "audit.jsonl"


def log_path(coordinator: Coordinator) -> Path:
    return coordinator.folder / LOG


def coordinator_audit(coordinator: Coordinator) -> AuditLog:
    """Ready to append; makes the signer where there is none yet."""
    with locked(coordinator.folder / "ca" / ".lock"):
        signer = release_signer(coordinator, dt.datetime.now(dt.UTC))
    days = days_of(coordinator.folder / "coordinator.json")
    return AuditLog(log_path(coordinator), signer_of(signer.key), signer.certificate.decode(), days)


def record(coordinator: Coordinator, event: str, /, **facts: Scalar) -> None:
    """One line in a command: what was done, in the log of the coordinator that it was done at."""
    coordinator_audit(coordinator).append(event, **facts)


def record_refusal(arguments: argparse.Namespace, error: WardroundError) -> None:
    """What a command refused, in the words that the person read; quiet where there is no folder to record it in."""
    if not isinstance(error, RefusedError) or not hasattr(arguments, "folder"):
        return
    with suppress(WardroundError):
        name = arguments.command.__name__.strip("_")
        record(read(arguments.folder), "refused", command=name, reason=str(error)[:500])


@contextmanager
def recording(folder: Path, campaign: str) -> Iterator[Callable[[Event], None]]:
    """While a run lasts: records what it is given, and how the run ended."""
    log = coordinator_audit(read(folder))
    try:
        yield partial(_note, log, campaign)
    except WardroundError as error:
        log.append("campaign.stopped", campaign=campaign, reason=str(error)[:500])
        raise
    except Exception as error:
        log.append("campaign.stopped", campaign=campaign, reason=type(error).__name__)
        raise
    log.append("campaign.completed", campaign=campaign)


def _note(log: AuditLog, campaign: str, event: Event) -> None:
    """Who took part in which round, who was refused and why, what failed."""
    match event:
        case SiteJoined():
            log.append("site.joined", campaign=campaign, site=event.site)
            if event.audit[0]:
                log.append(ANCHOR, of=event.site, number=event.audit[0], head=event.audit[1])
        case SiteRefused():
            log.append("refused", campaign=campaign, site=event.site, reason=event.reason[:500])
        case CampaignResumed():
            log.append("campaign.resumed", campaign=campaign, round=event.round)
        case RoundFailed():
            log.append("round.failed", campaign=campaign, round=event.round, reason=event.reason[:500])
        case RoundFinished():
            sites, dropped = (
                ", ".join(sorted(event.record.get(key, ())))[:4000] for key in ("participants", "dropped")
            )
            norm = event.record.get("update_norm")
            log.append(
                "round.finished", campaign=campaign, round=event.round, sites=sites, dropped=dropped,
                update_norm=None if norm is None else float(norm),
            )  # fmt: skip
