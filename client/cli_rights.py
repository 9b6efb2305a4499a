"""Commands of `wardround-site` for a patient's right to leave, and for encryption at rest."""

from __future__ import annotations

import argparse
import datetime as dt
import getpass
import sys
from pathlib import Path
from typing import Any

from client import folder
from client.audit import record
from client.terminal import OUT, command
from shared.errors import ConfigError, RefusedError

MAX_ID = 64
"""Characters of a Patient ID (0010,0020): value representation LO, PS3.5 table 6.2-1."""


def add(commands: Any) -> None:
    """Register the parsers of these commands."""
    text = "remove a patient from this site; the hospital's own patient ID is asked for, or read from a file"
    forget = command(commands, "forget", _forget, text)
    source = "read the ID from the first line of FILE, or of what is piped in (-); never on the command line"
    forget.add_argument("--file", metavar="FILE", help=source)
    forget.add_argument("--issuer", metavar="NAME", help="Issuer of Patient ID (0010,0021), where the files name one")
    forget.add_argument("--in-advance", action="store_true", help="keep out a patient who is not here yet")
    forget.add_argument("--allow-again", action="store_true", help="take it back: this patient may be ingested again")
    forget.add_argument("--yes", action="store_true", help="forget without a question")
    encrypt = command(commands, "encrypt", _encrypt, "encrypt this site's store and synthetic images on the disk")
    add_key_options(encrypt)


def add_key_options(parser: argparse.ArgumentParser) -> None:
    """How a folder is encrypted: one of the two."""
    parser.add_argument("--key-file", type=Path, metavar="FILE", help="key file, made where it is missing (mode 0600)")
    text = "by a passphrase instead: WARDROUND_PASSPHRASE, or asked for at every start"
    parser.add_argument("--passphrase", action="store_true", help=text)


def checked_key_options(arguments: argparse.Namespace) -> Path | None:
    """The key file, or None for a passphrase; ConfigError unless it is one of the two."""
    if (arguments.key_file is None) == (not arguments.passphrase):
        raise ConfigError("give --key-file FILE, best on another disk than the data, or --passphrase")
    key_file: Path | None = arguments.key_file
    return key_file


def _forget(arguments: argparse.Namespace) -> int:
    from client.forget import allow_again, forget

    site = folder.read(arguments.folder)
    patient = _patient_id(arguments.file)
    if arguments.allow_again:
        allowed = allow_again(site, patient, arguments.issuer)
        record(site, "patient.allowed_again", changed=allowed)
        OUT.print("May be ingested again." if allowed else "This patient was not forgotten here; nothing was changed.")
        return 0
    if not arguments.yes:
        if not sys.stdin.isatty():
            raise ConfigError("nobody there to ask; give --yes to forget this patient")
        if input(f"Remove this patient from site {site.name} for good? Type yes: ").strip() != "yes":
            raise RefusedError("the answer was not yes, so nothing was changed")
    done = forget(site, patient, arguments.issuer, dt.datetime.now(dt.UTC).date(), in_advance=arguments.in_advance)
    record(
        site,
        "patient.forgotten",
        series=done.series,
        files=done.files,
        synthetic_sets=done.synthetic_sets,
        inbox_files=done.inbox_files,
        trained=", ".join(done.trained)[:4000],
    )
    OUT.print(
        f"Removed: {done.series} series ({done.files} files), {done.synthetic_sets} sets of synthetic images, "
        f"{done.inbox_files} files of the inbox. The patient is not ingested here again."
    )
    if done.inbox_unreadable:
        OUT.print(f"{done.inbox_unreadable} files of the inbox cannot be read, and may be anybody's: look at them.")
    if done.trained:
        OUT.print(f"Updates had left for: {', '.join(done.trained)}. What they taught cannot be unlearned.")
    if done.releases:
        OUT.print(f"Releases here that may stand on them: {', '.join(done.releases)}.")
    OUT.print("Not touched: the PACS, folders that studies were enhanced into, backups, and unlinked disk blocks.")
    return 0


def _patient_id(file: str | None) -> str:
    """Never an argument: those stand in the list of processes and in the shell's history."""
    if file is None:
        if not sys.stdin.isatty():
            raise ConfigError("the patient ID is asked for at a terminal; without one give --file FILE, or --file -")
        text = getpass.getpass("Patient ID (not shown): ")
    else:
        try:
            text = (sys.stdin.read(4096) if file == "-" else Path(file).read_text()[:4096]).partition("\n")[0]
        except (OSError, UnicodeDecodeError):
            raise ConfigError("the file with the patient ID cannot be read") from None
    patient = text.strip(" \0\r\n\t")
    if not 0 < len(patient) <= MAX_ID:
        raise ConfigError(f"a patient ID has 1 to {MAX_ID} characters, got {len(patient)}")
    return patient


def _encrypt(arguments: argparse.Namespace) -> int:
    from client.encrypt import encrypt

    site = folder.read(arguments.folder)
    done = encrypt(site, checked_key_options(arguments))
    record(site, "admin.encrypted", files=done, by_passphrase=arguments.passphrase)
    OUT.print(f"Encrypted: {done} files. What is written from now on is encrypted, too.")
    OUT.print(
        "Keep sealed.json and the key file (or passphrase), apart from each other: without both the data are lost."
    )
    OUT.print(
        "Not encrypted: the inbox (originals, until they are ingested) and what the disk keeps of unlinked files."
    )
    return 0
