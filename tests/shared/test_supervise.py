"""Supervision with small real programs: restart, stop by group, leftovers, one at a time."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from shared.errors import ConfigError
from shared.supervise import Program, environment_of, read_record, script, supervise

SUPERVISOR = """
import sys
from pathlib import Path
from shared.supervise import Program, supervise
supervise(lambda: [Program("child", (sys.executable, "-c", sys.argv[2]), {"PATH": ""})], Path(sys.argv[1]))
"""
SLEEP = "import time; time.sleep(300)"
WITH_GRANDCHILD = (
    "import subprocess, sys, time;"
    "p = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(300)']);"
    "open('grandchild', 'w').write(str(p.pid)); time.sleep(300)"
)


def wait_for(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)


def started(folder: Path, code: str) -> subprocess.Popen[bytes]:
    process = subprocess.Popen((sys.executable, "-c", SUPERVISOR, str(folder), code), stderr=subprocess.PIPE)
    wait_for(lambda: (read_record(folder)["running"] and child_pid(folder) is not None) or process.poll() is not None)
    return process


def child_pid(folder: Path) -> int | None:
    pid: int | None = read_record(folder)["programs"].get("child", {}).get("pid")
    return pid


def gone(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def ended(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.communicate()


def test_a_killed_program_comes_back_and_all_go_on_sigterm(tmp_path: Path) -> None:
    supervisor = started(tmp_path, WITH_GRANDCHILD)
    try:
        wait_for((tmp_path / "grandchild").exists)
        first = child_pid(tmp_path)
        assert first is not None
        orphan = int((tmp_path / "grandchild").read_text())
        (tmp_path / "grandchild").unlink()
        os.kill(first, signal.SIGKILL)
        wait_for(lambda: child_pid(tmp_path) not in (None, first))
        wait_for(lambda: gone(orphan))  # the killed program's child works for nobody
        record = read_record(tmp_path)["programs"]["child"]
        assert (record["starts"], record["last_exit"]) == (2, -signal.SIGKILL)
        wait_for((tmp_path / "grandchild").exists)
        pids = [child_pid(tmp_path), int((tmp_path / "grandchild").read_text())]
        supervisor.send_signal(signal.SIGTERM)
        assert supervisor.wait(15) == 0
        assert all(gone(pid) for pid in pids if pid)
        assert read_record(tmp_path) == {"running": False, "programs": {}}
    finally:
        ended(supervisor)


def test_what_a_killed_supervisor_left_is_stopped_by_the_next(tmp_path: Path) -> None:
    first = started(tmp_path, SLEEP)
    left = child_pid(tmp_path)
    assert left is not None
    ended(first)
    assert not gone(left)
    assert not read_record(tmp_path)["running"]
    second = started(tmp_path, SLEEP)
    try:
        wait_for(lambda: child_pid(tmp_path) != left)
        assert gone(left)
    finally:
        second.send_signal(signal.SIGTERM)
        second.wait(15)
        ended(second)


def test_a_recorded_pid_that_is_another_process_now_is_left_alone(tmp_path: Path) -> None:
    stranger = subprocess.Popen((sys.executable, "-c", SLEEP), start_new_session=True)
    try:
        program = {"pid": stranger.pid, "created": 1.0, "starts": 1, "last_exit": None}
        record = {"supervisor": {"pid": 1, "created": 1.0}, "programs": {"child": program}}
        (tmp_path / "processes.json").write_text(json.dumps(record))
        assert read_record(tmp_path)["programs"]["child"]["alive"] is False
        supervisor = started(tmp_path, SLEEP)
        supervisor.send_signal(signal.SIGTERM)
        supervisor.wait(15)
        ended(supervisor)
        assert stranger.poll() is None
    finally:
        stranger.kill()
        stranger.wait()


def test_two_supervisors_in_one_folder_are_refused(tmp_path: Path) -> None:
    first = started(tmp_path, SLEEP)
    try:
        before = child_pid(tmp_path)
        with pytest.raises(ConfigError, match="stop it first"):
            supervise(list, tmp_path)
        assert child_pid(tmp_path) == before
    finally:
        first.send_signal(signal.SIGTERM)
        first.wait(15)
        ended(first)


def test_a_program_that_dies_at_once_is_started_ever_more_slowly(tmp_path: Path) -> None:
    """0.5 s, 1 s, 2 s between starts: at most four starts in the first three seconds, not hundreds."""
    supervisor = started(tmp_path, "raise SystemExit(7)")
    try:
        time.sleep(3)
        record = read_record(tmp_path)["programs"]["child"]
        assert 2 <= record["starts"] <= 4
        assert record["last_exit"] == 7
    finally:
        supervisor.send_signal(signal.SIGTERM)
        supervisor.wait(15)
        ended(supervisor)


def test_a_refusal_to_start_leaves_nothing_running(tmp_path: Path) -> None:
    def refuse() -> list[Program]:
        raise ConfigError("port in use")

    before = threading.active_count()
    with pytest.raises(ConfigError, match="port in use"):
        supervise(refuse, tmp_path)
    assert threading.active_count() == before
    assert read_record(tmp_path) == {"running": False, "programs": {}}


def test_environment_calls_nobody_and_inherits_no_python_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLWR_TELEMETRY_ENABLED", "1")
    monkeypatch.setenv("FLWR_TRACING_ENABLED", "1")
    monkeypatch.setenv("PYTHONPATH", "elsewhere")
    monkeypatch.setenv("NO_PROXY", "example.org")
    environment = environment_of(tmp_path, path="only-this")
    assert environment["FLWR_TELEMETRY_ENABLED"] == "0"
    assert environment["FLWR_DISABLE_UPDATE_CHECK"] == "1"
    assert environment["FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION"] == "1"
    assert environment["FLWR_HOME"] == str(tmp_path)
    assert environment["PATH"] == "only-this"
    assert environment["NO_PROXY"] == "example.org,127.0.0.1,localhost"
    assert not {"PYTHONPATH", "FLWR_TRACING_ENABLED"} & environment.keys()


def test_a_script_that_is_not_installed_is_named() -> None:
    with pytest.raises(ConfigError, match="no-such-program is not installed"):
        script("no-such-program")
