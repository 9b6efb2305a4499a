"""The sites' data: one order whoever counted, what stands in the store and what may be trained with kept apart."""

from __future__ import annotations

import json
from pathlib import Path

from server.report import write_report
from server.sheet import data_table

COUNTS = {
    "patients": 1200,
    "series": 14,
    "slices": 96,
    "masks": 5,
    "diagnoses.none": 7,
    "diagnoses.lesion": 5,
    "train_patients": 8,
    "validation_patients": 1,
    "test_patients": 3,
}
CAMPAIGN = {"data": {"diagnoses": ["none", "lesion"], "labels": {"north": {"masks": 2}}}}


def test_counts_in_any_order_make_the_same_table() -> None:
    by_alphabet = dict(sorted(COUNTS.items()))
    assert data_table({"north": by_alphabet}, CAMPAIGN) == data_table({"north": COUNTS}, CAMPAIGN)
    (store, lines), (split, shared_out) = data_table({"north": by_alphabet}, CAMPAIGN).groups
    assert (store, split) == ("in the store", "shared out, by patient")
    assert [(line.words, line.cells) for line in lines] == [
        ("patients", ("1,200",)),
        ("image series", ("14",)),
        ("slices", ("96",)),
        ("image series with a mask", ("5",)),
        ("patients with the diagnosis “none”", ("7",)),
        ("patients with the diagnosis “lesion”", ("5",)),
    ]
    assert [line.words for line in shared_out] == ["training patients", "validation patients", "test patients"]


def test_labels_that_may_be_trained_with_stand_apart_from_what_the_store_holds() -> None:
    sites = {"north": {**COUNTS, "train_masks": 2, "train_diagnoses": 8, "scanner": "gamma 1"}, "coast": {"masks": 3}}
    table = data_table(sites, CAMPAIGN)
    groups = dict(table.groups)
    assert table.sites == ("north", "coast")
    assert [(line.words, line.cells) for line in groups["labels to train with"]] == [
        ("training slices with a mask", ("2", "–")),
        ("training patients with a diagnosis", ("8", "–")),
    ]
    assert groups["in the store"][3].cells == ("5", "3")
    assert [(line.words, line.cells) for line in groups[""]] == [("scanner", ("gamma 1", "–"))]
    assert list(groups)[-1] == ""
    assert table.note.startswith("The campaign's data.labels lets north train with no more labels than it says.")


def test_a_deployed_site_tells_its_store_alone_and_the_note_says_so() -> None:
    table = data_table({"north": COUNTS, "coast": COUNTS}, CAMPAIGN)
    assert "labels to train with" not in dict(table.groups)
    assert "How many are left is not told here" in table.note
    assert data_table({"coast": COUNTS}, CAMPAIGN).note == ""
    assert data_table({"coast": COUNTS}, {}).note == ""


def test_a_count_that_nobody_knows_stands_last_under_its_own_name() -> None:
    table = data_table({"north": {"odd_{0}.x": 3, "diagnoses.{y}": 1, "patients": 2}}, {"data": {"labels": 5}})
    assert [line.words for _, lines in table.groups for line in lines] == [
        "patients", "patients with the diagnosis “{y}”", "odd {0}: x"
    ]  # fmt: skip


def test_nothing_counted_is_no_table() -> None:
    table = data_table({"north": {}}, CAMPAIGN)
    assert (table.sites, table.groups) == ((), ())


def test_page_has_a_row_per_count_and_a_column_per_site(simulated_run: Path) -> None:
    record = json.loads((simulated_run / "record.json").read_text())
    record["sites"] = {
        site: {**COUNTS, "train_masks": place} for place, site in enumerate(("north", "coast", "valley"))
    }
    (simulated_run / "record.json").write_text(json.dumps(record))
    page = write_report(simulated_run).read_text()
    assert "<tr><th></th><th>north</th><th>coast</th><th>valley</th></tr>" in page
    assert "<tr><td>training slices with a mask</td><td>0</td><td>1</td><td>2</td></tr>" in page
