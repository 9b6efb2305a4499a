"""`python -m simulation.bench NAME [--json]`: a bench's name in, its cases out, as a table or as JSON."""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from collections.abc import Sequence

from shared.errors import ConfigError, WardroundError
from simulation.bench import Case

BENCHES = {
    "gradprom-step-naive": "simulation.bench.gradprom_step_naive",
    "gradprom-step-joint": "simulation.bench.gradprom_step_joint",
    "multimix-step": "simulation.bench.multimix_step",
    "selfreg": "simulation.bench.selfreg",
    "controlnet-step": "simulation.bench.controlnet_step",
    "sampling": "simulation.bench.sampling",
    "loading": "simulation.bench.loading",
    "simulate": "simulation.bench.simulate",
    "aggregate": "simulation.bench.aggregate",
    "ingest": "simulation.bench.ingest",
    "enhance": "simulation.bench.enhance",
    "secagg": "simulation.bench.secagg",
}
COLUMNS = ("bench", "case", "ours", "rival", "ratio", "target", "holds")


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 0 when measured (whether or not the target holds), 2 on wrong use."""
    parser = argparse.ArgumentParser(prog="python -m simulation.bench", description=__doc__)
    parser.add_argument("name", nargs="?", help=", ".join(BENCHES))
    parser.add_argument("--all", action="store_true", help="every bench, one after another")
    parser.add_argument("--json", action="store_true", help="print the JSON list of cases")
    parsed = parser.parse_args(arguments)
    try:
        cases = [case for name in _chosen(parsed.name, everything=parsed.all) for case in _measured(name)]
    except WardroundError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    if parsed.json:
        print(json.dumps(cases, indent=1))
    else:
        _print_table(cases)
    return 0


def _chosen(name: str | None, *, everything: bool) -> list[str]:
    if everything:
        return list(BENCHES)
    if name is None or name not in BENCHES:
        raise ConfigError(f"no bench {name!r}; known: {', '.join(BENCHES)}, or --all")
    return [name]


def _measured(name: str) -> list[Case]:
    cases: list[Case] = importlib.import_module(BENCHES[name]).run()
    return cases


def _print_table(cases: Sequence[Case]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title="ours over rival; smaller is better")
    for column in (*COLUMNS, "further"):
        text = column in ("bench", "case", "further")
        table.add_column(column, justify="left" if text else "right", no_wrap=column == "bench")
    for case in cases:
        further = "\n".join(f"{key} {_shown(value)}" for key, value in case.items() if key not in COLUMNS)
        table.add_row(*(_shown(case.get(key)) for key in COLUMNS), further)
    Console().print(table)


def _shown(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "[bold red]no[/]"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    sys.exit(main())
