"""An adaptation is kept only where it is better here and forgets nothing; however it ends, the release stays whole."""

from __future__ import annotations

import fcntl
import json
import math
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from client import cli
from client.folder import SiteFolder
from client.personalise import Figures, _keep, compared, drop, gain_bound_db, personalise, reasons_against
from client.releases import install, installed
from shared.config import CampaignConfig, PersonaliseConfig, SplitConfig, build, save_campaign, to_dict
from shared.errors import ConfigError, DataError, RefusedError
from shared.networks import build_networks
from shared.reference import Reference, to_bytes
from shared.trust.certificates import Pair
from shared.weights import to_arrays
from simulation.bench.stores import write_random_store
from tests.client.release_files import NOW, authority, released, site_of

CONFIG = PersonaliseConfig(method="finetune", steps=25, batch_size=4, learning_rate=5e-3)


@pytest.fixture(scope="module")
def ours() -> Pair:
    return authority()


@pytest.fixture
def campaign(campaign: CampaignConfig) -> CampaignConfig:
    """Small images; enough held-out patients for an interval."""
    data = replace(campaign.data, image_size=(24, 24), split=SplitConfig(train=0.5, validation=0.0, test=0.5))
    return build(CampaignConfig, to_dict(replace(campaign, data=data)))


def reference_of(noise: float) -> Reference:
    """Flat images with so much noise; with none, an enhancer can only lose."""
    rng = torch.Generator().manual_seed(0)
    clean = 0.3 + 0.1 * torch.rand(6, 1, 24, 24, generator=rng)
    degraded = (clean + noise * torch.randn(clean.shape, generator=rng)).clamp(0, 1)
    return Reference(clean, degraded, torch.zeros(6, 24, 24, dtype=torch.uint8), torch.zeros(6, dtype=torch.uint8))


def put_in_force(
    site: SiteFolder, campaign: CampaignConfig, by: Pair, reference: Reference | None, version: int = 1
) -> None:
    """Its enhancer is the identity, which is easily improved on."""
    further = {} if reference is None else {"reference.safetensors": to_bytes(reference)}
    arrays = to_arrays(build_networks(campaign))
    file = site.folder.parent / f"v{version}.release"
    install(site, released(file, campaign, by, version=version, arrays=arrays, further=further), NOW)


@pytest.fixture
def site(tmp_path: Path, campaign: CampaignConfig, ours: Pair) -> SiteFolder:
    site = site_of(tmp_path / "site", ours)
    write_random_store(site.store, campaign.data, patients=8, slices=2, seed=1)
    put_in_force(site, campaign, ours, reference_of(0.1))
    return site


def files_of(site: SiteFolder) -> dict[str, bytes]:
    home = site.folder / "releases"
    return {
        str(path.relative_to(home)): path.read_bytes()
        for path in home.rglob("*")
        if path.is_file() and "lock" not in path.name
    }


def in_force(site: SiteFolder, *, adapted: bool = True) -> dict[str, np.ndarray]:
    return to_arrays(installed(site).networks(adapted))


# ------------------------------------------------------------------------------------------- the decision


def figures(psnr_db: list[float], reference: float = 30.0, dice: float = math.nan) -> Figures:
    return Figures(np.array(psnr_db), math.nan, reference, dice)


def test_the_gain_is_paired_and_its_bound_is_students() -> None:
    before, after = figures([20.0, 30.0, 25.0, 28.0]), figures([20.5, 30.4, 25.6, 28.3])
    gains = np.array([0.5, 0.4, 0.6, 0.3])
    quantile = 2.3533634348018264  # t of 3 degrees of freedom at 0.95
    expected = gains.mean() - quantile * gains.std(ddof=1) / 2
    assert gain_bound_db(before, after) == pytest.approx(expected)
    assert compared(before, after)["gain_db"] == pytest.approx(0.45)


@pytest.mark.parametrize(
    ("after", "config", "reasons"),
    [
        (figures([21.0, 31.1]), {}, []),
        (figures([21.0, 31.1]), {"least_gain_db": 1.0}, ["least_gain_db=1 is needed"]),
        (figures([23.0, 29.9]), {}, ["gain 1.450 dB, at least -"]),
        (figures([20.0, 30.0]), {}, ["more than least_gain_db=0"]),
        (figures([21.0, 31.1], 29.91), {}, []),
        (figures([21.0, 31.1], 29.8), {}, ["loses 0.200 dB of PSNR, more than margin_db=0.1"]),
        (figures([21.0, 31.1], 29.8), {"margin_db": 0.3}, []),
        (figures([21.0, 31.1], 30.0, 0.78), {}, ["loses 0.020 of Dice, more than margin_dice=0.01"]),
        (figures([21.0, 31.1], math.nan), {}, ["loses nan dB"]),
        (figures([math.nan, 31.1]), {}, ["held-out patients gain nan"]),
        (figures([19.0, 29.1], 20.0, 0.5), {}, ["held-out", "PSNR", "Dice"]),
    ],
)
def test_it_is_kept_only_if_every_condition_holds(after: Figures, config: dict[str, Any], reasons: list[str]) -> None:
    before = figures([20.0, 30.0], 30.0, 0.8 if not math.isnan(after.reference_dice) else math.nan)
    found = reasons_against(before, after, PersonaliseConfig(**config))
    assert len(found) == len(reasons)
    for said, expected in zip(found, reasons, strict=True):
        assert expected in said


# ------------------------------------------------------------------------------------------- a site


def test_what_is_better_here_and_forgets_nothing_is_kept(site: SiteFolder) -> None:
    seen: list[tuple[str, int, int]] = []
    outcome = personalise(site, CONFIG, NOW, on_progress=lambda *at: seen.append(at))
    assert outcome.kept
    assert outcome.reasons == ()
    assert ("adapting", 25, 25) in seen
    record = installed(site).personal
    assert record is not None
    assert (record["method"], record["steps"], record["release"]) == ("finetune", 25, installed(site).digest)
    assert record["figures"]["patients"] == 4
    assert record["figures"]["gain_bound_db"] > 0
    assert record["figures"]["psnr_db"]["after"] > record["figures"]["psnr_db"]["before"]
    now, came = in_force(site), in_force(site, adapted=False)
    for name, values in now.items():
        assert np.array_equal(values, came[name]) is not name.startswith("enhancer."), name


def test_an_adaptation_begins_at_the_release_and_not_at_the_one_in_force(site: SiteFolder) -> None:
    personalise(site, CONFIG, NOW)
    first = in_force(site)
    personalise(site, CONFIG, NOW)
    for name, values in in_force(site).items():
        assert np.array_equal(values, first[name])


def test_what_gains_too_little_is_not_kept_and_nothing_changes(site: SiteFolder) -> None:
    before = files_of(site)
    outcome = personalise(site, replace(CONFIG, least_gain_db=50.0), NOW)
    assert not outcome.kept
    assert "least_gain_db=50" in outcome.reasons[0]
    assert files_of(site) == before
    assert drop(site) is False


def test_what_forgets_is_not_kept_and_the_former_adaptation_stays(
    site: SiteFolder, campaign: CampaignConfig, ours: Pair
) -> None:
    put_in_force(site, campaign, ours, reference_of(0.0), version=2)
    personalise(site, replace(CONFIG, margin_db=1000.0), NOW)
    before = files_of(site)
    outcome = personalise(site, replace(CONFIG, steps=10), NOW)
    assert not outcome.kept
    assert any("more than margin_db=0.1" in reason for reason in outcome.reasons)
    assert files_of(site) == before
    assert installed(site).personal is not None


def test_without_a_reference_set_a_person_has_to_ask_for_it(
    site: SiteFolder, campaign: CampaignConfig, ours: Pair
) -> None:
    put_in_force(site, campaign, ours, None, version=2)
    with pytest.raises(RefusedError, match="--without-reference"):
        personalise(site, CONFIG, NOW)
    outcome = personalise(site, CONFIG, NOW, without_reference=True)
    assert outcome.kept
    assert outcome.record["figures"]["reference.psnr_db"] is None


def test_one_held_out_patient_decides_nothing(tmp_path: Path, campaign: CampaignConfig, ours: Pair) -> None:
    site = site_of(tmp_path / "small", ours)
    write_random_store(site.store, campaign.data, patients=2, slices=1, seed=1)
    put_in_force(site, campaign, ours, reference_of(0.1))
    with pytest.raises(RefusedError, match="2 held-out patients or more .* got 1"):
        personalise(site, CONFIG, NOW)


def test_nothing_installed_and_nothing_to_do_are_wrong_use(tmp_path: Path, ours: Pair, site: SiteFolder) -> None:
    with pytest.raises(ConfigError, match="no release is installed"):
        personalise(site_of(tmp_path / "empty", ours), CONFIG, NOW)
    with pytest.raises(ConfigError, match="adapts nothing"):
        personalise(site, replace(CONFIG, method="none"), NOW)


# ------------------------------------------------------------------------------------------- files


def test_the_way_back_is_the_release_to_the_byte_and_works_on_a_damaged_record(site: SiteFolder) -> None:
    before = files_of(site)
    personalise(site, CONFIG, NOW)
    assert files_of(site) != before
    assert drop(site)
    assert files_of(site) == before
    personalise(site, CONFIG, NOW)
    (installed(site).folder / "personal.json").write_text("{")
    with pytest.raises(DataError, match="--drop"):
        installed(site)
    assert drop(site)
    assert installed(site).personal is None


def test_a_training_that_is_broken_off_leaves_everything_as_it_was(site: SiteFolder) -> None:
    before = files_of(site)

    def stop(stage: str, done: int, total: int) -> None:
        if stage == "adapting":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        personalise(site, CONFIG, NOW, on_progress=stop)
    assert files_of(site) == before
    assert personalise(site, CONFIG, NOW).kept, "the lock is free again"


def test_a_release_that_came_meanwhile_is_not_adapted_over(
    site: SiteFolder, campaign: CampaignConfig, ours: Pair
) -> None:
    def newer(stage: str, done: int, total: int) -> None:
        if (stage, done) == ("adapting", total):
            put_in_force(site, campaign, ours, reference_of(0.1), version=2)

    with pytest.raises(RefusedError, match="another release came into force"):
        personalise(site, CONFIG, NOW, on_progress=newer)
    assert installed(site).manifest.version == 2
    assert installed(site).personal is None


def test_two_at_once_are_one_too_many(site: SiteFolder) -> None:
    with (site.folder / "releases" / ".personalise.lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        for run in (lambda: personalise(site, CONFIG, NOW), lambda: drop(site)):
            with pytest.raises(DataError, match="another personalise is at work"):
                run()


def test_no_install_is_at_work_while_an_adaptation_is_written_or_dropped(
    site: SiteFolder, campaign: CampaignConfig, ours: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An install sweeps unfinished files; those that are just being written must not be among them."""
    asked: list[str] = []

    def writes(*_: object) -> None:
        with pytest.raises(DataError, match="another install or rollback is at work"):
            put_in_force(site, campaign, ours, reference_of(0.1), version=2)
        asked.append("refused")

    for name in ("keep_personal", "drop_personal"):
        monkeypatch.setattr(f"client.personalise.{name}", writes)
    release = installed(site)
    _keep(site, release, release.networks(), {})
    drop(site)
    assert asked == ["refused", "refused"]
    assert put_in_force(site, campaign, ours, reference_of(0.1), version=2) != release


@pytest.mark.slow
def test_a_killed_process_leaves_the_release_and_frees_the_lock(site: SiteFolder) -> None:
    before = files_of(site)
    arguments = ["personalise", str(site.folder), "method=finetune", "steps=100000"]
    process = subprocess.Popen([sys.executable, "-m", "client.cli", *arguments])
    try:
        until = time.monotonic() + 120
        while time.monotonic() < until:
            try:
                drop(site)
            except DataError:
                break
            time.sleep(0.2)
        with pytest.raises(DataError, match="at work"):
            personalise(site, CONFIG, NOW)
        time.sleep(2)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert files_of(site) == before
    assert personalise(site, CONFIG, NOW).kept


# ------------------------------------------------------------------------------------------- the command

QUICK = ["method=finetune", "steps=25", "batch_size=4", "learning_rate=5e-3"]


def test_the_command_keeps_refuses_and_drops(site: SiteFolder, capsys: pytest.CaptureFixture[str]) -> None:
    folder = str(site.folder)
    assert cli.main(["personalise", folder, *QUICK]) == 0
    said = capsys.readouterr().out
    assert "kept" in said
    assert "held-out patients" in said
    assert cli.main(["personalise", folder, *QUICK, "least_gain_db=50", "--json"]) == 3
    shown = capsys.readouterr()
    values = json.loads(shown.out)
    assert values["kept"] is False
    assert values["figures"]["patients"] == 4
    assert "not kept, and nothing was changed: held-out patients gain" in shown.err
    assert len(shown.err.strip().splitlines()) == 1
    assert cli.main(["personalise", folder, "--drop"]) == 0
    assert "as it came" in capsys.readouterr().out
    assert installed(site).personal is None


def test_wrong_keys_are_wrong_use(site: SiteFolder, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["personalise", str(site.folder), "stepz=3"]) == 2
    assert "did you mean steps" in capsys.readouterr().err
    assert cli.main(["personalise", str(site.folder), "steps=3", "--drop"]) == 2


def test_a_record_tells_no_patient(site: SiteFolder, tmp_path: Path, campaign: CampaignConfig) -> None:
    save_campaign(campaign, tmp_path / "campaign.json")
    personalise(site, CONFIG, NOW)
    text = json.dumps(installed(site).personal)
    assert "patient-" not in text
    assert str(tmp_path) not in text
