"""rounds.jsonl: one line per round, never half a one."""

from __future__ import annotations

from pathlib import Path

import pytest

from server.records import FILE, read_records, write_records


def test_records_come_back_in_order_and_replace_what_was_there(tmp_path: Path) -> None:
    write_records(tmp_path, [{"round": 1}, {"round": 2, "dropped": {"a": "offline"}}])
    write_records(tmp_path, [{"round": 1, "seconds": 0.5}])
    assert read_records(tmp_path) == [{"round": 1, "seconds": 0.5}]
    assert [path.name for path in tmp_path.iterdir()] == [FILE]


def test_a_folder_without_records_has_none(tmp_path: Path) -> None:
    assert read_records(tmp_path) == []


def test_lines_that_are_no_records_are_left_out(tmp_path: Path) -> None:
    (tmp_path / FILE).write_bytes(b'{"round": 1}\n[2]\n{"other": 3}\n\xff\n{"round": 4')
    assert read_records(tmp_path) == [{"round": 1}]


def test_what_json_cannot_say_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON compliant"):
        write_records(tmp_path, [{"round": 1, "loss": float("nan")}])
    assert not (tmp_path / FILE).exists()
