"""What a site has spent of its patients' privacy: one JSON line per charge in <home>/ledger.jsonl, never rewritten.

A charge is written and on the disk before anything is computed for it: who kills the site in between has it count for
nothing learnt, never the other way round. Every attempt at a round is a charge, whether its answer arrived or not.

Each line names the SHA-256 of all before it, and ledger.head how many lines there were at least, with their digest: a
line that was changed, cut, moved or half written stops the site. A power cut can leave the last line unfinished;
nothing was computed for it yet. Whoever can write the folder can still forge all of it: this guards against accidents.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import json
import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from shared.checkpoint import write_atomically
from shared.errors import DataError
from shared.locks import locked
from shared.privacy.accountant import Steps, epsilon

LEDGER, HEAD, LOCK = "ledger.jsonl", "ledger.head", ".ledger.lock"
_HEX = re.compile(r"[0-9a-f]{64}")
_START = "0" * 64


@dataclass(frozen=True, kw_only=True, slots=True)
class Charge:
    """The privacy of one attempt at one round."""

    campaign: str
    """Digest (hex)."""
    name: str
    unit: str
    """patient or site: whose part is hidden (shared.config.PrivacyConfig)."""
    round: int
    multiplier: float
    rate: float
    steps: int
    delta: float
    epsilon: float
    """What the whole campaign may spend."""
    at: str = ""
    """UTC; filled in when it is written."""

    @property
    def spent(self) -> Steps:
        return Steps(self.multiplier, self.rate, self.steps)

    @property
    def of_patient(self) -> Steps:
        """What it may tell of one patient. Another patient makes another update of the site, and two updates lie up to
        twice the clipping norm apart: of noise for a site that is there or not, half counts."""
        return self.spent if self.unit == "patient" else Steps(self.multiplier / 2, 1.0, self.steps)


def read_ledger(home: Path) -> tuple[Charge, ...]:
    """All charges, oldest first; none where nothing was ever charged. Raises DataError for a ledger that is damaged."""
    head = _head(home)
    try:
        text = (home / LEDGER).read_bytes()
    except FileNotFoundError:
        if head is None:
            return ()
        raise DataError(f"{LEDGER} is gone, and {HEAD} knows of charges in it; {_WAY_OUT}") from None
    except OSError:
        raise DataError(f"{LEDGER} cannot be read; {_WAY_OUT}") from None
    return _checked(text, head)


def append(home: Path, charge: Charge) -> Charge:
    """Write `charge` after all others, to the disk; call it under `held`. Returns it with its time."""
    path = home / LEDGER
    before = path.read_bytes() if path.is_file() else b""
    count, digest = before.count(b"\n"), _digest_of(before)
    stamped = Charge(**{**asdict(charge), "at": dt.datetime.now(dt.UTC).isoformat(timespec="seconds")})
    line = json.dumps({"number": count + 1, "before": digest, **asdict(stamped)}, sort_keys=True).encode() + b"\n"
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        if os.write(descriptor, line) != len(line):
            raise DataError(f"{LEDGER} could not be written whole: the disk may be full; {_WAY_OUT}")
        os.fsync(descriptor)
    except OSError:
        raise DataError(f"{LEDGER} could not be written: the disk may be full; {_WAY_OUT}") from None
    finally:
        os.close(descriptor)
    write_atomically(home / HEAD, json.dumps({"number": count + 1, "digest": _digest_of(before + line)}).encode())
    return stamped


def held(home: Path) -> Any:
    """A lock: one message at a time reads what was spent and adds to it."""
    return locked(home / LOCK)


def of_campaign(charges: Sequence[Charge], campaign: str) -> list[Charge]:
    return [charge for charge in charges if charge.campaign == campaign]


def spent_on(charges: Sequence[Charge]) -> float:
    """Epsilon of one campaign's charges, of the campaign's unit, at its delta."""
    return epsilon([charge.spent for charge in charges], charges[-1].delta) if charges else 0.0


def spent_in_total(charges: Sequence[Charge]) -> float:
    """Epsilon of all charges together, for one patient of this site, at the least delta of all campaigns."""
    if not charges:
        return 0.0
    return epsilon([charge.of_patient for charge in charges], min(charge.delta for charge in charges))


def summary(charges: Sequence[Charge], most: float | None) -> dict[str, Any]:
    """For people and programs: campaigns (the last charged last), and all of them together; `most` is the site's own
    limit."""
    campaigns = []
    for digest in dict.fromkeys(charge.campaign for charge in reversed(charges)):
        mine = of_campaign(charges, digest)
        last = mine[-1]
        campaigns.append(
            {
                "campaign": digest,
                "name": last.name,
                "unit": last.unit,
                "attempts": len(mine),
                "spent": spent_on(mine),
                "epsilon": last.epsilon,
                "delta": last.delta,
                "last": last.at,
            }
        )
    delta = min((charge.delta for charge in charges), default=None)
    return {"campaigns": campaigns[::-1], "total": spent_in_total(charges), "delta": delta, "most": most}


# ------------------------------------------------------------------------------------------------------------- checking

_WAY_OUT = (
    "no campaign with privacy goes on here; restore the folder from a backup that is no older, or, of a line that a "
    "power cut left unfinished, remove what stands after the last line break"
)
_NUMBERS = ("multiplier", "rate", "delta", "epsilon")


def _checked(text: bytes, head: tuple[int, str] | None) -> tuple[Charge, ...]:
    if text and not text.endswith(b"\n"):
        raise DataError(f"the last line of {LEDGER} is not whole; {_WAY_OUT}")
    charges: list[Charge] = []
    running, known = hashlib.sha256(), head is None
    for number, line in enumerate(text.splitlines(keepends=True), start=1):
        charges.append(_charge(line, number, running.hexdigest() if number > 1 else _START))
        running.update(line)
        known = known or (number, running.hexdigest()) == head
    if not known:
        raise DataError(f"{LEDGER} lacks lines that {HEAD} knows of; {_WAY_OUT}")
    return tuple(charges)


def _charge(line: bytes, number: int, before: str) -> Charge:
    try:
        values = json.loads(line)
        if values.pop("number") != number or values.pop("before") != before:
            raise DataError(f"line {number} of {LEDGER} does not follow the one before it; {_WAY_OUT}")
        charge = Charge(**values)
        fits = all(isinstance(getattr(charge, name), (int, float)) for name in _NUMBERS)
        fits = fits and all(math.isfinite(getattr(charge, name)) for name in _NUMBERS)
        fits = fits and isinstance(charge.campaign, str) and bool(_HEX.fullmatch(charge.campaign))
        fits = fits and charge.unit in ("patient", "site") and type(charge.steps) is int and type(charge.round) is int
        fits = fits and charge.multiplier > 0 and 0 < charge.rate <= 1 and charge.steps >= 0 and 0 < charge.delta < 1
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        fits = False
    if not fits:
        raise DataError(f"line {number} of {LEDGER} is damaged; {_WAY_OUT}")
    return charge


def _digest_of(text: bytes) -> str:
    return hashlib.sha256(text).hexdigest() if text else _START


def _head(home: Path) -> tuple[int, str] | None:
    try:
        values: Mapping[str, Any] = json.loads((home / HEAD).read_bytes())
        return int(values["number"]), str(values["digest"])
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError):
        raise DataError(f"{HEAD} beside {LEDGER} is damaged; {_WAY_OUT}") from None
