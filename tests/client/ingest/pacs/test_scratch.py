"""What was fetched and is still identified never outlives its command by more than the next one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from client.ingest.pacs.scratch import TERMINATED, scratch

HOLDS = """
import sys, time
from pathlib import Path
from client.ingest.pacs.scratch import scratch
with scratch(Path(sys.argv[1])) as folder:
    (folder / "000001.dcm").write_bytes(b"x")
    print(folder, flush=True)
    time.sleep(60)
"""


def holder(home: Path) -> tuple[subprocess.Popen[str], Path]:
    process = subprocess.Popen([sys.executable, "-c", HOLDS, str(home)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    return process, Path(process.stdout.readline().strip())


def end(process: subprocess.Popen[str], number: int) -> int:
    process.send_signal(number)
    with process:
        return process.wait(20)


def test_a_terminated_command_removes_its_folder(tmp_path: Path) -> None:
    process, folder = holder(tmp_path)
    assert (folder / "000001.dcm").exists()
    assert folder.stat().st_mode & 0o777 == 0o700
    assert end(process, signal.SIGTERM) == TERMINATED
    assert not folder.exists()


def test_a_killed_commands_folder_goes_with_the_next_and_a_living_ones_stays(tmp_path: Path) -> None:
    living, kept = holder(tmp_path)
    killed, left = holder(tmp_path)
    end(killed, signal.SIGKILL)
    assert left.exists()
    try:
        with scratch(tmp_path) as folder:
            assert not left.exists()
            assert kept.exists()
        assert not folder.exists()
    finally:
        end(living, signal.SIGTERM)
    assert [path.name for path in tmp_path.iterdir()] == [".fetched-lock"]


def test_an_error_inside_removes_the_folder(tmp_path: Path) -> None:
    with pytest.raises(FileExistsError), scratch(tmp_path) as folder:
        folder.mkdir()
    assert not folder.exists()
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_what_is_only_named_alike_is_left_alone(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    os.symlink(elsewhere, tmp_path / ".fetched-link")
    with scratch(tmp_path):
        pass
    assert elsewhere.is_dir()


SAYS = """
import threading
import client.ingest.pacs.entity
from pydicom.dataset import Dataset
sent = Dataset()
thread = threading.Thread(target=lambda: setattr(sent, "SOPInstanceUID", "Doe^Jane"))
thread.start(), thread.join()
sent.Modality = "Doe Jane 1960-01-01"
"""


def test_values_against_the_standard_are_not_quoted_on_the_terminal() -> None:
    told = subprocess.run([sys.executable, "-c", SAYS], capture_output=True, text=True, check=True)
    assert told.stdout + told.stderr == ""
