"""Shared generators of images, what a site draws with them, and how training uses what was drawn; frozen, agreed on."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from shared.config.limits import LARGEST_RATE, LARGEST_WEIGHT, MOST_IMAGES, MOST_STEPS, at_most, require
from shared.errors import ConfigError

_CODE = re.compile(r"[A-Z][A-Z0-9 _]{0,15}")  # PS3.5 6.2, CS
Phase = Literal["edges", "autoencoder", "denoiser", "controlnet", "train"]
AUGMENTATIONS = ("none", "contrast", "noise", "rotate", "scale", "deepstack", "emit-diff", "emit-diff+spatial")


@dataclass(frozen=True, kw_only=True, slots=True)
class PhaseConfig:
    """How long and how one part of a generator is trained: the campaign's rounds and training in that phase."""

    rounds: int = 8
    """0: the phase is left out; the part stays as it starts."""
    local_steps: int = 25
    batch_size: int = 16
    learning_rate: float = 2e-3

    def __post_init__(self) -> None:
        require(self.rounds >= 0, "generate: a phase's rounds must be 0 or more", self.rounds)
        require(min(self.local_steps, self.batch_size) >= 1, "generate: local_steps and batch_size must be 1 or more",
                (self.local_steps, self.batch_size))  # fmt: skip
        at_most(MOST_IMAGES, "generate: batch_size", self.batch_size)
        at_most(MOST_STEPS, "generate: rounds and local_steps", max(self.rounds, self.local_steps))
        require(0 < self.learning_rate <= LARGEST_RATE, "generate: learning_rate must be above 0", self.learning_rate)


@dataclass(frozen=True, kw_only=True, slots=True)
class TaskConfig:
    """Task-driven generation: the recogniser's gradient on the decoded estimate steers the ControlNet, under a gate.

    Ours; nothing of it is published. weight=0 switches it off.
    """

    weight: float = 0.0
    """lambda: |what the task adds| / |denoising gradient|."""
    gate: Literal["none", "global", "projected"] = "global"
    """none: joint training; the others as in client/train/gates.py."""
    latest_time: float = 0.5
    """Only images noised up to this share of the schedule: later ones have no anatomy to recognise."""

    def __post_init__(self) -> None:
        require(0 <= self.weight <= LARGEST_WEIGHT, "generate.task.weight must be 0 or more", self.weight)
        require(0 < self.latest_time <= 1, "generate.task.latest_time must lie in (0, 1]", self.latest_time)


@dataclass(frozen=True, kw_only=True, slots=True)
class DrawConfig:
    """What a site draws for itself, from its training images alone, and the guards in front of their use."""

    variants: int = 4
    """K: synthetic images per training image, each with a seed of its own."""
    sampler: Literal["ddim", "dpm", "rflow"] = "rflow"
    """ddim: as published; dpm: DPM-Solver++(2M), multistep of second order; rflow: the velocity by
    Adams-Bashforth, of second order too; one call of the networks a step each."""
    steps: int = 8
    """Published: DDIM with 20."""
    guidance: float = 2.0
    """w of classifier-free guidance; published: 9, with a prior of millions of images. 1: none."""
    classes: Literal["own", "balanced"] = "own"
    """own: the diagnosis of the image whose mask is used; balanced: the diagnoses that a site has few of are asked for
    over the masks of its other patients too, with the edges inside the mask's last class left out."""
    keep: float = 1.0
    """Quality filter: share of each class's images kept, those whose mask and edges agree best; 1: off, published."""
    memorised_share: float = 0.05
    """More synthetic images than this share nearer to a training image than training images are to one another: the
    generator is refused. What lies too near is never used."""

    def __post_init__(self) -> None:
        require(1 <= self.variants <= 1000, "generate.draw.variants must be 1 to 1000", self.variants)
        require(1 <= self.steps <= 1000, "generate.draw.steps must be 1 to 1000", self.steps)
        require(1 <= self.guidance <= 100, "generate.draw.guidance must be 1 to 100", self.guidance)
        require(0 < self.keep <= 1, "generate.draw.keep must lie in (0, 1]", self.keep)
        require(0 <= self.memorised_share <= 1, "generate.draw.memorised_share must lie in [0, 1]",
                self.memorised_share)  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class GenerateConfig:
    """EMIT-Diff: a latent diffusion model that all sites train, steered by edges, mask contours and a prompt.

    Zhang et al. DiffBoost (EMIT-Diff), IEEE TMI 44(9), 2025; https://arxiv.org/abs/2310.12868.
    """

    kind: Literal["none", "emit-diff"] = "none"
    phase: Literal["all", "edges", "autoencoder", "denoiser", "controlnet", "train"] = "all"
    """Which phase a campaign is in; `all` in a campaign as it is approved (CampaignConfig.in_phase)."""
    size: Literal["S", "M"] = "S"
    """Parameters, without / with ControlNet: S 1.2 M / 1.7 M, M 4.8 M / 6.7 M."""
    prediction: Literal["noise", "velocity"] = "velocity"
    """What the denoiser tells: the noise, as published; velocity: rectified flow, sampled by draw.sampler=rflow."""
    edges: Literal["none", "gaussian", "hed"] = "gaussian"
    """gaussian: the largest of multi-scale Gaussian gradients; hed: a network, from hed_weights or trained in a phase
    of its own on the gaussian edges and the outlines of masks."""
    hed_weights: str | None = None
    """A local safetensors file. A place, not an agreement: outside the digest."""
    contour: Literal["none", "channel", "merged", "filled"] = "filled"
    """How the hint shows the mask. channel: outlines of its classes in a channel beside the edges; merged: outlines
    added to the edges, as published; filled: background and classes, a channel each, 1 inside; all 0 where the mask
    is not known."""
    box: bool = False
    """The bounding box of the mask's last class as a further channel of the hint."""
    text: Literal["none", "embedding", "sentence"] = "embedding"
    """embedding: a learned one of modality, organ and pathology; sentence: vectors of an encoder at text_encoder."""
    text_encoder: str | None = None
    """A local folder; shared/generate/prompts.py says what it holds. A place: outside the digest."""
    organs: tuple[str, ...] = ("BRAIN", "HEAD", "NECK", "CHEST", "HEART", "BREAST", "ABDOMEN", "PELVIS", "PROSTATE",
                               "SPINE", "EXTREMITY")  # fmt: skip
    """Values of Body Part Examined (0018,0015) that prompts know; others are the unknown organ."""
    drop_text: float = 0.1
    """Share of training images whose prompt is the null token: what guidance needs. Published: 0."""
    drop_hint: float = 0.0
    kl_weight: float = 3e-3
    """Of the autoencoder's KL term, a mean over latent values, beside the mean absolute error. Latent diffusion's 1e-6
    is of a sum over latents: some 3e-3 of our mean. With less, no value of a latent may be a little wrong."""
    ema: float = 0.5
    """Per round: the share of the former average in the moving average of weights that a phase ends with; 0: none."""
    autoencoder: PhaseConfig = PhaseConfig(rounds=24, local_steps=40, batch_size=8, learning_rate=3e-3)
    denoiser: PhaseConfig = PhaseConfig(rounds=24, local_steps=50, batch_size=8)
    controlnet: PhaseConfig = PhaseConfig(rounds=16, local_steps=40, batch_size=8)
    finetune_steps: int = 0
    """Steps that each site trains the ControlNet on its own before it draws; with controlnet.rounds=0 the only ones."""
    start: str | None = None
    """A local safetensors file with weights to start from. A place: outside the digest."""
    task: TaskConfig = TaskConfig()
    draw: DrawConfig = DrawConfig()

    @property
    def on(self) -> bool:
        return self.kind != "none"

    def hint_channels(self, num_masks: int) -> int:
        """Edges (with the outlines, where merged), then outlines or background and classes, then box."""
        first = self.edges != "none" or self.contour == "merged"
        shown = {"channel": 1, "filled": num_masks + 1 if num_masks else 0}.get(self.contour, 0)
        return int(first) + shown + int(self.box)

    @property
    def phases(self) -> tuple[Phase, ...]:
        """Of the generator, in order; those of no rounds left out."""
        if not self.on:
            return ()
        edges: tuple[Phase, ...] = ("edges",) if self.edges == "hed" and not self.hed_weights else ()
        parts: tuple[Phase, ...] = ("autoencoder", "denoiser", "controlnet")
        return (*edges, *(part for part in parts if self.of(part).rounds))

    def of(self, phase: Phase) -> PhaseConfig:
        """The length of a phase; the edge detector's is the autoencoder's."""
        found = {"denoiser": self.denoiser, "controlnet": self.controlnet}
        return found.get(phase, self.autoencoder)

    def __post_init__(self) -> None:
        for name in ("drop_text", "drop_hint", "ema"):
            require(0 <= getattr(self, name) < 1, f"generate.{name} must lie in [0, 1)", getattr(self, name))
        require(0 <= self.kl_weight <= LARGEST_WEIGHT, f"generate.kl_weight must be 0 to {LARGEST_WEIGHT:g}",
                self.kl_weight)  # fmt: skip
        require(0 <= self.finetune_steps <= 100_000, "generate.finetune_steps must be 0 to 100000", self.finetune_steps)
        require(len(set(self.organs)) == len(self.organs) <= 100, "generate.organs names nothing twice", self.organs)
        for organ in self.organs:
            require(bool(_CODE.fullmatch(organ)), "generate.organs holds code strings (1 to 16 capital letters, "
                    "digits, spaces, underscores; the first a letter)", organ)  # fmt: skip
        if not self.on:
            return
        if not self.hint_channels(num_masks=1):
            raise ConfigError("generate: edges, contour and box are all off; a ControlNet needs one of them")
        if self.text == "sentence" and not self.text_encoder:
            raise ConfigError("generate.text=sentence needs generate.text_encoder=FOLDER; without it use embedding")
        if (self.prediction == "velocity") != (self.draw.sampler == "rflow"):
            raise ConfigError(
                "generate.prediction=velocity goes with generate.draw.sampler=rflow and noise with ddim or dpm; got "
                f"{self.prediction} and {self.draw.sampler}"
            )
        if self.text == "none" and self.draw.guidance != 1:
            raise ConfigError("generate.draw.guidance contrasts prompts: with generate.text=none set it to 1")
        if self.text != "none" and self.drop_text == 0 and self.draw.guidance != 1:
            raise ConfigError("generate.draw.guidance needs the null prompt: set generate.drop_text above 0")


@dataclass(frozen=True, kw_only=True, slots=True)
class AugmentConfig:
    """How training images are varied beyond training.augment, at equal numbers of steps: EMIT-Diff and its rivals."""

    kind: Literal["none", "contrast", "noise", "rotate", "scale", "deepstack", "emit-diff", "emit-diff+spatial"] = (
        "none"
    )
    """contrast, noise, rotate, scale: ranges of the published baselines; deepstack: all together; emit-diff: the
    site's synthetic images beside the real ones; +spatial: and rotated and scaled, both alike."""
    mix: Literal["patches", "images"] = "patches"
    """patches: as published, logits of the real and of the synthetic image with the same mask are merged cell by cell
    (a recogniser alone); images: whole images, of which `real` are real."""
    real: float = 0.6
    """alpha: share of real cells, or images."""
    cell_px: int = 16
    """Side of a cell; published: 64 of 384."""
    balance: bool = False
    """Every diagnosis is drawn equally often."""

    @property
    def generated(self) -> bool:
        return self.kind.startswith("emit-diff")

    def __post_init__(self) -> None:
        require(0 <= self.real <= 1, "augment.real must lie in [0, 1]", self.real)
        require(self.cell_px >= 1, "augment.cell_px must be 1 or more", self.cell_px)
