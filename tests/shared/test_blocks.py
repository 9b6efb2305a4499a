from __future__ import annotations

import torch
from torch import nn

from shared.blocks import built, conv_block, group_norm, zero_conv


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


def test_a_zero_convolution_starts_at_zero() -> None:
    network = built(lambda: zero_conv(4, 1), 0, "test")
    assert all(not parameter.detach().any() for parameter in network.parameters())


def test_groups_divide_their_channels() -> None:
    assert [group_norm(channels).num_groups for channels in (1, 3, 4, 6, 8, 12, 16, 32, 48)] == [
        1,
        1,
        1,
        1,
        2,
        2,
        4,
        8,
        8,
    ]
