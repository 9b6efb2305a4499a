"""Examples are chosen by rule, and a pictures file is read back without pickle by the report."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from client.dataset import SiteData, Slices
from client.evaluate import evaluate
from client.explain import explain
from client.features import features_of
from client.reading import Reading, judged, read
from server.charts import load_pictures
from shared.config import CampaignConfig, DegradeConfig, LearnConfig, MachineConfig, ObjectiveConfig, SelfRegConfig
from shared.networks import Networks, build_networks
from simulation import explained, pictures
from simulation.pictures import DICE, GAIN, PROBABILITY, Pictures
from simulation.rows import Judged
from tests.client.slices import disc_slices


def slices(outlined: list[bool]) -> Slices:
    count = len(outlined)
    mask = torch.zeros(count, 8, 8, dtype=torch.uint8)
    for index, has in enumerate(outlined):
        mask[index, :2, :2] = int(has)
    return Slices(
        clean_NCHW=torch.linspace(0, 1, count)[:, None, None, None].expand(count, 1, 8, 8).clone(),
        mask_NHW=mask,
        has_mask_N=torch.tensor(outlined),
        diagnosis_N=torch.full((count,), -1),
        patient_N=torch.arange(count),
        identity=tuple(f"a/{i}" for i in range(count)),
    )


STATES = ("degraded", "enhanced", "clean")


def alone(campaign: CampaignConfig, learn: LearnConfig | None = None) -> CampaignConfig:
    """A recogniser without an enhancer, on images as they come."""
    return replace(
        campaign,
        degrade=DegradeConfig(kind="none"),
        enhance=replace(campaign.enhance, kind="none"),
        objective=ObjectiveConfig(kind="plain"),
        learn=learn or LearnConfig(),
    )


def all_of(networks: Networks, test: Slices, campaign: CampaignConfig, machine: MachineConfig) -> Pictures:
    """Everything that compare.py writes of one site `a`."""
    datas = {"a": SiteData("a", test, test, test, {})}
    judged_by = Judged("federated", "all", {"a": evaluate(networks, test, campaign, machine).values}, {}, {"a": 1})
    chosen = pictures.chosen_of(networks, datas, judged_by, campaign, machine)
    return {
        **pictures.examples(networks, datas, chosen, campaign, machine),
        **explained.explanations(networks, datas, chosen, campaign, machine),
        **explained.diagnoses(networks, datas, chosen, campaign, machine),
        **explained.features(networks, chosen, campaign, machine),
    }


def gains(*values: float) -> dict[str, np.ndarray]:
    return {"degraded.psnr_db": np.full(len(values), 20.0), "enhanced.psnr_db": 20.0 + np.array(values)}


def test_median_and_worst_among_the_outlined_images() -> None:
    chosen = pictures.choose(np.array([-9.0, 3, 1, 2, 9]), slices([False, True, True, True, False]))
    assert chosen == {"median": 3, "worst": 2}


def test_images_without_any_outline_are_chosen_from_all() -> None:
    assert pictures.choose(np.array([4.0, -1, 2]), slices([False] * 3)) == {"median": 2, "worst": 1}


def test_score_that_is_not_defined_is_never_the_worst_nor_the_median() -> None:
    nowhere = float("nan")
    assert pictures.choose(np.array([nowhere, 1, 2]), slices([False] * 3))["worst"] == 1
    assert pictures.choose(np.array([nowhere, 1, nowhere, nowhere]), slices([False] * 4))["median"] == 1
    assert pictures.choose(np.full(3, nowhere), slices([False] * 3)) == {"median": 1, "worst": 0}


def test_examples_go_by_gain_with_an_enhancer_else_by_dice_else_by_the_true_diagnosis(campaign: CampaignConfig) -> None:
    test = disc_slices(2)
    found = Reading(test.clean_NCHW, test.mask_NHW, np.array([[0.9, 0.1], [0.3, 0.7]]))
    blind = replace(found, found_NHW=None)
    values = gains(2, 1)
    cases = (
        (campaign, found, values, GAIN, [2, 1]),
        (alone(campaign), found, values, DICE, [1, 1]),
        (alone(campaign), blind, values, PROBABILITY, [0.9, 0.7]),
        (campaign, found, {}, DICE, [1, 1]),
        (campaign, found, gains(float("nan"), float("nan")), DICE, [1, 1]),
    )
    for each, read_as, measured, by, expected in cases:
        words, score_N = pictures.score(measured, read_as, test, each)
        assert words == by
        np.testing.assert_allclose(score_N, expected)


def test_histogram_shares_add_up_to_one_and_leave_the_background_out() -> None:
    part = slices([True] * 3)  # intensities 0, 0.5 and 1; 0 is background
    found = pictures.histograms({"a": SiteData("a", part, part, part, {})})
    shares, edges = found["histogram/a"], found["histogram/edges"]
    np.testing.assert_allclose(shares.sum(), 1, rtol=1e-6)
    assert shares[np.searchsorted(edges, 0.5, "right") - 1] == 0.5
    assert shares[-1] == 0.5


def test_degraded_scores_stand_once_and_the_file_holds_no_object(tmp_path: Path) -> None:
    models = [Judged(setting, "all", {"a": gains(1, 2)}, {}, {"a": 2}) for setting in ("federated", "pooled")]
    arrays = pictures.score_arrays(models)
    assert sorted(arrays) == [
        "scores/degraded/all/a/psnr_db",
        "scores/federated/all/a/psnr_db",
        "scores/pooled/all/a/psnr_db",
    ]
    pictures.write_pictures(tmp_path / "pictures" / "plain-seed0.npz", arrays)
    read = load_pictures(tmp_path / "pictures" / "plain-seed0.npz")
    np.testing.assert_array_equal(read["scores/federated/all/a/psnr_db"], np.float32([21, 22]))


def test_explanations_are_of_the_chosen_images_in_a_byte_per_pixel(
    campaign: CampaignConfig, machine: MachineConfig
) -> None:
    networks, test = build_networks(campaign), disc_slices(5)
    values = evaluate(networks, test, campaign, machine).values
    arrays = all_of(networks, test, campaign, machine)
    chosen = pictures.choose(values["enhanced.psnr_db"] - values["degraded.psnr_db"], test)
    found = explain(networks, test, list(chosen.values()), campaign, machine)
    for place, (which, index) in enumerate(chosen.items()):
        prefix = f"explain/a/{which}/"
        assert arrays[f"{prefix}asked"] == test.diagnosis_N[index]
        assert bool(arrays[f"{prefix}known"])
        np.testing.assert_allclose(arrays[f"{prefix}error/degraded"], found.error_NHW["degraded"][place], atol=5e-4)
        for task in ("masks", "diagnosis"):
            maps = found.maps[task]
            largest = np.quantile([maps[state].saliency_NHW[place] for state in STATES], explained.SALIENCY_SCALE)
            for state in STATES:
                saliency, activation = (arrays[f"{prefix}{task}/{kind}/{state}"] for kind in ("saliency", "activation"))
                assert saliency.dtype == activation.dtype == np.uint8
                clipped = np.clip(maps[state].saliency_NHW[place] / largest, 0, 1)
                np.testing.assert_allclose(saliency / 255, clipped, atol=0.002)
                np.testing.assert_allclose(activation / 255, maps[state].activation_NHW[place], atol=0.002)
                inside = arrays.get(f"{prefix}{task}/saliency_inside/{state}")
                assert inside is None or inside == maps[state].saliency_inside_N[place]


def test_explanation_of_an_image_without_an_outline_has_no_share(
    campaign: CampaignConfig, machine: MachineConfig, tmp_path: Path
) -> None:
    test = disc_slices(3)
    test = replace(test, mask_NHW=torch.zeros_like(test.mask_NHW), has_mask_N=torch.zeros(3, dtype=torch.bool))
    arrays = all_of(build_networks(campaign), test, campaign, machine)
    assert not [key for key in arrays if "inside" in key or key.endswith("area")]
    pictures.write_pictures(tmp_path / "p.npz", arrays)
    assert load_pictures(tmp_path / "p.npz").keys() == arrays.keys()


def test_examples_say_what_was_read_and_what_is_true(campaign: CampaignConfig, machine: MachineConfig) -> None:
    networks, test = build_networks(campaign), disc_slices(5)
    arrays, found = all_of(networks, test, campaign, machine), read(networks, test, campaign, machine)
    values = evaluate(networks, test, campaign, machine).values
    for which, index in pictures.choose(values["enhanced.psnr_db"] - values["degraded.psnr_db"], test).items():
        prefix = f"example/a/{which}/"
        assert str(arrays[f"{prefix}by"]) == GAIN
        assert int(arrays[f"{prefix}diagnosis"]) == test.diagnosis_N[index]
        np.testing.assert_array_equal(arrays[f"{prefix}truth"], test.mask_NHW[index])
        for state in STATES:
            read_as = found[state]
            assert read_as.found_NHW is not None
            assert read_as.probabilities_NK is not None
            np.testing.assert_array_equal(arrays[f"{prefix}{state}_mask"], read_as.found_NHW[index])
            said = int(arrays[f"{prefix}said_{state}"])
            assert read_as.probabilities_NK[index, said] == read_as.probabilities_NK[index].max()
            given = read_as.probabilities_NK[index, int(test.diagnosis_N[index])]
            np.testing.assert_allclose(arrays[f"{prefix}true_probability_{state}"], given, rtol=1e-6)
            np.testing.assert_allclose(arrays[f"{prefix}dice_{state}"], values[f"{state}.dice"][index], rtol=1e-6)
            distance = arrays.get(f"{prefix}hd95_px_{state}")
            both = [(mask[index] == code).any() for mask in (read_as.found_NHW, test.mask_NHW) for code in (1, 2)]
            assert (distance is None) == (not (both[0] and both[2]) and not (both[1] and both[3]))


def test_recogniser_alone_has_one_state_and_the_rule_is_told(campaign: CampaignConfig, machine: MachineConfig) -> None:
    learns = {
        DICE: LearnConfig(kind="unet", diagnose=False),
        PROBABILITY: LearnConfig(kind="enc", segment=False),
    }
    for by, learn in learns.items():
        each = alone(campaign, learn)
        arrays = all_of(build_networks(each), disc_slices(5), each, machine)
        assert str(arrays["example/a/median/by"]) == by
        assert not [key for key in arrays if "degraded" in key or "enhanced" in key]
        assert ("example/a/median/clean_mask" in arrays) == learn.segment
        assert ("example/a/median/said_clean" in arrays) == learn.diagnose
        assert any(key.startswith("behind/") for key in arrays) == learn.diagnose
        assert "features/image" in arrays


def test_image_behind_each_diagnosis_is_read_as_it(campaign: CampaignConfig, machine: MachineConfig) -> None:
    networks, one, other = build_networks(campaign), disc_slices(4), disc_slices(4, seed=9)
    datas = {name: SiteData(name, part, part, part, {}) for name, part in (("a", one), ("b", other))}
    by_test = {name: evaluate(networks, data.test, campaign, machine).values for name, data in datas.items()}
    chosen = pictures.chosen_of(networks, datas, Judged("federated", "all", by_test, {}, {}), campaign, machine)
    arrays = explained.diagnoses(networks, datas, chosen, campaign, machine)
    codes = {int(key.split("/")[1]) for key in arrays}
    assert codes
    for code in codes:
        reading = chosen[str(arrays[f"behind/{code}/site"])].readings["enhanced"]
        same = [(reading.image_NCHW[i, 0].numpy() == arrays[f"behind/{code}/image"]).all() for i in range(4)]
        assert reading.probabilities_NK is not None
        probabilities_K = reading.probabilities_NK[same.index(True)]
        assert probabilities_K.argmax() == code
        np.testing.assert_allclose(arrays[f"behind/{code}/probability"], probabilities_K[code], rtol=1e-6)
        assert arrays[f"behind/{code}/saliency"].max() == 255


def test_features_are_of_the_first_weights_and_of_the_trained_ones(
    campaign: CampaignConfig, machine: MachineConfig
) -> None:
    each = alone(replace(campaign, selfreg=SelfRegConfig(consistency_weight=0.015)))
    trained, test = build_networks(replace(each, seed=5)), disc_slices(5)
    arrays = all_of(trained, test, each, machine)
    image = torch.from_numpy(arrays["features/image"])[None]
    found = {when: features_of(n, image, machine) for when, n in (("before", build_networks(each)), ("after", trained))}
    for name in map(str, arrays["features/compared"]):
        for when, of_time in found.items():
            shown = arrays[f"features/{when}/similarity/{name}"]
            np.testing.assert_allclose(shown / 127, of_time.similarity[name], atol=0.004)
    for name in map(str, arrays["features/blocks"]):
        levels = [arrays[f"features/{when}/attention/{name}"] for when in found]
        assert max(level.max() for level in levels) == 255, "one scale for before and after"
        after = found["after"].attention[name]
        np.testing.assert_allclose(levels[1] / max(levels[1].max(), 1), after / after.max(), atol=0.01)
    assert not [key for key in all_of(trained, test, alone(campaign), machine) if key.startswith("features/")]


def test_pictures_of_a_learning_recogniser_are_read_back_without_pickle(
    campaign: CampaignConfig, machine: MachineConfig, tmp_path: Path
) -> None:
    each = alone(campaign, LearnConfig(kind="multimix", saliency=True))
    arrays = all_of(build_networks(each), disc_slices(5), each, machine)
    assert judged(each) == "clean"
    pictures.write_pictures(tmp_path / "p.npz", arrays)
    read_back = load_pictures(tmp_path / "p.npz")
    assert read_back.keys() == arrays.keys()
    assert str(read_back["example/a/worst/by"]) == DICE
