from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from shared.blocks import built
from shared.config import EnhancerConfig
from shared.enhance.networks import build_enhancer
from shared.enhance.todnet import SelfAttention, TODNetGenerator

SIZES = {2: (12, 20), 3: (4, 12, 8)}


def generator(dims: int, *, channels: int = 1, seed: int = 0, **config: object) -> TODNetGenerator:
    made = EnhancerConfig(**{"kind": "todnet", "channels": 4, "depth": 4, **config})  # type: ignore[arg-type]
    network = built(lambda: TODNetGenerator(channels, made, dims=dims), seed, "enhancer")
    assert isinstance(network, TODNetGenerator)
    return network


def images(dims: int, *, channels: int = 1, size: tuple[int, ...] | None = None) -> torch.Tensor:
    return torch.rand(2, channels, *(size or SIZES[dims]), generator=torch.Generator().manual_seed(0))


def moved(network: TODNetGenerator) -> TODNetGenerator:
    rng = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=rng))
    return network


@pytest.mark.parametrize("attention", [False, True])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("dims", [2, 3])
def test_an_untrained_linear_generator_is_the_identity(dims: int, channels: int, attention: bool) -> None:
    image = images(dims, channels=channels)
    with torch.no_grad():
        assert torch.equal(generator(dims, channels=channels, attention=attention)(image), image)


@pytest.mark.parametrize("size", [(64, 64), (33, 17), (40, 24)])
@pytest.mark.parametrize("attention", [False, True])
def test_any_size_keeps_its_size(size: tuple[int, int], attention: bool) -> None:
    image = images(2, size=size)
    with torch.no_grad():
        assert moved(generator(2, depth=2, attention=attention))(image).shape == image.shape


@pytest.mark.parametrize("dims", [2, 3])
def test_the_tanh_form_starts_below_the_image_and_never_reaches_one(dims: int) -> None:
    network = generator(dims, output="tanh")
    ones = torch.ones(1, 1, *SIZES[dims])
    with torch.no_grad():
        torch.testing.assert_close(network(ones), torch.full_like(ones, math.tanh(1)))
        assert float(network(ones).max()) == pytest.approx(0.7616, abs=1e-4)
        assert float(moved(network)(images(dims)).abs().max()) < 1


def slow_twin(network: TODNetGenerator, image: torch.Tensor) -> torch.Tensor:
    """Section 3.2 of the paper's code, layer by layer for four levels, with norms by hand."""

    def activated(x: torch.Tensor) -> torch.Tensor:
        axes = tuple(range(2, x.ndim))
        centred = x - x.mean(axes, keepdim=True)
        normed = centred / (centred.square().mean(axes, keepdim=True) + 1e-5).sqrt()
        return torch.where(normed > 0, normed, 0.2 * normed)

    conv = F.conv2d if image.ndim == 4 else F.conv3d
    kernels = [layer.weight for layer in (*network.encode, *network.decode)]
    enc32 = activated(conv(image, kernels[0], padding=1))
    enc64 = activated(conv(enc32, kernels[1], padding=1))
    enc128 = activated(conv(enc64, kernels[2], padding=1))
    enc256 = activated(conv(enc128, kernels[3], padding=1))
    dec128 = activated(conv(enc256, kernels[4], padding=1) + enc128)
    dec64 = activated(conv(dec128, kernels[5], padding=1) + enc64)
    dec32 = activated(conv(dec64, kernels[6], padding=1) + enc32)
    return torch.tanh(conv(dec32, network.residual.weight, network.residual.bias, padding=1) + image)


@pytest.mark.parametrize("dims", [2, 3])
def test_the_generator_is_the_published_one(dims: int) -> None:
    network = moved(generator(dims, output="tanh"))
    assert [layer.weight.shape[0] for layer in network.encode] == [4, 8, 16, 32]
    assert [layer.weight.shape[0] for layer in network.decode] == [16, 8, 4]
    with torch.no_grad():
        torch.testing.assert_close(network(images(dims)), slow_twin(network, images(dims)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("attention", [False, True])
def test_every_weight_learns(dims: int, attention: bool) -> None:
    network = generator(dims, depth=2, channels=2, attention=attention)
    optimiser = torch.optim.SGD(network.parameters(), lr=0.1)
    image = images(dims, channels=2)
    for _ in range(3):  # first the end, then the gain, then what stands before it: the first two started at zero
        optimiser.zero_grad()
        (network(image) - image.flip(0)).square().mean().backward()
        optimiser.step()
    silent = [name for name, p in network.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert not silent


@pytest.mark.parametrize("dims", [2, 3])
def test_attention_starts_as_the_identity_and_is_a_mean_over_all_places(dims: int) -> None:
    block = built(lambda: SelfAttention(8, dims), 0, "test")
    assert isinstance(block, SelfAttention)
    features = images(dims, channels=8, size=(4,) * dims)
    with torch.no_grad():
        assert torch.equal(block(features), features)
        block.gain.fill_(0.5)
        query, key, value = (layer(features).flatten(2) for layer in (block.query, block.key, block.value))
        expected = torch.zeros_like(value)
        for image in range(len(features)):
            for place in range(4**dims):
                energies = torch.stack([query[image, :, place] @ key[image, :, other] for other in range(4**dims)])
                expected[image, :, place] = value[image] @ energies.softmax(0)  # inner width 1: its root is 1
        torch.testing.assert_close(block(features), features + 0.5 * expected.view_as(features), rtol=1e-4, atol=1e-5)


def test_attention_looks_at_few_places_of_a_large_image() -> None:
    block = built(lambda: SelfAttention(8, 2), 0, "test")
    seen = []
    block.key.register_forward_hook(lambda _module, _inputs, output: seen.append(output.shape[2:]))  # type: ignore[union-attr, operator]
    with torch.no_grad():
        for size in ((64, 64), (50, 30)):
            assert block(images(2, channels=8, size=size)).shape[2:] == size
    assert [tuple(shape) for shape in seen] == [(16, 16), (13, 15)]


def test_build_enhancer_gives_it_by_name() -> None:
    config = EnhancerConfig(kind="todnet", channels=4, depth=2, attention=True)
    one, other = (build_enhancer(config, 1, seed=3) for _ in range(2))
    assert isinstance(one, TODNetGenerator)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))
    assert all(tensor.is_floating_point() for tensor in one.state_dict().values())
