"""A hospital's folder in, its de-identified store out, and a table of what became of every file.

    walk -> header -> identifiers keyed -> stacks, pairs, labels matched -> pixels -> common grid and scale -> store

Nothing that is wrong with one file stops the run: the file is counted under one reason of a fixed vocabulary and, if
it was an image or a label, remembered in the store's quarantine list under a keyed id. The original stays where it is.
What stops a run is a DataError or ConfigError about the folder, the store or the rule, and then the store is unchanged.
"""

from __future__ import annotations

import hashlib
import hmac
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from client.ingest import store as stores
from client.ingest.deidentify import check_profile
from client.ingest.intensity import Ends
from client.ingest.keys import check_secret, keyed_id
from client.ingest.labels import (
    LabelCodes,
    Segmentation,
    belongs,
    label_codes,
    label_digest,
    read_table,
    segmentation_of,
)
from client.ingest.pairs import Pairs, pairs_of
from client.ingest.prepare import Prepared, prepare
from client.ingest.reasons import IngestReport, Outcome, Quarantined, Reason, Skipped
from client.ingest.series import Instance, Stack, instance_of, stacks_of
from client.ingest.sources import SourceFile, open_file, walk
from client.ingest.store import Index, SeriesRecord
from client.ingest.validate import check_image, read_header, silent, sop_class, sop_instance, text
from shared.config import DataConfig
from shared.errors import DataError

SEGMENTATION_CLASS = "1.2.840.10008.5.1.4.1.1.66.4"
LABELMAP_CLASS = "1.2.840.10008.5.1.4.1.1.66.7"

Progress = Callable[[str, int, int], None]


@dataclass(slots=True)
class _Run:
    """What one ingest has found so far; local to `ingest`."""

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
    stored: set[str] = field(default_factory=set)
    """Identities of instances whose pixels are in the store: no copy of them that is damaged keeps them out."""
    series: dict[str, SeriesRecord] = field(default_factory=dict)
    """New and updated ones."""
    kept: dict[str, SeriesRecord] = field(default_factory=dict)
    updated: int = 0
    labels: dict[str, Reason | None] = field(default_factory=dict)
    """Identity of a segmentation -> None where it was used on a series, else why not."""

    def count(self, outcome: Outcome, reason: Reason, files: int = 1) -> None:
        self.outcomes[outcome, reason] += files

    def refuse(self, identity: str, reason: Reason) -> None:
        self.quarantine[identity] = reason.value
        self.count("quarantined", reason)

    def label(self, segmentation: Segmentation, reason: Reason | None) -> None:
        """Note what became of a segmentation; used on one series is used."""
        if reason is None or self.labels.get(segmentation.identity, reason) is not None:
            self.labels[segmentation.identity] = reason


def ingest(
    source: Path,
    store: Path,
    data: DataConfig,
    *,
    secret: bytes,
    mask_codes: Mapping[str, int],
    diagnosis_codes: Mapping[str, str],
    on_progress: Progress | None = None,
) -> IngestReport:
    """Add the studies below `source` to the store; what it holds already is not added twice.

    `mask_codes`: campaign mask name -> this site's segment number; `diagnosis_codes`: this site's word -> campaign
    diagnosis name; an empty map means that the site uses the campaign's own codes.
    Raises ConfigError for a rule or a map that cannot be kept, DataError for a folder without files, a store made by
    another rule or with another secret, a store that another ingest is writing, or a full disk.
    """
    check_secret(secret)
    check_profile(data.ingest.deidentify)
    codes = label_codes(data, mask_codes, diagnosis_codes)
    files = walk(source, store)
    with stores.locked(store), silent():
        index = _open_index(store, data, codes, secret)
        run = _Run(data, codes, secret)
        _scan(run, files, on_progress or _silent)
        _store_all(run, store, index, on_progress or _silent)
        _commit(run, store, index)
    return _report(run)


def _silent(stage: str, done: int, total: int) -> None:
    """No progress wanted."""


def _open_index(store: Path, data: DataConfig, codes: LabelCodes, secret: bytes) -> Index:
    """The store's index, or a new one; DataError where rule or secret are not those the store was made with."""
    rule = {
        "campaign": stores.campaign_rule(data),
        "labels": {
            "masks": {str(number): code for number, code in sorted(codes.masks.items())},
            "diagnoses": dict(sorted(codes.diagnoses.items())),
        },
    }
    check = keyed_id(secret, "store")
    index = stores.read_index(store)
    if index is None:
        index = Index(rule, check)
    if index.secret_check != check:
        raise DataError("the store was made with another site secret; use that secret, or ingest into a new store")
    if index.rule != rule:
        part = next(part for part in ("campaign", "labels") if index.rule[part] != rule[part])
        what = "ingest rule" if part == "campaign" else "label map"
        raise DataError(f"the store was made by another {what} than this one; use that one, or ingest into a new store")
    stores.sweep(store, index)
    return index


# -------------------------------------------------------------------------------------------------------------- scan


def _scan(run: _Run, files: tuple[SourceFile, ...], on_progress: Progress) -> None:
    """Read every header once; afterwards only keyed names and numbers are left of it."""
    seen: set[str] = set()
    for done, source in enumerate(files, 1):
        try:
            if source.path.suffix.casefold() != ".csv" or not _scan_table(run, source):
                _scan_one(run, source, seen)
        except Skipped as skip:
            run.count("skipped", skip.reason)
        except Quarantined as refusal:
            run.refuse(_content_id(source, run.secret), refusal.reason)
        on_progress("read headers", done, len(files))


def _scan_one(run: _Run, source: SourceFile, seen: set[str]) -> None:
    dataset = read_header(source)
    uid = sop_instance(dataset)
    identity = keyed_id(run.secret, "uid", uid) if uid else _content_id(source, run.secret)
    try:
        check_image(dataset, run.data.ingest.modalities)
    except Quarantined as refusal:
        run.refuse(identity, refusal.reason)
        return
    if identity in seen:
        run.copies.setdefault(identity, []).append(source)
        raise Skipped(Reason.DUPLICATE)
    if text(dataset, "Modality").upper() == "SEG" or sop_class(dataset) in (SEGMENTATION_CLASS, LABELMAP_CLASS):
        if not run.data.masks:
            raise Skipped(Reason.MODALITY)
        run.segmentations.append(segmentation_of(dataset, source, identity, run.secret))
    else:
        run.instances.append(instance_of(dataset, source, identity, run.secret))
    seen.add(identity)


def _scan_table(run: _Run, source: SourceFile) -> bool:
    """Whether the file was a table of diagnoses."""
    if not source.regular or not run.data.diagnoses:
        return False
    table = read_table(source, run.codes, run.secret)
    if table is None:
        return False
    run.diagnoses.update(table.codes)
    run.diagnoses_unknown += table.unknown
    run.count("used as label", Reason.DIAGNOSES)
    return True


def _content_id(source: SourceFile, secret: bytes) -> str:
    """Keyed digest of a file's bytes; of its place where the bytes cannot be read."""
    digest = hmac.new(secret, b"content", hashlib.sha256)
    try:
        with open_file(source.path) as file:
            for block in iter(lambda: file.read(1 << 20), b""):
                digest.update(block)
    except (Quarantined, OSError):
        return keyed_id(secret, "place", str(source.path))
    return digest.digest()[:16].hex()


# ------------------------------------------------------------------------------------------------------------- store


def _store_all(run: _Run, store: Path, index: Index, on_progress: Progress) -> None:
    copies = {identity: tuple(sources) for identity, sources in run.copies.items()}
    instances = [replace(instance, copies=copies.get(instance.identity, ())) for instance in run.instances]
    stacks = stacks_of(instances, run.secret)
    pairs = pairs_of(stacks)
    # Clean partners first: the degraded ones take over their scale.
    ordered = sorted(stacks, key=lambda stack: (stack.key in pairs.degraded, stack.key))
    clean_of = {low: clean for clean, low in pairs.partner.items()}
    scales: dict[str, Ends] = {}
    for done, stack in enumerate(ordered, 1):
        segmentations = [item for item in run.segmentations if belongs(item, stack)]
        try:
            _store_one(run, store, index, stack, segmentations, pairs, scales, clean_of)
        except Quarantined as refusal:
            for instance in stack.instances:
                run.refuse(instance.identity, refusal.reason)
        on_progress("store series", done, len(ordered))
    for item in run.segmentations:
        reason = run.labels.get(item.identity, Reason.UNMATCHED_LABEL)
        if reason is None:
            run.count("used as label", Reason.SEGMENTATION)
        else:
            run.refuse(item.identity, reason)


def _store_one(
    run: _Run,
    store: Path,
    index: Index,
    stack: Stack,
    segmentations: list[Segmentation],
    pairs: Pairs,
    scales: dict[str, Ends],
    clean_of: Mapping[str, str],
) -> None:
    diagnosis = run.diagnoses.get(stack.first.lookup, -1)
    pairing = pairs.partner.get(stack.key, "degraded" if stack.key in pairs.degraded else "")
    labels = label_digest(segmentations, diagnosis, pairing, run.secret)
    content = keyed_id(run.secret, "instances", *sorted(instance.identity for instance in stack.instances))
    old = index.series.get(stack.key)
    if old is not None and _nothing_new(old, stack, content, labels):
        _keep(run, index, stack, segmentations, old, same=old.content == content)
        scales[stack.key] = Ends(*old.ends)
        return
    clean = clean_of.get(stack.key, "")
    prepared = prepare(stack, segmentations, run.data, run.codes, run.secret, between=scales.get(clean))
    scales[stack.key] = prepared.ends
    record = SeriesRecord(
        key=stack.key,
        patient=stack.patient,
        study=stack.study,
        modality=stack.first.modality,
        shape=_shape(prepared),
        spacing_mm=prepared.spacing_mm,
        has_mask=prepared.mask_DHW is not None,
        diagnosis=diagnosis,
        role="degraded" if stack.key in pairs.degraded else "image",
        pair=pairs.partner.get(stack.key),
        ends=(prepared.ends.low, prepared.ends.high),
        mean_intensity=float(prepared.image_DCHW.mean(dtype="float64")),
        num_instances=len(stack.instances),
        generation=index.generation + 1,
        content=content,
        labels=labels,
        header=prepared.header,
    )
    _write(store, record, prepared)
    run.series[record.key] = record
    run.updated += old is not None
    run.count("stored", Reason.IMAGE, len(prepared.instances))
    run.stored.update(instance.identity for instance in prepared.instances)
    for instance in stack.instances:
        if instance.identity in prepared.refused:
            run.refuse(instance.identity, prepared.refused[instance.identity])
    for item in segmentations:
        run.label(item, prepared.refused.get(item.identity))


def _nothing_new(old: SeriesRecord, stack: Stack, content: str, labels: str) -> bool:
    if old.content != content:
        return len(stack.instances) <= old.num_instances
    return labels in ("", old.labels)


def _keep(
    run: _Run, index: Index, stack: Stack, segmentations: list[Segmentation], old: SeriesRecord, *, same: bool
) -> None:
    """Count a series that is in the store already, its files under the reasons they had then."""
    run.kept[old.key] = old
    for instance in stack.instances:
        earlier = index.quarantine.get(instance.identity)
        if not same:
            run.count("skipped", Reason.OTHER_INSTANCES)
        elif earlier is not None:
            run.refuse(instance.identity, Reason(earlier))
        else:
            run.count("already stored", Reason.IMAGE)
            run.stored.add(instance.identity)
    for item in segmentations:
        earlier = index.quarantine.get(item.identity)
        run.label(item, None if earlier is None else Reason(earlier))


def _shape(prepared: Prepared) -> tuple[int, int, int, int]:
    depth, channels, height, width = prepared.image_DCHW.shape
    return depth, channels, height, width


def _write(store: Path, record: SeriesRecord, prepared: Prepared) -> None:
    try:
        stores.write_array(stores.array_path(store, record, "image"), prepared.image_DCHW)
        if prepared.mask_DHW is not None:
            stores.write_array(stores.array_path(store, record, "mask"), prepared.mask_DHW)
    except OSError:
        raise DataError("the store cannot be written; free disk space or check its permissions") from None


def _commit(run: _Run, store: Path, index: Index) -> None:
    """The new index, if there is anything new; the only step that changes what a reader sees."""
    present = {**index.series, **run.series}
    for key, record in run.series.items():
        if record.pair is not None and record.pair not in present:
            present[key] = replace(record, pair=None)
    both = {**index.quarantine, **run.quarantine}
    quarantine = {identity: reason for identity, reason in both.items() if identity not in run.stored}
    if not run.series and quarantine == dict(index.quarantine) and index.generation:
        return
    try:
        stores.write_index(store, Index(index.rule, index.secret_check, index.generation + 1, present, quarantine))
    except OSError:
        raise DataError("the store cannot be written; free disk space or check its permissions") from None


def _report(run: _Run) -> IngestReport:
    records = [*run.series.values(), *run.kept.values()]
    return IngestReport(
        outcomes=dict(run.outcomes),
        series_new=len(run.series) - run.updated,
        series_updated=run.updated,
        series_kept=len(run.kept),
        masks=sum(record.has_mask for record in records),
        diagnoses=sum(record.diagnosis >= 0 for record in records),
        pairs=sum(record.pair is not None for record in records),
        patients=len({record.patient for record in records}),
        diagnoses_unknown=run.diagnoses_unknown,
    )
