"""Names that become file names, log lines and arguments of programs: checked once, at the door."""

from __future__ import annotations

import re

from shared.errors import ConfigError

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,39}")
_HOST_PORT = re.compile(r"(?P<host>[A-Za-z0-9.-]{1,253}|\[[0-9A-Fa-f:]{2,39}\]):(?P<port>[0-9]{1,5})")


def checked_name(kind: str, name: str) -> str:
    """The name itself, or ConfigError: no dots, slashes, spaces or quotes, so that it means nothing else anywhere."""
    if not is_name(name):
        raise ConfigError(
            f"{kind} must be 1 to 40 letters, digits, '-' or '_', starting with a letter or digit; got {name!r}"
        )
    return name


def is_name(name: str) -> bool:
    """Whether `checked_name` takes it."""
    return _NAME.fullmatch(name) is not None


def checked_address(address: str) -> tuple[str, int]:
    """`host:port` or `[v6]:port` into its two parts, or ConfigError."""
    match = _HOST_PORT.fullmatch(address)
    if match is None or not 0 < int(match["port"]) < 65536:
        raise ConfigError(f"coordinator must be HOST:PORT (for instance fl.example.org:8443), got {address!r}")
    return match["host"].strip("[]"), int(match["port"])
