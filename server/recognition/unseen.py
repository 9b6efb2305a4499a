"""A sheet in; out: what each model scores at the hospitals that trained it and at one that nobody trained on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from server.recognition.rows import Model, Place, Sheet, mean_by_seed
from server.study.statistics import BySeed


@dataclass(frozen=True, slots=True, eq=False)
class Drop:
    """One model's figures by seed, on the seeds that have both."""

    model: Model
    condition: Place
    own: BySeed
    """On the tests of its own hospitals: a local model's of its own, any other's of all that trained it."""
    away: BySeed
    """On the tests of the hospital that nobody trained on."""

    @property
    def by_seed(self) -> dict[int, float]:
        return {seed: self.own[seed] - self.away[seed] for seed in self.own}


def drops(sheet: Sheet, metric: str) -> Iterator[Drop]:
    """One per model and condition for which both are known; for local models also their mean (site "all")."""
    for condition in sheet.conditions:
        locals_: dict[Model, list[Drop]] = {}
        for model in sheet.models:
            if model.setting == "local" and model.site == "all":
                continue
            found = _drop(sheet, model, condition, metric)
            if found is not None:
                yield found
                if model.setting == "local":
                    locals_.setdefault(replace(model, site="all"), []).append(found)
        for mean_model, found_ones in locals_.items():
            own, away = (mean_by_seed([getattr(each, name) for each in found_ones]) for name in ("own", "away"))
            if own:
                yield Drop(mean_model, condition, own, away)


def _drop(sheet: Sheet, model: Model, condition: Place, metric: str) -> Drop | None:
    home = replace(condition, test_site=model.site)
    own, away = sheet.values(model, home, metric), _away(sheet, model, condition, metric)
    both = sorted(set(own) & set(away))
    if not both:
        return None
    return Drop(model, condition, {seed: own[seed] for seed in both}, {seed: away[seed] for seed in both})


def _away(sheet: Sheet, model: Model, condition: Place, metric: str) -> dict[int, float]:
    """The tests that no model's training saw: those over all such hospitals where there is a row for it."""
    places = [place for place in sheet.places if place.domain == "cross" and place.condition == condition]
    found = {place.test_site: values for place in places if (values := sheet.values(model, place, metric))}
    return found.get("all") or mean_by_seed(list(found.values()))
