"""A closing evaluation in, the acceptance gates of a release out: per site and over all, each with its figure, its
limit and whether it decides.

What sites measure, and where, stands in client/acceptance.py: `accept.*` are sums over images, patients or lesions of
a site's test patients, so what is here over all sites is exact. Figures whose limit a config gives:

    gain                  PSNR of enhanced images less that of the degraded ones, mean in dB; must be above the limit
    harm_dice[.MASK]      mean Dice in clean images less that in the same images enhanced; of all masks, and of each
    harm_accuracy         the same of the share of patients with the right diagnosis
    harm_psnr_db          PSNR between a clean image and itself enhanced, mean in dB; the limit is the least
    erased                share of the lesions found in degraded images that are not found in enhanced ones
    invented_per_image    false positive lesions of an enhanced image where there was none in the degraded one
    sensitivity_loss      share of all lesions found before less the share found after
    calibration_error     expected calibration error over ten bins (Guo et al. 2017, https://arxiv.org/abs/1706.04599)

`sensitivity` and `false_positives` stand beside them, after enhancement, with the figure before it as their limit; they
never decide.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from shared.config import ReleaseConfig
from shared.errors import RefusedError
from shared.metrics import pool
from shared.types import Metrics, Moments

ALL = "all"
PREFIX = "accept."
DESCRIBE = "describe."
BINS = 10
_NOTHING = Moments(0, 0.0, 0.0)


@dataclass(frozen=True, slots=True)
class Gate:
    """One figure against its limit."""

    gate: str
    site: str
    value: float | None
    """None: there was nothing to measure."""
    limit: float
    holds: bool
    decides: bool
    n: int
    """Images, patients or lesions that the figure is of (counted_in)."""


@dataclass(frozen=True, slots=True)
class _Figure:
    gate: str
    value: float | None
    limit: float
    n: int
    most: bool = True
    """The limit is the most that is allowed, itself included; else the least."""
    beyond: bool = False
    """The limit itself is not enough."""
    shown: bool = False
    """Never decides."""

    @property
    def holds(self) -> bool:
        if self.value is None:
            return False
        if self.beyond:
            return self.value > self.limit
        return self.value <= self.limit if self.most else self.value >= self.limit


def gates_of(
    evaluation: Mapping[str, Metrics], config: ReleaseConfig, patients: Mapping[str, int] | None = None
) -> tuple[Gate, ...]:
    """Every gate of every site, then over all of them.

    `patients` are the sites' test patients where they are known. A figure decides where it is of at least
    `config.least_patients` images, patients or lesions, and its site has that many test patients.
    """
    least = config.least_patients
    tested = {site: (patients or {}).get(site, least) for site in evaluation}
    tested[ALL] = sum(tested.values())
    gates = []
    for site, metrics in (*sorted(evaluation.items()), (ALL, pool(evaluation.values()))):
        for figure in _figures(metrics, config):
            enough = min(figure.n, tested[site]) >= least
            decides = enough and figure.value is not None and not figure.shown
            gates.append(Gate(figure.gate, site, figure.value, figure.limit, figure.holds, decides, figure.n))
    return tuple(gates)


def require_gates(gates: Sequence[Gate], config: ReleaseConfig) -> None:
    """Raises RefusedError with the first deciding gate that does not hold, and where none decides over all sites."""
    failed = [gate for gate in gates if gate.decides and not gate.holds]
    if failed:
        worst = failed[0]
        others = f" ({len(failed) - 1} further gates do not hold either)" if len(failed) > 1 else ""
        raise RefusedError(
            f"no release: the gate {worst.gate} does not hold at {_where(worst.site)}: got {worst.value:.4g}, limit "
            f"{worst.limit:.4g}, of {worst.n} {counted_in(worst.gate)}{others}; train longer, or with an objective "
            "under which recognition steers the enhancement"
        )
    if not any(gate.decides for gate in gates if gate.site == ALL):
        raise RefusedError(
            f"no release: no gate has {config.least_patients} test patients over all sites, so none can decide; bring "
            "in sites with more patients"
        )


def counted_in(gate: str) -> str:
    """What a gate's n counts, in a word."""
    name = gate.partition(".")[0]
    if name in ("erased", "sensitivity_loss", "sensitivity"):
        return "lesions"
    return "patients" if name in ("harm_accuracy", "calibration_error") else "images"


def is_judged(evaluation: Mapping[str, Metrics]) -> bool:
    """Whether the sites measured what the gates ask for; older versions did not."""
    return bool(evaluation) and all(any(key.startswith(PREFIX) for key in site) for site in evaluation.values())


def calibration_of(evaluation: Mapping[str, Metrics]) -> dict[str, Any] | None:
    """Over all sites, as a manifest has it; None where no patient has a diagnosis."""
    found = pool(evaluation.values())
    bins = [_bin(found, place) for place in range(BINS)]
    if not any(count for count, _, _ in bins):
        return None
    means = [(n, confidence / n if n else 0.0, correct / n if n else 0.0) for n, confidence, correct in bins]
    held = [(n, min(max(confidence, 0.0), 1.0), min(max(correct, 0.0), 1.0)) for n, confidence, correct in means]
    return {"bins": [dict(zip(("count", "confidence", "correct"), each, strict=True)) for each in held]}


def descriptors_of(evaluation: Mapping[str, Metrics]) -> dict[str, Any] | None:
    """Descriptor -> site -> count, mean and standard deviation of its test images; None where no site describes."""
    found: dict[str, dict[str, Any]] = {}
    for site, metrics in sorted(evaluation.items()):
        for key, moments in metrics.items():
            if key.startswith(DESCRIBE) and moments.count:
                of_site = {"count": moments.count, "mean": moments.mean, "std": moments.std}
                found.setdefault(key.removeprefix(DESCRIBE), {})[site] = of_site
    return found or None


# -------------------------------------------------------------------------------------------------------------- figures


def _figures(metrics: Metrics, config: ReleaseConfig) -> Iterator[_Figure]:
    """Those of an enhancer only where there is one."""
    if any(key.startswith((PREFIX + "gain.", PREFIX + "harm.")) for key in metrics):
        yield from _of_enhancer(metrics, config)
    counts = [_bin(metrics, place) for place in range(BINS)]
    n = sum(count for count, _, _ in counts)
    apart = sum(abs(confidence - correct) for _, confidence, correct in counts)
    yield _Figure("calibration_error", apart / n if n else None, config.calibration_error, n)


def _of_enhancer(metrics: Metrics, config: ReleaseConfig) -> Iterator[_Figure]:
    gain = _get(metrics, "gain.psnr_db")
    yield _Figure("gain", _mean(gain), config.least_gain_db, gain.count, most=False, beyond=True)
    start = PREFIX + "harm.dice_before"
    for key in sorted(key for key in metrics if key == start or key.startswith(start + ".")):
        mask = key.removeprefix(start)
        yield _Figure(f"harm_dice{mask}", *_loss(metrics, "harm.dice", config.harm_dice, mask))
    yield _Figure("harm_accuracy", *_loss(metrics, "harm.accuracy", config.harm_accuracy))
    kept = _get(metrics, "harm.psnr_db")
    yield _Figure("harm_psnr_db", _mean(kept), config.harm_psnr_db, kept.count, most=False)
    yield from _of_lesions(metrics, config)


def _of_lesions(metrics: Metrics, config: ReleaseConfig) -> Iterator[_Figure]:
    before, after, erased = (_get(metrics, f"lesions.{name}") for name in ("before", "after", "erased"))
    found = round(before.total)
    yield _Figure("erased", erased.total / found if found else None, config.erased, found)
    invented = _get(metrics, "false.invented")
    yield _Figure("invented_per_image", _mean(invented), config.invented_per_image, invented.count)
    lost = None if _mean(before) is None or _mean(after) is None else before.mean - after.mean
    yield _Figure("sensitivity_loss", lost, config.sensitivity_loss, before.count)
    if before.count:
        yield _Figure("sensitivity", _mean(after), before.mean, after.count, most=False, shown=True)
    false_before, false_after = _get(metrics, "false.before"), _get(metrics, "false.after")
    if false_before.count:
        yield _Figure("false_positives", _mean(false_after), false_before.mean, false_after.count, shown=True)


def _loss(metrics: Metrics, name: str, limit: float, mask: str = "") -> tuple[float | None, float, int]:
    """What is lost from before to after, its limit, and of how many."""
    before, after = _get(metrics, f"{name}_before{mask}"), _get(metrics, f"{name}_after{mask}")
    n = min(before.count, after.count)
    return (before.mean - after.mean if n else None), limit, n


def _bin(metrics: Metrics, place: int) -> tuple[int, float, float]:
    """Patients of one bin of the top probability, the sum of it, and how many are right."""
    names = (f"calibration.{name}{place}" for name in ("count", "confidence", "correct"))
    count, confidence, correct = (_get(metrics, name) for name in names)
    return count.count, confidence.total, correct.total


def _get(metrics: Metrics, name: str) -> Moments:
    return metrics.get(PREFIX + name, _NOTHING)


def _mean(moments: Moments) -> float | None:
    return moments.mean if moments.count else None


def _where(site: str) -> str:
    return "all sites together" if site == ALL else f"site {site}"
