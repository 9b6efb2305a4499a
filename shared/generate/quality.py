"""Features of real and of drawn images in, how far apart the two crowds are, with an interval, out.

Fréchet distance of two Gaussians, squared, in the space of a recogniser's features; Dowson, Landau 1982,
https://doi.org/10.1016/0047-259X(82)90077-X; as a measure of generators: Heusel et al. 2017,
https://arxiv.org/abs/1706.08500. There the network is Inception; ours is a recogniser of the campaign's own data: what
it does not look at, the distance does not see, and numbers of different recognisers do not compare.

    |m_r - m_d|^2 + tr(C_r + C_d - 2 (C_r^(1/2) C_d C_r^(1/2))^(1/2))

Of n images it comes out too large, by about 1 / n: only equal numbers compare. The interval makes up for it.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from shared.recognise.recognition import Recognition, mean_BC

BATCH_SIZE = 64
RESAMPLES = 200

Features = npt.NDArray[np.float64]


def features_of(recogniser: nn.Module, image_NCHW: Tensor) -> Features:
    """(N, D): the means over the image of the recogniser's deepest maps. Images in [0, 1] on its device."""
    training = recogniser.training
    recogniser.eval()
    found: list[Tensor] = []
    with torch.inference_mode():
        for image_BCHW in torch.split(image_NCHW, BATCH_SIZE):
            recognition: Recognition = recogniser(image_BCHW)
            found.append(mean_BC(recognition.features[0].float()).cpu())
    recogniser.train(training)
    return torch.cat(found).double().numpy()


def feature_distance(real_ND: Features, drawn_ND: Features) -> float:
    """Squared Fréchet distance of the Gaussians with the crowds' means and covariances; 2 or more of each."""
    assert min(len(real_ND), len(drawn_ND)) >= 2
    real_DD, drawn_DD = (np.atleast_2d(np.cov(each, rowvar=False)) for each in (real_ND, drawn_ND))
    root_DD = _root(real_DD)
    common = np.sqrt(np.linalg.eigvalsh(root_DD @ drawn_DD @ root_DD).clip(min=0)).sum()
    apart = float(((real_ND.mean(0) - drawn_ND.mean(0)) ** 2).sum())
    return apart + float(np.trace(real_DD) + np.trace(drawn_DD) - 2 * common)


def _root(covariance_DD: Features) -> Features:
    """Symmetric square root; eigenvalues below 0 are rounding."""
    values_D, vectors_DD = np.linalg.eigh(covariance_DD)
    rooted: Features = (vectors_DD * np.sqrt(values_D.clip(min=0))) @ vectors_DD.T
    return rooted


def distance_interval(
    real_ND: Features, drawn_ND: Features, rng: np.random.Generator, *, level: float = 0.95, resamples: int = RESAMPLES
) -> tuple[float, float]:
    """Basic bootstrap interval of the distance, both crowds resampled.

    Resamples lie as far above the sample as the sample does above the truth; reflected, that error is made up for.
    Efron, Tibshirani 1993, An Introduction to the Bootstrap, chapter 13.
    """
    found = np.array([feature_distance(_resampled(real_ND, rng), _resampled(drawn_ND, rng)) for _ in range(resamples)])
    lower, upper = np.quantile(found, [(1 - level) / 2, (1 + level) / 2])
    distance = feature_distance(real_ND, drawn_ND)
    return max(2 * distance - float(upper), 0.0), max(2 * distance - float(lower), 0.0)


def _resampled(values_ND: Features, rng: np.random.Generator) -> Features:
    return values_ND[rng.integers(len(values_ND), size=len(values_ND))]
