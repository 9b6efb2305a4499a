"""A set on the disk is whole, marked, of this campaign and these slices, or it is refused; evaluation never sees it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from client.dataset import Slices, Synthetic, open_site
from client.evaluate import evaluate
from client.generate import draw as drawn_here
from client.generate import synthetic as sets
from client.generate.draw import Drawn, generator_digest
from client.generate.manifest import MANIFEST, drawing, kept_sets, remove_set, synthetic_folder
from client.generate.synthetic import load_synthetic, save_synthetic, set_digest, site_set, site_synthetic
from client.ingest.store import Store
from client.site import SiteSetup
from shared.checkpoint import file_digest
from shared.config import AugmentConfig, CampaignConfig, DrawConfig, GenerateConfig, MachineConfig, build, to_dict
from shared.errors import ConfigError, DataError, RefusedError
from shared.generate.networks import Generator, build_generator
from shared.networks import build_networks
from simulation.bench.stores import write_random_store
from tests.client.generate.textured import textured_slices

_GENERATORS: list[Generator] = []


@pytest.fixture
def campaign(campaign: CampaignConfig) -> CampaignConfig:
    draw = DrawConfig(sampler="rflow", steps=1, variants=2, memorised_share=1.0)
    generating = replace(campaign, generate=GenerateConfig(kind="emit-diff", prediction="velocity", draw=draw))
    return build(CampaignConfig, to_dict(generating))  # as a site reads it: 1 has become 1.0


@pytest.fixture
def generator(campaign: CampaignConfig) -> Generator:
    if not _GENERATORS:
        _GENERATORS.append(build_generator(campaign))
    return _GENERATORS[0]


@pytest.fixture
def train() -> Slices:
    return textured_slices(4, seed=1)


@pytest.fixture
def setup(tmp_path: Path) -> SiteSetup:
    return SiteSetup("north", tmp_path / "store", MachineConfig(device="cpu", threads=1), {})


@pytest.fixture
def digest(generator: Generator, train: Slices, campaign: CampaignConfig, setup: SiteSetup) -> str:
    return site_set(generator, train, campaign, setup).digest


def no_drawing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sets, "draw_synthetic", lambda *_, **__: pytest.fail("drawn again"))


def test_a_set_is_drawn_once_and_read_again_to_the_last_bit(
    generator: Generator, train: Slices, campaign: CampaignConfig, setup: SiteSetup, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = site_synthetic(generator, train, campaign, setup)
    no_drawing(monkeypatch)
    again = site_synthetic(generator, train, campaign, setup)
    assert first.image_SCHW.numpy().tobytes() == again.image_SCHW.numpy().tobytes()
    assert torch.equal(first.source_S, again.source_S)
    assert torch.equal(first.diagnosis_S, again.diagnosis_S)
    assert again.image_SCHW.dtype == torch.float32


def test_its_manifest_says_that_it_is_synthetic_and_what_it_comes_from(
    digest: str, generator: Generator, campaign: CampaignConfig, setup: SiteSetup
) -> None:
    (kept,) = kept_sets(setup.store)
    manifest = kept.manifest
    assert kept.folder == setup.store.with_name("store-synthetic") / digest[:12]
    assert manifest["synthetic"] is True
    assert manifest["generator"] == generator_digest(generator)
    assert manifest["seed"] == campaign.seed
    assert manifest["counts"] == {"images": 8, "slices": 4}
    assert manifest["report"]["memorised_share"] <= 1
    assert sorted(path.name for path in kept.folder.iterdir()) == ["images.npy", "labels.npy", MANIFEST]
    text = (kept.folder / MANIFEST).read_text()
    assert "site/" not in text, "no identity of a slice"


def edit(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    values = json.loads((folder / MANIFEST).read_text())
    change(values)
    (folder / MANIFEST).write_text(json.dumps(values))


@pytest.mark.parametrize("name", ["images.npy", "labels.npy"])
@pytest.mark.parametrize("damage", ["cut", "changed", "gone"])
def test_arrays_that_were_damaged_are_refused_with_the_way_out(
    name: str, damage: str, digest: str, train: Slices, setup: SiteSetup
) -> None:
    path = synthetic_folder(setup.store) / digest[:12] / name
    content = bytearray(path.read_bytes())
    if damage == "gone":
        path.unlink()
    else:
        content[-3] ^= 1
        path.write_bytes(content[:-8] if damage == "cut" else content)
    with pytest.raises(DataError, match="missing or damaged; remove it .wardround-site synthetic DIR --remove DIGEST"):
        load_synthetic(synthetic_folder(setup.store), digest, train)


@pytest.mark.parametrize(
    "change",
    [
        lambda values: values.pop("synthetic"),
        lambda values: values.update(synthetic=False),
        lambda values: values.update(format=99),
        lambda values: values.pop("content"),
        lambda values: values.update(report=[]),
        lambda values: values["report"].pop("refused"),
        lambda values: values["report"].pop("memorised_share"),
        lambda values: values["report"].update(memorised_share="many"),
        lambda values: values["report"].update(classes={"kind_a": 1}),
        lambda values: values["report"].update(refused=True),
        lambda values: values["report"].update(notes=[{"a": 1}]),
        lambda values: values.update(counts={}),
    ],
)
def test_a_manifest_that_was_changed_is_refused(
    change: Callable[[dict[str, Any]], None], digest: str, train: Slices, setup: SiteSetup
) -> None:
    edit(synthetic_folder(setup.store) / digest[:12], change)
    with pytest.raises(DataError, match="damaged|expected format"):
        load_synthetic(synthetic_folder(setup.store), digest, train)


def test_arrays_with_python_objects_are_never_unpickled(digest: str, train: Slices, setup: SiteSetup) -> None:
    folder = synthetic_folder(setup.store) / digest[:12]
    np.save(folder / "images.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    edit(folder, lambda values: values["sha256"].update(images=file_digest(folder / "images.npy")))
    with pytest.raises(DataError, match="missing or damaged"):
        load_synthetic(synthetic_folder(setup.store), digest, train)


def test_labels_that_name_other_slices_are_refused(digest: str, train: Slices, setup: SiteSetup) -> None:
    folder = synthetic_folder(setup.store) / digest[:12]
    labels = np.load(folder / "labels.npy")
    labels[0, 0] = 4
    np.save(folder / "labels.npy", labels)
    edit(folder, lambda values: values["sha256"].update(labels=file_digest(folder / "labels.npy")))
    with pytest.raises(DataError, match="does not fit"):
        load_synthetic(synthetic_folder(setup.store), digest, train)


def test_a_set_of_another_campaign_is_refused(
    digest: str, generator: Generator, train: Slices, campaign: CampaignConfig, setup: SiteSetup
) -> None:
    folder = synthetic_folder(setup.store)
    other = set_digest(replace(campaign, seed=1), generator_digest(generator))
    assert other != digest
    with pytest.raises(DataError, match="no synthetic set"):
        load_synthetic(folder, other, train)
    (folder / digest[:12]).rename(folder / other[:12])
    with pytest.raises(DataError, match="belongs to another campaign or generator"):
        load_synthetic(folder, other, train)


def test_a_set_of_other_slices_is_refused_and_drawn_anew_for_a_store_that_grew(
    digest: str, generator: Generator, train: Slices, campaign: CampaignConfig, setup: SiteSetup
) -> None:
    grown = textured_slices(5, seed=1)
    with pytest.raises(DataError, match="drawn from other training slices"):
        load_synthetic(synthetic_folder(setup.store), digest, grown)
    assert len(site_synthetic(generator, grown, campaign, setup)) == 10


def test_campaigns_that_only_train_otherwise_share_a_set(campaign: CampaignConfig) -> None:
    other = replace(campaign, augment=AugmentConfig(kind="contrast"), recognise=replace(campaign.recognise, channels=8))
    assert set_digest(other, "a") == set_digest(campaign, "a")
    assert set_digest(replace(campaign, seed=2), "a") != set_digest(campaign, "a")
    assert set_digest(campaign, "b") != set_digest(campaign, "a")


def refused(train: Slices) -> Drawn:
    report = {"refused": True, "reason": "61.0% are copies; train less", "classes": {}, "nearness": {}, "notes": []}
    report |= {"memorised_share": 0.61, "memorised_limit": 0.05, "rejected_share": 0.0, "mask_dice": None}
    images = Synthetic(train.clean_NCHW.clone(), torch.arange(len(train)), train.diagnosis_N)
    return Drawn(images, report)


def test_what_the_guards_refuse_leaves_no_image_and_is_refused_again_without_drawing(
    generator: Generator, train: Slices, campaign: CampaignConfig, setup: SiteSetup, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sets, "draw_synthetic", lambda *_, **__: refused(train))
    with pytest.raises(RefusedError, match="61.0% are copies; train less"):
        site_synthetic(generator, train, campaign, setup)
    (kept,) = kept_sets(setup.store)
    assert np.load(kept.folder / "images.npy").shape == (0, 1, 32, 32)
    no_drawing(monkeypatch)
    with pytest.raises(RefusedError, match="61.0%"):
        site_synthetic(generator, train, campaign, setup)


def test_a_set_whose_manifest_was_not_written_yet_is_none(
    generator: Generator, train: Slices, campaign: CampaignConfig, setup: SiteSetup, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(sets, "write_atomically", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            site_set(generator, train, campaign, setup)
    assert kept_sets(setup.store) == ()
    assert len(site_synthetic(generator, train, campaign, setup)) == 8


def test_a_set_is_removed_by_eight_characters_of_its_digest_and_not_by_fewer(digest: str, setup: SiteSetup) -> None:
    for wrong in (digest[:7], "0" * 12, "../store", ""):
        with pytest.raises(ConfigError, match="no synthetic set"):
            remove_set(setup.store, wrong)
    assert remove_set(setup.store, digest[:8]) == digest[:12]
    assert kept_sets(setup.store) == ()


def test_saving_replaces_a_set_whole(digest: str, train: Slices, setup: SiteSetup) -> None:
    folder = synthetic_folder(setup.store) / digest[:12]
    manifest = json.loads((folder / MANIFEST).read_text())
    report = json.loads((folder / MANIFEST).read_text())["report"]
    one = Drawn(Synthetic(train.clean_NCHW[:1], torch.tensor([2]), torch.tensor([-1])), report)
    known = {key: manifest[key] for key in ("digest", "name", "campaign", "generator", "seed", "content", "drawn_at")}
    save_synthetic(folder, one, known)
    found = load_synthetic(synthetic_folder(setup.store), digest, train)
    assert (found.source_S.tolist(), found.diagnosis_S.tolist()) == ([2], [-1])


def test_splits_of_a_store_never_hold_synthetic_images_and_evaluation_is_the_same_with_and_without(
    generator: Generator, campaign: CampaignConfig, setup: SiteSetup
) -> None:
    write_random_store(setup.store, campaign.data, patients=6, slices=2, seed=1)
    before = open_site(setup.store, "north", campaign)
    content = Store.open(setup.store)
    site_set(generator, before.train, campaign, setup, held_out=before.validation)
    after = open_site(setup.store, "north", campaign)
    assert Store.open(setup.store) == content
    assert [part.synthetic for part in (after.train, after.validation, after.test)] == [None] * 3
    assert after.test.identity == before.test.identity
    networks = build_networks(campaign)
    synthetic = site_synthetic(generator, after.train, campaign, setup, held_out=after.validation)
    trained_with = replace(after, train=replace(after.train, synthetic=synthetic))
    assert set(synthetic.source_S.tolist()) <= set(range(len(after.train)))
    plain, beside = (evaluate(networks, data.test, campaign, setup.machine).values for data in (before, trained_with))
    assert plain.keys() == beside.keys()
    assert all(np.array_equal(plain[name], beside[name], equal_nan=True) for name in plain)
    tainted = replace(after.test, synthetic=synthetic)
    judged = evaluate(networks, tainted, campaign, setup.machine).values
    assert all(np.array_equal(plain[name], judged[name], equal_nan=True) for name in plain)


def test_a_set_is_not_removed_while_a_program_draws_or_by_a_digest_that_only_begins_like_its_own(
    digest: str, setup: SiteSetup
) -> None:
    with pytest.raises(ConfigError, match="no synthetic set"):
        remove_set(setup.store, digest[:12] + "0" * 52)
    with drawing(setup.store), pytest.raises(ConfigError, match="draws synthetic images here"):
        remove_set(setup.store, digest)
    assert remove_set(setup.store, digest) == digest[:12]


def test_a_disk_that_takes_no_images_is_said_with_the_way_out(
    generator: Generator, train: Slices, campaign: CampaignConfig, setup: SiteSetup, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device", str(setup.store))

    monkeypatch.setattr(drawn_here, "write_array", full)
    with pytest.raises(DataError, match="permissions") as found:
        site_set(generator, train, campaign, setup)
    assert str(setup.store) not in str(found.value)


def test_more_images_than_memory_holds_are_refused_before_one_is_drawn(
    generator: Generator, train: Slices, campaign: CampaignConfig, setup: SiteSetup, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(drawn_here, "_drawn", lambda *_: pytest.fail("drawn"))
    monkeypatch.setattr("os.sysconf", lambda name: {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": 10}[name])
    with pytest.raises(DataError, match="fewer variants"):
        site_set(generator, train, campaign, setup)
