"""What leaves a site into its audit log, before it does: which campaign, when, how much, how long, at what epsilon.

No value of an array, no metric and no path stands in the log: names are told by a digest over their list, an update by
its L2 norm. An entry that cannot be written keeps the answer at the site.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from contextlib import suppress
from typing import TYPE_CHECKING

from client.site import SiteSetup
from shared.errors import WardroundError
from shared.types import Plan
from shared.wire.messages import Record

if TYPE_CHECKING:
    from shared.config import CampaignConfig


def note_leaving(
    record: Record, plan: Plan, setup: SiteSetup, agreed: CampaignConfig, facts: Mapping[str, float | bool]
) -> None:
    """One line for one answer; `agreed` is the campaign as it was approved. Raises what the log raises: then nothing
    leaves."""
    if setup.audit is None:
        return
    header = json.loads(record.header)
    arrays = header.get("stands_for", header.get("shapes", {}))
    metrics = (*header.get("training", {}), *header.get("evaluation", {}))
    more = dict(facts)
    if agreed.privacy.on and header["kind"] in ("update", "masked"):
        from client.privacy import spent

        more["epsilon"] = float(f"{spent(setup, agreed):.6g}")
    setup.audit.append(
        "round.left",
        campaign=plan.campaign,
        digest=plan.config_digest,
        round=plan.round,
        kind=header["kind"],
        bytes=record.num_bytes,
        arrays=len(arrays),
        metrics=len(metrics),
        names=hashlib.sha256("\n".join((*arrays, *metrics)).encode()).hexdigest(),
        **more,
    )


def note_refusal(setup: SiteSetup | None, reason: str) -> None:
    """What was declined, in the words that leave; a log that cannot be written does not undo a refusal."""
    if setup is None or setup.audit is None:
        return
    with suppress(WardroundError, OSError):
        setup.audit.append("refused", reason=reason[:500])
