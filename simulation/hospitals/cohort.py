"""Config in, patients of every hospital out (no pixels yet): who is labelled, diagnosed, paired, and with what.

Shares and balances are kept as exact counts (largest remainder), not as independent draws: with twelve patients a coin
per patient would leave some hospitals without any of a kind, and two runs of one config could not be compared.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from shared.config import DataConfig, HospitalConfig, ScannerConfig, SimulationConfig
from shared.config.limits import require
from shared.errors import ConfigError
from shared.seeding import numpy_generator

_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,30}", re.ASCII)


@dataclass(frozen=True, slots=True)
class Case:
    """One patient of one hospital, before any pixel is made."""

    site: str
    number: int  # from 0, within the site
    diagnosis: str | None  # the campaign's name; None where the campaign has no diagnoses
    item: str  # which item of a real data set; empty for simulated anatomy
    labelled: bool
    diagnosed: bool
    paired: bool


def hospitals_of(config: SimulationConfig) -> tuple[HospitalConfig, ...]:
    """`config.sites` hospitals: those of the config, then again under fresh names (`north-2`), hence with fresh draws.

    Raises ConfigError for names, shares, balances or segment numbers that cannot be kept.
    """
    listed = config.hospitals.sites
    if not listed:
        raise ConfigError(
            "hospitals.sites is empty: list at least one hospital, or choose data=store for data that exist"
        )
    hospitals = tuple(
        listed[i]
        if i < len(listed)
        else replace(listed[i % len(listed)], name=f"{listed[i % len(listed)].name}-{i // len(listed) + 1}")
        for i in range(config.sites)
    )
    names = [hospital.name for hospital in hospitals]
    if len(set(names)) < len(names):
        raise ConfigError(f"hospitals.sites: names must differ, got {', '.join(names)}")
    check_labels(config.campaign.data, names)
    for hospital in hospitals:
        _check(hospital, config)
    return hospitals


def check_labels(data: DataConfig, sites: Sequence[str]) -> None:
    """Raises ConfigError for label budgets of sites that there are not: they would train with all of their labels."""
    for name in data.labels or {}:
        require(name in sites, f"data.labels may name the sites {', '.join(sites)}", name)


def _check(hospital: HospitalConfig, config: SimulationConfig) -> None:
    where, data = f"hospital {hospital.name!r}", config.campaign.data
    if not _NAME.fullmatch(hospital.name):
        raise ConfigError(f"{where}: a name is 1-31 of a-z, 0-9, - and _ (it becomes a folder); rename the hospital")
    if hospital.patients < 1:
        raise ConfigError(f"{where}: patients must be 1 or more, got {hospital.patients}")
    for share in ("labelled", "diagnosed", "paired"):
        if not 0 <= getattr(hospital, share) <= 1:
            raise ConfigError(f"{where}: {share} is a share in [0, 1], got {getattr(hospital, share)}")
    _check_scanner(hospital.scanner, where)
    balance = hospital.balance
    if balance and (len(balance) != len(data.diagnoses) or min(balance) < 0 or sum(balance) <= 0):
        raise ConfigError(
            f"{where}: balance needs one weight of 0 or more for each of data.diagnoses {list(data.diagnoses)}, "
            f"got {list(balance)}"
        )
    codes = hospital.mask_codes
    if codes and set(codes) != set(data.masks):
        raise ConfigError(f"{where}: mask_codes must name exactly data.masks {list(data.masks)}, got {list(codes)}")
    if len(set(codes.values())) < len(codes) or any(not 1 <= code <= 255 for code in codes.values()):
        raise ConfigError(f"{where}: mask_codes must be different numbers in 1..255, got {list(codes.values())}")


def _check_scanner(scanner: ScannerConfig, where: str) -> None:
    if min(scanner.noise, scanner.psf_mm) < 0 or not 0 <= scanner.bias_field < 1 or scanner.contrast_gamma <= 0:
        raise ConfigError(
            f"{where}: a scanner needs noise and psf_mm of 0 or more, bias_field in [0, 1) and contrast_gamma above 0, "
            f"got {scanner.noise}, {scanner.psf_mm}, {scanner.bias_field}, {scanner.contrast_gamma}"
        )
    if scanner.spacing_mm and not all(0.2 <= spacing <= 20 for spacing in scanner.spacing_mm):
        raise ConfigError(f"{where}: scanner.spacing_mm lies in 0.2..20 mm, got {list(scanner.spacing_mm)}")


def quotas(total: int, weights: Sequence[float]) -> list[int]:
    """Whole numbers that add up to `total` in proportion to `weights` (largest remainder; ties to the first)."""
    exact = np.asarray(weights, dtype=np.float64) / float(sum(weights)) * total
    counts = np.floor(exact).astype(int)
    for index in np.argsort(-(exact - counts).round(9), kind="stable")[: total - int(counts.sum())]:
        counts[index] += 1
    return [int(count) for count in counts]


def simulated_cohorts(config: SimulationConfig, hospitals: Sequence[HospitalConfig]) -> tuple[tuple[Case, ...], ...]:
    """Patients of simulated anatomy, one tuple per hospital."""
    refuse_protocol(hospitals, config.campaign.data.kind)
    return tuple(
        cohort(config, hospital, [""] * hospital.patients, diagnoses_of(config, hospital)) for hospital in hospitals
    )


def diagnoses_of(config: SimulationConfig, hospital: HospitalConfig) -> list[str | None]:
    """A diagnosis per patient in the hospital's balance, shuffled; all None where the campaign has no diagnoses."""
    names = config.campaign.data.diagnoses
    if not names:
        return [None] * hospital.patients
    counts = quotas(hospital.patients, hospital.balance or [1.0] * len(names))
    ordered = [name for name, count in zip(names, counts, strict=True) for _ in range(count)]
    order = numpy_generator(config.campaign.seed, "hospitals", hospital.name, "diagnoses").permutation(len(ordered))
    return [ordered[index] for index in order]


def cohort(
    config: SimulationConfig, hospital: HospitalConfig, items: Sequence[str], diagnoses: Sequence[str | None]
) -> tuple[Case, ...]:
    """One hospital's patients; which of them are labelled, diagnosed and paired is drawn, how many is exact."""
    chosen: dict[str, set[int]] = {}
    for share in ("labelled", "diagnosed", "paired"):
        draw = numpy_generator(config.campaign.seed, "hospitals", hospital.name, share)
        count = int(np.floor(getattr(hospital, share) * len(items) + 0.5))
        chosen[share] = set(draw.permutation(len(items))[:count].tolist())
    return tuple(
        Case(
            site=hospital.name,
            number=number,
            diagnosis=diagnosis,
            item=item,
            labelled=number in chosen["labelled"] and bool(config.campaign.data.masks),
            diagnosed=number in chosen["diagnosed"] and diagnosis is not None,
            paired=number in chosen["paired"],
        )
        for number, (item, diagnosis) in enumerate(zip(items, diagnoses, strict=True))
    )


def refuse_protocol(hospitals: Sequence[HospitalConfig], kind: str) -> None:
    for hospital in hospitals:
        if hospital.protocol is not None:
            raise ConfigError(
                f"hospital {hospital.name!r}: data={kind} has no natural parts; remove protocol={hospital.protocol}"
            )


def refuse_simulation_of_real_data(hospitals: Sequence[HospitalConfig], kind: str) -> None:
    """Real images are written as they are: a scanner or a pair that would have to be invented is refused."""
    for hospital in hospitals:
        if hospital.scanner != ScannerConfig() or hospital.paired:
            raise ConfigError(
                f"hospital {hospital.name!r}: data={kind} writes real images as they are; remove scanner and paired, "
                "or choose data=mni or data=phantom"
            )
