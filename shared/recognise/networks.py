"""Recognisers: an image in, mask logits and diagnosis logits out.

    unet   U-Net (Ronneberger et al. 2015) with additive skips; the class head pools its deepest features
    cnn    two convolutions and a linear layer: diagnosis only, for very small runs
    vnet, resunet, voxresnet    shared.recognise.downstream
    attention-unet   shared.recognise.attention: a U-Net with attention gates
    multimix         shared.recognise.multimix: the network that MultiMix was published with

`features` are the decoder's feature maps from coarse to fine, returned in a list: who needs saliency or an embedding
takes it from there, and no hook is ever registered.
"""

from __future__ import annotations

import itertools

from torch import Tensor, nn

from shared.blocks import built, conv_block, halved_BCHW, upsampled_BCHW
from shared.config import RecogniserConfig
from shared.recognise.attention import AttentionUNetRecogniser
from shared.recognise.downstream import DOWNSTREAM
from shared.recognise.multimix import MultiMixRecogniser
from shared.recognise.recognition import Encoding, Recognition, pooled_BC
from shared.recognise.saliency import Bridge, Step, bridged, encoded, passed


class UNetRecogniser(nn.Module):
    """`depth` levels; without masks the decoder is not built and costs nothing.

    With `bridge`, the image and its saliency enter the decoder's first stage (MultiMix). `forward` then takes the
    saliency from the closed form of shared.recognise.saliency; a training step takes it from its own graph, through
    `encode` and `decode`.
    """

    def __init__(
        self, channels: int, config: RecogniserConfig, num_masks: int, num_diagnoses: int, bridge: Bridge | None = None
    ) -> None:
        super().__init__()
        widths = [config.channels * 2**level for level in range(config.depth)]
        pairs = list(itertools.pairwise(widths))
        self.stem = conv_block(channels, widths[0])
        self.down = nn.ModuleList(conv_block(above, below) for above, below in pairs)
        self.middle = conv_block(widths[-1], widths[-1])
        self.dropout = nn.Dropout(config.dropout)
        self.mask_head = nn.Conv2d(widths[0], 1 + num_masks, 1) if num_masks else None
        self.narrow = nn.ModuleList(nn.Conv2d(below, above, 1) for above, below in pairs if num_masks)
        self.up = nn.ModuleList(conv_block(above, above) for above in widths[:-1] if num_masks)
        self.diagnosis_head = nn.Linear(2 * widths[-1], num_diagnoses) if num_diagnoses else None
        self.saliency = bridge if num_masks and num_diagnoses else None
        # Added to what the stage is given, as the skips are: the same as joining channels before a convolution.
        self.bridge = None if self.saliency is None else nn.Conv2d(channels + 1, widths[-2], 1, bias=False)

    def forward(self, image_BCHW: Tensor) -> Recognition:
        encoding, saliency_B1HW = encoded(self, image_BCHW)
        if self.mask_head is None:
            return Recognition(None, encoding.diagnosis_logits_BN, [encoding.deepest_BCHW], encoding.skips)
        return self.decode(encoding, image_BCHW, saliency_B1HW)

    def encode(self, image_BCHW: Tensor, steps: list[Step] | None = None) -> Encoding:
        """`steps` takes down the way from the image to the class scores, for the closed-form saliency."""
        features_BCHW = passed(self.stem, image_BCHW, steps)
        skips = []
        for down in self.down:
            assert isinstance(down, nn.Sequential)
            skips.append(features_BCHW)
            features_BCHW = passed((halved_BCHW, *down), features_BCHW, steps)
        features_BCHW = passed(self.middle, features_BCHW, steps)
        diagnosis_logits_BN = None
        if self.diagnosis_head is not None:
            diagnosis_logits_BN = passed((pooled_BC, self.dropout, self.diagnosis_head), features_BCHW, steps)
        return Encoding(tuple(skips), features_BCHW, diagnosis_logits_BN)

    def decode(self, encoding: Encoding, image_BCHW: Tensor, saliency_B1HW: Tensor | None) -> Recognition:
        """Masks from an encoding of `image_BCHW`; `saliency_B1HW` is |d score / d image|, where there is a bridge."""
        assert self.mask_head is not None
        assert (saliency_B1HW is None) == (self.bridge is None)
        features_BCHW = encoding.deepest_BCHW
        features = [features_BCHW]
        for level in reversed(range(len(self.up))):
            joined_BCHW = upsampled_BCHW(self.narrow[level](features_BCHW), encoding.skips[level])
            joined_BCHW = joined_BCHW + encoding.skips[level]
            if self.bridge is not None and level == len(self.up) - 1:
                assert saliency_B1HW is not None
                assert self.saliency is not None
                seen_BCHW = bridged(image_BCHW, saliency_B1HW, joined_BCHW, self.saliency)
                joined_BCHW = joined_BCHW + self.bridge(seen_BCHW)
            features_BCHW = self.up[level](joined_BCHW)
            features.append(features_BCHW)
        mask_logits_BKHW = self.mask_head(self.dropout(features_BCHW))
        return Recognition(mask_logits_BKHW, encoding.diagnosis_logits_BN, features, encoding.skips)


class CNNRecogniser(nn.Module):
    def __init__(self, channels: int, config: RecogniserConfig, num_diagnoses: int) -> None:
        super().__init__()
        width = config.channels
        self.body = nn.Sequential(
            nn.Conv2d(channels, width, 3, stride=2, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(width, 2 * width, 3, stride=2, padding=1),
            nn.ReLU(inplace=True),
        )
        self.dropout = nn.Dropout(config.dropout)
        self.diagnosis_head = nn.Linear(2 * width, num_diagnoses)

    def forward(self, image_BCHW: Tensor) -> Recognition:
        features_BCHW = self.body(image_BCHW)
        return Recognition(None, self.diagnosis_head(self.dropout(features_BCHW.mean((2, 3)))), [features_BCHW])


def build_recogniser(
    config: RecogniserConfig,
    channels: int,
    num_masks: int,
    num_diagnoses: int,
    seed: int,
    *,
    bridge: Bridge | None = None,
) -> nn.Module:
    """The named recogniser, image_BCHW -> Recognition; the same seed gives the same weights."""
    assert num_masks or num_diagnoses, "a campaign without anything to recognise is refused by its config"
    assert config.kind != "cnn" or not num_masks, "refused by CampaignConfig: cnn has no decoder"

    def make() -> nn.Module:
        if config.kind == "cnn":
            return CNNRecogniser(channels, config, num_diagnoses)
        if config.kind in DOWNSTREAM:
            return DOWNSTREAM[config.kind](channels, config, num_masks, num_diagnoses)
        if config.kind == "attention-unet":
            return AttentionUNetRecogniser(channels, config, num_masks, num_diagnoses)
        if config.kind == "multimix":
            return MultiMixRecogniser(channels, config, num_masks, num_diagnoses, bridge)
        return UNetRecogniser(channels, config, num_masks, num_diagnoses, bridge)

    return built(make, seed, "recogniser")
