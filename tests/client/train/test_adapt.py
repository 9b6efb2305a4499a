"""What each method moves, what steers it, and that noise towards noise finds the clean image."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from client.dataset import Slices
from client.train import adapt as adapting
from client.train import gates, gradprom, tgd
from client.train.adapt import (
    adapt,
    adapt_online,
    judging,
    memory_gradient_D,
    pseudo_labelled,
    rehearsed,
    twice_acquired,
)
from shared.batch import Batch
from shared.config import CampaignConfig, DegradeConfig, EnhancerConfig, MachineConfig, PersonaliseConfig, TGDConfig
from shared.enhance.kernels import wiring
from shared.errors import ConfigError, DataError, RefusedError
from shared.networks import Networks, build_networks
from shared.reference import Reference
from shared.weights import to_arrays
from tests.client.slices import disc_slices

FAST: dict[str, Any] = {"steps": 3, "batch_size": 4, "learning_rate": 1e-3}


@pytest.fixture(scope="module")
def slices() -> Slices:
    return disc_slices(8, side=16)


def with_enhancer(campaign: CampaignConfig, kind: str, **changes: Any) -> CampaignConfig:
    return replace(campaign, enhance=EnhancerConfig(kind=kind, channels=4, depth=2, **changes))  # type: ignore[arg-type]


def released(campaign: CampaignConfig) -> Networks:
    """Away from the start, as after a federation."""
    networks = build_networks(campaign)
    rng = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in networks.enhancer.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=rng))
    return networks


def moved(before: nn.Module, after: nn.Module) -> set[str]:
    old = dict(before.named_parameters())
    return {name for name, value in after.named_parameters() if not torch.equal(old[name], value)}


def equal(one: Networks, other: Networks) -> bool:
    first, second = to_arrays(one), to_arrays(other)
    return all(first[name].tobytes() == second[name].tobytes() for name in first)


@pytest.mark.parametrize("steer", ["none", "joint", "gradprom"])
def test_finetune_moves_every_weight_and_never_the_recogniser(
    campaign: CampaignConfig, machine: MachineConfig, slices: Slices, steer: str
) -> None:
    networks = released(campaign)
    kept = copy.deepcopy(networks.enhancer)
    config = PersonaliseConfig(method="finetune", steer=steer, **FAST)  # type: ignore[arg-type]
    steps: list[tuple[int, int]] = []
    adapted, record = adapt(networks, slices, campaign, config, machine, on_step=lambda *at: steps.append(at))
    assert moved(kept, networks.enhancer) == set(), "the release itself stays"
    assert moved(networks.enhancer, adapted.enhancer) == set(dict(kept.named_parameters()))
    assert moved(networks.recogniser, adapted.recogniser) == set()
    assert record["trained_share"] == 1
    assert steps == [(1, 3), (2, 3), (3, 3)]
    assert ("gate_open_rate" in record) is (steer != "none")
    assert all(parameter.requires_grad for parameter in adapted.enhancer.parameters())


def test_none_is_a_copy(campaign: CampaignConfig, machine: MachineConfig, slices: Slices) -> None:
    networks = released(campaign)
    adapted, record = adapt(networks, slices, campaign, PersonaliseConfig(method="none"), machine)
    assert equal(networks, adapted)
    assert adapted.enhancer is not networks.enhancer
    assert record["steps"] == 0


def test_fedbn_moves_the_norms_alone(campaign: CampaignConfig, machine: MachineConfig, slices: Slices) -> None:
    campaign = with_enhancer(campaign, "unet")
    networks = released(campaign)
    adapted, _ = adapt(networks, slices, campaign, PersonaliseConfig(method="fedbn", **FAST), machine)
    norms = {f"{name}.{part}" for name in ("down.0.1", "middle.1", "up.0.1") for part in ("weight", "bias")}
    assert moved(networks.enhancer, adapted.enhancer) == norms


def test_fedbn_of_a_network_without_norms_is_refused(
    campaign: CampaignConfig, machine: MachineConfig, slices: Slices
) -> None:
    with pytest.raises(ConfigError, match="enhance=cnn3 has none"):
        adapt(released(campaign), slices, campaign, PersonaliseConfig(method="fedbn", **FAST), machine)


@pytest.mark.parametrize(
    ("kind", "blocks", "expected"),
    [
        ("cnn3", 1, {"body.2", "body.4"}),
        ("unet", 1, {"up.0.0", "up.0.1", "correction"}),
        ("unet", 2, {"narrow.0", "up.0.0", "up.0.1", "correction"}),
        ("srresnet", 1, {"gather.0", "gather.1", "correction"}),
        ("todnet", 1, {"decode.0", "residual"}),
        ("cnn3", 99, {"body.0", "body.2", "body.4"}),
    ],
)
def test_lastblocks_moves_the_end_alone(
    campaign: CampaignConfig, machine: MachineConfig, slices: Slices, kind: str, blocks: int, expected: set[str]
) -> None:
    campaign = with_enhancer(campaign, kind)
    networks = released(campaign)
    config = PersonaliseConfig(method="lastblocks", blocks=blocks, **FAST)
    adapted, _ = adapt(networks, slices, campaign, config, machine)
    assert {name.rpartition(".")[0] for name in moved(networks.enhancer, adapted.enhancer)} == expected


@pytest.mark.parametrize("form", ["activation", "weight"])
@pytest.mark.parametrize("kind", ["cnn3", "unet", "srresnet", "todnet"])
def test_tgd_moves_redundant_kernels_and_no_other_bit(
    campaign: CampaignConfig, machine: MachineConfig, slices: Slices, kind: str, form: str
) -> None:
    campaign = with_enhancer(campaign, kind)
    networks = released(campaign)
    config = PersonaliseConfig(method="tgd", tgd=TGDConfig(phi=0.5, form=form), steer="gradprom", **FAST)  # type: ignore[arg-type]
    adapted, record = adapt(networks, slices, campaign, config, machine)
    wired = wiring(networks.enhancer, 1)
    masks = tgd.masks_of(wired, tgd.group_scores_G(networks.enhancer, wired, 5), 0.5)
    free = tgd.retrained(networks.enhancer, masks)
    assert tgd.touched(networks.enhancer, adapted.enhancer, free) == []
    assert moved(networks.enhancer, adapted.enhancer)
    assert record["trained_share"] == pytest.approx(tgd.share(free))
    assert record["phi"] == 0.5
    assert not any(module._forward_hooks for module in adapted.enhancer.modules())


def test_without_a_phi_the_dropping_test_picks_it_on_the_reference_images(
    campaign: CampaignConfig, machine: MachineConfig, slices: Slices
) -> None:
    networks = released(campaign)
    generous = PersonaliseConfig(method="tgd", tgd=TGDConfig(drop_db=100, phis=(0.3, 0.5)), **FAST)
    _, record = adapt(networks, slices, campaign, generous, machine)
    assert record["phi"] == 0.5
    assert [row["phi"] for row in record["dropping"]] == [0.3, 0.5]
    blank = torch.zeros(2, 1, 16, 16)
    reference = replace(slices, clean_NCHW=blank + 0.9, degraded_NCHW=blank)
    _, other = adapt(networks, slices, campaign, generous, machine, reference=reference)
    assert other["dropping"] != record["dropping"]


def test_an_enhancer_that_needs_all_its_kernels_is_refused(
    campaign: CampaignConfig, machine: MachineConfig, slices: Slices
) -> None:
    networks = released(campaign)
    with torch.no_grad():
        reference = replace(slices, degraded_NCHW=slices.clean_NCHW, clean_NCHW=networks.enhancer(slices.clean_NCHW))
    config = PersonaliseConfig(method="tgd", tgd=TGDConfig(drop_db=0.0), **FAST)
    with pytest.raises(RefusedError, match="no redundant kernels"):
        adapt(networks, slices, campaign, config, machine, reference=reference)


def test_the_same_seed_gives_the_same_weights_to_the_bit(
    campaign: CampaignConfig, machine: MachineConfig, slices: Slices
) -> None:
    networks = released(campaign)
    for loss in ("clean", "noise2noise"):
        config = PersonaliseConfig(method="finetune", loss=loss, **FAST)  # type: ignore[arg-type]
        one, two = (adapt(networks, slices, campaign, config, machine)[0] for _ in range(2))
        assert equal(one, two)
        assert not equal(one, adapt(networks, slices, campaign, replace(config, seed=1), machine)[0])


def test_a_closed_gate_leaves_what_steer_none_does_bit_for_bit(
    campaign: CampaignConfig, machine: MachineConfig, slices: Slices, monkeypatch: pytest.MonkeyPatch
) -> None:
    networks = released(campaign)
    config = PersonaliseConfig(method="tgd", tgd=TGDConfig(phi=0.5), **FAST)
    plain, _ = adapt(networks, slices, campaign, config, machine)
    steered, record = adapt(networks, slices, campaign, replace(config, steer="gradprom", task_weight=5.0), machine)
    assert record["gate_open_rate"] > 0
    assert not equal(plain, steered)
    monkeypatch.setattr(gates, "_agree", lambda dots: torch.zeros_like(dots, dtype=torch.bool))
    closed, record = adapt(networks, slices, campaign, replace(config, steer="gradprom", task_weight=5.0), machine)
    assert record["gate_open_rate"] == 0
    assert equal(plain, closed)


# ------------------------------------------------------------------------------------------- two acquisitions


def test_two_draws_differ_and_the_images_of_a_pair_take_turns(campaign: CampaignConfig) -> None:
    clean = torch.full((16, 1, 8, 8), 0.5)
    zeros = torch.zeros(16, 8, 8, dtype=torch.long)
    labels = torch.zeros(16, dtype=torch.bool), torch.full((16,), -1)
    batch = Batch(clean + 0.1, clean, zeros, *labels)
    drawn = twice_acquired(batch, campaign, torch.Generator().manual_seed(0))
    assert torch.equal(drawn.degraded_BCHW, batch.degraded_BCHW)
    assert float((drawn.clean_BCHW - clean).std()) == pytest.approx(0.1, rel=0.1)
    pairs = replace(campaign, degrade=DegradeConfig(kind="pairs"))
    turned = twice_acquired(batch, pairs, torch.Generator().manual_seed(0))
    swapped = turned.degraded_BCHW[:, 0, 0, 0] == 0.5
    assert 0 < int(swapped.sum()) < 16
    torch.testing.assert_close(turned.degraded_BCHW + turned.clean_BCHW, batch.degraded_BCHW + batch.clean_BCHW)


def test_what_draws_nothing_has_no_second_acquisition(
    campaign: CampaignConfig, machine: MachineConfig, slices: Slices
) -> None:
    blurred = replace(campaign, degrade=DegradeConfig(kind="blur"))
    with pytest.raises(ConfigError, match="degrade=blur draws nothing"):
        adapt(released(blurred), slices, blurred, PersonaliseConfig(loss="noise2noise", **FAST), machine)


def noisy(clean: Tensor, seed: int) -> Tensor:
    return (clean + 0.1 * torch.randn(clean.shape, generator=torch.Generator().manual_seed(seed))).clamp(0, 1)


def test_noise_towards_noise_finds_the_clean_image(campaign: CampaignConfig, machine: MachineConfig) -> None:
    """Flat discs: what two acquisitions share is the clean image, and a mean over neighbours is nearer to it."""
    campaign = replace(campaign, training=replace(campaign.training, augment=False))
    clean = 0.3 + disc_slices(16, side=16).clean_NCHW * 0.8
    first, second = noisy(clean, 0), noisy(clean, 1)
    networks = build_networks(campaign)  # the identity
    config = PersonaliseConfig(method="finetune", steps=150, batch_size=8, learning_rate=5e-3)
    adapted, record = adapt_online(networks, first, second, campaign, config, machine)
    with torch.no_grad():
        before, after = ((network.enhancer(first) - clean).square().mean() for network in (networks, adapted))
    assert float(after) < 0.5 * float(before)
    assert record["loss_end"] > 0.009, "the loss keeps the second acquisition's own noise, 0.01"


# ------------------------------------------------------------------------------------------- one study


def test_online_takes_the_published_phi_and_leaves_the_release(
    campaign: CampaignConfig, machine: MachineConfig
) -> None:
    clean = disc_slices(4, side=16).clean_NCHW
    networks = released(campaign)
    kept = to_arrays(networks)
    config = PersonaliseConfig(method="tgd", steer="gradprom", labels="pseudo", **FAST)
    adapted, record = adapt_online(networks, noisy(clean, 0), noisy(clean, 1), campaign, config, machine)
    assert record["phi"] == adapting.ONLINE_PHI == 0.4
    assert all(values.tobytes() == to_arrays(networks)[name].tobytes() for name, values in kept.items())
    assert moved(networks.enhancer, adapted.enhancer)
    given = replace(config, tgd=TGDConfig(phi=0.7))
    assert adapt_online(networks, noisy(clean, 0), noisy(clean, 1), campaign, given, machine)[1]["phi"] == 0.7


def test_online_refuses_what_are_no_two_acquisitions(campaign: CampaignConfig, machine: MachineConfig) -> None:
    clean = disc_slices(4, side=16).clean_NCHW
    networks, config = released(campaign), PersonaliseConfig(method="finetune", **FAST)
    with pytest.raises(DataError, match="the first one again"):
        adapt_online(networks, clean, clean.clone(), campaign, config, machine)
    with pytest.raises(DataError, match="same slices and size"):
        adapt_online(networks, clean, clean[:2], campaign, config, machine)
    steered = replace(config, steer="gradprom")
    with pytest.raises(ConfigError, match="labels=pseudo"):
        adapt_online(networks, noisy(clean, 0), noisy(clean, 1), campaign, steered, machine)


def test_pseudo_labels_are_what_the_release_says_and_one_diagnosis_a_patient(
    campaign: CampaignConfig, machine: MachineConfig
) -> None:
    slices = disc_slices(6, side=16, per_patient=3)
    networks = released(campaign)
    unlabelled = replace(slices, has_mask_N=torch.zeros(6, dtype=torch.bool), diagnosis_N=torch.full((6,), -1))
    said = pseudo_labelled(networks, unlabelled, campaign, machine, "clean")
    with torch.no_grad():
        recognition = networks.recogniser.eval()(slices.clean_NCHW)
    assert recognition.mask_logits_BKHW is not None
    assert recognition.diagnosis_logits_BN is not None
    assert torch.equal(said.mask_NHW.long(), recognition.mask_logits_BKHW.argmax(1))
    assert bool(said.has_mask_N.all())
    of_patient = recognition.diagnosis_logits_BN.double().softmax(1).view(2, 3, -1).mean(1).argmax(1)
    assert torch.equal(said.diagnosis_N, of_patient.repeat_interleave(3))


def test_a_release_without_an_enhancer_has_nothing_to_adapt(
    campaign: CampaignConfig, machine: MachineConfig, slices: Slices
) -> None:
    plain = replace(
        campaign,
        enhance=EnhancerConfig(kind="none"),
        objective=replace(campaign.objective, kind="plain"),
    )
    with pytest.raises(ConfigError, match="no enhancer"):
        adapt(build_networks(plain), slices, plain, PersonaliseConfig(**FAST), machine)


# ------------------------------------------------------------------------------------------- rehearsal


def reference_of(slices: Slices, gain: float) -> Reference:
    """Another scanner's images: what it shows is `gain` times as bright, without noise."""
    clean_NCHW = slices.clean_NCHW.float()
    has_mask_N = torch.zeros(len(slices), dtype=torch.uint8)
    return Reference(clean_NCHW, clean_NCHW * gain, torch.zeros_like(slices.mask_NHW), has_mask_N)


def test_images_that_are_rehearsed_do_not_decide(slices: Slices) -> None:
    reference = reference_of(slices, 0.5)
    degraded_NCHW, clean_NCHW = rehearsed(reference)
    rest = reference.clean_NCHW[judging(len(reference))]
    assert len(clean_NCHW) + len(rest) == len(reference)
    assert torch.equal(torch.stack([clean_NCHW, rest], dim=1).flatten(0, 1), reference.clean_NCHW)
    assert torch.equal(degraded_NCHW, clean_NCHW * 0.5)


def test_rehearsal_of_weight_0_is_none_and_needs_no_reference(
    campaign: CampaignConfig, machine: MachineConfig, slices: Slices
) -> None:
    networks, config = released(campaign), PersonaliseConfig(method="finetune", **FAST)
    plain, _ = adapt(networks, slices, campaign, config, machine)
    beside, _ = adapt(networks, slices, campaign, config, machine, reference=reference_of(slices, 0.5))
    assert equal(plain, beside)
    with pytest.raises(ConfigError, match="two reference images"):
        adapt(networks, slices, campaign, replace(config, rehearse=1.0), machine)


def test_the_rehearsed_gradient_is_that_of_the_loss_on_the_drawn_images(
    campaign: CampaignConfig, machine: MachineConfig, slices: Slices
) -> None:
    networks, config = released(campaign), PersonaliseConfig(method="finetune", **FAST)
    remembered = rehearsed(reference_of(slices, 0.5))
    found_D = memory_gradient_D(networks, remembered, campaign, config, machine, torch.Generator().manual_seed(5))
    chosen_B = torch.randint(len(remembered[0]), (config.batch_size,), generator=torch.Generator().manual_seed(5))
    loss = gradprom.fidelity(campaign)(networks.enhancer(remembered[0][chosen_B]), remembered[1][chosen_B])
    loss.backward()  # type: ignore[no-untyped-call]
    expected_D = torch.cat([weights.grad.reshape(-1) for weights in networks.enhancer.parameters()])  # type: ignore[union-attr]
    torch.testing.assert_close(found_D, expected_D, rtol=1e-4, atol=1e-7)


def test_what_is_rehearsed_is_forgotten_less(campaign: CampaignConfig, machine: MachineConfig, slices: Slices) -> None:
    reference = reference_of(slices, 0.5)
    networks = released(campaign)
    config = PersonaliseConfig(method="finetune", steps=60, batch_size=4, learning_rate=3e-3)
    judged = judging(len(reference))

    def loss(adapted: Networks) -> float:
        with torch.no_grad():
            error_NCHW = adapted.enhancer(reference.degraded_NCHW[judged]) - reference.clean_NCHW[judged]
        return float(error_NCHW.square().mean())

    without, _ = adapt(networks, slices, campaign, config, machine, reference=reference)
    within, _ = adapt(networks, slices, campaign, replace(config, rehearse=1.0), machine, reference=reference)
    assert loss(within) < 0.75 * loss(without)


@pytest.mark.parametrize("form", ["activation", "weight"])
def test_rehearsal_moves_no_protected_kernel(
    campaign: CampaignConfig, machine: MachineConfig, slices: Slices, form: str
) -> None:
    networks = released(campaign)
    asked = TGDConfig(phi=0.6, form=form)  # type: ignore[arg-type]
    config = PersonaliseConfig(method="tgd", rehearse=1.0, tgd=asked, **FAST)
    adapted, _ = adapt(networks, slices, campaign, config, machine, reference=reference_of(slices, 0.5))
    wired = wiring(networks.enhancer, campaign.data.channels)
    masks = tgd.masks_of(wired, tgd.group_scores_G(networks.enhancer, wired, 5), 0.6, "masked")
    assert not tgd.touched(networks.enhancer, adapted.enhancer, tgd.retrained(networks.enhancer, masks))
