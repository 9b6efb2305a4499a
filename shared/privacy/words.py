"""What a campaign's privacy means and will cost, in sentences: for who starts one and for who uses its weights."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import hypot, sqrt
from typing import Any

from shared.config import CampaignConfig, PrivacyConfig
from shared.privacy.accountant import epsilon, rounds_within
from shared.privacy.plan import least_noise, noise_shares, one_round

EXAMPLES = (20, 100, 500)
"""Training patients of a site, where a campaign is made before its sites are known."""
DROWNED = 0.1
"""Signal over noise of one step below which a smaller part is advised."""
UNIT = {
    "patient": "for every training patient of a site",
    "site": "for the whole part that a site has in the weights",
}
NOT_COVERED = "What is measured on test patients, counts and versions are not covered by it."


def agreed(privacy: PrivacyConfig) -> str:
    """The guarantee: epsilon, delta, unit; empty without privacy."""
    if not privacy.on:
        return ""
    return f"(ε, δ) = ({privacy.epsilon:g}, {privacy.delta:g}) {UNIT[privacy.kind]}, over the whole run"


def in_release(campaign: CampaignConfig, without: str) -> dict[str, Any]:
    """The privacy field of a release's manifest; `without` are its words where there is none."""
    epsilon = campaign.privacy.epsilon if campaign.privacy.on else None
    return {"epsilon": epsilon, "words": released(campaign) or without}


def released(campaign: CampaignConfig) -> str:
    """For a release's card; empty without privacy."""
    if not campaign.privacy.on:
        return ""
    against = "" if campaign.privacy.kind == "patient" else _against(campaign)
    return f"Trained with differential privacy: {agreed(campaign.privacy)}, at most.{against} {NOT_COVERED}"


def expected(campaign: CampaignConfig, num_parameters: tuple[int, int], patients_per_site: Sequence[int]) -> str:
    """How an update will stand out of its noise, before anything is run; lines of text, empty without privacy.

    `num_parameters`: trained weights of the enhancer and of the recogniser (shared.privacy.parts.trained_counts).
    `patients_per_site`: training patients of each site; the numbers to show where they are not known yet. Both are
    bounds: every drawn patient, or site, is taken to add all of clip_norm, and all of them in the same direction.
    """
    privacy = campaign.privacy
    if not privacy.on:
        return ""
    lines = [f"privacy={privacy.kind}: {agreed(campaign.privacy)}. {NOT_COVERED}"]
    ratios = []
    kinds = sorted(set(patients_per_site)) if privacy.kind == "patient" else [1]
    for patients in kinds:
        line, ratio = _line(campaign, num_parameters, patients, len(patients_per_site))
        lines.append(line)
        ratios.append(ratio)
    lines += _advice(campaign, [ratio for ratio in ratios if ratio is not None])
    return "\n".join(lines)


def signal_to_noise(campaign: CampaignConfig, dimension: int, multiplier: float, patients: int, sites: int) -> float:
    """At most: of one step's sum over patients, or of one round's sum of updates."""
    if campaign.privacy.kind == "patient":
        return min(campaign.privacy.patients, patients) / (multiplier * sqrt(dimension))
    return sites / (multiplier * sqrt(dimension * sites / noise_shares(campaign)))


def dimension_of(campaign: CampaignConfig, num_parameters: tuple[int, int]) -> int:
    """Values that one draw of noise has: of an update, or after the warm-up of [g, v, r]."""
    enhancer, recogniser = num_parameters
    if campaign.privacy.kind == "site":
        return enhancer + recogniser
    objective = campaign.objective
    return enhancer * (2 if objective.steers else 1) + (recogniser if objective.learns else 0)


def _line(
    campaign: CampaignConfig, num_parameters: tuple[int, int], patients: int, sites: int
) -> tuple[str, float | None]:
    privacy, rounds = campaign.privacy, campaign.rounds.rounds
    one = one_round(campaign, patients, multiplier=1.0)
    who = f"A site with {patients} training patients" if privacy.kind == "patient" else "A sum of updates"
    multiplier = privacy.noise_multiplier or least_noise(campaign, one, 1)
    if multiplier is None:
        return f"  {who} has no noise that keeps this epsilon; raise privacy.epsilon.", None
    one = one_round(campaign, patients, multiplier=multiplier)
    dimension = dimension_of(campaign, num_parameters)
    ratio = signal_to_noise(campaign, dimension, multiplier, patients, sites)
    what = "step" if privacy.kind == "patient" else "round"
    line = (
        f"  {who} has noise of {multiplier:.3g} times clip_norm on each of {dimension} values of a {what}: its norm is "
        f"{_times(1 / ratio)} the most that patients or sites can add, so that the cosine of a noised {what} with "
        f"the true one is {_cosine(ratio):.2g} at most"
    )
    if privacy.noise_multiplier is not None:
        whole = epsilon([one] * rounds, privacy.delta)
        kept = rounds_within(privacy.epsilon, privacy.delta, one, rounds)
        line += f"; {rounds} rounds spend epsilon {whole:.3g}"
        line += "" if kept == rounds else f", and the approved {privacy.epsilon:g} ends the site's part after {kept}"
    return f"{line}.", ratio


def _times(factor: float) -> str:
    return f"{factor:.2g} times"


def _cosine(ratio: float) -> float:
    """Of s with s + n, the noise n at a right angle to s: what it nearly is in many dimensions."""
    return ratio / hypot(1, ratio)


def _advice(campaign: CampaignConfig, ratios: Sequence[float]) -> Iterator[str]:
    if not ratios or min(ratios) >= DROWNED:
        return
    if campaign.privacy.trained == "all":
        yield "  Most of it is noise, which grows with the weights that are trained: choose privacy.trained=lastblocks,"
    else:
        yield "  Most of it is noise, with a small trained part too:"
    yield "  or more patients a step (privacy.patients), sites with more patients, fewer rounds, a larger epsilon."


def _against(campaign: CampaignConfig) -> str:
    if campaign.secagg.masked:
        return " It holds for sums of updates, as long as no sites that took part tell the noise they drew."
    return ""
