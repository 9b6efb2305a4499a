"""A campaign in, the networks of its generator out: autoencoder, denoiser with its prompts, ControlNet, edge detector.

Latent diffusion with a ControlNet, as in EMIT-Diff (https://arxiv.org/abs/2310.12868; the release is shaped like Stable
Diffusion 1.5), on MONAI's networks. An image of H x W becomes latents of H/4 x W/4 with 12 channels; where H or W is
no multiple of what the levels need, the image lies in the middle of a larger canvas. The autoencoder reads 4 x 4
pixels as channels of one (pixel unshuffle) and halves nothing: on 64 x 56 MR slices it came to 29.5 dB in 38 s of a
core, where one that halves twice was at 25. The hint encoder reads 2 x 2 pixels so and halves once.

What travels in a phase are the arrays of the networks that it trains, by the names `<network>.<parameter>`:

    edges        hed
    autoencoder  autoencoder
    denoiser     denoiser, prompts
    controlnet   controlnet

The others are frozen in it. `latents.scale`, 1 / root of the mean square of latents over all sites' images, is set
once, after the autoencoder's phase, and travels with what is frozen.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shared.config import CampaignConfig, GenerateConfig
from shared.errors import DataError
from shared.generate.prompts import Prompts, build_prompts
from shared.seeding import derived_seed
from shared.types import Arrays

if TYPE_CHECKING:
    from monai.networks.nets import AutoencoderKL, ControlNet, DiffusionModelUNet

LATENT_CHANNELS = 12
REDUCTION = 4
"""Of height and width, image to latents: pixels become channels."""
HINT_UNSHUFFLE = REDUCTION // 2
"""Of hints, whose encoder halves once."""
SMALLEST_SCALE = 1e-6
"""Of latents; the largest is its inverse. Beyond, latents were no numbers that float32 could train on."""
TRAINED = {
    "edges": ("hed",),
    "autoencoder": ("autoencoder",),
    "denoiser": ("denoiser", "prompts"),
    "controlnet": ("controlnet",),
}
"""Phase -> names of the networks that it trains, and that travel in its rounds."""


@dataclass(frozen=True, slots=True)
class Size:
    """Channels of each level."""

    autoencoder: tuple[int, ...]
    denoiser: tuple[int, ...]
    attention: tuple[bool, ...]
    head_channels: int = 32
    norm_groups: int = 16
    context: int = 64
    """Width of a prompt's vectors."""

    @property
    def multiple(self) -> int:
        """Of which a canvas' height and width are multiples."""
        return int(REDUCTION * 2 ** (len(self.denoiser) - 1))


SIZES = {
    "S": Size((64,), (32, 64), (False, True)),
    "M": Size((128,), (32, 64, 128), (False, True, True)),
}


class LatentScale(nn.Module):
    """One number, not trained."""

    def __init__(self) -> None:
        super().__init__()
        self.scale: Tensor
        self.register_buffer("scale", torch.ones(1))


@dataclass(frozen=True, slots=True, eq=False)
class Generator:
    """All networks, on one device. The value is frozen; the weights inside are what training moves."""

    autoencoder: AutoencoderKL
    latents: LatentScale
    denoiser: DiffusionModelUNet
    prompts: Prompts
    controlnet: ControlNet
    hed: nn.Module | None
    size: tuple[int, int]
    """Height and width of an image."""
    canvas: tuple[int, int]

    @property
    def all(self) -> dict[str, nn.Module]:
        named = ("autoencoder", "latents", "denoiser", "prompts", "controlnet")
        hed = {} if self.hed is None else {"hed": self.hed}
        return {**{name: getattr(self, name) for name in named}, **hed}

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of one image's latents."""
        return LATENT_CHANNELS, self.canvas[0] // REDUCTION, self.canvas[1] // REDUCTION

    def on_canvas(self, image_BCHW: Tensor) -> Tensor:
        """In the middle of the canvas; 0 around it. For images in [0, 1] and hints alike."""
        return F.pad(image_BCHW, self._margins)

    def off_canvas(self, canvas_BCHW: Tensor) -> Tensor:
        left, _, top, _ = self._margins
        return canvas_BCHW[..., top : top + self.size[0], left : left + self.size[1]]

    @property
    def _margins(self) -> tuple[int, int, int, int]:
        """Left, right, top, bottom."""
        down, right = (canvas - size for canvas, size in zip(self.canvas, self.size, strict=True))
        return right // 2, right - right // 2, down // 2, down - down // 2

    def encode(self, image_BCHW: Tensor) -> Tensor:
        """Images in [0, 1] to scaled latents: the mean, without noise."""
        mean_BCHW, _ = self.autoencoder.encode(self.unshuffled(image_BCHW))
        return cast(Tensor, mean_BCHW * self.latents.scale)

    def unshuffled(self, image_BCHW: Tensor) -> Tensor:
        """Images in [0, 1] as the autoencoder reads (and gives) them: on the canvas, in [-1, 1], 4 x 4 pixels as
        channels."""
        return F.pixel_unshuffle(self.on_canvas(image_BCHW) * 2 - 1, REDUCTION)

    def shuffled(self, unshuffled_BCHW: Tensor) -> Tensor:
        """The inverse of `unshuffled`; values beyond [0, 1] stay what they are."""
        return self.off_canvas(F.pixel_shuffle(unshuffled_BCHW, REDUCTION)) / 2 + 0.5

    def decode(self, latent_BCHW: Tensor) -> Tensor:
        """Scaled latents to images in [0, 1]; differentiable between the ends."""
        return self.shuffled(self.autoencoder.decode(latent_BCHW / self.latents.scale)).clamp(0, 1)

    def hint_embedding(self, hint_BCHW: Tensor) -> Tensor:
        """Hints, H x W as images are, to what the ControlNet adds to its first features; it does not depend on the
        time step, so one is enough for all steps of sampling."""
        return cast(
            Tensor,
            self.controlnet.controlnet_cond_embedding(F.pixel_unshuffle(self.on_canvas(hint_BCHW), HINT_UNSHUFFLE)),
        )


def build_generator(campaign: CampaignConfig) -> Generator:
    """The generator of `campaign.generate` on the CPU, with weights drawn from `campaign.seed`; no global generator of
    random numbers is touched. The ControlNet's joints to the denoiser are 0. Raises ConfigError and DataError for
    local files of `hed_weights`, `text_encoder` and `start` that do not fit."""
    from monai.networks.nets import AutoencoderKL, ControlNet, DiffusionModelUNet

    generate, size = campaign.generate, SIZES[campaign.generate.size]
    assert generate.on, "no generator in this campaign"
    channels = campaign.data.channels
    # One residual block a level; a prompt enters the denoiser by cross-attention.
    shape = {
        "spatial_dims": 2,
        "in_channels": LATENT_CHANNELS,
        "num_res_blocks": 1,
        "channels": size.denoiser,
        "attention_levels": size.attention,
        "num_head_channels": tuple(size.head_channels if attends else 0 for attends in size.attention),
        "norm_num_groups": size.norm_groups,
        "with_conditioning": True,
        "cross_attention_dim": size.context,
        "transformer_num_layers": 1,
    }
    with torch.random.fork_rng(devices=[]):
        _seed(campaign, "autoencoder")
        autoencoder = AutoencoderKL(
            spatial_dims=2,
            in_channels=channels * REDUCTION**2,
            out_channels=channels * REDUCTION**2,
            channels=size.autoencoder,
            latent_channels=LATENT_CHANNELS,
            num_res_blocks=1,
            norm_num_groups=8,
            attention_levels=(False,) * len(size.autoencoder),
            with_encoder_nonlocal_attn=False,
            with_decoder_nonlocal_attn=False,
        )
        _seed(campaign, "denoiser")
        denoiser = DiffusionModelUNet(out_channels=LATENT_CHANNELS, **shape)
        _seed(campaign, "controlnet")
        controlnet = ControlNet(
            conditioning_embedding_in_channels=generate.hint_channels(len(campaign.data.masks)) * HINT_UNSHUFFLE**2,
            conditioning_embedding_num_channels=(32, 64),  # halves once
            **shape,
        )
        _seed(campaign, "prompts")
        prompts = build_prompts(campaign, size.context)
        _seed(campaign, "hed")
        hed = _hed(generate, channels)
    height, width = (-(-side // size.multiple) * size.multiple for side in campaign.data.image_size)
    generator = Generator(
        autoencoder, LatentScale(), denoiser, prompts, controlnet, hed, campaign.data.image_size, (height, width)
    )
    start_controlnet(generator)
    if generate.start:
        load_start(generator, generate.start)
    return generator


def _seed(campaign: CampaignConfig, network: str) -> None:
    """The weights of each network are its own, whatever options the others have. Of the CPU's generator alone:
    torch.manual_seed would seed those of all devices, which nobody puts back."""
    torch.default_generator.manual_seed(derived_seed(campaign.seed, "networks", network))


def _hed(generate: GenerateConfig, channels: int) -> nn.Module | None:
    if generate.edges != "hed":
        return None
    from shared.generate.hed import build_hed

    return build_hed(channels, generate.hed_weights)


def start_controlnet(generator: Generator) -> None:
    """The ControlNet's encoder becomes a copy of the denoiser's, as published; hint encoder and joints stay."""
    own = generator.controlnet.state_dict()
    copied = {name: values for name, values in generator.denoiser.state_dict().items() if name in own}
    generator.controlnet.load_state_dict(copied, strict=False)


def load_start(generator: Generator, path: str) -> None:
    """Copy the arrays of a safetensors file (names as they travel) into the generator: whole networks, one or more of
    them. Raises DataError, in one line, for a file that is none or does not fit."""
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    from shared.weights import UNKNOWN_TYPES

    try:
        found = load_file(path)
    except (OSError, SafetensorError, *UNKNOWN_TYPES):
        raise DataError(
            "generate.start: expected a safetensors file of float32 arrays; export one from an earlier run"
        ) from None
    parts = sorted({name.partition(".")[0] for name in found})
    unknown = [part for part in parts if part not in generator.all]
    if unknown or not parts:
        known = ", ".join(generator.all)
        raise DataError(f"generate.start holds {', '.join(unknown)[:100] or 'nothing'}; expected arrays of {known}")
    try:
        load_parts(generator, found, parts)
    except DataError as error:
        raise DataError(f"generate.start: {error}") from None
    if "controlnet" not in parts and "denoiser" in parts:
        start_controlnet(generator)


def parts_arrays(generator: Generator, parts: Iterable[str]) -> Arrays:
    """Copies of the weights of the named networks; training on does not change them."""
    return {
        f"{part}.{name}": tensor.detach().cpu().float().numpy().copy(order="C")
        for part in parts
        for name, tensor in generator.all[part].state_dict().items()
    }


def load_parts(generator: Generator, arrays: Mapping[str, object], parts: Iterable[str]) -> None:
    """Copy `arrays` into the named networks, all or nothing; raises DataError naming the first that does not fit."""
    from shared.weights import check_arrays

    expected = {f"{part}.{name}": tensor for part in parts for name, tensor in generator.all[part].state_dict().items()}
    given = cast(Arrays, dict(arrays))
    check_arrays(given, {name: tuple(tensor.shape) for name, tensor in expected.items()})
    scale = given.get("latents.scale")
    if scale is not None and not SMALLEST_SCALE <= float(scale[0]) <= 1 / SMALLEST_SCALE:
        raise DataError(
            f"weights 'latents.scale' must be {SMALLEST_SCALE:g} to {1 / SMALLEST_SCALE:g}; use weights of the same "
            "campaign"
        )
    with torch.no_grad():
        for name, tensor in expected.items():
            tensor.copy_(torch.from_numpy(given[name].copy()))


def frozen_parts(generator: Generator, phase: str) -> tuple[str, ...]:
    """Names of the networks that a phase needs and does not train, or that come out of phases before it."""
    before = {"edges": (), "autoencoder": ("hed",), "denoiser": ("hed", "autoencoder", "latents")}
    names = before.get(phase, ("hed", "autoencoder", "latents", "denoiser", "prompts"))
    if phase == "train":
        names = (*names, "controlnet")
    return tuple(name for name in names if name in generator.all)
