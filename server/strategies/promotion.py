"""The federated gate: what recognition added at the sites enters the mean only where it agrees with the rest of it.

A gate at a site looks at one batch of one hospital. Sites drift: what agreed with every site's own gradient may, taken
together, work against what the sites' enhancement losses ask for together. So the gate is asked again, of the means:

    total_mean  T      weighted mean of the sites' differences
    added_mean  A      weighted mean of what recognition added to them, over the enhancer's arrays
    main        M      T - A: what the enhancement losses did (and weight decay, and FedProx's pull)
    result      Delta  what the strategy goes on with

    global      Delta = M + A if <A, M> > 0, else M
    layer       the same for every array of weights on its own
    orthogonal  Delta = M + A if <A, M> > 0, else M - <A, M> / |A|^2 A: A out, and with it what M took back along A
    projected   Delta = M + A - min(<A, M>, 0) / |M|^2 M    (Yu et al. 2020, PCGrad, one way round)

The recogniser and the critic keep their means.

Guarantee: <Delta, M> >= |M|^2 over the enhancer's weights, and in every array with `layer`; with `orthogonal`
<Delta, M> >= 0 and, where it is closed, <Delta, A> = 0. Along the direction that
the sites' main losses ask for together, the federation moves at least as far as without recognition's part, whatever
that part is; it never turns the federation against them. An open gate leaves the plain mean, to the bit. It holds
because A and M are parts of one movement: a site scales both by the preconditioner of the step that it really took
(Split in client/train/optimiser.py), so that they add up to it; of two Adams each would scale its own.

Not guaranteed: that M goes down any loss. M is a pseudo-gradient, a mean of paths of many steps, and what drifts within
it stays in it. The product is one of preconditioned movements, not of gradients. A server optimiser that comes after
(FedAdam, FedYogi) bends Delta as it bends every mean. And a site that lies can lie about A as it can about its
difference.

Know before use: M answers to A. Once recognition has moved a weight, the later steps' own gradient pulls it back, so
the longer the local round, the nearer <A, M> comes to -|A|^2, also where A was welcome at every step. `global` and
`layer` then stay closed and let through M with the answer but without what it answered to, a longer step than the
sites took, which costs quality (docs/results/enhancement.md); a test shows it on a parabola. `orthogonal` takes the
answer out as well. `cosine` beside `-added_share` in the round's record tells the answer from a conflict.

Cost: the enhancer's weights once more, in 16 bits. An upload is 1 + E / (2 (E + R)) of a model, for E weights of the
enhancer and R of the other networks: 1.25 where they are equal, above 1.3 only where E > 1.5 R; counted with the
download, 1.25 at most. At the coordinator, one more sum over the enhancer's weights. Only weighted means enter, so that
secure aggregation can carry both.

PCGrad: https://arxiv.org/abs/2001.06782.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from shared.types import Arrays

Kind = Literal["global", "layer", "projected", "orthogonal"]


@dataclass(frozen=True, slots=True)
class Promotion:
    """What the gate saw in one round; all finite."""

    open: float
    """Share of gates with <A, M> > 0: of the enhancer's arrays with `layer`, else 0 or 1."""
    cosine: float
    """cos(A, M) over the whole enhancer; 0 where either is 0, as A is while the sites warm up."""
    added_share: float
    """|A| / |M|, before the gate; 0 where M is 0."""


@dataclass(frozen=True, slots=True)
class Products:
    """Of one array, or summed over several; float64."""

    dot: float
    added: float
    """|A|^2"""
    main: float
    """|M|^2"""


def promoted(total_mean: Arrays, added_mean: Arrays, kind: Kind) -> tuple[Arrays, Promotion]:
    """The mean that the strategy goes on with, in the order of `total_mean`, and the record of it.

    `added_mean` holds some of `total_mean`'s names with the same shapes; neither input is changed. Equal is closed: at
    <A, M> = 0 `global` and `layer` let nothing pass, and where M is 0 no kind does.
    """
    each = {name: _products(total_mean[name], added) for name, added in added_mean.items()}
    parts = each.values()
    whole = Products(
        dot=sum(part.dot for part in parts),
        added=sum(part.added for part in parts),
        main=sum(part.main for part in parts),
    )
    opened = {name: (part if kind == "layer" else whole).dot > 0 for name, part in each.items()}
    of_main, of_added = _closed_shares(whole, kind)
    result = {
        name: values if name not in each or opened[name] else _combined(values, added_mean[name], of_main, of_added)
        for name, values in total_mean.items()
    }
    return result, _record(list(opened.values()), whole)


def _products(total: npt.NDArray[np.float32], added: npt.NDArray[np.float32]) -> Products:
    added_D = added.astype(np.float64).reshape(-1)
    main_D = total.astype(np.float64).reshape(-1) - added_D
    return Products(float(added_D @ main_D), float(added_D @ added_D), float(main_D @ main_D))


def _closed_shares(whole: Products, kind: Kind) -> tuple[float, float]:
    """How much of M and of A goes on where the gate is closed."""
    if kind == "projected" and whole.main > 0:
        return 1 - min(whole.dot, 0) / whole.main, 1.0
    if kind == "orthogonal" and whole.added > 0:
        return 1.0, -whole.dot / whole.added
    return 1.0, 0.0


def _combined(
    total: npt.NDArray[np.float32], added: npt.NDArray[np.float32], of_main: float, of_added: float
) -> npt.NDArray[np.float32]:
    """of_main M + of_added A. In float64: rounding must not leave a trace of what is closed out."""
    added64 = added.astype(np.float64)
    return np.asarray(of_main * (total - added64) + of_added * added64, dtype=np.float32)


def _record(opened: list[bool], whole: Products) -> Promotion:
    norms = (whole.added * whole.main) ** 0.5
    return Promotion(
        open=sum(opened) / max(len(opened), 1),
        cosine=whole.dot / norms if norms else 0.0,
        added_share=(whole.added / whole.main) ** 0.5 if whole.main else 0.0,
    )
