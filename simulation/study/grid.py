"""A study's tables in, its cells out: which campaigns to run, in which order, under which key each result is kept."""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from shared.config import (
    AugmentConfig,
    GenerateConfig,
    LearnConfig,
    PrivacyConfig,
    SecAggConfig,
    SelfRegConfig,
    SimulationConfig,
    StudyConfig,
    TableConfig,
    load,
    to_dict,
)
from shared.errors import ConfigError
from simulation.hospitals.cohort import hospitals_of
from simulation.study.personal_plan import Personal, is_personal, personal_of

REAL = ("hippocampus", "pneumonia", "totalseg", "store")
"""Kinds of data that are read from a folder."""


@dataclass(frozen=True, slots=True)
class Cell:
    """One campaign with one seed; several tables may ask for the same."""

    tables: tuple[str, ...]
    setting: str
    seed: int
    overrides: tuple[str, ...]
    """Everything that was typed, the table's common part first."""
    varied: tuple[str, ...]
    """What distinguishes it within its first table."""
    downstream: bool
    config: SimulationConfig
    key: str
    unseen: str = ""
    kind: str = "enhancement"
    figures: str = "recogniser"
    generator: str = "none"
    site: str = ""
    images: int = 0
    personal: Personal | None = None
    """Of a study of personalisation."""

    @property
    def missing(self) -> str | None:
        """The data set whose folder was not given."""
        kinds = [self.config.campaign.data, *([self.config.cross.data] if self.config.cross else [])]
        return next((data.kind for data in kinds if data.kind in REAL and data.root is None), None)


_MARKS = {"hippocampus": "images/*.nii*", "pneumonia": "pneumoniamnist*.npz", "totalseg": "ct_dicom/*.dcm"}
"""What a folder holds that is the data set of that kind."""


def with_roots(study: StudyConfig, root: str | None) -> StudyConfig:
    """The study with the data sets that lie in `root`, or in folders of it, where `study.roots` does not name them.

    Raises ConfigError for a place that is no folder.
    """
    given = {"data.root": root, **{f"study.roots.{kind}": folder for kind, folder in study.roots.items()}}
    for key, folder in given.items():
        if folder is not None and not Path(folder).is_dir():
            raise ConfigError(f"{key} must be a folder that is there; leave it out to run without those cells")
    folders = [Path(root), *sorted(path for path in Path(root).glob("*") if path.is_dir())] if root else []
    found = {kind: str(folder) for kind, mark in _MARKS.items() for folder in folders if next(folder.glob(mark), None)}
    return replace(study, roots={**found, **{kind: given for kind, given in study.roots.items() if given}})


def planned(study: StudyConfig, budget: str) -> list[Cell]:
    """All cells in the order of the tables, each once; seeds outside, so that a first seed of a table is whole early.

    Raises ConfigError naming the table with an override that is not one.
    """
    cells: dict[str, Cell] = {}
    for table in tables_of(study, budget):
        for cell in _of_table(table, study, budget):
            known = cells.get(cell.key)
            tables = cell.tables if known is None else (*known.tables, table.name)
            cells[cell.key] = replace(known or cell, tables=tuple(dict.fromkeys(tables)))
    return list(cells.values())


def tables_of(study: StudyConfig, budget: str) -> list[TableConfig]:
    """The tables that this budget asks for."""
    quick = [replace(table, vary=(), also=table.quick) for table in study.tables if table.quick]
    return quick if quick and budget == "quick" else list(study.tables)


def common_of(table: TableConfig, study: StudyConfig, budget: str) -> list[str]:
    """What all cells of the table have typed."""
    return [*study.common, *(study.quick if budget == "quick" else ()), *table.common]


def _of_table(table: TableConfig, study: StudyConfig, budget: str) -> Iterator[Cell]:
    common = common_of(table, study, budget)
    combinations = [" ".join(parts) for parts in itertools.product(*table.vary)] if table.vary else []
    loaded = [
        (words, _load(table.name, common, words, study.roots, budget, study.kind))
        for words in (*combinations, *table.also)
    ]
    if not loaded:
        raise ConfigError(f"table {table.name!r} of the study has no cell; give it vary or also")
    for _, config in loaded:
        _check_sites(table, study.kind, config)
    seeds = table.seeds or loaded[0][1].seeds
    for seed in seeds:
        for words, config in loaded:
            seeded = replace(config, seeds=(seed,), campaign=replace(config.campaign, seed=seed))
            generation = _of_generation(table, seeded) if study.kind == "generation" else {}
            if study.kind == "personalise":
                yield _personal_cell(table, seeded, common, split_words(words))
                continue
            yield Cell(
                (table.name,),
                table.setting,
                seed,
                (*common, *split_words(words)),
                split_words(words),
                table.downstream,
                seeded,
                key_of(seeded, table.setting, downstream=table.downstream, unseen=table.unseen, **generation),
                table.unseen,
                study.kind,
                **generation,
            )


def _of_generation(table: TableConfig, config: SimulationConfig) -> dict[str, Any]:
    """What only cells of a generation study have. Raises ConfigError for one that cannot be."""
    campaign = config.campaign
    if table.figures not in ("recogniser", "generator", "draws"):
        raise ConfigError(
            f"table {table.name!r} of the study: figures={table.figures} is of a study of personalisation"
        )
    draws = table.figures == "recogniser" and campaign.augment.generated
    if (table.figures != "recogniser" or draws) and not campaign.generate.on:
        raise ConfigError(f"table {table.name!r} of the study needs a generator: add generate=emit-diff")
    if draws and table.generator == "none":
        raise ConfigError(
            f"table {table.name!r} of the study: augment={campaign.augment.kind} needs generator=federated, pooled or "
            "local: in which setting it is trained"
        )
    generator = table.generator if draws else "none" if table.figures == "recogniser" else table.setting
    judged = 0 if table.figures == "recogniser" else table.images
    return {"figures": table.figures, "generator": generator, "site": table.site, "images": judged}


def _personal_cell(table: TableConfig, config: SimulationConfig, common: list[str], varied: tuple[str, ...]) -> Cell:
    """Raises ConfigError for an adaptation that cannot be."""
    overrides = (*common, *varied)
    personal = personal_of(table, overrides, config)
    what = {**personal.key, "figures": table.figures}
    return Cell(
        (table.name,),
        table.setting,
        config.campaign.seed,
        overrides,
        varied,
        False,
        config,
        key_of(config, table.setting, downstream=False, unseen=table.unseen, **what),
        table.unseen,
        "personalise",
        table.figures,
        personal=personal,
    )


def _check_sites(table: TableConfig, kind: str, config: SimulationConfig) -> None:
    """Raises ConfigError for a site that is named and is not there: before hours of cells, not in the midst of them."""
    if kind == "trust" and table.setting != "federated":
        raise ConfigError(f"table {table.name!r} of the study: a study of trust needs setting=federated")
    if kind == "generation" and table.setting == "untrained":
        raise ConfigError(f"table {table.name!r} of the study: setting=untrained belongs to a study of enhancement")
    if config.campaign.data.kind == "store":  # which sites it has stands in its folder
        return
    sites = [hospital.name for hospital in hospitals_of(config)]
    for site in config.adversaries or {}:
        if site not in sites:
            raise ConfigError(
                f"table {table.name!r} of the study: adversaries may name {', '.join(sites)}; got {site!r}"
            )
    of_kind = kind in ("recognition", "personalise")
    if table.unseen and (not of_kind or table.unseen not in sites or len(sites) < 2):
        raise ConfigError(
            f"table {table.name!r} of the study: unseen={table.unseen!r} must be one of two sites or more "
            f"({', '.join(sites)}) of a study of kind recognition or personalise"
        )
    if table.site and (kind != "generation" or table.setting != "local" or table.site not in sites):
        raise ConfigError(
            f"table {table.name!r} of the study: site={table.site!r} must be one of {', '.join(sites)}, with "
            "setting=local, of a study of kind generation"
        )


def split_words(words: str) -> tuple[str, ...]:
    """Overrides with blanks between them; a blank inside brackets, braces or quotes is part of one."""
    return tuple(match[0] for match in re.finditer(r"(?:\[[^\]]*\]|\{[^}]*\}|'[^']*'|\"[^\"]*\"|[^\s])+", words))


def _load(
    table: str, common: list[str], words: str, roots: Mapping[str, str | None], budget: str, kind: str
) -> SimulationConfig:
    overrides = [*common, *split_words(words)]
    if kind == "personalise":  # how it is adapted and to what is read apart
        overrides = [each for each in overrides if not is_personal(each)]
    for override in overrides:
        if override.lstrip("+~").partition("=")[0].startswith(_NOT_A_CELLS):
            raise ConfigError(f"table {table!r} of the study: {override!r} is for the whole study, not for a cell")
    try:
        config = _composed((*overrides, f"budget={budget}"))
    except ConfigError as error:
        raise ConfigError(f"table {table!r} of the study, {words or 'common'!r}: {error}") from None
    data, cross = config.campaign.data, config.cross
    if data.root is None and data.kind in roots:
        config = replace(config, campaign=replace(config.campaign, data=replace(data, root=roots[data.kind])))
    if cross is not None and cross.data.root is None and cross.data.kind in roots:
        config = replace(config, cross=replace(cross, data=replace(cross.data, root=roots[cross.data.kind])))
    return config


@lru_cache
def _composed(overrides: tuple[str, ...]) -> SimulationConfig:
    """Composing takes long, and many adaptations begin with one release."""
    return load("simulation", overrides, SimulationConfig)


_NOT_A_CELLS = ("budget", "run_dir", "fresh", "experiment", "study", "machine")


def key_of(config: SimulationConfig, setting: str, *, downstream: bool, unseen: str = "", **more: Any) -> str:
    """Digest of what the cell's figures follow from: not where its folders lie, nor how it is run."""
    values = to_dict(config)
    kept = {name: values[name] for name in ("campaign", "hospitals", "cross", "sites")}
    for data in (kept["campaign"]["data"], *([kept["cross"]["data"]] if kept["cross"] else [])):
        del data["root"]
    kept["campaign"]["name"] = ""
    if setting in ("federated", "local"):
        kept["transport"] = values["transport"]
    else:  # how the federation would be run, or summed up, is nothing to a model of pooled data
        del kept["campaign"]["strategy"]
    # What came later is part of a key only where it is used: cells that were kept before it keep their keys.
    defaults = {"learn": LearnConfig(), "selfreg": SelfRegConfig(), "generate": GenerateConfig()}
    later = {"augment": AugmentConfig(), "secagg": SecAggConfig(), "privacy": PrivacyConfig()}
    for name, default in (defaults | later).items():
        if kept["campaign"][name] == to_dict(default):
            del kept["campaign"][name]
    for name, unused in {"robust": "none", "malicious": 0, "norm_bound": None}.items():
        if kept["campaign"].get("strategy", {}).get(name, "") == unused:
            del kept["campaign"]["strategy"][name]
    if values["adversaries"] and setting == "federated":
        kept["adversaries"] = values["adversaries"]
    for data in (kept["campaign"]["data"], *([kept["cross"]["data"]] if kept["cross"] else [])):
        if not data["labels"]:
            del data["labels"]
    if more.get("generator") == "none":  # whatever stands there, it draws nothing
        kept["campaign"].pop("generate", None)
    for place in ("hed_weights", "text_encoder", "start") if "generate" in kept["campaign"] else ():
        del kept["campaign"]["generate"][place]
    what: list[Any] = [kept, setting, downstream, *([unseen] if unseen else []), *([more] if more else [])]
    text = json.dumps(what, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:24]
