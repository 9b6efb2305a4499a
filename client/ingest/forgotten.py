"""Who must not be ingested again at a site: keyed tombstones in, a file beside the store, and back.

    <store>-forgotten.json    one keyed digest for each patient that was forgotten, and when

A tombstone is HMAC-SHA256 under the site's secret over the patient's own pseudonym: it names nobody, links to nothing
that is left in the store, and nobody without the secret can test a guess.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import pydicom

from client.ingest.keys import keyed_id
from client.ingest.reasons import Quarantined, Reason
from client.ingest.series import lookup_key
from client.ingest.validate import reading, text
from shared.checkpoint import write_atomically
from shared.errors import DataError

_TAGS = ["PatientID", "IssuerOfPatientID"]


def forgotten_file(store: Path) -> Path:
    return store.with_name(store.name + "-forgotten.json")


def tombstones_of(secret: bytes, lookup: str, patient: str) -> set[str]:
    """What an instance is recognised by: its patient ID under any issuer, and under its own issuer alone."""
    return {keyed_id(secret, "forgotten", name) for name in (lookup, patient) if name}


def tombstone(secret: bytes, patient_id: str, issuer: str | None) -> str:
    """Of a patient ID under any issuer, or (Issuer of Patient ID (0010,0021) given) under that one alone."""
    name = lookup_key(patient_id, secret) if issuer is None else pseudonym(secret, patient_id, issuer)
    return keyed_id(secret, "forgotten", name)


def pseudonym(secret: bytes, patient_id: str, issuer: str) -> str:
    """As client.ingest.deidentify.patient_pseudonym makes it of a file."""
    return keyed_id(secret, "patient", issuer, patient_id)


def read_forgotten(store: Path) -> frozenset[str]:
    """All tombstones of a store; DataError where their file is damaged: nobody may come back through a damage."""
    return frozenset(_read(store))


def add_tombstone(store: Path, stone: str, today: str) -> None:
    _write(store, {**_read(store), stone: today})


def remove_tombstone(store: Path, stone: str) -> bool:
    """Whether there was one."""
    stones = _read(store)
    if stones.pop(stone, None) is None:
        return False
    _write(store, stones)
    return True


def _read(store: Path) -> dict[str, str]:
    try:
        values = json.loads(forgotten_file(store).read_text())
        stones = dict(values["forgotten"])
        if values["format"] != 1 or not all(isinstance(part, str) for item in stones.items() for part in item):
            raise ValueError
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError):
        raise DataError(
            f"{forgotten_file(store).name} is damaged: nobody can be told from those who were forgotten; restore it "
            "from a backup"
        ) from None
    return stones


def _write(store: Path, stones: Mapping[str, str]) -> None:
    values = {"format": 1, "forgotten": dict(sorted(stones.items()))}
    try:
        write_atomically(forgotten_file(store), (json.dumps(values, indent=1) + "\n").encode())
    except OSError:
        raise DataError("the site's folder cannot be written; check its permissions and the disk") from None


def files_of(inbox: Path, patient_id: str, issuer: str | None) -> tuple[list[Path], set[str], int]:
    """Files of an inbox that are this patient's, the issuers that they name, and how many files could not be read."""
    mine: list[Path] = []
    issuers: set[str] = set()
    unreadable = 0
    for path in sorted(path for path in inbox.rglob("*") if path.is_file()):  # nothing where there is no inbox
        try:
            with reading(Reason.MALFORMED):
                header = pydicom.dcmread(path, force=True, stop_before_pixels=True, specific_tags=_TAGS)
                named, by = text(header, "PatientID"), text(header, "IssuerOfPatientID")
        except (Quarantined, OSError):
            unreadable += 1
            continue
        if named == patient_id and issuer in (None, by):
            mine.append(path)
            issuers.add(by)
    return mine, issuers, unreadable
