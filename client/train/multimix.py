"""MultiMix: diagnosis and segmentation from few labels, and from images that have none.

Haque, Imran, Wang, Terzopoulos. MultiMix: Sparingly Supervised, Extreme Multitask Learning from Medical Images. ISBI
2021. https://arxiv.org/abs/2010.14731; MELBA 2021:011. Pseudo-labels: Sohn et al. FixMatch. 2020.
https://arxiv.org/abs/2001.07685.

    L      = L_cls + L_seg
    L_cls  = CE(c^_l, c_l) + lambda mean_b 1[max softmax(c^_w) >= t] CE(c^_s, argmax c^_w)
    L_seg  = alpha Dice(y^_l, y_l) + beta KL(y^_l || y^_u)

    l, u   images with and without the label; w, s the same unlabelled image, weakly and strongly augmented
    Dice   learn.mask_loss: as published, or with what several and rare classes need
    S      |d max_k score_k(x) / d x|, through the bridge into the decoder's first stage

One step runs the encoder and decoder once on the images of the segmentation streams, whose saliency comes from that
very forward (it costs a backward to the image, and no parameter's gradient); the encoder alone once on the diagnosed
and the strongly augmented images; and the encoder without a graph on the weak ones. A site leaves out what it has no
images for. In GradProm all of this is read from enhanced images: the strong view is an augmentation of the enhanced
image, and its gradient reaches the enhancer.

The KL term as released is 0 (softmax over one channel), so no form of it has been validated by the paper's code:

    official0    as released: 0, with a gradient of 0
    pairwise     KL of image i with a mask and image i without, the first detached
    prior        KL of the mean map over images with a mask (detached) and the mean map over those without: whichever
                 images stand side by side does not matter. Both are moving averages over batches, for the mean map of a
                 few images is nearly as sharp as each of them; the gradient flows through the batch at hand, which
                 has the share 1 - learn.prior_decay of its average and so that of the gradient
    federated    prior, its first map being the mean of masks over all sites that have any (client/train/prior.py): a
                 site without any can compute it
    consistency  none of these: pixels that are confident (t) on the weak view are learnt on the strong one
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from client.train.terms import RecognitionTerms, Share, Terms, regularised
from shared.batch import Batch
from shared.config import CampaignConfig, LearnConfig
from shared.images.augment import moved, strengthened
from shared.recognise.losses import mask_loss_B, soft_dice_loss_B
from shared.recognise.recognition import Recognition
from shared.recognise.saliency import saliency_from_graph

SMALLEST_PROBABILITY = 1e-6
"""Mean maps are clamped to it, so that a class that is said nowhere has a finite divergence."""


@dataclass(frozen=True, slots=True, eq=False)
class MeanMaps:
    """The two sides of KL (prior, federated): mean maps so far, (K, H, W); None before the first batch."""

    labelled_KHW: Tensor | None = None
    unlabelled_KHW: Tensor | None = None
    fixed: bool = False
    """The labelled one is the federation's, and stays."""

    def joined(self, labelled_KHW: Tensor | None, unlabelled_KHW: Tensor | None, decay: float) -> MeanMaps:
        """With one batch's mean maps in the moving averages; None where the batch has no such image."""
        first = self.labelled_KHW if self.fixed else _moving(self.labelled_KHW, labelled_KHW, decay)
        return MeanMaps(first, _moving(self.unlabelled_KHW, unlabelled_KHW, decay), self.fixed)


def _moving(so_far: Tensor | None, now: Tensor | None, decay: float) -> Tensor | None:
    if so_far is None or now is None:
        return now if so_far is None else so_far
    return decay * so_far + (1 - decay) * now


def multimix(campaign: CampaignConfig, maps: MeanMaps, rng: torch.Generator | None = None) -> RecognitionTerms:
    """The terms of every learn= with streams; `rng` draws the channels of selfreg.consistency=random."""
    return partial(multimix_terms, campaign=campaign, maps=maps, rng=rng)


def multimix_terms(
    recogniser: nn.Module,
    image_BCHW: Tensor,
    part: Batch,
    share: Share,
    *,
    campaign: CampaignConfig,
    maps: MeanMaps,
    rng: torch.Generator | None = None,
) -> Terms:
    """L_seg and L_cls, each where the site has images for it, with SelfReg on the features that the step has made."""
    streams = part.streams
    assert streams is not None
    segmented_BCHW, diagnosed_BCHW = torch.split(
        image_BCHW, [streams.segmented, streams.diagnosed + streams.undiagnosed]
    )
    losses: list[Tensor] = []
    sums: dict[str, Tensor] = {}
    features: Recognition | None = None
    if streams.segmented:
        loss, found, features = segmentation(recogniser, segmented_BCHW, part, share, campaign.learn, maps)
        losses.append(loss)
        sums |= found
    if len(diagnosed_BCHW):
        loss, found, encoded = classification(recogniser, diagnosed_BCHW, part, share, campaign.learn)
        losses.append(loss)
        sums |= found
        features = features or encoded
    if campaign.selfreg.on and features is not None:
        sums["loss_selfreg"], losses[0] = regularised(losses[0], features, campaign, share, rng)
    return Terms(tuple(losses), sums | _images(sums, image_BCHW.device))


def _images(sums: Mapping[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    """Images per part, those without a label by the weight of their term: masks move the encoder and the decoder,
    diagnoses the encoder and the class head."""
    none = torch.zeros((), device=device)
    masks, diagnoses = sums.get("mask_images", none), sums.get("diagnosis_images", none)
    return {"images.encoder": masks + diagnoses, "images.decoder": masks, "images.diagnosis": diagnoses}


# ------------------------------------------------------------------------------------------------------ segmentation


def segmentation(
    recogniser: nn.Module, image_BCHW: Tensor, part: Batch, share: Share, learn: LearnConfig, maps: MeanMaps
) -> tuple[Tensor, dict[str, Tensor], Recognition]:
    """alpha Dice + beta KL over the images of the first two streams."""
    streams = part.streams
    assert streams is not None
    said = segmented(recogniser, image_BCHW)
    assert said.mask_logits_BKHW is not None
    probabilities_BKHW = said.mask_logits_BKHW.float().softmax(1)
    with_mask_BKHW, without_BKHW = torch.split(probabilities_BKHW, [streams.masked, streams.unmasked])

    dice = image_BCHW.new_zeros(())
    if streams.masked:
        truth_BHW = part.mask_BHW[: streams.masked]
        if learn.mask_loss == "dice":
            dice_B = soft_dice_loss_B(with_mask_BKHW, truth_BHW, of_absent=True)
        else:
            dice_B = mask_loss_B(said.mask_logits_BKHW[: streams.masked].float(), truth_BHW)
        dice = dice_B.sum() / share.labelled.masks
    unlabelled = unlabelled_masks(
        recogniser, with_mask_BKHW, without_BKHW, image_BCHW[streams.masked :], part, learn, maps
    )
    of_unlabelled, used = dice.new_zeros(()), dice.new_tensor(float(streams.masked))
    if unlabelled is not None:
        of_unlabelled = share.images * unlabelled.loss
        used = used + unlabelled.images * counts_as(learn.mask_ssl_weight, learn.dice_weight)
    loss = learn.dice_weight * dice + learn.mask_ssl_weight * of_unlabelled
    sums = {
        "loss_masks": dice.detach(),
        "loss_mask_ssl": of_unlabelled.detach(),
        "mask_images": used,
    }
    if streams.masked:
        sums |= {"masked": dice.new_tensor(float(streams.masked)), "mask_map_KHW": with_mask_BKHW.detach().sum(0)}
    if streams.unmasked:
        sums |= {"unmasked": dice.new_tensor(float(streams.unmasked)), "free_map_KHW": without_BKHW.detach().sum(0)}
    return loss, sums, said


def counts_as(weight: float, of_labelled: float) -> float:
    """What an unlabelled image counts when sites are averaged, a labelled one counting 1: as in the loss, 1 at most.

    A site without a mask would otherwise outvote one that has some: its optimiser takes steps as long as any other's
    along a gradient that is a hundredth of it. A coordinator believes no count above the images that were drawn.
    """
    return min(1.0, weight / of_labelled) if of_labelled > 0 else float(weight > 0)


def segmented(recogniser: nn.Module, image_BCHW: Tensor) -> Recognition:
    """Masks with the features that made them; through the bridge, with the saliency of this very forward."""
    if getattr(recogniser, "bridge", None) is None:
        recognition: Recognition = recogniser(image_BCHW)
        return recognition
    seen_BCHW = image_BCHW if image_BCHW.requires_grad else image_BCHW.detach().requires_grad_()
    encoding = recogniser.encode(seen_BCHW)  # type: ignore[operator]
    saliency_B1HW = saliency_from_graph(encoding.diagnosis_logits_BN.float(), seen_BCHW)
    through_bridge: Recognition = recogniser.decode(encoding, seen_BCHW, saliency_B1HW)  # type: ignore[operator]
    return through_bridge


@dataclass(frozen=True, slots=True, eq=False)
class Unlabelled:
    """The term of images without a mask, and how many of them it learns from; both 0-dim."""

    loss: Tensor
    images: Tensor


def unlabelled_masks(
    recogniser: nn.Module,
    with_mask_BKHW: Tensor,
    without_BKHW: Tensor,
    unmasked_BCHW: Tensor,
    part: Batch,
    learn: LearnConfig,
    maps: MeanMaps,
) -> Unlabelled | None:
    """The term of images without a mask; None where this site cannot compute it."""
    every = without_BKHW.new_tensor(float(len(without_BKHW)))
    if not len(without_BKHW):
        return None
    match learn.mask_ssl:
        case "none":
            return None
        case "consistency":
            return pixel_consistency(recogniser, without_BKHW.detach(), unmasked_BCHW, part, learn.threshold)
        case "prior" | "federated":
            of_masks_KHW = with_mask_BKHW.detach().mean(0) if len(with_mask_BKHW) else None
            joined = maps.joined(of_masks_KHW, without_BKHW.mean(0), learn.prior_decay)
            if joined.labelled_KHW is None:  # no mask here, and nobody else's mean map yet
                return None
            assert joined.unlabelled_KHW is not None
            return Unlabelled(divergence(joined.labelled_KHW, joined.unlabelled_KHW), every)
        case "pairwise" | "official0":
            pairs = min(len(with_mask_BKHW), len(without_BKHW))
            if not pairs:
                return None
            first, second = with_mask_BKHW[:pairs], without_BKHW[:pairs]
            if learn.mask_ssl == "official0":
                return Unlabelled(official_divergence(first[:, 1:2], second[:, 1:2]), 0 * every)
            of_pairs = [divergence(p.detach(), q) for p, q in zip(first, second, strict=True)]
            return Unlabelled(torch.stack(of_pairs).mean(), every)


def divergence(of_KHW: Tensor, from_KHW: Tensor) -> Tensor:
    """KL(of || from) of two maps of class probabilities, the mean over pixels."""
    p_KHW, q_KHW = (map_KHW.clamp(min=SMALLEST_PROBABILITY) for map_KHW in (of_KHW, from_KHW))
    return (p_KHW * (p_KHW.log() - q_KHW.log())).sum(0).mean()


def official_divergence(of_B1HW: Tensor, from_B1HW: Tensor) -> Tensor:
    """As released: both maps through a softmax over their one channel, which is 1 everywhere."""
    of_log_B1HW, from_log_B1HW = of_B1HW.log_softmax(1), from_B1HW.log_softmax(1)
    loss: Tensor = (of_log_B1HW.exp() * (of_log_B1HW - from_log_B1HW)).mean()
    return loss


def pixel_consistency(
    recogniser: nn.Module, weak_BKHW: Tensor, unmasked_BCHW: Tensor, part: Batch, threshold: float
) -> Unlabelled:
    """Cross-entropy on the strong view of what is confident on the weak one, over all pixels of the image."""
    strong = part.strong[: len(weak_BKHW)]
    said = segmented(recogniser, strengthened(unmasked_BCHW, strong))
    assert said.mask_logits_BKHW is not None
    confidence_BHW, codes_BHW = weak_BKHW.max(1)
    codes_BHW, seen_BHW = moved(codes_BHW, strong)
    confident_BHW, _ = moved((confidence_BHW >= threshold).long(), strong)
    entropy_BHW = F.cross_entropy(said.mask_logits_BKHW.float(), codes_BHW, reduction="none")
    learnt_BHW = confident_BHW.bool() & seen_BHW
    return Unlabelled((entropy_BHW * learnt_BHW).mean(), learnt_BHW.flatten(1).any(1).sum().float())


# ---------------------------------------------------------------------------------------------------- classification


def classification(
    recogniser: nn.Module, image_BCHW: Tensor, part: Batch, share: Share, learn: LearnConfig
) -> tuple[Tensor, dict[str, Tensor], Recognition]:
    """CE on the diagnosed stream, and lambda times that on pseudo-labels of the undiagnosed one."""
    streams = part.streams
    assert streams is not None
    diagnosed_BCHW, weak_BCHW = torch.split(image_BCHW, [streams.diagnosed, streams.undiagnosed])
    pseudo_B, accepted_B = pseudo_labels(recogniser, weak_BCHW, learn.threshold)
    strong_BCHW = weak_BCHW  # of no image, none
    if streams.undiagnosed:
        strong_BCHW = strengthened(weak_BCHW, part.strong[len(part.strong) - streams.undiagnosed :])
    encoded = diagnosis_of(recogniser, torch.cat([diagnosed_BCHW, strong_BCHW]))
    assert encoded.diagnosis_logits_BN is not None
    said_BN, strong_BN = torch.split(encoded.diagnosis_logits_BN.float(), [streams.diagnosed, streams.undiagnosed])

    diagnosis_B = part.diagnosis_B[streams.segmented : streams.segmented + streams.diagnosed]
    labelled = F.cross_entropy(said_BN, diagnosis_B, reduction="sum") / share.labelled.diagnoses
    # Divided by all that were offered: a batch with nothing accepted adds 0, with a gradient of 0.
    pseudo = (F.cross_entropy(strong_BN, pseudo_B, reduction="none") * accepted_B).sum() / share.labelled.undiagnosed
    loss = labelled + learn.diagnosis_ssl_weight * pseudo
    taken_N = F.one_hot(pseudo_B, said_BN.shape[1])[accepted_B].sum(0)
    sums = {
        "loss_diagnosis": labelled.detach(),
        "loss_diagnosis_ssl": pseudo.detach(),
        "offered": loss.new_tensor(float(streams.undiagnosed)),
        "accepted_N": taken_N.float(),
        "diagnosis_images": streams.diagnosed + taken_N.sum() * counts_as(learn.diagnosis_ssl_weight, 1.0),
    }
    return loss, sums, encoded


@torch.no_grad()
def pseudo_labels(recogniser: nn.Module, weak_BCHW: Tensor, threshold: float) -> tuple[Tensor, Tensor]:
    """The most probable diagnosis of each weak view, and whether its probability reaches the threshold."""
    if not len(weak_BCHW):
        return weak_BCHW.new_zeros(0, dtype=torch.int64), weak_BCHW.new_zeros(0, dtype=torch.bool)
    logits_BN = diagnosis_of(recogniser, weak_BCHW).diagnosis_logits_BN
    assert logits_BN is not None
    probability_B, code_B = logits_BN.float().softmax(1).max(1)
    return code_B, probability_B >= threshold


def diagnosis_of(recogniser: nn.Module, image_BCHW: Tensor) -> Recognition:
    """The diagnosis without a decoder, where the recogniser has its encoder apart; features are the encoder's."""
    if not hasattr(recogniser, "encode"):
        recognition: Recognition = recogniser(image_BCHW)
        return recognition
    encoding = recogniser.encode(image_BCHW)  # type: ignore[operator]
    return Recognition(None, encoding.diagnosis_logits_BN, [encoding.deepest_BCHW], encoding.skips)
