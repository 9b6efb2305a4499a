"""What the recognition study was set up to show, fixed before it ran: one entry per kind of claim.

simulation/study/recognition.py holds the claims against the rows; a page lists those for which no cell was run.
MultiMix: https://arxiv.org/abs/2010.14731. SelfReg-UNet: https://arxiv.org/abs/2406.14896.
"""

from __future__ import annotations

from collections.abc import Mapping

MARKS = {"dice": 0.954 - 0.634, "accuracy": 0.800 - 0.732}
"""MultiMix's paper: Dice over its U-Net-10, accuracy over its Enc-100."""
POOLED_GAP = 0.02
"""Of Dice and of accuracy: how far below training on pooled data a federation may lie."""
DROP_SHARE = 0.5
"""Of the local models' drop to a hospital that nobody trained on."""

_RULE = (
    "holds: the mean of the paired differences is above 0 and, with two seeds or more, so is the lower end of its 95 % "
    "interval"
)
PROMISES: Mapping[str, str] = {
    "few-dice": f"With few labels (mni: 10 masks and 10 % of the diagnoses) MultiMix is above the supervised U-Net in "
    f"Dice, on mni and on hippocampus ({_RULE})",
    "few-accuracy": "With few labels (mni: 10 masks and 10 % of the diagnoses) MultiMix is above the supervised "
    f"encoder in accuracy, on mni and on pneumonia ({_RULE})",
    "mark-dice": f"The paper's margin over U-Net-10: {MARKS['dice']:+.3f} Dice (0.634 to 0.954), by the mean",
    "mark-accuracy": f"The paper's margin over Enc-100: {MARKS['accuracy']:+.3f} accuracy (0.732 to 0.800), by the "
    "mean",
    "mask-ssl": "Images without a mask bring Dice: the divergence to the prior is above none, by the mean",
    "federated-prior": "The federated prior brings Dice to sites without masks, which have no prior of their own: on "
    "the tests of those sites it is above the same federation without it, by the mean",
    "selfreg": f"SelfReg is above the same network without it at equal seeds, in Dice or else in accuracy ({_RULE}; "
    "where the interval holds 0 the answer is a null, and the interval is stated)",
    "thirds-local": "Federated, with a third of the labels at each site, is above every site's local model on the "
    "pooled test, by the mean: in Dice where the site has masks, in accuracy where it has diagnoses",
    "thirds-pooled": f"Federated, with a third of the labels at each site, is within {POOLED_GAP:g} Dice and "
    f"{POOLED_GAP:g} accuracy of pooled, by the mean",
    "unseen": "The federated model's drop to a hospital that nobody trained on is at most half of the local models' "
    "drop, in Dice and in accuracy, by the mean (drop: tests of its own hospitals minus the never-seen one's)",
    "whole": "Inside GradProm, on enhanced images, MultiMix with SelfReg is above the supervised recogniser (UMTL) in "
    "Dice and in accuracy, by the mean",
}
