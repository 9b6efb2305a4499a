"""How a run ended, as a file in its folder: written by the ServerApp, read by the command that waits for it."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from shared.checkpoint import write_atomically
from shared.errors import ConfigError, DataError, PeerError, RefusedError, WardroundError

_ERRORS = {error.exit_code: error for error in (ConfigError, RefusedError, PeerError, DataError)}


@dataclass(frozen=True, slots=True)
class Outcome:
    """Completed, or the exit code and the one-line reason."""

    completed: bool
    exit_code: int
    reason: str

    def raise_if_failed(self) -> None:
        if not self.completed:
            raise _ERRORS.get(self.exit_code, WardroundError)(self.reason)


def write_outcome(run_dir: Path, error: WardroundError | None) -> None:
    """Leave word in `run_dir/outcome.json`, whole or not at all."""
    failed = Outcome(False, error.exit_code, str(error)) if error else None
    outcome = failed or Outcome(completed=True, exit_code=0, reason="")
    write_atomically(run_dir / "outcome.json", (json.dumps(asdict(outcome)) + "\n").encode())


def read_outcome(run_dir: Path) -> Outcome | None:
    """None while the run is under way."""
    try:
        return Outcome(**json.loads((run_dir / "outcome.json").read_text()))
    except (OSError, ValueError, TypeError):
        return None


def remove_outcome(run_dir: Path) -> None:
    (run_dir / "outcome.json").unlink(missing_ok=True)
