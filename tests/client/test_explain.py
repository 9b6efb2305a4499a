"""Where a recogniser looks is known for those made by hand: a linear one, one with a single channel, a blind one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from client.batches import evaluation_batches
from client.dataset import Slices
from client.explain import behind_diagnoses, explain, grad_cam, saliency_behind, scores, typical
from client.reading import Reading, dice_of, judged, read, states_of, taken, true_probability
from shared.config import CampaignConfig, DegradeConfig, LearnConfig, MachineConfig, ObjectiveConfig
from shared.networks import Networks, build_networks
from shared.recognise.recognition import Recognition
from shared.recognise.saliency import percentile_B1HW
from shared.weights import to_arrays
from tests.client.slices import disc_slices

SIDE = 32
STATES = ("degraded", "enhanced", "clean")


class ByHand(nn.Module):
    """A recogniser from a function; one parameter, as every network has."""

    def __init__(self, read: Callable[[Tensor, Tensor], Recognition]) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.read = read

    def forward(self, image: Tensor) -> Recognition:
        return self.read(image, self.scale)


def with_recogniser(campaign: CampaignConfig, read: Callable[[Tensor, Tensor], Recognition]) -> Networks:
    return Networks(build_networks(campaign).enhancer, ByHand(read))


@pytest.fixture
def diagnosis_only(campaign: CampaignConfig) -> CampaignConfig:
    return replace(campaign, data=replace(campaign.data, masks=()))


@pytest.fixture
def masks_only(campaign: CampaignConfig) -> CampaignConfig:
    return replace(campaign, data=replace(campaign.data, diagnoses=()))


def alone(campaign: CampaignConfig, learn: LearnConfig | None = None, *, kind: str = "unet") -> CampaignConfig:
    """A recogniser without an enhancer, on images as they come."""
    return replace(
        campaign,
        degrade=DegradeConfig(kind="none"),
        enhance=replace(campaign.enhance, kind="none"),
        objective=ObjectiveConfig(kind="plain"),
        learn=learn or LearnConfig(),
        recognise=replace(campaign.recognise, kind=kind),
    )


def unlabelled(slices: Slices) -> Slices:
    return replace(slices, diagnosis_N=torch.full_like(slices.diagnosis_N, -1))


def test_saliency_of_a_linear_recogniser_is_its_weights(diagnosis_only: CampaignConfig, machine: MachineConfig) -> None:
    weights_KHW = torch.randn(2, SIDE, SIDE, generator=torch.Generator().manual_seed(3))

    def linear(image: Tensor, scale: Tensor) -> Recognition:
        return Recognition(None, torch.einsum("bchw,khw->bk", image * scale, weights_KHW), [image * 0])

    slices = disc_slices(4)  # true diagnoses 0, 1, 0, 1
    found = explain(with_recogniser(diagnosis_only, linear), slices, [1, 2], diagnosis_only, machine)
    assert found.asked_N.tolist() == [1, 0]
    expected_NHW = weights_KHW[[1, 0]].abs().numpy()
    for state in STATES:
        maps = found.maps["diagnosis"][state]
        np.testing.assert_allclose(maps.saliency_NHW, expected_NHW, rtol=1e-6)
        inside = (expected_NHW * (slices.mask_NHW[[1, 2]].numpy() > 0)).sum((1, 2)) / expected_NHW.sum((1, 2))
        np.testing.assert_allclose(maps.saliency_inside_N, inside, rtol=1e-5)


def test_saliency_of_colour_is_the_largest_over_the_channels(campaign: CampaignConfig, machine: MachineConfig) -> None:
    colour = replace(campaign, data=replace(campaign.data, masks=(), channels=3))
    weights = torch.tensor([0.5, -2.0, 1.0])
    slices = disc_slices(2)
    slices = replace(slices, clean_NCHW=slices.clean_NCHW.expand(-1, 3, -1, -1).clone())

    def linear(image: Tensor, scale: Tensor) -> Recognition:
        total = torch.einsum("bchw,c->b", image * scale, weights)
        return Recognition(None, torch.stack([total, total], 1), [image * 0])

    maps = explain(with_recogniser(colour, linear), slices, [0], colour, machine).maps["diagnosis"]["clean"]
    assert np.unique(maps.saliency_NHW).tolist() == [2.0]


def test_grad_cam_of_one_active_channel_is_that_channel(diagnosis_only: CampaignConfig, machine: MachineConfig) -> None:
    def third_of_three(image: Tensor, scale: Tensor) -> Recognition:
        features = torch.cat([1 - image, image.flip(-1), image**2], 1) * scale
        score = features[:, 2].mean((1, 2))
        return Recognition(None, torch.stack([score, score], 1), [features])

    slices = disc_slices(3)
    networks = with_recogniser(diagnosis_only, third_of_three)
    found = explain(networks, slices, [0, 2], diagnosis_only, machine).maps["diagnosis"]
    shown = read(networks, taken(slices, [0, 2]), diagnosis_only, machine)
    images = {state: shown[state].image_NCHW[:, 0].numpy() for state in STATES}
    largest_N = np.max([image.max((1, 2)) ** 2 for image in images.values()], axis=0)
    for state in STATES:
        expected = images[state] ** 2 / largest_N[:, None, None]
        np.testing.assert_allclose(found[state].activation_NHW, expected, rtol=1e-4, atol=1e-7)
    assert max(float(found[state].activation_NHW[0].max()) for state in STATES) == pytest.approx(1)


def test_channel_that_speaks_against_the_score_is_not_shown() -> None:
    features = torch.rand(1, 2, 4, 4)
    gradient = torch.stack([torch.full((4, 4), -1.0), torch.zeros(4, 4)])[None]
    assert not grad_cam(features, gradient, (8, 8)).any()


def test_grad_cam_of_the_deepest_features_covers_the_whole_image() -> None:
    features = torch.zeros(1, 1, 2, 2)
    features[0, 0, 1, 0] = 1.0
    map_HW = grad_cam(features, torch.ones_like(features), (16, 16))[0]
    assert map_HW.shape == (16, 16)
    assert map_HW[-1, 0] == 1
    assert map_HW[0, -1] == 0


def test_what_never_looks_gives_maps_of_zeros_and_no_share(campaign: CampaignConfig, machine: MachineConfig) -> None:
    def blind(image: Tensor, scale: Tensor) -> Recognition:
        nothing = image * 0 * scale
        masks = torch.cat([nothing + 1, nothing, nothing], 1)  # background everywhere
        return Recognition(masks, nothing.mean((1, 2, 3))[:, None].expand(-1, 2), [nothing])

    found = explain(with_recogniser(campaign, blind), disc_slices(2), [0, 1], campaign, machine)
    for task in ("masks", "diagnosis"):
        for maps in found.maps[task].values():
            assert not maps.saliency_NHW.any()
            assert not maps.activation_NHW.any()
            assert np.isnan(maps.saliency_inside_N).all()
            assert np.isnan(maps.activation_inside_N).all()


def test_score_of_masks_is_the_sum_of_the_predicted_foreground() -> None:
    logits = torch.randn(2, 3, 5, 5, generator=torch.Generator().manual_seed(0))
    expected = 0.0
    for image in logits:
        for row in range(5):
            for column in range(5):
                pixel = image[:, row, column]
                expected += float(pixel.max()) if int(pixel.argmax()) > 0 else 0.0
    found = scores(Recognition(logits, None, []), torch.tensor([-1, -1]))
    assert list(found) == ["masks"]
    assert float(found["masks"]) == pytest.approx(expected, rel=1e-5)


def test_diagnosis_that_nobody_knows_is_the_one_read_from_the_clean_image(
    diagnosis_only: CampaignConfig, machine: MachineConfig
) -> None:
    networks = build_networks(diagnosis_only)
    slices = unlabelled(disc_slices(5))
    found = explain(networks, slices, range(5), diagnosis_only, machine)
    with torch.no_grad():
        logits = networks.recogniser.eval()(slices.clean_NCHW).diagnosis_logits_BN
    assert found.asked_N.tolist() == logits.argmax(1).tolist()


def test_error_map_is_the_absolute_difference(campaign: CampaignConfig, machine: MachineConfig) -> None:
    networks = build_networks(campaign)
    slices = disc_slices(4)
    found = explain(networks, slices, [3, 0], campaign, machine)
    shown = read(networks, taken(slices, [3, 0]), campaign, machine)
    for state in ("degraded", "enhanced"):
        image = shown[state].image_NCHW[:, 0].numpy()
        np.testing.assert_allclose(found.error_NHW[state], np.abs(image - slices.clean_NCHW[[3, 0], 0].numpy()))
    np.testing.assert_allclose(found.area_N, (slices.mask_NHW[[3, 0]] > 0).float().mean((1, 2)).numpy(), rtol=1e-6)


@pytest.mark.parametrize("kind", ["unet", "cnn", "vnet", "resunet", "voxresnet"])
def test_explaining_changes_nothing_leaves_no_gradient_and_repeats_to_the_bit(
    diagnosis_only: CampaignConfig, machine: MachineConfig, kind: str
) -> None:
    campaign = replace(diagnosis_only, recognise=replace(diagnosis_only.recognise, kind=kind, dropout=0.5))
    networks = build_networks(campaign)
    networks.enhancer.eval()
    before = to_arrays(networks)
    one, other = (explain(networks, disc_slices(3), [0, 1, 2], campaign, machine) for _ in range(2))
    for state in STATES:
        first, second = one.maps["diagnosis"][state], other.maps["diagnosis"][state]
        np.testing.assert_array_equal(first.saliency_NHW, second.saliency_NHW)
        np.testing.assert_array_equal(first.activation_NHW, second.activation_NHW)
        assert first.saliency_NHW.shape == first.activation_NHW.shape == (3, SIDE, SIDE)
        assert first.saliency_NHW.any()
    after = to_arrays(networks)
    assert all(np.array_equal(before[name], after[name]) for name in before)
    for network in networks.all.values():
        assert all(parameter.grad is None and parameter.requires_grad for parameter in network.parameters())
    assert networks.recogniser.training
    assert not networks.enhancer.training


def test_each_campaign_is_explained_by_what_it_recognises(
    campaign: CampaignConfig, masks_only: CampaignConfig, diagnosis_only: CampaignConfig, machine: MachineConfig
) -> None:
    for each, tasks in ((campaign, ["masks", "diagnosis"]), (masks_only, ["masks"]), (diagnosis_only, ["diagnosis"])):
        found = explain(build_networks(each), disc_slices(2), [1], each, machine)
        assert list(found.maps) == tasks
        assert (found.asked_N[0] == -1) == ("diagnosis" not in tasks)


@pytest.mark.parametrize("kind", ["vnet", "resunet", "voxresnet"])
def test_each_segmenting_recogniser_hands_out_its_deepest_features(
    masks_only: CampaignConfig, machine: MachineConfig, kind: str
) -> None:
    each = replace(masks_only, recognise=replace(masks_only.recognise, kind=kind))
    networks = build_networks(each)
    with torch.no_grad():
        features = networks.recogniser.eval()(disc_slices(1).clean_NCHW).features
    assert features[0].shape[-1] == min(feature.shape[-1] for feature in features)
    assert explain(networks, disc_slices(2), [0, 1], each, machine).maps["masks"]["clean"].saliency_NHW.any()


def test_share_inside_has_no_value_without_an_outline(campaign: CampaignConfig, machine: MachineConfig) -> None:
    slices = disc_slices(2)
    slices = replace(slices, mask_NHW=torch.zeros_like(slices.mask_NHW), has_mask_N=torch.tensor([False, False]))
    found = explain(build_networks(campaign), slices, [0, 1], campaign, machine)
    assert np.isnan(found.area_N).all()
    assert np.isnan(found.maps["diagnosis"]["clean"].saliency_inside_N).all()
    assert np.isfinite(found.maps["diagnosis"]["clean"].saliency_NHW).all()


def test_campaign_without_an_enhancer_shows_no_state_twice(campaign: CampaignConfig, machine: MachineConfig) -> None:
    noisy = replace(alone(campaign), degrade=campaign.degrade)
    for each, states in ((campaign, STATES), (noisy, ("degraded", "clean")), (alone(campaign), ("clean",))):
        assert states_of(each) == states
        assert judged(each) == ("enhanced" if "enhanced" in states else states[0])
        found = explain(build_networks(each), disc_slices(2), [0, 1], each, machine)
        assert [tuple(maps) for maps in found.maps.values()] == [states, states]
        assert tuple(found.error_NHW) == states[:-1]


@pytest.mark.parametrize("kind", ["unet", "multimix"])
@pytest.mark.parametrize("learn", ["unet", "enc", "multimix"])
def test_recognisers_that_learn_one_thing_or_have_a_bridge_are_explained(
    campaign: CampaignConfig, machine: MachineConfig, learn: str, kind: str
) -> None:
    flags = LearnConfig(
        kind=learn,  # type: ignore[arg-type]
        segment=learn != "enc",
        diagnose=learn != "unet",
        saliency=learn == "multimix",
    )
    each = alone(campaign, flags, kind=kind)
    networks, slices = build_networks(each), disc_slices(6)
    found = explain(networks, slices, [0, 1, 2], each, machine)
    assert list(found.maps) == {"unet": ["masks"], "enc": ["diagnosis"]}.get(learn, ["masks", "diagnosis"])
    read_as = read(networks, slices, each, machine)["clean"]
    assert (read_as.found_NHW is None) == (learn == "enc")
    behind = behind_diagnoses(networks, slices, read_as, each, machine)
    assert bool(behind) == (learn != "unet")
    assert all(one.bridge == (learn == "multimix") for one in behind)
    assert all(parameter.grad is None for parameter in networks.recogniser.parameters())


def test_reading_says_what_the_networks_say_of_the_judged_image(
    campaign: CampaignConfig, machine: MachineConfig
) -> None:
    networks, slices = build_networks(campaign), disc_slices(5)
    found = read(networks, slices, campaign, machine)
    (batch,) = evaluation_batches(slices, campaign, 5)
    with torch.no_grad():
        enhanced = networks.enhancer.eval()(batch.degraded_BCHW).clamp(0, 1)
        for state, image in zip(STATES, (batch.degraded_BCHW, enhanced, batch.clean_BCHW), strict=True):
            torch.testing.assert_close(found[state].image_NCHW, image)
            said = networks.recogniser.eval()(image)
            assert found[state].found_NHW is not None
            assert torch.equal(found[state].found_NHW, said.mask_logits_BKHW.argmax(1).byte())
            probabilities = said.diagnosis_logits_BN.softmax(1).numpy()
            np.testing.assert_allclose(found[state].probabilities_NK, probabilities, atol=1e-6)
    few = read(networks, taken(slices, [4, 1]), campaign, machine)["degraded"]
    torch.testing.assert_close(few.image_NCHW, found["degraded"].image_NCHW[[4, 1]])


def test_dice_and_probability_are_not_defined_where_the_label_is_not_known(campaign: CampaignConfig) -> None:
    slices = disc_slices(2)
    slices = replace(slices, has_mask_N=torch.tensor([True, False]), diagnosis_N=torch.tensor([-1, 1]))
    read_as = Reading(slices.clean_NCHW, slices.mask_NHW, np.array([[0.3, 0.7], [0.4, 0.6]]))
    np.testing.assert_array_equal(dice_of(read_as, slices, campaign), [1, np.nan])
    np.testing.assert_array_equal(true_probability(read_as, slices), [np.nan, 0.6])


def test_diagnosis_is_shown_on_the_slice_of_median_probability_among_those_read_as_it() -> None:
    lesion = np.array([0.9, 0.2, 0.6, 0.7, 0.1])
    read_as = Reading(torch.zeros(5, 1, 2, 2), None, np.stack([1 - lesion, lesion, 0 * lesion], 1))
    assert typical(read_as, 1) == 3  # of 0.6, 0.7 and 0.9
    assert typical(read_as, 0) == 4  # of two, the more probable one
    assert typical(read_as, 2) is None, "no slice is read as it"


def test_saliency_behind_a_diagnosis_of_a_linear_recogniser_is_the_weights_of_the_class_that_is_read(
    diagnosis_only: CampaignConfig, machine: MachineConfig
) -> None:
    weights_KHW = torch.randn(2, SIDE, SIDE, generator=torch.Generator().manual_seed(3))

    def linear(image: Tensor, scale: Tensor) -> Recognition:
        return Recognition(None, torch.einsum("bchw,khw->bk", image * scale, weights_KHW), [image * 0])

    image_CHW = disc_slices(1).clean_NCHW[0]
    said = int(torch.einsum("chw,khw->k", image_CHW, weights_KHW).argmax())
    saliency_HW, bridge = saliency_behind(with_recogniser(diagnosis_only, linear), image_CHW, machine)
    np.testing.assert_allclose(saliency_HW, weights_KHW[said].abs().numpy(), rtol=1e-6)
    assert not bridge


def test_saliency_of_a_bridge_is_what_the_decoder_is_given(campaign: CampaignConfig, machine: MachineConfig) -> None:
    each = alone(campaign, LearnConfig(kind="multimix", saliency=True))
    networks, image_CHW = build_networks(each), disc_slices(2).clean_NCHW[1]
    given: list[Tensor] = []
    assert isinstance(networks.recogniser.bridge, nn.Conv2d)
    handle = networks.recogniser.bridge.register_forward_pre_hook(lambda _, args: given.append(args[0]))
    with torch.no_grad():
        networks.recogniser.eval()(image_CHW[None])
    handle.remove()
    saliency_HW, bridge = saliency_behind(networks, image_CHW, machine)
    np.testing.assert_allclose(saliency_HW, given[0][0, -1].numpy(), rtol=1e-4, atol=1e-6)
    assert bridge

    image_1CHW = image_CHW[None].requires_grad_()
    logits_1N = networks.recogniser.encode(image_1CHW).diagnosis_logits_BN  # type: ignore[operator]
    (gradient,) = torch.autograd.grad(logits_1N.max(), image_1CHW)
    normalised = gradient.abs().amax(1, keepdim=True) / percentile_B1HW(gradient.abs())
    small = nn.functional.interpolate(normalised, size=given[0].shape[-2:], mode="bilinear", align_corners=True)
    np.testing.assert_allclose(saliency_HW, small[0, 0].numpy(), rtol=1e-4, atol=1e-6)
