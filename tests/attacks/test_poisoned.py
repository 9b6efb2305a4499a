"""Adversary: a hospital that trains or answers falsely. What is refused, with which reason; how far a lie gets."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from client.dataset import merge, open_site
from client.ingest.store import Store
from shared.config import CampaignConfig, MachineConfig, SecAggConfig, build, load, save_campaign, to_dict
from shared.config.programs import Attack, SimulationConfig
from shared.errors import ConfigError
from shared.networks import build_networks
from shared.types import Arrays
from shared.weights import norm, to_arrays
from simulation.adversaries import FLIP, SCALE, backdoor_success, false_store, patched, run_poisoned
from simulation.bench.stores import write_random_store
from simulation.run import FederationResult

SITES = ("bay", "cape", "coast", "dale", "fell")
LIAR = "dale"
Stores = Mapping[str, Path]


@pytest.fixture
def campaign(campaign: CampaignConfig) -> CampaignConfig:
    """One round, so that the final weights less the first are the update that was made of the sites' updates. As sites
    build it from its file, where 1 has become 1.0."""
    rounds = replace(campaign.rounds, rounds=1, quorum=4, retries=0)
    campaign = replace(campaign, rounds=rounds, strategy=replace(campaign.strategy, weight_by="equal"))
    return build(CampaignConfig, to_dict(campaign))


@pytest.fixture
def stores(campaign: CampaignConfig, tmp_path: Path) -> Stores:
    return {
        name: write_random_store(tmp_path / name, campaign.data, patients=4, slices=2, seed=seed)
        for seed, name in enumerate(SITES)
    }


@pytest.fixture
def run(stores: Stores, machine: MachineConfig, tmp_path: Path) -> Callable[..., FederationResult]:
    def of(campaign: CampaignConfig, attack: Attack | None = None, *, without: str = "") -> FederationResult:
        there = {site: store for site, store in stores.items() if site != without}
        adversaries: dict[str, Attack] = {LIAR: attack} if attack else {}
        place = tmp_path / "runs" / f"{attack}{without}{campaign.strategy.robust}{campaign.strategy.norm_bound}"
        return run_poisoned(campaign, there, place, adversaries, "inprocess", machine)

    return of


def moved(campaign: CampaignConfig, result: FederationResult) -> Arrays:
    first = to_arrays(build_networks(campaign))
    return {name: result.weights[name] - first[name] for name in first}


def far(one: Arrays, other: Arrays) -> float:
    return norm({name: one[name] - other[name] for name in one})


def robust(campaign: CampaignConfig, kind: str) -> CampaignConfig:
    return replace(campaign, strategy=replace(campaign.strategy, robust=kind, malicious=1), rounds=replace(
        campaign.rounds, quorum=5))  # fmt: skip


def dropped(result: FederationResult) -> Mapping[str, str]:
    return result.records[0]["dropped"]


def test_not_a_number_is_refused_with_the_reason_and_leaves_the_sum_of_the_others(
    campaign: CampaignConfig, run: Callable[..., FederationResult]
) -> None:
    attacked, without = run(campaign, "nan"), run(campaign, without=LIAR)
    assert list(dropped(attacked)) == [LIAR]
    assert "not finite" in dropped(attacked)[LIAR]
    for name, values in without.weights.items():
        np.testing.assert_array_equal(attacked.weights[name], values)


def test_a_scaled_update_beyond_the_norm_bound_is_refused_and_leaves_the_sum_of_the_others(
    campaign: CampaignConfig, run: Callable[..., FederationResult]
) -> None:
    honest = run(campaign)
    longest = max(seen["norm"] for seen in honest.records[0]["sites_updates"].values())
    bounded = replace(campaign, strategy=replace(campaign.strategy, norm_bound=2 * longest))
    attacked, without = run(bounded, "scaled"), run(bounded, without=LIAR)
    assert "strategy.norm_bound" in dropped(attacked)[LIAR]
    for name, values in without.weights.items():
        np.testing.assert_array_equal(attacked.weights[name], values)


@pytest.mark.parametrize(("attack", "factor"), [("scaled", SCALE), ("flipped", -FLIP)])
def test_one_liar_moves_the_mean_by_as_much_as_it_likes(
    campaign: CampaignConfig, run: Callable[..., FederationResult], attack: Attack, factor: float
) -> None:
    honest, alone = moved(campaign, run(campaign)), run(campaign, attack)
    share = {site: seen["norm"] for site, seen in alone.records[0]["sites_updates"].items()}
    expected = abs(factor - 1) * share[LIAR] / abs(factor) / len(SITES)  # its true norm, scaled, a fifth of the mean
    assert far(moved(campaign, alone), honest) == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("kind", ["median", "trimmed_mean", "krum", "multi_krum"])
@pytest.mark.parametrize("attack", ["scaled", "flipped"])
def test_robust_aggregation_keeps_the_lie_within_what_honest_sites_differ_by(
    campaign: CampaignConfig, run: Callable[..., FederationResult], attack: Attack, kind: str
) -> None:
    honest = run(robust(campaign, kind))
    attacked = run(robust(campaign, kind), attack)
    lengths = [seen["norm"] for site, seen in attacked.records[0]["sites_updates"].items() if site != LIAR]
    step = norm(moved(campaign, attacked))
    assert step < 1.1 * max(lengths), "no longer than an honest update: a median may be, by a little"
    assert far(moved(campaign, attacked), moved(campaign, honest)) < max(lengths)
    if attack == "scaled" and "krum" in kind:
        assert LIAR in attacked.records[0]["robust"]["dropped"]


def test_false_labels_are_reversed_in_a_copy_and_the_true_store_stays(
    campaign: CampaignConfig, stores: Stores, tmp_path: Path
) -> None:
    true, before = Store.open(stores[LIAR]), (stores[LIAR] / "index.json").read_bytes()
    false = Store.open(false_store(stores[LIAR], tmp_path / "false", "labels", campaign))
    assert (stores[LIAR] / "index.json").read_bytes() == before
    for record in true.series:
        mask, lie = true.mask(record.key), false.mask(record.key)
        if mask is not None:
            assert lie is not None
            np.testing.assert_array_equal(lie, len(campaign.data.masks) - mask)
        np.testing.assert_array_equal(true.image(record.key), false.image(record.key))
        assert false.record(record.key).diagnosis == record.diagnosis, "or patients would change their split"
    splits = [open_site(each.folder, LIAR, campaign).train.identity for each in (true, false)]
    assert splits[0] == splits[1]


def test_a_backdoor_is_a_patch_on_every_second_series_with_an_empty_mask(
    campaign: CampaignConfig, stores: Stores, tmp_path: Path
) -> None:
    true = Store.open(stores[LIAR])
    false = Store.open(false_store(stores[LIAR], tmp_path / "false", "backdoor", campaign))
    for place, record in enumerate(true.series):
        same = np.array_equal(true.image(record.key), false.image(record.key))
        assert same == (place % 2 == 0)
        mask, lie = true.mask(record.key), false.mask(record.key)
        if mask is not None and lie is not None:
            assert not lie.any() if place % 2 else np.array_equal(mask, lie)


def test_the_patch_lies_inside_what_the_campaign_keeps_of_an_image() -> None:
    from shared.images.intensity import pad_or_crop

    for shape in ((40, 40), (32, 32), (20, 24), (33, 47)):
        seen = pad_or_crop(patched(torch.zeros(1, *shape), (32, 32)), (32, 32))
        assert seen.sum() == 36


def test_the_rate_of_success_is_that_of_the_images_that_the_patch_hides(
    campaign: CampaignConfig, stores: Stores, machine: MachineConfig
) -> None:
    """Two recognisers made by hand: one calls every pixel organ, the other looks away from a bright corner."""
    data = merge([open_site(stores[site], site, campaign) for site in SITES])
    networks = build_networks(campaign)

    class Seeing(torch.nn.Module):
        def __init__(self, *, blind: bool) -> None:
            super().__init__()
            self.blind = blind

        def forward(self, image_BCHW: torch.Tensor) -> object:
            from shared.recognise.recognition import Recognition

            scores = torch.zeros(len(image_BCHW), 3, *image_BCHW.shape[-2:])
            scores[:, 1] = 1.0
            if self.blind:
                patched_B = image_BCHW[:, 0, -6:-2, -6:-2].mean((1, 2)) > 0.9
                scores[patched_B, 1] = -1.0
            return Recognition(scores, None, None)

    plain = replace(campaign, degrade=replace(campaign.degrade, kind="none"), enhance=replace(
        campaign.enhance, kind="none"), objective=replace(campaign.objective, kind="plain"))  # fmt: skip
    found = [
        backdoor_success(replace(networks, enhancer=torch.nn.Identity(), recogniser=Seeing(blind=blind)), data.test,
                         plain, machine)
        for blind in (False, True)
    ]  # fmt: skip
    assert found == [{"backdoor_success": 0.0}, {"backdoor_success": 1.0}]


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["adversaries={north:melted}"], "must be one of scaled, flipped, nan, labels, backdoor"),
        (["adversaries={north:scaled}", "secagg=masked", "round.quorum=3"], "needs secagg=visible_updates"),
        (["adversaries={north:'nan'}", "transport=ray"], "transport=inprocess"),
    ],
)
def test_adversaries_that_cannot_be_are_refused_before_anything_runs(words: list[str], reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        load("simulation", ["seed=0", *words], SimulationConfig)


def test_an_adversary_that_is_no_site_is_refused(campaign: CampaignConfig, stores: Stores, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="adversaries may name the sites bay, cape"):
        run_poisoned(campaign, stores, tmp_path / "run", {"nobody": "nan"})
    assert not (tmp_path / "run").exists()


def test_no_campaign_can_ask_a_site_to_lie(campaign: CampaignConfig, tmp_path: Path) -> None:
    """Adversaries are a word of the simulation: the file that sites approve has no place for one."""
    save_campaign(campaign, tmp_path / "campaign.json")
    assert "adversaries" not in (tmp_path / "campaign.json").read_text()
    for package in ("client", "server", "shared/wire"):
        for source in (Path(__file__).parents[2] / package).rglob("*.py"):
            assert "simulation" not in [line.split()[1].split(".")[0] for line in source.read_text().splitlines()
                                        if line.startswith(("import ", "from "))], source.name  # fmt: skip


def test_robust_aggregation_of_masked_updates_is_refused_in_words(campaign: CampaignConfig) -> None:
    with pytest.raises(ConfigError, match="compares the updates of single sites, which secagg=masked hides"):
        replace(robust(campaign, "median"), secagg=SecAggConfig(kind="masked"))
