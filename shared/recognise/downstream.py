"""Recognisers that stand beside the U-Net as downstream networks: V-Net, residual U-Net and VoxResNet, in 2-D.

    vnet       Milletari et al. 2016, https://arxiv.org/abs/1606.04797, of MONAI's transitions: 5 x 5 residual blocks
    resunet    a U-Net of MONAI's residual units (He et al. 2016): Zhang et al. 2018, https://arxiv.org/abs/1711.10684
    voxresnet  Chen et al. 2018, https://arxiv.org/abs/1608.05895: pre-activation residual modules, strided stages, and
               the masks summed over what every stage says

All three segment and diagnose, as the campaign asks; the diagnosis pools the deepest features and without masks no
decoder is built. GroupNorm stands where the papers have BatchNorm (shared.blocks says why), and dropout follows
`module.eval()`. MONAI is imported when a vnet or resunet is built and at no other time: it costs seconds and 200 MB.
Left out: the papers' extra losses on coarse outputs (deep supervision), for a campaign has one recognition loss.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

import torch
from torch import Tensor, nn

from shared.blocks import group_norm, upsampled_BCHW
from shared.config import RecogniserConfig
from shared.recognise.recognition import PooledHead, Recognition

VNET_CONVOLUTIONS = (1, 2, 3)
"""In the blocks of V-Net's first three levels; 3 in all deeper ones."""
NORM = ("group", {"num_groups": 1})


class VNetRecogniser(nn.Module):
    """`channels` counts what a decoder block works on at full size: one half from the encoder, one from below."""

    def __init__(self, channels: int, config: RecogniserConfig, num_masks: int, num_diagnoses: int) -> None:
        from monai.networks.nets.vnet import DownTransition, InputTransition, UpTransition

        super().__init__()
        widths = [config.channels // 2 * 2**level for level in range(config.depth)]
        counts = [VNET_CONVOLUTIONS[min(level, 2)] for level in range(config.depth)]
        drop, act = config.dropout or None, ("elu", {"inplace": True})
        self.stem = InputTransition(2, channels, widths[0], act)
        self.down = nn.ModuleList(
            DownTransition(2, above, count, act, dropout_prob=drop, dropout_dim=2)
            for above, count in zip(widths[:-1], counts[1:], strict=True)
        )
        self.up = nn.ModuleList()
        if num_masks:
            # A block puts out twice what its skip brings, except for the deepest, which nothing was joined to.
            inputs = [2 * width for width in widths[1:-1]] + [widths[-1]]
            self.up.extend(
                UpTransition(2, below, 2 * skip, count, act, dropout_prob=(drop, config.dropout), dropout_dim=2)
                for below, skip, count in zip(inputs, widths[:-1], counts[:-1], strict=True)
            )
        # Not MONAI's output block: its norm would spread the logits of every single image to variance 1, with or
        # without a lesion.
        self.mask_head = nn.Conv2d(2 * widths[0], 1 + num_masks, 1) if num_masks else None
        self.diagnosis_head = PooledHead(widths[-1], num_diagnoses, config.dropout) if num_diagnoses else None
        norms_of_single_images(self)

    def forward(self, image_BCHW: Tensor) -> Recognition:
        features_BCHW = self.stem(image_BCHW)
        skips = []
        for down in self.down:
            skips.append(features_BCHW)
            features_BCHW = down(features_BCHW)
        features = [features_BCHW]
        diagnosis_logits_BN = None if self.diagnosis_head is None else self.diagnosis_head(features_BCHW)
        if self.mask_head is None:
            return Recognition(None, diagnosis_logits_BN, features)
        for level in reversed(range(len(self.up))):
            features_BCHW = self.up[level](features_BCHW, skips[level])
            features.append(features_BCHW)
        return Recognition(self.mask_head(features_BCHW), diagnosis_logits_BN, features)


def norms_of_single_images(network: nn.Module) -> None:
    """Put GroupNorm where MONAI's V-Net has BatchNorm, which it leaves no choice of."""
    for module in list(network.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.BatchNorm2d):
                setattr(module, name, group_norm(child.num_features))


class ResUNetRecogniser(nn.Module):
    """Two convolutions a unit on the way down, one on the way up, where the skip is joined to what comes from below."""

    def __init__(self, channels: int, config: RecogniserConfig, num_masks: int, num_diagnoses: int) -> None:
        from monai.networks.blocks.convolutions import ResidualUnit

        super().__init__()
        widths = [config.channels * 2**level for level in range(config.depth)]
        pairs = list(itertools.pairwise(widths))

        def unit(channels_in: int, channels_out: int, *, stride: int = 1, convolutions: int = 2) -> nn.Module:
            made: nn.Module = ResidualUnit(
                2, channels_in, channels_out, strides=stride, subunits=convolutions, act="relu", norm=NORM, bias=False
            )
            return made

        self.stem = unit(channels, widths[0])
        self.down = nn.ModuleList(unit(above, below, stride=2) for above, below in pairs)
        self.narrow = nn.ModuleList(nn.Conv2d(below, above, 1) for above, below in pairs if num_masks)
        self.up = nn.ModuleList(unit(2 * above, above, convolutions=1) for above, _ in pairs if num_masks)
        self.dropout = nn.Dropout(config.dropout)
        self.mask_head = nn.Conv2d(widths[0], 1 + num_masks, 1) if num_masks else None
        self.diagnosis_head = PooledHead(widths[-1], num_diagnoses, config.dropout) if num_diagnoses else None

    def forward(self, image_BCHW: Tensor) -> Recognition:
        features_BCHW = self.stem(image_BCHW)
        skips = []
        for down in self.down:
            skips.append(features_BCHW)
            features_BCHW = down(features_BCHW)
        features = [features_BCHW]
        diagnosis_logits_BN = None if self.diagnosis_head is None else self.diagnosis_head(features_BCHW)
        if self.mask_head is None:
            return Recognition(None, diagnosis_logits_BN, features)
        for level in reversed(range(len(self.up))):
            coarse_BCHW = upsampled_BCHW(self.narrow[level](features_BCHW), skips[level])
            features_BCHW = self.up[level](torch.cat([coarse_BCHW, skips[level]], dim=1))
            features.append(features_BCHW)
        return Recognition(self.mask_head(self.dropout(features_BCHW)), diagnosis_logits_BN, features)


class ResidualModule(nn.Module):
    """VoxRes: norm, ReLU, 3 x 3 convolution, twice, added to what came in."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(*_pre_activated(width, width), *_pre_activated(width, width))

    def forward(self, features_BCHW: Tensor) -> Tensor:
        summed_BCHW: Tensor = features_BCHW + self.body(features_BCHW)
        return summed_BCHW


def _pre_activated(channels_in: int, channels_out: int, stride: int = 1) -> list[nn.Module]:
    return [
        group_norm(channels_in),
        nn.ReLU(),
        nn.Conv2d(channels_in, channels_out, 3, stride=stride, padding=1, bias=False),
    ]


class VoxResNetRecogniser(nn.Module):
    """`channels` at full size and twice as many in every strided stage, which holds two residual modules."""

    def __init__(self, channels: int, config: RecogniserConfig, num_masks: int, num_diagnoses: int) -> None:
        super().__init__()
        widths = [config.channels] + [2 * config.channels] * (config.depth - 1)
        self.stem = nn.Sequential(
            nn.Conv2d(channels, widths[0], 3, padding=1, bias=False), *_pre_activated(widths[0], widths[0])
        )
        self.stages = nn.ModuleList(
            nn.Sequential(*_pre_activated(above, below, stride=2), ResidualModule(below), ResidualModule(below))
            for above, below in itertools.pairwise(widths)
        )
        self.finish = nn.Sequential(group_norm(widths[-1]), nn.ReLU())
        # A decoder by its name (shared.weights.part_of): masks alone move what finishes the stages before the deepest.
        self.up = nn.ModuleList(nn.Sequential(group_norm(width), nn.ReLU()) for width in widths[:-1] if num_masks)
        self.dropout = nn.Dropout(config.dropout)
        self.mask_heads = nn.ModuleList(nn.Conv2d(width, 1 + num_masks, 1) for width in widths if num_masks)
        self.diagnosis_head = PooledHead(widths[-1], num_diagnoses, config.dropout) if num_diagnoses else None

    def forward(self, image_BCHW: Tensor) -> Recognition:
        passed = [self.stem(image_BCHW)]
        for stage in self.stages:
            passed.append(stage(passed[-1]))
        features = [self.finish(passed.pop())]
        features += [finish(raw) for finish, raw in zip(reversed(self.up), reversed(passed), strict=False)]
        diagnosis_logits_BN = None if self.diagnosis_head is None else self.diagnosis_head(features[0])
        if not self.mask_heads:
            return Recognition(None, diagnosis_logits_BN, features)
        # A 1 x 1 convolution and bilinear interpolation commute: the few masks are up-sampled, not the many features.
        logits = [
            nn.functional.interpolate(
                head(self.dropout(found)), size=image_BCHW.shape[-2:], mode="bilinear", align_corners=False
            )
            for head, found in zip(reversed(self.mask_heads), features, strict=True)
        ]
        return Recognition(torch.stack(logits).sum(0), diagnosis_logits_BN, features)


DOWNSTREAM: dict[str, Callable[[int, RecogniserConfig, int, int], nn.Module]] = {
    "vnet": VNetRecogniser,
    "resunet": ResUNetRecogniser,
    "voxresnet": VoxResNetRecogniser,
}
