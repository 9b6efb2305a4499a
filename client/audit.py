"""A site's folder in, its audit log out: `audit.jsonl`, signed with the site's own key.

`audit_days` in site.json says for how long entries are kept (default 2190, six years).
"""

from __future__ import annotations

import argparse
from contextlib import suppress
from pathlib import Path

from client.folder import SiteFolder, read
from shared.audit import AuditLog, Scalar, days_of
from shared.errors import RefusedError, WardroundError
from shared.trust import keystore
from shared.trust.line_signatures import signer_of

LOG = "audit.jsonl"


def log_path(site: SiteFolder) -> Path:
    return site.folder / LOG


def site_audit(site: SiteFolder) -> AuditLog:
    """Ready to append; raises RefusedError where the key lies open, ConfigError for an `audit_days` that is none."""
    return AuditLog(log_path(site), signer_of(keystore.read_private(site.key)), days=days_of(site.folder / "site.json"))


def record(site: SiteFolder, event: str, /, **facts: Scalar) -> None:
    """One line in a command: what was done, in the log of the site that it was done at."""
    site_audit(site).append(event, **facts)


def record_refusal(arguments: argparse.Namespace, error: WardroundError) -> None:
    """What a command refused, in the words that the person read; quiet where there is no site to record it at."""
    if not isinstance(error, RefusedError):
        return
    with suppress(WardroundError):
        record(
            read(arguments.folder), "refused", command=arguments.command.__name__.strip("_"), reason=str(error)[:500]
        )
