"""The convolution block that both networks are built of, and their seeded initialisation.

Plain torch: MONAI's U-Nets spend two thirds of a small step on levels that a 64 x 64 slice does not need, and importing
MONAI costs a client two seconds and 200 MB. GroupNorm throughout: it treats every image alone, so micro batches are
exact, nothing has to be averaged between sites, and per-patient clipping stays possible.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from shared.seeding import generator

Conv = type[nn.Conv2d] | type[nn.Conv3d]


def convolution(dims: int) -> Conv:
    """The layer for images (2) or volumes (3)."""
    assert dims in (2, 3), dims
    return nn.Conv2d if dims == 2 else nn.Conv3d


def group_norm(channels: int) -> nn.GroupNorm:
    """One group: in channels-last memory several groups cost the backward pass three times as much."""
    return nn.GroupNorm(1, channels)


def conv_block(channels_in: int, channels_out: int) -> nn.Sequential:
    """3 x 3 convolution, GroupNorm, ReLU."""
    return nn.Sequential(
        nn.Conv2d(channels_in, channels_out, 3, padding=1, bias=False),
        group_norm(channels_out),
        nn.ReLU(inplace=True),
    )


def halved_BCHW(features_BCHW: Tensor) -> Tensor:
    """Mean of 2 x 2 pixels; odd sizes are rounded up. Cheaper than a strided convolution, and it does not alias."""
    return nn.functional.avg_pool2d(features_BCHW, 2, ceil_mode=True)


def halved_maximum_BCHW(features_BCHW: Tensor) -> Tensor:
    """Maximum of 2 x 2 pixels; odd sizes are rounded up."""
    return nn.functional.max_pool2d(features_BCHW, 2, ceil_mode=True)


def upsampled_BCHW(features_BCHW: Tensor, like_BCHW: Tensor) -> Tensor:
    """Nearest neighbour up to the size of `like_BCHW`, so that odd sizes meet their skip connection."""
    return nn.functional.interpolate(features_BCHW, size=like_BCHW.shape[-2:], mode="nearest")


def built(make: Callable[[], nn.Module], seed: int, *purpose: str) -> nn.Module:
    """Build without touching the global generator, then draw every weight from (seed, purpose).

    Convolutions and linear layers: He et al. 2015, normal; biases 0; norms 1 and 0. A layer marked `starts_at_zero`
    starts at zero: the residual network it ends is the identity at first.
    """
    # Not on the meta device, which is neater: its first use loads sympy, a second of every start.
    with torch.random.fork_rng(devices=[]):
        network = make()
    rng = generator(seed, "weights", *purpose)
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Conv3d | nn.Linear):
            if getattr(module, "starts_at_zero", False):
                nn.init.zeros_(module.weight)
            else:
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu", generator=rng)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.ConvTranspose2d):
            # torch counts the fan of the convolution that it transposes: an output pixel meets every input channel
            # in as many places of the kernel as there are strides in it.
            places = math.prod(module.kernel_size) / math.prod(module.stride)
            nn.init.normal_(module.weight, std=math.sqrt(2 / (module.in_channels * places)), generator=rng)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.GroupNorm | nn.BatchNorm2d | nn.BatchNorm3d):
            assert not list(module.buffers(recurse=False)), "running statistics would drift between sites"
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)
        elif isinstance(module, nn.PReLU):
            nn.init.constant_(module.weight, 0.25)
        elif getattr(module, "starts_at_zero", False):
            for parameter in module.parameters(recurse=False):
                nn.init.zeros_(parameter)
        else:
            own = list(module.parameters(recurse=False)) + list(module.buffers(recurse=False))
            assert not own, f"no initialisation for {type(module).__name__}"
    return network


def zero_conv(channels_in: int, channels_out: int, *, size: int = 3, dims: int = 2) -> nn.Conv2d | nn.Conv3d:
    """A convolution that `built` starts at zero."""
    conv = convolution(dims)(channels_in, channels_out, size, padding=size // 2)
    conv.starts_at_zero = True  # type: ignore[assignment]
    return conv
