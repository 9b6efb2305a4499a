from __future__ import annotations

import pytest
import torch

from shared.config import EnhancerConfig
from shared.enhance.networks import build_enhancer

KINDS = ("unet", "srresnet", "cnn3")


@pytest.mark.parametrize("size", [(64, 64), (24, 40), (28, 28), (33, 17)])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_an_untrained_enhancer_is_the_identity_on_any_size(kind: str, channels: int, size: tuple[int, int]) -> None:
    enhancer = build_enhancer(EnhancerConfig(kind=kind, channels=4, depth=3), channels, seed=0)  # type: ignore[arg-type]
    image = torch.rand(2, channels, *size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(enhancer(image), image)


@pytest.mark.parametrize("kind", KINDS)
def test_every_weight_learns(kind: str) -> None:
    enhancer = build_enhancer(EnhancerConfig(kind=kind, channels=8, depth=2), 1, seed=0)  # type: ignore[arg-type]
    rng = torch.Generator().manual_seed(0)
    image, clean = torch.rand(2, 2, 1, 16, 16, generator=rng)
    optimiser = torch.optim.SGD(enhancer.parameters(), lr=0.1)
    for _ in range(2):  # the first step moves only the end, which started at zero
        optimiser.zero_grad()
        (enhancer(image) - clean).square().mean().backward()
        optimiser.step()
    silent = [name for name, parameter in enhancer.named_parameters() if not parameter.grad.abs().sum() > 0]  # type: ignore[union-attr]
    assert not silent


@pytest.mark.parametrize("kind", KINDS)
def test_an_image_is_enhanced_alike_in_every_batch(kind: str) -> None:
    enhancer = build_enhancer(EnhancerConfig(kind=kind, channels=8, depth=2), 1, seed=0)  # type: ignore[arg-type]
    rng = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in enhancer.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=rng))
        images = torch.rand(3, 1, 16, 16, generator=rng)
        torch.testing.assert_close(enhancer(images)[1:2], enhancer(images[1:2]), rtol=1e-4, atol=1e-4)
