"""`wardround-site generators | generate | synthetic`: what arrived, what is drawn from it, and how it goes again."""

from __future__ import annotations

import datetime as dt
import io
import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from client import cli
from client.generate.manifest import kept_sets
from client.generate.pictures import GAP, ROWS, VARIANTS, ZOOM, png, write_sheet
from client.generators import generator_folder, keep
from client.site import load_site
from shared.config import CampaignConfig, DrawConfig, GenerateConfig, build, campaign_digest, to_dict
from shared.generate.networks import build_generator, parts_arrays
from shared.reach import free_port
from shared.trust import certificates
from simulation.bench.stores import write_random_store
from tests.client.generate.textured import textured_slices


@pytest.fixture
def campaign(campaign: CampaignConfig) -> CampaignConfig:
    draw = DrawConfig(sampler="rflow", steps=1, variants=2, memorised_share=1.0)
    generating = replace(campaign, generate=GenerateConfig(kind="emit-diff", prediction="velocity", draw=draw))
    return build(CampaignConfig, to_dict(generating))


@pytest.fixture
def site(tmp_path: Path, campaign: CampaignConfig, capsys: pytest.CaptureFixture[str]) -> Path:
    now = dt.datetime.now(dt.UTC)
    (tmp_path / "ca.crt").write_bytes(certificates.create_authority("test", now).certificate)
    address = f"127.0.0.1:{free_port()}"
    folder = tmp_path / "site"
    arguments = ["init", str(folder), "--name", "north", "--coordinator", address, "--ca", str(tmp_path / "ca.crt")]
    assert cli.main(arguments) == 0
    capsys.readouterr()
    (folder / "site.json").write_text(
        json.dumps({**json.loads((folder / "site.json").read_text()), "machine": {"device": "cpu", "threads": 1}})
    )
    write_random_store(folder / "store", campaign.data, patients=6, slices=1, seed=1)
    return folder


def arrive(site: Path, campaign: CampaignConfig, *, without: str = "") -> str:
    """The campaign's generator, as rounds would have left it; returns its digest."""
    generator = build_generator(campaign)
    arrays = parts_arrays(generator, [name for name in generator.all if name != without])
    folder = generator_folder(load_site(site / "site.json").generators, campaign)
    keep(folder, campaign, arrays)
    return folder.name


def said(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert cli.main([*arguments]) == 0
    return capsys.readouterr().out


def fails(capsys: pytest.CaptureFixture[str], arguments: list[str], code: int, reason: str) -> None:
    assert cli.main(arguments) == code
    error = capsys.readouterr().err
    assert reason in error
    assert error.count("\n") == 1


def test_nothing_has_arrived_and_nothing_is_drawn_in_the_beginning(
    site: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "No generator has arrived" in said(capsys, "generators", str(site))
    assert "No synthetic images at this site" in said(capsys, "synthetic", str(site))
    reason = "no generator of campaign 'tiny'; name one by its digest, see: wardround-site generators"
    fails(capsys, ["generate", str(site), "--campaign", "tiny"], 2, reason)


def test_a_generator_is_listed_drawn_from_by_name_looked_at_and_its_images_removed(
    site: Path, campaign: CampaignConfig, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    digest = arrive(site, campaign)
    assert digest == campaign_digest(campaign)
    (row,) = json.loads(said(capsys, "generators", str(site), "--json"))
    assert (row["digest"], row["campaign"], row["missing"]) == (digest, "tiny", [])
    assert row["size_bytes"] > 1e6
    assert digest in re.sub("[^0-9a-f]", "", said(capsys, "generators", str(site)).partition("tiny")[2])

    told = said(capsys, "generate", str(site), "--campaign", "tiny", "--pictures", str(tmp_path / "look"))
    assert "for this site alone" in told
    (kept,) = kept_sets(site / "store")
    assert kept.manifest["counts"]["images"] > 0
    (sheet,) = (tmp_path / "look").iterdir()
    assert sheet.name == f"synthetic-{kept.digest[:12]}.png"
    with Image.open(sheet) as picture:
        assert picture.size[0] == (2 + VARIANTS) * (32 + GAP) * ZOOM

    (listed,) = json.loads(said(capsys, "synthetic", str(site), "--json"))
    assert listed["synthetic"] is True
    assert "store" not in json.dumps(listed)
    assert kept.digest[:12] in said(capsys, "synthetic", str(site), "--remove", kept.digest[:12])
    assert kept_sets(site / "store") == ()


def test_other_variants_make_a_set_beside_the_campaigns(
    site: Path, campaign: CampaignConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    digest = arrive(site, campaign)
    said(capsys, "generate", str(site), "--campaign", digest[:8])
    said(capsys, "generate", str(site), "--campaign", digest, "--variants", "1")
    one, two = sorted(kept.manifest["counts"]["images"] for kept in kept_sets(site / "store"))
    assert two == 2 * one
    reason = "generate.draw.variants must be 1 to 1000"
    fails(capsys, ["generate", str(site), "--campaign", "tiny", "--variants", "0"], 2, reason)


def test_a_generator_whose_phases_are_not_over_is_not_drawn_from(
    site: Path, campaign: CampaignConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    arrive(site, campaign, without="controlnet")
    (row,) = json.loads(said(capsys, "generators", str(site), "--json"))
    assert row["missing"] == ["controlnet"]
    assert "controlnet" in said(capsys, "generators", str(site))
    fails(capsys, ["generate", str(site), "--campaign", "tiny"], 5, "still waits for controlnet")


def test_a_generator_whose_campaign_was_changed_is_refused(
    site: Path, campaign: CampaignConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = load_site(site / "site.json").generators / arrive(site, campaign)
    text = (folder / "campaign.json").read_text()
    (folder / "campaign.json").write_text(re.sub(r'"variants": 2', '"variants": 9', text))
    fails(capsys, ["generators", str(site)], 5, "does not belong to the campaign beside it")


def test_a_refused_generator_ends_with_exit_code_3_and_the_figure(
    site: Path, campaign: CampaignConfig, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from client.generate import draw

    strict = replace(campaign.generate.draw, memorised_share=0.01)
    campaign = replace(campaign, generate=replace(campaign.generate, draw=strict))
    arrive(site, campaign)
    from client.dataset import open_site

    train = open_site(site / "store", "north", campaign).train
    monkeypatch.setattr(draw, "sample", lambda *given, **_: train.clean_NCHW[:1].expand(len(given[5]), -1, -1, -1))
    reason = "100.0% of the synthetic images are copies of training images, expected at most 1.0%"
    fails(capsys, ["generate", str(site), "--campaign", "tiny"], 3, reason)
    shown = said(capsys, "synthetic", str(site))
    assert "none: refused" in shown
    assert "100.0 % (limit 1.0 %)" in shown


def test_listing_needs_no_torch() -> None:
    code = "import client.generate.arrived, client.generate.manifest, sys; print('torch' in sys.modules)"
    root = Path(__file__).parents[3]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=root)
    assert done.stdout.strip() == "False"


@pytest.mark.parametrize("channels", [1, 3])
def test_a_png_is_what_another_reader_reads(channels: int) -> None:
    image = torch.rand(channels, 5, 7, generator=torch.Generator().manual_seed(0))
    with Image.open(io.BytesIO(png(image))) as picture:
        found = np.asarray(picture)
    expected = (image.permute(1, 2, 0).numpy() * 255).round().repeat(ZOOM, 0).repeat(ZOOM, 1)
    assert np.array_equal(found if channels == 3 else found[..., None], expected)


def test_a_sheet_shows_a_row_for_slices_of_each_diagnosis_and_has_room_for_few_variants(
    campaign: CampaignConfig, tmp_path: Path
) -> None:
    from client.dataset import Synthetic

    train = textured_slices(30, seed=1)
    synthetic = Synthetic(train.clean_NCHW[:20], torch.arange(20), train.diagnosis_N[:20])
    with Image.open(write_sheet(tmp_path / "sheet.png", train, synthetic, campaign)) as picture:
        assert picture.size == ((2 + VARIANTS) * (32 + GAP) * ZOOM, ROWS * (32 + GAP) * ZOOM)
        grey = np.asarray(picture)[::ZOOM, ::ZOOM] / 255
    assert np.allclose(grey[:32, :32], train.clean_NCHW[0, 0], atol=1 / 255)
    assert np.allclose(grey[:32, 72 : 72 + 32], train.clean_NCHW[0, 0], atol=1 / 255)
    assert not grey[:, 3 * 36 :].any()
