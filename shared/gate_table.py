"""Acceptance gates in, their table out: a row for every gate, a column for all sites together and one for each.

For the coordinator's terminal and the model card (server/), and for a site that validates (client/cli_releases.py).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from shared.acceptance import ALL, Gate

if TYPE_CHECKING:
    from rich.table import Table

HOLDS, FAILS, UNDECIDED = "ok", "NO", "·"
NOTHING = "-"
LEGEND = f"{HOLDS} holds; {FAILS} does not; {UNDECIDED} decides nothing (shown, or too few); {NOTHING} not measured"
_GAP = 2
_WORDS: Mapping[str, tuple[str, str]] = {
    "gain": ("gain in PSNR, dB", ">"),
    "harm_dice": ("no harm: Dice lost on clean images", "<="),
    "harm_accuracy": ("no harm: accuracy lost on clean images", "<="),
    "harm_psnr_db": ("no harm: PSNR of enhanced clean images, dB", ">="),
    "erased": ("no invention: share of found lesions erased", "<="),
    "invented_per_image": ("no invention: lesions invented per image", "<="),
    "sensitivity_loss": ("sensitivity lost", "<="),
    "sensitivity": ("sensitivity", ""),
    "false_positives": ("false positives per image", ""),
    "calibration_error": ("calibration error of the diagnosis", "<="),
}


@dataclass(frozen=True, slots=True)
class Cell:
    """One gate at one site."""

    value: float | None
    """None: there was nothing to measure."""
    mark: str
    """HOLDS, FAILS or UNDECIDED."""
    n: int

    @property
    def figure(self) -> str:
        return NOTHING if self.value is None else f"{self.value:.3f}"


@dataclass(frozen=True, slots=True)
class Row:
    """One gate at every site that has it."""

    gate: str
    words: str
    limit: str
    """As `<= 0.05`; empty for what is shown beside its figure before enhancement."""
    cells: Mapping[str, Cell]


def gate_rows(gates: Sequence[Gate]) -> list[Row]:
    """In the order of the gates over all sites; what never decides is two rows, before enhancement and after."""
    names = dict.fromkeys(gate.gate for gate in sorted(gates, key=lambda gate: gate.site != ALL))
    return [row for name in names for row in _rows(name, {gate.site: gate for gate in gates if gate.gate == name})]


def columns(gates: Sequence[Gate]) -> list[str]:
    """All sites together first, then each."""
    return sorted({gate.site for gate in gates}, key=lambda site: (site != ALL, site))


def terminal_tables(gates: Sequence[Gate], width: int) -> Iterator[Table]:
    """As many tables as it takes for no cell to be broken at `width` characters: of some sites each."""
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    rows, sites = gate_rows(gates), columns(gates)
    names = [max(map(len, column)) for column in (["gate", *(row.gate for row in rows)], [row.limit for row in rows])]
    widest = max([*map(len, sites), *(len(_text(cell)) for row in rows for cell in row.cells.values())])
    at_once = max(1, (width - sum(names) - 2 * _GAP) // (widest + _GAP))
    for begin in range(0, len(sites), at_once):
        shown = sites[begin : begin + at_once]
        table = Table("gate", "limit", *map(escape, shown), title="" if begin else "Acceptance gates")
        table.box, table.show_edge, table.padding = box.SIMPLE_HEAD, False, (0, _GAP - 1, 0, 0)
        for row in rows:
            cells = (_text(row.cells[site]) if site in row.cells else "" for site in shown)
            table.add_row(escape(row.gate), row.limit, *cells)
        yield table


def _rows(name: str, of_sites: Mapping[str, Gate]) -> list[Row]:
    kind, _, mask = name.partition(".")
    words, sign = _WORDS.get(kind, (kind, "limit"))
    words = f"{words} ({mask})" if mask else words
    after = {site: Cell(gate.value, _mark(gate), gate.n) for site, gate in of_sites.items()}
    if sign:
        limit = next(iter(of_sites.values())).limit  # one for all: the config's
        return [Row(name, words, f"{sign} {limit:g}", after)]
    before = {site: Cell(gate.limit, UNDECIDED, gate.n) for site, gate in of_sites.items()}
    return [Row(f"{name} {state}", f"{words}, {state} enhancement", "", cells)
            for state, cells in (("before", before), ("after", after))]  # fmt: skip


def _mark(gate: Gate) -> str:
    if not gate.decides:
        return UNDECIDED
    return HOLDS if gate.holds else FAILS


def _text(cell: Cell) -> str:
    return f"{cell.mark:>2} {cell.figure:>6}"
