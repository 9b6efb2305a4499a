"""A site's synthetic images on its disk, marked as such: beside the store and never in it.

    <store>-synthetic/<first 12 of the digest>/
        images.npy      float32 (S, C, H, W)
        labels.npy      int64 (S, 2): index of the training slice, diagnosis
        manifest.json   what they are and come from; written last: without it there is no set
        batches/        images of a drawing that is not finished

The digest stands for generator, settings of drawing, data rule and seed; the manifest also has a digest of the training
slices, because the images are theirs by index. What does not fit or was changed is refused, with the way out. Only
training looks here: evaluation reads splits of the store (client/dataset.py), which hold no synthetic image.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from client.dataset import Slices, Synthetic
from client.generate.draw import Drawn, OnProgress, draw_synthetic, generator_digest
from client.ingest.store import rule_digest, sync_folder, write_array
from client.site import SiteSetup
from shared.config import CampaignConfig, campaign_digest, to_dict, without_places
from shared.errors import ConfigError, DataError, RefusedError
from shared.generate.networks import Generator

FORMAT = 1
MANIFEST = "manifest.json"
BATCHES = "batches"
_ARRAYS = ("images", "labels")
_REMEDY = "remove it (wardround-site synthetic DIR --remove DIGEST) and draw again (wardround-site generate)"


@dataclass(frozen=True, slots=True, eq=False)
class KeptSet:
    """One set on the disk, by its manifest."""

    folder: Path
    manifest: Mapping[str, Any]

    @property
    def digest(self) -> str:
        return str(self.manifest["digest"])


def synthetic_folder(store: Path) -> Path:
    """Where a store's synthetic sets lie."""
    return store.with_name(store.name + "-synthetic")


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
    digest = set_digest(campaign, generator_digest(generator))
    folder = synthetic_folder(setup.store)
    if not (folder / digest[:12] / MANIFEST).exists() or _of_other_slices(folder / digest[:12], train):
        draw_set(generator, train, campaign, setup, held_out=held_out, on_progress=on_progress)
    return load_synthetic(folder, digest, train)


def draw_set(
    generator: Generator,
    train: Slices,
    campaign: CampaignConfig,
    setup: SiteSetup,
    *,
    held_out: Slices | None = None,
    on_progress: OnProgress | None = None,
) -> KeptSet:
    """Fine-tune (generate.finetune_steps), draw, guard and keep. What the guards refuse is kept as its report alone, so
    that it is refused again without drawing. The generator's ControlNet is moved where it is fine-tuned."""
    weights = generator_digest(generator)
    digest = set_digest(campaign, weights)
    folder = synthetic_folder(setup.store) / digest[:12]
    _fine_tune(generator, train, campaign, setup)
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


def _fine_tune(generator: Generator, train: Slices, campaign: CampaignConfig, setup: SiteSetup) -> None:
    """The ControlNet on the site's own training slices, as one round of its phase."""
    steps = campaign.generate.finetune_steps
    if not steps or not len(train):
        return
    from client.train.phases import train_phase

    phase = campaign.in_phase("controlnet")
    phase = replace(phase, rounds=replace(phase.rounds, rounds=1))
    train_phase(generator, train, phase, setup.machine, site=f"{setup.name}/fine-tune", round=1, steps=steps)


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

    `manifest` holds digest, name, campaign, generator, seed, content and drawn_at.
    """
    synthetic = drawn.synthetic
    if drawn.report["refused"]:  # no image of a generator that copies stays on the disk
        synthetic = Synthetic(synthetic.image_SCHW[:0], synthetic.source_S[:0], synthetic.diagnosis_S[:0])
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MANIFEST).unlink(missing_ok=True)
    labels_S2 = torch.stack([synthetic.source_S, synthetic.diagnosis_S], 1)
    arrays = {"images": synthetic.image_SCHW.float().contiguous().numpy(), "labels": labels_S2.numpy()}
    for name, values in arrays.items():
        write_array(folder / f"{name}.npy", values)
    whole = {
        "format": FORMAT,
        "synthetic": True,
        **manifest,
        "counts": {"images": len(synthetic), "classes": drawn.report["classes"]},
        "sha256": {name: _file_digest(folder / f"{name}.npy") for name in _ARRAYS},
        "report": dict(drawn.report),
    }
    _write(folder / MANIFEST, json.dumps(whole, indent=1, sort_keys=True, allow_nan=False))
    shutil.rmtree(folder / BATCHES, ignore_errors=True)
    return KeptSet(folder, whole)


def load_synthetic(folder: Path, digest: str, train: Slices) -> Synthetic:
    """The set `digest` (whole) of a store's synthetic folder, for these training slices.

    Raises DataError: none there, another format, damaged, of another campaign or generator, of other slices;
    RefusedError: the guards refused its generator.
    """
    manifest = read_manifest(folder / digest[:12])
    if manifest["digest"] != digest:
        raise DataError(f"synthetic set {digest[:12]} belongs to another campaign or generator; {_REMEDY}")
    if manifest["content"] != content_digest(train):
        raise DataError(f"synthetic set {digest[:12]} was drawn from other training slices than the store's; {_REMEDY}")
    if manifest["report"]["refused"]:
        raise RefusedError(f"synthetic set {digest[:12]}: {manifest['report']['reason']}")
    images, labels = (_array(folder / digest[:12], name, manifest) for name in _ARRAYS)
    fits = (
        images.dtype == np.float32
        and images.shape[1:] == tuple(train.clean_NCHW.shape[1:])
        and labels.dtype == np.int64
        and labels.shape == (len(images), 2)
        and bool(((labels[:, 0] >= 0) & (labels[:, 0] < len(train))).all())
    )
    if not fits:
        raise DataError(f"synthetic set {digest[:12]} does not fit the store's training slices; {_REMEDY}")
    labels_S2 = torch.from_numpy(labels)
    return Synthetic(torch.from_numpy(images), labels_S2[:, 0].clone(), labels_S2[:, 1].clone())


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of one set; raises DataError."""
    name = folder.name
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        version, synthetic = manifest["format"], manifest["synthetic"]
    except FileNotFoundError:
        raise DataError(f"no synthetic set {name}; draw one with wardround-site generate") from None
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        raise DataError(f"the manifest of synthetic set {name} is damaged; {_REMEDY}") from None
    if version != FORMAT or synthetic is not True:
        raise DataError(f"synthetic set {name}: expected format {FORMAT}, got {str(version)[:20]}; {_REMEDY}")
    texts = ("digest", "name", "campaign", "generator", "content", "drawn_at")
    whole = all(isinstance(manifest.get(key), str) for key in texts)
    whole = whole and all(isinstance(manifest.get(key), dict) for key in ("counts", "sha256", "report"))
    if not whole or not isinstance(manifest["report"].get("refused"), bool):
        raise DataError(f"the manifest of synthetic set {name} is damaged; {_REMEDY}")
    return dict(manifest)


def kept_sets(store: Path) -> tuple[KeptSet, ...]:
    """All whole sets of a store, the oldest first; raises DataError for a damaged manifest."""
    folder = synthetic_folder(store)
    found = sorted(path.parent for path in folder.glob(f"*/{MANIFEST}"))
    sets = [KeptSet(each, read_manifest(each)) for each in found]
    return tuple(sorted(sets, key=lambda each: (each.manifest["drawn_at"], each.digest)))


def remove_set(store: Path, digest: str) -> str:
    """Remove a set, finished or not, named by 8 or more characters of its digest; returns its folder's name."""
    folder = synthetic_folder(store)
    named = [path for path in folder.glob("*") if path.is_dir() and path.name.startswith(digest[:12])]
    if len(digest) < 8 or len(named) != 1:
        raise ConfigError(
            f"no synthetic set {digest[:12]!r} (name it by 8 or more characters); see: wardround-site synthetic"
        )
    (named[0] / MANIFEST).unlink(missing_ok=True)  # first: a set half removed is none
    shutil.rmtree(named[0])
    return named[0].name


def _of_other_slices(folder: Path, train: Slices) -> bool:
    """A store that has grown since: its old set is of no use and is drawn anew."""
    return bool(read_manifest(folder)["content"] != content_digest(train))


def _array(folder: Path, name: str, manifest: Mapping[str, Any]) -> Any:
    path = folder / f"{name}.npy"
    damaged = DataError(f"the {name} of synthetic set {folder.name} are missing or damaged; {_REMEDY}")
    try:
        if _file_digest(path) != manifest["sha256"].get(name):
            raise damaged
        return np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        raise damaged from None


def _file_digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _write(path: Path, text: str) -> None:
    part = path.with_name(path.name + ".part")
    with part.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
    part.replace(path)
    sync_folder(path.parent)
