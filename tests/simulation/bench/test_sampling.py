"""The rival draws with the same networks, by the same sampler, the images that ours draws."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from shared.config import GenerateConfig, MachineConfig
from shared.config.generation import DrawConfig
from shared.generate.networks import Generator, build_generator
from shared.generate.sampling import sample
from simulation.bench import sampling, steps

MACHINE = MachineConfig(device="cpu", threads=1, channels_last=False)


@pytest.fixture(scope="module")
def generator() -> Generator:
    plain = steps.campaign()
    made = build_generator(
        replace(
            plain,
            data=replace(plain.data, image_size=(24, 32), diagnoses=("none", "lesion")),
            generate=GenerateConfig(kind="emit-diff"),
        )
    )
    rng = torch.Generator().manual_seed(3)
    with torch.no_grad():
        made.latents.scale.fill_(0.7)
        for part in (made.denoiser, made.controlnet):
            for weight in part.parameters():
                weight.add_(0.03 * torch.randn(weight.shape, generator=rng))
    return made


def test_monais_inferer_draws_our_images_of_ddim(generator: Generator) -> None:
    hint = torch.rand(2, 2, 24, 32, generator=torch.Generator().manual_seed(1))
    token, seeds = torch.tensor([[2, 2, 2], [2, 2, 3]]), [4, 5]
    theirs = sampling.inferred(generator, hint, token, seeds, 4, 3.0)
    draw = DrawConfig(sampler="ddim", steps=4, guidance=3.0)
    ours = sample(generator, hint, token, draw, "noise", seeds, machine=MACHINE)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)
    assert theirs.std() > 0.01
