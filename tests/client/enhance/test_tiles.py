from __future__ import annotations

import pytest
import torch
from torch import nn

from client.enhance.tiles import enhanced_in_tiles, fits_whole, halo_px, stride_px, tiles_of
from shared.config import EnhancerConfig
from shared.enhance.networks import build_enhancer

KINDS = [
    EnhancerConfig(kind="cnn3", channels=4),
    EnhancerConfig(kind="unet", channels=4, depth=1),
    EnhancerConfig(kind="unet", channels=4, depth=3),
    EnhancerConfig(kind="unet", channels=3, depth=4),
    EnhancerConfig(kind="srresnet", channels=4, depth=3),
    EnhancerConfig(kind="todnet", channels=2, depth=3),
    EnhancerConfig(kind="todnet", channels=2, depth=2, output="tanh"),
    EnhancerConfig(kind="none"),
]


def random_enhancer(config: EnhancerConfig, channels: int = 1) -> nn.Module:
    """With a correction that is not zero, and norms that do something."""
    enhancer = build_enhancer(config, channels, 3)
    rng = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in enhancer.named_parameters():
            if name.startswith(("correction", "residual", "body.4")) or parameter.ndim == 1:
                # Corrections of about 1, as images are: 1e-5 is then a promise about what is seen.
                size = 0.3 / max(1, parameter[0].numel()) ** 0.5
                parameter.add_(size * torch.randn(parameter.shape, generator=rng))
    return enhancer.eval()


@pytest.mark.parametrize("config", KINDS, ids=lambda config: f"{config.kind}-{config.depth}-{config.output}")
@pytest.mark.parametrize("channels", [1, 3])
def test_tiled_equals_untiled(config: EnhancerConfig, channels: int) -> None:
    enhancer = random_enhancer(config, channels)
    image = torch.rand(2, channels, 136, 120, generator=torch.Generator().manual_seed(0))
    # Brighter on one side: moments of a tile are not those of the image.
    image = image * torch.linspace(0.1, 1, 120)
    with torch.inference_mode():
        whole = enhancer(image)
        tiled = enhanced_in_tiles(enhancer, image, config, tile=48)
    assert config.kind == "none" or (whole - image).abs().max() > 0.05
    torch.testing.assert_close(tiled, whole, atol=1e-5, rtol=0)


@pytest.mark.parametrize("config", KINDS[:-1], ids=lambda config: f"{config.kind}-{config.depth}-{config.output}")
def test_the_halo_is_as_wide_as_the_network_sees(config: EnhancerConfig) -> None:
    """Without norms (which see everything), a pixel moves nothing beyond the halo."""
    enhancer = random_enhancer(config)
    for module in list(enhancer.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.GroupNorm):
                setattr(module, name, nn.Identity())
    if config.kind == "todnet":
        pytest.skip("todnet's norms are no modules; its halo is a sum of 3 x 3 radii")
    side = 4 * halo_px(config) + 8 * stride_px(config)
    image = torch.zeros(1, 1, side, side)
    touched = image.clone()
    touched[..., side // 2, side // 2] = 1
    with torch.inference_mode():
        moved = (enhancer(touched) - enhancer(image))[0, 0].abs() > 1e-9
    rows, columns = torch.nonzero(moved, as_tuple=True)
    assert (rows - side // 2).abs().max() <= halo_px(config)
    assert (columns - side // 2).abs().max() <= halo_px(config)


def test_without_a_halo_seams_show() -> None:
    """The attack: what the halo is for."""
    config = KINDS[2]
    enhancer = random_enhancer(config)
    image = torch.rand(1, 1, 96, 96, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        parts = torch.cat([enhancer(image[..., :48]), enhancer(image[..., 48:])], dim=-1)
        whole = enhancer(image)
    assert (parts - whole).abs().max() > 1e-3


def test_cores_cover_an_image_once_and_nothing_beyond_it_is_read() -> None:
    covered = torch.zeros(50, 70)
    for tile in tiles_of(50, 70, 16, 8):
        covered[tile.core] += 1
        assert tile.read[0].start >= 0
        assert tile.read[1].stop <= 70
    assert (covered == 1).all()


def test_a_slice_of_ct_is_enhanced_whole_and_a_radiograph_in_tiles() -> None:
    config = EnhancerConfig(kind="unet", channels=16, depth=3)
    assert fits_whole(config, 512, 512)
    assert not fits_whole(config, 1955, 1841)
    assert not fits_whole(EnhancerConfig(kind="todnet", channels=32, depth=4), 512, 512)
