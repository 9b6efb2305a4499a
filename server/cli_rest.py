"""Command of `wardround-coordinator` for encryption at rest."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from server import folder
from server.audit import record
from server.terminal import OUT, command
from shared.errors import ConfigError


def add(commands: Any) -> None:
    """Register the parser of this command."""
    encrypt = command(commands, "encrypt", _encrypt, "encrypt the checkpoints of all runs on the disk")
    encrypt.add_argument("--key-file", type=Path, metavar="FILE", help="key file, made where it is missing (mode 0600)")
    text = "by a passphrase instead: WARDROUND_PASSPHRASE, or asked for at every start"
    encrypt.add_argument("--passphrase", action="store_true", help=text)


def _encrypt(arguments: argparse.Namespace) -> int:
    from shared.checkpoint import seal_rounds
    from shared.trust import vault

    coordinator = folder.read(arguments.folder)
    if (arguments.key_file is None) == (not arguments.passphrase):
        raise ConfigError("give --key-file FILE, best on another disk than the data, or --passphrase")
    vault.create(coordinator.folder, arguments.key_file)
    runs = coordinator.folder / "runs"
    folders = (*runs.glob("*/checkpoints"), *runs.glob("*/phases/*/checkpoints"))
    done = sum(map(seal_rounds, folders))
    record(coordinator, "admin.encrypted", files=done, by_passphrase=arguments.passphrase)
    OUT.print(f"Encrypted: {done} files. Checkpoints that are written from now on are encrypted, too.")
    OUT.print(
        "Keep sealed.json and the key file (or passphrase), apart from each other: without both the data are lost."
    )
    return 0
