"""A round on disk is whole or not there; a damaged one is named, and never taken for a good one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from shared import checkpoint
from shared.checkpoint import FederationState, load_latest, load_round, rounds_saved, save_round, write_atomically
from shared.errors import DataError, RefusedError

DIGEST = "d" * 64


def state(number: int) -> FederationState:
    rng = np.random.default_rng(number)
    weights = {"z.last": rng.random((3, 2), dtype=np.float32), "a.first": rng.random(4, dtype=np.float32)}
    weights["s.scalar"] = np.float32(number) * np.ones((), np.float32)
    moments = {name: np.asarray(values * 2) for name, values in weights.items()}
    return FederationState("demo", DIGEST, "e" * 64, number, weights, {"m": moments, "v": weights})


def test_a_state_comes_back_bit_for_bit_and_in_order(tmp_path: Path) -> None:
    saved = state(3)
    save_round(tmp_path, saved, {"round": 3, "participants": ["a", "b"], "num_samples": {"a": 4}})
    loaded = load_latest(tmp_path, DIGEST)
    assert loaded is not None
    assert list(loaded.state.weights) == list(saved.weights)  # the architecture digest goes by order
    for part in (loaded.state.weights, *loaded.state.optimiser.values()):
        assert all(values.dtype == np.float32 for values in part.values())
    for name, values in saved.weights.items():
        assert loaded.state.weights[name].tobytes() == values.tobytes()
        assert loaded.state.weights[name].shape == values.shape
        assert loaded.state.optimiser["m"][name].tobytes() == saved.optimiser["m"][name].tobytes()
    assert (loaded.state.round, loaded.state.campaign, loaded.state.architecture_digest) == (3, "demo", "e" * 64)
    assert loaded.record["participants"] == ["a", "b"]


def test_the_last_round_counts_by_number(tmp_path: Path) -> None:
    assert load_latest(tmp_path, DIGEST) is None
    for number in (9, 10, 2):
        save_round(tmp_path, state(number), {})
    assert rounds_saved(tmp_path) == [2, 9, 10]
    loaded = load_latest(tmp_path, DIGEST)
    assert loaded is not None
    assert loaded.state.round == 10


def test_a_save_killed_before_the_rename_leaves_the_round_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_round(tmp_path, state(1), {})

    def killed(source: Path, target: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        save_round(tmp_path, state(2), {})
    monkeypatch.undo()
    assert rounds_saved(tmp_path) == [1]
    save_round(tmp_path, state(2), {})  # the leftover is in nobody's way
    assert rounds_saved(tmp_path) == [1, 2]
    assert not list(tmp_path.glob(".partial*"))


@pytest.mark.parametrize("file", [checkpoint.WEIGHTS, checkpoint.OPTIMISER, checkpoint.MANIFEST])
@pytest.mark.parametrize("damage", ["flip", "cut", "gone"])
def test_damage_is_found_and_the_way_out_named(tmp_path: Path, file: str, damage: str) -> None:
    path = save_round(tmp_path / "checkpoints", state(4), {}) / file
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    match damage:
        case "flip":
            path.write_bytes(bytes(data) if file != checkpoint.MANIFEST else b"{]")
        case "cut":
            path.write_bytes(bytes(data[: len(data) // 3]))
        case "gone":
            path.unlink()
    with pytest.raises(DataError, match="checkpoint round_00004 is damaged") as refused:
        load_latest(tmp_path / "checkpoints", DIGEST)
    assert str(refused.value).endswith("remove the folder checkpoints/round_00004 to resume from before")
    assert str(tmp_path) not in str(refused.value)


@pytest.mark.parametrize(
    ("key", "value"),
    [("files", {}), ("names", ["other"]), ("round", "many"), ("format", 2), ("optimiser", ["q"]), ("record", 3)],
)
def test_a_manifest_that_does_not_fit_its_files_is_damage(tmp_path: Path, key: str, value: object) -> None:
    path = save_round(tmp_path, state(1), {}) / checkpoint.MANIFEST
    path.write_text(json.dumps({**json.loads(path.read_text()), key: value}))
    with pytest.raises(DataError, match="round_00001 is damaged"):
        load_round(tmp_path, 1, DIGEST)


def test_another_campaigns_checkpoint_is_refused_and_left_alone(tmp_path: Path) -> None:
    save_round(tmp_path, state(1), {})
    with pytest.raises(RefusedError, match="belongs to campaign digest dddddddddddd, this run has eeeeeeeeeeee"):
        load_latest(tmp_path, "e" * 64)
    assert rounds_saved(tmp_path) == [1]


def test_a_round_done_again_replaces_its_folder(tmp_path: Path) -> None:
    save_round(tmp_path, state(2), {})
    changed = replace(state(2), weights={name: values + 1 for name, values in state(2).weights.items()})
    save_round(tmp_path, changed, {})
    np.testing.assert_array_equal(load_round(tmp_path, 2, DIGEST).state.weights["a.first"], changed.weights["a.first"])


def test_a_file_is_old_or_new_never_half(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_atomically(tmp_path / "f", b"old")
    monkeypatch.setattr(os, "replace", lambda *paths: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        write_atomically(tmp_path / "f", b"new, and longer")
    assert (tmp_path / "f").read_bytes() == b"old"


def test_the_coordinators_rooms_need_no_torch_and_no_flower() -> None:
    rooms = "shared.checkpoint, server.collect, server.strategies, server.rounds, server.membership, server.records"
    code = f"import {rooms}, sys; print([n for n in ('torch', 'flwr', 'scipy', 'monai') if n in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
