"""What the generation study was set up to show, fixed before it ran: one entry per kind of claim.

simulation/study/generation.py holds the claims against the rows; a page lists those for which no cell was run.
"""

from __future__ import annotations

from collections.abc import Mapping

LOSS_GAP = 0.05
"""Federated over pooled denoiser loss, less 1."""
MASK_SHARE = 0.8
"""Dice of an independent segmenter on generated images over that on real ones."""
SINGLE = ("contrast", "noise", "rotate", "scale")
"""The classical augmentations, one at a time."""
GENERATED = ("emit-diff", "emit-diff+spatial")

_RULE = (
    "holds: the mean of the paired differences is above 0 and, with two seeds or more, so is the lower end of its 95 % "
    "interval"
)
PROMISES: Mapping[str, str] = {
    "masks": "Images of the federated generator follow their masks: the Dice of an independent segmenter on them is at "
    f"least {MASK_SHARE:g} of its Dice on the real images of the same masks, by the mean",
    "loss": f"The federated denoiser's loss on test images is within {100 * LOSS_GAP:g} % of that of pooled training, "
    "by the mean",
    "augment": "With few labels EMIT-Diff is above the best single classical augmentation (the one that did best on "
    f"the same test patients, which favours it), in Dice and in accuracy ({_RULE})",
    "deepstack": f"With few labels EMIT-Diff is above DeepStack, all classical augmentations together ({_RULE})",
    "scarce-none": "At the hospital that hardly has a class, the F1 of that class is above that without augmentation "
    f"when its recogniser trains on images of the federated generator ({_RULE})",
    "scarce-local": f"... and above what images of the hospital's own generator bring it ({_RULE})",
    "healthy": "A generator that was trained as it should be passes the memorisation guard at every site",
    "overfitted": "A generator that was fitted to a handful of images over and over is refused by it at every site",
}
