"""The WGAN main loss: what moves the critic, what moves the enhancer, and what does not."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from client.train import gradprom, todnet
from client.train.gradprom import MainLoss, Optimisers
from client.train.local import train_round
from client.train.recognise import warmup_gradients
from client.train.terms import Share
from shared.batch import Batch
from shared.blocks import built
from shared.config import CampaignConfig, EnhancerConfig, MachineConfig
from shared.enhance.critic import CLIP, build_critic
from shared.enhance.losses import enhancement_loss
from shared.enhance.todnet import TODNetGenerator
from shared.errors import ConfigError, DataError
from shared.networks import Networks, build_networks
from shared.recognise.losses import labelled, mask_loss_B, supervised_losses
from shared.recognise.recognition import Recognition
from shared.types import Arrays
from shared.weights import add, difference, load_arrays, to_arrays
from tests.client.slices import disc_slices
from tests.client.train.test_gradprom import make_batch, weights, whole, with_objective

ADVERSARIAL = ("mse-wgan", "todnet", "todnet-gated")
CONSTRAINTS = ("clip", "penalty", "spectral")


def wgan(campaign: CampaignConfig, kind: str = "todnet", constraint: str = "clip", **critic: float) -> CampaignConfig:
    published = {"adversarial_weight": 1.0, **critic}
    made = replace(campaign.objective.critic, constraint=constraint, channels=4, **published)  # type: ignore[arg-type]
    return with_objective(campaign, kind, critic=made, relative=False, task_weight=1.0)


def loss_of(networks: Networks, campaign: CampaignConfig) -> tuple[MainLoss, list[Tensor]]:
    assert networks.critic is not None
    gaps: list[Tensor] = []
    optimiser = todnet.critic_optimiser(networks.critic, campaign)
    return todnet.main_loss(networks.critic, optimiser, campaign, torch.Generator().manual_seed(0), gaps), gaps


def trained(
    campaign: CampaignConfig, machine: MachineConfig, *, site: str = "a"
) -> tuple[Networks, Mapping[str, float]]:
    networks, record = build_networks(campaign), {}
    for round in (1, 2):
        record, _ = train_round(networks, disc_slices(10), campaign, machine, site=site, round=round, steps=4)
    return networks, record


def part(arrays: Arrays, network: str) -> Arrays:
    return {name: array for name, array in arrays.items() if name.startswith(network)}


def equal(one: Arrays, other: Arrays) -> bool:
    return one.keys() == other.keys() and all(np.array_equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("constraint", CONSTRAINTS)
def test_the_loss_moves_the_critic_once_and_scores_with_what_it_became(
    campaign: CampaignConfig, constraint: str
) -> None:
    """Step by step on a second critic; RMSprop's first step is by the gradient over a tenth of its size."""
    campaign = wgan(campaign, constraint=constraint, adversarial_weight=0.7, fidelity_weight=0.3)
    networks, twin = build_networks(campaign), build_networks(campaign).critic
    assert networks.critic is not None
    assert twin is not None
    batch = make_batch(side=32)
    main_loss, gaps = loss_of(networks, campaign)
    image = batch.degraded_BCHW.clone().requires_grad_(True)
    found = main_loss(image, batch.clean_BCHW)

    gap = twin(batch.clean_BCHW).mean() - twin(batch.degraded_BCHW).mean()
    loss = -gap
    if constraint == "penalty":
        share = torch.rand(4, generator=torch.Generator().manual_seed(0)).view(4, 1, 1, 1)
        between = (share * batch.clean_BCHW + (1 - share) * batch.degraded_BCHW).requires_grad_(True)
        (slope,) = torch.autograd.grad(twin(between).sum(), between, create_graph=True)
        loss = loss + 10 * (slope.flatten(1).norm(dim=1) - 1).square().mean()
    loss.backward()
    with torch.no_grad():
        for parameter in twin.parameters():
            assert parameter.grad is not None
            parameter -= 5e-4 * parameter.grad / (0.1 * parameter.grad.abs() + 1e-8)
            if constraint == "clip":
                parameter.clamp_(-0.01, 0.01)
    for ours, theirs in zip(networks.critic.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    assert len(gaps) == 1
    torch.testing.assert_close(gaps[0], gap.detach())
    theirs = batch.degraded_BCHW.clone().requires_grad_(True)
    expected = 0.3 * F.mse_loss(theirs, batch.clean_BCHW) - 0.7 * twin(theirs).mean()
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-5)
    slopes = torch.autograd.grad(found, image)[0], torch.autograd.grad(expected, theirs)[0]
    torch.testing.assert_close(*slopes, rtol=1e-2, atol=1e-5)


def test_no_gradient_stays_at_the_critic_even_after_a_whole_backward(campaign: CampaignConfig) -> None:
    campaign = wgan(campaign)
    networks, batch = build_networks(campaign), make_batch(side=32)
    assert networks.critic is not None
    main_loss, _ = loss_of(networks, campaign)
    enhanced = networks.enhancer(batch.degraded_BCHW)
    main_loss(enhanced, batch.clean_BCHW).backward()
    assert all(parameter.grad is None and parameter.requires_grad for parameter in networks.critic.parameters())
    assert any(parameter.grad is not None for parameter in networks.enhancer.parameters())


def test_the_critic_learns_to_tell_clean_from_degraded(campaign: CampaignConfig) -> None:
    """Its estimate of the distance grows from nothing to much more, and orders images that it has not seen."""
    for constraint in CONSTRAINTS:
        campaign = wgan(campaign, constraint=constraint, learning_rate=5e-3 if constraint != "clip" else 5e-4)
        networks = build_networks(campaign)
        assert networks.critic is not None
        main_loss, gaps = loss_of(networks, campaign)
        clean = disc_batch(24)
        noisy = clean + 0.3 * torch.randn(clean.shape, generator=torch.Generator().manual_seed(0))
        for step in range(60):
            chosen = torch.arange(step * 4, step * 4 + 4) % 16
            main_loss(noisy[chosen], clean[chosen])
        early, late = torch.stack(gaps[:5]).mean(), torch.stack(gaps[-5:]).mean()
        assert float(late) > 0
        assert float(late) > 2 * abs(float(early)), (constraint, early, late)
        with torch.no_grad():
            assert float(networks.critic(clean[16:]).mean()) > float(networks.critic(noisy[16:]).mean())


def disc_batch(count: int) -> Tensor:
    y, x = torch.meshgrid(torch.linspace(-1, 1, 32), torch.linspace(-1, 1, 32), indexing="ij")
    shifts = torch.rand(count, 2, generator=torch.Generator().manual_seed(3)) - 0.5
    return torch.stack([((x - a) ** 2 + (y - b) ** 2 < 0.3).float() for a, b in shifts])[:, None]


@pytest.mark.parametrize("constraint", CONSTRAINTS)
def test_channels_last_and_bfloat16_do_not_disturb_the_critic(
    campaign: CampaignConfig, machine: MachineConfig, constraint: str
) -> None:
    campaign = wgan(campaign, constraint=constraint)
    plain = trained(campaign, machine)[1]["wasserstein"]
    for other in (replace(machine, channels_last=not machine.channels_last), replace(machine, precision="bfloat16")):
        assert trained(campaign, other)[1]["wasserstein"] == pytest.approx(plain, rel=0.1, abs=1e-3)


@pytest.mark.parametrize("warm", [False, True])
@pytest.mark.parametrize("kind", ADVERSARIAL)
def test_each_batch_runs_the_enhancer_once(campaign: CampaignConfig, kind: str, warm: bool) -> None:
    campaign = wgan(campaign, kind)
    networks, batch, runs = build_networks(campaign), make_batch(side=32), []
    networks.enhancer.register_forward_hook(lambda *_: runs.append(1))
    main_loss, gaps = loss_of(networks, campaign)
    (warmup_gradients if warm else gradprom.gradients)(networks, batch, whole(batch), campaign, main_loss)
    assert len(runs) == len(gaps) == 1


@pytest.mark.parametrize("warm", [False, True])
def test_the_main_gradient_is_that_of_the_loss_by_the_critic_that_has_moved(
    campaign: CampaignConfig, warm: bool
) -> None:
    campaign = wgan(campaign, "todnet")
    networks, batch = build_networks(campaign), make_batch(side=32)
    main_loss, _ = loss_of(networks, campaign)
    found = (warmup_gradients if warm else gradprom.gradients)(networks, batch, whole(batch), campaign, main_loss)
    assert networks.critic is not None
    enhanced = networks.enhancer(batch.degraded_BCHW)
    loss = 0.5 * enhancement_loss(enhanced, batch.clean_BCHW, "mse") - networks.critic(enhanced).mean()
    g = gradprom.flat(torch.autograd.grad(loss, list(networks.enhancer.parameters())))
    torch.testing.assert_close(found.enhance_D, g, rtol=1e-4, atol=1e-7)
    assert bool(found.task_D) is not warm


def test_without_task_weight_todnet_is_mse_wgan_to_the_bit(campaign: CampaignConfig, machine: MachineConfig) -> None:
    silent = replace(wgan(campaign, "todnet"), objective=replace(wgan(campaign, "todnet").objective, task_weight=0.0))
    todnet_arrays, mse_arrays = (to_arrays(trained(c, machine)[0]) for c in (silent, wgan(campaign, "mse-wgan")))
    assert equal(todnet_arrays, mse_arrays)
    heard = to_arrays(trained(wgan(campaign, "todnet"), machine)[0])
    assert not equal(part(heard, "enhancer"), part(mse_arrays, "enhancer"))


@pytest.mark.parametrize("kind", ADVERSARIAL)
def test_the_task_network_rests_after_the_warm_up(campaign: CampaignConfig, machine: MachineConfig, kind: str) -> None:
    campaign = wgan(campaign, kind)
    networks = build_networks(campaign)
    modes: list[bool] = []
    networks.recogniser.register_forward_hook(lambda module, *_: modes.append(module.training))
    before = to_arrays(networks)
    train_round(networks, disc_slices(10), campaign, machine, site="a", round=1, steps=4)
    warm = to_arrays(networks)
    train_round(networks, disc_slices(10), campaign, machine, site="a", round=2, steps=4)
    after = to_arrays(networks)
    assert not equal(part(before, "recogniser"), part(warm, "recogniser"))
    assert equal(part(warm, "recogniser"), part(after, "recogniser"))
    for moving in ("enhancer", "critic"):
        assert not equal(part(warm, moving), part(after, moving))
    # Warm-up: the first fifth of eight steps, on clean images. Then eval; mse-wgan does not ask it at all.
    assert modes == [True] * 2 + ([] if kind == "mse-wgan" else [False] * 6)


def test_a_round_says_how_far_the_critic_sees_the_images_apart(
    campaign: CampaignConfig, machine: MachineConfig
) -> None:
    assert np.isfinite(trained(wgan(campaign), machine)[1]["wasserstein"])
    assert "wasserstein" not in trained(with_objective(campaign, "gradprom"), machine)[1]


@pytest.mark.parametrize("constraint", CONSTRAINTS)
def test_same_inputs_give_the_same_weights_to_the_bit(
    campaign: CampaignConfig, machine: MachineConfig, constraint: str
) -> None:
    campaign = wgan(campaign, constraint=constraint)
    one = to_arrays(trained(campaign, machine)[0])
    torch.manual_seed(11)
    torch.rand(3)
    assert equal(one, to_arrays(trained(campaign, machine)[0]))
    assert not equal(part(one, "critic"), part(to_arrays(trained(campaign, machine, site="b")[0]), "critic"))


def test_the_average_of_sites_keeps_the_clip(campaign: CampaignConfig, machine: MachineConfig) -> None:
    campaign = wgan(campaign)
    networks = build_networks(campaign)
    old = to_arrays(networks)
    ends = [to_arrays(trained(campaign, machine, site=site)[0]) for site in ("a", "b", "c")]
    changes = [difference(end, old) for end in ends]
    mean = {name: sum(np.float32(1 / 3) * change[name] for change in changes) for name in old}
    new = add(old, mean)  # type: ignore[arg-type]
    load_arrays(networks, new)
    largest = {name: float(np.abs(array).max()) for name, array in part(new, "critic").items()}
    assert largest
    assert max(largest.values()) <= CLIP * (1 + 1e-5)


@pytest.mark.parametrize("kind", ["plain", "joint", "gradprom", "estr", *ADVERSARIAL, "vgg-wgan"])
def test_an_enhancer_is_the_same_network_whatever_its_objective(campaign: CampaignConfig, kind: str) -> None:
    """Inference costs the same: the same layers with the same first weights, and nothing of the critic in them."""
    campaign = replace(campaign, enhance=EnhancerConfig(kind="todnet", channels=4, depth=2))
    plain = build_networks(with_objective(campaign, "frozen"))
    other = build_networks(
        with_objective(campaign, kind, vgg_weights="vgg19.safetensors" if kind == "vgg-wgan" else None)
    )
    assert repr(other.enhancer) == repr(plain.enhancer)
    assert equal(part(to_arrays(other), "enhancer"), part(to_arrays(plain), "enhancer"))
    assert sum(p.numel() for p in other.enhancer.parameters()) == sum(p.numel() for p in plain.enhancer.parameters())
    assert (other.critic is not None) is (kind in ADVERSARIAL or kind == "vgg-wgan")


def test_vgg_wgan_follows_the_distance_of_features(campaign: CampaignConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """With 16 small convolutions in place of VGG-19's, whose file no machine need hold."""
    from shared.enhance import perceptual

    monkeypatch.setattr(perceptual, "WIDTHS", ((4, 4), (4, 4), (4,) * 4, (4,) * 4, (4,) * 4))
    rng = torch.Generator().manual_seed(0)
    vgg = perceptual.VGG19(
        tuple(
            (0.4 * torch.randn(4, channels, 3, 3, generator=rng), torch.zeros(4))
            for channels, _ in perceptual.layer_shapes().values()
        )
    )
    monkeypatch.setattr(todnet, "load_vgg19", lambda file: vgg if file == "vgg19.safetensors" else None)
    base = wgan(campaign, adversarial_weight=0.0, fidelity_weight=2.0)
    base = with_objective(base, "vgg-wgan", vgg_weights="vgg19.safetensors")
    networks, batch = build_networks(base), make_batch(side=32)
    main_loss, gaps = loss_of(networks, base)
    image = batch.degraded_BCHW.clone().requires_grad_(True)
    expected = 2 * perceptual.perceptual_loss(vgg, batch.degraded_BCHW, batch.clean_BCHW)
    found = main_loss(image, batch.clean_BCHW)
    torch.testing.assert_close(found, expected)
    assert float(torch.autograd.grad(found, image)[0].abs().sum()) > 0
    assert len(gaps) == 1


def test_vgg_wgan_without_its_file_is_refused_before_training(
    campaign: CampaignConfig, machine: MachineConfig, tmp_path: Path
) -> None:
    campaign = with_objective(wgan(campaign), "vgg-wgan", vgg_weights=str(tmp_path / "vgg19.safetensors"))
    with pytest.raises(ConfigError, match="no file 'vgg19.safetensors' here"):
        trained(campaign, machine)


class VolumeRecogniser(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Conv3d(1, 4, 3, padding=1)
        self.head = nn.Conv3d(4, 3, 1)

    def forward(self, image: Tensor) -> Recognition:
        features = self.body(image).relu()
        return Recognition(self.head(features), None, [features])


def volumes(campaign: CampaignConfig) -> tuple[Networks, Batch]:
    config = EnhancerConfig(kind="todnet", channels=4, depth=3)
    networks = Networks(
        built(lambda: TODNetGenerator(1, config, dims=3), 0, "enhancer"),
        built(VolumeRecogniser, 0, "recogniser"),
        build_critic(campaign.objective.critic, 1, (8, 12, 12), 0),
    )
    rng = torch.Generator().manual_seed(2)
    clean = torch.rand(2, 1, 8, 12, 12, generator=rng)
    degraded = clean + 0.1 * torch.randn(clean.shape, generator=rng)
    mask = torch.randint(0, 3, (2, 8, 12, 12), generator=rng)
    flat = make_batch(size=2)
    return networks, replace(
        flat, degraded_BCHW=degraded, clean_BCHW=clean, mask_BHW=mask, has_mask_B=torch.ones(2, dtype=torch.bool)
    )


@pytest.mark.parametrize("constraint", CONSTRAINTS)
@pytest.mark.parametrize("kind", ["todnet", "todnet-gated"])
def test_the_whole_step_works_on_volumes(campaign: CampaignConfig, kind: str, constraint: str) -> None:
    """As the paper has it; against two separate backwards through the same networks."""
    campaign = wgan(campaign, kind, constraint)
    networks, batch = volumes(campaign)
    assert networks.critic is not None
    main_loss, gaps = loss_of(networks, campaign)
    optimisers = Optimisers(
        gradprom.make_optimiser(networks.enhancer, campaign), gradprom.make_optimiser(networks.recogniser, campaign)
    )
    for _ in range(2):  # in the first the enhancer is the identity, and only its end has a gradient
        before = weights(networks.enhancer), weights(networks.recogniser), weights(networks.critic)
        found = gradprom.gradients(networks, batch, whole(batch), campaign, main_loss)
        theta = list(networks.enhancer.parameters())
        enhanced = networks.enhancer(batch.degraded_BCHW)
        loss = 0.5 * F.mse_loss(enhanced, batch.clean_BCHW) - networks.critic(enhanced).mean()
        g = gradprom.flat(torch.autograd.grad(loss, theta, retain_graph=True))
        (task,) = supervised_losses(networks.recogniser(enhanced), batch, campaign.objective, labelled(batch))
        v = gradprom.flat(torch.autograd.grad(task, theta))
        torch.testing.assert_close(found.enhance_D, g, rtol=1e-3, atol=1e-6)
        torch.testing.assert_close(found.task_D[0], v, rtol=1e-3, atol=1e-6)
        gradprom.update(networks, optimisers, found, campaign)
        assert not torch.equal(weights(networks.enhancer), before[0])
        assert torch.equal(weights(networks.recogniser), before[1])
        assert not torch.equal(weights(networks.critic), before[2])
    assert len(gaps) == 2


def test_losses_of_a_flat_volume_are_those_of_its_image() -> None:
    rng = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 4, 6, 5, generator=rng)
    mask = torch.randint(0, 4, (3, 6, 5), generator=rng)
    torch.testing.assert_close(mask_loss_B(logits[:, :, None], mask[:, None]), mask_loss_B(logits, mask))
    thick = mask_loss_B(logits[:, :, None].expand(-1, -1, 2, -1, -1), mask[:, None].expand(-1, 2, -1, -1))
    assert thick.shape == (3,)


def test_micro_batches_move_the_critic_once_each(campaign: CampaignConfig) -> None:
    campaign = wgan(campaign)
    networks, batch = build_networks(campaign), make_batch(side=32)
    main_loss, gaps = loss_of(networks, campaign)
    counts = labelled(batch)
    parts = [
        gradprom.gradients(networks, micro, Share(micro.size / batch.size, counts), campaign, main_loss)
        for micro in batch.micro_batches(2)
    ]
    assert len(gaps) == len(parts) == 2
    assert all(a.enhance_D.shape == b.enhance_D.shape for a, b in itertools.pairwise(parts))


@pytest.mark.parametrize("size", [float("nan"), float("inf"), 1e30])
def test_a_spectral_critic_that_has_exploded_stops_the_training_in_words(
    campaign: CampaignConfig, machine: MachineConfig, size: float
) -> None:
    campaign = wgan(campaign, constraint="spectral")
    networks = build_networks(campaign)
    assert networks.critic is not None
    with torch.no_grad():
        next(networks.critic.parameters()).fill_(size)
    with pytest.raises(DataError, match="training stopped before its update: a loss or gradient is not finite"):
        train_round(networks, disc_slices(10), campaign, machine, site="a", round=1, steps=1)
