"""Gradient inversion: what a coordinator that sees a site's update can draw of the image behind it, and what it cannot.

    python -m simulation.inversion OUT [image=24 channels=16 components=12 generations=120 seed=0 epsilon=8]

A hospital takes one step of local training on one slice of the simulated phantom, by the site's own program. The
attacker holds the weights that went out, what came back, and the campaign; that is all that any coordinator holds. It
looks for the image whose gradient points where the update does (Zhu et al. 2019; directions and not lengths, Geiping et
al. 2020, for the length depends on clipping; array by array), among the images that such a slice can look like: a mean
and the principal components of 400 other simulated patients, in place of the generator of Jeon et al. 2021. The
diagnosis is read from the signs of the last bias (Zhao et al. 2020). The search is CMA-ES (Hansen 2016), which needs no
derivative: ReLUs switch, and gradients of gradients do not see it.

    nothing    the mean of the 400: what the attacker draws without any update
    best       the image's own projection onto the components: no attack on this space can do better
    visible    secagg=visible_updates
    masked     secagg=masked: the mean of three sites, from the sum of their integers, which is all that is opened
    site       privacy=site: clipped and noised at the site (client/privacy.py), and seen alone
    patient    privacy=patient: clipped and noised in the step (client/train/private.py)

Tried first, and without success here: the pixels themselves by second derivatives (Adam, L-BFGS, from noise, and from
the mean of other images), and Levenberg-Marquardt on the components. Image size, components and search were then chosen
by the visible case of seed 0; the other cases took no part.

PSNR in dB against the true image. A figure of one small network, one image and one step: more images in a step, more
steps and larger networks make the attack harder, and a better attacker makes it easier. That it fails here is no proof;
the bound of differential privacy is one.

Zhu et al.: https://arxiv.org/abs/1906.08935. Zhao et al.: https://arxiv.org/abs/2001.02610. Geiping et al.:
https://arxiv.org/abs/2003.14053. Jeon et al.: https://arxiv.org/abs/2110.14962. Hansen: https://arxiv.org/abs/1604.00772.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

from client.dataset import Slices
from client.privacy import site_noised
from client.train.local import train_round
from client.train.private import train_private
from shared.config import (
    CampaignConfig,
    DataConfig,
    DegradeConfig,
    EnhancerConfig,
    IngestConfig,
    IntensityConfig,
    MachineConfig,
    ObjectiveConfig,
    PrivacyConfig,
    RecogniserConfig,
    RoundsConfig,
    SplitConfig,
    StrategyConfig,
    TrainingConfig,
)
from shared.errors import ConfigError, WardroundError
from shared.networks import Networks, build_networks
from shared.privacy.accountant import least_multiplier
from shared.privacy.plan import one_round
from shared.seeding import numpy_generator
from shared.types import Arrays
from shared.weights import difference, to_arrays
from simulation.hospitals.phantom import draw_body, paint

Floats = npt.NDArray[np.float64]
FIELD_OF_VIEW_MM = 320.0
OTHERS = 400
"""Simulated patients that the attacker knows: none of them is attacked."""
MACHINE = MachineConfig(device="cpu", threads=1, channels_last=False)
SITES = 3
NOTHING = 1e-4
POPULATION = 24
FIRST_STEP = 0.7
"""Of CMA-ES, in standard deviations of the prior."""
PRIOR_WEIGHT = 1e-5
CASES = ("nothing", "best", "visible", "masked", "site", "patient")


@dataclass(frozen=True, kw_only=True, slots=True)
class Setting:
    """What is typed after OUT."""

    image: int = 24
    """Rows and columns."""
    channels: int = 16
    components: int = 12
    generations: int = 120
    seed: int = 0
    epsilon: float = 8.0
    """Of the whole campaign, here of one round (delta 1e-5)."""


@dataclass(frozen=True, slots=True, eq=False)
class Prior:
    """What the attacker knows of such images: mean_D and components_KD, of length one standard deviation each."""

    mean_D: Floats
    components_KD: Floats

    def image(self, place_K: Floats) -> Floats:
        return self.mean_D + place_K @ self.components_KD

    def projected(self, image_D: Floats) -> Floats:
        squared_K = np.square(self.components_KD).sum(axis=1)
        return self.image(self.components_KD @ (image_D - self.mean_D) / squared_K)


def campaign_of(setting: Setting) -> CampaignConfig:
    """One round of one step on one image, by the smallest recogniser of diagnoses: two convolutions and a head."""
    return CampaignConfig(
        name="inversion",
        seed=setting.seed,
        data=DataConfig(
            kind="phantom",
            ingest=IngestConfig(modalities=("CT",), intensity=IntensityConfig(rule="window", low=-160, high=240)),
            diagnoses=("none", "lesion"),
            image_size=(setting.image, setting.image),
            split=SplitConfig(),
        ),
        degrade=DegradeConfig(kind="none"),
        enhance=EnhancerConfig(kind="none"),
        recognise=RecogniserConfig(kind="cnn", channels=setting.channels),
        objective=ObjectiveConfig(kind="plain"),
        training=TrainingConfig(
            batch_size=1, local_steps=1, optimiser="sgd", learning_rate=1e-2, augment=False, weight_decay=0.0
        ),
        strategy=StrategyConfig(kind="fedavg", weight_by="equal"),
        rounds=RoundsConfig(rounds=1, quorum=SITES),
    )


# ------------------------------------------------------------------------------------------------------------- images


def phantom(setting: Setting, number: int) -> Floats:
    """One axial slice of simulated patient `number`, flat, on the scale [0, 1]; odd ones have lesions."""
    rng = numpy_generator(setting.seed, "inversion", "patient", number)
    body = draw_body(rng, 60.0, diseased=number % 2 == 1)
    pixel_mm = FIELD_OF_VIEW_MM / setting.image
    axis = ((np.arange(setting.image) - (setting.image - 1) / 2) * pixel_mm).astype(np.float32)
    y, x = np.meshgrid(axis, axis, indexing="ij")
    image_hu, _ = paint(body, np.stack([x, y, np.zeros_like(x)])[:, None], pixel_mm)
    scaled: Floats = np.clip((image_hu[0].astype(np.float64) + 160) / 400, 0, 1)
    return scaled.reshape(-1)


def prior_of(setting: Setting) -> Prior:
    """From patients SITES to SITES + OTHERS: the first ones are those of the hospitals."""
    images_ND = np.stack([phantom(setting, SITES + number) for number in range(OTHERS)])
    mean_D = images_ND.mean(axis=0)
    _, scales, directions_KD = np.linalg.svd(images_ND - mean_D, full_matrices=False)
    kept = setting.components
    components_KD = directions_KD[:kept] * (scales[:kept, None] / OTHERS**0.5)
    components_KD[np.abs(components_KD) < NOTHING] = 0.0  # air stays air: at 0 a ReLU switches
    return Prior(mean_D, components_KD)


def slices_of(image_D: Floats, setting: Setting, diagnosis: int) -> Slices:
    """A training split of one image of one patient."""
    size = setting.image
    image_1CHW = torch.from_numpy(image_D.reshape(1, 1, size, size)).float()
    return Slices(
        clean_NCHW=image_1CHW,
        mask_NHW=torch.zeros(1, size, size, dtype=torch.uint8),
        has_mask_N=torch.zeros(1, dtype=torch.bool),
        diagnosis_N=torch.tensor([diagnosis]),
        patient_N=torch.zeros(1, dtype=torch.int64),
        identity=("site/series/0",),
    )


# ------------------------------------------------------------------------------------------------- what the sites send


def update_of(setting: Setting, site: int, campaign: CampaignConfig) -> Arrays:
    """What site `site` learns in one step on its one patient."""
    networks = build_networks(campaign)
    before = to_arrays(networks)
    slices = slices_of(phantom(setting, site), setting, site % 2)
    if campaign.privacy.kind == "patient":
        multiplier = _multiplier(campaign)
        train_private(networks, slices, campaign, MACHINE, site=f"site-{site}", round=1, steps=1, multiplier=multiplier)
        return difference(to_arrays(networks), before)
    train_round(networks, slices, campaign, MACHINE, site=f"site-{site}", round=1, steps=1)
    learned = difference(to_arrays(networks), before)
    return site_noised(learned, campaign, _multiplier(campaign)) if campaign.privacy.kind == "site" else learned


def _multiplier(campaign: CampaignConfig) -> float:
    """The least noise that keeps the campaign's epsilon over its one round."""
    one = one_round(campaign, 1, multiplier=1.0)
    privacy = campaign.privacy
    found = least_multiplier(privacy.epsilon, privacy.delta, rate=one.rate, steps=one.steps)
    assert found is not None
    return found


def summed(updates: Sequence[Arrays], campaign: CampaignConfig) -> Arrays:
    """The mean that secure aggregation opens: of the sum of integers, in which the masks have cancelled."""
    from shared.secagg.fixed_point import grid_for, mean, quantise

    grid = grid_for(campaign.secagg.range, len(updates))
    weights = dict.fromkeys(updates[0], 1)
    total = sum((quantise(update, weights, grid) for update in updates[1:]), quantise(updates[0], weights, grid))
    shapes = {name: values.shape for name, values in updates[0].items()}
    return mean(total % np.uint64(2**40), shapes, dict.fromkeys(shapes, len(updates)), grid)


def updates_seen(setting: Setting) -> dict[str, Arrays]:
    """By case, what the coordinator sees of site 1, which has a lesion."""
    plain = campaign_of(setting)
    privacy = PrivacyConfig(kind="site", epsilon=setting.epsilon, clip_norm=1e-2)
    patient = PrivacyConfig(kind="patient", epsilon=setting.epsilon, patients=1.0, slices=1)
    return {
        "visible": update_of(setting, 1, plain),
        "masked": summed([update_of(setting, site, plain) for site in range(SITES)], plain),
        "site": update_of(setting, 1, replace(plain, privacy=privacy)),
        "patient": update_of(setting, 1, replace(plain, privacy=patient)),
    }


# ------------------------------------------------------------------------------------------------------------- attack


def inverted(update: Arrays, prior: Prior, setting: Setting) -> Floats:
    """The image whose gradient points most nearly against `update`."""
    networks = build_networks(campaign_of(setting))
    moved = {name: -values for name, values in update.items() if np.any(values)}
    target_P = _directions(moved)
    diagnosis = int(np.argmax(update["recogniser.diagnosis_head.bias"]))

    def error(place_K: Floats) -> float:
        found_P = _directions(_gradient(networks, np.clip(prior.image(place_K), 0, 1), diagnosis, setting, moved))
        return float(np.square(found_P - target_P).sum()) / 2 + PRIOR_WEIGHT * float(place_K @ place_K)

    rng = numpy_generator(setting.seed, "inversion", "search")
    place_K = searched(error, setting.components, setting.generations, rng)
    return np.clip(prior.image(place_K), 0, 1)


def searched(error: Callable[[Floats], float], size: int, generations: int, rng: np.random.Generator) -> Floats:
    """CMA-ES from 0 (Hansen 2016, figure 6, with its default settings): the mean of the last generation."""
    parents = POPULATION // 2
    weights = np.log(parents + 0.5) - np.log(np.arange(1, parents + 1))
    weights /= weights.sum()
    effective = 1 / float(np.square(weights).sum())
    c_path = (4 + effective / size) / (size + 4 + 2 * effective / size)
    c_sigma = (effective + 2) / (size + effective + 5)
    c_one = 2 / ((size + 1.3) ** 2 + effective)
    c_mu = min(1 - c_one, 2 * (effective - 2 + 1 / effective) / ((size + 2) ** 2 + effective))
    damping = 1 + 2 * max(0.0, ((effective - 1) / (size + 1)) ** 0.5 - 1) + c_sigma
    expected = size**0.5 * (1 - 1 / (4 * size) + 1 / (21 * size**2))
    mean_K, path_K, path_sigma_K = np.zeros(size), np.zeros(size), np.zeros(size)
    covariance_KK, sigma = np.eye(size), FIRST_STEP
    for generation in range(generations):
        squares_K, axes_KK = np.linalg.eigh(covariance_KK)
        lengths_K = np.sqrt(np.maximum(squares_K, 1e-20))
        steps_PK = (rng.normal(size=(POPULATION, size)) * lengths_K) @ axes_KK.T
        best = np.argsort([error(mean_K + sigma * step_K) for step_K in steps_PK])[:parents]
        step_K = weights @ steps_PK[best]
        mean_K = mean_K + sigma * step_K
        whitened_K = axes_KK @ ((axes_KK.T @ step_K) / lengths_K)
        path_sigma_K = (1 - c_sigma) * path_sigma_K + (c_sigma * (2 - c_sigma) * effective) ** 0.5 * whitened_K
        length = float(np.linalg.norm(path_sigma_K))
        slow = length / (1 - (1 - c_sigma) ** (2 * (generation + 1))) ** 0.5 < (1.4 + 2 / (size + 1)) * expected
        path_K = (1 - c_path) * path_K + slow * (c_path * (2 - c_path) * effective) ** 0.5 * step_K
        covariance_KK = (1 - c_one - c_mu) * covariance_KK + c_one * np.outer(path_K, path_K)
        covariance_KK += c_mu * (steps_PK[best].T * weights) @ steps_PK[best]
        sigma *= float(np.exp(c_sigma / damping * (length / expected - 1)))
    return mean_K


def _gradient(
    networks: Networks, image_D: Floats, diagnosis: int, setting: Setting, wanted: Mapping[str, Any]
) -> dict[str, npt.NDArray[np.float32]]:
    """Of the recognition loss on the image, for the arrays that are `wanted`."""
    image_1CHW = torch.from_numpy(image_D.reshape(1, 1, setting.image, setting.image)).float()
    logits_BN: Tensor = networks.recogniser(image_1CHW).diagnosis_logits_BN
    names, weights = zip(*networks.recogniser.named_parameters(), strict=True)
    found = torch.autograd.grad(F.cross_entropy(logits_BN, torch.tensor([diagnosis])), weights)
    arrays = {f"recogniser.{name}": values.numpy() for name, values in zip(names, found, strict=True)}
    return {name: arrays[name] for name in wanted if name in arrays}


def _directions(arrays: Mapping[str, npt.NDArray[Any]]) -> Floats:
    """Every array at length 1, one after the other by name."""
    flat = [arrays[name].reshape(-1).astype(np.float64) for name in sorted(arrays)]
    return np.concatenate([values / max(float(np.linalg.norm(values)), 1e-30) for values in flat])


def psnr_db(image_D: Floats, truth_D: Floats) -> float:
    return float(-10 * np.log10(max(float(np.square(image_D - truth_D).mean()), 1e-12)))


def attack(setting: Setting) -> tuple[dict[str, float], dict[str, Floats]]:
    """PSNR in dB by case, and the images that were drawn; `truth` is the patient's."""
    truth_D, prior = phantom(setting, 1), prior_of(setting)
    images = {"truth": truth_D, "nothing": prior.mean_D, "best": np.clip(prior.projected(truth_D), 0, 1)}
    for case, update in updates_seen(setting).items():
        images[case] = inverted(update, prior, setting)
    return {case: psnr_db(images[case], truth_D) for case in CASES}, images


# ------------------------------------------------------------------------------------------------------------ command


def picture(images: Mapping[str, Floats], figures: Mapping[str, float], setting: Setting, path: Path) -> None:
    """The true image and what was drawn in each case, side by side."""
    from matplotlib.figure import Figure

    words = {
        "truth": "the patient", "nothing": "attacker's guess\nwithout an update", "best": "the best it could draw",
        "visible": "visible update", "masked": f"masked sum\nof {SITES} sites",
        "site": f"noise on the update\nepsilon {setting.epsilon:g}",
        "patient": f"noise in the step\nepsilon {setting.epsilon:g}",
    }  # fmt: skip
    drawing = Figure(figsize=(2.0 * len(words), 2.7), layout="constrained", facecolor="white")
    for place, (case, text) in enumerate(words.items(), start=1):
        axes = drawing.add_subplot(1, len(words), place)
        axes.imshow(images[case].reshape(setting.image, setting.image), cmap="gray", vmin=0, vmax=1)
        axes.set_axis_off()
        axes.set_title(text + (f"\n{figures[case]:.1f} dB" if case in figures else ""), fontsize=9)
    drawing.savefig(path, dpi=130, metadata={"Software": None})


def setting_of(words: Sequence[str]) -> Setting:
    """KEY=VALUE words; ConfigError for one that is not known or no number."""
    values: dict[str, Any] = {}
    kinds = {"image": int, "channels": int, "components": int, "generations": int, "seed": int, "epsilon": float}
    for word in words:
        key, _, text = word.partition("=")
        if key not in kinds:
            raise ConfigError(f"expected KEY=VALUE with one of {', '.join(kinds)}, got {word!r}")
        try:
            values[key] = kinds[key](text)
        except ValueError:
            raise ConfigError(f"{key} must be a number, got {text!r}") from None
        if values[key] <= 0 and key != "seed":
            raise ConfigError(f"{key} must be above 0, got {text!r}")
    return Setting(**values)


def main(argv: Sequence[str] | None = None) -> int:
    """Write inversion.json and inversion.png into OUT and print the figures."""
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in ("-h", "--help"):
        print(__doc__)
        return 0 if words else 2
    try:
        setting = setting_of(words[1:])
        torch.set_num_threads(1)
        figures, images = attack(setting)
    except WardroundError as error:
        print(f"inversion: {error}", file=sys.stderr)
        return error.exit_code
    out = Path(words[0])
    out.mkdir(parents=True, exist_ok=True)
    (out / "inversion.json").write_text(json.dumps({"psnr_db": figures}, indent=1) + "\n")
    picture(images, figures, setting, out / "inversion.png")
    for case, value in figures.items():
        print(f"{case:10s} {value:6.2f} dB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
