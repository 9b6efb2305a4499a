"""A few programs in the foreground: started, restarted when they die, all gone when this process is told to stop.

In: `Program`s and a folder for logs and the record of what runs. Every program is the leader of its own process group,
so that its children go with it; nothing is ever stopped by name. A supervisor that was itself killed leaves its
programs behind: the next one finds them in the record (pid and start time) and stops them before it starts its own.
"""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
import sysconfig
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from shared.errors import ConfigError

BACK_OFF_S = (0.5, 1.0, 2.0, 5.0, 10.0)
HEALTHY_S = 60.0
"""A program that lived this long starts again at the first back-off."""
STOP_S = 8.0
"""From SIGTERM to SIGKILL."""
LOG_BYTES = 20_000_000
"""A log above this is moved to NAME.log.1 when its program starts."""


@dataclass(frozen=True, slots=True)
class Program:
    """One child: what to run and in which environment (nothing is inherited beside it)."""

    name: str
    command: tuple[str, ...]
    environment: Mapping[str, str]


@dataclass(slots=True)
class _Running:
    program: Program
    process: subprocess.Popen[bytes] | None = None
    started: float = 0.0
    starts: int = 0
    failures: int = 0
    next_start: float = 0.0
    last_exit: int | None = None


@dataclass(slots=True)
class _Record:
    path: Path
    last: dict[str, Any] = field(default_factory=dict)


def environment_of(home: Path, *, threads: int = 1, path: str | None = None) -> dict[str, str]:
    """The environment of a Flower process: no telemetry, no update check, no installation at run time, own home."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("FLWR_", "PYTHON", "WARDROUND_"))}
    kept |= {key: os.environ[key] for key in ("WARDROUND_KEY_FILE", "WARDROUND_PASSPHRASE") if key in os.environ}
    loopback = ",".join(filter(None, (kept.get("NO_PROXY", kept.get("no_proxy", "")), "127.0.0.1", "localhost")))
    return kept | {
        "FLWR_HOME": str(home),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "OMP_NUM_THREADS": str(threads),
        "OMP_WAIT_POLICY": "PASSIVE",  # waiting threads sleep: spinning ones starve whoever shares the cores
        "NO_PROXY": loopback,
        "no_proxy": loopback,
        "PATH": path if path is not None else os.pathsep.join((scripts_folder(), kept.get("PATH", os.defpath))),
    }


def scripts_folder() -> str:
    """Where this Python's own console scripts are."""
    return sysconfig.get_path("scripts")


def script(name: str) -> str:
    """The full path of a console script that is installed beside this Python."""
    path = Path(scripts_folder()) / name
    if not path.is_file():
        raise ConfigError(f"{name} is not installed beside this Python; install wardround with its dependencies")
    return str(path)


def supervise(make_programs: Callable[[], Sequence[Program]], folder: Path) -> None:
    """Run until SIGTERM or SIGINT, then stop everything.

    `make_programs` is called when this process is known to be the only one in the folder and nothing of an earlier one
    is left: the place for a look at the port.
    """
    stop = threading.Event()
    with _only_one(folder / "lock"), _signals_set(stop):
        stop_leftovers(folder)
        running = [_Running(program) for program in make_programs()]
        record = _Record(folder / "processes.json")
        try:
            while not stop.is_set():
                for one in running:
                    _keep(one, folder)
                _write(record, running)
                stop.wait(0.5)
        finally:
            _stop([one.process for one in reversed(running) if one.process is not None])
            record.path.unlink(missing_ok=True)


def _keep(one: _Running, folder: Path) -> None:
    now = time.monotonic()
    if one.process is not None and one.process.poll() is not None:
        one.last_exit = one.process.returncode
        one.failures = 1 if now - one.started > HEALTHY_S else one.failures + 1
        one.next_start = now + BACK_OFF_S[min(one.failures, len(BACK_OFF_S)) - 1]
        _kill_group(one.process.pid, signal.SIGKILL)  # children of a dead program work for nobody
        one.process = None
        wait = f"started again in {one.next_start - now:g} s"
        print(
            f"{one.program.name} ended with {one.last_exit}; {wait}; see logs/{one.program.name}.log", file=sys.stderr
        )
    if one.process is None and now >= one.next_start:
        one.process, one.started, one.starts = _start(one.program, folder), now, one.starts + 1


def _start(program: Program, folder: Path) -> subprocess.Popen[bytes]:
    logs = folder / "logs"
    logs.mkdir(exist_ok=True)
    path = logs / f"{program.name}.log"
    if path.exists() and path.stat().st_size > LOG_BYTES:
        path.replace(path.with_suffix(".log.1"))
    with path.open("ab") as log:
        path.chmod(0o600)
        return subprocess.Popen(
            program.command,
            cwd=folder,
            env=dict(program.environment),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


# ------------------------------------------------------------------------------------------------- the record on disk


def _write(record: _Record, running: Sequence[_Running]) -> None:
    programs = {
        one.program.name: {
            "pid": one.process.pid if one.process else None,
            "created": _created(one.process.pid) if one.process else None,
            "starts": one.starts,
            "last_exit": one.last_exit,
        }
        for one in running
    }
    state = {"supervisor": {"pid": os.getpid(), "created": _created(os.getpid())}, "programs": programs}
    if state != record.last:
        partial = record.path.with_suffix(".tmp")
        partial.write_text(json.dumps(state, indent=1))
        partial.replace(record.path)
        record.last = state


def read_record(folder: Path) -> dict[str, Any]:
    """What runs in a folder: {"running": bool, "programs": {name: {"pid", "alive", "starts", "last_exit"}}}."""
    try:
        state = json.loads((folder / "processes.json").read_text())
    except (OSError, ValueError):
        return {"running": False, "programs": {}}
    programs = {
        name: {"pid": entry["pid"], "alive": _alive(entry), "starts": entry["starts"], "last_exit": entry["last_exit"]}
        for name, entry in state["programs"].items()
    }
    return {"running": _alive(state["supervisor"]), "programs": programs}


def stop_leftovers(folder: Path) -> None:
    """Stop the programs of a supervisor that was killed; only pids whose start time is the recorded one."""
    try:
        state = json.loads((folder / "processes.json").read_text())
    except (OSError, ValueError):
        return
    left = [entry["pid"] for entry in state["programs"].values() if _alive(entry)]
    for pid in left:
        _kill_group(pid, signal.SIGTERM)
    psutil.wait_procs([psutil.Process(pid) for pid in left if psutil.pid_exists(pid)], timeout=STOP_S)
    for pid in left:
        _kill_group(pid, signal.SIGKILL)  # also what a leader that ended left behind


def _alive(entry: Mapping[str, Any]) -> bool:
    return entry["pid"] is not None and _created(entry["pid"]) == entry["created"]


def _created(pid: int) -> float | None:
    try:
        return psutil.Process(pid).create_time()
    except psutil.Error:
        return None


# ------------------------------------------------------------------------------------------------- stopping


def _stop(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    for process in processes:
        _kill_group(process.pid, signal.SIGTERM)
    deadline = time.monotonic() + STOP_S
    for process in processes:
        try:
            process.wait(max(deadline - time.monotonic(), 0.1))
        except subprocess.TimeoutExpired:
            _kill_group(process.pid, signal.SIGKILL)
            process.wait()
    for process in processes:
        _kill_group(process.pid, signal.SIGKILL)  # what the leader left behind


def _kill_group(pid: int, number: int) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, number)


@contextmanager
def _only_one(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ConfigError(
                f"another process serves the folder {path.parent.name!r} already; stop it first"
            ) from None
        yield


@contextmanager
def _signals_set(stop: threading.Event) -> Iterator[None]:
    before = {number: signal.signal(number, lambda *_: stop.set()) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
