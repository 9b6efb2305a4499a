"""The ledger survives restarts and kills, and whatever happens to its lines it never counts less than was spent."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from shared.errors import DataError
from shared.privacy.accountant import Steps, epsilon
from shared.privacy.ledger import HEAD, LEDGER, Charge, append, held, read_ledger, spent_in_total, spent_on, summary

ONE = Charge(
    campaign="a" * 64,
    name="first",
    unit="patient",
    round=1,
    multiplier=2.0,
    rate=0.1,
    steps=20,
    delta=1e-5,
    epsilon=8.0,
)


def filled(home: Path, count: int = 3) -> tuple[Charge, ...]:
    for round in range(1, count + 1):
        append(home, replace(ONE, round=round))
    return read_ledger(home)


def test_what_was_charged_is_read_again_after_a_restart(tmp_path: Path) -> None:
    assert read_ledger(tmp_path) == ()
    charges = filled(tmp_path)
    assert [charge.round for charge in charges] == [1, 2, 3]
    assert all(charge.at for charge in charges)
    code = (
        "import sys, pathlib; from shared.privacy.ledger import read_ledger, spent_on; "
        "print(spent_on(read_ledger(pathlib.Path(sys.argv[1]))))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    assert float(done.stdout) == pytest.approx(epsilon([Steps(2.0, 0.1, 60)], 1e-5))
    assert (tmp_path / LEDGER).stat().st_mode & 0o777 == 0o600


def test_a_site_that_is_killed_after_it_wrote_has_spent_what_it_wrote(tmp_path: Path) -> None:
    code = (
        "import sys, pathlib, os, signal; from tests.shared.privacy.test_ledger import ONE; "
        "from shared.privacy.ledger import append; append(pathlib.Path(sys.argv[1]), ONE); "
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    root = Path(__file__).parents[3]
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], cwd=root, check=False)
    assert done.returncode == -signal.SIGKILL
    assert len(read_ledger(tmp_path)) == 1


def test_a_kill_between_line_and_head_still_counts_the_line(tmp_path: Path) -> None:
    filled(tmp_path, 2)
    head = (tmp_path / HEAD).read_bytes()
    append(tmp_path, replace(ONE, round=3))
    (tmp_path / HEAD).write_bytes(head)
    assert len(read_ledger(tmp_path)) == 3


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda text: text[:-20], "not whole"),
        (lambda text: text.replace(b'"steps": 20', b'"steps": 2', 1), "does not follow"),
        (lambda text: text.replace(b'"multiplier": 2.0', b'"multiplier": "x"'), "damaged"),
        (lambda text: text.replace(b'"multiplier": 2.0', b'"multiplier": NaN'), "damaged"),
        (lambda text: b"".join(text.splitlines(keepends=True)[1:]), "does not follow"),
        (lambda text: b"".join(text.splitlines(keepends=True)[:2]), "lacks lines"),
        (lambda text: b"".join(reversed(text.splitlines(keepends=True))), "does not follow"),
        (lambda text: text + text.splitlines(keepends=True)[-1], "does not follow"),
        (lambda text: text + b"{}\n", "damaged"),
        (lambda text: text + b"\xff\n", "damaged"),
        (lambda text: b"", "lacks lines"),
    ],
)
def test_damage_stops_the_site(tmp_path: Path, damage: object, reason: str) -> None:
    filled(tmp_path)
    path = tmp_path / LEDGER
    path.write_bytes(damage(path.read_bytes()))  # type: ignore[operator]
    with pytest.raises(DataError, match=reason):
        read_ledger(tmp_path)


def test_a_ledger_that_is_gone_stops_the_site(tmp_path: Path) -> None:
    filled(tmp_path)
    (tmp_path / LEDGER).unlink()
    with pytest.raises(DataError, match="is gone"):
        read_ledger(tmp_path)


def test_the_last_line_changed_is_found_by_the_head(tmp_path: Path) -> None:
    filled(tmp_path)
    path = tmp_path / LEDGER
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[:-1], lines[-1].replace(b'"steps": 20', b'"steps": 2')]))
    with pytest.raises(DataError, match="lacks lines"):
        read_ledger(tmp_path)


def _one_more(home: str) -> None:
    with held(Path(home)):
        read_ledger(Path(home))
        append(Path(home), ONE)


def test_processes_that_charge_at_once_lose_nothing(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=_one_more, args=(str(tmp_path),)) for _ in range(8)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert len(read_ledger(tmp_path)) == 8


def test_a_full_disk_is_told_and_charges_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    filled(tmp_path)

    def full(descriptor: int, data: bytes) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(DataError, match="disk may be full"):
        append(tmp_path, ONE)
    monkeypatch.undo()
    assert len(read_ledger(tmp_path)) == 3


def test_the_total_of_a_patient_counts_a_sites_noise_as_half(tmp_path: Path) -> None:
    of_site = replace(ONE, campaign="b" * 64, name="second", unit="site", rate=1.0, steps=1, multiplier=6.0, delta=1e-6)
    charges = (ONE, of_site)
    assert spent_in_total(charges) == pytest.approx(epsilon([Steps(2.0, 0.1, 20), Steps(3.0, 1.0, 1)], 1e-6))
    told = summary(charges, 10.0)
    assert [row["name"] for row in told["campaigns"]] == ["first", "second"]
    assert told["campaigns"][0]["spent"] == spent_on([ONE])
    assert told["most"] == 10.0
    assert summary((), None) == {"campaigns": [], "total": 0.0, "delta": None, "most": None}
