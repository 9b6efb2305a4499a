"""A site's synthetic images kept on its disk, marked as such, and read again: beside the store and never in it.

client/generate/manifest.py says what lies where. A set's digest stands for the generator's weights, the settings of
drawing, the data rule and the seed; its manifest also has a digest of the training slices, because the images are
theirs by index. What does not fit or was changed is refused, with the way out. Only training looks here: evaluation
reads splits of the store (client/dataset.py), which hold no synthetic image.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from client.dataset import Slices, Synthetic
from client.generate.draw import Drawn, OnProgress, draw_synthetic, generator_digest
from client.generate.manifest import BATCHES, FORMAT, MANIFEST, REMEDY, KeptSet, drawing, read_set, synthetic_folder
from client.ingest.arrays import content_digest as digest_of
from client.ingest.arrays import read_array, write_array
from client.ingest.store import rule_digest
from client.site import SiteSetup
from client.train.phases import finetune
from shared.checkpoint import write_atomically
from shared.config import CampaignConfig, campaign_digest, to_dict, without_places
from shared.errors import DataError, RefusedError
from shared.generate.networks import Generator

_ARRAYS = ("images", "labels")


def site_synthetic(
    generator: Generator,
    train: Slices,
    campaign: CampaignConfig,
    setup: SiteSetup,
    *,
    held_out: Slices | None = None,
    on_progress: OnProgress | None = None,
) -> Synthetic:
    """The site's set for this generator and campaign (as it was approved): the one that is kept, or drawn now and kept.

    `held_out`: the validation split, which calibrates the guard against memorising. Raises RefusedError where a guard
    refuses the generator, DataError for a set on the disk that is damaged.
    """
    kept = site_set(generator, train, campaign, setup, held_out=held_out, on_progress=on_progress)
    return load_synthetic(synthetic_folder(setup.store), kept.digest, train)


def site_set(
    generator: Generator,
    train: Slices,
    campaign: CampaignConfig,
    setup: SiteSetup,
    *,
    held_out: Slices | None = None,
    on_progress: OnProgress | None = None,
) -> KeptSet:
    """As `site_synthetic`, without loading images; a set that was refused is returned like any other. One of other
    slices, from before the store grew, is replaced."""
    digest = set_digest(campaign, generator_digest(generator))
    folder = synthetic_folder(setup.store) / digest[:12]
    with drawing(setup.store):
        if (folder / MANIFEST).exists():
            kept = read_set(folder)
            if kept.manifest["content"] == content_digest(train):
                return kept
        try:
            return _draw_set(generator, train, campaign, setup, held_out, on_progress)
        except OSError:
            raise DataError(
                "synthetic images cannot be kept beside the store; check the permissions of their folder and the disk"
            ) from None


def _draw_set(
    generator: Generator,
    train: Slices,
    campaign: CampaignConfig,
    setup: SiteSetup,
    held_out: Slices | None,
    on_progress: OnProgress | None,
) -> KeptSet:
    """Fine-tune (generate.finetune_steps), draw, guard and keep. The ControlNet is moved where it is fine-tuned."""
    weights = generator_digest(generator)
    digest = set_digest(campaign, weights)
    folder = synthetic_folder(setup.store) / digest[:12]
    if len(train):
        finetune(generator, train, campaign, setup.machine, site=setup.name)
    drawn = draw_synthetic(
        generator, train, campaign, setup.machine, site=setup.name, held_out=held_out,
        folder=folder / BATCHES, on_progress=on_progress,
    )  # fmt: skip
    manifest = {
        "digest": digest,
        "name": campaign.name,
        "campaign": campaign_digest(replace(campaign, generate=replace(campaign.generate, phase="all"))),
        "generator": weights,
        "rule": rule_digest(campaign.data),
        "seed": campaign.seed,
        "content": content_digest(train),
        "drawn_at": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
    }
    return save_synthetic(folder, drawn, manifest)


def set_digest(campaign: CampaignConfig, generator: str) -> str:
    """SHA-256 of what a set depends on beside the slices: the generator's weights, how it is asked, the data rule and
    the seed. Campaigns that only train otherwise with the images share a set."""
    values = without_places({"generate": to_dict(campaign.generate), "data": to_dict(campaign.data)})
    values["generate"].pop("phase")
    text = json.dumps([generator, values, campaign.seed], sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def content_digest(train: Slices) -> str:
    """SHA-256 of the slices that a set belongs to: order, images, masks and diagnoses."""
    digest = hashlib.sha256("\n".join(train.identity).encode())
    for values in (train.clean_NCHW, train.mask_NHW, train.has_mask_N, train.diagnosis_N):
        digest.update(values.contiguous().numpy().tobytes())
    return digest.hexdigest()


def save_synthetic(folder: Path, drawn: Drawn, manifest: Mapping[str, Any]) -> KeptSet:
    """Write a set into its own folder; the manifest last, so that a set is there whole or not at all.

    `manifest` holds digest, name, campaign, generator, rule, seed, content and drawn_at. Of a generator that the guards
    refuse no image stays on the disk, only the report: it is refused again without drawing.
    """
    synthetic = drawn.synthetic
    kept = 0 if drawn.report["refused"] else len(synthetic)
    labels_S2 = torch.stack([synthetic.source_S, synthetic.diagnosis_S], 1)[:kept]
    arrays = {"images": synthetic.image_SCHW[:kept].float().contiguous().numpy(), "labels": labels_S2.numpy()}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MANIFEST).unlink(missing_ok=True)
    for name, values in arrays.items():
        write_array(folder / f"{name}.npy", values)
    whole = {
        "format": FORMAT,
        "synthetic": True,
        **manifest,
        "counts": {"images": kept, "slices": len(set(labels_S2[:, 0].tolist()))},
        "sha256": {name: digest_of(folder / f"{name}.npy") for name in _ARRAYS},
        "report": dict(drawn.report),
    }
    write_atomically(folder / MANIFEST, json.dumps(whole, indent=1, sort_keys=True, allow_nan=False).encode())
    shutil.rmtree(folder / BATCHES, ignore_errors=True)
    return read_set(folder)


def load_synthetic(folder: Path, digest: str, train: Slices) -> Synthetic:
    """The set `digest` (whole) of a store's synthetic folder, for these training slices.

    Raises DataError: none there, another format, damaged, of another campaign or generator, of other slices;
    RefusedError: the guards refused its generator.
    """
    name = digest[:12]
    kept = read_set(folder / name)
    if kept.digest != digest:
        raise DataError(f"synthetic set {name} belongs to another campaign or generator; {REMEDY}")
    if kept.manifest["content"] != content_digest(train):
        raise DataError(f"synthetic set {name} was drawn from other training slices than the store's; {REMEDY}")
    if kept.report["refused"]:
        raise RefusedError(f"synthetic set {name}: {kept.report['reason']}")
    images, labels = (_array(kept, array) for array in _ARRAYS)
    fits = (
        images.dtype == np.float32
        and images.shape[1:] == tuple(train.clean_NCHW.shape[1:])
        and labels.dtype == np.int64
        and labels.shape == (len(images), 2)
        and bool(((labels[:, 0] >= 0) & (labels[:, 0] < len(train))).all())
    )
    if not fits:
        raise DataError(f"synthetic set {name} does not fit the store's training slices; {REMEDY}")
    labels_S2 = torch.from_numpy(labels)
    return Synthetic(torch.from_numpy(images), labels_S2[:, 0].clone(), labels_S2[:, 1].clone())


def _array(kept: KeptSet, name: str) -> Any:
    path = kept.folder / f"{name}.npy"
    damaged = DataError(f"the {name} of synthetic set {kept.folder.name} are missing or damaged; {REMEDY}")
    try:
        if digest_of(path) != kept.manifest["sha256"].get(name):
            raise damaged
        return np.array(read_array(path))
    except (OSError, ValueError, EOFError):
        raise damaged from None
