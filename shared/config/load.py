"""Hydra yaml and KEY=VALUE overrides in, a frozen config out. The only user of hydra and omegaconf."""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from importlib import resources
from typing import Any, TypeVar

from shared.config.build import build
from shared.config.digest import require_whole
from shared.config.programs import SimulationConfig
from shared.errors import ConfigError

Config = TypeVar("Config")


def load(program: str, overrides: Sequence[str], schema: type[Config]) -> Config:
    """Compose `configs/<program>.yaml` with KEY=VALUE overrides into `schema`; raises ConfigError in one line."""
    from hydra import compose, initialize_config_module
    from hydra.core.global_hydra import GlobalHydra
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    if named := next((override for override in overrides if override.startswith("learn.kind=")), None):
        choice = named.partition("=")[2]
        raise ConfigError(f"learn.kind only names what learn= sets; write learn={choice}")
    GlobalHydra.instance().clear()
    try:
        with initialize_config_module("configs", version_base="1.3"):
            composed = compose(program, overrides=list(overrides))
        values = OmegaConf.to_container(composed, resolve=True, throw_on_missing=True)
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        raise ConfigError(_reason(str(error), program)) from None
    assert isinstance(values, dict)
    if schema is SimulationConfig:
        values = _simulation_values(values)
        values["cross"] = _cross(values["campaign"]["data"])
    config = build(schema, values)
    if isinstance(config, SimulationConfig):
        require_whole(config.campaign)
    return config


def _cross(data: dict[Any, Any]) -> dict[str, Any] | None:
    """`data.test` and `data.test_root`, which are no part of the agreement, as the other data set's own group."""
    kind, root = data.pop("test"), data.pop("test_root")
    if kind is None:
        return None
    if kind == data["kind"]:
        raise ConfigError(f"data.test must be another data set than data={kind}, whose own patients are tested anyway")
    other = load("simulation", [f"data={kind}"], SimulationConfig)
    values = dataclasses.asdict(other)
    return {"data": {**values["campaign"]["data"], "root": root}, "hospitals": values["hospitals"]}


# Keys of configs/simulation.yaml that a person sets and that `campaign` there is put together from.
_INPUTS = {
    *("data", "degrade", "enhance", "recognise", "learn", "selfreg", "objective", "strategy", "training", "generate"),
    *("augment", "secagg", "privacy", "round", "rounds", "budgets", "published", "gate", "seed", "seeds", "name"),
    "experiment",
}


def _simulation_values(values: dict[Any, Any]) -> dict[Any, Any]:
    """The flat yaml that people override, as the nested values of SimulationConfig."""
    seeds = values["budgets"][values["budget"]]["seeds"] if values["seed"] is None else [values["seed"]]
    rest = {key: value for key, value in values.items() if key not in _INPUTS}
    return {**rest, "experiment": values["name"], "seeds": seeds, "campaign": {**values["campaign"], "seed": seeds[0]}}


def _reason(message: str, program: str) -> str:
    """Hydra's several lines as one sentence with the way out."""
    first = next((line.strip() for line in message.splitlines() if line.strip()), "not understood")
    if choice := re.search(r"Could not find '(\w+)/([^']*)'", message):
        known = ", ".join(sorted(_choices(choice[1])))
        return f"{choice[1]}={choice[2]} is not known; choose one of {known}"
    if key := re.search(r"Could not override '([^']+)'|Key '([^']+)' is not in struct", message):
        name = key[1] or key[2]
        near = difflib.get_close_matches(name, _override_keys(program), n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(near)}?" if near else "wardround-simulate --help lists the keys"
        return f"unknown key {name!r}; {hint}"
    if "budgets." in message:
        return "budget must be one of quick, full"
    return f"could not read the overrides (write KEY=VALUE, odd characters in quotes): {first}"[:300]


def _choices(group: str) -> list[str]:
    folder = resources.files("configs") / group
    return [entry.name.removesuffix(".yaml") for entry in folder.iterdir() if entry.name.endswith(".yaml")]


def _override_keys(program: str) -> list[str]:
    from hydra import compose, initialize_config_module
    from omegaconf import OmegaConf

    with initialize_config_module("configs", version_base="1.3"):
        values = OmegaConf.to_container(compose(program), resolve=False)
    assert isinstance(values, dict)
    return list(_flat(values))


def _flat(values: Mapping[Any, Any], where: str = "") -> Iterator[str]:
    for key, value in values.items():
        yield f"{where}.{key}" if where else str(key)
        if isinstance(value, Mapping):
            yield from _flat(value, f"{where}.{key}" if where else str(key))
