"""The rules of this site itself, which no campaign can change: `rules.json` in the site's folder, or the defaults.

In: the site's folder. Out: a frozen value; unknown or mistyped keys are refused, never ignored. Where nothing is
written the defaults hold, so that no site is without rules.
"""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from shared.checkpoint import write_atomically
from shared.config import build
from shared.errors import ConfigError, DataError, RefusedError

RULES = "rules.json"
PAUSED = "paused"
LEFT = "left"


@dataclass(frozen=True, kw_only=True, slots=True)
class SiteRules:
    """What this site asks of every campaign, whatever the campaign says."""

    minimum_cohort: int = 3
    """Fewest sites whose sum this site helps to open."""
    minimum_patients: int = 3
    """Fewest patients in the store with which this site takes part, and fewest values behind a figure that it tells."""
    allow_visible_updates: bool = False
    """Whether a campaign may be approved in which the coordinator sees this site's own update."""
    epsilon_total: float | None = None
    """Most epsilon that all campaigns together may spend here (shared/privacy); null: as each campaign was approved."""
    quantiles: bool = True
    """Whether quantiles of metrics may leave at all."""
    max_rounds: int | None = None
    """Most rounds of one campaign, all phases together; null: as the campaign was approved."""

    def __post_init__(self) -> None:
        for name, least in (("minimum_cohort", 2), ("minimum_patients", 1), ("max_rounds", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ConfigError(f"{RULES}: {name} must be {least} or more, got {value}")
        if self.epsilon_total is not None and self.epsilon_total <= 0:
            raise ConfigError(f"{RULES}: epsilon_total must be above 0 or null, got {self.epsilon_total:g}")


def read_rules(folder: Path) -> SiteRules:
    """The rules of the site in `folder`; the defaults where it has none. Raises DataError for a damaged file, and
    ConfigError for a key that is none: a rule that is misspelt must not be taken for one that holds."""
    try:
        values = json.loads((folder / RULES).read_text())
    except FileNotFoundError:
        return SiteRules()
    except (OSError, ValueError, RecursionError):
        raise DataError(f"{RULES} is not readable JSON; write it with: wardround-site rules DIR KEY=VALUE") from None
    return build(SiteRules, values, RULES)


def write_rules(folder: Path, rules: SiteRules) -> None:
    write_atomically(folder / RULES, (json.dumps(asdict(rules), indent=1) + "\n").encode())


def changed(rules: SiteRules, overrides: Sequence[str]) -> SiteRules:
    """The rules after KEY=VALUE words, values as in JSON; raises ConfigError for what is no rule."""
    values = asdict(rules)
    for word in overrides:
        key, equals, text = word.partition("=")
        if not equals or key not in values:
            raise ConfigError(f"expected KEY=VALUE with a rule as key ({', '.join(values)}), got {word!r}")
        try:
            values[key] = json.loads(text)
        except ValueError:
            raise ConfigError(f"{key} takes a number, true, false or null; got {text!r}") from None
    return replace(rules, **asdict(build(SiteRules, values, RULES)))


def check_rounds(rounds: int, rules: SiteRules) -> None:
    """RefusedError for a campaign of more rounds, all phases together, than the rules allow."""
    if rules.max_rounds is not None and rounds > rules.max_rounds:
        raise RefusedError(
            f"the campaign has {rounds} rounds, and this site's rules allow {rules.max_rounds} (max_rounds)"
        )


# ------------------------------------------------------------------------------------------- standing


def pause(folder: Path, now: dt.datetime) -> None:
    """From the next message on nothing is answered, until `resume`."""
    _mark(folder / PAUSED, now)


def resume(folder: Path) -> bool:
    """Whether there was anything to resume from; raises ConfigError for a site that has left."""
    if (folder / LEFT).exists():
        raise ConfigError(
            "this site has left the federation, which cannot be undone; a new site is made in a new folder"
        )
    paused = (folder / PAUSED).exists()
    (folder / PAUSED).unlink(missing_ok=True)
    return paused


def mark_left(folder: Path, now: dt.datetime) -> None:
    _mark(folder / LEFT, now)


def has_left(folder: Path) -> bool:
    return (folder / LEFT).exists()


def is_paused(folder: Path) -> bool:
    """Paused by its operator, or gone for good."""
    return (folder / PAUSED).exists() or has_left(folder)


def why_silent(folder: Path, site: str) -> str:
    """Why a site that `is_paused` answers nothing, in words that may cross its border."""
    if has_left(folder):
        return f"{site} has left the federation{_since(folder / LEFT)}; take it off: wardround-coordinator revoke"
    return f"{site} was paused by its operator{_since(folder / PAUSED)}; it goes on with: wardround-site resume"


def _mark(path: Path, now: dt.datetime) -> None:
    if not path.exists():
        write_atomically(path, (now.isoformat(timespec="seconds") + "\n").encode())


def _since(path: Path) -> str:
    try:
        return f" on {dt.datetime.fromisoformat(path.read_text().strip()):%Y-%m-%d}"
    except (OSError, ValueError):
        return ""
