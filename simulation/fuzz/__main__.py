"""`python -m simulation.fuzz TARGET`: damaged and hostile inputs by the thousand; what became of them, out.

    dicom     files through client/ingest and client/enhance
    wire      messages through shared/wire and the coordinator's sum
    release   release files through shared/release.py

Input number n of a seed is always the same: `--only N` runs one again. The readers run in a process of their own, which
is watched: one that needs longer than LIMIT_S, dies, or takes more memory than MEMORY_BYTES for one input is a finding
as much as an exception that is not a reason, a canary in anything that was said or stored, or a file left behind.
Exit code 0 without a finding, 1 with one, 2 on wrong use.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from simulation.fuzz.watch import TARGETS, Report, one, watched


@dataclass(slots=True)
class Summary:
    """What became of all inputs of a run."""

    target: str
    seed: int
    inputs: int = 0
    seconds: float = 0.0
    outcomes: Counter[str] = field(default_factory=Counter)
    findings: list[dict[str, Any]] = field(default_factory=list)
    """Number of the input, kind, place, what was done to it; the first of each kind and place."""
    failed: Counter[str] = field(default_factory=Counter)
    """Kind and place of a finding -> inputs."""
    decoders_lost: Counter[str] = field(default_factory=Counter)
    """How decoding children ended that an input killed -> inputs: survived, and no finding."""
    slowest_s: float = 0.0
    slowest: int = -1
    peak_bytes: int = 0
    """Of the readers' process, over all inputs."""
    peak: int = -1

    def add(self, number: int, report: Report) -> None:
        self.inputs += 1
        if report.finding:
            kind = " ".join(report.finding)
            if not self.failed[kind]:
                self.findings.append({"input": number, "kind": report.finding, "made": report.made})
                print(f"finding: input {number}: {kind}: {report.made}", file=sys.stderr, flush=True)
            self.failed[kind] += 1
        else:
            self.outcomes[report.outcome] += 1
        for how in report.decoders_lost:
            self.decoders_lost[how] += 1
        if report.seconds > self.slowest_s:
            self.slowest_s, self.slowest = report.seconds, number
        if report.peak_bytes > self.peak_bytes:
            self.peak_bytes, self.peak = report.peak_bytes, number


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m simulation.fuzz", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("target", choices=TARGETS)
    parser.add_argument("--inputs", type=int, default=1000)
    parser.add_argument("--seconds", type=float, default=float("inf"), help="stop earlier, after this time")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="number of the first input")
    parser.add_argument("--only", type=int, help="run this one input here, without a watched process")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--out", type=Path, help="keep the counts so far in this file as JSON, every thousand inputs")
    parsed = parser.parse_args(arguments)
    if parsed.only is not None:
        report = one(parsed.target, parsed.seed, parsed.only)
        print(json.dumps(asdict(report), indent=1))
        return int(bool(report.finding))
    summary, started = Summary(parsed.target, parsed.seed), time.monotonic()
    for number, report in watched(parsed.target, parsed.seed, range(parsed.first, parsed.first + parsed.inputs)):
        summary.add(number, report)
        summary.seconds = time.monotonic() - started
        if summary.inputs % 1000 == 0:
            print(_line(summary), file=sys.stderr, flush=True)
            if parsed.out is not None:
                parsed.out.write_text(_json(summary))
        if summary.seconds > parsed.seconds:
            break
    print(_json(summary) if parsed.json else _words(summary))
    return int(bool(summary.findings))


def _line(summary: Summary) -> str:
    return (
        f"{summary.inputs} inputs, {summary.seconds:.0f} s, {sum(summary.failed.values())} with a finding, "
        f"slowest {summary.slowest_s:.2f} s (input {summary.slowest}), "
        f"peak {summary.peak_bytes >> 20} MiB (input {summary.peak}), "
        f"{sum(summary.decoders_lost.values())} decoders lost"
    )


def _json(summary: Summary) -> str:
    return json.dumps({each.name: getattr(summary, each.name) for each in fields(summary)}, indent=1)


def _words(summary: Summary) -> str:
    rows = [f"{count:8d}  {outcome}" for outcome, count in summary.outcomes.most_common()]
    rows += [f"{count:8d}  FINDING {kind}" for kind, count in summary.failed.most_common()]
    rows += [f"{count:8d}  decoder lost: {how}" for how, count in summary.decoders_lost.most_common()]
    return "\n".join([*rows, _line(summary)])


if __name__ == "__main__":
    sys.exit(main())
