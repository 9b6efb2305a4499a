from __future__ import annotations

import pytest
import torch
from torch import nn

from shared.blocks import built, conv_block, halved_BCHW, zero_conv


def test_building_leaves_the_global_generator_alone() -> None:
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    built(lambda: conv_block(1, 8), 0, "test")
    assert torch.equal(torch.rand(2), expected)


def test_weights_follow_seed_and_purpose_alone() -> None:
    def weight(seed: int, purpose: str) -> torch.Tensor:
        return torch.cat([p.flatten() for p in built(lambda: conv_block(1, 8), seed, purpose).parameters()])

    assert torch.equal(weight(0, "a"), weight(0, "a"))
    assert not torch.equal(weight(0, "a"), weight(1, "a"))
    assert not torch.equal(weight(0, "a"), weight(0, "b"))


def test_convolutions_keep_the_variance_of_what_they_pass_on() -> None:
    network = built(lambda: nn.Conv2d(32, 64, 3, padding=1), 0, "test")
    image = torch.randn(4, 32, 32, 32, generator=torch.Generator().manual_seed(0)).relu()
    with torch.no_grad():
        ratio = network(image)[..., 1:-1, 1:-1].square().mean() / (2 * image.square().mean())
    assert 0.8 < float(ratio) < 1.2


@pytest.mark.parametrize(("size", "stride", "padding"), [(2, 2, 0), (4, 2, 1), (3, 1, 1)])
def test_transposed_convolutions_keep_the_variance_too(size: int, stride: int, padding: int) -> None:
    network = built(lambda: nn.ConvTranspose2d(64, 32, size, stride=stride, padding=padding), 0, "test")
    image = torch.randn(4, 64, 32, 32, generator=torch.Generator().manual_seed(0)).relu()
    with torch.no_grad():
        ratio = network(image)[..., 2:-2, 2:-2].square().mean() / (2 * image.square().mean())
    assert 0.8 < float(ratio) < 1.2


def test_a_zero_convolution_starts_at_zero() -> None:
    network = built(lambda: zero_conv(4, 1), 0, "test")
    assert all(not parameter.detach().any() for parameter in network.parameters())


@pytest.mark.parametrize(("size", "half"), [((8, 6), (4, 3)), ((7, 5), (4, 3)), ((28, 28), (14, 14))])
def test_halving_rounds_up_and_keeps_a_constant(size: tuple[int, int], half: tuple[int, int]) -> None:
    halved = halved_BCHW(torch.full((1, 2, *size), 0.3))
    assert halved.shape == (1, 2, *half)
    torch.testing.assert_close(halved, torch.full_like(halved, 0.3))


def test_norms_treat_every_image_alone() -> None:
    block = built(lambda: conv_block(1, 8), 0, "test")
    images = torch.rand(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    louder = images * torch.tensor([1.0, 5.0, 9.0]).view(3, 1, 1, 1)
    torch.testing.assert_close(block(images)[:1], block(louder)[:1])
