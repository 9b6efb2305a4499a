"""A run's findings in, one self-contained HTML page out: for a radiologist, a coordinator and a researcher.

No script, no link, no font from elsewhere: the page opens from a memory stick in a hospital. All text is escaped by
Jinja2; only the SVG that server/figures.py draws goes in as markup.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from server import charts, figures, private
from server.anomalies import anomalies_of
from server.explanations import explained
from server.findings import Findings
from server.gate import gate_charts, promotion_charts
from server.generation.page import context as generation_page
from server.generator import generator_section, generator_tiles, generator_words, total, trained_rounds
from server.labels import label_section
from server.looks import diagnoses_shown, features_shown
from server.personal.page import context as personal_page
from server.recognition.page import context as recognition_page
from server.sheet import data_table
from server.study.page import context as study_page
from server.study.verdicts import certain
from server.summary import PATIENTS, at_home, elsewhere_rows, matrices, summary_rows
from server.trust.page import context as trust_page
from server.wording import HD95, METRICS, QUALITY, bytes_shown, duration_shown, shown
from shared.config import SelfRegConfig

_TILES = ("psnr_db", "dice", "accuracy", "ssim", "f1", "jaccard")
_LIMITS = ("Research use only: not a medical device, not for diagnosis or treatment.",)
_OF_ENHANCERS = (
    "PSNR, SSIM and RMSE compare with the clean image of the same slice; they do not say whether a finding survived. "
    "Look at the pictures and at Dice or accuracy beside them.",
    "An enhancer can remove or invent small structures. The worst image of each site is shown for that reason.",
)
_OF_GENERATORS = (
    "A generator's losses do not say whether its images are right, varied, or copies of a patient's: each site looks "
    "at what it draws, and its guards refuse a generator that copies."
)
_SIMULATED = (
    "Simulated on one machine: the degradation is synthetic and hospitals differ only in what was simulated. "
    "Real scanners, readers and label habits differ in more ways."
)

_STUDIES = {
    "enhancement": ("study.html", study_page),
    "recognition": ("recognition.html", recognition_page),
    "generation": ("generation.html", generation_page),
    "personalise": ("personal.html", personal_page),
    "trust": ("trust.html", trust_page),
}
"""Template and context of each kind of study."""


def render(findings: Findings) -> str:
    """The whole page as text."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["metric"] = lambda value, key: shown(key, value)
    environment.filters["svg"] = Markup
    if "study" in findings.report:
        environment.filters["certain"] = certain
        template, context = _STUDIES[findings.report["study"].get("kind", "enhancement")]
        return environment.get_template(template).render(**context(findings.report, findings.config))
    return environment.get_template("report.html").render(**page(findings))


def page(findings: Findings) -> dict[str, Any]:
    """What the template shows, section by section."""
    report = findings.report
    sites = sites_of(findings)
    summary = summary_rows(report["rows"])
    alone = generator_alone(findings)
    quality = [key for key in QUALITY if any(key in metrics for _, metrics in summary)]
    return {
        "report": report,
        "deployed": findings.deployed,
        "title": _title(report["experiment"]),
        "lead": lead(findings, sites),
        "learnt": learnt(findings),
        "verdict": verdict(report["claims"]),
        "tiles": generator_tiles(report["rows"]) if alone else _tiles(summary),
        "alone": alone,
        "metrics": METRICS,
        "quality": quality,
        "hd95": HD95,
        "counted": any(PATIENTS in metrics for _, metrics in summary),
        "summary": [(key, metrics) for key, metrics in summary if any(name in metrics for name in quality)],
        "privacy": private.sentences(findings),
        "elsewhere": elsewhere_rows(report["rows"]),
        "matrices": matrices(report["rows"], sites),
        "sites": [(site, figures.site_colour(index)) for index, site in enumerate(sites)],
        "signs": [(site, figures.site_colour(index), figures.site_sign(index)) for index, site in enumerate(sites)],
        "settings": figures.SETTING_COLOURS,
        "masks": list(zip(_masks(findings), charts.MASK_COLOURS, strict=False)),
        "parts": _parts(findings, sites),
        "data": data_table(findings.sites, findings.config.get("campaign", findings.config)),
        "costs": _costs(findings, summary),
        "config": json.dumps(findings.config, indent=2, sort_keys=True),
        "limits": [
            *_LIMITS,
            *(_OF_ENHANCERS * (enhances(findings) and not alone)),
            *([_OF_GENERATORS] * any(run.phases for run in findings.runs)),
            *([_SIMULATED] * (not findings.deployed)),
        ],
    }


def sites_of(findings: Findings) -> list[str]:
    """Sites in the order of the data sheet, else of the rows."""
    tested = dict.fromkeys(row["test_site"] for row in findings.report["rows"] if row["test_site"] != "all")
    return [
        *(site for site in findings.sites if site in tested),
        *(site for site in tested if site not in findings.sites),
    ]


def generator_alone(findings: Findings) -> bool:
    """Whether a generator's phases are all that was trained (so far)."""
    return bool(findings.runs) and all(run.phases and not run.rounds for run in findings.runs)


def enhances(findings: Findings) -> bool:
    """Whether the campaign has an enhancer, as all had before there was a choice."""
    campaign = findings.config.get("campaign", findings.config)
    enhance = campaign.get("enhance", {})
    return not isinstance(enhance, Mapping) or enhance.get("kind") != "none"


def learnt(findings: Findings) -> str:
    """How the recogniser learns where that is more than its labels, as rows call it (`multimix+selfreg`); else ""."""
    campaign = findings.config.get("campaign", findings.config)
    kind, selfreg = _kind(campaign.get("learn")), campaign.get("selfreg")
    weights = selfreg if isinstance(selfreg, Mapping) else {}
    consistency, distillation = (
        _above_nought(weights.get(f"{part}_weight")) for part in ("consistency", "distillation")
    )
    regularised = SelfRegConfig(consistency_weight=float(consistency), distillation_weight=float(distillation))
    name = f"{kind or 'supervised'}{regularised.suffix}"
    return "" if name == "supervised" else name


def _kind(group: Any) -> str:
    return str(group["kind"]) if isinstance(group, Mapping) and "kind" in group else ""


def _above_nought(value: Any) -> bool:
    return isinstance(value, int | float) and value > 0


def lead(findings: Findings, sites: Sequence[str]) -> str:
    """The result in a few sentences, from the first method's rows over all sites."""
    if generator_alone(findings):
        return _generators_lead(findings, sites)
    summary = summary_rows(findings.report["rows"])
    if not summary:
        return "No result over all sites was recorded."
    method = summary[0][0][0]
    by_setting = {setting: metrics for (name, setting), metrics in summary if name == method}
    federated, degraded = by_setting.get("federated", {}), by_setting.get("degraded", {})
    rounds = max((len([r for r in run.rounds if r.get("training")]) for run in findings.runs), default=0)
    tested = [r for r in findings.report["rows"] if r["test_site"] == "all" and at_home(r) and "domain" not in r]
    images = max((row["n"] for row in tested), default=0)
    who = _count(len(sites), "site")
    words = [
        f"{who[0].upper()}{who[1:]} trained {'an enhancer and a recogniser' if enhances(findings) else 'a recogniser'} "
        + "together"
        + (f" in {_count(rounds, 'round')}" if rounds else "")
        + "; only weight differences left a site."
    ]
    if phases := next((run.phases for run in findings.runs if run.phases), ()):
        words.append(f"Before that, they trained a generator of images in {_count(trained_rounds(phases), 'round')}.")
    if "psnr_db" in federated and "psnr_db" in degraded:
        gain = federated["psnr_db"] - degraded["psnr_db"]
        words.append(
            f"On {images:,} test images of patients that no training had seen, PSNR goes from "
            f"{degraded['psnr_db']:.2f} dB (degraded) to {federated['psnr_db']:.2f} dB (enhanced), {gain:+.2f} dB."
        )
    recognised = [key for key in ("dice", "accuracy") if key in federated]
    if recognised:
        where = "the enhanced" if enhances(findings) else f"{images:,} test"
        unseen = "" if enhances(findings) else " of patients that no training had seen"
        phrases = " and ".join(_recognised(key, federated, degraded) for key in recognised)
        words.append(f"On {where} images{unseen} the recogniser reaches {phrases}.")
    return " ".join(words)


def _generators_lead(findings: Findings, sites: Sequence[str]) -> str:
    who = _count(len(sites), "site")
    began = f"{who[0].upper()}{who[1:]} trained a generator of images together; only weight differences left a site."
    return f"{began} {generator_words(findings.runs[0].phases, findings.report['rows'])}"


def _recognised(key: str, federated: Mapping[str, float], degraded: Mapping[str, float]) -> str:
    before = f" (degraded {degraded[key]:.3f})" if key in degraded else ""
    return f"{METRICS[key].heading} {federated[key]:.3f}{before}{_of_patients(key, federated)}"


def _of_patients(key: str, metrics: Mapping[str, float]) -> str:
    """How many patients an accuracy is a share of, in words; "" for what is not one, or was not counted."""
    return (
        f" of {_count(max(0, round(metrics[PATIENTS])), 'patient')}"
        if key == "accuracy" and PATIENTS in metrics
        else ""
    )


def verdict(claims: Sequence[Mapping[str, Any]]) -> str:
    """How many claims hold, in words."""
    if not claims:
        return ""
    held = sum(bool(claim["holds"]) for claim in claims)
    if held == len(claims):
        return f"All {len(claims)} claims hold." if held > 1 else "The claim holds."
    return f"{held} of {len(claims)} claims hold."


def _title(experiment: str) -> str:
    name = experiment.replace("_", " ")
    return name.upper() if len(name) <= 3 else name[0].upper() + name[1:]


def _count(number: int, noun: str) -> str:
    words = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")
    counted = words[number] if number < len(words) else f"{number:,}"
    return f"{counted} {noun}{'' if number == 1 else 's'}"


def _tiles(summary: Sequence[tuple[tuple[str, str], Mapping[str, float]]]) -> list[dict[str, Any]]:
    """Up to three large figures: federated, with what it stands against, and its gain over degraded."""
    if not summary:
        return []
    by_setting = {setting: metrics for (method, setting), metrics in summary if method == summary[0][0][0]}
    tiles: list[dict[str, Any]] = []
    for key in _TILES:
        after, before = by_setting.get("federated", {}).get(key), by_setting.get("degraded", {}).get(key)
        if after is not None and len(tiles) < 3:
            others = [name for name in ("degraded", "local", "pooled") if key in by_setting.get(name, {})]
            tiles.append(
                {
                    "name": f"{METRICS[key].heading}{_of_patients(key, by_setting['federated'])}",
                    "value": shown(key, after),
                    "unit": METRICS[key].unit,
                    **_gain(key, after, before),
                    "others": [(name, shown(key, by_setting[name][key])) for name in others],
                }
            )
    return tiles


def _gain(key: str, after: float, before: float | None) -> dict[str, str]:
    """The gain as it is shown, and its colour by what is shown: a gain of nought is neither good nor bad."""
    if before is None:
        return {"gain": "", "mark": ""}
    decimals = METRICS[key].decimals
    gain = round(after - before, decimals)
    return {"gain": f"{gain:+.{decimals}f}" if gain else f"±{0:.{decimals}f}", "mark": _mark(gain)}


def _mark(gain: float) -> str:
    return "worse" if gain < 0 else "" if gain else "same"


def _parts(findings: Findings, sites: Sequence[str]) -> list[dict[str, Any]]:
    """Per method, from its first seed: pictures, where the recogniser looks, spread, curves, gate, labels, data."""
    parts = []
    diagnoses = _names(findings, "diagnoses")
    for number, method in enumerate(dict.fromkeys(run.method for run in findings.runs)):
        run = next(run for run in findings.runs if run.method == method)
        pictures = charts.load_pictures(run.pictures) if run.pictures and not findings.deployed else None
        parts.append(
            {
                "method": method,
                "seed": run.seed,
                "strips": charts.strips(pictures, sites, _masks(findings), diagnoses) if pictures else [],
                "explained": explained(pictures, sites, diagnoses, page_id=f"look{number}") if pictures else None,
                "behind": diagnoses_shown(pictures, diagnoses) if pictures else None,
                "features": features_shown(pictures) if pictures else None,
                "gate": gate_charts(run, sites),
                "promotion": promotion_charts(run),
                "labels": label_section(run, sites, diagnoses),
                "updates": anomalies_of(run.rounds, sites, findings.config.get("campaign", findings.config)),
                "generator": generator_section(run.phases, sites, label=run.method),
                "spreads": charts.spreads(run, pictures, sites),
                "curves": charts.curves(run, sites),
                "histogram": charts.histogram(pictures, sites) if pictures else None,
            }
        )
    return parts


def _masks(findings: Findings) -> list[str]:
    return _names(findings, "masks")


def _names(findings: Findings, kind: str) -> list[str]:
    campaign = findings.config.get("campaign", findings.config)
    return [str(name) for name in campaign.get("data", {}).get(kind, ())]


def _costs(
    findings: Findings, summary: Sequence[tuple[tuple[str, str], Mapping[str, float]]]
) -> dict[str, Sequence[tuple[str, str]]]:
    training = [
        (f"{method}, {setting}", ", ".join(_spent(metrics)))
        for (method, setting), metrics in summary
        if "samples_seen" in metrics
    ]
    phases = [record for run in findings.runs for record in run.phases]
    everything = [*phases, *(record for run in findings.runs for record in run.rounds)]
    times = [(name.replace("_", " "), duration_shown(float(value))) for name, value in findings.timings.items()]
    if 0 < len(phases) < len(everything):
        where = "generator's phases, in the federation" if findings.timings else "generator's phases"
        times.append((where, duration_shown(total(phases, "seconds"))))
    traffic = [("sites to coordinator", "bytes_up"), ("coordinator to sites", "bytes_down")]
    dropped = sum(len(record.get("dropped", {})) for record in everything)
    return {
        "times": [*times, ("whole run", duration_shown(float(findings.report["wall_s"])))],
        "traffic": [
            *((words, _sent(phases, everything, key)) for words, key in traffic),
            ("replies missed", f"{dropped}"),
        ],
        "training": training,
    }


def _sent(phases: Sequence[Mapping[str, Any]], everything: Sequence[Mapping[str, Any]], key: str) -> str:
    """Bytes of all rounds, and how many of them a generator's phases took where there are others."""
    words = bytes_shown(total(everything, key))
    if not 0 < len(phases) < len(everything):
        return words
    return f"{words}, of it {bytes_shown(total(phases, key))} for the generator"


def _spent(metrics: Mapping[str, float]) -> list[str]:
    spent = [f"{metrics['samples_seen']:,.0f} images drawn"]
    return [*spent, duration_shown(metrics["seconds"])] if "seconds" in metrics else spent
