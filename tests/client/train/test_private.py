"""privacy=patient against per-sample gradients, statistics of the noise, and neighbouring data sets."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from client.batches import drawn_batch
from client.dataset import Slices
from client.reading import taken
from client.train import gradprom, private
from client.train.private import apart, clipped_sum, draw_patients, layout_of, noised, patient_gradient, train_private
from shared.batch import Batch
from shared.config import CampaignConfig, MachineConfig, PrivacyConfig
from shared.enhance.losses import enhancement_loss
from shared.errors import ConfigError, DataError, RefusedError
from shared.networks import Networks, build_networks
from shared.privacy.parts import trained_names
from shared.recognise.losses import mask_loss_B
from shared.weights import to_arrays
from tests.client.slices import disc_slices
from tests.client.train.test_gradprom import moved_networks


@pytest.fixture
def campaign(campaign: CampaignConfig) -> CampaignConfig:
    objective = replace(campaign.objective, warmup=0.0)
    return replace(campaign, privacy=PrivacyConfig(kind="patient", patients=3, slices=2), objective=objective)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def one_batch(slices: Slices, campaign: CampaignConfig, patient: int, seed: int = 0) -> Batch:
    chosen_B = (slices.patient_N == patient).nonzero()[:, 0]
    return drawn_batch(slices, chosen_B, campaign, seeded(seed))


def per_slice(networks: Networks, batch: Batch, campaign: CampaignConfig) -> Tensor:
    """[g, v, r] of every slice by torch.func: (B, D). Losses as formulas, one slice at a time."""
    from torch.func import functional_call, grad

    def enhanced(theta: dict[str, Tensor], degraded_CHW: Tensor) -> Tensor:
        return functional_call(networks.enhancer, theta, (degraded_CHW[None],))  # type: ignore[no-any-return]

    def main(theta: dict[str, Tensor], degraded_CHW: Tensor, clean_CHW: Tensor) -> Tensor:
        return enhancement_loss(enhanced(theta, degraded_CHW), clean_CHW[None], campaign.training.enhance_loss)

    def task(
        theta: dict[str, Tensor], phi: dict[str, Tensor], degraded_CHW: Tensor, mask_HW: Tensor, diagnosis: Tensor
    ) -> Tensor:
        said = functional_call(networks.recogniser, phi, (enhanced(theta, degraded_CHW),))
        of_masks = campaign.objective.mask_weight * mask_loss_B(said.mask_logits_BKHW, mask_HW[None]).sum()
        entropy = nn.functional.cross_entropy(said.diagnosis_logits_BN, diagnosis[None])
        return of_masks + campaign.objective.diagnosis_weight * entropy

    theta, phi = (dict(network.named_parameters()) for network in (networks.enhancer, networks.recogniser))
    rows = []
    for degraded, clean, mask, diagnosis in zip(
        batch.degraded_BCHW, batch.clean_BCHW, batch.mask_BHW, batch.diagnosis_B, strict=True
    ):
        g = grad(main)(theta, degraded, clean)
        v, r = grad(task, argnums=(0, 1))(theta, phi, degraded, mask, diagnosis)
        rows.append(torch.cat([part.detach().reshape(-1) for part in (*g.values(), *v.values(), *r.values())]))
    return torch.stack(rows)


def test_a_patients_gradient_is_the_sum_of_its_slices_own_gradients(
    campaign: CampaignConfig, machine: MachineConfig
) -> None:
    slices, networks = disc_slices(6, per_patient=2), moved_networks(campaign)
    for patient in range(3):
        batch = one_batch(slices, campaign, patient)
        found_D = patient_gradient(networks, batch, campaign, machine, warm=False)
        torch.testing.assert_close(found_D, per_slice(networks, batch, campaign).sum(0), rtol=2e-4, atol=2e-5)


def test_the_sum_is_of_gradients_that_were_clipped_by_brute_force(
    campaign: CampaignConfig, machine: MachineConfig
) -> None:
    slices, networks = disc_slices(10, per_patient=2), moved_networks(campaign)
    of_patients = [per_slice(networks, one_batch(slices, campaign, p), campaign).sum(0) for p in range(5)]
    clip_norm = float(torch.stack([each.norm() for each in of_patients]).median())  # some are cut, some are not
    brute = sum(each * min(1.0, clip_norm / float(each.norm())) for each in of_patients)
    found = [
        patient_gradient(networks, one_batch(slices, campaign, p), campaign, machine, warm=False) for p in range(5)
    ]
    total_D = clipped_sum(found, clip_norm, found[0].numel())
    torch.testing.assert_close(total_D, brute, rtol=2e-4, atol=2e-5)


def test_opacus_clips_and_sums_the_same(campaign: CampaignConfig, machine: MachineConfig) -> None:
    opacus = pytest.importorskip("opacus")
    slices, networks = disc_slices(5, per_patient=1), moved_networks(campaign)
    batches = [one_batch(slices, campaign, patient) for patient in range(5)]
    clip_norm, plain = 0.02, replace(campaign, objective=replace(campaign.objective, kind="plain", warmup=0.0))
    hooked = copy.deepcopy(networks.enhancer)
    for module in hooked.modules():
        if isinstance(module, nn.ReLU):
            module.inplace = False  # its hooks cannot follow a change in place
    theirs = opacus.GradSampleModule(hooked, loss_reduction="mean")
    degraded, clean = (torch.cat([getattr(b, name) for b in batches]) for name in ("degraded_BCHW", "clean_BCHW"))
    nn.functional.mse_loss(theirs(degraded), clean).backward()
    samples_BD = torch.cat([p.grad_sample.flatten(1) for p in theirs.parameters()], dim=1)
    theirs.remove_hooks()
    per_sample_clip = (clip_norm / (samples_BD.norm(dim=1) + 1e-6)).clamp(max=1.0)
    assert bool((per_sample_clip < 1).any())
    count = sum(each.numel() for each in networks.enhancer.parameters())
    ours = [patient_gradient(networks, batch, plain, machine, warm=False)[:count] for batch in batches]
    torch.testing.assert_close(
        clipped_sum(ours, clip_norm, count), (per_sample_clip[:, None] * samples_BD).sum(0), rtol=1e-3, atol=1e-6
    )


@pytest.mark.parametrize("seed", range(4))
def test_one_patient_more_or_less_moves_the_sum_by_the_clipping_norm_at_most(
    campaign: CampaignConfig, machine: MachineConfig, seed: int
) -> None:
    slices, networks = disc_slices(12, per_patient=2, seed=seed), moved_networks(campaign)
    clip_norm = 0.05
    every = [
        patient_gradient(networks, one_batch(slices, campaign, p, seed), campaign, machine, warm=False)
        for p in range(6)
    ]
    size = every[0].numel()
    whole_D = clipped_sum(every, clip_norm, size)
    for absent in range(6):
        without_D = clipped_sum([each for p, each in enumerate(every) if p != absent], clip_norm, size)
        assert float((whole_D - without_D).norm()) <= clip_norm * (1 + 1e-5)


def test_a_patient_whose_gradient_is_huge_or_not_finite_moves_it_no_more() -> None:
    size = 50
    others = [torch.randn(size, generator=seeded(i)) for i in range(3)]
    base_D = clipped_sum(others, 1.0, size)
    for hostile_D in (
        torch.full((size,), 1e30), torch.full((size,), 3e38), torch.full((size,), float("nan")),
        torch.full((size,), float("inf")), torch.cat([torch.full((1,), -float("inf")), torch.ones(size - 1)]),
        torch.full((size,), 1e-42), torch.zeros(size),
    ):  # fmt: skip
        moved = clipped_sum([*others, hostile_D], 1.0, size) - base_D
        assert bool(torch.isfinite(moved).all())
        assert float(moved.norm()) <= 1 + 1e-5


def test_the_noise_has_the_variance_that_is_charged_for() -> None:
    std, count = 0.7, 400_000
    noise_D = noised(torch.zeros(count), std, None)  # the operating system's
    assert float(noise_D.mean()) == pytest.approx(0, abs=5 * std / count**0.5)
    assert float(noise_D.var()) == pytest.approx(std**2, rel=5 * (2 / count) ** 0.5)
    fourth = float((noise_D.double() ** 4).mean()) / std**4
    assert fourth == pytest.approx(3, rel=0.05)  # a normal's
    pairs = noise_D[:-1] @ noise_D[1:] / (count * std**2)
    assert abs(float(pairs)) < 5 / count**0.5
    assert not torch.equal(noise_D, noised(torch.zeros(count), std, None))


def test_patients_are_drawn_independently_with_the_same_chance() -> None:
    patient_N, rate, trials = torch.arange(20).repeat_interleave(3), 0.3, 2000
    counts = torch.zeros(20)
    sizes = []
    for seed in range(trials):
        drawn = list(draw_patients(patient_N, rate, 2, seeded(seed), seeded(seed + 10**6)))
        sizes.append(len(drawn))
        for chosen_B in drawn:
            assert len(chosen_B) == 2
            assert len(set(patient_N[chosen_B].tolist())) == 1
            counts[patient_N[chosen_B[0]]] += 1
    spread = (trials * rate * (1 - rate)) ** 0.5
    assert float((counts - trials * rate).abs().max()) < 5 * spread
    variance = float(torch.tensor(sizes).float().var())  # binomial: a fixed batch would have none
    assert variance == pytest.approx(20 * rate * (1 - rate), rel=0.2)
    assert 0 in [len(list(draw_patients(patient_N[:3], rate, 2, seeded(s), seeded(s)))) for s in range(20)]


def test_the_gate_sees_the_noised_parts_alone(
    campaign: CampaignConfig, machine: MachineConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[tuple[Tensor, Tensor]] = []
    made: list[Tensor] = []
    direction, noise = gradprom.direction, private.noised

    def gate(g_D: Tensor, v_TD: Sequence[Tensor], *rest: Any) -> gradprom.Direction:
        given.append((g_D, v_TD[0]))
        return direction(g_D, v_TD, *rest)

    def spied(total_D: Tensor, std: float, rng: torch.Generator | None) -> Tensor:
        made.append(noise(total_D, std, rng))
        return made[-1]

    monkeypatch.setattr(gradprom, "direction", gate)
    monkeypatch.setattr(private, "noised", spied)
    networks, slices = moved_networks(campaign), disc_slices(12, per_patient=2)
    train_private(networks, slices, campaign, machine, site="a", round=1, steps=3, multiplier=1.0, rng=seeded())
    assert len(given) == len(made) == 3
    theta = sum(each.numel() for each in networks.enhancer.parameters())
    for (g_D, v_D), noised_D in zip(given, made, strict=True):
        torch.testing.assert_close(g_D, noised_D[:theta] / 3)  # patients expected in a step
        torch.testing.assert_close(v_D, noised_D[theta : 2 * theta] / 3)
        assert float(noised_D.std()) == pytest.approx(1.0, rel=0.1)


def test_a_step_in_which_nobody_was_drawn_is_a_step_of_noise(
    campaign: CampaignConfig, machine: MachineConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(private, "draw_patients", lambda *_: iter(()))
    networks = moved_networks(campaign)
    before = to_arrays(networks)
    train_private(networks, disc_slices(8), campaign, machine, site="a", round=1, steps=1, multiplier=1.0)
    assert all((before[name] != values).any() for name, values in to_arrays(networks).items())


def test_the_same_draws_give_the_same_weights_and_the_systems_never_do(
    campaign: CampaignConfig, machine: MachineConfig
) -> None:
    def trained(rng: torch.Generator | None) -> list[Tensor]:
        networks = build_networks(campaign)
        train_private(
            networks,
            disc_slices(8, per_patient=2),
            campaign,
            machine,
            site="a",
            round=1,
            steps=2,
            multiplier=1.0,
            rng=rng,
        )
        return [torch.from_numpy(values) for values in to_arrays(networks).values()]

    first, second, own = trained(seeded()), trained(seeded()), trained(None)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(first, own, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(own, trained(None), strict=True))


def test_the_record_is_the_same_whatever_the_images_and_labels_are(
    campaign: CampaignConfig, machine: MachineConfig
) -> None:
    def record(slices: Slices) -> dict[str, float]:
        networks = build_networks(campaign)
        return dict(train_private(networks, slices, campaign, machine, site="a", round=1, steps=2, multiplier=1.5))

    slices = disc_slices(8, per_patient=2)
    bare = replace(slices, has_mask_N=torch.zeros(8, dtype=torch.bool), diagnosis_N=torch.full((8,), -1))
    expected = {
        "samples",
        "images.encoder",
        "images.decoder",
        "images.diagnosis",
        "learning_rate",
        "privacy.multiplier",
    }
    assert record(slices).keys() == expected
    assert record(slices) == record(bare) == record(taken(slices, [0, 1, 2, 3]))
    assert record(slices)["samples"] == 3 * 2 * 2


def test_only_the_named_part_moves(campaign: CampaignConfig, machine: MachineConfig) -> None:
    unet = replace(campaign, enhance=replace(campaign.enhance, kind="unet", channels=4, depth=2))
    shares = {}
    for trained in ("lastblocks", "norms"):
        part = replace(unet, privacy=replace(unet.privacy, trained=trained))  # type: ignore[arg-type]
        networks = build_networks(part)
        before, names = to_arrays(networks), trained_names(networks, part)
        channels_last = replace(machine, channels_last=True)
        train_private(networks, disc_slices(8), part, channels_last, site="a", round=1, steps=2, multiplier=1.0)
        moved = {name for name, values in to_arrays(networks).items() if (values != before[name]).any()}
        assert moved == names
        assert all(parameter.requires_grad for parameter in networks.enhancer.parameters())
        shares[trained] = sum(before[name].size for name in names) / sum(values.size for values in before.values())
    assert 0 < shares["norms"] < shares["lastblocks"] < 0.6
    alone = replace(campaign, privacy=replace(campaign.privacy, trained="norms"))  # cnn3 has no norms
    with pytest.raises(ConfigError, match="leaves nothing of the enhancer"):
        train_private(build_networks(alone), disc_slices(8), alone, machine, site="a", round=1, steps=1, multiplier=1.0)


def test_batch_norm_is_refused_before_any_weight_moves(campaign: CampaignConfig, machine: MachineConfig) -> None:
    plain = build_networks(campaign)
    networks = replace(plain, enhancer=nn.Sequential(plain.enhancer, nn.BatchNorm2d(1)))
    before = to_arrays(plain)
    with pytest.raises(RefusedError, match="BatchNorm"):
        train_private(networks, disc_slices(8), campaign, machine, site="a", round=1, steps=1, multiplier=1.0)
    assert all((before[name] == values).all() for name, values in to_arrays(plain).items())


def test_without_a_training_patient_there_is_nothing_to_draw(campaign: CampaignConfig, machine: MachineConfig) -> None:
    nobody = taken(disc_slices(2), [])
    with pytest.raises(DataError, match="has none"):
        train_private(build_networks(campaign), nobody, campaign, machine, site="a", round=1, steps=1, multiplier=1.0)


@pytest.mark.parametrize("kind", ["plain", "joint", "gradprom", "frozen", "estr"])
@pytest.mark.parametrize("warm", [False, True])
def test_the_layout_is_known_without_anybody_drawn(
    campaign: CampaignConfig, machine: MachineConfig, kind: str, warm: bool
) -> None:
    other = replace(campaign, objective=replace(campaign.objective, kind=kind, warmup=0.2))  # type: ignore[arg-type]
    networks = moved_networks(other)
    layout = layout_of(networks, other, warm=warm)
    found_D = patient_gradient(networks, one_batch(disc_slices(4), other, 0), other, machine, warm=warm)
    assert found_D.numel() == layout.total
    parts = apart(found_D, layout)
    assert torch.equal(
        torch.cat([parts.enhance_D, *parts.task_D, *([] if parts.recogniser_D is None else [parts.recogniser_D])]),
        found_D,
    )


def test_less_noise_turns_the_update_less(campaign: CampaignConfig, machine: MachineConfig) -> None:
    def cosine(multiplier: float) -> float:
        networks = build_networks(campaign)
        record = train_private(
            networks, disc_slices(12, per_patient=2), campaign, machine, site="a", round=1, steps=4,
            multiplier=multiplier, compare=True, rng=seeded(1),
        )  # fmt: skip
        return record["privacy.cosine"]

    wide = replace(campaign, privacy=replace(campaign.privacy, clip_norm=1e6))
    assert cosine(10.0) < 0.5 < cosine(1e-4)
    networks = build_networks(wide)  # no clipping to speak of and no noise: the true update itself
    record = train_private(
        networks, disc_slices(8), wide, machine, site="a", round=1, steps=3, multiplier=1e-20, compare=True
    )
    assert record["privacy.cosine"] == pytest.approx(1.0, abs=1e-3)
