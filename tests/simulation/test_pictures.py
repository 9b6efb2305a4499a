"""Examples are chosen by rule, and a pictures file is read back without pickle by the report."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from client.dataset import SiteData, Slices
from client.evaluate import evaluate
from client.explain import STATES, explain
from server.charts import load_pictures
from shared.config import CampaignConfig, MachineConfig
from shared.networks import build_networks
from simulation import pictures
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


def gains(*values: float) -> dict[str, np.ndarray]:
    return {"degraded.psnr_db": np.full(len(values), 20.0), "enhanced.psnr_db": 20.0 + np.array(values)}


def test_median_and_worst_by_gain_among_the_outlined_images() -> None:
    chosen = pictures.choose(gains(-9, 3, 1, 2, 9), slices([False, True, True, True, False]))
    assert chosen == {"median": 3, "worst": 2}


def test_images_without_any_outline_are_chosen_from_all() -> None:
    assert pictures.choose(gains(4, -1, 2), slices([False] * 3)) == {"median": 2, "worst": 1}


def test_gain_that_is_not_defined_is_never_the_worst() -> None:
    assert pictures.choose(gains(float("nan"), 1.0, 2.0), slices([False] * 3))["worst"] == 1


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
    judged = Judged("federated", "all", {"a": values}, {}, {"a": 5})
    arrays = pictures.explanations(networks, {"a": SiteData("a", test, test, test, {})}, judged, campaign, machine)
    chosen = pictures.choose(values, test)
    found = explain(networks, test, list(chosen.values()), campaign, machine)
    for place, (which, index) in enumerate(chosen.items()):
        prefix = f"explain/a/{which}/"
        assert arrays[f"{prefix}asked"] == test.diagnosis_N[index]
        assert bool(arrays[f"{prefix}known"])
        np.testing.assert_allclose(arrays[f"{prefix}error/degraded"], found.error_NHW["degraded"][place], atol=5e-4)
        for task in ("masks", "diagnosis"):
            maps = found.maps[task]
            largest = np.quantile([maps[state].saliency_NHW[place] for state in STATES], pictures.SALIENCY_SCALE)
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
    judged = Judged("federated", "all", {"a": gains(1, 2, 3)}, {}, {"a": 3})
    datas = {"a": SiteData("a", test, test, test, {})}
    arrays = pictures.explanations(build_networks(campaign), datas, judged, campaign, machine)
    assert not [key for key in arrays if "inside" in key or key.endswith("area")]
    pictures.write_pictures(tmp_path / "p.npz", arrays)
    assert load_pictures(tmp_path / "p.npz").keys() == arrays.keys()
