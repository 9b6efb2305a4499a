"""The manifest of a release in, its model card out: one self-contained HTML page without script, for who decides
whether to use it.

Everything on it stands in the manifest, and every word of that is escaped; the headings follow Mitchell et al. 2019
(https://arxiv.org/abs/1810.03993).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from server.acceptance import ALL, BINS, counted_in
from server.sheet import data_table
from server.wording import METRICS, shown
from shared.release import Manifest

_IN_MATRIX = ("psnr_db", "ssim", "dice", "accuracy")
_SETTINGS = {"clean": "clean images", "degraded": "degraded images", "federated": "enhanced images"}
_GATES: Mapping[str, tuple[str, str]] = {
    "gain": ("gain in PSNR, dB", "above"),
    "harm_dice": ("no harm: Dice lost on clean images", "at most"),
    "harm_accuracy": ("no harm: accuracy lost on clean images", "at most"),
    "harm_psnr_db": ("no harm: PSNR of enhanced clean images, dB", "at least"),
    "erased": ("no invention: share of found lesions erased", "at most"),
    "invented_per_image": ("no invention: lesions invented per image", "at most"),
    "sensitivity_loss": ("sensitivity lost", "at most"),
    "sensitivity": ("sensitivity, and before enhancement", "before:"),
    "false_positives": ("false positives per image, and before enhancement", "before:"),
    "calibration_error": ("calibration error of the diagnosis", "at most"),
}
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


@dataclass(frozen=True, slots=True)
class GateLine:
    words: str
    value: str
    limit: str
    n: str
    verdict: str
    mark: str
    """good, bad or empty."""


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
    sites = [site for site in manifest.sites if any(gate["site"] == site for gate in manifest.gates)]
    lines = {site: [gate_line(gate) for gate in manifest.gates if gate["site"] == site] for site in (ALL, *sites)}
    keys = [key for key in _IN_MATRIX if any(row.get(key) is not None for row in manifest.rows)]
    return {
        "manifest": manifest,
        "data": data_table(manifest.sites, {}),
        "undecided": any(not line.mark for each in lines.values() for line in each),
        "gates": {("all sites together" if site == ALL else site): each for site, each in lines.items() if each},
        "keys": [METRICS[key] for key in keys],
        "matrix": [_matrix_line(row, keys) for row in manifest.rows if row.get("setting") in _SETTINGS],
        "bins": _bins(manifest.calibration),
        "descriptors": manifest.descriptors or {},
        "files": manifest.files,
        "config": manifest.gates_config,
        "limits": LIMITS,
    }


def gate_line(gate: Mapping[str, Any]) -> GateLine:
    name, _, mask = gate["gate"].partition(".")
    words, side = _GATES.get(name, (name, "limit"))
    value, n = gate["value"], gate["n"]
    if gate["decides"]:
        verdict, mark = ("holds", "good") if gate["holds"] else ("does not hold", "bad")
    elif value is None:
        verdict, mark = "nothing to measure: decides nothing", ""
    elif side == "before:":
        verdict, mark = "shown, decides nothing", ""
    else:
        verdict, mark = f"too few ({n} {counted_in(name)} or few patients): decides nothing", ""
    return GateLine(
        f"{words} ({mask})" if mask else words,
        "–" if value is None else f"{value:.3f}",
        f"{side} {gate['limit']:.3f}",
        f"{n:,} {counted_in(name)}",
        verdict,
        mark,
    )


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
