"""A coordinator's folder in, its audit log out: `audit.jsonl`, signed with the key that releases are signed with.

That key is renewed every few years; its certificate is an entry of the log (`audit.signer`), so that whoever has ca.crt
can verify all of it. `audit_days` in coordinator.json says for how long entries are kept (default 2190, six years).
"""

from __future__ import annotations

import datetime as dt
from pathlib import Path

from server.folder import Coordinator, release_signer
from shared.audit import AuditLog, Scalar, days_of, read
from shared.locks import locked
from shared.trust.line_signatures import lines_of, signer_of

LOG = "audit.jsonl"


def log_path(coordinator: Coordinator) -> Path:
    return coordinator.folder / LOG


def coordinator_audit(coordinator: Coordinator) -> AuditLog:
    """Ready to append; makes the signer where there is none yet."""
    with locked(coordinator.folder / "ca" / ".lock"):
        signer = release_signer(coordinator, dt.datetime.now(dt.UTC))
    days = days_of(coordinator.folder / "coordinator.json")
    return AuditLog(log_path(coordinator), signer_of(signer.key), signer.certificate.decode(), days)


def record(coordinator: Coordinator, event: str, **facts: Scalar) -> None:
    """One line in a command: what was done, in the log of the coordinator that it was done at."""
    coordinator_audit(coordinator).append(event, **facts)


def signer_lines(authority: bytes, log: Path) -> tuple[str, ...]:
    """Every key that signed a coordinator's log, as the authority's certificates in the log itself say."""
    certificates = [str(entry.facts.get("signer")) for entry in read(log) if entry.event == "audit.signer"]
    return lines_of(authority, certificates)
