"""Release files, damaged; their reader may raise our own errors and nothing else, and takes none that was changed."""

from __future__ import annotations

import datetime as dt
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from shared.errors import WardroundError
from shared.release import file_record, read_release, signed, write_release
from shared.release_manifest import Manifest
from shared.trust.certificates import create_authority, fingerprint
from shared.trust.signing import create_signer
from simulation.fuzz import Finding, where

NOW = dt.datetime(2026, 11, 22, 12, tzinfo=dt.UTC)
FILES = {"campaign.json": b"{}", "weights.safetensors": bytes(range(200)), "card.html": b"<p>card</p>"}
Input = tuple[bytes, bytes]
"""The file as it was, and as it is."""


def target() -> tuple[Callable[[np.random.Generator], tuple[str, Input]], Callable[[Input], str]]:
    """(a maker of inputs, the reader)."""
    good = _release()
    return lambda rng: _damaged(good, rng), read


def _release() -> bytes:
    authority = create_authority("fuzz", NOW)
    gate = {"gate": "gain", "site": "a", "value": 1.5, "limit": 0.0, "holds": True, "decides": True, "n": 9}
    manifest = Manifest(
        name="liver",
        version=3,
        made_at=NOW.isoformat(),
        federation={"name": "fuzz", "authority": fingerprint(authority.certificate)},
        campaign_digest="ab" * 32,
        architecture_digest="cd" * 32,
        wardround="0.1",
        versions={"torch": "2"},
        files={name: file_record(data) for name, data in FILES.items()},
        sites={"a": {"patients": 9}},
        rows=[{"setting": "federated", "test_site": "a", "psnr_db": 30.25, "gate": None}],
        gates=[gate],
        privacy={"epsilon": None, "words": "none"},
        gates_config={"erased": 0.05},
    )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.release"
        write_release(path, signed(manifest, FILES, create_signer(authority, NOW)))
        return path.read_bytes()


def _damaged(good: bytes, rng: np.random.Generator) -> tuple[str, Input]:
    kind = ("bits", "cut", "piece", "numbers", "doubled")[int(rng.integers(5))]
    content = bytearray(good)
    place = int(rng.integers(len(content)))
    if kind == "bits":
        for each in rng.integers(len(content), size=int(rng.integers(1, 9))):
            content[each] ^= 1 << int(rng.integers(8))
    elif kind == "cut":
        del content[place:]
    elif kind == "piece":
        del content[place : place + int(rng.integers(1, 300))]
    elif kind == "numbers":  # in the head of an entry or of the directory
        heads = [at for at in range(len(good)) if good[at : at + 2] == b"PK"]
        head = heads[int(rng.integers(len(heads)))] + int(rng.integers(4, 46))
        content[head : head + 4] = rng.choice((b"\0\0\0\0", b"\xff\xff\xff\xff", b"\0\0\0\x80", b"\x08\0\x08\0"))
    else:
        content[place:place] = content[place : place + int(rng.integers(1, 2000))]
    return f"release: {kind}", (good, bytes(content))


def read(pair: Input) -> str:
    """What a site makes of the file; Finding where it fails, or takes a file that is not the one that was written."""
    good, content = pair
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.release"
        path.write_bytes(content)
        try:
            found = read_release(path)
        except WardroundError as error:
            if "\n" in str(error):
                raise Finding("reason", str(error)[:80]) from None
            return type(error).__name__
        except Exception as error:  # noqa: BLE001 - what is looked for
            raise Finding("exception", where(error)) from None
        finally:
            if [each.name for each in Path(folder).iterdir()] != ["a.release"]:
                raise Finding("trace", "a file beside the release")
    # Signature and certificate are another question (shared.trust.signing): all else is as it was written.
    if found.manifest_bytes not in good or any(data != FILES[name] for name, data in found.files.items()):
        raise Finding("taken", "a release that was changed")
    return "read"
