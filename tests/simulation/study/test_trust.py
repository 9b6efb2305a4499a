"""The trust study: its plan, claims by arithmetic on made-up rows, and both pages from one report."""

from __future__ import annotations

from typing import Any

import pytest

from server.trust.page import context, trust_of
from server.trust.rows import PLAIN, Model, sheet_of
from shared.config import SimulationConfig, load
from shared.errors import ConfigError
from simulation.study.grid import planned
from simulation.study.trust_cells import trust_conditions
from simulation.study.trust_claims import claims_of


def row(table: str, seed: int = 0, **more: Any) -> dict[str, Any]:
    return {
        "method": "plain", "setting": "federated", "seed": seed, "data": "mni", "degradation": "gaussian",
        "split": "test", "site": "all", "test_site": "all", "n": 9, "table": table, "hospitals": 10, "patients": 80,
        "attack": "none", "robust": "none", "secagg": "visible_updates", "privacy": "none", "psnr_db": 25.0,
        "dice": 0.6, **more,
    }  # fmt: skip


ROWS = [
    row("robust"),
    row("robust", attack="scaled", dice=0.1),
    row("robust", attack="scaled", robust="multi_krum", dice=0.58),
    row("robust", attack="scaled", robust="trimmed_mean", dice=0.5),
    row("robust", attack="backdoor", backdoor_success=0.9),
    row("robust", attack="backdoor", robust="multi_krum", backdoor_success=0.2),
    row("privacy-patient"),
    row("privacy-patient", privacy="patient", epsilon_budget=8.0, trained="all", epsilon=7.99, psnr_db=20.0),
    row("privacy-patient", privacy="patient", epsilon_budget=8.0, trained="norms", epsilon=8.5, psnr_db=21.0),
    row("masked", bytes_up=100.0),
    row("masked", secagg="masked", bytes_up=126.0, psnr_db=25.01),
]


def claim(promise: str) -> list[tuple[float, bool]]:
    return [(round(each["value"], 6), each["holds"]) for each in claims_of(ROWS) if each["promise"] == promise]


def test_claims_are_differences_to_the_unprotected_federation_held_against_their_targets() -> None:
    assert claim("collapse") == [(0.5, True)]
    assert claim("kept") == [(0.1, False), (0.02, True), (0.0, True)]
    assert claim("backdoor") == [(0.7, True)]
    assert claim("budget") == [(7.99, True), (8.5, False)]
    assert claim("smaller") == [(1.0, True)]
    assert claim("masked") == [(0.01, True)]
    assert claim("bytes") == [(1.26, True)]


def test_nothing_is_claimed_of_what_was_not_run() -> None:
    assert claims_of([]) == []
    assert claims_of([row("robust")]) == []


def report() -> dict[str, Any]:
    names = ("robust", "privacy-patient", "masked")
    tables = [
        {"name": name, "title": name, "question": "?", "common": [], "planned": 1, "done": 1, "missing": []}
        for name in names
    ]
    return {
        "experiment": "trust", "seeds": [0], "config_digest": "d0" * 32, "versions": {"torch": "2"}, "wall_s": 1.0,
        "rows": ROWS, "claims": claims_of(ROWS),
        "study": {"kind": "trust", "budget": "full", "planned": 3, "tables": tables, "cells": []},
    }  # fmt: skip


def test_the_page_has_every_table_and_what_attacks_and_privacy_cost() -> None:
    study = trust_of(report())
    assert [section.name for section in study.sections] == ["robust", "privacy-patient", "masked"]
    assert study.headlines[0].title == "Three hospitals of ten are malicious"
    dice = study.sections[0].blocks[0]
    assert [line.label for line in dice.lines] == ["FedAvg, the mean", "trimmed mean", "multi-Krum"]
    assert context(report(), {})["corner"] == "protected by"


def test_a_sheet_tells_cells_apart_by_attack_and_protection() -> None:
    sheet = sheet_of(ROWS, ["robust"])
    assert PLAIN in sheet.models
    assert sheet.values(Model("scaled", "multi_krum"), sheet.places[0], "dice") == {0: 0.58}


@pytest.mark.parametrize("budget", ["quick", "full"])
def test_every_cell_of_the_plan_is_a_config_and_the_unprotected_one_is_shared(budget: str) -> None:
    config = load("simulation", ["experiment=trust", f"budget={budget}"], SimulationConfig)
    assert config.study is not None
    cells = planned(config.study, budget)
    of_model = [trust_conditions(cell) for cell in cells]
    plain = [cell for cell, words in zip(cells, of_model, strict=True) if words["hospitals"] == 10
             and (words["attack"], words["robust"], words["privacy"], words["secagg"])
             == ("none", "none", "none", "visible_updates")]  # fmt: skip
    assert all({"robust", "masked"} <= set(cell.tables) for cell in plain)
    assert len(plain) == len({cell.seed for cell in cells})
    assert len({cell.key for cell in cells}) == len(cells)


def test_a_study_of_trust_is_of_federations() -> None:
    config = load("simulation", ["experiment=trust"], SimulationConfig)
    assert config.study is not None
    from dataclasses import replace

    pooled = replace(config.study, tables=(replace(config.study.tables[0], setting="pooled"),))
    with pytest.raises(ConfigError, match="needs setting=federated"):
        planned(pooled, "quick")
