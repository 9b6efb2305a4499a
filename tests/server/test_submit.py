"""A campaign into a run, and following it: Flower's command line is replaced by three functions."""

from __future__ import annotations

import datetime as dt
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from server import folder, processes, submit
from server.manifests import check_number, make_manifest, manifest_of, named_sites, own_manifest
from server.outcome import read_outcome, write_outcome
from server.records import write_records
from shared.config import CampaignConfig, SecAggConfig, build, load_campaign, to_dict
from shared.errors import ConfigError, DataError, PeerError, RefusedError
from shared.manifest import SignedManifest
from shared.secagg.messages import LARGEST_COHORT
from shared.trust import keystore
from shared.trust.identity import create_exchange_key, load_identity

NOW = dt.datetime(2026, 11, 21, tzinfo=dt.UTC)


class Flower:
    """What the SuperLink was asked, and what it answers."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.status = "running"
        self.started: list[tuple[Path, Path]] = []
        self.stopped: list[str] = []
        monkeypatch.setattr(processes, "start_run", self.start)
        monkeypatch.setattr(processes, "run_status", lambda _, run_id: processes.RunStatus(run_id, self.status))
        monkeypatch.setattr(processes, "stop_run", lambda _, run_id: self.stopped.append(run_id))
        monkeypatch.setattr(submit, "POLL_S", 0.01)
        monkeypatch.setattr(submit, "FLOWER_POLL_S", 0.05)

    def start(self, _: object, app: Path, values: Path) -> str:
        self.started.append((app, values))
        return str(len(self.started))


@pytest.fixture
def flower(monkeypatch: pytest.MonkeyPatch) -> Flower:
    return Flower(monkeypatch)


@pytest.fixture
def coordinator(tmp_path: Path) -> folder.Coordinator:
    made = folder.found(tmp_path / "c", "test", (), 8443, NOW)
    for site in ("north", "south", "west"):
        admit(made, site, tmp_path / "keys")
    return made


def admit(coordinator: folder.Coordinator, site: str, keys: Path) -> None:
    """As add-site does with key.pub and key.json."""
    home = keys / site
    home.mkdir(parents=True)
    public = keystore.create_site_key(home / "key")
    create_exchange_key(home / "exchange.key")
    shown = load_identity(site, home / "key", home / "exchange.key").public
    folder.admit(coordinator, site, public)
    (coordinator.folder / "sites" / f"{site}.json").write_text(json.dumps(shown.to_json()))


def signed(coordinator: folder.Coordinator, campaign: CampaignConfig, *sites: str) -> SignedManifest:
    whole = build(CampaignConfig, to_dict(campaign))
    return make_manifest(coordinator, whole, named_sites(coordinator, sites), NOW)


def ignore(_: object) -> None: ...


def record(number: int) -> dict[str, Any]:
    return {"round": number, "seconds": 1.0, "participants": ["north"], "dropped": {}}


def test_a_run_folder_is_prepared_and_tells_sites_no_path(
    coordinator: folder.Coordinator, campaign: CampaignConfig, flower: Flower, tmp_path: Path
) -> None:
    manifest = signed(coordinator, campaign, "south", "north")
    submitted = submit.submit(coordinator, manifest)
    assert (submitted.run_id, submitted.sites, submitted.known) == ("1", ("north", "south"), frozenset())
    assert load_campaign(submitted.run_dir / "campaign.json") == manifest.campaign
    kept = manifest_of(submitted.run_dir)
    assert kept is not None
    assert kept.digest == manifest.digest
    app, values = flower.started[0]
    assert json.loads((app / "manifest.json").read_text())["manifest_digest"] == manifest.digest
    assert values.read_text() == 'run-dir = "runs/tiny"\nsites = "north,south"\n'
    assert str(tmp_path) not in "".join(path.read_text() for path in app.parent.rglob("*") if path.is_file())


def test_all_admitted_sites_by_default(coordinator: folder.Coordinator, campaign: CampaignConfig) -> None:
    assert tuple(signed(coordinator, campaign).manifest.sites) == ("north", "south", "west")


@pytest.mark.parametrize(
    ("sites", "reason"), [(("north", "east"), "'east' is not admitted"), (("north",), "can never be met by 1 sites")]
)
def test_sites_that_cannot_be_are_refused_before_anything_is_signed(
    coordinator: folder.Coordinator, campaign: CampaignConfig, sites: tuple[str, ...], reason: str
) -> None:
    with pytest.raises(ConfigError, match=reason):
        signed(coordinator, campaign, *sites)
    assert not (coordinator.folder / "ca" / "release.crt").exists()


def test_more_sites_than_a_masked_sum_takes_are_refused_before_the_campaign_runs(campaign: CampaignConfig) -> None:
    masked = replace(campaign, rounds=replace(campaign.rounds, quorum=3), secagg=SecAggConfig(kind="masked"))
    check_number(masked, LARGEST_COHORT)
    check_number(campaign, LARGEST_COHORT + 1)
    with pytest.raises(
        ConfigError, match=f"adds up {LARGEST_COHORT} sites at most, and {LARGEST_COHORT + 1} are named"
    ):
        check_number(masked, LARGEST_COHORT + 1)


def test_a_site_without_its_key_json_or_with_anothers_is_not_signed_for(
    coordinator: folder.Coordinator, campaign: CampaignConfig
) -> None:
    sites = coordinator.folder / "sites"
    (sites / "north.json").write_bytes((sites / "south.json").read_bytes())
    with pytest.raises(DataError, match="not of the key that site north was admitted with"):
        signed(coordinator, campaign)
    (sites / "north.json").unlink()
    with pytest.raises(ConfigError, match="admit it by its key.json"):
        signed(coordinator, campaign)


def test_a_file_runs_only_if_this_coordinator_signed_it_for_sites_that_are_still_in(
    coordinator: folder.Coordinator, campaign: CampaignConfig, tmp_path: Path
) -> None:
    manifest = signed(coordinator, campaign)
    file = tmp_path / "campaign.json"
    file.write_bytes(manifest.to_json())
    assert own_manifest(coordinator, file, NOW).digest == manifest.digest
    file.write_bytes(manifest.to_json().replace(b'"seed": 0', b'"seed": 1'))
    with pytest.raises(RefusedError, match="the signature is wrong"):
        own_manifest(coordinator, file, NOW)
    other = folder.found(tmp_path / "other", "test", (), 8443, NOW)
    file.write_bytes(manifest.to_json())
    with pytest.raises(RefusedError, match="signed for another federation"):
        own_manifest(other, file, NOW)
    (coordinator.folder / "sites" / "west.pub").unlink()
    with pytest.raises(ConfigError, match="site west is not in this federation any more"):
        own_manifest(coordinator, file, NOW)


def test_run_never_goes_over_finished_rounds_and_resume_goes_on(
    coordinator: folder.Coordinator, campaign: CampaignConfig, flower: Flower
) -> None:
    with pytest.raises(ConfigError, match="nothing to resume"):
        submit.submit(coordinator, signed(coordinator, campaign), resume=True)
    run_dir = submit.submit(coordinator, signed(coordinator, campaign)).run_dir
    (run_dir / "checkpoints").mkdir()
    (run_dir / "checkpoints" / "round-1").touch()
    write_records(run_dir, [record(1)])
    write_outcome(run_dir, PeerError("lost"))
    flower.status = "finished:failed"
    with pytest.raises(ConfigError, match="continue with resume"):
        submit.submit(coordinator, signed(coordinator, campaign))
    resumed = submit.submit(coordinator, signed(coordinator, campaign), resume=True)
    assert resumed.known == {("", 1)}
    assert read_outcome(run_dir) is None  # the old outcome would end the new wait at once
    assert not flower.stopped
    assert json.loads((run_dir / "flower.json").read_text()) == {"run_ids": ["1", "2"]}


def test_two_runs_never_share_a_folder(
    coordinator: folder.Coordinator, campaign: CampaignConfig, flower: Flower
) -> None:
    submit.submit(coordinator, signed(coordinator, campaign))
    with pytest.raises(ConfigError, match="under way already"):
        submit.submit(coordinator, signed(coordinator, campaign))
    assert not flower.stopped
    submit.submit(coordinator, signed(coordinator, campaign), resume=True)
    assert flower.stopped == ["1"]


def test_another_agreement_of_the_same_name_is_refused(
    coordinator: folder.Coordinator, campaign: CampaignConfig, flower: Flower
) -> None:
    run_dir = submit.submit(coordinator, signed(coordinator, campaign)).run_dir
    before = (run_dir / "campaign.json").read_text()
    for resume in (False, True):
        with pytest.raises(ConfigError, match="another agreement"):
            submit.submit(coordinator, signed(coordinator, replace(campaign, seed=1)), resume=resume)
    assert (run_dir / "campaign.json").read_text() == before


def test_following_tells_each_round_once_and_ends_with_the_outcome(
    coordinator: folder.Coordinator, campaign: CampaignConfig, flower: Flower
) -> None:
    submitted = replace(submit.submit(coordinator, signed(coordinator, campaign)), known=frozenset({("", 1)}))
    write_records(submitted.run_dir, [record(1), record(2), record(3)])
    write_outcome(submitted.run_dir, None)
    told: list[int] = []
    submit.follow(coordinator, submitted, lambda one: told.append(one["round"]), ignore)
    assert told == [2, 3]
    write_outcome(submitted.run_dir, RefusedError("north declined: not approved here"))
    with pytest.raises(RefusedError, match="not approved here"):
        submit.follow(coordinator, submitted, ignore, ignore)


@pytest.mark.parametrize("status", ["finished:failed", "finished:stopped"])
def test_a_run_that_died_without_a_word_is_noticed(
    coordinator: folder.Coordinator, campaign: CampaignConfig, flower: Flower, status: str
) -> None:
    submitted = submit.submit(coordinator, signed(coordinator, campaign))
    flower.status = status
    with pytest.raises(PeerError, match=f"{status} without a word; go on at the lost round with resume"):
        submit.follow(coordinator, submitted, ignore, ignore)


def test_a_link_that_is_just_coming_back_does_not_end_the_wait(
    coordinator: folder.Coordinator, campaign: CampaignConfig, flower: Flower, monkeypatch: pytest.MonkeyPatch
) -> None:
    submitted = submit.submit(coordinator, signed(coordinator, campaign))
    asked: list[str] = []

    def away(_: object, run_id: str) -> processes.RunStatus:
        asked.append(run_id)
        if len(asked) == 3:
            write_outcome(submitted.run_dir, None)
        raise PeerError("the SuperLink does not answer")

    monkeypatch.setattr(processes, "run_status", away)
    submit.follow(coordinator, submitted, ignore, ignore)
    assert len(asked) >= 3
