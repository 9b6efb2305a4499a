"""What a report says of a run's differential privacy: the guarantee, noise, how far it turned updates, the price."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from server.summary import summary_rows
from server.wording import METRICS
from shared.config import PrivacyConfig, build
from shared.errors import ConfigError
from shared.privacy.words import NOT_COVERED, agreed

if TYPE_CHECKING:
    from server.findings import Findings

COSINE, MULTIPLIER = "privacy.cosine", "privacy.multiplier"
PRICED = ("psnr_db", "dice", "accuracy")
WITHOUT_NOISE = ("local", "pooled")


def of_row(campaign: Mapping[str, Any]) -> dict[str, Any]:
    """What rows of a campaign (plain values) carry of models that were trained under it: `epsilon`, `delta` and the
    unit as `privacy`; nothing without privacy."""
    privacy = _config(campaign)
    if not privacy.on:
        return {}
    return {"epsilon": privacy.epsilon, "delta": privacy.delta, "privacy": privacy.kind}


def sentences(findings: Findings) -> list[str]:
    """For the page; none without privacy."""
    privacy = _config(findings.config.get("campaign", findings.config))
    if not privacy.on:
        return []
    told = [site for run in findings.runs for record in run.rounds for site in record.get("training", {}).values()]
    return [
        f"Trained with differential privacy: {agreed(privacy)}. {NOT_COVERED}",
        *_noise(privacy, _figures(told, MULTIPLIER)),
        *_turned(_figures(told, COSINE)),
        *_price(findings.report["rows"]),
    ]


def _config(campaign: Mapping[str, Any]) -> PrivacyConfig:
    """Campaigns from before there was a choice have no privacy."""
    try:
        return build(PrivacyConfig, campaign.get("privacy", {}), "privacy")
    except ConfigError:
        return PrivacyConfig()


def _figures(told: Sequence[Mapping[str, Any]], name: str) -> list[float]:
    return [float(site[name]) for site in told if isinstance(site.get(name), int | float)]


def _noise(privacy: PrivacyConfig, multipliers: Sequence[float]) -> Iterator[str]:
    if not multipliers:
        return
    low, high = min(multipliers), max(multipliers)
    noise = f"{low:.3g}" if high - low < 0.005 * high else f"{low:.3g} to {high:.3g}"
    part = {"all": "all weights", "lastblocks": "the last blocks and the heads", "norms": "the norms"}[privacy.trained]
    yield (f"Noise of {noise} times the clipping norm of {privacy.clip_norm:g}, by site and round; trained: {part}.")


def _turned(cosines: Sequence[float]) -> Iterator[str]:
    if cosines:
        yield (
            f"Cosine of a site's noised update with the one that the same draws give without clipping and noise: "
            f"{sum(cosines) / len(cosines):.3f} on average, {min(cosines):.3f} to {max(cosines):.3f} (1: the same "
            "direction; 0: nothing of it). A simulation alone can know it."
        )


def _price(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Against what was trained without noise beside it."""
    by_setting = {setting: metrics for (_, setting), metrics in summary_rows(rows)}
    federated = by_setting.get("federated", {})
    for setting in WITHOUT_NOISE:
        there = by_setting.get(setting, {})
        differences = [
            f"{METRICS[key].heading} {federated[key] - there[key]:+.3g} {METRICS[key].unit}".rstrip()
            for key in PRICED
            if key in federated and key in there
        ]
        if differences:
            yield f"Against the {setting} models, which were trained without noise: {', '.join(differences)}."
