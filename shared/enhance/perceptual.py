"""Enhanced and clean images in, the distance of their VGG-19 features out; the weights come from a local file.

Simonyan, Zisserman 2015, https://arxiv.org/abs/1409.1556. As a loss for low-dose CT: Yang et al. 2018,
https://arxiv.org/abs/1708.00961: mean squared difference of what the 16th and last convolution says, here after its
ReLU. The file holds `features.<N>.weight` and `.bias` as torchvision names them; nothing is ever downloaded.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F

from shared.errors import ConfigError, DataError

WIDTHS = ((64, 64), (128, 128), (256,) * 4, (512,) * 4, (512,) * 4)
"""Output channels of the convolutions between one halving and the next."""

SMALLEST_PX = 16
"""Four halvings leave nothing of a smaller image."""

FLOATS = (torch.float32, torch.float16, torch.bfloat16)
"""What weights may be kept in; fewer bits are a quantisation with scales of its own, and torch computes little in them.
"""

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True, slots=True, eq=False)
class VGG19:
    """(weight, bias) of the 16 convolutions in order; constants, so that nothing can train them."""

    convolutions: tuple[tuple[Tensor, Tensor], ...]

    def to(self, device: torch.device) -> VGG19:
        return VGG19(tuple((weight.to(device), bias.to(device)) for weight, bias in self.convolutions))


def layer_shapes() -> dict[int, tuple[int, int]]:
    """(channels in, channels out) by torchvision's number, which counts ReLUs and halvings too."""
    shapes, number, channels = {}, 0, 3
    for widths in WIDTHS:
        for width in widths:
            shapes[number] = (channels, width)
            number, channels = number + 2, width
        number += 1
    return shapes


def load_vgg19(file: str) -> VGG19:
    """Read the convolutions from a .safetensors file; what else it holds (the classifier) is left. A .pth file is a
    pickle, and none is opened: `safetensors.torch.save_file(torch.load(FILE, weights_only=True), NEW)` turns one.

    Raises ConfigError where there is no such file, DataError for one that cannot be used. Messages name the file
    without its folder.
    """
    path = Path(file)
    if path.suffix != ".safetensors":
        raise ConfigError(
            f"objective.vgg_weights must be a .safetensors file, got {path.name!r}; a .pth file is turned by "
            "safetensors.torch.save_file(torch.load(FILE, weights_only=True), NEW)"
        )
    if not path.is_file():
        raise ConfigError(
            f"objective.vgg_weights: no file {path.name!r} here; give the place of VGG-19's weights on this machine, "
            "or choose objective=mse-wgan"
        )
    arrays = _read(path)
    convolutions = []
    for number, (channels, width) in layer_shapes().items():
        weight = _array(arrays, f"features.{number}.weight", (width, channels, 3, 3), path.name)
        convolutions.append((weight, _array(arrays, f"features.{number}.bias", (width,), path.name)))
    return VGG19(tuple(convolutions))


def _read(path: Path) -> dict[str, Tensor]:
    try:
        arrays: dict[str, Tensor] = load_file(path)
    except (SafetensorError, OSError, ValueError):
        raise DataError(
            f"objective.vgg_weights: {path.name!r} cannot be read as weights; take torchvision's VGG-19"
        ) from None
    return arrays


def _array(arrays: dict[str, Tensor], name: str, shape: tuple[int, ...], file: str) -> Tensor:
    array = arrays.get(name)
    fits = isinstance(array, Tensor) and tuple(array.shape) == shape and array.dtype in FLOATS
    if array is None or not fits or not bool(torch.isfinite(array).all()):
        raise DataError(
            f"objective.vgg_weights: {file!r} must hold {name!r} as finite float32 (float16, bfloat16) of shape "
            f"{shape}, got {_described(array)}; take torchvision's VGG-19 without BatchNorm"
        )
    return array.detach().float()


def _described(array: object) -> str:
    return f"{array.dtype} of shape {tuple(array.shape)}" if isinstance(array, Tensor) else type(array).__name__


def perceptual_loss(vgg: VGG19, enhanced_BCHW: Tensor, clean_BCHW: Tensor) -> Tensor:
    """Mean squared difference of the features; images on [0, 1] with one channel or three."""
    with torch.no_grad():
        wanted_BCHW = features_BCHW(vgg, clean_BCHW)
    return F.mse_loss(features_BCHW(vgg, enhanced_BCHW), wanted_BCHW)


def features_BCHW(vgg: VGG19, image_BCHW: Tensor) -> Tensor:
    """After the ReLU of the last convolution; grey is shown as red, green and blue alike."""
    assert image_BCHW.ndim == 4, "VGG-19 looks at images; a volume has none of its own"
    assert image_BCHW.shape[1] in (1, 3), image_BCHW.shape
    mean, std = (
        torch.tensor(values, device=image_BCHW.device).view(3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD)
    )
    seen_BCHW = (image_BCHW - mean) / std  # a single channel spreads over the three
    convolutions = iter(vgg.convolutions)
    for level, widths in enumerate(WIDTHS):
        if level:
            seen_BCHW = F.max_pool2d(seen_BCHW, 2)
        for _ in widths:
            weight, bias = next(convolutions)
            seen_BCHW = F.conv2d(seen_BCHW, weight, bias, padding=1).relu()
    return seen_BCHW
