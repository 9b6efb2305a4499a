"""What stands for the mean where some sites may lie: the updates of a round in, one update that few of them can move.

    median        coordinate by coordinate                                       (Yin et al. 2018, definition 1)
    trimmed_mean  coordinate by coordinate, without the f largest and smallest   (definition 2, with beta = f / n)
    krum          the update with the least sum of squared distances to its n - f - 2 nearest
                                                                                 (Blanchard et al. 2017, section 4)
    multi_krum    the mean of the n - f updates with the least such sums         (section 5)

n updates, at most f = `malicious` of them anything at all. Every site counts once, whatever it says that it holds: a
count is as easily made up as an update.

Guarantee of the first two, for n > 2 f: every coordinate lies between the least and the largest that an honest site
sent. Of Krum, for n > 2 f + 2: what is chosen has a sum no larger than any honest one's, over neighbours of which at
least one is honest. Not guaranteed: that nothing gets in. An update within the spread of the honest ones passes all
four, so a patient liar moves the weights a little every round, and a backdoor that costs little norm may stay.
Hospitals differ; where their updates differ more than lies do, Krum drops the odd hospital rather than the liar.

Parts of the network (shared.weights.part_of) go over the sites that trained them, as in server/collect.py. A part that
2 f sites or fewer trained, where liars could be the majority, stays as it was: its result is 0. Krum chooses whole
sites by the distance over all that is learnt, the mean mask map left out (it is a statistic); a part that none of the
chosen trained stays as it was.

Yin et al.: https://arxiv.org/abs/1803.01498. Blanchard et al.: https://arxiv.org/abs/1703.02757.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from shared.errors import DataError
from shared.types import Arrays
from shared.weights import part_of, parts_of

Kind = Literal["median", "trimmed_mean", "krum", "multi_krum"]
Float64 = npt.NDArray[np.float64]


def aggregate(
    updates: Mapping[str, Arrays],
    kind: Kind,
    malicious: int,
    *,
    images: Mapping[str, Mapping[str, int]] | None = None,
) -> tuple[Arrays, Mapping[str, Any]]:
    """The update of the round, in the order of the arrays, and the record of how it came about.

    `updates`: site -> difference, all with the same names and shapes, finite (server/collect.py checks); a site that
    drew nothing is not among them. `images`: site -> part -> images that moved it; None: every site trained all parts.
    No input is changed, and the order of the sites does not matter: of equal scores the first name wins.

    The record is JSON: `chosen` and `dropped` sites (none are dropped as a whole by median and trimmed_mean), `unmoved`
    parts, and `distances` by site: of Krum the score, else the L2 distance to the result.

    Raises DataError where there are too few updates for the guarantee.
    """
    sites = sorted(updates)
    _check_number(kind, len(sites), malicious)
    names = list(updates[sites[0]])
    learnt = [name for name in names if part_of(name) != "prior"]
    if kind in ("median", "trimmed_mean"):
        chosen = sites
        result, unmoved = _by_coordinate(updates, kind, malicious, images)
        distances = {site: _distance(updates[site], result, learnt) for site in sites}
    else:
        scores = krum_scores(_squared_distances([updates[site] for site in sites], learnt), malicious)
        keep = 1 if kind == "krum" else len(sites) - malicious
        chosen = sorted(sites[i] for i in np.argsort(scores, kind="stable")[:keep])
        result, unmoved = _mean_of(updates, chosen, images)
        distances = {site: float(score) for site, score in zip(sites, scores, strict=True)}
    dropped = [site for site in sites if site not in chosen]
    return result, {"kind": kind, "chosen": chosen, "dropped": dropped, "unmoved": unmoved, "distances": distances}


def median(stacked_SX: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """(S, ...) -> (...): of an even number the mean of the two in the middle."""
    return np.asarray(np.median(stacked_SX.astype(np.float64), axis=0)).astype(np.float32)


def trimmed_mean(stacked_SX: npt.NDArray[np.float32], cut: int) -> npt.NDArray[np.float32]:
    """(S, ...) -> (...): the mean without the `cut` largest and the `cut` smallest of every coordinate; S > 2 cut."""
    count = len(stacked_SX)
    assert count > 2 * cut >= 0, (count, cut)
    parted = np.partition(stacked_SX, (cut, count - cut - 1), axis=0)
    return np.asarray(parted[cut : count - cut].mean(axis=0, dtype=np.float64)).astype(np.float32)


def krum_scores(squared_SS: Float64, malicious: int) -> Float64:
    """(S, S) squared distances -> (S,) sums over the S - malicious - 2 nearest others."""
    count = len(squared_SS)
    nearest = count - malicious - 2
    assert nearest >= 1, (count, malicious)
    others_SS = squared_SS + np.diag(np.full(count, np.inf))  # none is a neighbour of its own
    return np.asarray(np.sort(others_SS, axis=1)[:, :nearest].sum(axis=1))


def _check_number(kind: Kind, count: int, malicious: int) -> None:
    fewest = 2 * malicious + (1 if kind in ("median", "trimmed_mean") else 3)
    if count < fewest:
        raise DataError(
            f"strategy.robust={kind} against {malicious} malicious sites needs {fewest} updates, got {count}; "
            "wait for more sites, or lower strategy.malicious"
        )


def _by_coordinate(
    updates: Mapping[str, Arrays], kind: Kind, malicious: int, images: Mapping[str, Mapping[str, int]] | None
) -> tuple[Arrays, list[str]]:
    first = next(iter(updates.values()))
    trained = {part: _trained(part, sorted(updates), images) for part in (None, *parts_of(first))}
    enough = {part: len(sites) > 2 * malicious for part, sites in trained.items()}
    result: Arrays = {}
    for name, values in first.items():
        part = part_of(name)
        if not enough[part]:
            result[name] = np.zeros_like(values)
            continue
        stacked_SX = np.stack([updates[site][name] for site in trained[part]])
        result[name] = median(stacked_SX) if kind == "median" else trimmed_mean(stacked_SX, malicious)
    return result, [part for part, is_enough in enough.items() if part and not is_enough]


def _mean_of(
    updates: Mapping[str, Arrays], chosen: Sequence[str], images: Mapping[str, Mapping[str, int]] | None
) -> tuple[Arrays, list[str]]:
    first = updates[chosen[0]]
    trained = {part: _trained(part, chosen, images) for part in (None, *parts_of(first))}
    result: Arrays = {}
    for name, values in first.items():
        total = np.zeros(values.shape, np.float64)
        sites = trained[part_of(name)]
        for site in sites:
            total += updates[site][name]
        result[name] = (total / max(len(sites), 1)).astype(np.float32)
    return result, [part for part, sites in trained.items() if part and not sites]


def _trained(part: str | None, sites: Sequence[str], images: Mapping[str, Mapping[str, int]] | None) -> list[str]:
    """Those of `sites` that moved the part; what belongs to no part every site moves."""
    if part is None or images is None:
        return list(sites)
    return [site for site in sites if images[site].get(part, 0) > 0]


def _squared_distances(updates: Sequence[Arrays], names: Sequence[str]) -> Float64:
    """(S, S). From the differences themselves: |x|^2 + |y|^2 - 2xy loses what near updates differ in."""
    squared_SS = np.zeros((len(updates), len(updates)))
    for name in names:
        flat_SD = np.stack([update[name].reshape(-1) for update in updates]).astype(np.float64)
        for i in range(1, len(updates)):
            squared = np.square(flat_SD[:i] - flat_SD[i]).sum(axis=1)
            squared_SS[i, :i] += squared
            squared_SS[:i, i] += squared
    return squared_SS


def _distance(update: Arrays, result: Arrays, names: Sequence[str]) -> float:
    return float(sum(np.square(update[name].astype(np.float64) - result[name]).sum() for name in names) ** 0.5)
