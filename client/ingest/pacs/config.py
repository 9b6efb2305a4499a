"""<site folder>/pacs.json, written by hand, into a frozen config. Secrets lie in files of their own, mode 0600.

    {"dicomweb": {"url": "https://pacs.example.org:8443/dicom-web", "ca": "pacs-ca.crt",
                  "user": "wardround", "password_file": "pacs.password"}}

    {"title": "WARDROUND",
     "dimse": {"host": "10.1.2.3", "port": 104, "title": "PACS", "retrieve": "move", "plain": true},
     "listen": {"host": "10.1.2.9", "port": 11112, "peers": ["CT1", "MR2"], "plain": true}}

Files are named relative to the site's folder. A connection is verified TLS, or it stays on this machine, or the
operator has written `"plain": true`: there is no TLS without verification. AE titles are names, not credentials
(PS3.15 leaves authentication to TLS): what listens without TLS takes files from whoever reaches the port and knows one.
"""

from __future__ import annotations

import ipaddress
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeVar, cast
from urllib.parse import urlsplit

from client.folder import SiteFolder
from shared.config import build
from shared.errors import ConfigError, DataError
from shared.trust import keystore

WAY_OUT = (
    'write it into the site\'s folder, for instance {"dicomweb": {"url": "https://HOST:PORT/dicom-web", "ca": "FILE"}} '
    'or {"title": "WARDROUND", "dimse": {"host": "HOST", "port": 104, "title": "PACS", "plain": true}}'
)
MOST_TITLE = 16
"""PS3.5 6.2: value representation AE."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DicomwebConfig:
    """Where QIDO-RS, WADO-RS and STOW-RS are spoken, and as whom."""

    url: str
    """Base of QIDO-RS and WADO-RS; `/studies` is added."""
    stow_url: str | None = None
    """Base of STOW-RS where it is another."""
    ca: str | None = None
    """Certificate file that the server's must be issued by; None: the authorities of this machine."""
    certificate: str | None = None
    """Our client certificate with its key (PEM)."""
    key: str | None = None
    user: str | None = None
    password_file: str | None = None
    token_file: str | None = None
    """Sent as `Authorization: Bearer`."""
    plain: bool = False
    """Allow http to another machine."""

    def __post_init__(self) -> None:
        for name in ("url", "stow_url"):
            value = getattr(self, name)
            if value is not None:
                _check_url(f"dicomweb.{name}", value, self.plain)
        if self.user is not None and ":" in self.user:
            raise ConfigError("dicomweb.user must hold no colon (RFC 7617)")
        if (self.user is None) != (self.password_file is None):
            raise ConfigError("dicomweb.user and dicomweb.password_file go together; give both or none")
        if self.user is not None and self.token_file is not None:
            raise ConfigError("dicomweb takes a user with a password or a token, not both; remove one")
        _check_pair("dicomweb", self.certificate, self.key)


@dataclass(frozen=True, kw_only=True, slots=True)
class DimseConfig:
    """The PACS as an application entity."""

    host: str
    port: int
    title: str
    """Its AE title."""
    retrieve: Literal["get", "move"] = "get"
    """get: studies come over the connection that asked (C-GET); move: the PACS connects to our `listen` (C-MOVE), for
    which it must know our title, host and port."""
    ca: str | None = None
    """With it the connection is TLS."""
    certificate: str | None = None
    key: str | None = None
    plain: bool = False

    def __post_init__(self) -> None:
        _check_port("dimse.port", self.port)
        _check_title("dimse.title", self.title)
        _check_pair("dimse", self.certificate, self.key)
        if self.certificate is not None and self.ca is None:
            raise ConfigError("dimse.certificate needs dimse.ca, the authority that the PACS is verified by")
        if self.ca is None and not self.plain and not is_loopback(self.host):
            raise ConfigError('dimse without TLS to another machine: give dimse.ca, or write "plain": true to allow it')


@dataclass(frozen=True, kw_only=True, slots=True)
class ListenConfig:
    """Our own storage SCP: for C-MOVE and for `wardround-site receive`."""

    host: str = "127.0.0.1"
    port: int = 11112
    peers: tuple[str, ...] = ()
    """AE titles that `receive` takes files from; C-MOVE takes them from the PACS alone."""
    most_gb: float = 50.0
    """What the inbox may hold."""
    ca: str | None = None
    """Peers must show a certificate of this authority; needs certificate and key."""
    certificate: str | None = None
    key: str | None = None
    plain: bool = False

    def __post_init__(self) -> None:
        _check_port("listen.port", self.port)
        for title in self.peers:
            _check_title("listen.peers", title)
        _check_pair("listen", self.certificate, self.key)
        if self.most_gb <= 0:
            raise ConfigError(f"listen.most_gb must be above 0, got {self.most_gb}")
        if (self.ca is None) != (self.certificate is None):
            raise ConfigError("listen.ca and listen.certificate go together: peers are verified, or there is no TLS")
        if self.ca is None and not self.plain and not is_loopback(self.host):
            raise ConfigError('listen without TLS to the network: give listen.ca, or write "plain": true to allow it')


@dataclass(frozen=True, kw_only=True, slots=True)
class Pacs:
    """One PACS: exactly one of `dicomweb` and `dimse`."""

    title: str = "WARDROUND"
    """Our AE title."""
    dicomweb: DicomwebConfig | None = None
    dimse: DimseConfig | None = None
    listen: ListenConfig | None = None
    connect_s: float = 10.0
    answer_s: float = 60.0
    """Longest silence in the midst of an answer."""
    study_s: float = 1800.0
    """Longest time that one study, or one batch that is sent, may take."""
    most_files: int = 20_000
    """Of one study."""
    most_gb: float = 16.0
    """Of one study."""

    def __post_init__(self) -> None:
        _check_title("title", self.title)
        if (self.dicomweb is None) == (self.dimse is None):
            raise ConfigError("pacs.json needs exactly one of dicomweb and dimse")
        if self.dimse is not None and self.dimse.retrieve == "move" and self.listen is None:
            raise ConfigError('dimse.retrieve "move" needs listen: the PACS connects to it; or take "get"')
        for name in ("connect_s", "answer_s", "study_s", "most_gb", "most_files"):
            if not 0 < getattr(self, name) <= 1e6:
                raise ConfigError(f"{name} must be above 0 and at most 1000000, got {getattr(self, name)}")

    @property
    def most_bytes(self) -> int:
        return int(self.most_gb * 1e9)

    @property
    def where(self) -> str:
        """host:port, for a person; never a credential."""
        if self.dimse is not None:
            return f"{self.dimse.host}:{self.dimse.port}"
        assert self.dicomweb is not None
        parts = urlsplit(self.dicomweb.url)
        return f"{parts.hostname}:{parts.port or (443 if parts.scheme == 'https' else 80)}"


Part = TypeVar("Part", DicomwebConfig, DimseConfig, ListenConfig)


def read_pacs(site: SiteFolder) -> Pacs:
    """The site's pacs.json; ConfigError where there is none or it cannot be kept, DataError where it is damaged."""
    try:
        values = json.loads(site.pacs.read_text())
    except FileNotFoundError:
        raise ConfigError(f"no pacs.json: {WAY_OUT}") from None
    except (OSError, ValueError, RecursionError):
        raise DataError("pacs.json is not readable JSON; look for a missing quote, comma or brace") from None
    if not isinstance(values, Mapping):
        raise ConfigError(f"pacs.json must be a group of keys: {WAY_OUT}")
    try:
        pacs = build(Pacs, values, "")
    except ConfigError as error:
        # What was written may be a password under the wrong key: the key is told, never its value.
        raise ConfigError(f"pacs.json: {re.split(r'[,;] got ', str(error))[0]}") from None
    return replace(
        pacs,
        dicomweb=_resolved(site.folder, pacs.dicomweb),
        dimse=_resolved(site.folder, pacs.dimse),
        listen=_resolved(site.folder, pacs.listen),
    )


def _resolved(folder: Path, part: Part | None) -> Part | None:
    """Paths made absolute, files there, secrets private."""
    if part is None:
        return None
    changed: dict[str, str] = {}
    for name in ("ca", "certificate", "key", "password_file", "token_file"):
        value = getattr(part, name, None)
        if value is None:
            continue
        path = folder / value
        if not _is_file(path):
            raise ConfigError(f"pacs.json: {name} names a file that is not there; paths start at the site's folder")
        if name in ("key", "password_file", "token_file"):
            keystore.check_private(path)
        changed[name] = str(path)
    return cast(Part, replace(cast(Any, part), **changed))


def _is_file(path: Path) -> bool:
    """`Path.is_file` raises for a name that is too long and for a folder that may not be entered."""
    try:
        return path.is_file()
    except OSError:
        return False


def read_secret(path: str) -> str:
    """A password or token without the newline that editors add; never longer than a header may be."""
    try:
        text = keystore.read_private(Path(path))[:4096].decode()
    except UnicodeDecodeError:
        raise DataError("the PACS's password or token file is not text; write it again") from None
    secret = text.strip("\r\n")
    if not secret or not secret.isprintable():
        raise DataError("the PACS's password or token file must hold one line; write it again")
    return secret


def is_loopback(host: str) -> bool:
    """Whether a connection to this host cannot leave the machine."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


def _check_url(name: str, url: str, plain: bool) -> None:
    """The URL itself is not repeated: an operator may have put a password into it."""
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError:
        raise ConfigError(f"{name} is not a URL; expected https://HOST:PORT/PATH") from None
    if parts.scheme not in ("http", "https") or not host:
        raise ConfigError(f"{name} must be https://HOST:PORT/PATH")
    if parts.username or parts.password or parts.query or parts.fragment:
        raise ConfigError(f"{name} must hold no credentials, query or fragment; use user and password_file")
    if not url.isascii() or not url.isprintable() or " " in url:
        raise ConfigError(f"{name} must be plain ASCII without blanks")
    if parts.scheme == "http" and not plain and not is_loopback(host):
        raise ConfigError(f'{name} is http to another machine: use https, or write "plain": true to allow it')


def _check_port(name: str, port: int) -> None:
    if not 0 < port < 65536:
        raise ConfigError(f"{name} must be 1 to 65535, got {port}")


def _check_title(name: str, title: str) -> None:
    """PS3.5 6.2 AE: 1 to 16 printable characters without backslash; not blanks alone."""
    if not title.strip() or len(title) > MOST_TITLE or "\\" in title or not (title.isascii() and title.isprintable()):
        raise ConfigError(f"{name} must be an AE title: 1 to 16 printable ASCII characters, no backslash")


def _check_pair(name: str, certificate: str | None, key: str | None) -> None:
    if (certificate is None) != (key is None):
        raise ConfigError(f"{name}.certificate and {name}.key go together; give both or none")
