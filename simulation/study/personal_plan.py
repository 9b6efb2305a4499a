"""A cell's overrides in, what it adapts a release with and to what out.

personalise.KEY=VALUE      configs/personalise.yaml: method, loss, steer, steps, tgd.phi, ...
new.degrade=...            how images of the new scanner are degraded (new.degrade.KEY=VALUE likewise); else as the
                           old ones'
new.studies=N              patients of the new scanner that the adaptation learns from; 0: all that train
new.alone=true             no release: a model that learns from the new scanner's patients alone
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

from shared.config import (
    DegradeConfig,
    PersonaliseConfig,
    SimulationConfig,
    TableConfig,
    TGDConfig,
    load,
    to_dict,
)
from shared.errors import ConfigError

ALONE = "alone"
"""Method of a model that has seen nothing but the new scanner's patients."""
_OWN = ("new.studies=", "new.alone=")


@dataclass(frozen=True, slots=True)
class Personal:
    """One adaptation."""

    adapt: PersonaliseConfig
    degrade: DegradeConfig
    """Of the new scanner."""
    studies: int = 0
    alone: bool = False

    @property
    def method(self) -> str:
        return ALONE if self.alone else self.adapt.method

    @property
    def key(self) -> dict[str, Any]:
        """What of it decides a cell's figures, as plain values."""
        adapt = {name: value for name, value in to_dict(self.adapt).items() if name not in _OF_KEEPING}
        return {"adapt": adapt, "new": to_dict(self.degrade), "studies": self.studies, "alone": self.alone}


_OF_KEEPING = ("seed", "margin_db", "margin_dice", "least_gain_db")
"""When a site keeps an adaptation; the seed is the campaign's."""


def is_personal(override: str) -> bool:
    return override.startswith(("personalise.", "new."))


def personal_of(table: TableConfig, overrides: Sequence[str], config: SimulationConfig) -> Personal:
    """Raises ConfigError, naming the table, for what cannot be adapted or what is not understood."""
    where = f"table {table.name!r} of the study"
    try:
        words = [each.removeprefix("personalise.") for each in overrides if each.startswith("personalise.")]
        adapt = _adaptation(tuple(words))
        new = [each.removeprefix("new.") for each in overrides if each.startswith("new.") and not each.startswith(_OWN)]
        if strange := next((each for each in new if not each.startswith(("degrade=", "degrade."))), None):
            raise ConfigError(f"new.{strange} is not understood; write new.degrade=, new.studies= or new.alone=")
        old = [each for each in overrides if each.startswith(("degrade=", "degrade."))]
        degrade = _degradation((*old, *new)) if new else None
        studies = _whole(_last(overrides, "new.studies=", "0"))
        alone = _truth(_last(overrides, "new.alone=", "false"))
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from None
    campaign = config.campaign
    degrade = degrade or campaign.degrade
    if not table.unseen or table.setting not in ("pooled", "federated"):
        raise ConfigError(f"{where} needs unseen=SITE, whose scanner is new, and setting=pooled or federated")
    if table.figures not in ("quality", "orders", "online"):
        raise ConfigError(f"{where}: figures of a study of personalisation are quality, orders or online")
    if campaign.enhance.kind == "none" or {"none", "pairs"} & {campaign.degrade.kind, degrade.kind}:
        raise ConfigError(f"{where} needs enhance= other than none, and degrade= other than none and pairs")
    if table.figures == "orders" and not campaign.masks:
        raise ConfigError(f"{where}: figures=orders needs data with masks; its last is the lesion")
    plain_config = _what_matters(adapt, alone=alone)
    if plain_config.method == "none":
        studies = studies if alone else 0
    return Personal(replace(plain_config, seed=campaign.seed), degrade, studies, alone)


@lru_cache
def _adaptation(words: tuple[str, ...]) -> PersonaliseConfig:
    return load("personalise", words, PersonaliseConfig)


@lru_cache
def _degradation(words: tuple[str, ...]) -> DegradeConfig:
    """Composing takes long, and the cells of a study have few scanners."""
    return load("simulation", words, SimulationConfig).campaign.degrade


def _what_matters(adapt: PersonaliseConfig, *, alone: bool) -> PersonaliseConfig:
    """Without what the method does not look at: such cells are one cell."""
    default = PersonaliseConfig()
    if alone or adapt.method == "none":
        return replace(default, method="none")
    adapt = replace(adapt, tgd=adapt.tgd if adapt.method == "tgd" else TGDConfig())
    adapt = replace(adapt, blocks=adapt.blocks if adapt.method == "lastblocks" else default.blocks)
    return replace(adapt, task_weight=default.task_weight) if adapt.steer == "none" else adapt


def _last(overrides: Sequence[str], start: str, default: str) -> str:
    return next((each.removeprefix(start) for each in reversed(overrides) if each.startswith(start)), default)


def _whole(text: str) -> int:
    if not text.isdecimal() or len(text) > 6:
        raise ConfigError(f"new.studies must be a whole number of patients, 0 for all, got {text!r}")
    return int(text)


def _truth(text: str) -> bool:
    if text not in ("true", "false"):
        raise ConfigError(f"new.alone must be true or false, got {text!r}")
    return text == "true"
