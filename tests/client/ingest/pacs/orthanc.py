"""A real Orthanc on loopback and free ports, started for a test and stopped by its process id."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ORTHANC = shutil.which("Orthanc") or "/usr/sbin/Orthanc"
PLUGINS = Path("/usr/share/orthanc/plugins")
DICOMWEB = PLUGINS / "libOrthancDicomWeb.so"
MISSING = "needs Debian's orthanc and orthanc-dicomweb: apt-get install orthanc orthanc-dicomweb orthanc-gdcm"
USER, PASSWORD, TITLE, OURS = "alice", "of wonderland", "TESTPACS", "WARDROUND"


def is_there() -> bool:
    return Path(ORTHANC).exists() and DICOMWEB.exists()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass(frozen=True)
class Orthanc:
    http: int
    dicom: int
    ours: int
    """The port that C-MOVE to us goes to."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.http}/dicom-web"


@contextmanager
def orthanc(folder: Path) -> Iterator[Orthanc]:
    server = Orthanc(free_port(), free_port(), free_port())
    config = {
        "Name": "test",
        "StorageDirectory": str(folder / "storage"),
        "IndexDirectory": str(folder / "index"),
        "HttpPort": server.http,
        "DicomPort": server.dicom,
        "DicomAet": TITLE,
        "DicomCheckCalledAet": True,
        "DicomCheckModalityHost": False,
        "DicomAlwaysAllowEcho": False,
        "DicomAlwaysAllowStore": False,
        "DicomModalities": {"ours": {"AET": OURS, "Host": "127.0.0.1", "Port": server.ours, "AllowGet": True,
                                     "AllowMove": True, "AllowFind": True, "AllowStore": True, "AllowEcho": True}},
        "RemoteAccessAllowed": False,
        "AuthenticationEnabled": True,
        "RegisteredUsers": {USER: PASSWORD},
        "SslEnabled": False,
        "Plugins": [str(path) for path in PLUGINS.glob("lib*.so") if "DicomWeb" in path.name or "Gdcm" in path.name],
        "DicomWeb": {"Enable": True, "Root": "/dicom-web/"},
    }  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "orthanc.json").write_text(json.dumps(config))
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen([ORTHANC, str(folder / "orthanc.json")], stdout=log, stderr=log, cwd=folder)
        try:
            _wait(server, process, folder)
            yield server
        finally:
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _wait(server: Orthanc, process: subprocess.Popen[bytes], folder: Path) -> None:
    for _ in range(300):
        if process.poll() is not None:
            break
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{server.http}/system", timeout=1)
        except urllib.error.HTTPError:
            return  # it asks for a password: it serves
        except OSError:
            time.sleep(0.1)
    raise AssertionError((folder / "log").read_text()[-2000:])
