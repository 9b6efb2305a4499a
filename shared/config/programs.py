"""What one machine or one simulation is set up with; frozen, and in no digest."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from shared.config.campaign import CampaignConfig, DataConfig
from shared.config.limits import require
from shared.errors import ConfigError


@dataclass(frozen=True, kw_only=True, slots=True)
class MachineConfig:
    """One machine's own affair; in no digest."""

    device: str = "auto"
    """auto, cpu, cuda, cuda:1, mps."""
    threads: int = 2
    precision: Literal["float32", "bfloat16"] = "float32"
    channels_last: bool = True
    """Memory order of images and weights: a fifth faster on CPUs and on tensor cores."""
    compile: bool = False

    def __post_init__(self) -> None:
        require(self.threads >= 1, "machine.threads must be 1 or more", self.threads)


@dataclass(frozen=True, kw_only=True, slots=True)
class ScannerConfig:
    """How a simulated hospital's scanner differs from the others."""

    contrast_gamma: float = 1.0
    bias_field: float = 0.0
    """Peak relative amplitude of the smooth multiplicative field."""
    psf_mm: float = 0.0
    """Standard deviation of the in-plane point spread."""
    noise: float = 0.0
    """Rician (MR) or Gaussian (CT, X-ray) noise, standard deviation relative to the brightest tissue."""
    spacing_mm: tuple[float, float, float] | None = None
    """Acquired slice, row and column spacing; None takes the anatomy's own."""


@dataclass(frozen=True, kw_only=True, slots=True)
class HospitalConfig:
    """One simulated hospital."""

    name: str
    patients: int
    labelled: float = 1.0
    """Share of patients with a DICOM SEG."""
    diagnosed: float = 1.0
    """Share of patients in the CSV of diagnoses."""
    balance: tuple[float, ...] = ()
    """Probability of each diagnosis of the campaign; empty: all equal."""
    scanner: ScannerConfig = ScannerConfig()
    mask_codes: Mapping[str, int] = dataclasses.field(default_factory=dict)
    """The site's own segment number per campaign mask name; empty: the campaign's codes."""
    paired: float = 0.0
    """Share of patients with a second, degraded acquisition (low dose, fast protocol) of the same study."""
    protocol: str | None = None
    """Real data sets: which natural part of the data this hospital receives (for instance an intensity protocol)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class HospitalsConfig:
    slices: int = 12
    """Slices per simulated series."""
    sites: tuple[HospitalConfig, ...]


Attack = Literal["scaled", "flipped", "nan", "labels", "backdoor"]
ATTACKS_ON_DATA = ("labels", "backdoor")
"""The others change the update that an honest training made."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CompareConfig:
    """The comparators that run beside the federation, and the marks that the report holds them against."""

    local: bool = True
    pooled: bool = True
    pooled_batch: Literal["site", "all"] = "site"
    """Pooled sees the images of all sites either in `sites` times the steps at a site's batch size (`site`, the harder
    rival), or in a site's number of steps at the batch size of all sites together (`all`)."""
    judge: bool = False
    """Train an independent recogniser on clean images and report `judge_dice`."""
    gain_db: float = 4.0
    """Claim: federated psnr_db at least this much above degraded."""
    pooled_gap_db: float = 0.3
    pooled_gap_dice: float = 0.02


@dataclass(frozen=True, kw_only=True, slots=True)
class CrossConfig:
    """Another data set whose test patients the models are judged on as well: `data.test=` and `data.test_root=`."""

    data: DataConfig
    hospitals: HospitalsConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class TableConfig:
    """One question and the cells that answer it: the product of `vary`, and `also`, each for every seed.

    An entry is one or more KEY=VALUE overrides with blanks between them, as one would type them.
    """

    name: str
    title: str
    question: str
    setting: Literal["pooled", "federated", "local", "untrained"] = "pooled"
    """pooled: trained on all sites' data; untrained: non-local means."""
    common: tuple[str, ...] = ()
    vary: tuple[tuple[str, ...], ...] = ()
    also: tuple[str, ...] = ()
    seeds: tuple[int, ...] = ()
    """Empty: those of the budget."""
    unseen: str = ""
    """Name of a site whose patients nobody trains on; the models are tested on them as on all others'. Of a study of
    personalisation: the hospital that a release is adapted to."""
    downstream: bool = False
    """Judge with four downstream networks, on degraded, enhanced and enhanced clean images."""
    quick: tuple[str, ...] = ()
    """What budget=quick runs of the table, instead of `vary` and `also`; a study with such a table runs no others
    then."""
    figures: Literal["recogniser", "generator", "draws", "quality", "orders", "online"] = "recogniser"
    """Of a generation study. recogniser: what it recognises; generator: losses, quality and guards of a generator;
    draws: quality and speed alone. `setting` is that of the recogniser or of the generator.
    Of a study of personalisation. quality: of images of the new and of the old scanners; orders: with it the bias of
    lesions and the noise over many acquisitions; online: of single studies, each adapted to on its own. `setting` is
    that of the release."""
    generator: Literal["none", "federated", "pooled", "local"] = "none"
    """In which setting the generator is trained that draws for a recogniser with augment=emit-diff."""
    site: str = ""
    """setting=local of a generation study: the one site whose models are wanted; empty: each site's."""
    images: int = 256
    """Of a generator: images that are drawn to judge it, at most one per test image with a mask."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StudyConfig:
    """A grid of cells, most informative first; every cell's result is kept."""

    kind: Literal["enhancement", "recognition", "generation", "personalise", "trust"] = "enhancement"
    """What the cells' figures are about: which claims are made of them, and how they are shown."""
    tables: tuple[TableConfig, ...]
    common: tuple[str, ...] = ()
    quick: tuple[str, ...] = ()
    """Overrides that budget=quick adds to `common`."""
    roots: Mapping[str, str | None] = dataclasses.field(default_factory=dict)
    """Folder of each real data set by kind; cells whose data have none are reported as not run."""
    only: tuple[str, ...] = ()
    """Names of tables to run now; empty: all."""
    limit: int | None = None
    """At most this many new cells in this sitting."""

    def __post_init__(self) -> None:
        names = [table.name for table in self.tables]
        require(bool(names), "study.tables must hold a table", names)
        for name in names:
            require(
                bool(re.fullmatch(r"[A-Za-z0-9_-]{1,40}", name)), "a table's name is of letters, digits, - and _", name
            )
        require(len(set(names)) == len(names), "study.tables name nothing twice", names)
        for table in self.tables:
            require(table.images >= 2, f"table {table.name!r} of the study: images must be 2 or more", table.images)
        for name in self.only:
            require(name in names, f"study.only may hold {', '.join(names)}", name)
        require(self.limit is None or self.limit >= 0, "study.limit must be 0 or more", self.limit)


@dataclass(frozen=True, kw_only=True, slots=True)
class SimulationConfig:
    """`wardround-simulate`: one campaign (or one per seed and objective) on one machine."""

    experiment: str
    budget: Literal["quick", "full"]
    sites: int
    seeds: tuple[int, ...]
    transport: Literal["inprocess", "ray"]
    run_dir: str
    fresh: bool = False
    """Start over instead of keeping the results and checkpoints of an earlier run with the same config."""
    campaign: CampaignConfig
    hospitals: HospitalsConfig
    compare: CompareConfig
    machine: MachineConfig
    cross: CrossConfig | None = None
    study: StudyConfig | None = None
    """Set by an experiment that is a grid of cells: the rest of this config then only says where and on what."""
    adversaries: Mapping[str, Attack] | None = None
    """Simulated sites that lie, and how (simulation/adversaries.py); in no campaign and at no deployed site."""

    def __post_init__(self) -> None:
        self._check_adversaries()
        if self.sites < 1:
            raise ConfigError(f"sites must be 1 or more, got {self.sites}")
        if self.campaign.rounds.quorum > self.sites:
            raise ConfigError(
                f"round.quorum={self.campaign.rounds.quorum} can never be met by sites={self.sites}; lower the quorum"
            )

    def _check_adversaries(self) -> None:
        for site, attack in (self.adversaries or {}).items():
            if attack in ATTACKS_ON_DATA:
                continue
            if self.campaign.secagg.masked or self.transport != "inprocess":
                raise ConfigError(
                    f"adversaries.{site}={attack} changes an update as it leaves, which needs "
                    "secagg=visible_updates and transport=inprocess; labels and backdoor go with all"
                )
