"""A batch in, its enhanced images out; where k-space was acquired, no enhancer may contradict it.

Hard data consistency: Schlemper et al. 2018, https://arxiv.org/abs/1704.02422, without noise: the acquired rows of the
enhanced image's k-space are replaced by what was measured. The clean images here are real, and the enhancer's are, so
the value at frequency -f is the conjugate of that at f: a row that was acquired settles its mirrored row as well. Both
are replaced. Replacing the acquired rows alone and taking the real part would average each with what the enhancer says
of its mirrored row, and the result would contradict the measurement. With both, the layer is the orthogonal projection
onto the real images that agree with it: it never moves away from the clean image. A scanner's images carry a phase, and
then only the acquired rows are known; who gives this layer such data must give it complex images.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from shared.batch import Batch


def enhanced_image(enhancer: nn.Module, batch: Batch) -> Tensor:
    """enhanced_BCHW, not clamped; float32 where it was made consistent."""
    enhanced_BCHW: Tensor = enhancer(batch.degraded_BCHW)
    if batch.measured_BCHW is None or batch.acquired_BH is None:
        return enhanced_BCHW
    return consistent(enhanced_BCHW.float(), batch.measured_BCHW, batch.acquired_BH)


def consistent(image_BCHW: Tensor, measured_BCHW: Tensor, acquired_BH: Tensor) -> Tensor:
    """The real image nearest to `image_BCHW` whose k-space (torch.fft.fft2) has the measured values in `acquired_BH`.

    Differentiable with respect to `image_BCHW`, by an orthogonal projection.
    """
    acquired_B1H1 = acquired_BH[:, None, :, None]
    mirrored_B1H1 = _at_negative_frequency(acquired_B1H1.expand(-1, -1, -1, measured_BCHW.shape[-1]))
    settled_BCHW = torch.where(acquired_B1H1, measured_BCHW, _at_negative_frequency(measured_BCHW).conj())
    kspace_BCHW = torch.where(acquired_B1H1 | mirrored_B1H1, settled_BCHW, torch.fft.fft2(image_BCHW))
    real_BCHW: Tensor = torch.fft.ifft2(kspace_BCHW).real
    return real_BCHW


def _at_negative_frequency(kspace_BCHW: Tensor) -> Tensor:
    """The value at -f in the place of f, for rows and columns; the zero frequency stays where it is."""
    return kspace_BCHW.flip((-2, -1)).roll((1, 1), (-2, -1))
