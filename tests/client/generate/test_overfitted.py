"""The guard against memorising on generators that were really trained: on 8 images for long, and on 200."""

from __future__ import annotations

from dataclasses import replace

import pytest

from client.generate.draw import draw_synthetic
from client.train.all_phases import trained_generator
from shared.config import CampaignConfig, DrawConfig, GenerateConfig, MachineConfig, PhaseConfig
from tests.client.generate.textured import textured_slices


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize(("patients", "caught"), [(8, True), (200, False)])
def test_a_generator_that_was_over_fitted_is_caught_and_one_of_many_patients_passes(
    patients: int, caught: bool, campaign: CampaignConfig, machine: MachineConfig
) -> None:
    length = PhaseConfig(rounds=1, local_steps=300, batch_size=8)
    generate = GenerateConfig(
        kind="emit-diff",
        prediction="velocity",
        ema=0.0,
        autoencoder=length,
        denoiser=length,
        controlnet=length,
        draw=DrawConfig(sampler="rflow", steps=8, variants=1),
    )
    campaign = replace(campaign, generate=generate, training=replace(campaign.training, augment=False))
    train, held_out = textured_slices(patients, seed=1), textured_slices(16, seed=7)
    generator, _ = trained_generator(campaign, train, machine, name="north")
    report = draw_synthetic(generator, train, campaign, machine, site="north", held_out=held_out).report
    assert report["refused"] is caught
    assert (report["nearness"]["membership_auc"] > 0.9) is caught
    assert (report["memorised_share"] > 0.2) is caught
