"""The one thing that faces the sites: an nginx configuration, made from the coordinator's folder.

    sites --TLS 1.3, a site's certificate--> gateway --TLS on loopback--> SuperLink      ten paths of /v1/fleet/
    sites --TLS 1.3 that nginx does not open---------------------------> server/enrol.py  join; services (mutual TLS)

Open-source Flower has neither client certificates nor accounts on its control interface, and whoever reaches that one
can start code at every site; /v1/control/ and /v1/runtime/ therefore have no way through. Nor have the two fleet paths
that register and unregister keys. A path is passed on as it is written here, never as it came: an encoded detour leads
nowhere. What Flower asks for was read in flwr 1.41 (superlink/routers/fleet/router.py); tests/attacks/test_gateway.py
compares.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from dataclasses import replace
from pathlib import Path

from server import folder, processes, registry
from server.folder import Coordinator, Gateway, Ports
from shared.checkpoint import write_atomically
from shared.errors import ConfigError
from shared.supervise import Program, read_record
from shared.trust import certificates, keystore

FLEET = (
    *("activate-node", "deactivate-node", "send-node-heartbeat", "pull-messages", "push-messages"),
    *("get-run", "get-fab", "push-object", "pull-object", "confirm-message-received"),
)
"""What a SuperNode with a registered key asks for."""
BODY_MB = 8
"""Flower cuts arrays into chunks of 5 MB and adds a little; nothing that a site sends is larger."""
STREAM_MODULE = Path("/usr/lib/nginx/modules/ngx_stream_module.so")
"""Debian's libnginx-mod-stream; other builds of nginx have it inside."""
PROGRAM = "gateway"


def configure(coordinator: Coordinator, host: str, listen: str, ports: Ports, out: Path | None) -> Path:
    """Write nginx.conf (to gateway/ or `out`), a revocation list where there is none, and remember what sites dial.

    Raises ConfigError for a host that the certificate is not for, and for ports that are taken twice.
    """
    if host not in coordinator.hosts:
        raise ConfigError(
            f"the server certificate is not for {host} but for {', '.join(coordinator.hosts)}; name it in init --host"
        )
    certificates.general_name(listen)
    inner = (coordinator.port, coordinator.join_port, coordinator.services_port)
    outer = (ports.fleet, ports.join, ports.services)
    if len({*inner, *outer}) != 6 or not all(0 < port < 65536 for port in outer):
        raise ConfigError(
            f"the gateway needs three ports of its own in 1..65535, got {', '.join(map(str, outer))}; the coordinator "
            f"itself uses {', '.join(map(str, inner))} on loopback"
        )
    made = replace(coordinator, gateway=Gateway(host, ports))
    with registry.registering(made):
        folder.save(made)
        if not made.revocation_list.exists():
            registry.write_revocation_list(made, processes.now())
    home = keystore.private_folder(made.folder / "gateway")
    path = out or home / "nginx.conf"
    write_atomically(path, nginx_conf(made, listen).encode())
    return path


def nginx_conf(coordinator: Coordinator, listen: str) -> str:
    """The whole file. Names in it are of this house: a folder's with quotes, spaces or `;` are refused."""
    assert coordinator.gateway is not None
    ports, bind = coordinator.gateway.ports, f"[{listen}]" if ":" in listen else listen
    home, base = coordinator.folder / "gateway", _plain(coordinator.folder)
    module = f"load_module {STREAM_MODULE};\n" if STREAM_MODULE.exists() else ""
    paths = "\n".join(
        f"    location = /v1/fleet/{name} {{ proxy_pass https://superlink/v1/fleet/{name}; }}" for name in FLEET
    )
    return f"""# Made by `wardround-coordinator gateway`; make it again rather than edit it.
# Check: nginx -t -c THIS. Run: wardround-coordinator serve DIR --gateway, or nginx -c THIS as any user who can read it.
{module}worker_processes 2;
worker_shutdown_timeout 10s;  # a revoked site's open connections end with the old workers
pid {home}/nginx.pid;
error_log {base}/logs/gateway-error.log warn;
events {{ worker_connections 1024; }}

http {{
  server_tokens off;
  default_type application/octet-stream;
  log_format wardround '$time_iso8601 $remote_addr "$ssl_client_s_dn" $request_method $uri '
                       '$status $request_length $bytes_sent';
  access_log {base}/logs/gateway.log wardround;
  client_body_temp_path {home}/temp;
  proxy_temp_path {home}/temp;
  fastcgi_temp_path {home}/temp;
  uwsgi_temp_path {home}/temp;
  scgi_temp_path {home}/temp;
  limit_conn_zone $binary_remote_addr zone=addresses:1m;

  upstream superlink {{
    server 127.0.0.1:{coordinator.port};
    keepalive 16;
  }}

  server {{
    listen {bind}:{ports.fleet} ssl;
    server_name _;
    limit_conn addresses 64;
    large_client_header_buffers 4 8k;

    ssl_protocols TLSv1.3;
    ssl_certificate {coordinator.server_certificate};
    ssl_certificate_key {coordinator.server_key};
    ssl_verify_client on;
    ssl_verify_depth 1;
    ssl_client_certificate {coordinator.authority};
    ssl_crl {coordinator.revocation_list};
    ssl_session_cache off;  # a resumed session would not be asked for its certificate again
    ssl_session_tickets off;

    client_max_body_size {BODY_MB}m;
    client_header_timeout 30s;
    client_body_timeout 180s;  # Flower gives up on an upload after 180 s as well
    proxy_read_timeout 180s;
    proxy_request_buffering off;  # no update rests in a file of nginx
    proxy_buffering off;
    proxy_http_version 1.1;
    proxy_set_header Connection "";
    proxy_ssl_protocols TLSv1.3;
    proxy_ssl_verify on;
    proxy_ssl_verify_depth 1;
    proxy_ssl_trusted_certificate {coordinator.authority};
    proxy_ssl_name localhost;

    location / {{ return 403 "nothing for sites here\\n"; }}
    location = /health {{ return 200 "gateway\\n"; }}
{paths}
  }}
}}

stream {{
  limit_conn_zone $binary_remote_addr zone=streams:1m;
  limit_conn streams 32;
  proxy_connect_timeout 5s;
  server {{
    listen {bind}:{ports.join};
    proxy_pass 127.0.0.1:{coordinator.join_port};
    proxy_timeout 60s;
  }}
  server {{
    listen {bind}:{ports.services};
    proxy_pass 127.0.0.1:{coordinator.services_port};
    proxy_timeout 300s;
  }}
}}
"""


def program(coordinator: Coordinator) -> Program:
    """nginx in the foreground, as one of the programs that `serve` keeps up."""
    conf = coordinator.folder / "gateway" / "nginx.conf"
    if coordinator.gateway is None or not conf.is_file():
        raise ConfigError("there is no gateway yet; make one with: wardround-coordinator gateway DIR")
    nginx = shutil.which("nginx", path=os.pathsep.join((os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin")))
    if nginx is None:
        raise ConfigError("nginx is not installed; on Debian: apt-get install nginx-light libnginx-mod-stream")
    keystore.private_folder(coordinator.folder / "gateway" / "temp")
    environment = {key: os.environ[key] for key in ("PATH", "LANG", "HOME") if key in os.environ}
    # The first log lines come before the configuration is read.
    start = (nginx, "-c", str(conf), "-e", str(coordinator.folder / "logs" / "gateway-error.log"))
    _try(start, environment)
    return Program(PROGRAM, (*start, "-g", "daemon off;"), environment)


def _try(start: tuple[str, ...], environment: dict[str, str]) -> None:
    """`nginx -t`; raises ConfigError with what it says first."""
    done = subprocess.run((*start, "-t"), env=environment, capture_output=True, text=True, timeout=30, check=False)
    if done.returncode == 0:
        return
    said = next((line for line in done.stderr.splitlines() if "[emerg]" in line), "no reason given")
    words = said.partition("[emerg]")[2].strip()[:300]
    stream = "; its stream module is missing: apt-get install libnginx-mod-stream" if '"stream"' in words else ""
    raise ConfigError(f"nginx does not accept gateway/nginx.conf: {words}{stream}")


def reload(coordinator: Coordinator) -> bool:
    """Let a gateway that `serve --gateway` runs read its lists and certificates again; False where none runs here."""
    entry = read_record(coordinator.folder)["programs"].get(PROGRAM)
    if entry is None or not entry["alive"]:
        return False
    os.kill(entry["pid"], signal.SIGHUP)
    return True


def _plain(path: Path) -> Path:
    if any(character in str(path) for character in " \t\"'\\;{}$#"):
        raise ConfigError(
            "the coordinator's folder must have no spaces, quotes, ';', '$' or braces in its name; move it"
        )
    return path
