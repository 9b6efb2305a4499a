"""EMIT-Diff's losses against the equations written out, and against MONAI's own schedulers and forwards."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from client.train.emitdiff import (
    LOSSES,
    autoencoder_loss_B,
    controlnet_loss_B,
    denoiser_loss_B,
    edge_loss_B,
    gradients,
    trained_part,
)
from client.train.gradprom import trained
from client.train.shown import Pictures, draw_pictures, parts, randoms, size_of
from shared.config import CampaignConfig
from shared.generate.networks import TRAINED, Generator, build_generator
from shared.generate.schedule import noised
from tests.client.slices import disc_slices
from tests.client.train.diffusion import drawn, stirred, with_generator


def pictures(generator: Generator, campaign: CampaignConfig) -> Pictures:
    return draw_pictures(generator, disc_slices(6), torch.arange(6), campaign, randoms(campaign, "test"))


def test_the_autoencoders_loss_is_absolute_error_and_the_divergence_from_a_standard_normal(
    campaign: CampaignConfig,
) -> None:
    campaign = with_generator(campaign, kl_weight=0.3).in_phase("autoencoder")
    generator = stirred(build_generator(campaign))
    shown = pictures(generator, campaign)
    with torch.no_grad():
        found_B = autoencoder_loss_B(generator, campaign.generate, shown)
        mean, spread = generator.autoencoder.encode(generator.unshuffled(shown.image_BCHW))
        told = torch.distributions.Normal(mean, spread)
        divergence = torch.distributions.kl_divergence(told, torch.distributions.Normal(0.0, 1.0))
        # |x - y| of images in [-1, 1] is twice that of images in [0, 1]; 32 x 32 needs no larger canvas
        image = generator.shuffled(generator.autoencoder.decode(mean + spread * shown.noise_BCHW))
    expected_B = 2 * (image - shown.image_BCHW).abs().mean((1, 2, 3)) + 0.3 * divergence.mean((1, 2, 3))
    torch.testing.assert_close(found_B, expected_B, rtol=1e-5, atol=1e-6)


def test_the_denoisers_loss_is_that_of_monais_scheduler(campaign: CampaignConfig) -> None:
    from monai.networks.schedulers import DDPMScheduler

    campaign = with_generator(campaign, prediction="noise").in_phase("denoiser")
    generator = stirred(build_generator(campaign))
    shown = drawn(generator, campaign)
    scheduler = DDPMScheduler(1000, schedule="scaled_linear_beta", beta_start=0.00085, beta_end=0.012)
    with torch.no_grad():
        noisy = scheduler.add_noise(shown.latent_BCHW, shown.noise_BCHW, shown.time_B)
        told = generator.denoiser(noisy, shown.time_B, generator.prompts(shown.token_BW))
        found_B = denoiser_loss_B(generator, campaign.generate, shown)
    expected_B = torch.stack([F.mse_loss(one, other) for one, other in zip(told, shown.noise_BCHW, strict=True)])
    torch.testing.assert_close(found_B, expected_B, rtol=1e-4, atol=1e-5)


def test_the_velocitys_loss_is_that_of_a_straight_line(campaign: CampaignConfig) -> None:
    campaign = with_generator(campaign, prediction="velocity").in_phase("denoiser")
    generator = stirred(build_generator(campaign))
    shown = drawn(generator, campaign)
    share = (shown.time_B / 1000)[:, None, None, None]
    with torch.no_grad():
        noisy = shown.latent_BCHW + share * (shown.noise_BCHW - shown.latent_BCHW)
        told = generator.denoiser(noisy, shown.time_B, generator.prompts(shown.token_BW))
        found_B = denoiser_loss_B(generator, campaign.generate, shown)
    wrong = told - (shown.noise_BCHW - shown.latent_BCHW)
    torch.testing.assert_close(found_B, wrong.square().mean((1, 2, 3)), rtol=1e-4, atol=1e-5)


def test_the_controlnets_loss_is_that_of_monais_own_forward(campaign: CampaignConfig) -> None:
    campaign = with_generator(campaign).in_phase("controlnet")
    generator = stirred(build_generator(campaign))
    shown = drawn(generator, campaign)
    assert shown.hint_BCHW is not None
    with torch.no_grad():
        noisy, target = noised(shown.latent_BCHW, shown.noise_BCHW, shown.time_B, campaign.generate.prediction)
        context = generator.prompts(shown.token_BW)
        hint = F.pixel_unshuffle(generator.on_canvas(shown.hint_BCHW), 2)
        down, middle = generator.controlnet(noisy, shown.time_B, hint, context=context)
        told = generator.denoiser(
            noisy,
            shown.time_B,
            context,
            down_block_additional_residuals=down,
            mid_block_additional_residual=middle,
        )
        found_B = controlnet_loss_B(generator, campaign.generate, shown)
    torch.testing.assert_close(found_B, (told - target).square().mean((1, 2, 3)), rtol=1e-5, atol=1e-6)


def test_a_controlnet_that_has_learnt_nothing_leaves_the_denoisers_loss_to_the_bit(campaign: CampaignConfig) -> None:
    campaign = with_generator(campaign).in_phase("controlnet")
    generator = stirred(build_generator(campaign), "denoiser", "prompts", "autoencoder")
    shown = drawn(generator, campaign)
    with torch.no_grad():
        plain_B, steered_B = (
            LOSSES[phase](generator, campaign.generate, shown) for phase in ("denoiser", "controlnet")
        )
    assert torch.equal(plain_B, steered_B)


def test_the_edge_detectors_loss_of_images_is_that_of_their_batch(campaign: CampaignConfig) -> None:
    from shared.generate.hed import hed_loss, hed_target

    campaign = with_generator(campaign, edges="hed").in_phase("edges")
    generator = stirred(build_generator(campaign))
    shown = pictures(generator, campaign)
    assert generator.hed is not None
    with torch.no_grad():
        found_B = edge_loss_B(generator, campaign.generate, shown)
        of_batch = hed_loss(generator.hed(shown.image_BCHW), hed_target(shown.image_BCHW, shown.mask_BHW))
    torch.testing.assert_close(found_B.mean(), of_batch)


@pytest.mark.parametrize("phase", ["edges", "autoencoder", "denoiser", "controlnet"])
def test_gradients_of_parts_add_up_to_those_of_the_batch(campaign: CampaignConfig, phase: str) -> None:
    campaign = with_generator(campaign, edges="hed").in_phase(phase)  # type: ignore[arg-type]
    generator = stirred(build_generator(campaign))
    theta = trained(trained_part(generator, phase))
    shown = (pictures if phase in ("edges", "autoencoder") else drawn)(generator, campaign)
    whole = gradients(generator, theta, campaign.generate, shown, 1.0)
    split = [
        gradients(generator, theta, campaign.generate, part, size_of(part) / size_of(shown)) for part in parts(shown, 4)
    ]
    assert len(split) == 2
    total = split[0] + split[1]
    torch.testing.assert_close(total.g_D, whole.g_D, rtol=1e-3, atol=1e-6)
    torch.testing.assert_close(total.loss, whole.loss)
    assert float(whole.g_D.norm()) > 0


@pytest.mark.parametrize("phase", sorted(TRAINED))
def test_what_a_phase_does_not_train_asks_for_no_gradient(campaign: CampaignConfig, phase: str) -> None:
    generator = build_generator(with_generator(campaign, edges="hed"))
    trained_part(generator, "denoiser")  # another phase before
    trained_part(generator, phase)
    for name, network in generator.all.items():
        expected = name in TRAINED[phase]
        assert network.training is expected
        assert all(parameter.requires_grad is expected for parameter in network.parameters())
