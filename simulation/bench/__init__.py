"""Benches: one thing measured against its rival in the same run.

`python -m simulation.bench NAME [--json]` prints a list of cases, each with `bench, case, ours, rival, ratio, target,
holds` and its further figures; `ratio` is ours over the rival's time, smaller is better.
"""

from __future__ import annotations

from typing import Any, TypeAlias

Case: TypeAlias = dict[str, Any]
"""{"bench", "case", "ours", "rival", "ratio", "target", "holds"} and the bench's own figures."""
