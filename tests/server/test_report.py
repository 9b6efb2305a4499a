"""write_report: by the contract, self-contained, the same again from the folder alone, no picture when deployed."""

from __future__ import annotations

import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from server.report import claims_table, summary_table, write_report
from shared.errors import DataError

CONTRACT = {"experiment", "seeds", "config_digest", "versions", "wall_s", "rows", "claims"}


class Page(HTMLParser):
    """Collects what a browser would fetch or run, and whether tags close."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.places: list[str] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for name, value in attrs:
            if name in ("src", "href", "xlink:href", "srcset", "action") and value:
                self.places.append(value)
            assert not name.startswith("on"), f"{tag} runs {name}"

    def handle_data(self, data: str) -> None:
        self.text += data


def strict(path: Path) -> Any:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    return json.loads(path.read_text(), parse_constant=refuse)


def test_report_json_has_the_keys_of_the_contract_and_no_other(simulated_run: Path) -> None:
    write_report(simulated_run)
    report = strict(simulated_run / "report.json")
    assert report.keys() == CONTRACT
    row_keys = {"method", "setting", "seed", "data", "degradation", "split", "site", "test_site", "n"}
    assert all(row_keys <= row.keys() for row in report["rows"])
    assert [claim["holds"] for claim in report["claims"]] == [True, True, False]


def test_not_a_number_is_left_out_and_never_written(simulated_run: Path) -> None:
    record = json.loads((simulated_run / "record.json").read_text())
    record["rows"][0] |= {"psnr_db": float("inf"), "ssim": float("nan"), "auc": None, "dice": 0.5}
    (simulated_run / "record.json").write_text(json.dumps(record))
    write_report(simulated_run)
    row = strict(simulated_run / "report.json")["rows"][0]
    assert row["dice"] == 0.5
    assert not {"psnr_db", "ssim", "auc"} & row.keys()


def test_page_fetches_nothing_and_runs_nothing(simulated_run: Path) -> None:
    page = Page(write_report(simulated_run).read_text())
    assert not {"script", "link", "iframe", "object", "form"} & set(page.tags)
    assert all(place.startswith(("data:image/png;base64,", "#")) for place in page.places)
    assert "image" in page.tags
    assert "svg" in page.tags


def test_page_shows_what_does_not_hold_and_why(simulated_run: Path) -> None:
    page = Page(write_report(simulated_run).read_text())
    assert "2 of 3 claims hold." in page.text
    assert page.text.count("does not hold") == 1
    assert "weakest at valley: 0.81 against 0.84 pooled" in page.text
    assert "from 20.00 dB (degraded) to 26.30 dB (enhanced), +6.30 dB" in page.text
    assert "Research use only" in page.text


def test_same_folder_gives_the_same_bytes_wherever_it_lies(simulated_run: Path, tmp_path: Path) -> None:
    first = write_report(simulated_run).read_bytes()
    copy = tmp_path / "years later"
    shutil.copytree(simulated_run, copy)
    (copy / "report.html").unlink()
    assert write_report(copy).read_bytes() == first


def test_text_of_others_is_escaped(simulated_run: Path) -> None:
    record = json.loads((simulated_run / "record.json").read_text())
    attack = "<script>alert(1)</script>"
    record["experiment"] = attack
    record["claims"][0]["claim"] = attack
    record["sites"] = {attack: {"patients": attack}}
    for row in record["rows"]:
        row["test_site"] = attack if row["test_site"] == "north" else row["test_site"]
        row["method"] = attack
    (run,) = record["runs"]
    run["method"] = attack
    run["rounds"][0]["training"] = {attack: {"loss_enhance": 0.1}}
    (simulated_run / "record.json").write_text(json.dumps(record))
    assert "<script" not in write_report(simulated_run).read_text().lower()


def test_deployed_run_has_no_picture_even_if_some_lie_in_its_folder(deployed_run: Path, simulated_run: Path) -> None:
    deployed = deployed_run.parent / "deployed"
    shutil.copytree(deployed_run, deployed)
    (deployed / "record.json").unlink(missing_ok=True)
    shutil.copytree(simulated_run / "pictures", deployed / "pictures", dirs_exist_ok=True)
    text = write_report(deployed).read_text()
    assert "data:image" not in text
    assert "<image" not in text


def test_without_pictures_a_simulation_still_has_its_report(simulated_run: Path) -> None:
    shutil.rmtree(simulated_run / "pictures")
    page = Page(write_report(simulated_run).read_text())
    assert "image" not in page.tags
    assert "Every model on every site's test" in page.text


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda run: (run / "record.json").write_text("{"), "record.json is not readable JSON"),
        (lambda run: (run / "record.json").write_text("[]"), "must hold a JSON object"),
        (lambda run: (run / "record.json").write_text("{}"), "no usable 'experiment'"),
        (lambda run: (run / "record.json").unlink(), "neither record.json .simulation. nor rounds.jsonl"),
        (lambda run: next((run / "pictures").iterdir()).write_bytes(b"PK\x03\x04 cut"), "cannot be read"),
    ],
    ids=["cut", "list", "empty", "missing", "picture"],
)
def test_damaged_input_is_refused_in_one_line_and_writes_nothing(simulated_run: Path, damage: Any, reason: str) -> None:
    damage(simulated_run)
    with pytest.raises(DataError, match=reason) as refusal:
        write_report(simulated_run)
    assert "\n" not in str(refusal.value)
    assert str(simulated_run) not in str(refusal.value)
    assert not (simulated_run / "report.html").exists()
    assert not (simulated_run / "report.json").exists()


def test_pickled_picture_is_refused(simulated_run: Path) -> None:
    path = next((simulated_run / "pictures").iterdir())
    np.savez(path, **{"example/north/median/clean": np.array([{"a": 1}], dtype=object)})
    with pytest.raises(DataError, match="cannot be read"):
        write_report(simulated_run)


def test_tables_for_the_terminal_name_every_setting_and_verdict(simulated_run: Path) -> None:
    write_report(simulated_run)
    report = strict(simulated_run / "report.json")
    console = Console(width=140, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(summary_table(report), claims_table(report))
    text = console.export_text()
    for word in ("clean", "degraded", "local", "pooled", "federated", "26.30", "0.835", "yes", "no"):
        assert re.search(rf"\b{word}\b", text), word
