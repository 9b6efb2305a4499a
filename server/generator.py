"""The round records of a generator's phases in, "Generator, phase by phase" out: what each phase cost and reached.

A record of a phase (server/records.py) carries its name under `phase`. Evaluations are sums and counts per site, so
that a figure over all sites is the exact mean over their test images; that of round r judges the weights which round
r - 1 made, and the closing one, which stands last, the weights that the phase ends with.

A campaign may have nothing but these phases: its rows, tiles and sentences are made here as well.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from server import figures
from server.records import RoundRecord, is_closing
from server.study.wording import SHOWN
from server.wording import bytes_shown, duration_shown

TRAINS: Mapping[str, str] = {
    "edges": "edge detector",
    "autoencoder": "autoencoder",
    "denoiser": "denoiser and prompts",
    "controlnet": "ControlNet",
}
METRICS: Mapping[str, tuple[str, str, int]] = {
    "edges": ("edges.loss", "edge detector's loss", 4),
    "autoencoder": ("autoencoder.psnr_db", "PSNR after encoding and decoding, dB", 2),
    "denoiser": ("denoiser.loss", "denoiser's loss, without hint", 4),
    "controlnet": ("controlnet.loss", "denoiser's loss, with hint", 4),
}
"""Phase -> key of its evaluation, how it is called, decimals."""
IN_ROWS: Mapping[str, str] = {
    "autoencoder": "autoencoder_psnr_db",
    "denoiser": "denoiser_loss",
    "controlnet": "controlnet_loss",
}
"""Phase -> key of its figure in report.json."""
MISSING = "–"


@dataclass(frozen=True, slots=True)
class PhaseLine:
    """One line of the table, as it is shown."""

    phase: str
    trains: str
    rounds: int
    seconds: str
    up: str
    down: str
    figure: str
    over_all: str
    by_site: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class GeneratorSection:
    lines: tuple[PhaseLine, ...]
    charts: tuple[figures.Chart, ...]
    rounds: int
    seconds: str
    up: str
    down: str
    """Of all phases together, their closing evaluations counted."""


def by_phase(records: Sequence[RoundRecord]) -> dict[str, list[RoundRecord]]:
    """Records of each phase, in the order in which the phases ran."""
    found: dict[str, list[RoundRecord]] = {}
    for record in records:
        found.setdefault(str(record.get("phase", "")), []).append(record)
    return found


def generator_section(records: Sequence[RoundRecord], sites: Sequence[str], *, label: str) -> GeneratorSection | None:
    """None for a run without a generator's phases; `label` tells its charts from those of other runs on the page."""
    if not records:
        return None
    phases = by_phase(records)
    return GeneratorSection(
        lines=tuple(_line(phase, found, sites) for phase, found in phases.items()),
        charts=tuple(
            chart for phase, found in phases.items() if (chart := _chart(phase, found, sites, label)) is not None
        ),
        rounds=trained_rounds(records),
        seconds=duration_shown(total(records, "seconds")),
        up=bytes_shown(total(records, "bytes_up")),
        down=bytes_shown(total(records, "bytes_down")),
    )


def total(records: Sequence[RoundRecord], key: str) -> float:
    """The sum of a number that every round has (seconds, bytes_up, bytes_down); 0 where it is missing."""
    return sum(float(record.get(key, 0.0)) for record in records)


def trained_rounds(records: Sequence[RoundRecord]) -> int:
    """Closing evaluations not counted."""
    return len(_trained(records))


def _trained(records: Sequence[RoundRecord]) -> list[RoundRecord]:
    return [record for record in records if not is_closing(record)]


def _line(phase: str, records: Sequence[RoundRecord], sites: Sequence[str]) -> PhaseLine:
    trained = _trained(records)
    key, figure, decimals = METRICS.get(phase, ("", MISSING, 3))
    judged = _last_evaluation(records)
    return PhaseLine(
        phase=phase,
        trains=TRAINS.get(phase, phase),
        rounds=len(trained),
        seconds=duration_shown(total(records, "seconds")),
        up=_a_round(trained, "bytes_up"),
        down=_a_round(trained, "bytes_down"),
        figure=figure,
        over_all=_shown(pooled(judged.values(), key)[0], decimals),
        by_site=tuple(_shown(pooled([judged.get(site, {})], key)[0], decimals) for site in sites),
    )


def _a_round(trained: Sequence[RoundRecord], key: str) -> str:
    return bytes_shown(total(trained, key) / len(trained)) if trained else MISSING


def _shown(value: float, decimals: int) -> str:
    return f"{value:.{decimals}f}" if math.isfinite(value) else MISSING


def _last_evaluation(records: Sequence[RoundRecord]) -> Mapping[str, Mapping[str, Any]]:
    judged = [record["evaluation"] for record in records if record.get("evaluation")]
    return judged[-1] if judged else {}


def pooled(sites: Any, key: str) -> tuple[float, int]:
    """Mean over the images of all `sites` (evaluations of single sites), and their number; NaN and 0 without any."""
    count, summed = 0, 0.0
    for metrics in sites:
        found = metrics.get(key)
        if isinstance(found, Mapping) and found.get("count") and found.get("total") is not None:
            count, summed = count + int(found["count"]), summed + float(found["total"])
    return (summed / count, count) if count > 0 and math.isfinite(summed) else (math.nan, 0)


def _chart(phase: str, records: Sequence[RoundRecord], sites: Sequence[str], label: str) -> figures.Chart | None:
    key, title, _ = METRICS.get(phase, ("", "", 0))
    judged = [record for record in records if record.get("evaluation")]
    lines = []
    for index, site in enumerate(sites):
        values = [pooled([record["evaluation"].get(site, {})], key)[0] for record in judged]
        if any(map(math.isfinite, values)):
            lines.append(figures.Line(figures.site_colour(index), figures.site_marker(index), values))
    if not lines or len(judged) < 2:
        return None
    rounds = [int(record["round"]) - 1 for record in judged]
    title = f"{phase}: {title}"
    drawn = figures.round_chart(rounds, lines, figures.Axis(), label=f"{title}, {label}", blank="no figure")
    return figures.Chart(title, drawn)


# ------------------------------------------------------------------------------------- a campaign of a generator alone


def generator_rows(records: Sequence[RoundRecord], labels: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A row for each site's test images and one for all, pooled from the last evaluation of each phase."""
    judged = {phase: _last_evaluation(found) for phase, found in by_phase(records).items() if phase in IN_ROWS}
    sites = sorted({site for evaluation in judged.values() for site in evaluation})
    rows: list[dict[str, Any]] = []
    for test_site, chosen in (*((site, [site]) for site in sites), ("all", sites)):
        figures_of: dict[str, float] = {}
        most = 0
        for phase, evaluation in judged.items():
            found = [evaluation[site] for site in chosen if site in evaluation]
            value, count = pooled(found, METRICS[phase][0])
            if count:
                figures_of[IN_ROWS[phase]] = value
                most = max(most, count)
        if figures_of:
            rows.append({**labels, "setting": "federated", "test_site": test_site, "n": most, **figures_of})
    return rows


def generator_tiles(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The figures over all sites, large."""
    row = next((row for row in rows if row["test_site"] == "all"), {})
    return [
        {
            "name": SHOWN[key].heading,
            "value": f"{row[key]:.{SHOWN[key].decimals}f}",
            "unit": SHOWN[key].unit,
            "gain": "",
            "mark": "",
            "others": [],
        }
        for key in IN_ROWS.values()
        if key in row
    ]


def generator_words(records: Sequence[RoundRecord], rows: Sequence[Mapping[str, Any]]) -> str:
    """What was trained, and what came out, without an adjective."""
    phases = by_phase(records)
    parts = ", ".join(TRAINS.get(phase, phase) for phase in phases)
    words = [f"In {trained_rounds(records):,} rounds: {parts}."]
    row = next((row for row in rows if row["test_site"] == "all"), {})
    if "autoencoder_psnr_db" in row:
        words.append(
            f"{row['n']:,} test images of patients that no training had seen come back from the autoencoder with "
            f"{row['autoencoder_psnr_db']:.2f} dB."
        )
    if "denoiser_loss" in row and "controlnet_loss" in row:
        change = 1 - row["controlnet_loss"] / row["denoiser_loss"] if row["denoiser_loss"] > 0 else 0.0
        lower = "lower" if change >= 0 else "higher"
        words.append(f"With the hint the denoiser's loss is {abs(100 * change):.1f} % {lower} than without.")
    return " ".join(words)
