"""How a site adapts a release to its own scanner; a site's own affair, in no digest. Frozen."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from shared.config.limits import LARGEST_RATE, LARGEST_WEIGHT, MOST_IMAGES, MOST_STEPS, at_most, require
from shared.errors import ConfigError

Method = Literal["none", "finetune", "lastblocks", "fedbn", "tgd"]


@dataclass(frozen=True, kw_only=True, slots=True)
class TGDConfig:
    """Targeted gradient descent: Chen, Asma, Chan, MICCAI 2021, https://arxiv.org/abs/2109.14729.

    A patent application (US 2023/0026719) covers it; see NOTICE.
    """

    phi: float | None = None
    """Kernels that score below are retrained; published: 0.3 to fine-tune, 0.4 online. None: the largest of `phis` at
    which the dropping test loses at most `drop_db`."""
    phis: tuple[float, ...] = (0.2, 0.3, 0.4, 0.5, 0.6)
    drop_db: float = 0.5
    """The dropping test: PSNR that may be lost on the reference images when all kernels below phi are set to zero."""
    neighbours: int = 5
    """k of the entropy's nearest neighbours; not in the paper, 5 in the code of the score."""
    form: Literal["activation", "weight"] = "activation"
    """activation: gradients of redundant feature maps alone flow back, as published; weight: the true gradient, of
    redundant kernels alone."""
    first_layer: Literal["masked", "free", "frozen"] = "masked"
    """The paper's text and its figure differ on the first convolution."""

    def __post_init__(self) -> None:
        for phi in (*self.phis, *([] if self.phi is None else [self.phi])):
            require(0 < phi <= 1, "tgd.phi and tgd.phis must lie in (0, 1]", phi)
        require(bool(self.phis), "tgd.phis must hold one value or more", self.phis)
        require(0 <= self.drop_db <= LARGEST_WEIGHT, "tgd.drop_db must be 0 or more", self.drop_db)
        require(1 <= self.neighbours <= 1000, "tgd.neighbours must be 1 to 1000", self.neighbours)


@dataclass(frozen=True, kw_only=True, slots=True)
class PersonaliseConfig:
    """One adaptation of a release's enhancer: what is trained, by which loss, for how long, and when it is kept."""

    method: Method = "lastblocks"
    """finetune: all weights; lastblocks: those of the last `blocks`; fedbn: scales and shifts of the norms alone (Li et
    al. 2021, https://arxiv.org/abs/2102.07623, keeps norms local); tgd: redundant kernels alone."""
    blocks: int = 1
    """lastblocks: how many blocks before the end, with the end itself."""
    loss: Literal["clean", "noise2noise"] = "clean"
    """clean: towards the clean image; noise2noise: towards a second, independent acquisition of the same anatomy
    (Lehtinen et al. 2018, https://arxiv.org/abs/1803.04189), for which no clean image is needed."""
    steer: Literal["none", "joint", "gradprom"] = "none"
    """Whether the recogniser's gradient steers the adaptation: never, always, or under GradProm's gate."""
    task_weight: float = 0.1
    """lambda: |what recognition adds| / |gradient of the loss|."""
    labels: Literal["own", "pseudo"] = "own"
    """own: the site's; pseudo: what the release's recogniser says of the images before the adaptation."""
    rehearse: float = 0.0
    """Weight of the enhancement loss on half of the release's reference images, against forgetting; the other half
    decides. 0: they are not trained on."""
    steps: int = 400
    batch_size: int = 8
    learning_rate: float = 5e-4
    seed: int = 0
    margin_db: float = 0.1
    """Kept only if the reference set loses at most this much PSNR."""
    margin_dice: float = 0.01
    """And, where the reference set has masks, at most this much Dice."""
    least_gain_db: float = 0.0
    """And held-out local patients gain more than this: the lower bound of a one-sided 95 % interval over patients."""
    tgd: TGDConfig = TGDConfig()

    def __post_init__(self) -> None:
        require(self.blocks >= 1, "blocks must be 1 or more", self.blocks)
        require(min(self.steps, self.batch_size) >= 1, "steps and batch_size must be 1 or more",
                (self.steps, self.batch_size))  # fmt: skip
        at_most(MOST_IMAGES, "batch_size", self.batch_size)
        at_most(MOST_STEPS, "steps", self.steps)
        require(0 < self.learning_rate <= LARGEST_RATE, "learning_rate must be above 0", self.learning_rate)
        for name in ("task_weight", "rehearse", "margin_db", "margin_dice", "least_gain_db"):
            require(0 <= getattr(self, name) <= LARGEST_WEIGHT, f"{name} must be 0 or more", getattr(self, name))
        if self.steer == "none" and self.labels == "pseudo":
            raise ConfigError("labels=pseudo are for steer=joint or gradprom; with steer=none leave labels at own")
