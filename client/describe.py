"""A campaign in words, for the person who has to say yes or no to it: what is learned from which data, what leaves."""

from __future__ import annotations

from client.generators import built_generator
from shared.config import CampaignConfig, campaign_digest
from shared.weights import ENHANCER

_DEGRADED = {
    "gaussian": "Gaussian noise added by us",
    "poisson": "Poisson noise added by us",
    "blur": "blur added by us",
    "composite": "noise and blur added by us",
    "downsample": "resolution lowered by us",
    "kspace": "k-space lines left out by us",
    "low_dose": "low dose simulated by us",
    "pairs": "the site's own pairs of degraded and clean studies",
    "none": "not degraded",
}


def describe(campaign: CampaignConfig) -> tuple[tuple[str, str], ...]:
    """Rows of (question, answer); builds the networks once to say how much leaves."""
    if campaign.generate.on and not campaign.augment.generated:
        return (*_agreement(campaign), *_generator(campaign), _CARD)
    generator = _generator(campaign) if campaign.generate.on else ()
    return (*_agreement(campaign), *generator, *_training(campaign), _CARD)


_CARD = (
    "leaves once",
    "counts: patients, series, slices, masks, patients per diagnosis and per split; version; "
    "number and digest of the last entry of this site's audit log",
)


def _agreement(campaign: CampaignConfig) -> tuple[tuple[str, str], ...]:
    modalities = " and ".join(campaign.data.ingest.modalities)
    return (
        ("campaign", f"{campaign.name} (digest {campaign_digest(campaign)})"),
        ("reads", f"{modalities} images of this site's de-identified store; no other file"),
    )


def _generator(campaign: CampaignConfig) -> tuple[tuple[str, str], ...]:
    """What a shared generator takes from this site and leaves at it."""
    from shared.generate.networks import TRAINED, parts_arrays

    generator, lengths, leaves = built_generator(campaign), [], []
    for phase in campaign.generate.phases:
        here = campaign.in_phase(phase)
        lengths.append(f"{phase} {here.rounds.rounds} rounds of {here.training.local_steps} steps")
        arrays = parts_arrays(generator, TRAINED[phase])
        leaves.append(f"{phase} {sum(array.nbytes for array in arrays.values()) / 1e6:.1f} MB")
    prompts = "" if campaign.generate.text == "none" else ", and from modality, body part and diagnosis"
    drawn = (
        f"{campaign.generate.draw.variants} synthetic images per training image with a mask, drawn here, marked as "
        "such, checked against this site's training images and used for training alone"
        if campaign.augment.generated
        else "synthetic images are drawn only where this site asks for them (wardround-site generate)"
    )
    return (
        ("learns first" if campaign.augment.generated else "learns",
         f"to draw images like those of all sites from edges and outlines{prompts} ({campaign.generate.kind})"),
        ("in phases", "; ".join(lengths)),
        ("leaves, each round of a phase",
         f"differences of the weights that it trains ({'; '.join(leaves)} as float32); losses, samples, seconds; per "
         "metric (reconstruction, denoising loss, spread of latents) the count, sum, sum of squares and quantiles"),
        ("stays at every site",
         "the finished generator: it has learned from this site's images, and could repeat one that it learned by "
         "heart; each site checks what it draws against its own images, not against those of others"),
        ("stays here", drawn),
    )  # fmt: skip


def _training(campaign: CampaignConfig) -> tuple[tuple[str, str], ...]:
    from shared.networks import build_networks
    from shared.weights import to_arrays

    arrays = to_arrays(build_networks(campaign))
    megabytes = sum(array.nbytes for array in arrays.values()) / 1e6
    apart = ""
    if campaign.strategy.promotion != "none":
        halves = sum(array.nbytes / 2 for name, array in arrays.items() if name.startswith(ENHANCER)) / 1e6
        apart = f"which part of the enhancer's differences recognition caused ({halves:.1f} MB as float16), "
    parts = ", ".join(f"{part}.*" for part in sorted({name.split(".")[0] for name in arrays}))
    return (
        ("learns", _learns(campaign)),
        ("how long", f"{campaign.rounds.rounds} rounds of {campaign.training.local_steps} steps on this machine"),
        (
            "leaves, each round",
            f"differences of {len(arrays)} weight arrays ({parts}; {megabytes:.1f} MB as float32), {apart}"
            f"{_mean_map(campaign)}never an image, an identifier or a file name",
        ),
        (
            "leaves beside it",
            f"{_trained(campaign)}; per metric (psnr_db, ssim, rmse, dice, jaccard, precision, recall, "
            "mask_ssim, accuracy, f1, auc) the count, sum, sum of squares and five quantiles over this site's images "
            "or patients",
        ),
        ("leaves at the end", _acceptance(campaign)),
    )


def _acceptance(campaign: CampaignConfig) -> str:
    """What client/acceptance.py measures."""
    enhancer = (
        "what enhancement gains, what it costs clean images (PSNR, Dice, accuracy), how many lesions it erases and "
        "invents, "
    )
    return (
        "for a release's acceptance gates and data sheet, over this site's test patients, the count, sum and sum of "
        f"squares of: {enhancer if campaign.enhance.kind != 'none' else ''}calibration of the diagnosis in bins of its "
        "probability, how images look (mean, contrast, noise, sharpness ...); of a class, lesions, a bin or looks "
        "never of fewer than 3 patients"
    )


def _learns(campaign: CampaignConfig) -> str:
    degraded, learn = _DEGRADED[campaign.degrade.kind], campaign.learn
    if campaign.enhance.kind == "none":
        what = f"to recognise {_labels(campaign)} in images ({degraded})"
    else:
        what = f"to enhance images ({degraded}) and to recognise {_labels(campaign)}"
    without = learn.pseudo_labels or learn.mask_ssl != "none"
    return f"{what}; from this site's images without labels, too" if without else what


def _mean_map(campaign: CampaignConfig) -> str:
    if not campaign.masks or campaign.learn.mask_ssl != "federated":
        return ""
    return (
        "where masks lie on average over this site's patients with a mask (prior.*: one map per class, the same in "
        f"every round, only from {campaign.learn.prior_patients} patients on), "
    )


def _trained(campaign: CampaignConfig) -> str:
    if campaign.privacy.on:  # shared/leaving.py: losses tell of images, and no noise covers them
        return "the learning rate, the noise and the expected number of images, none of which depends on images"
    return (
        "training means (losses, share of open gates, samples, seconds) and how many images trained each part of the "
        f"networks{_beside(campaign)}"
    )


def _beside(campaign: CampaignConfig) -> str:
    learn = campaign.learn
    pseudo = ", how many pseudo-labels were offered, and accepted for each diagnosis" if learn.pseudo_labels else ""
    return pseudo + (", the rank of the features" if learn.streams or campaign.selfreg.on else "")


def _labels(campaign: CampaignConfig) -> str:
    masks = f"masks ({', '.join(campaign.masks)})" if campaign.masks else ""
    diagnoses = f"diagnoses ({', '.join(campaign.diagnoses)})" if campaign.diagnoses else ""
    return " and ".join(filter(None, (masks, diagnoses)))
