"""A U-Net whose skips pass attention gates, of MONAI's blocks: an image in, masks and diagnoses out.

Oktay et al. 2018, https://arxiv.org/abs/1804.03999. On its way to the decoder every skip is multiplied, pixel by pixel,
with a coefficient psi in (0, 1) that the skip and what comes from below give together. Blocks and their order are those
of monai.networks.nets.attentionunet, assembled here because that network hands out neither features nor psi. GroupNorm
stands where the blocks have BatchNorm (shared.blocks says why). Without masks there is no decoder and no gate.
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn

from shared.config import RecogniserConfig
from shared.recognise.downstream import norms_of_single_images
from shared.recognise.recognition import PooledHead, Recognition


class AttentionUNetRecogniser(nn.Module):
    """`depth` levels; the height and width of images are multiples of 2 ** (depth - 1)."""

    def __init__(self, channels: int, config: RecogniserConfig, num_masks: int, num_diagnoses: int) -> None:
        from monai.networks.blocks.convolutions import Convolution
        from monai.networks.nets.attentionunet import AttentionBlock, ConvBlock, UpConv

        super().__init__()
        widths = [config.channels * 2**level for level in range(config.depth)]
        pairs = list(itertools.pairwise(widths))
        joined = pairs if num_masks else []
        drop = config.dropout
        self.stem = ConvBlock(2, channels, widths[0], dropout=drop)
        self.down = nn.ModuleList(ConvBlock(2, above, below, strides=2, dropout=drop) for above, below in pairs)
        self.up = nn.ModuleList(UpConv(2, below, above) for above, below in joined)
        self.gate = nn.ModuleList(AttentionBlock(2, max(1, above // 2), above, above) for above, _ in joined)
        self.narrow = nn.ModuleList(Convolution(2, 2 * above, above, dropout=drop) for above, _ in joined)
        self.mask_head = nn.Conv2d(widths[0], 1 + num_masks, 1) if num_masks else None
        self.diagnosis_head = PooledHead(widths[-1], num_diagnoses, drop) if num_diagnoses else None
        norms_of_single_images(self)

    def forward(self, image_BCHW: Tensor) -> Recognition:
        skips = self._encoded(image_BCHW)
        deepest_BCHW = skips.pop()
        diagnosis_logits_BN = None if self.diagnosis_head is None else self.diagnosis_head(deepest_BCHW)
        if self.mask_head is None:
            return Recognition(None, diagnosis_logits_BN, [deepest_BCHW], tuple(skips))
        features, _ = self._decoded(deepest_BCHW, skips)
        return Recognition(self.mask_head(features[-1]), diagnosis_logits_BN, features, tuple(skips))

    def attention_maps(self, image_BCHW: Tensor) -> list[Tensor]:
        """psi_B1HW of every gate, in (0, 1), from coarse to fine, each of its skip's size; none without masks."""
        skips = self._encoded(image_BCHW)
        return self._decoded(skips.pop(), skips)[1]

    def _encoded(self, image_BCHW: Tensor) -> list[Tensor]:
        """From fine to coarse, with the deepest."""
        found = [self.stem(image_BCHW)]
        for down in self.down:
            found.append(down(found[-1]))
        return found

    def _decoded(self, deepest_BCHW: Tensor, skips: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Features, the deepest first, and the coefficients of the gates between them."""
        features, maps = [deepest_BCHW], []
        for level in reversed(range(len(self.up))):
            below_BCHW = self.up[level](features[-1])
            maps.append(_psi_B1HW(self.gate[level], below_BCHW, skips[level]))
            features.append(self.narrow[level](torch.cat([skips[level] * maps[-1], below_BCHW], dim=1)))
        return features, maps


def _psi_B1HW(gate: nn.Module, below_BCHW: Tensor, skip_BCHW: Tensor) -> Tensor:
    """What MONAI's AttentionBlock multiplies the skip with, and does not hand out."""
    psi_B1HW: Tensor = gate.psi(gate.relu(gate.W_g(below_BCHW) + gate.W_x(skip_BCHW)))  # type: ignore[operator]
    return psi_B1HW
