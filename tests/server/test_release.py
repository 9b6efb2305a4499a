"""`wardround-coordinator release`: a run that is over becomes a signed file, or is refused with the reason."""

from __future__ import annotations

import datetime as dt
import json
import multiprocessing
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from server import cli, folder
from server.about import add_site, write_about
from server.card import render_card
from server.release import made_releases, make_release
from shared.checkpoint import FederationState, save_round
from shared.config import CampaignConfig, ReleaseConfig, campaign_digest, load_campaign, save_campaign
from shared.errors import ConfigError, DataError, RefusedError
from shared.networks import build_networks
from shared.reference import Reference, save_reference
from shared.release import Manifest, read_release
from shared.trust import certificates, keystore, signing
from shared.types import Moments
from shared.weights import architecture_digest, to_arrays
from tests.shared.test_acceptance import good

NOW = dt.datetime(2026, 11, 22, 12, tzinfo=dt.UTC)
CONFIG = ReleaseConfig()


@pytest.fixture
def coordinator(tmp_path: Path) -> folder.Coordinator:
    return folder.found(tmp_path / "lead", "clinics", ("localhost",), 8443, NOW)


def run(path: Path, campaign: CampaignConfig, *, closing: bool = True, patients: int = 6, **changes: Moments) -> Path:
    """A run folder as a coordinator leaves it."""
    path.mkdir(parents=True)
    save_campaign(campaign, path / "campaign.json")
    write_about(path, campaign)
    for site in ("a", "b"):
        add_site(path, site, {"patients": 20, "test_patients": patients})
    weights = to_arrays(build_networks(replace(campaign, seed=7)))
    digests = campaign_digest(campaign), architecture_digest(weights)
    save_round(path / "checkpoints", FederationState(campaign.name, *digests, campaign.rounds.rounds, weights), {})
    metrics = {**good(**changes), "enhanced.psnr_db": Moments(6, 180, 5400), "describe.mean": Moments(6, 3, 1.6)}
    told = {k: {"count": m.count, "total": m.total, "total_sq": m.total_sq} for k, m in metrics.items()}
    evaluation = {"a": told, "b": told}
    common = {"seconds": 1.0, "bytes_up": 1}
    trained = {"training": {"a": {"samples": 8.0}}, "evaluation": {}}
    records: list[dict[str, Any]] = [{"round": n, **common, **trained} for n in range(1, campaign.rounds.rounds + 1)]
    if closing:
        records += [{"round": campaign.rounds.rounds + 1, **common, "training": {}, "evaluation": evaluation}]
    (path / "rounds.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


@pytest.mark.parametrize("layout", ["", "federation", "seed-0/federation"])
def test_a_run_of_any_folder_becomes_a_release_that_a_site_can_verify(
    layout: str, coordinator: folder.Coordinator, campaign: CampaignConfig, tmp_path: Path
) -> None:
    campaign = replace(campaign, data=replace(campaign.data, root="/somewhere/secret"))
    run(tmp_path / "run" / layout, campaign)
    out = tmp_path / "tiny.release"
    made = make_release(coordinator, tmp_path / "run", out, CONFIG, NOW)
    release = read_release(out)
    ca = coordinator.authority.read_bytes()
    signing.verify(ca, release.signer_pem, release.manifest_bytes, release.signature, NOW)
    manifest = release.manifest
    assert made.digest == release.digest == manifest.digest
    assert (manifest.name, manifest.version, manifest.lesion) == ("tiny", 1, "lesion")
    assert manifest.federation == {"name": "clinics", "authority": certificates.fingerprint(ca)}
    assert manifest.sites == {site: {"patients": 20, "test_patients": 6} for site in ("a", "b")}
    assert {(row["setting"], row["test_site"]) for row in manifest.rows} == {
        ("federated", s) for s in ("a", "b", "all")
    }
    assert {gate["site"] for gate in manifest.gates} == {"a", "b", "all"}
    assert manifest.privacy["epsilon"] is None
    assert "without differential privacy" in manifest.privacy["words"]
    assert manifest.descriptors == {
        "mean": {s: {"count": 6, "mean": 0.5, "std": pytest.approx(0.1291, abs=1e-4)} for s in "ab"}
    }
    # What a site builds of it is what the run had trained, and no place of this machine travels.
    assert b"secret" not in out.read_bytes()
    (tmp_path / "campaign.json").write_bytes(release.files["campaign.json"])
    shipped = load_campaign(tmp_path / "campaign.json")
    assert campaign_digest(shipped) == manifest.campaign_digest
    from safetensors.numpy import load

    expected = to_arrays(build_networks(replace(campaign, seed=7)))
    weights = load(release.files["weights.safetensors"])
    assert weights.keys() == expected.keys()
    assert all((weights[name] == expected[name]).all() for name in expected)
    assert manifest.architecture_digest == architecture_digest(expected)


def test_versions_count_up_per_name_and_are_listed(
    coordinator: folder.Coordinator, campaign: CampaignConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_dir, lead = run(tmp_path / "run", campaign), str(coordinator.folder)
    for number, name in enumerate(("tiny", "tiny", "other")):
        command = ["release", lead, str(run_dir), str(tmp_path / f"{number}.release"), "--name", name, "erased=0.2"]
        assert cli.main(command) == 0
    shown = capsys.readouterr().out
    assert "tiny v2; release digest" in shown
    assert "nothing" in shown  # a figure of too few decides nothing, in words
    assert [(each.name, each.version) for each in made_releases(coordinator)] == [
        ("other", 1),
        ("tiny", 1),
        ("tiny", 2),
    ]
    assert cli.main(["releases", lead, "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert listed[2]["digest"] == read_release(tmp_path / "1.release").digest
    assert read_release(tmp_path / "0.release").manifest.gates_config["erased"] == 0.2
    assert cli.main(["releases", lead]) == 0
    assert listed[0]["digest"] in capsys.readouterr().out


def _make(lead: Path, run_dir: Path, out: Path) -> None:
    make_release(folder.read(lead), run_dir, out, CONFIG, NOW)


@pytest.mark.slow
def test_two_at_once_get_two_versions(
    coordinator: folder.Coordinator, campaign: CampaignConfig, tmp_path: Path
) -> None:
    run_dir, spawn = run(tmp_path / "run", campaign), multiprocessing.get_context("spawn")
    outs = [tmp_path / f"{number}.release" for number in range(3)]
    processes = [spawn.Process(target=_make, args=(coordinator.folder, run_dir, out)) for out in outs]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
    assert sorted(read_release(out).manifest.version for out in outs) == [1, 2, 3]


def test_a_kill_before_the_version_is_taken_leaves_nothing_and_after_it_all_of_it(
    coordinator: folder.Coordinator, campaign: CampaignConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_dir, out = run(tmp_path / "run", campaign), tmp_path / "x.release"

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("shared.checkpoint.os.replace", killed)  # everything is written, nothing is in place
        with pytest.raises(KeyboardInterrupt):
            make_release(coordinator, run_dir, out, CONFIG, NOW)
    assert made_releases(coordinator) == []
    assert not out.exists()
    from shared import release as files

    whole = files.write_release
    with monkeypatch.context() as patched:
        patched.setattr(files, "write_release", lambda path, made: killed() if path == out else whole(path, made))
        with pytest.raises(KeyboardInterrupt):
            make_release(coordinator, run_dir, out, CONFIG, NOW)
    assert [each.version for each in made_releases(coordinator)] == [1]
    assert make_release(coordinator, run_dir, out, CONFIG, NOW).manifest.version == 2


def test_a_gate_that_does_not_hold_is_refused_in_one_line_and_takes_no_version(
    coordinator: folder.Coordinator, campaign: CampaignConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_dir = run(tmp_path / "run", campaign, **{"harm.psnr_db": Moments(6, 120, 2400)})
    assert cli.main(["release", str(coordinator.folder), str(run_dir), str(tmp_path / "x.release")]) == 3
    error = capsys.readouterr().err
    assert "the gate harm_psnr_db does not hold at site a: got 20, limit 30, of 6 images" in error
    assert error.count("\n") == 1
    assert not (tmp_path / "x.release").exists()
    assert made_releases(coordinator) == []
    made = make_release(coordinator, run_dir, tmp_path / "x.release", ReleaseConfig(harm_psnr_db=15), NOW)
    assert made.manifest.gates_config["harm_psnr_db"] == 15


def refused(
    error: type[Exception], reason: str, coordinator: folder.Coordinator, run_dir: Path, **options: Any
) -> None:
    with pytest.raises(error, match=reason):
        make_release(coordinator, run_dir, run_dir.parent / "x.release", CONFIG, NOW, **options)
    assert not (run_dir.parent / "x.release").exists()
    assert made_releases(coordinator) == []


def test_a_run_that_cannot_be_released_is_refused_with_the_way_out(
    coordinator: folder.Coordinator, campaign: CampaignConfig, tmp_path: Path
) -> None:
    refused(DataError, "resume it", coordinator, run(tmp_path / "early", campaign, closing=False))
    refused(DataError, "give the folder of a run", coordinator, tmp_path)
    older = run(tmp_path / "older", campaign)
    text = (older / "rounds.jsonl").read_text()
    (older / "rounds.jsonl").write_text(re.sub(r"accept\.", "before.", text))
    refused(RefusedError, "older Wardround; install this version", coordinator, older)
    whole = run(tmp_path / "whole", campaign)
    refused(ConfigError, "release name must be", coordinator, whole, name="../x")
    wrong = Reference(*(torch.zeros(shape) for shape in ((2, 1, 8, 8), (2, 1, 8, 8), (2, 8, 8), (2,))))
    save_reference(tmp_path / "wrong.safetensors", wrong)
    refused(ConfigError, "the campaign of", coordinator, whole, reference=tmp_path / "wrong.safetensors")
    refused(RefusedError, "none can decide", coordinator, run(tmp_path / "few", campaign, patients=2))


def test_a_reference_set_travels_with_the_release(
    coordinator: folder.Coordinator, campaign: CampaignConfig, tmp_path: Path
) -> None:
    images = torch.rand(2, 1, 32, 32)
    reference = Reference(images, images, torch.zeros(2, 32, 32, dtype=torch.uint8), torch.ones(2, dtype=torch.uint8))
    save_reference(tmp_path / "reference.safetensors", reference)
    out = tmp_path / "x.release"
    run_dir = run(tmp_path / "run", campaign)
    make_release(coordinator, run_dir, out, CONFIG, NOW, reference=tmp_path / "reference.safetensors")
    assert read_release(out).files["reference.safetensors"] == (tmp_path / "reference.safetensors").read_bytes()


def test_the_signer_is_made_once_also_in_an_older_folder_and_anew_in_its_last_year(
    coordinator: folder.Coordinator,
) -> None:
    assert not (coordinator.folder / "ca" / "release.key").exists()
    first = folder.release_signer(coordinator, NOW)
    keystore.check_private(coordinator.folder / "ca" / "release.key")
    assert folder.release_signer(coordinator, NOW + dt.timedelta(days=1400)) == first
    later = NOW + dt.timedelta(days=certificates.SIGNER_DAYS - 300)
    second = folder.release_signer(coordinator, later)
    assert second != first
    assert certificates.days_left(second.certificate, later) == certificates.SIGNER_DAYS
    (coordinator.folder / "ca" / "release.crt").write_bytes(first.certificate)  # a kill between the two files
    third = folder.release_signer(coordinator, NOW)
    content = b"x"
    signing.verify(
        coordinator.authority.read_bytes(), third.certificate, content, signing.sign(third.key, content), NOW
    )


# ------------------------------------------------------------------------------------------------------------ the card


def test_the_card_shows_what_the_manifest_says_and_needs_nothing_from_elsewhere(
    coordinator: folder.Coordinator, campaign: CampaignConfig, tmp_path: Path
) -> None:
    out = tmp_path / "x.release"
    make_release(coordinator, run(tmp_path / "run", campaign), out, CONFIG, NOW)
    release = read_release(out)
    page = release.files["card.html"].decode()
    for words in ("tiny v1", "Research only", "not for diagnosis", "clinics", "gain in PSNR", "share of found lesions",
                  "without differential privacy", "decides nothing", "all sites", "✓ 3.500",
                  release.manifest.campaign_digest,
                  release.manifest.files["weights.safetensors"]["sha256"]):  # fmt: skip
        assert str(words) in page
    assert "<script" not in page
    assert not re.search(r"""(src|href)\s*=|url\(|@import|https?:""", page)


def test_what_stands_in_a_manifest_is_text_on_the_card(
    coordinator: folder.Coordinator, campaign: CampaignConfig, tmp_path: Path
) -> None:
    evil = "<img src=x onerror=alert(1)>"
    out = tmp_path / "x.release"
    make_release(coordinator, run(tmp_path / "run", campaign), out, CONFIG, NOW)
    manifest: Manifest = read_release(out).manifest
    rows: list[Mapping[str, Any]] = [{**manifest.rows[0], "test_site": evil}]
    gates = [{**gate, "gate": evil} for gate in manifest.gates]
    page = render_card(
        replace(
            manifest, intended_use=evil, lesion=evil, wardround=evil, versions={evil: evil}, rows=rows, gates=gates,
            descriptors={evil: {"a": {"count": 1, "mean": 1.0, "std": 0.0}}}, gates_config={evil: 1},
            sites={"a": {evil: 1}, "b": {}}, privacy={"epsilon": 3.0, "words": evil},
        )
    )  # fmt: skip
    assert "<img" not in page
    assert page.count("&lt;img") >= 9
