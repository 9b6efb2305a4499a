"""A degraded image in, a denoised one out, by a method that learns nothing: non-local means (Buades et al. 2005).

scikit-image's fast form (Darbon et al. 2008, https://doi.org/10.1109/ISBI.2008.4541250) with the strength that its
documentation advises for it, h = 0.8 sigma. The noise is estimated from the image alone, as Donoho and Johnstone 1994
do: median |d| / 0.6745 of the finest diagonal Haar details d. Blocks that touch 0 or 1 are left out, because clipped
pixels are no sample of the noise, and the background of a medical image is full of them; scikit-image's own estimate
counts them, and needs PyWavelets.
"""

from __future__ import annotations

import numpy as np
import torch
from skimage.restoration import denoise_nl_means
from torch import Tensor

PATCH_PX = 5
DISTANCE_PX = 6
STRENGTH = 0.8
"""h over sigma."""
FEWEST_BLOCKS = 16
"""With fewer unclipped 2 x 2 blocks than this all blocks are counted."""
_MEDIAN_OF_HALF_NORMAL = 0.6745


def non_local_means(degraded_BCHW: Tensor) -> Tensor:
    """denoised_BCHW in [0, 1], on the device and in the dtype of what came in; every image by its own noise level.

    An image without noise comes back as it is.
    """
    made = [_denoised(image_CHW) for image_CHW in degraded_BCHW.detach().float().cpu()]
    return torch.stack(made).to(degraded_BCHW)


def _denoised(image_CHW: Tensor) -> Tensor:
    sigma = estimated_sigma(image_CHW)
    if sigma == 0:
        return image_CHW.clamp(0, 1)
    colour = len(image_CHW) > 1
    denoised = denoise_nl_means(
        (image_CHW if colour else image_CHW[0]).numpy(),
        patch_size=PATCH_PX,
        patch_distance=DISTANCE_PX,
        h=STRENGTH * sigma,
        sigma=sigma,
        fast_mode=True,
        channel_axis=0 if colour else None,  # one channel comes back squeezed, and then its rows are moved
    )
    denoised_CHW = torch.from_numpy(np.ascontiguousarray(denoised, dtype=np.float32)).reshape(image_CHW.shape)
    return denoised_CHW.clamp(0, 1)


def estimated_sigma(image_CHW: Tensor) -> float:
    """Standard deviation of white Gaussian noise on an image of the [0, 1] scale, all channels together."""
    height, width = (size // 2 * 2 for size in image_CHW.shape[-2:])
    even_CHW = image_CHW[:, :height, :width]
    blocks_4CN = torch.stack([even_CHW[:, down::2, right::2].flatten(1) for down in (0, 1) for right in (0, 1)])
    details_CN = (blocks_4CN[0] - blocks_4CN[1] - blocks_4CN[2] + blocks_4CN[3]) / 2
    unclipped_CN = ((blocks_4CN > 0) & (blocks_4CN < 1)).all(0)
    counted = details_CN[unclipped_CN] if int(unclipped_CN.sum()) >= FEWEST_BLOCKS else details_CN.flatten()
    return float(counted.abs().median()) / _MEDIAN_OF_HALF_NORMAL
