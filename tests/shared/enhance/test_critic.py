from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from shared.config.campaign import CriticConfig
from shared.enhance.critic import (
    CLIP,
    PENALTY_WEIGHT,
    STRIDES,
    Critic,
    build_critic,
    clip_weights,
    gradient_penalty,
    operator_norm_bound,
)
from shared.errors import ConfigError

CONSTRAINTS = ("clip", "penalty", "spectral")


def critic(constraint: str, size: tuple[int, ...] = (16, 16), *, channels: int = 1, seed: int = 0) -> Critic:
    config = CriticConfig(constraint=constraint, channels=4)  # type: ignore[arg-type]
    return build_critic(config, channels, size, seed)


def images(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("constraint", CONSTRAINTS)
@pytest.mark.parametrize("size", [(16, 16), (28, 20), (9, 33), (8, 8, 16), (9, 12, 10)])
def test_every_image_has_one_score_whatever_the_size(constraint: str, size: tuple[int, ...]) -> None:
    network = critic(constraint, size, channels=2)
    assert network(images(3, 2, *size)).shape == (3,)
    assert network(images(3, 2, *(side + 8 for side in size))).shape == (3,)


@pytest.mark.parametrize("size", [(32, 32), (16, 16, 16)])
def test_widths_strides_and_places_are_the_published_ones(size: tuple[int, ...]) -> None:
    network = build_critic(CriticConfig(), 1, size, 0)
    assert [layer.weight.shape[0] for layer in network.convolutions] == [32, 64, 128]
    assert [set(layer.stride) for layer in network.convolutions] == [{2}, {2}, {1}]
    assert network.head.weight.shape == (1, 128 * math.prod(side // 8 for side in size))
    # Where sides can be halved three times, the pooling is the released mean over windows of 2.
    features = images(1, 4, *(side // 4 for side in size))
    pool = (F.adaptive_avg_pool2d, F.avg_pool2d) if len(size) == 2 else (F.adaptive_avg_pool3d, F.avg_pool3d)
    torch.testing.assert_close(pool[0](features, network.grid), pool[1](features, 2))


@pytest.mark.parametrize("constraint", CONSTRAINTS)
def test_a_critic_has_nothing_but_float_weights_that_all_learn(constraint: str) -> None:
    network = critic(constraint)
    assert not list(network.buffers())
    assert [name for name, _ in network.named_parameters()] == list(network.state_dict())
    score = network(images(4, 1, 16, 16))
    gradients = torch.autograd.grad(score.square().sum(), list(network.parameters()))
    assert all(float(gradient.abs().sum()) > 0 for gradient in gradients)


def test_the_seed_decides_the_weights() -> None:
    one, same, other = (critic("penalty", seed=seed) for seed in (0, 0, 1))
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), same.parameters(), strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


def test_images_too_small_for_a_score_are_refused() -> None:
    with pytest.raises(ConfigError, match="8 pixels or more"):
        critic("clip", (16, 7))


def test_clipping_leaves_no_weight_outside_norms_included() -> None:
    network = critic("clip")
    assert max(float(parameter.detach().abs().max()) for parameter in network.parameters()) <= CLIP
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)))
    clip_weights(network)
    assert {name: float(p.detach().abs().max()) <= CLIP for name, p in network.named_parameters()} == dict.fromkeys(
        network.state_dict(), True
    )
    assert any("norms" in name for name in network.state_dict())


def test_the_mean_of_clipped_weights_is_clipped() -> None:
    """What FedAvg does: the old weights plus the weighted mean of differences, in float32."""
    rng = np.random.default_rng(0)
    old = rng.uniform(-CLIP, CLIP, 10_000).astype(np.float32)
    sites = [np.clip(rng.normal(0, 0.02, 10_000), -CLIP, CLIP).astype(np.float32) for _ in range(3)]
    mean = old + sum(np.float32(share) * (site - old) for share, site in zip((0.5, 0.3, 0.2), sites, strict=True))
    assert float(np.abs(mean).max()) <= CLIP * (1 + 1e-6)


def test_batch_norm_is_of_the_batch_at_hand_in_every_mode() -> None:
    network = critic("clip")
    with torch.no_grad():
        assert torch.equal(network.train()(images(4, 1, 16, 16)), network.eval()(images(4, 1, 16, 16)))


@pytest.mark.parametrize("constraint", ["penalty", "spectral"])
def test_the_other_critics_score_every_image_alone(constraint: str) -> None:
    network, batch = critic(constraint), images(4, 1, 16, 16)
    with torch.no_grad():
        torch.testing.assert_close(network(batch)[1:2], network(batch[1:2]), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(("shape", "side"), [((5, 3, 3, 3), 7), ((2, 4, 3, 3), 8), ((3, 1, 3, 3, 3), 5)])
def test_a_layer_divided_by_its_bound_is_1_lipschitz(shape: tuple[int, ...], side: int, stride: int) -> None:
    """Against the whole matrix of the convolution on a small image; and the bound is not idle."""
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(stride))
    weight = weight / operator_norm_bound(weight, stride)
    dims = len(shape) - 2
    basis = torch.eye(shape[1] * side**dims).view(-1, shape[1], *[side] * dims)
    convolve = F.conv2d if dims == 2 else F.conv3d
    norm = float(torch.linalg.matrix_norm(convolve(basis, weight, stride=stride, padding=1).flatten(1), ord=2))
    assert 0.3 < norm <= 1 + 1e-3


def test_the_bound_is_the_spectral_norm_of_the_kernels_times_the_patches() -> None:
    weight = torch.randn(6, 3, 3, 3, generator=torch.Generator().manual_seed(0))
    spectral = torch.linalg.matrix_norm(weight.flatten(1), ord=2)
    for stride, patches in ((1, 9), (2, 4)):
        torch.testing.assert_close(operator_norm_bound(weight, stride), patches**0.5 * spectral)


@pytest.mark.parametrize("size", [(16, 16), (8, 8, 8)])
def test_a_spectral_critic_is_1_lipschitz_at_any_weights(size: tuple[int, ...]) -> None:
    network = critic("spectral", size)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(50)
        for seed in range(20):
            one, other = images(2, 1, *size, seed=seed).split(1)
            other = one + 10.0 ** -(seed % 3) * other
            assert float((network(one) - network(other)).abs()) <= float((one - other).norm()) * (1 + 1e-3)
    image = images(1, 1, *size).requires_grad_(True)
    (gradient,) = torch.autograd.grad(network(image).sum(), image)
    assert 0 < float(gradient.norm()) <= 1 + 1e-3


def test_spectral_norm_moves_only_across_its_scale() -> None:
    """The score does not change with the length of a kernel, so its gradient stands at right angles to the kernel."""
    network = critic("spectral")
    weights = [layer.weight for layer in network.convolutions]
    gradients = torch.autograd.grad(network(images(2, 1, 16, 16)).sum(), weights)
    first = gradients[0]
    assert isinstance(first, Tensor)
    cosine = float(torch.cosine_similarity(first.flatten(), weights[0].detach().flatten(), dim=0))
    assert abs(cosine) < 1e-3
    assert len(STRIDES) == len(gradients)


def test_the_penalty_of_a_linear_critic() -> None:
    """score = <a, x>: the gradient is a wherever one looks, and the penalty 10 (|a| - 1)^2."""
    a = images(2, 3, 4, seed=5).requires_grad_(True)
    found = gradient_penalty(
        lambda x: (x * a).flatten(1).sum(1), images(3, 2, 3, 4), images(3, 2, 3, 4, seed=1), torch.Generator()
    )
    expected = PENALTY_WEIGHT * (a.norm() - 1) ** 2
    torch.testing.assert_close(found, expected)
    (slope,) = torch.autograd.grad(found, a)
    torch.testing.assert_close(slope, (20 * (a.norm() - 1) * a / a.norm()).detach())


def test_the_penalty_looks_between_clean_and_enhanced_at_one_point_each() -> None:
    """score = |x|^2 / 2: the gradient is the point itself, whose norm is known where both ends lie on one axis."""
    clean, enhanced = torch.zeros(3, 1, 2, 2), torch.zeros(3, 1, 2, 2)
    clean[:, 0, 0, 0], enhanced[:, 0, 0, 0] = 4.0, 2.0
    share = torch.rand(3, generator=torch.Generator().manual_seed(7))
    found = gradient_penalty(
        lambda x: x.square().flatten(1).sum(1) / 2, clean, enhanced, torch.Generator().manual_seed(7)
    )
    torch.testing.assert_close(found, 10 * (2 + 2 * share - 1).square().mean())
