"""The files of a folder in; images, labels and diagnoses under keyed names, and what became of all others, out.

Every header is read once. Afterwards only keyed names and numbers are left of it.
"""

from __future__ import annotations

import hashlib
import hmac
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from client.ingest.keys import keyed_id
from client.ingest.labels import LabelCodes, Segmentation, read_table, segmentation_of
from client.ingest.reasons import Outcome, Quarantined, Reason, Skipped
from client.ingest.series import Instance, instance_of
from client.ingest.sources import MAX_FILE_BYTES, SourceFile, open_file
from client.ingest.validate import check_image, read_header, reading, sop_class, sop_instance, text
from shared.config import DataConfig

SEGMENTATION_CLASS = "1.2.840.10008.5.1.4.1.1.66.4"
LABELMAP_CLASS = "1.2.840.10008.5.1.4.1.1.66.7"

Progress = Callable[[str, int, int], None]
"""(stage, done, total)"""


@dataclass(slots=True)
class Found:
    """What a folder holds, and the outcome of every file that is decided already."""

    data: DataConfig
    codes: LabelCodes
    secret: bytes
    instances: list[Instance] = field(default_factory=list)
    copies: dict[str, list[SourceFile]] = field(default_factory=dict)
    """Identity of an instance -> further files of it."""
    segmentations: list[Segmentation] = field(default_factory=list)
    diagnoses: dict[str, int] = field(default_factory=dict)
    diagnoses_unknown: int = 0
    outcomes: Counter[tuple[Outcome, Reason]] = field(default_factory=Counter)
    quarantine: dict[str, str] = field(default_factory=dict)
    """Keyed id -> reason."""

    def count(self, outcome: Outcome, reason: Reason, files: int = 1) -> None:
        self.outcomes[outcome, reason] += files

    def refuse(self, identity: str, reason: Reason) -> None:
        self.quarantine[identity] = reason.value
        self.count("quarantined", reason)

    def instances_with_copies(self) -> list[Instance]:
        """Each instance once, with the other files that claim to be the same."""
        return [replace(item, copies=tuple(self.copies.get(item.identity, ()))) for item in self.instances]


def scan(
    files: tuple[SourceFile, ...], data: DataConfig, codes: LabelCodes, secret: bytes, *, on_progress: Progress
) -> Found:
    """Sort the files by what they are; whatever is wrong with one is counted and does not stop the others."""
    found = Found(data, codes, secret)
    seen: set[str] = set()
    for done, source in enumerate(files, 1):
        try:
            if source.path.suffix.casefold() != ".csv" or not _scan_table(found, source):
                _scan_one(found, source, seen)
        except Skipped as skip:
            found.count("skipped", skip.reason)
        except Quarantined as refusal:
            found.refuse(_content_id(source, found.secret), refusal.reason)
        on_progress("read headers", done, len(files))
    return found


def _scan_one(found: Found, source: SourceFile, seen: set[str]) -> None:
    dataset = read_header(source)
    uid = sop_instance(dataset)
    identity = keyed_id(found.secret, "uid", uid) if uid else _content_id(source, found.secret)
    try:
        with reading(Reason.MALFORMED):
            check_image(dataset, found.data.ingest.modalities)
    except Quarantined as refusal:
        found.refuse(identity, refusal.reason)
        return
    if identity in seen:
        found.copies.setdefault(identity, []).append(source)
        raise Skipped(Reason.DUPLICATE)
    if text(dataset, "Modality").upper() == "SEG" or sop_class(dataset) in (SEGMENTATION_CLASS, LABELMAP_CLASS):
        if not found.data.masks:
            raise Skipped(Reason.MODALITY)
        found.segmentations.append(segmentation_of(dataset, source, identity, found.secret))
    else:
        found.instances.append(instance_of(dataset, source, identity, found.secret))
    seen.add(identity)


def _scan_table(found: Found, source: SourceFile) -> bool:
    """Whether the file was a table of diagnoses."""
    if not source.regular or not found.data.diagnoses:
        return False
    table = read_table(source, found.codes, found.secret)
    if table is None:
        return False
    # What two tables say differently is as unknown as what two rows of one do.
    contradicted = {key for key, code in table.codes.items() if found.diagnoses.get(key, code) != code}
    merged = {**found.diagnoses, **table.codes}
    found.diagnoses = {key: code for key, code in merged.items() if key not in contradicted}
    found.diagnoses_unknown += table.unknown + len(contradicted)
    found.count("used as label", Reason.DIAGNOSES)
    return True


def _content_id(source: SourceFile, secret: bytes) -> str:
    """Keyed digest of a file's bytes up to the size limit; of its place where the bytes cannot be read."""
    digest = hmac.new(secret, b"content", hashlib.sha256)
    try:
        with open_file(source.path) as file:
            left = MAX_FILE_BYTES  # a file that somebody writes to may grow as fast as it is read
            while left > 0 and (block := file.read(min(1 << 20, left))):
                digest.update(block)
                left -= len(block)
    except (Quarantined, OSError):
        return keyed_id(secret, "place", str(source.path))
    return digest.digest()[:16].hex()
