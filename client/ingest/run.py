"""A hospital's folder in, its de-identified store out, and a table of what became of every file.

    walk -> header -> identifiers keyed -> stacks, pairs, labels matched -> pixels -> common grid and scale -> store

Nothing that is wrong with one file stops the run: the file is counted under one reason of a fixed vocabulary and, if
it was an image or a label, remembered in the store's quarantine list under a keyed id. The original stays where it is.
What stops a run is a DataError or ConfigError about the folder, the store or the rule, and then the store is unchanged.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from client.ingest import store as stores
from client.ingest.deidentify import check_profile
from client.ingest.forgotten import read_forgotten, tombstones_of
from client.ingest.intensity import Ends
from client.ingest.keys import check_secret, keyed_id
from client.ingest.labels import LabelCodes, Segmentation, belongs, label_codes, label_digest
from client.ingest.pairs import Pairs, pairs_of
from client.ingest.prepare import Prepared, prepare
from client.ingest.reasons import IngestReport, Quarantined, Reason
from client.ingest.scan import Found, Progress, scan
from client.ingest.series import Stack, stacks_of
from client.ingest.sources import walk
from client.ingest.store import Index, SeriesRecord
from client.ingest.validate import silent
from shared.config import DataConfig
from shared.errors import DataError


@dataclass(slots=True)
class _Run:
    """What one ingest has put into the store so far; local to `ingest`."""

    found: Found
    pairs: Pairs
    series: dict[str, SeriesRecord] = field(default_factory=dict)
    """New and updated ones."""
    kept: dict[str, SeriesRecord] = field(default_factory=dict)
    updated: int = 0
    stored: set[str] = field(default_factory=set)
    """Identities of instances whose pixels are in the store: no copy of them that is damaged keeps them out."""
    scales: dict[str, Ends] = field(default_factory=dict)
    """Of the series seen so far: a degraded partner takes over the scale of its clean one."""
    labels: dict[str, Reason | None] = field(default_factory=dict)
    """Identity of a segmentation -> None where it was used on a series, else why not."""

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
        found = scan(files, data, codes, secret, on_progress=on_progress or _silent)
        _leave_out_forgotten(found, store)
        stacks = stacks_of(found.instances_with_copies(), secret)
        run = _Run(found, pairs_of(stacks))
        _store_all(run, store, index, stacks, on_progress or _silent)
        _commit(run, store, index)
    return _report(run)


def _silent(stage: str, done: int, total: int) -> None:
    """No progress wanted."""


def _leave_out_forgotten(found: Found, store: Path) -> None:
    """Patients whom `wardround-site forget` removed do not come back with the next folder."""
    forgotten = read_forgotten(store)
    if not forgotten:
        return
    kept = []
    for instance in found.instances:
        if forgotten.isdisjoint(tombstones_of(found.secret, instance.lookup, instance.patient)):
            kept.append(instance)
        else:
            found.count("skipped", Reason.FORGOTTEN)
    found.instances = kept


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


def _store_all(run: _Run, store: Path, index: Index, stacks: tuple[Stack, ...], on_progress: Progress) -> None:
    # Clean partners first: the degraded ones take over their scale.
    ordered = sorted(stacks, key=lambda stack: (stack.key in run.pairs.degraded, stack.key))
    for done, stack in enumerate(ordered, 1):
        segmentations = [item for item in run.found.segmentations if belongs(item, stack)]
        try:
            _store_one(run, store, index, stack, segmentations)
        except Quarantined as refusal:
            for instance in stack.instances:
                run.found.refuse(instance.identity, refusal.reason)
        on_progress("store series", done, len(ordered))
    for item in run.found.segmentations:
        reason = run.labels.get(item.identity, Reason.UNMATCHED_LABEL)
        if reason is None:
            run.found.count("used as label", Reason.SEGMENTATION)
        else:
            run.found.refuse(item.identity, reason)


def _store_one(run: _Run, store: Path, index: Index, stack: Stack, segmentations: list[Segmentation]) -> None:
    pairs = run.pairs
    diagnosis = run.found.diagnoses.get(stack.first.lookup, -1)
    pairing = pairs.partner.get(stack.key, "degraded" if stack.key in pairs.degraded else "")
    labels = label_digest(segmentations, diagnosis, pairing, run.found.secret)
    content = keyed_id(run.found.secret, "instances", *sorted(instance.identity for instance in stack.instances))
    old = index.series.get(stack.key)
    if old is not None and _nothing_new(old, stack, content, labels):
        _keep(run, index, stack, segmentations, old, same=old.content == content)
        run.scales[stack.key] = Ends(*old.ends)
        return
    between = run.scales.get(pairs.clean_of(stack.key) or "")
    prepared = prepare(stack, segmentations, run.found.data, run.found.codes, run.found.secret, between=between)
    run.scales[stack.key] = prepared.ends
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
    run.found.count("stored", Reason.IMAGE, len(prepared.instances))
    run.stored.update(instance.identity for instance in prepared.instances)
    for instance in stack.instances:
        if instance.identity in prepared.refused:
            run.found.refuse(instance.identity, prepared.refused[instance.identity])
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
            run.found.count("skipped", Reason.OTHER_INSTANCES)
        elif earlier is not None:
            run.found.refuse(instance.identity, Reason(earlier))
        else:
            run.found.count("already stored", Reason.IMAGE)
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
    both = {**index.quarantine, **run.found.quarantine}
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
        outcomes=dict(run.found.outcomes),
        series_new=len(run.series) - run.updated,
        series_updated=run.updated,
        series_kept=len(run.kept),
        masks=sum(record.has_mask for record in records),
        diagnoses=sum(record.diagnosis >= 0 for record in records),
        pairs=sum(record.pair is not None for record in records),
        patients=len({record.patient for record in records}),
        diagnoses_unknown=run.found.diagnoses_unknown,
    )
