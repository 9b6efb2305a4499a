"""How the trust study's attacks and protections are shown to people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from server.trust.rows import Model, Place

ATTACKS: Mapping[str, str] = {
    "none": "no attack",
    "scaled": "scaled updates",
    "flipped": "flipped updates",
    "labels": "false labels",
    "backdoor": "backdoor",
    "nan": "not a number",
}
"""In the order of the tables."""
AGGREGATIONS: Mapping[str, str] = {
    "none": "FedAvg, the mean",
    "median": "median",
    "trimmed_mean": "trimmed mean",
    "krum": "Krum",
    "multi_krum": "multi-Krum",
}
COLOURS: Mapping[str, str] = {
    "none": "#7b8794",
    "median": "#d08a2e",
    "trimmed_mean": "#2f9c86",
    "krum": "#c0567f",
    "multi_krum": "#3b74e0",
}
"""Mid-tones that read on white and on near-black, as those of server/figures.py."""
MARKERS: Mapping[str, str] = {"none": "x", "median": "s", "trimmed_mean": "^", "krum": "D", "multi_krum": "o"}
TRAINED: Mapping[str, str] = {"all": "all weights", "lastblocks": "last blocks", "norms": "norms"}
UNITS: Mapping[str, str] = {"none": "no noise", "patient": "a patient hidden", "site": "a site's update hidden"}


def label(model: Model) -> str:
    """`a patient hidden, epsilon 8, last blocks`; of a model without privacy how it is aggregated."""
    words = []
    if model.privacy != "none":
        words += [UNITS.get(model.privacy, model.privacy), f"epsilon {model.epsilon_budget:g}"]
        words += [TRAINED.get(model.trained, model.trained)]
    if model.secagg == "masked":
        words.append("secure aggregation")
    if model.robust != "none":
        words.append(AGGREGATIONS.get(model.robust, model.robust))
    if model.attack != "none":
        words.append(ATTACKS.get(model.attack, model.attack))
    return ", ".join(words) or "visible updates, no noise"


def ordered(models: Sequence[Model]) -> list[Model]:
    """Unprotected first; more privacy further down."""
    attacks, kinds, units, parts = (tuple(names) for names in (ATTACKS, AGGREGATIONS, UNITS, TRAINED))

    def place(name: str, names: tuple[str, ...]) -> int:
        return names.index(name) if name in names else len(names)

    return sorted(
        models,
        key=lambda model: (
            place(model.attack, attacks), place(model.robust, kinds), model.secagg == "masked",
            place(model.privacy, units), -model.epsilon_budget, place(model.trained, parts),
        ),
    )  # fmt: skip


def place_label(place: Place) -> str:
    return f"{place.data}, {place.hospitals} hospitals, {place.patients} patients"
