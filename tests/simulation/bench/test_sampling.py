"""The rival draws with the same networks, by the same sampler, the images that ours draws."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from client.dataset import Slices
from shared.config import GenerateConfig, MachineConfig, RecogniserConfig
from shared.config.generation import DrawConfig
from shared.generate.networks import Generator, build_generator
from shared.generate.sampling import sample
from shared.recognise.networks import build_recogniser
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
    hint = torch.rand(2, 4, 24, 32, generator=torch.Generator().manual_seed(1))
    token, seeds = torch.tensor([[2, 2, 2], [2, 2, 3]]), [4, 5]
    theirs = sampling.inferred(generator, hint, token, seeds, 4, 3.0)
    draw = DrawConfig(sampler="ddim", steps=4, guidance=3.0)
    ours = sample(generator, hint, token, draw, "noise", seeds, machine=MACHINE)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)
    assert theirs.std() > 0.01


def test_a_case_draws_as_many_images_on_both_sides_and_tells_their_distances(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = torch.Generator().manual_seed(0)
    held = Slices(
        clean_NCHW=torch.rand(5, 1, 64, 56, generator=rng),
        mask_NHW=torch.randint(4, (5, 64, 56), generator=rng).byte(),
        has_mask_N=torch.ones(5, dtype=torch.bool),
        diagnosis_N=torch.tensor([0, 1, 2, 0, 1]),
        patient_N=torch.arange(5),
        identity=tuple("abcde"),
        acquired=(("MR", "BRAIN"),) * 5,
    )
    monkeypatch.setattr(sampling, "IMAGES", 5)
    monkeypatch.setattr(sampling, "BATCH", 3)
    monkeypatch.setattr(sampling, "RIVAL_STEPS", 2)
    monkeypatch.setattr(
        sampling.generators, "trained", lambda prediction, _: build_generator(sampling.generators.campaign(prediction))
    )
    judge = build_recogniser(RecogniserConfig(kind="unet", channels=4, depth=2), 1, 3, 3, 0)
    case = sampling._case("velocity", held, held, judge)
    assert {"bench", "case", "ours", "rival", "ratio", "target", "holds"} <= case.keys()
    assert case["ours_distance"] > 0
    assert case["rival_distance"] > 0
    assert case["ratio"] == pytest.approx(case["ours"] / case["rival"])
