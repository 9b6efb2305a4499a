"""The network that MultiMix was published with: an encoder with a class head, a decoder over concatenated skips.

Haque, Imran, Wang, Terzopoulos. https://arxiv.org/abs/2010.14731: widths 16 to 256 in five levels; a block is twice
a 3 x 3 convolution, InstanceNorm without weights and LeakyReLU 0.2, then dropout 0.25; levels are joined by the maximum
of 2 x 2 pixels on the way down and by bilinear interpolation on the way up; the class head takes the mean over the
image of the halved deepest features. The bridge's channels, image and saliency, go into the first convolution of the
decoder beside what comes from below and the skip. Two differences: the mask head has a channel for every class and the
background where the paper has one with a sigmoid, and odd sizes are rounded up.

InstanceNorm takes every image alone, and away with the mean also the biases of the convolutions before it, which are
kept because they were published; they learn nothing.
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from shared.blocks import halved_maximum_BCHW
from shared.config import RecogniserConfig
from shared.recognise.recognition import Encoding, Recognition, mean_BC
from shared.recognise.saliency import Bridge, Step, bridged, encoded, passed

SLOPE = 0.2


class MultiMixRecogniser(nn.Module):
    """Without masks the decoder is not built and costs nothing; its saliency: as in UNetRecogniser."""

    def __init__(
        self, channels: int, config: RecogniserConfig, num_masks: int, num_diagnoses: int, bridge: Bridge | None = None
    ) -> None:
        super().__init__()
        widths = [config.channels * 2**level for level in range(config.depth)]
        pairs = list(itertools.pairwise(widths))
        self.saliency = bridge if num_masks and num_diagnoses else None
        self.stem = _block(channels, widths[0], config.dropout)
        self.down = nn.ModuleList(_block(above, below, config.dropout) for above, below in pairs)
        self.diagnosis_head = nn.Linear(widths[-1], num_diagnoses) if num_diagnoses else None
        extra = [0] * (len(pairs) - 1) + [0 if self.saliency is None else channels + 1]
        self.up = nn.ModuleList(
            _block(below + above + seen, above, config.dropout)
            for (above, below), seen in zip(pairs, extra, strict=True)
            if num_masks
        )
        self.mask_head = nn.Conv2d(widths[0], 1 + num_masks, 1) if num_masks else None

    @property
    def bridge(self) -> nn.Conv2d | None:
        """The convolution that image and saliency enter; None without a bridge."""
        if self.saliency is None:
            return None
        deepest = self.up[-1]
        assert isinstance(deepest, nn.Sequential)
        assert isinstance(deepest[0], nn.Conv2d)
        return deepest[0]

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
            features_BCHW = passed((halved_maximum_BCHW, *down), features_BCHW, steps)
        diagnosis_logits_BN = None
        if self.diagnosis_head is not None:
            head = (halved_maximum_BCHW, mean_BC, self.diagnosis_head)
            diagnosis_logits_BN = passed(head, features_BCHW, steps)
        return Encoding(tuple(skips), features_BCHW, diagnosis_logits_BN)

    def decode(self, encoding: Encoding, image_BCHW: Tensor, saliency_B1HW: Tensor | None) -> Recognition:
        """Masks from an encoding of `image_BCHW`; `saliency_B1HW` is |d score / d image|, where there is a bridge."""
        assert self.mask_head is not None
        assert (saliency_B1HW is None) == (self.saliency is None)
        features_BCHW = encoding.deepest_BCHW
        features = [features_BCHW]
        for level in reversed(range(len(self.up))):
            skip_BCHW = encoding.skips[level]
            joined = [_upsampled_BCHW(features_BCHW, skip_BCHW), skip_BCHW]
            if saliency_B1HW is not None and self.saliency is not None and level == len(self.up) - 1:
                joined.append(bridged(image_BCHW, saliency_B1HW, skip_BCHW, self.saliency))
            features_BCHW = self.up[level](torch.cat(joined, dim=1))
            features.append(features_BCHW)
        return Recognition(self.mask_head(features_BCHW), encoding.diagnosis_logits_BN, features, encoding.skips)


def _upsampled_BCHW(features_BCHW: Tensor, like_BCHW: Tensor) -> Tensor:
    return F.interpolate(features_BCHW, size=like_BCHW.shape[-2:], mode="bilinear", align_corners=True)


def _block(channels_in: int, channels_out: int, dropout: float) -> nn.Sequential:
    layers: list[nn.Module] = []
    for given in (channels_in, channels_out):
        layers += [
            nn.Conv2d(given, channels_out, 3, padding=1),
            nn.InstanceNorm2d(channels_out),
            nn.LeakyReLU(SLOPE, inplace=True),
        ]
    return nn.Sequential(*layers, nn.Dropout(dropout))
