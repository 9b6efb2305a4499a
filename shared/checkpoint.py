"""The federation after a round in, one folder on disk out, and back: what `resume` stands on.

In an encrypted folder (shared/trust/vault.py) the two safetensors files are `<name>.sealed`; the manifest has the
SHA-256 of what is in them.

A folder `round_00003` holds weights.safetensors, optimiser.safetensors (where the strategy keeps state) and
manifest.json with the SHA-256 of both, the campaign's digests and the round's record. It appears under its name by one
rename, after everything in it is on the disk: a reader sees all of it or nothing. Folders that a killed run left behind
start with a dot and are ignored.

Why a hash and a refusal, instead of taking the round before: a final model must never be older than it says. A person
decides, with one removal, to go back one round.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, load_file, save

from shared.errors import DataError, RefusedError
from shared.files import sync
from shared.trust.sealed import SUFFIX
from shared.trust.vault import vault_of
from shared.types import Arrays
from shared.weights import learnt_and_prior

FORMAT = 1
MANIFEST = "manifest.json"
WEIGHTS = "weights.safetensors"
OPTIMISER = "optimiser.safetensors"


@dataclass(frozen=True, slots=True, eq=False)
class FederationState:
    """Everything that the next round follows from: sites keep nothing between rounds."""

    campaign: str
    config_digest: str
    architecture_digest: str
    round: int  # rounds finished; 0 before the first
    weights: Arrays
    optimiser: Mapping[str, Arrays] = field(default_factory=dict)
    """The strategy's own state by name: FedAdam and FedYogi keep `m` and `v`."""


@dataclass(frozen=True, slots=True, eq=False)
class Checkpoint:
    """A state and the record of the round that led to it (participants, samples, seconds ...)."""

    state: FederationState
    record: Mapping[str, Any]


def save_round(folder: Path, state: FederationState, record: Mapping[str, Any]) -> Path:
    """Write `folder/round_NNNNN` in one step."""
    target = folder / _name(state.round)
    partial = folder / f".partial-{target.name}"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    files = {WEIGHTS: _save(partial / WEIGHTS, state.weights, target / WEIGHTS)}
    if state.optimiser:
        flat = {f"{part}/{name}": values for part, arrays in state.optimiser.items() for name, values in arrays.items()}
        files[OPTIMISER] = _save(partial / OPTIMISER, flat, target / OPTIMISER)
    manifest = {
        "format": FORMAT,
        "campaign": state.campaign,
        "config_digest": state.config_digest,
        "architecture_digest": state.architecture_digest,
        "round": state.round,
        "names": list(state.weights),
        "optimiser": list(state.optimiser),
        "files": files,
        "record": dict(record),
    }
    _write(partial / MANIFEST, (json.dumps(manifest, indent=1, allow_nan=False) + "\n").encode())
    sync(partial)
    if target.exists():  # only where a finished round is done again after its folder was found damaged
        shutil.rmtree(target)
    os.replace(partial, target)
    sync(folder)
    return target


def rounds_saved(folder: Path) -> list[int]:
    """Rounds with a complete folder, oldest first; leftovers of a killed run are not among them."""
    names = (path.name for path in folder.glob("round_*") if path.is_dir())
    return sorted(int(name.removeprefix("round_")) for name in names if name.removeprefix("round_").isdecimal())


def load_latest(folder: Path, config_digest: str) -> Checkpoint | None:
    """The last complete round; None where there is none.

    Raises RefusedError when it belongs to another campaign and DataError when it is damaged.
    """
    saved = rounds_saved(folder)
    return load_round(folder, saved[-1], config_digest) if saved else None


def load_round(folder: Path, number: int, config_digest: str) -> Checkpoint:
    """One round, every file checked against the manifest's SHA-256 before anything of it is used."""
    name = _name(number)
    manifest = _manifest(folder / name, name)
    if manifest.get("config_digest") != config_digest:
        raise RefusedError(
            f"checkpoint {name} belongs to campaign digest {str(manifest.get('config_digest'))[:12]}, this run has "
            f"{config_digest[:12]}; choose another run_dir or the campaign file that this run began with"
        )
    try:
        files = {file: _checked(folder / name / file, str(digest), name) for file, digest in manifest["files"].items()}
        weights = {key: files[WEIGHTS][key] for key in manifest["names"]}
        optimiser = {
            part: {key: files[OPTIMISER][f"{part}/{key}"] for key in learnt_and_prior(weights)[0]}
            for part in manifest["optimiser"]
        }
        state = FederationState(
            campaign=str(manifest["campaign"]),
            config_digest=config_digest,
            architecture_digest=str(manifest["architecture_digest"]),
            round=int(manifest["round"]),
            weights=weights,
            optimiser=optimiser,
        )
        return Checkpoint(state, dict(manifest["record"]))
    except (KeyError, TypeError, ValueError, AttributeError):
        raise _damaged(name, f"its {MANIFEST} does not describe its files") from None


def _manifest(path: Path, name: str) -> dict[str, Any]:
    try:
        manifest = json.loads((path / MANIFEST).read_bytes())
    except (OSError, ValueError):
        raise _damaged(name, f"{MANIFEST} cannot be read") from None
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise _damaged(name, f"{MANIFEST} is not of format {FORMAT}")
    return manifest


def _checked(path: Path, digest: str, name: str) -> Arrays:
    try:
        content = _decrypted(path)
        if (file_digest(path) if content is None else hashlib.sha256(content).hexdigest()) != digest:
            raise _damaged(name, f"{path.name} does not have the SHA-256 that {MANIFEST} states")
        arrays = load_file(path) if content is None else load(bytes(content))
        return {key: np.asarray(values, dtype=np.float32) for key, values in arrays.items()}
    except (OSError, SafetensorError):
        raise _damaged(name, f"{path.name} cannot be read") from None


def _damaged(name: str, what: str) -> DataError:
    return DataError(
        f"checkpoint {name} is damaged: {what}; remove the folder checkpoints/{name} to resume from before"
    )


def _name(number: int) -> str:
    return f"round_{number:05d}"


def _save(path: Path, arrays: Arrays, named: Path) -> str:
    """`named`: what the file is called when its folder is in place."""
    content = save({name: np.asarray(values, order="C") for name, values in arrays.items()})
    vault = vault_of(path.parent)
    if vault is None:
        _write(path, content)
    else:
        vault.write(path, content, named=named)
    return hashlib.sha256(content).hexdigest()


def _decrypted(path: Path) -> bytearray | None:
    """The content of an encrypted file; None where it is a plain one."""
    if not path.with_name(path.name + SUFFIX).exists():
        return None
    vault = vault_of(path)
    if vault is None:
        raise DataError("the checkpoints are encrypted and sealed.json is missing; restore it from a backup")
    return vault.read(path)


def seal_rounds(folder: Path) -> int:
    """Encrypt what lies plain in the checkpoints of a run, file by file; returns how many files it was.

    A file is written, read again and compared before the plain one goes: killed at any step, every round can be read.
    """
    vault = vault_of(folder)
    assert vault is not None
    for partial in folder.glob(".partial-*"):
        shutil.rmtree(partial, ignore_errors=True)
    plain = [path for path in sorted(folder.glob("round_*/*.safetensors")) if path.is_file()]
    for path in plain:
        content = path.read_bytes()
        vault.write(path, content)
        if vault.read(path) != content:
            raise DataError("what was encrypted cannot be read back; check the disk. The plain file is still there")
        path.unlink()
        sync(path.parent)
    return len(plain)


def file_digest(path: Path) -> str:
    """SHA-256 of a file, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_atomically(path: Path, data: bytes, mode: int = 0o666) -> None:
    """`path` holds the old or the new bytes, whenever the program is killed; `mode` is a new file's, less the umask."""
    partial = path.with_name(f".partial-{os.getpid()}-{path.name}")  # another process may be writing the same
    _write(partial, data, mode)
    os.replace(partial, path)
    sync(path.parent)


def _write(path: Path, data: bytes, mode: int = 0o666) -> None:
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode), "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
