"""An adversary at the gateway: with nothing but ca.crt, then with a site's certificate. Real nginx, real SuperLink.

Two sites have joined by invitation and are online through the gateway, each behind its own forwarder. What an adversary
tries is refused for the reason that is meant to stop it, and the federation is as before: same keys, no run, both up.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest

import client.cli
import client.folder
import server.cli
import server.folder
from server import gateway, processes
from shared.errors import ConfigError
from shared.reach import free_port
from shared.supervise import read_record

pytestmark = [pytest.mark.timeout(600)]

SITES = ("north", "south")
NGINX = shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
NO_STREAM = NGINX is not None and not gateway.STREAM_MODULE.exists() and (
    "--with-stream=dynamic" in subprocess.run((NGINX, "-V"), capture_output=True, text=True, check=False).stderr
)  # fmt: skip
needs_nginx = pytest.mark.skipif(
    NGINX is None or NO_STREAM,
    reason="nginx or its stream module is not installed; on Debian: apt-get install nginx-light libnginx-mod-stream",
)
slow = pytest.mark.slow
LOCKED = (
    "control/start-run",
    "control/register-node",
    "control/list-nodes",
    "runtime/acquire-task",
    "runtime/pull-app",
)


@dataclass
class Federation:
    """Folders, ports, and the programs that this test started."""

    root: Path
    port: int
    started: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    @property
    def folder(self) -> Path:
        return self.root / "coordinator"

    @property
    def coordinator(self) -> server.folder.Coordinator:
        return server.folder.read(self.folder)

    def start(self, key: str, program: str, *arguments: str) -> None:
        with (self.root / f"{key}.out").open("ab") as output:
            command = (sys.executable, "-m", program, *arguments)
            self.started[key] = subprocess.Popen(command, stdout=output, stderr=output, start_new_session=True)

    def output(self, key: str) -> str:
        return (self.root / f"{key}.out").read_text()

    def clean_up(self) -> None:
        for process in self.started.values():
            process.terminate()
        for process in self.started.values():
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
        for folder in (self.folder, *(self.root / name for name in SITES)):
            for entry in read_record(folder)["programs"].values():
                if entry["alive"]:
                    with contextlib.suppress(ProcessLookupError):
                        os.killpg(entry["pid"], signal.SIGKILL)

    def state(self) -> dict[str, Any]:
        """What an adversary would want to change."""
        coordinator = self.coordinator
        runs = processes._flwr(coordinator, "list", processes.LINK, "--format", "json")
        return {"keys": processes.registered(coordinator), "runs": runs.get("runs"), "nodes": self.nodes()}

    def nodes(self) -> dict[str, str]:
        return processes.sites_known(self.coordinator)

    def ask(
        self, path: str, *, certificate: Path | None = None, body: bytes = b"", method: str = "POST"
    ) -> tuple[int, str]:
        """One request at the gateway, as an adversary makes it: the path goes out as it stands here."""
        context = ssl.create_default_context(cafile=str(self.folder / "ca" / "ca.crt"))
        if certificate is not None:
            context.load_cert_chain(certificate)
        connection = http.client.HTTPSConnection("127.0.0.1", self.port, timeout=20, context=context)
        try:
            connection.request(method, path, body, {"Content-Type": "application/protobuf"})
            answer = connection.getresponse()
            return answer.status, answer.read(4096).decode("utf-8", "replace")
        finally:
            connection.close()


def wait_for(what: str, condition: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited {seconds:g} s in vain: {what}"
        time.sleep(0.3)


def ok(code: int) -> None:
    assert code == 0


def three_free_ports() -> int:
    """Three in a row."""
    while True:
        first = free_port()
        with contextlib.ExitStack() as stack, contextlib.suppress(OSError, OverflowError):
            for port in range(first, first + 3):
                stack.enter_context(socket.socket()).bind(("127.0.0.1", port))
            return first


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Federation]:
    made = Federation(tmp_path_factory.mktemp("gateway"), three_free_ports())
    try:
        folder = str(made.folder)
        ok(server.cli.main(["init", folder, "--name", "test", "--port", str(three_free_ports())]))
        ok(server.cli.main(["gateway", folder, "--listen", "127.0.0.1", "--port", str(made.port)]))
        made.start("coordinator", "server.cli", "serve", folder, "--gateway")
        wait_for("the coordinator serves", lambda: "is served" in made.output("coordinator"), 60)
        for name in SITES:
            invitation = made.root / f"{name}.invite"
            ok(server.cli.main(["invite", folder, name, "--out", str(invitation)]))
            ok(client.cli.main(["join", str(invitation), str(made.root / name)]))
            made.start(name, "client.cli", "run", str(made.root / name))
        online = ["online"] * len(SITES)
        wait_for("both sites online", lambda: list(made.nodes().values()) == online, 120)
        yield made
    finally:
        made.clean_up()


def test_the_gateway_names_what_flower_asks_for_and_nothing_else() -> None:
    """The paths of the installed Flower, less the two that change who may take part."""
    from flwr.superlink.routers.fleet import router

    source = Path(router.__file__).read_text()
    assert 'prefix="/v1/fleet"' in source
    asked = set(re.findall(r'@router\.post\("/([a-z-]+)"\)', source))
    assert set(gateway.FLEET) == asked - {"register-node", "unregister-node"}


@needs_nginx
def test_nginx_accepts_the_configuration(tmp_path: Path) -> None:
    folder = tmp_path / "coordinator"
    ok(server.cli.main(["init", str(folder), "--name", "test"]))
    ok(server.cli.main(["gateway", str(folder), "--listen", "127.0.0.1"]))
    program = gateway.program(server.folder.read(folder))
    done = subprocess.run((*program.command[:-2], "-t"), capture_output=True, text=True, check=False)
    assert "test is successful" in done.stderr, done.stderr
    conf = folder / "gateway" / "nginx.conf"
    conf.write_text(conf.read_text().replace("ssl_crl ", "ssl_krl "))
    with pytest.raises(ConfigError, match='nginx does not accept gateway/nginx.conf: unknown directive "ssl_krl"'):
        gateway.program(server.folder.read(folder))
    ok(server.cli.main(["gateway", str(folder), "--listen", "127.0.0.1"]))
    text = (folder / "gateway" / "nginx.conf").read_text()
    assert "ssl_protocols TLSv1.3;" in text
    assert "TLSv1.2" not in text
    assert text.count("proxy_pass https://") == len(gateway.FLEET)


def test_no_gateway_for_a_name_that_the_certificate_is_not_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "coordinator"
    ok(server.cli.main(["init", str(folder), "--name", "test"]))
    assert server.cli.main(["gateway", str(folder), "--host", "other.example.org"]) == 2
    assert "not for other.example.org" in capsys.readouterr().err
    assert server.cli.main(["gateway", str(folder), "--port", "8442"]) == 2
    assert "three ports of its own" in capsys.readouterr().err
    assert server.folder.read(folder).gateway is None


@slow
@needs_nginx
def test_with_ca_crt_alone_nothing_answers(federation: Federation) -> None:
    """Submit a run, register a node, take a task, reach control and runtime: stopped for want of a certificate."""
    before = federation.state()
    for path in (*(f"/v1/{name}" for name in LOCKED), "/v1/fleet/register-node", "/v1/fleet/pull-messages", "/health"):
        status, words = federation.ask(path)
        assert (status, "No required SSL certificate was sent" in words) == (400, True), path
    assert federation.state() == before


@slow
@needs_nginx
def test_flowers_own_command_line_with_ca_crt_starts_no_run(federation: Federation, tmp_path: Path) -> None:
    """The attack as flower.md reports it: `flwr run` with the federation's certificate and nothing more."""
    before = federation.state()
    (tmp_path / "config.toml").write_text(
        f'[superlink]\ndefault = "x"\n\n[superlink.x]\naddress = "127.0.0.1:{federation.port}"\n'
        f'root-certificates = "{federation.folder / "ca" / "ca.crt"}"\n'
    )
    environment = processes.environment_of(tmp_path)
    for arguments in (("list", "x"), ("supernode", "list", "x")):
        command = (processes.script("flwr"), *arguments, "--format", "json")
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
        answer = processes.last_json(done.stdout)
        assert answer is not None
        assert answer.get("success") is False, done.stdout
        assert "400" in done.stdout
    assert federation.state() == before


@slow
@needs_nginx
@pytest.mark.parametrize(
    "path",
    [
        *(f"/v1/{name}" for name in LOCKED),
        "/v1/fleet/register-node",
        "/v1/fleet/unregister-node",
        "/v1/fleet/../control/start-run",
        "/v1/fleet/%2e%2e/control/start-run",
        "/v1/fleet/get-run/../../control/start-run",
        "//v1//control//start-run",
        "/v1/fleet/get-run/",
        "/V1/CONTROL/start-run",
        "/docs",
        "/",
    ],
)
def test_a_sites_certificate_opens_no_other_door(federation: Federation, path: str) -> None:
    certificate = federation.root / "north" / "tls.pem"
    status, words = federation.ask(path, certificate=certificate)
    assert (status, words) == (403, "nothing for sites here\n")


@slow
@needs_nginx
def test_a_detour_to_control_that_ends_at_a_fleet_path_arrives_as_that_path(federation: Federation) -> None:
    """nginx sees get-run behind the dots, and hands on get-run, never the raw path: Flower then wants a node's key."""
    before = federation.state()
    certificate = federation.root / "north" / "tls.pem"
    for path in ("/v1/control/start-run/../../fleet/get-run", "/v1/control/start-run/%2e%2e/%2e%2e/fleet/get-run"):
        status, _ = federation.ask(path, certificate=certificate)
        assert status == 401
    assert federation.state() == before


@slow
@needs_nginx
def test_a_sites_certificate_without_a_sites_key_takes_no_task(federation: Federation) -> None:
    before = federation.state()
    for name in gateway.FLEET:
        status, _ = federation.ask(f"/v1/fleet/{name}", certificate=federation.root / "north" / "tls.pem")
        assert status == 401, name
    assert federation.state() == before


@slow
@needs_nginx
def test_tls_1_2_and_the_servers_own_certificate_are_refused(federation: Federation, tmp_path: Path) -> None:
    context = ssl.create_default_context(cafile=str(federation.folder / "ca" / "ca.crt"))
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    with (
        socket.create_connection(("127.0.0.1", federation.port)) as raw,
        pytest.raises(ssl.SSLError, match="(?i)protocol.version"),
    ):
        context.wrap_socket(raw, server_hostname="127.0.0.1")
    coordinator = federation.coordinator
    both = tmp_path / "server.pem"  # of the right authority, for another purpose
    both.write_bytes(coordinator.server_key.read_bytes() + coordinator.server_certificate.read_bytes())
    status, words = federation.ask("/v1/fleet/get-run", certificate=both)
    assert (status, "The SSL certificate error" in words) == (400, True)


@slow
@needs_nginx
def test_a_body_that_no_site_sends_is_refused(federation: Federation) -> None:
    certificate = federation.root / "north" / "tls.pem"
    body = bytes(gateway.BODY_MB << 20) + b"more"
    with contextlib.suppress(ConnectionError, ssl.SSLError):  # nginx answers before it has read all of it
        status, words = federation.ask("/v1/fleet/push-object", certificate=certificate, body=body)
        assert (status, "Too Large" in words) == (413, True)
    field = b"\x7a\x80\x80\x80\x03"  # an unknown field of 6 MiB: a message that Flower can read
    status, _ = federation.ask("/v1/fleet/push-object", certificate=certificate, body=field + bytes(6 << 20))
    assert status == 401  # a chunk of Flower's size passes the gateway; the key is what is missing


@slow
@needs_nginx
def test_flowers_own_ports_are_on_loopback_alone(federation: Federation) -> None:
    """Read from the kernel: what listens, and where."""
    ports = {federation.coordinator.port, federation.coordinator.join_port, federation.coordinator.services_port}
    listening = {
        (entry.laddr.ip, entry.laddr.port)
        for entry in psutil.net_connections("tcp")
        if entry.status == "LISTEN" and entry.laddr.port in ports
    }
    assert {port for _, port in listening} == ports
    assert {address.removeprefix("::ffff:") for address, _ in listening} == {"127.0.0.1"}


class Connect(threading.Thread):
    """A proxy that passes CONNECT on, and counts."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.listening = socket.create_server(("127.0.0.1", 0))
        self.port = self.listening.getsockname()[1]
        self.asked: list[str] = []

    def run(self) -> None:
        while True:
            try:
                inner, _ = self.listening.accept()
            except OSError:
                return
            head = b""
            while b"\r\n\r\n" not in head and (block := inner.recv(4096)):
                head += block
            target = head.split(b" ")[1].decode()
            self.asked.append(target)
            outer = socket.create_connection(("127.0.0.1", int(target.rpartition(":")[2])))
            inner.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
            for here, there in ((inner, outer), (outer, inner)):
                threading.Thread(target=_pass_on, args=(here, there), daemon=True).start()


def _pass_on(here: socket.socket, there: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while block := here.recv(65_536):
            there.sendall(block)
        there.shutdown(socket.SHUT_WR)


@slow
@needs_nginx
def test_a_site_behind_a_proxy_joins_and_reaches_the_gateway_through_it(
    federation: Federation, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    proxy = Connect()
    proxy.start()
    invitation, site = tmp_path / "west.invite", tmp_path / "west"
    ok(server.cli.main(["invite", str(federation.folder), "west", "--out", str(invitation)]))
    ok(client.cli.main(["join", str(invitation), str(site), "--proxy", f"http://127.0.0.1:{proxy.port}"]))
    assert proxy.asked == [f"127.0.0.1:{federation.port + 1}"]
    capsys.readouterr()
    client.cli.main(["check", str(site)])
    shown = " ".join(capsys.readouterr().out.split())
    assert f"through the proxy 127.0.0.1:{proxy.port}" in shown
    assert proxy.asked[-1] == f"127.0.0.1:{federation.port}"
    ok(client.cli.main(["renew", str(site)]))
    assert proxy.asked[-1] == f"127.0.0.1:{federation.port + 2}"
    proxy.listening.close()
    ok(server.cli.main(["revoke", str(federation.folder), "west", "--yes"]))


@slow
@needs_nginx
def test_a_revoked_site_is_out_at_once_and_the_other_stays(
    federation: Federation, capsys: pytest.CaptureFixture[str]
) -> None:
    keys = processes.registered(federation.coordinator)
    certificate = federation.root / "south" / "tls.pem"
    assert federation.ask("/health", certificate=certificate, method="GET")[0] == 200
    ok(server.cli.main(["revoke", str(federation.folder), "south", "--yes"]))
    assert "knows its key no more" in capsys.readouterr().out

    def refused() -> bool:
        status, words = federation.ask("/health", certificate=certificate, method="GET")
        return (status, "The SSL certificate error" in words) == (400, True)

    wait_for("the gateway has read its list", refused, 10)
    assert client.cli.main(["renew", str(federation.root / "south")]) == 3
    assert "was revoked" in capsys.readouterr().err
    left = {name: node for name, node in keys.items() if name == "north"}
    assert processes.registered(federation.coordinator) == left
    nodes = federation.nodes()
    assert (nodes[keys["north"]], nodes[keys["south"]]) == ("online", "unregistered")
    assert federation.ask("/health", certificate=federation.root / "north" / "tls.pem", method="GET")[0] == 200
    # Its old key does not come back by hand; a new invitation and new keys do.
    assert server.cli.main(["add-site", str(federation.folder), "south", str(federation.root / "south/key.pub")]) == 3
    assert "this key was revoked" in capsys.readouterr().err
    assert json.loads((federation.folder / "flower" / "sites.json").read_text()) == left
