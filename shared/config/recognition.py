"""What recognises, how it learns from few labels, and which labels a site may use; frozen, part of the campaign."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from shared.config.limits import LARGEST_WEIGHT, MOST_CHANNELS, MOST_LEVELS, at_most, require
from shared.errors import ConfigError

BRIDGED = ("unet", "multimix")
"""Recognisers that have a saliency bridge."""
REGULARISED = ("unet", "attention-unet", "multimix")
"""Recognisers that hand out the features of every block."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RecogniserConfig:
    kind: Literal["unet", "cnn", "vnet", "resunet", "voxresnet", "attention-unet", "multimix"]
    """cnn diagnoses only, all others segment and diagnose. vnet, resunet, voxresnet: shared/recognise/downstream.py;
    attention-unet: shared/recognise/attention.py; multimix is the network of that paper, unet this project's own."""
    channels: int = 16
    """Of the first level; vnet: of the decoder block at full size, one half of it from the encoder."""
    depth: int = 4
    """Levels, each half as fine as the one before; cnn ignores it."""
    dropout: float = 0.0

    def __post_init__(self) -> None:
        require(self.channels >= 1, "recognise.channels must be 1 or more", self.channels)
        require(self.depth >= 1, "recognise.depth must be 1 or more", self.depth)
        at_most(MOST_CHANNELS, "recognise.channels", self.channels)
        at_most(MOST_LEVELS, "recognise.depth", self.depth)
        if self.kind in ("vnet", "resunet", "voxresnet", "attention-unet", "multimix"):
            require(self.depth >= 2, f"recognise.depth must be 2 or more for recognise={self.kind}", self.depth)
        require(0 <= self.dropout < 1, "recognise.dropout must lie in [0, 1)", self.dropout)


MaskSSL = Literal["none", "official0", "pairwise", "prior", "federated", "consistency"]


@dataclass(frozen=True, kw_only=True, slots=True)
class LearnConfig:
    """What the recogniser's loss is made of: MultiMix and the papers' ablations of it as flags.

    Haque, Imran, Wang, Terzopoulos. MultiMix. ISBI 2021, https://arxiv.org/abs/2010.14731; MELBA 2021:011.
    """

    kind: Literal["supervised", "unet", "enc", "encssl", "umtl", "umtls", "umtl-ssl", "multimix"] = "supervised"
    """A name for the flags below, and of the method in reports. supervised: batches of any images, with the losses of
    objective.mask_weight and diagnosis_weight; all others: a stream of images per kind of label, with the weights that
    stand here."""
    segment: bool = True
    """Masks are learnt: there is a decoder."""
    diagnose: bool = True
    """Diagnoses are learnt: there is a class head."""
    saliency: bool = False
    """The saliency bridge: |d (highest class score) / d image| goes into the decoder beside the image."""
    saliency_norm: bool = True
    """Saliency is divided by its 99th percentile over the image; false: as published, some 1e-4 of the image."""
    pseudo_labels: bool = False
    """Images without a diagnosis: what is confident on the weakly augmented view is learnt on the strong one."""
    mask_ssl: MaskSSL = "none"
    """Images without a mask, by a divergence between predicted maps:
    prior: KL(mean map of images with a mask || mean map of those without); federated: the same, the first map being the
    mean of the masks themselves over all sites that have any; pairwise: KL(labelled i || unlabelled i); official0: as
    released, softmax over one channel, which is 0; consistency: no divergence but confident pixels of the weak view,
    learnt on the strong."""
    diagnosis_ssl_weight: float = 0.25
    """lambda, of the pseudo-labels."""
    mask_loss: Literal["dice+ce", "dice"] = "dice+ce"
    """Of images with a mask. dice: as published, over all classes, so that a rare one is safest never said;
    dice+ce: Dice over the classes that the image shows, and cross-entropy for what is found elsewhere."""
    dice_weight: float = 5.0
    """alpha."""
    mask_ssl_weight: float = 0.01
    """beta."""
    threshold: float = 0.7
    """t: a pseudo-label counts from this probability on."""
    prior_decay: float = 0.9
    """Of the moving averages over batches that both sides of `prior` are."""
    prior_patients: int = 3
    """federated: a site with fewer patients with a mask in training adds nothing to the mean map."""

    @property
    def streams(self) -> bool:
        """Batches are of one stream per kind of label."""
        return self.kind != "supervised"

    def __post_init__(self) -> None:
        if not (self.segment or self.diagnose):
            raise ConfigError("learn.segment and learn.diagnose are both false: nothing is left to learn")
        if self.saliency and not (self.segment and self.diagnose):
            raise ConfigError("learn.saliency leads from the class head into the decoder: it needs learn.segment=true "
                              "and learn.diagnose=true")  # fmt: skip
        if self.pseudo_labels and not self.diagnose:
            raise ConfigError("learn.pseudo_labels are diagnoses; set learn.diagnose=true")
        if self.mask_ssl != "none" and not self.segment:
            raise ConfigError("learn.mask_ssl learns masks; set learn.segment=true")
        if not self.streams and (self.pseudo_labels or self.mask_ssl != "none" or self.saliency):
            raise ConfigError(
                "learn=supervised has no streams of unlabelled images and no bridge; choose learn=multimix"
            )
        for name in ("diagnosis_ssl_weight", "dice_weight", "mask_ssl_weight"):
            require(getattr(self, name) >= 0, f"learn.{name} must not be negative", getattr(self, name))
            at_most(LARGEST_WEIGHT, f"learn.{name}", getattr(self, name))
        require(0 <= self.threshold <= 1, "learn.threshold must lie in [0, 1]", self.threshold)
        require(0 <= self.prior_decay < 1, "learn.prior_decay must lie in [0, 1)", self.prior_decay)
        require(self.prior_patients >= 2, "learn.prior_patients must be 2 or more: one patient's map is no aggregate",
                self.prior_patients)  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class SelfRegConfig:
    """SelfReg-UNet: a regulariser over the recogniser's features; 0 and 0 switch it off.

    Zhu et al. MICCAI 2024, https://arxiv.org/abs/2406.14896.
    """

    consistency_weight: float = 0.0
    """lambda1, of semantic consistency (SCR); published: 0.015."""
    distillation_weight: float = 0.0
    """lambda2, of internal feature distillation (IFD); published: 0.015."""
    consistency: Literal["mean", "random"] = "mean"
    """random: as released, random channels of both sides; mean: its expectation without the constant part."""
    detach: bool = True
    """IFD: only the second half of the channels learns; false: as released, both move."""
    sort: bool = False
    """IFD: channels are sorted by their mean activation first, as released."""

    @property
    def on(self) -> bool:
        return self.consistency_weight > 0 or self.distillation_weight > 0

    @property
    def suffix(self) -> str:
        """Of the method's name in reports: +selfreg, +scr, +ifd or nothing."""
        if self.consistency_weight > 0:
            return "+selfreg" if self.distillation_weight > 0 else "+scr"
        return "+ifd" if self.distillation_weight > 0 else ""

    def __post_init__(self) -> None:
        for name in ("consistency_weight", "distillation_weight"):
            require(getattr(self, name) >= 0, f"selfreg.{name} must not be negative", getattr(self, name))
            at_most(LARGEST_WEIGHT, f"selfreg.{name}", getattr(self, name))


@dataclass(frozen=True, kw_only=True, slots=True)
class LabelsConfig:
    """How many of its labels a site trains with; what is left out counts as unlabelled. Tests keep all of theirs."""

    masks: int | None = None
    """Training slices with a mask, spread over the patients; None: all."""
    diagnoses: float | None = None
    """Share of the diagnosed training patients (one or more of each diagnosis there is, above 0); None: all."""

    def __post_init__(self) -> None:
        require(self.masks is None or self.masks >= 0, "data.labels: masks must not be negative", self.masks)
        share = self.diagnoses
        require(share is None or 0 <= share <= 1, "data.labels: diagnoses is a share and lies in [0, 1]", share)


Labels = Mapping[str, LabelsConfig]
"""By the site's name; a site that is not named uses all of its labels."""
