"""The table of acceptance gates: what a person reads of it is what the gates are, on a terminal of 80 columns."""

from __future__ import annotations

import io
from collections.abc import Sequence

from rich.console import Console

from shared.acceptance import ALL, Gate
from shared.gate_table import FAILS, HOLDS, LEGEND, UNDECIDED, columns, gate_rows, terminal_tables

WIDTH = 80


def gate(name: str, site: str, value: float | None, *, limit: float = 0.05, decides: bool = True) -> Gate:
    return Gate(name, site, value, limit, value is not None and value <= limit, decides and value is not None, 12)


GATES = [
    gate("erased", "hill", 0.25),
    gate("harm_dice.grey matter", "hill", 0.01, decides=False),
    gate("erased", ALL, 0.02),
    gate("invented_per_image", ALL, None),
    gate("sensitivity", ALL, 0.7, limit=0.8, decides=False),
]


def printed(gates: Sequence[Gate]) -> list[str]:
    out = io.StringIO()
    console = Console(file=out, width=WIDTH)
    for table in terminal_tables(gates, WIDTH):
        console.print(table)
    return out.getvalue().splitlines()


def test_a_gate_is_one_row_and_all_sites_come_first() -> None:
    rows = {row.gate: row for row in gate_rows(GATES)}
    assert list(rows) == ["erased", "invented_per_image", "sensitivity before", "sensitivity after",
                          "harm_dice.grey matter"]  # fmt: skip
    assert columns(GATES) == [ALL, "hill"]
    assert {site: cell.mark for site, cell in rows["erased"].cells.items()} == {"hill": FAILS, ALL: HOLDS}
    assert rows["erased"].limit == "<= 0.05"
    assert rows["harm_dice.grey matter"].cells["hill"].mark == UNDECIDED
    assert rows["harm_dice.grey matter"].words == "no harm: Dice lost on clean images (grey matter)"
    assert rows["invented_per_image"].cells[ALL].figure == "-"
    assert [rows[f"sensitivity {state}"].cells[ALL].value for state in ("before", "after")] == [0.8, 0.7]


def test_no_cell_is_broken_however_many_sites_there_are() -> None:
    sites = [f"hospital-{number:02d}" for number in range(9)]
    gates = [gate(name, site, 0.01) for site in (ALL, *sites) for name in ("erased", "harm_dice.white matter lesion")]
    lines = printed(gates)
    assert max(map(len, [*lines, LEGEND])) <= WIDTH
    assert sum(line.count("ok  0.010") for line in lines) == len(gates)
    assert [word for line in lines if line.startswith("gate") for word in line.split()[2:]] == [ALL, *sites]


def test_markup_in_a_name_is_text() -> None:
    assert any("harm_dice.[red]x" in line for line in printed([gate("harm_dice.[red]x", ALL, 0.01)]))
