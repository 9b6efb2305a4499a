"""How a run ended, between two processes."""

from __future__ import annotations

from pathlib import Path

import pytest

from server.outcome import read_outcome, remove_outcome, write_outcome
from shared.errors import ConfigError, DataError, PeerError, RefusedError, WardroundError


def test_silence_means_under_way(tmp_path: Path) -> None:
    assert read_outcome(tmp_path) is None
    (tmp_path / "outcome.json").write_text('{"completed": tr')
    assert read_outcome(tmp_path) is None
    (tmp_path / "outcome.json").write_text('{"other": 1}')
    assert read_outcome(tmp_path) is None
    remove_outcome(tmp_path)
    remove_outcome(tmp_path)


@pytest.mark.parametrize("kind", [ConfigError, RefusedError, PeerError, DataError])
def test_an_error_comes_out_as_it_went_in(tmp_path: Path, kind: type[WardroundError]) -> None:
    write_outcome(tmp_path, kind("reason in one line"))
    outcome = read_outcome(tmp_path)
    assert outcome is not None
    with pytest.raises(kind, match="reason in one line") as error:
        outcome.raise_if_failed()
    assert type(error.value) is kind


def test_a_good_end(tmp_path: Path) -> None:
    write_outcome(tmp_path, PeerError("first"))
    write_outcome(tmp_path, None)
    outcome = read_outcome(tmp_path)
    assert outcome is not None
    outcome.raise_if_failed()
    assert [path.name for path in tmp_path.iterdir()] == ["outcome.json"]
