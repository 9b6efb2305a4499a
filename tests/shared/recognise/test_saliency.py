from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from shared.config import LearnConfig, RecogniserConfig
from shared.recognise.networks import build_recogniser
from shared.recognise.saliency import (
    Bridge,
    Step,
    _pulled_back,
    bridge_of,
    bridged,
    encoded,
    passed,
    percentile_B1HW,
    saliency_from_graph,
    saliency_from_steps,
    saliency_of,
)

KINDS = ("unet", "multimix")


def network(
    kind: str = "unet", bridge: Bridge | None = "normalised", *, masks: int = 2, diagnoses: int = 3, **own: float
) -> nn.Module:
    colours = int(own.pop("colours", 1))
    config = RecogniserConfig(kind=kind, **{"channels": 4, "depth": 3, **own})  # type: ignore[arg-type]
    made = build_recogniser(config, colours, masks, diagnoses, 0, bridge=bridge)
    rng = torch.Generator().manual_seed(7)
    for weight in made.parameters():  # norms and biases at their start would hide a wrong factor
        if weight.ndim == 1:
            with torch.no_grad():
                weight.add_(0.3 * torch.randn(weight.shape, generator=rng))
    return made.eval()


def images(count: int = 2, size: tuple[int, int] = (24, 16), channels: int = 1) -> Tensor:
    return torch.rand(count, channels, *size, generator=torch.Generator().manual_seed(1))


def by_autograd(recogniser: nn.Module, image_BCHW: Tensor) -> Tensor:
    image_BCHW = image_BCHW.detach().clone().requires_grad_()
    return saliency_from_graph(recogniser.encode(image_BCHW).diagnosis_logits_BN, image_BCHW)


# ------------------------------------------------------------------------------------------- the bridge


@pytest.mark.parametrize("bridge", ["normalised", "raw"])
@pytest.mark.parametrize("kind", KINDS)
def test_evaluation_with_a_bridge_is_deterministic_and_needs_no_autograd(kind: str, bridge: Bridge) -> None:
    recogniser, batch = network(kind, bridge, dropout=0.5), images()
    first, again = recogniser(batch), recogniser(batch)
    with torch.inference_mode():
        inferred = recogniser(batch)
    for other in (again, inferred):
        assert torch.equal(first.mask_logits_BKHW, other.mask_logits_BKHW)
        assert torch.equal(first.diagnosis_logits_BN, other.diagnosis_logits_BN)
    assert not [name for name, weight in recogniser.named_parameters() if weight.grad is not None]


@pytest.mark.parametrize("kind", KINDS)
def test_the_bridge_changes_masks_alone(kind: str) -> None:
    with_bridge, without = network(kind, "normalised"), network(kind, None)
    shared = {name: value for name, value in with_bridge.state_dict().items() if name in without.state_dict()}
    if kind == "unet":
        without.load_state_dict(shared)
    else:  # the bridge is a part of the first convolution of the decoder
        first = max(name for name in shared if name.startswith("up.") and name.endswith(".0.weight"))
        width = without.state_dict()[first].shape[1]
        without.load_state_dict({**shared, first: shared[first][:, :width]})
    batch = images()
    bridged_one, plain = with_bridge(batch), without(batch)
    assert torch.equal(bridged_one.diagnosis_logits_BN, plain.diagnosis_logits_BN)
    assert all(torch.equal(a, b) for a, b in zip(bridged_one.skips, plain.skips, strict=True))
    assert not torch.allclose(bridged_one.mask_logits_BKHW, plain.mask_logits_BKHW, atol=1e-3)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("masks", "diagnoses"), [(0, 2), (2, 0)])
def test_without_diagnoses_or_masks_there_is_no_bridge(kind: str, masks: int, diagnoses: int) -> None:
    recogniser = network(kind, "normalised", masks=masks, diagnoses=diagnoses)
    assert recogniser.saliency is None
    assert recogniser.bridge is None
    assert not [name for name, _ in recogniser.named_parameters() if "bridge" in name]
    same = {
        name: value.shape for name, value in network(kind, None, masks=masks, diagnoses=diagnoses).named_parameters()
    }
    assert {name: value.shape for name, value in recogniser.named_parameters()} == same
    assert (recogniser(images()).mask_logits_BKHW is None) == (not masks)


def test_the_campaign_says_how_saliency_enters() -> None:
    assert bridge_of(LearnConfig()) is None
    assert bridge_of(LearnConfig(kind="multimix", saliency=True)) == "normalised"
    assert bridge_of(LearnConfig(kind="multimix", saliency=True, saliency_norm=False)) == "raw"


@pytest.mark.parametrize("size", [(8, 8), (33, 47), (3, 5)])
def test_the_percentile_is_numpys_to_one_rank(size: tuple[int, int]) -> None:
    saliency = torch.rand(3, 1, *size, generator=torch.Generator().manual_seed(0)) ** 4
    ours = percentile_B1HW(saliency)
    assert ours.shape == (3, 1, 1, 1)
    count = size[0] * size[1]
    # The h-th highest of n is the quantile (n - h) / (n - 1), with no interpolation at that rank.
    highest = max(1, int(np.floor(0.01 * count + 1e-9)))
    theirs = np.quantile(saliency.flatten(1).numpy(), (count - highest) / (count - 1), axis=1)
    np.testing.assert_allclose(ours.flatten(), theirs, rtol=1e-6)
    if count >= 100:
        assert abs((count - highest) / (count - 1) - 0.99) < 1 / count * 2


def test_the_decoder_sees_image_and_saliency_at_its_size_and_no_gradient_flows_back() -> None:
    image, like = images(2, (16, 16), 3).requires_grad_(), torch.zeros(2, 5, 4, 6)
    saliency = torch.rand(2, 1, 16, 16, generator=torch.Generator().manual_seed(2))
    raw, normalised = bridged(image, saliency, like, "raw"), bridged(image, saliency, like, "normalised")
    assert raw.shape == normalised.shape == (2, 4, 4, 6)
    assert not raw.requires_grad
    torch.testing.assert_close(raw[:, :3], normalised[:, :3])
    torch.testing.assert_close(raw[:, 3:], normalised[:, 3:] * percentile_B1HW(saliency))
    torch.testing.assert_close(raw[:, 3, 0, 0], saliency[:, 0, 0, 0], msg="corners are aligned")
    assert torch.isfinite(bridged(image, torch.zeros_like(saliency), like, "normalised")).all()


# ------------------------------------------------------------------------------------------- from the graph


@pytest.mark.parametrize("kind", KINDS)
def test_saliency_from_the_graph_leaves_no_gradient_behind_and_keeps_the_graph(kind: str) -> None:
    recogniser, batch = network(kind).train(), images().requires_grad_()
    encoding = recogniser.encode(batch)
    saliency = saliency_from_graph(encoding.diagnosis_logits_BN, batch)
    assert saliency.shape == (2, 1, 24, 16)
    assert not saliency.requires_grad
    assert batch.grad is None
    assert not [name for name, weight in recogniser.named_parameters() if weight.grad is not None]
    recogniser.decode(encoding, batch, saliency).mask_logits_BKHW.sum().backward()
    assert batch.grad is not None


@pytest.mark.parametrize("kind", KINDS)
def test_saliency_is_the_slope_of_the_highest_score(kind: str) -> None:
    recogniser, batch = network(kind).double(), images(1, (8, 8)).double()
    saliency, step = by_autograd(recogniser, batch), 1e-6

    def score(image: Tensor) -> float:
        with torch.no_grad():
            return float(recogniser.encode(image).diagnosis_logits_BN.amax(1))

    for row, column in itertools.product(range(0, 8, 3), range(0, 8, 3)):
        moved = torch.zeros_like(batch)
        moved[0, 0, row, column] = step
        slope = (score(batch + moved) - score(batch - moved)) / (2 * step)
        assert abs(slope) == pytest.approx(float(saliency[0, 0, row, column]), rel=1e-4, abs=1e-8)


@pytest.mark.parametrize("kind", KINDS)
def test_the_saliency_of_a_batch_is_that_of_each_image_alone(kind: str) -> None:
    recogniser, batch = network(kind).double(), images(3).double() * torch.tensor([1.0, 5.0, 0.1]).view(3, 1, 1, 1)
    for way in (by_autograd, saliency_of):
        alone = torch.cat([way(recogniser, batch[i : i + 1]) for i in range(3)])
        torch.testing.assert_close(way(recogniser, batch), alone, rtol=1e-10, atol=1e-14)


# ------------------------------------------------------------------------------------------- the closed form


@pytest.mark.parametrize("size", [(32, 32), (28, 33), (17, 23), (9, 64)])
@pytest.mark.parametrize("kind", KINDS)
def test_the_closed_form_equals_autograds(kind: str, size: tuple[int, int]) -> None:
    for depth in (2, 3, 4):
        for channels in (1, 3):
            recogniser, batch = network(kind, depth=depth, colours=channels), images(3, size, channels)
            theirs = by_autograd(recogniser, batch)
            difference = (saliency_of(recogniser, batch) - theirs).abs().amax()
            assert difference <= 1e-4 * theirs.amax()
            recogniser, batch = recogniser.double(), batch.double()
            torch.testing.assert_close(
                saliency_of(recogniser, batch), by_autograd(recogniser, batch), rtol=1e-10, atol=1e-10
            )


@pytest.mark.parametrize("kind", KINDS)
def test_the_closed_form_shares_ties_as_autograd_does(kind: str) -> None:
    recogniser = network(kind).double()
    flat = torch.zeros(3, 1, 18, 20, dtype=torch.float64)  # one value everywhere, one square, one half
    flat[1, :, 4:9, 5:11] = 1
    flat[2, :, 9:] = 0.5
    torch.testing.assert_close(saliency_of(recogniser, flat), by_autograd(recogniser, flat), rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(4, 6, 3, padding=1),
        nn.Conv2d(4, 6, 3, stride=2, padding=1),
        nn.Conv2d(4, 6, (2, 5), stride=(3, 2), padding=(0, 1), dilation=(1, 2), groups=2),
        nn.GroupNorm(2, 4),
        nn.GroupNorm(4, 4, affine=False),
        nn.InstanceNorm2d(4),
        nn.InstanceNorm2d(4, affine=True),
        nn.ReLU(),
        nn.LeakyReLU(0.2),
    ],
    ids=str,
)
@pytest.mark.parametrize("size", [(12, 10), (13, 11)])
def test_every_layer_pulls_back_as_autograd_does(layer: nn.Module, size: tuple[int, int]) -> None:
    layer = layer.double()
    given = torch.randn(2, 4, *size, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    given[:, :, :2] = 0  # where a ReLU bends
    leaf = given.clone().requires_grad_()
    weights = torch.randn(layer(given).shape, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    (theirs,) = torch.autograd.grad((layer(leaf) * weights).sum(), leaf)
    torch.testing.assert_close(_pulled_back(layer, given, weights), theirs, rtol=1e-10, atol=1e-10)


def test_two_equal_scores_share_the_saliency() -> None:
    linear = nn.Linear(4, 2, bias=False).double()
    with torch.no_grad():
        linear.weight[1] = linear.weight[0]
    batch = torch.rand(2, 4, dtype=torch.float64, requires_grad=True)
    steps: list[Step] = []
    logits = passed([linear], batch, steps)
    (theirs,) = torch.autograd.grad(logits.amax(1).sum(), batch)
    torch.testing.assert_close(saliency_from_steps(steps, logits)[:, 0], theirs.abs().amax(1))


@pytest.mark.parametrize("bridge", ["normalised", "raw"])
@pytest.mark.parametrize("kind", KINDS)
def test_evaluation_decodes_with_the_saliency_of_its_own_forward(kind: str, bridge: Bridge) -> None:
    recogniser, batch = network(kind, bridge).double(), images().double()
    encoding, saliency = encoded(recogniser, batch)  # type: ignore[arg-type]
    assert saliency is not None
    assert not saliency.requires_grad
    torch.testing.assert_close(saliency, by_autograd(recogniser, batch), rtol=1e-10, atol=1e-10)
    through_autograd = recogniser.decode(encoding, batch, by_autograd(recogniser, batch))
    torch.testing.assert_close(
        recogniser(batch).mask_logits_BKHW, through_autograd.mask_logits_BKHW, rtol=1e-8, atol=1e-8
    )


@pytest.mark.parametrize("kind", KINDS)
def test_while_training_saliency_is_taken_with_dropout_and_leaves_nothing_behind(kind: str) -> None:
    recogniser, batch = network(kind, dropout=0.5).train(), images()
    torch.manual_seed(0)
    with torch.inference_mode():
        first, again = saliency_of(recogniser, batch), saliency_of(recogniser, batch)
    assert not torch.equal(first, again)
    recognition = recogniser(batch)
    assert not [name for name, weight in recogniser.named_parameters() if weight.grad is not None]
    recognition.mask_logits_BKHW.sum().backward()
    assert batch.grad is None


@pytest.mark.parametrize("kind", KINDS)
def test_the_layout_in_memory_does_not_matter(kind: str) -> None:
    recogniser, batch = network(kind).double(), images(3, (21, 34), 1).double()
    expected = by_autograd(recogniser, batch)
    recogniser.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    found = saliency_of(recogniser, batch.to(memory_format=torch.channels_last))
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("kind", KINDS)
def test_in_bfloat16_the_closed_form_is_as_near_as_autograds(kind: str) -> None:
    recogniser, batch = network(kind, channels=8), images(4, (32, 32))
    with torch.autocast("cpu", torch.bfloat16):
        ours, theirs = saliency_of(recogniser, batch), by_autograd(recogniser, batch)
    together = torch.corrcoef(torch.stack([ours.float().flatten(), theirs.float().flatten()]))
    assert float(together[0, 1]) > 0.99
