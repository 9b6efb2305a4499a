"""The MultiMix step against its released scheme; cases out.

    ours    client/train/multimix.py: encoder and decoder on the segmentation streams, saliency from that forward by a
            backward to the image alone; the encoder alone on diagnosed and strong views, and without a graph on weak
    rival   the scheme of the released code, written anew: all five streams in one batch; an encoder forward of its own
            with a full backward for their saliency, which fills every parameter's .grad to throw it away; then encoder
            and decoder on all five, and one backward

Five streams of STREAM images (four, and the strong view of the fourth), the same networks, losses, clipping and
optimiser: only the scheme differs, and the loss is the same number. Haque, Imran, Wang, Terzopoulos.
https://arxiv.org/abs/2010.14731. Networks and step: simulation/bench/recognisers.py; clock: simulation/bench/steps.py.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from client.train.multimix import MeanMaps, divergence, multimix
from shared.batch import Batch, Streams
from shared.config import CampaignConfig, LearnConfig, RecogniserConfig
from shared.images.augment import draw_strong, strengthened
from shared.recognise.losses import mask_loss_B
from shared.seeding import generator
from simulation.bench import Case, recognisers, steps
from simulation.bench.recognisers import STREAM, Recogniser

TARGET = 0.55
REPETITIONS = 10
NETWORKS = {
    "multimix": RecogniserConfig(kind="multimix", channels=16, depth=5, dropout=0.25),  # as published
    "unet": RecogniserConfig(kind="unet"),
}
LEARN = LearnConfig(kind="multimix", saliency=True, pseudo_labels=True, mask_ssl="prior")


def batch(seed: int = 0) -> Batch:
    """STREAM images of each stream, with the labels of that stream alone."""
    clean_BCHW, mask_BHW = recognisers.images(4 * STREAM, seed)
    stream_B = torch.arange(4 * STREAM) // STREAM
    rng = generator(seed, "bench", "strong")
    return Batch(
        clean_BCHW,
        clean_BCHW,
        torch.where((stream_B == 0)[:, None, None], mask_BHW, 0),
        stream_B == 0,
        torch.where(stream_B == 2, torch.arange(4 * STREAM) % 2, -1),
        streams=Streams(STREAM, STREAM, STREAM, STREAM),
        strong=tuple(draw_strong(rng) for _ in range(STREAM)),
    ).to(torch.device("cpu"), channels_last=recognisers.MACHINE.channels_last)


def discarded_saliency(recogniser: nn.Module, image_BCHW: Tensor) -> Tensor:
    """saliency_B1HW with an encoder forward of its own; on the way every parameter gets a gradient that nobody reads.

    As released without dropout.
    """
    recogniser.eval()
    seen_BCHW = image_BCHW.detach().clone().requires_grad_()
    scores_BN = recogniser.encode(seen_BCHW).diagnosis_logits_BN  # type: ignore[operator]
    torch.autograd.backward(scores_BN.amax(1).sum())
    recogniser.zero_grad()
    recogniser.train()
    assert seen_BCHW.grad is not None
    return seen_BCHW.grad.abs().amax(1, keepdim=True)


def released_loss(recogniser: nn.Module, part: Batch, learn: LearnConfig) -> Tensor:
    """The loss of the whole batch, from encoder and decoder on all five streams."""
    strong_BCHW = strengthened(part.clean_BCHW[-STREAM:], part.strong)
    image_BCHW = torch.cat([part.clean_BCHW, strong_BCHW])
    saliency_B1HW = discarded_saliency(recogniser, image_BCHW)
    encoding = recogniser.encode(image_BCHW)  # type: ignore[operator]
    said = recogniser.decode(encoding, image_BCHW, saliency_B1HW)  # type: ignore[operator]
    masked_BKHW, unmasked_BKHW, *_ = said.mask_logits_BKHW.softmax(1).split(STREAM)
    *_, diagnosed_BN, weak_BN, strong_BN = said.diagnosis_logits_BN.split(STREAM)

    labelled_masks = mask_loss_B(said.mask_logits_BKHW[:STREAM], part.mask_BHW[:STREAM]).mean()
    between_maps = divergence(masked_BKHW.detach().mean(0), unmasked_BKHW.mean(0))
    diagnosed = F.cross_entropy(diagnosed_BN, part.diagnosis_B[2 * STREAM : 3 * STREAM])
    probability_B, pseudo_B = weak_BN.detach().softmax(1).max(1)
    accepted_B = probability_B >= learn.threshold
    pseudo = (F.cross_entropy(strong_BN, pseudo_B, reduction="none") * accepted_B).mean()
    of_masks = learn.dice_weight * labelled_masks + learn.mask_ssl_weight * between_maps
    loss: Tensor = of_masks + diagnosed + learn.diagnosis_ssl_weight * pseudo
    return loss


def released_step(side: Recogniser, part: Batch) -> None:
    """The rival: a backward into .grad, clipped, the same optimiser."""
    recogniser, clip_norm = side.networks.recogniser, side.campaign.training.clip_norm
    recogniser.zero_grad()
    torch.autograd.backward(released_loss(recogniser, part, side.campaign.learn))
    assert clip_norm is not None
    nn.utils.clip_grad_norm_(recogniser.parameters(), clip_norm)
    side.optimisers.recogniser.step()


def campaign(name: str) -> CampaignConfig:
    return recognisers.campaign(NETWORKS[name], learn=LEARN)


def stepping(name: str) -> dict[str, Callable[[], None]]:
    """Both forms, each on a network of its own."""
    part, ours, rival = batch(), recognisers.built(campaign(name)), recognisers.built(campaign(name))
    return {
        "ours": lambda: recognisers.step(ours, part, multimix(ours.campaign, MeanMaps())),
        "rival": lambda: released_step(rival, part),
    }


def run() -> list[Case]:
    """One case per network."""
    with steps.one_thread():
        return [_case(name) for name in NETWORKS]


def _case(name: str) -> Case:
    times = steps.medians(stepping(name), repetitions=REPETITIONS)
    ratio = times["ours"] / times["rival"]
    return {
        "bench": "multimix-step",
        "case": name,
        **times,
        "ratio": ratio,
        "target": TARGET,
        "holds": ratio <= TARGET,
        "images_per_stream": STREAM,
        "threads": 1,
    }
