"""Which weights a round of a campaign was asked with here: the coordinator may repeat it, and not ask anything new.

    <home>/asked/<digest of campaign or phase>.json    "train 3" -> digests of the weights that came with it

A round that was lost is repeated with the weights that it had. Other weights under the same number are another round,
and as many of them as a coordinator likes would make the number of rounds that the operator approved mean nothing: each
tells a sum, and a score on the test patients, that were not agreed. MOST_STARTS are let through, so that a campaign
which broke down can be run once more from its beginning. Written before anything is computed.
"""

from __future__ import annotations

import json
import re

from client.site import SiteSetup
from shared.checkpoint import write_atomically
from shared.errors import DataError, RefusedError
from shared.locks import locked
from shared.masking import start_digest
from shared.trust.keystore import private_folder
from shared.types import Plan

FOLDER = "asked"
MOST_STARTS = 2
"""Sets of weights that one round is answered with."""
_DIGEST = re.compile(r"[0-9a-f]{64}")


def note_start(plan: Plan, setup: SiteSetup) -> None:
    """RefusedError for a plan to train or evaluate that brings a third set of weights for its round; DataError where
    what was noted is damaged. Nothing is kept where a simulation has no rules of a site."""
    if setup.home is None or setup.rules is None:
        return
    folder, key = setup.home / FOLDER, f"{plan.action} {plan.round}"
    private_folder(folder)
    path, digest = folder / f"{plan.config_digest}.json", start_digest(plan.weights, plan.frozen_digest)
    with locked(folder / f"{plan.config_digest}.lock"):
        try:
            seen: dict[str, list[str]] = json.loads(path.read_bytes())
            known = seen.get(key, [])
            whole = isinstance(known, list) and all(isinstance(one, str) and _DIGEST.fullmatch(one) for one in known)
        except FileNotFoundError:
            seen, known, whole = {}, [], True
        except (OSError, ValueError, AttributeError, RecursionError):
            whole = False
        if not whole:
            raise DataError(
                "the list of weights that this site was asked with is damaged; nothing more of this campaign is "
                "answered here; agree on one with another seed"
            )
        if digest in known:
            return
        if len(known) >= MOST_STARTS:
            raise RefusedError(
                f"round {plan.round} of this campaign was answered here with {MOST_STARTS} sets of weights, and a "
                "further one would be a round that was not approved; resume the run, or agree on a campaign with "
                "another seed"
            )
        write_atomically(path, json.dumps(seen | {key: [*known, digest]}).encode())
