"""What all sites of a campaign agree on; frozen. What cannot be kept is refused when the value is built."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from math import ceil
from typing import Literal

from shared.config.combined import check_protection
from shared.config.generation import AugmentConfig, GenerateConfig, Phase
from shared.config.limits import (
    LARGEST_RATE,
    LARGEST_WEIGHT,
    MOST_CHANNELS,
    MOST_IMAGES,
    MOST_LEVELS,
    MOST_PX,
    SMALLEST_CAP,
    at_most,
    require,
)
from shared.config.protection import PrivacyConfig, SecAggConfig
from shared.config.recognition import (
    BRIDGED,
    REGULARISED,
    Labels,
    LearnConfig,
    RecogniserConfig,
    SelfRegConfig,
)
from shared.errors import ConfigError

DEIDENTIFY_OPTIONS = ("retain_longitudinal_modified_dates", "retain_patient_characteristics", "retain_device_identity")
_WORDS = re.compile(r"\w[\w .,+()/-]{0,63}")  # shown to people who approve: nothing that moves a terminal's cursor
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,39}")


@dataclass(frozen=True, kw_only=True, slots=True)
class IntensityConfig:
    """How stored pixel values become the campaign's scale, where 0 is the low end and 1 the high end."""

    rule: Literal["percentile", "window", "range"]
    """percentile: of each series' own values (MR has no unit); window: in the modality's unit (CT: HU);
    range: from the smallest to the largest value that the file's bit depth can hold (X-ray, photographs)."""
    low: float = 0.0
    high: float = 100.0
    clip: bool = True

    def __post_init__(self) -> None:
        if self.rule != "range" and not self.low < self.high:
            raise ConfigError(f"data.ingest.intensity: low must be below high, got {self.low} and {self.high}")
        if self.rule == "percentile" and not 0 <= self.low < self.high <= 100:
            raise ConfigError(f"data.ingest.intensity: percentiles lie in [0, 100], got {self.low} and {self.high}")


@dataclass(frozen=True, kw_only=True, slots=True)
class DeidentifyConfig:
    """A named profile of DICOM PS3.15 Annex E and its options."""

    profile: Literal["basic"] = "basic"
    options: tuple[str, ...] = ()
    """Any of DEIDENTIFY_OPTIONS."""

    def __post_init__(self) -> None:
        known = ", ".join(DEIDENTIFY_OPTIONS)
        for option in self.options:
            require(option in DEIDENTIFY_OPTIONS, f"data.ingest.deidentify.options may hold {known}", option)


@dataclass(frozen=True, kw_only=True, slots=True)
class IngestConfig:
    """The rule by which every site turns DICOM into pixels; recorded in each store."""

    modalities: tuple[str, ...]
    spacing_mm: tuple[float, float, float] | None = None
    """Slice, row and column spacing after resampling; None keeps the acquired grid."""
    intensity: IntensityConfig
    deidentify: DeidentifyConfig = DeidentifyConfig()

    def __post_init__(self) -> None:
        within = all(0.05 <= spacing <= 100 for spacing in self.spacing_mm or ())
        require(within, "data.ingest.spacing_mm lies in 0.05..100 mm", self.spacing_mm)


@dataclass(frozen=True, kw_only=True, slots=True)
class SplitConfig:
    """Shares of a site's patients; a patient is never in two splits."""

    train: float = 0.6
    validation: float = 0.15
    test: float = 0.25

    def __post_init__(self) -> None:
        if abs(self.train + self.validation + self.test - 1) > 1e-6 or min(self.train, self.test) <= 0:
            raise ConfigError(
                "data.split: train, validation and test must add up to 1 with train and test above 0, "
                f"got {self.train}, {self.validation}, {self.test}"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class DataConfig:
    """What the campaign learns from and about. `root` is a place, not an agreement: outside the digest."""

    kind: Literal["mni", "phantom", "hippocampus", "pneumonia", "totalseg", "store"]
    root: str | None = None
    ingest: IngestConfig
    masks: tuple[str, ...] = ()
    """Names of the foreground classes; the campaign's code of a class is its place in this list, counted from 1."""
    diagnoses: tuple[str, ...] = ()
    """Names of the diagnoses; the code is the place in this list, counted from 0."""
    image_size: tuple[int, int] = (64, 64)
    channels: Literal[1, 3] = 1
    split: SplitConfig = SplitConfig()
    labels: Labels | None = None
    """For studies of scarcity: how many labels each site trains with."""

    def __post_init__(self) -> None:
        if any(size % 8 or size <= 0 for size in self.image_size):
            raise ConfigError(f"data.image_size must be positive multiples of 8, got {self.image_size}")
        at_most(MOST_PX, "data.image_size", max(self.image_size))
        if len(self.diagnoses) == 1:
            raise ConfigError("data.diagnoses needs two names or more (or none), got one")
        for name in (*self.masks, *self.diagnoses):
            rule = "data.masks and data.diagnoses hold names of 1 to 64 letters, digits, spaces and _.,+()/-"
            require(bool(_WORDS.fullmatch(name)), rule, name)
        for names in (self.masks, self.diagnoses):
            require(len(set(names)) == len(names), "data.masks and data.diagnoses name nothing twice", names)
        if not self.masks and not self.diagnoses:
            raise ConfigError("data has neither masks nor diagnoses: name at least one thing to recognise")


@dataclass(frozen=True, kw_only=True, slots=True)
class DegradeConfig:
    """How clean images are made worse; ranges are drawn uniformly, per image. Only the kind's own fields are read."""

    kind: Literal["gaussian", "poisson", "blur", "composite", "downsample", "kspace", "low_dose", "pairs", "none"]
    """pairs: take the site's own real (clean, degraded) pairs instead of a synthetic degradation; none: images as they
    are, for a recogniser alone."""
    sigma: tuple[float, float] = (0.1, 0.1)
    """Gaussian noise, standard deviation on the [0, 1] scale."""
    peak: tuple[float, float] = (255.0, 255.0)
    """Poisson: expected count at intensity 1."""
    blur_sigma_px: tuple[float, float] = (1.0, 1.0)
    factor: int = 2
    """Down-sampling factor (super-resolution)."""
    acceleration: tuple[float, float] = (4.0, 4.0)
    """k-space: lines fully sampled over lines acquired."""
    centre_fraction: float = 0.08
    dose: tuple[float, float] = (0.1, 0.1)
    """Low-dose CT: share of the full dose, in (0, 1]."""
    photons: float = 1e5
    """Low-dose CT: photons per detector bin at full dose, before attenuation."""

    def __post_init__(self) -> None:
        for name in ("sigma", "peak", "blur_sigma_px", "acceleration", "dose"):
            low, high = getattr(self, name)
            if not 0 <= low <= high:
                raise ConfigError(f"degrade.{name} must be a range with 0 <= low <= high, got [{low}, {high}]")
        require(self.dose[0] > 0 and self.dose[1] <= 1, "degrade.dose must lie in (0, 1]", list(self.dose))
        require(self.factor >= 2, "degrade.factor must be 2 or more", self.factor)
        require(self.peak[0] > 0, "degrade.peak must be above 0", list(self.peak))
        require(self.acceleration[0] >= 1, "degrade.acceleration must be 1 or more", list(self.acceleration))
        require(0 < self.centre_fraction <= 1, "degrade.centre_fraction must lie in (0, 1]", self.centre_fraction)
        require(self.photons > 0, "degrade.photons must be above 0", self.photons)


@dataclass(frozen=True, kw_only=True, slots=True)
class EnhancerConfig:
    kind: Literal["unet", "srresnet", "cnn3", "todnet", "none"]
    """none: no enhancer; the recogniser learns alone, on the images as they come."""
    channels: int = 16
    """Channels of the first level."""
    depth: int = 3
    """unet: levels; srresnet: residual blocks; todnet: levels (the paper's 4); cnn3 ignores it."""
    output: Literal["linear", "tanh"] = "linear"
    """todnet only. tanh: the released form tanh(image + residual), which cannot reach the identity; linear: without."""
    attention: bool = False
    """todnet only: self-attention on the deepest features, the generator of the sa-wgan row."""
    data_consistency: bool = False
    """degrade=kspace only: the lines of k-space that were acquired replace those of the enhanced image."""

    def __post_init__(self) -> None:
        require(self.channels >= 1, "enhance.channels must be 1 or more", self.channels)
        require(self.depth >= 1, "enhance.depth must be 1 or more", self.depth)
        at_most(MOST_CHANNELS, "enhance.channels", self.channels)
        at_most(MOST_LEVELS, "enhance.depth", self.depth)
        if self.kind != "todnet" and (self.attention or self.output != "linear"):
            raise ConfigError(f"enhance.attention and enhance.output belong to enhance=todnet, got {self.kind}")


@dataclass(frozen=True, kw_only=True, slots=True)
class CriticConfig:
    """The adversary of the WGAN objectives (TOD-Net and its comparators) and the weights of their main loss."""

    constraint: Literal["clip", "penalty", "spectral"] = "clip"
    """How the critic is kept Lipschitz: clip (weights within +-0.01, as released), gradient penalty, spectral norm."""
    channels: int = 32
    learning_rate: float = 5e-4
    """Of the critic's RMSprop."""
    adversarial_weight: float = 0.01
    """Published: 1, which on [0, 1] images outweighs the fidelity's gradient hundreds of times."""
    fidelity_weight: float = 0.5
    """Of the enhancement loss beside the adversarial term; 0.5 in the released code."""

    def __post_init__(self) -> None:
        require(self.channels >= 1, "objective.critic.channels must be 1 or more", self.channels)
        at_most(MOST_CHANNELS, "objective.critic.channels", self.channels)
        require(self.learning_rate > 0, "objective.critic.learning_rate must be above 0", self.learning_rate)
        for name in ("adversarial_weight", "fidelity_weight"):
            require(getattr(self, name) >= 0, f"objective.critic.{name} must not be negative", getattr(self, name))
        for name in ("learning_rate", "adversarial_weight", "fidelity_weight"):
            at_most(LARGEST_WEIGHT, f"objective.critic.{name}", getattr(self, name))


@dataclass(frozen=True, kw_only=True, slots=True)
class ObjectiveConfig:
    """Which gradient steers the enhancer."""

    kind: Literal[
        "plain", "joint", "frozen", "gradprom", "estr", "mse-wgan", "vgg-wgan", "todnet", "todnet-gated"
    ]  # fmt: skip
    task_weight: float = 0.1
    """lambda: weight of the task gradient on the enhancer."""
    relative: bool = True
    """True: lambda is a ratio, the task gradient is scaled to lambda * |g| (per step); False: lambda is absolute."""
    warmup: float = 0.2
    """Share of all steps in which the recogniser learns on clean images while the enhancer follows its own loss only;
    an objective with a frozen recogniser stops training it there."""
    mask_weight: float = 1.0
    diagnosis_weight: float = 0.5
    recognition: Literal["supervised", "unsupervised"] = "supervised"
    """After the warm-up: learn from labels, or from what the recogniser itself says of the clean image (no label)."""
    gate: Literal["global", "layer", "weighted", "projected", "confident"] = "global"
    """Of the gated objectives; client/train/gates.py states what each guarantees."""
    norm_cap: float | None = None
    """kappa: what recognition adds is cut to kappa * |g|."""
    confidence: float = 0.9
    """gate=confident: one-sided confidence that the expected cosine is above 0."""
    micro_batches: int = 4
    """gate=confident: parts of a batch whose cosines the confidence comes from."""
    auxiliaries: Literal["together", "separate"] = "together"
    """Masks and diagnosis as one task gradient, or each with a gate of its own and its share of lambda."""
    critic: CriticConfig = CriticConfig()
    vgg_weights: str | None = None
    """vgg-wgan: a local file with the convolutions of VGG-19. A place, not an agreement: outside the digest."""

    @property
    def adversarial(self) -> bool:
        """The main loss is WGAN + fidelity, and a critic is trained beside the enhancer."""
        return self.kind in ("mse-wgan", "vgg-wgan", "todnet", "todnet-gated")

    @property
    def steers(self) -> bool:
        """After the warm-up the recognition loss reaches the enhancer."""
        return self.kind in ("joint", "frozen", "gradprom", "estr", "todnet", "todnet-gated")

    @property
    def gated(self) -> bool:
        return self.kind in ("gradprom", "todnet-gated")

    @property
    def learns(self) -> bool:
        """The recogniser goes on learning after the warm-up."""
        return self.kind in ("plain", "joint", "gradprom")

    def __post_init__(self) -> None:
        if not 0 <= self.warmup < 1:
            raise ConfigError(f"objective.warmup must lie in [0, 1), got {self.warmup}")
        if not self.learns and self.warmup == 0:
            raise ConfigError(
                f"objective={self.kind} freezes the recogniser after its warm-up: set objective.warmup above 0"
            )
        for name in ("task_weight", "mask_weight", "diagnosis_weight"):
            require(getattr(self, name) >= 0, f"objective.{name} must not be negative", getattr(self, name))
            at_most(LARGEST_WEIGHT, f"objective.{name}", getattr(self, name))
        rule = f"objective.norm_cap must be {SMALLEST_CAP:g} or more"
        require(self.norm_cap is None or self.norm_cap >= SMALLEST_CAP, rule, self.norm_cap)
        require(0.5 <= self.confidence < 1, "objective.confidence must lie in [0.5, 1)", self.confidence)
        require(self.micro_batches >= 2, "objective.micro_batches must be 2 or more", self.micro_batches)
        if not self.gated and self.gate != "global":
            raise ConfigError(
                f"gate={self.gate} belongs to the gated objectives (gradprom, todnet-gated), got objective={self.kind}"
            )
        if not self.steers and self.auxiliaries != "together":
            raise ConfigError(
                f"objective.auxiliaries={self.auxiliaries} gives each task a gate, and objective={self.kind} has no "
                "task that steers; leave it at together"
            )
        if self.kind == "vgg-wgan" and not self.vgg_weights:
            raise ConfigError("objective=vgg-wgan needs objective.vgg_weights=FILE; without it choose mse-wgan")


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingConfig:
    batch_size: int = 8
    local_steps: int = 40
    """Optimiser steps of one site in one round."""
    optimiser: Literal["adam", "sgd"] = "adam"
    learning_rate: float = 2e-3
    schedule: Literal["cosine", "constant"] = "cosine"
    """Over all rounds of the campaign."""
    clip_norm: float | None = 1.0
    """Clips the direction that is applied to the enhancer (and the recogniser's gradient), never g or v apart."""
    weight_decay: float = 0.0
    """Decoupled (AdamW): it never enters a gradient that the gate looks at."""
    enhance_loss: Literal["mse", "l1", "charbonnier"] = "mse"
    augment: bool = True
    """Random flips and shifts of training slices."""
    adam_states: Literal["one", "two"] = "one"
    """one: Adam's momentum carries what recognition added past the steps where the gate is closed; two: that part has
    a momentum of its own, which rests while the gate is closed."""

    def __post_init__(self) -> None:
        if min(self.batch_size, self.local_steps) < 1 or self.learning_rate <= 0:
            raise ConfigError("training: batch_size, local_steps and learning_rate must be positive")
        at_most(MOST_IMAGES, "training.batch_size", self.batch_size)
        at_most(LARGEST_RATE, "training.learning_rate", self.learning_rate)
        require(self.clip_norm is None or self.clip_norm > 0, "training.clip_norm must be above 0", self.clip_norm)
        require(self.weight_decay >= 0, "training.weight_decay must not be negative", self.weight_decay)
        if self.adam_states == "two" and self.optimiser != "adam":
            raise ConfigError("training.adam_states=two needs training.optimiser=adam: SGD has no momentum to split")


@dataclass(frozen=True, kw_only=True, slots=True)
class StrategyConfig:
    kind: Literal["fedavg", "fedprox", "fedadam", "fedyogi"]
    proximal_mu: float = 0.0
    """FedProx: weight of |w - w_round|^2 / 2, at the site."""
    server_learning_rate: float = 1.0
    beta1: float = 0.9
    beta2: float = 0.99
    tau: float = 1e-3
    weight_by: Literal["samples", "equal"] = "samples"
    promotion: Literal["none", "global", "layer", "projected", "orthogonal"] = "none"
    """The federated gate: what recognition added at the sites enters the mean only where it agrees with the mean of
    what the enhancement loss alone did (server/strategies/promotion.py)."""
    robust: Literal["none", "median", "trimmed_mean", "krum", "multi_krum"] = "none"
    """What stands for the weighted mean where some sites may be malicious (server/strategies/robust.py); sites count
    equally then. Needs visible updates."""
    malicious: int = 0
    """How many sites at most are taken to be malicious: trimmed_mean drops as many at either end, Krum's distances
    are to the n - malicious - 2 nearest."""
    norm_bound: float | None = None
    """Largest L2 norm of a site's update; a visible update beyond it is refused, a masked one is cut at the site."""

    def __post_init__(self) -> None:
        if self.robust in ("trimmed_mean", "krum", "multi_krum"):
            require(self.malicious >= 1, f"strategy.robust={self.robust} needs strategy.malicious of 1 or more", 0)
        require(self.malicious >= 0, "strategy.malicious must be 0 or more", self.malicious)
        if self.norm_bound is not None:
            require(self.norm_bound > 0, "strategy.norm_bound must be above 0", self.norm_bound)
        if self.kind == "fedprox" and self.proximal_mu <= 0:
            raise ConfigError("strategy=fedprox needs strategy.proximal_mu above 0; without it choose strategy=fedavg")
        if self.kind != "fedprox" and self.proximal_mu:
            raise ConfigError(f"strategy.proximal_mu belongs to strategy=fedprox, got strategy={self.kind}")
        for name in ("server_learning_rate", "tau"):
            require(getattr(self, name) > 0, f"strategy.{name} must be above 0", getattr(self, name))
        at_most(LARGEST_RATE, "strategy.server_learning_rate", self.server_learning_rate)
        for name in ("beta1", "beta2"):
            require(0 <= getattr(self, name) < 1, f"strategy.{name} must lie in [0, 1)", getattr(self, name))


@dataclass(frozen=True, kw_only=True, slots=True)
class RoundsConfig:
    rounds: int = 8
    quorum: int = 2
    """Fewest sites whose updates make a round."""
    join_deadline_s: float = 120.0
    round_deadline_s: float = 3600.0
    grace_s: float = 60.0
    """After the quorum is reached, how long the others are still waited for."""
    retries: int = 2
    """How often a round with too few replies is tried again before the run ends with an error."""

    def __post_init__(self) -> None:
        if self.rounds < 1 or self.quorum < 1 or self.retries < 0:
            raise ConfigError("rounds.rounds and rounds.quorum must be 1 or more, rounds.retries 0 or more")
        for name in ("join_deadline_s", "round_deadline_s"):
            require(getattr(self, name) > 0, f"round.{name} must be above 0", getattr(self, name))
        require(self.grace_s >= 0, "round.grace_s must not be negative", self.grace_s)


@dataclass(frozen=True, kw_only=True, slots=True)
class CampaignConfig:
    """One federated training run: what every site must agree on before round 1."""

    name: str
    seed: int
    data: DataConfig
    degrade: DegradeConfig
    enhance: EnhancerConfig
    recognise: RecogniserConfig
    objective: ObjectiveConfig
    training: TrainingConfig
    strategy: StrategyConfig
    rounds: RoundsConfig
    learn: LearnConfig = field(default_factory=LearnConfig)
    selfreg: SelfRegConfig = field(default_factory=SelfRegConfig)
    generate: GenerateConfig = field(default_factory=GenerateConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    secagg: SecAggConfig = field(default_factory=SecAggConfig)
    privacy: PrivacyConfig = field(default_factory=PrivacyConfig)

    @property
    def phases(self) -> tuple[Phase, ...]:
        """What its rounds are spent on, in order: those of a generator (none where it starts with a whole one), then
        what its images are for. None where it trains an enhancer and a recogniser without a generator."""
        phases = self.generate.phases
        return (*phases, "train") if self.generate.on and self.augment.generated else phases

    def in_phase(self, phase: Phase) -> CampaignConfig:
        """The campaign of one phase, with a digest of its own; its rounds and training are the phase's."""
        generate = replace(self.generate, phase=phase)
        if phase == "train":
            return replace(self, generate=generate)
        length = generate.of(phase)
        training = replace(
            self.training,
            local_steps=length.local_steps,
            batch_size=length.batch_size,
            learning_rate=length.learning_rate,
        )
        return replace(
            self, generate=generate, training=training, rounds=replace(self.rounds, rounds=max(length.rounds, 1))
        )

    @property
    def total_rounds(self) -> int:
        """Of all phases together, closing evaluations not counted."""
        return sum(self.in_phase(phase).rounds.rounds for phase in self.phases) or self.rounds.rounds

    @property
    def generates(self) -> bool:
        """This campaign is in a phase that trains a part of a generator."""
        return self.generate.on and self.generate.phase not in ("all", "train")

    @property
    def masks(self) -> tuple[str, ...]:
        """The foreground classes that its recogniser segments."""
        return self.data.masks if self.learn.segment else ()

    @property
    def diagnoses(self) -> tuple[str, ...]:
        """What its recogniser tells apart."""
        return self.data.diagnoses if self.learn.diagnose else ()

    @property
    def images_per_step(self) -> int:
        """The most that one optimiser step draws: four streams of training.batch_size, or one batch. Under patients'
        privacy what it is expected to draw: how many it did draw is not told."""
        if self.privacy.kind == "patient":
            return ceil(self.privacy.patients * self.privacy.slices)
        if self.generates:
            return self.training.batch_size
        return self.training.batch_size * (4 if self.learn.streams else 1)

    def __post_init__(self) -> None:
        self._check_recognition()
        self._check_generation()
        check_protection(self)
        rule = "name must be 1 to 40 letters, digits, '-' or '_', starting with a letter or digit"
        require(bool(_NAME.fullmatch(self.name)), rule, self.name)
        if self.recognise.kind == "cnn" and self.masks:
            raise ConfigError("recognise=cnn has no decoder and cannot segment; choose recognise=unet for data.masks")
        for network, depth in (("enhance", self.enhance.depth), ("recognise", self.recognise.depth)):
            kind = getattr(self, network).kind
            halves = kind in ("unet", "vnet", "resunet", "voxresnet", "attention-unet", "multimix")
            if halves and any(size % 2 ** (depth - 1) for size in self.data.image_size):
                raise ConfigError(
                    f"{network}.depth={depth} halves the image {depth - 1} times, so data.image_size must be "
                    f"divisible by {2 ** (depth - 1)}, got {self.data.image_size}"
                )
        if self.recognise.kind == "vnet" and self.recognise.channels % (2 * self.data.channels):
            raise ConfigError(
                "recognise=vnet adds the image to half of recognise.channels, which must therefore be divisible by "
                f"{2 * self.data.channels}, got {self.recognise.channels}"
            )
        if self.enhance.data_consistency and self.degrade.kind != "kspace":
            raise ConfigError("enhance.data_consistency needs acquired lines of k-space; choose degrade=kspace")
        if self.strategy.promotion != "none" and not self.objective.steers:
            raise ConfigError(
                f"strategy.promotion gates what recognition adds, and objective={self.objective.kind} adds nothing; "
                "choose an objective whose recognition steers, or strategy.promotion=none"
            )
        if self.objective.gate == "confident" and self.objective.gated:
            parts = self.objective.micro_batches
            if self.training.batch_size % parts:
                raise ConfigError(
                    f"objective.gate=confident compares {parts} equal parts of each batch; training.batch_size must be "
                    f"a multiple of objective.micro_batches={parts}, got {self.training.batch_size}"
                )
            if self.strategy.kind == "fedprox":
                raise ConfigError(
                    "objective.gate=confident compares gradients of parts of a batch, where FedProx's pull has no "
                    "part; choose another gate or strategy"
                )
        if self.degrade.kind == "low_dose" and "CT" not in self.data.ingest.modalities:
            raise ConfigError("degrade=low_dose simulates CT photons; choose a data kind whose modality is CT")
        if self.degrade.kind == "low_dose" and self.data.ingest.intensity.rule != "window":
            raise ConfigError("degrade=low_dose needs data.ingest.intensity.rule=window: photons are counted from HU")

    def _check_recognition(self) -> None:
        learn, kind = self.learn, self.recognise.kind
        if not self.masks and not self.diagnoses:
            what = "diagnoses" if learn.segment else "masks"
            raise ConfigError(f"learn={learn.kind} has nothing to learn where the data only has {what}")
        if learn.saliency and self.data.masks and self.data.diagnoses and kind not in BRIDGED:
            raise ConfigError(
                f"learn.saliency needs recognise={' or '.join(BRIDGED)}, which have the bridge; got {kind}"
            )
        if kind == "multimix" and min(self.data.image_size) < 2**self.recognise.depth:
            raise ConfigError(
                f"recognise=multimix normalises over two pixels or more at its deepest level: recognise.depth="
                f"{self.recognise.depth} needs images of {2**self.recognise.depth} px, got {self.data.image_size}"
            )
        if learn.saliency and self.recognise.depth < 2:
            raise ConfigError(f"learn.saliency needs recognise.depth of 2 or more, got {self.recognise.depth}")
        if self.selfreg.on and kind not in REGULARISED:
            raise ConfigError(f"selfreg needs recognise={', '.join(REGULARISED)}; got {kind}")
        if learn.streams and self.objective.recognition == "unsupervised":
            raise ConfigError("objective.recognition=unsupervised belongs to learn=supervised")
        alone = self.enhance.kind == "none"
        if alone and self.objective.kind != "plain":
            raise ConfigError(
                f"enhance=none leaves nothing to steer; choose objective=plain, got {self.objective.kind}"
            )
        if self.degrade.kind == "none" and not alone:
            raise ConfigError("degrade=none leaves nothing to enhance; choose enhance=none or another degrade")

    def _check_generation(self) -> None:
        generate, augment = self.generate, self.augment
        if augment.generated and not generate.on:
            raise ConfigError(f"augment={augment.kind} needs a generator; add generate=emit-diff")
        supervised = not self.learn.streams and self.objective.recognition == "supervised"
        if augment.generated and augment.mix == "patches" and not (supervised and self.enhance.kind == "none"):
            raise ConfigError(
                "augment.mix=patches merges what a supervised recogniser says: it needs enhance=none and "
                "learn=supervised; choose augment.mix=images"
            )
        if not generate.on:
            return
        if not self.data.masks and generate.edges == "none":
            raise ConfigError("generate: contour and box show masks, and the data has none; choose generate.edges")
        if self.strategy.promotion != "none" and generate.phase == "all" and not augment.generated:
            raise ConfigError("strategy.promotion gates an enhancer's update; a generator has none")
        if generate.draw.classes == "balanced" and not self.data.diagnoses:
            raise ConfigError("generate.draw.classes=balanced balances diagnoses, and the data has none")
        if self.degrade.kind == "pairs" and augment.generated:
            raise ConfigError("degrade=pairs has no degraded partner of a synthetic image; choose another degrade")
