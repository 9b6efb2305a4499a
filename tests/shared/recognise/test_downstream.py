from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from shared.config import CampaignConfig, RecogniserConfig
from shared.errors import ConfigError
from shared.recognise.losses import mask_loss_B
from shared.recognise.networks import build_recogniser

KINDS = ("vnet", "resunet", "voxresnet", "attention-unet", "multimix")
ROOT = Path(__file__).parents[3]


def network(kind: str, *, masks: int = 2, diagnoses: int = 3, seed: int = 0, **own: float) -> nn.Module:
    config = RecogniserConfig(kind=kind, **{"channels": 8, "depth": 3, **own})  # type: ignore[arg-type]
    return build_recogniser(config, 1, masks, diagnoses, seed)


def images(count: int = 2, channels: int = 1, size: tuple[int, int] = (32, 24)) -> Tensor:
    return torch.rand(count, channels, *size, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("depth", [2, 3, 4])
@pytest.mark.parametrize("kind", KINDS)
def test_heads_have_the_campaigns_classes_and_the_images_size(kind: str, depth: int) -> None:
    recognition = network(kind, depth=depth)(images())
    assert recognition.mask_logits_BKHW.shape == (2, 3, 32, 24)
    assert recognition.diagnosis_logits_BN.shape == (2, 3)
    sizes = [tuple(feature.shape[-2:]) for feature in recognition.features]
    assert sizes == [(32 // 2**level, 24 // 2**level) for level in reversed(range(depth))]


@pytest.mark.parametrize("kind", KINDS)
def test_without_masks_there_is_no_decoder(kind: str) -> None:
    recogniser = network(kind, masks=0)
    recognition = recogniser(images())
    assert recognition.mask_logits_BKHW is None
    assert recognition.diagnosis_logits_BN.shape == (2, 3)
    assert len(recognition.features) == 1
    recognition.diagnosis_logits_BN.square().sum().backward()
    assert not [name for name, weight in recogniser.named_parameters() if weight.grad is None]


@pytest.mark.parametrize("kind", KINDS)
def test_without_diagnoses_there_is_no_class_head(kind: str) -> None:
    recogniser = network(kind, diagnoses=0)
    recognition = recogniser(images())
    assert recognition.diagnosis_logits_BN is None
    recognition.mask_logits_BKHW.square().sum().backward()
    assert not [name for name, weight in recogniser.named_parameters() if weight.grad is None]


@pytest.mark.parametrize("kind", KINDS)
def test_colour_is_taken(kind: str) -> None:
    config = RecogniserConfig(kind=kind, channels=12, depth=2)  # type: ignore[arg-type]
    recognition = build_recogniser(config, 3, 1, 0, seed=0)(images(channels=3))
    assert recognition.mask_logits_BKHW.shape == (2, 2, 32, 24)


@pytest.mark.parametrize("kind", KINDS)
def test_weights_follow_the_seed_and_no_global_generator_moves(kind: str) -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state()
    first, again, other = network(kind), network(kind), network(kind, seed=1)
    assert torch.equal(torch.get_rng_state(), before)
    weights = [nn.utils.parameters_to_vector(found.parameters()) for found in (first, again, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


@pytest.mark.parametrize("kind", KINDS)
def test_every_image_is_treated_alone_so_micro_batches_are_exact(kind: str) -> None:
    recogniser, batch = network(kind), images(3)
    whole = recogniser(batch)
    louder = recogniser(batch * torch.tensor([1.0, 5.0, 9.0]).view(3, 1, 1, 1))
    torch.testing.assert_close(whole.mask_logits_BKHW[:1], louder.mask_logits_BKHW[:1])
    torch.testing.assert_close(whole.diagnosis_logits_BN[:1], louder.diagnosis_logits_BN[:1])


@pytest.mark.parametrize("kind", KINDS)
def test_the_gradient_of_each_head_reaches_the_image(kind: str) -> None:
    recogniser = network(kind)
    for head in ("mask_logits_BKHW", "diagnosis_logits_BN"):
        batch = images().requires_grad_(True)
        said = getattr(recogniser(batch), head)
        (gradient,) = torch.autograd.grad(said.float().softmax(1)[:, 0].sum(), batch)
        assert torch.isfinite(gradient).all()
        assert float(gradient.abs().sum()) > 0


@pytest.mark.parametrize("kind", KINDS)
def test_dropout_acts_in_training_and_rests_in_evaluation(kind: str) -> None:
    recogniser, batch = network(kind, dropout=0.5), images()
    recogniser.train()
    assert not torch.equal(recogniser(batch).mask_logits_BKHW, recogniser(batch).mask_logits_BKHW)
    assert not torch.equal(recogniser(batch).diagnosis_logits_BN, recogniser(batch).diagnosis_logits_BN)
    recogniser.eval()
    first, again = recogniser(batch), recogniser(batch)
    assert torch.equal(first.mask_logits_BKHW, again.mask_logits_BKHW)
    assert torch.equal(first.diagnosis_logits_BN, again.diagnosis_logits_BN)


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_but_weights_travels(kind: str) -> None:
    recogniser = network(kind)
    assert all(tensor.is_floating_point() for tensor in recogniser.state_dict().values())
    assert not list(recogniser.buffers()), "running statistics would have to be averaged between sites"
    assert not [module for module in recogniser.modules() if isinstance(module, nn.BatchNorm2d)]


@pytest.mark.parametrize("kind", KINDS)
def test_it_learns_to_outline_discs(kind: str) -> None:
    rng = torch.Generator().manual_seed(0)
    rows, columns = torch.meshgrid(torch.arange(32), torch.arange(32), indexing="ij")
    centres = torch.randint(10, 22, (8, 2), generator=rng)
    radii = torch.randint(4, 9, (8,), generator=rng)
    distance = (rows - centres[:, 0, None, None]) ** 2 + (columns - centres[:, 1, None, None]) ** 2
    mask_BHW = (distance <= radii[:, None, None] ** 2).long()
    image_BCHW = (0.5 * mask_BHW[:, None] + 0.2 + 0.1 * torch.randn(8, 1, 32, 32, generator=rng)).clamp(0, 1)
    recogniser = network(kind, masks=1, diagnoses=0)
    optimiser = torch.optim.Adam(recogniser.parameters(), lr=5e-3)
    losses = []
    for _ in range(31):
        loss = mask_loss_B(recogniser(image_BCHW).mask_logits_BKHW, mask_BHW).mean()
        losses.append(float(loss.detach()))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert losses[-1] < losses[0] / 2, losses


@pytest.mark.parametrize("kind", KINDS)
def test_sizes_that_cannot_be_halved_are_refused(kind: str, campaign: CampaignConfig) -> None:
    data = dataclasses.replace(campaign.data, image_size=(40, 64))
    recognise = RecogniserConfig(kind=kind, channels=8, depth=5)  # type: ignore[arg-type]
    enhance = dataclasses.replace(campaign.enhance, depth=2)
    with pytest.raises(ConfigError, match=r"recognise.depth=5 .* divisible by 16, got \(40, 64\)"):
        dataclasses.replace(campaign, data=data, recognise=recognise, enhance=enhance)
    with pytest.raises(ConfigError, match="recognise.depth must be 2 or more"):
        RecogniserConfig(kind=kind, depth=1)  # type: ignore[arg-type]


def test_vnet_refuses_channels_that_it_cannot_add_the_image_to(campaign: CampaignConfig) -> None:
    with pytest.raises(ConfigError, match="divisible by 2, got 7"):
        dataclasses.replace(campaign, recognise=RecogniserConfig(kind="vnet", channels=7, depth=2))


@pytest.mark.parametrize(("kind", "wanted"), [("unet", "False"), ("voxresnet", "False"), ("vnet", "True")])
def test_monai_is_imported_by_those_that_are_built_of_it(kind: str, wanted: str) -> None:
    code = (
        "import sys; from shared.config import RecogniserConfig as Config\n"
        "from shared.recognise.networks import build_recogniser\n"
        f"build_recogniser(Config(kind={kind!r}, channels=4, depth=2), 1, 1, 0, 0); print('monai' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == wanted
