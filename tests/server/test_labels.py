"""Labels and pseudo-labels: sums that a reader would repeat are right, and runs that have none show no such section."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from server.findings import Run
from server.labels import LabelSection, label_section
from server.report import write_report
from shared.errors import DataError

HEADING = "Labels and pseudo-labels"
SITES = ["north", "coast", "valley"]
DIAGNOSES = ["no finding", "tumour", "bleeding"]


def training(offered: float, none: float, tumour: float, rank: float) -> dict[str, float]:
    accepted = {"pseudo_accepted.no_finding": none, "pseudo_accepted.tumour": tumour, "pseudo_accepted.bleeding": 0.0}
    rate = (none + tumour) / offered
    return {"loss_masks": 0.5, "pseudo_offered": offered, "pseudo_accept_rate": rate, "feature_rank": rank, **accepted}


def images(encoder: int, decoder: int, diagnosis: int) -> dict[str, int]:
    return {"encoder": encoder, "decoder": decoder, "diagnosis": diagnosis}


ROUNDS: list[dict[str, Any]] = [
    {
        "training": {"north": training(64, 0, 0, 6.2), "coast": training(32, 8, 8, 5.0), "valley": {"loss_masks": 0.3}},
        "images": {"north": images(64, 0, 64), "coast": images(96, 64, 48), "valley": images(64, 64, 0)},
    },
    {
        "training": {"north": training(64, 15, 1, 4.0), "valley": {"loss_masks": 0.2}},
        "images": {"north": images(80, 0, 80), "valley": images(64, 64, 0)},
    },
    {
        "training": {"north": training(64, 30, 2, 3.0), "coast": training(32, 16, 16, 2.5)},
        "images": {"north": images(96, 0, 96), "coast": images(128, 64, 64)},
    },
    {"training": {}, "images": {}},
]


def run_of(rounds: list[dict[str, Any]]) -> Run:
    return Run("multimix", 0, tuple({"round": number, **record} for number, record in enumerate(rounds, start=1)))


def section() -> LabelSection:
    found = label_section(run_of(ROUNDS), SITES, DIAGNOSES)
    assert found is not None
    return found


def test_images_of_each_part_add_up_over_the_rounds_that_a_site_answered() -> None:
    found = section()
    assert found.parts == ("encoder", "decoder (masks)", "class head (diagnoses)")
    assert [(line.site, line.images) for line in found.sites] == [
        ("north", (240, 0, 240)),
        ("coast", (224, 128, 112)),
        ("valley", (128, 128, 0)),
    ]


def test_pseudo_labels_add_up_and_a_class_that_was_never_accepted_stands_there_with_nought() -> None:
    found = section()
    assert found.classes == ("no finding", "tumour", "bleeding")
    north, coast, valley = found.sites
    assert (north.offered, north.accepted, north.by_class) == (192, 48, (45, 3, 0))
    assert (coast.offered, coast.accepted, coast.by_class) == (64, 48, (24, 24, 0))
    assert (north.rate, coast.rate) == (0.25, 0.75)
    assert (valley.offered, valley.accepted, valley.rate, valley.by_class) == (None, None, None, (None, None, None))


def test_feature_rank_that_falls_below_half_of_its_first_value_is_told_in_words() -> None:
    """3.0 is below half of 6.2; 2.5 is half of 5.0 and not below it; valley has none."""
    assert section().watch == (
        "north: the feature rank fell to 3.0 in round 3, below half of the 6.2 of round 1. "
        "The features may be collapsing: lower selfreg's weights, or leave it out.",
    )


def test_feature_rank_that_came_back_is_told_with_where_it_is_now() -> None:
    ranks = [8.0, 3.9, 3.0, 7.0]
    rounds = [{"training": {"north": {"feature_rank": rank}}} for rank in ranks]
    found = label_section(run_of(rounds), SITES, DIAGNOSES)
    assert found is not None
    assert found.watch[0].startswith(
        "north: the feature rank fell to 3.9 in round 2, below half of the 8.0 of round 1; in round 4 it is 7.0."
    )


def test_feature_rank_that_holds_is_said_to_hold_and_one_that_was_not_taken_is_not() -> None:
    held = [{"training": {"north": {"feature_rank": rank}}} for rank in (4.0, 2.0, 6.0)]
    found = label_section(run_of(held), SITES, DIAGNOSES)
    assert found is not None
    assert found.watch == ("No site's feature rank fell below half of its first value.",)
    regularised = [{"training": {"north": {"loss_selfreg": 0.1}}}]
    found = label_section(run_of(regularised), SITES, DIAGNOSES)
    assert found is not None
    assert found.watch == ()
    assert not found.pseudo
    assert [chart.title for chart in found.charts] == ["SelfReg's loss, training"]


@pytest.mark.parametrize(
    ("accepted", "words"),
    [
        (
            (0.0, 10.0),
            ["north: every accepted pseudo-label is “tumour”. The recogniser may be teaching itself one answer"],
        ),
        ((0.0, 0.0), ["north: none of the 1,024 pseudo-labels was confident enough to be accepted."]),
        ((1.0, 9.0), []),
        ((0.0, 9.0), []),  # 18 in two rounds: too few to say that they are one-sided
    ],
)
def test_pseudo_labels_that_teach_one_answer_or_nothing_are_told_in_words(
    accepted: tuple[float, float], words: list[str]
) -> None:
    counts = dict(zip(("pseudo_accepted.no_finding", "pseudo_accepted.tumour"), accepted, strict=True))
    rounds = [{"training": {"north": {"pseudo_offered": 512.0, **counts}}}] * 2
    found = label_section(run_of(rounds), SITES, DIAGNOSES)
    assert found is not None
    assert [said.split(": raise")[0] for said in found.watch] == words


def test_charts_are_of_what_was_measured_and_rounds_before_the_first_figure_are_no_warm_up() -> None:
    assert [chart.title for chart in section().charts] == [
        "pseudo-labels accepted, share",
        "effective rank of the features",
    ]
    later = [{"training": {"north": {"feature_rank": 3.0}}}, {"training": {"north": training(8, 1, 1, 3.0)}}]
    found = label_section(run_of(later), SITES, DIAGNOSES)
    assert found is not None
    assert "no figure" in found.charts[0].svg
    assert "warm-up" not in found.charts[0].svg


@pytest.mark.parametrize(
    "rounds",
    [
        [],
        [{}],
        [{"training": {}}],
        [{"training": {"north": {"loss_enhance": 0.1, "gate_open_rate": 0.5}}, "images": {"north": images(8, 8, 8)}}],
        [{"training": {"another": training(8, 1, 1, 2.0)}}],
    ],
)
def test_run_without_the_keys_has_no_section(rounds: list[dict[str, Any]]) -> None:
    assert label_section(run_of(rounds), SITES, DIAGNOSES) is None


@pytest.mark.parametrize("odd", [None, "many", [], {"north": 3}, {"north": {"decoder": "all", "encoder": None}}])
def test_counts_of_another_form_are_no_figures(odd: Any) -> None:
    found = label_section(run_of([{**ROUNDS[0], "images": odd}]), SITES, DIAGNOSES)
    assert found is not None
    assert all(count is None for line in found.sites for count in line.images)


def test_class_that_the_campaign_does_not_name_is_shown_under_its_key() -> None:
    rounds = [{"training": {"north": {"pseudo_offered": 4.0, "pseudo_accepted.old_class": 2.0}}}]
    found = label_section(run_of(rounds), SITES, DIAGNOSES)
    assert found is not None
    assert found.classes == ("old class",)
    assert found.sites[0].rate == 0.5


def test_page_of_a_simulation_shows_it_where_the_records_have_it(simulated_run: Path) -> None:
    assert HEADING not in write_report(simulated_run).read_text()
    record = json.loads((simulated_run / "record.json").read_text())
    record["config"]["campaign"]["data"]["diagnoses"] = DIAGNOSES
    record["runs"][0]["rounds"] = with_labels(record["runs"][0]["rounds"])
    (simulated_run / "record.json").write_text(json.dumps(record))
    text = write_report(simulated_run).read_text()
    assert "<th>as “no finding”</th><th>as “tumour”</th><th>as “bleeding”</th>" in text
    assert "<td>north</td><td>192</td><td>48</td><td>25.0</td><td>45</td><td>3</td><td>0</td>" in text
    check_page(text)


def test_page_says_how_many_pseudo_labels_of_the_final_model_are_right(simulated_run: Path) -> None:
    record = json.loads((simulated_run / "record.json").read_text())
    counts = {"offered": 40, "accepted": 20, "known": 16, "right": 12}
    none = {"offered": 8, "accepted": 2, "known": 0, "right": 0}
    record["runs"][0]["pseudo_labels"] = {"valley": none, "north": counts, "elsewhere": counts}
    (simulated_run / "record.json").write_text(json.dumps(record))
    text = write_report(simulated_run).read_text()
    assert "Pseudo-labels of the final model" in text
    line = "<td>40</td><td>20</td><td>50.0</td><td>16</td><td>12</td><td>75.0</td>"
    assert f"<tr><td>north</td>{line}</tr>" in text
    assert "<tr><td>valley</td><td>8</td><td>2</td><td>25.0</td><td>0</td><td>–</td><td>–</td></tr>" in text
    assert "elsewhere</td>" not in text


@pytest.mark.parametrize("odd", [None, [], {"north": 3}, {"north": {"offered": "many"}}, {"north": {"right": 0.5}}])
def test_pseudo_labels_of_another_form_are_refused(simulated_run: Path, odd: Any) -> None:
    record = json.loads((simulated_run / "record.json").read_text())
    record["runs"][0]["pseudo_labels"] = odd
    (simulated_run / "record.json").write_text(json.dumps(record))
    with pytest.raises(DataError, match="record.json has a run that has no usable 'pseudo_labels'"):
        write_report(simulated_run)


def test_page_of_a_deployed_campaign_shows_it_where_the_records_have_it(deployed_run: Path) -> None:
    assert HEADING not in write_report(deployed_run).read_text()
    rounds = [json.loads(line) for line in (deployed_run / "rounds.jsonl").read_text().splitlines()]
    (deployed_run / "rounds.jsonl").write_text("".join(json.dumps(line) + "\n" for line in with_labels(rounds)))
    text = write_report(deployed_run).read_text()
    check_page(text)
    assert "of the final model" not in text


def check_page(text: str) -> None:
    assert HEADING in text
    assert "<td>north</td><td>240</td><td>0</td><td>240</td>" in text
    assert "<td>valley</td><td>–</td><td>–</td><td>–</td>" in text
    assert "north: the feature rank fell to 3.0 in round 3" in text
    assert "<h3>Weighted count of images that trained each part, all rounds</h3>" in text
    assert "one without as much as its term weighs in the loss" in text


def with_labels(rounds: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The first rounds with what MultiMix tells; a site that did not answer has no figures of any kind."""
    for record, more in zip(rounds, ROUNDS[:3], strict=False):
        record["images"] = more["images"]
        record["training"] = {site: record["training"][site] | told for site, told in more["training"].items()}
    return rounds


def test_counts_that_no_sum_can_hold_are_a_gap_and_no_crash() -> None:
    huge = {"training": {"north": training(1.7e308, 1.7e308, 0, 1.0)}, "images": {"north": images(1, 0, 1)}}
    found = label_section(run_of([huge, huge]), SITES, DIAGNOSES)
    assert found is not None
    assert (found.sites[0].offered, found.sites[0].by_class) == (None, (None, 0, 0))


def test_rank_and_selfreg_loss_are_explained_where_they_are_drawn(simulated_run: Path) -> None:
    record = json.loads((simulated_run / "record.json").read_text())
    for told in (site for each in record["runs"][0]["rounds"] for site in each["training"].values()):
        told |= {"feature_rank": 3.0, "loss_selfreg": 0.1}
    (simulated_run / "record.json").write_text(json.dumps(record))
    text = write_report(simulated_run).read_text()
    for title, words in (
        ("effective rank of the features", "How many different maps the channels of the recogniser"),
        ("SelfReg&#39;s loss, training", "How far the network&#39;s inner features are from the last ones"),
    ):
        assert f"<figcaption>{title}<small>{words}" in text
