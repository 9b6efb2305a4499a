"""The manifest of a release in, its model card out: one self-contained HTML page without script, for who decides
whether to use it.

Everything on it stands in the manifest, and every word of that is escaped; the headings follow Mitchell et al. 2019
(https://arxiv.org/abs/1810.03993).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from server.sheet import data_table
from server.wording import METRICS, shown
from shared.acceptance import ALL, BINS, Gate, counted_in
from shared.gate_table import FAILS, HOLDS, UNDECIDED, columns, gate_rows
from shared.gate_table import Row as GateRow
from shared.release import Manifest

_IN_MATRIX = ("psnr_db", "ssim", "dice", "accuracy")
_SETTINGS = {"clean": "clean images", "degraded": "degraded images", "federated": "enhanced images"}
_PILLS = {HOLDS: ("holds", "good"), FAILS: ("does not hold", "bad"), UNDECIDED: ("decides nothing", "")}
_SIGNS = {">=": "≥", "<=": "≤"}
LIMITS = (
    "Research only: not a medical device, not for diagnosis or treatment. Nobody has tested this model on patients "
    "whose care depended on it.",
    "The figures are of the sites named here, of test patients whom the model did not train on. Another scanner or "
    "protocol may do worse: a site should validate the release on its own patients before it looks at a single image.",
    "An enhancer can remove or invent small structures. The gates count lesions that are found and labelled; they say "
    "nothing of findings that nobody labelled, or that are smaller than a lesion's few pixels.",
    "A site whose figure decided nothing had too few test patients for it: the release was not tested there.",
    "The signature says who released these weights and that nothing was changed. It does not say that they are right.",
)


def render_card(manifest: Manifest) -> str:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("card.html").render(**card(manifest))


def card(manifest: Manifest) -> dict[str, Any]:
    """What the template shows, section by section."""
    gates = [Gate(**gate) for gate in manifest.gates]
    sites = columns(gates)
    keys = [key for key in _IN_MATRIX if any(row.get(key) is not None for row in manifest.rows)]
    return {
        "manifest": manifest,
        "data": data_table(manifest.sites, {}),
        "gate_sites": ["all sites" if site == ALL else site for site in sites],
        "gates": [_gate_line(row, sites) for row in gate_rows(gates)],
        "keys": [METRICS[key] for key in keys],
        "matrix": [_matrix_line(row, keys) for row in manifest.rows if row.get("setting") in _SETTINGS],
        "bins": _bins(manifest.calibration),
        "descriptors": manifest.descriptors or {},
        "files": manifest.files,
        "config": manifest.gates_config,
        "limits": LIMITS,
    }


def _gate_line(row: GateRow, sites: Sequence[str]) -> tuple[str, str, list[tuple[str, str, str, str] | None]]:
    """Words, limit, and per site: figure, of how many, verdict and its colour; None where the site has no such gate."""
    sign, _, limit = row.limit.partition(" ")
    cells = [row.cells.get(site) for site in sites]
    counted = counted_in(row.gate.partition(" ")[0])
    shown = [None if each is None else (each.figure, f"{each.n:,} {counted}", *_PILLS[each.mark]) for each in cells]
    return row.words, f"{_SIGNS.get(sign, sign)} {limit}".strip(), shown


def _matrix_line(row: Mapping[str, Any], keys: Sequence[str]) -> tuple[str, str, tuple[str, ...]]:
    cells = tuple("–" if row.get(key) is None else shown(key, float(row[key])) for key in keys)
    site = row.get("test_site", "")
    return "all sites" if site == ALL else str(site), _SETTINGS[str(row["setting"])], cells


def _bins(calibration: Mapping[str, Any] | None) -> list[tuple[str, int, str, str]]:
    if calibration is None:
        return []
    lines = []
    for place, each in enumerate(calibration["bins"]):
        if each["count"]:
            span = f"{place / BINS:.1f} to {(place + 1) / BINS:.1f}"
            lines.append((span, each["count"], f"{each['confidence']:.3f}", f"{each['correct']:.3f}"))
    return lines
