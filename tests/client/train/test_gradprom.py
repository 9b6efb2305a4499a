"""The gated step against the form that one would write first: two forwards, two backwards."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from client.train import gradprom
from client.train.gradprom import Anchor, Gradients, Optimisers
from client.train.recognise import warmup_gradients
from client.train.terms import Share
from shared.batch import Batch
from shared.config import CampaignConfig, ObjectiveConfig
from shared.enhance.losses import enhancement_loss
from shared.errors import DataError
from shared.networks import Networks, build_networks
from shared.recognise.losses import labelled, recognition_loss, soft_target_losses, supervised_losses
from shared.recognise.recognition import Recognition

KINDS = ("plain", "joint", "frozen", "gradprom", "estr")


def with_objective(campaign: CampaignConfig, kind: str, **changes: object) -> CampaignConfig:
    return replace(campaign, objective=replace(campaign.objective, kind=kind, **changes))  # type: ignore[arg-type]


def make_batch(size: int = 4, side: int = 16, seed: int = 0) -> Batch:
    rng = torch.Generator().manual_seed(seed)
    clean = torch.rand(size, 1, side, side, generator=rng)
    degraded = (clean + 0.1 * torch.randn(clean.shape, generator=rng)).clamp(0, 1)
    mask = torch.randint(0, 3, (size, side, side), generator=rng)
    has_mask = torch.arange(size) % 2 == 0
    diagnosis = torch.tensor([0, 1, -1, 1] * size)[:size]
    return Batch(degraded, clean, mask * has_mask[:, None, None], has_mask, diagnosis)


def moved_networks(campaign: CampaignConfig) -> Networks:
    """Networks away from their start, where the enhancer is no longer the identity."""
    networks = build_networks(campaign)
    rng = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in networks.enhancer.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=rng))
    return networks


def whole(batch: Batch) -> Share:
    return Share(1.0, labelled(batch))


def naive(networks: Networks, batch: Batch, campaign: CampaignConfig) -> tuple[Tensor, Tensor, Tensor]:
    """g, v and the recogniser's gradient by two separate forwards and backwards."""

    def gradient_of(loss: Tensor, network: nn.Module) -> Tensor:
        return gradprom.flat(torch.autograd.grad(loss, list(network.parameters()), retain_graph=True))

    enhanced = networks.enhancer(batch.degraded_BCHW)
    g = gradient_of(enhancement_loss(enhanced, batch.clean_BCHW, campaign.training.enhance_loss), networks.enhancer)
    loss = recognition_loss(networks.recogniser(networks.enhancer(batch.degraded_BCHW)), batch, campaign.objective)
    return g, gradient_of(loss, networks.enhancer), gradient_of(loss, networks.recogniser)


def optimisers_of(networks: Networks, campaign: CampaignConfig) -> Optimisers:
    return Optimisers(
        gradprom.make_optimiser(networks.enhancer, campaign), gradprom.make_optimiser(networks.recogniser, campaign)
    )


def weights(network: nn.Module) -> Tensor:
    return gradprom.flat(list(network.parameters())).clone()


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_those_of_two_forwards_and_two_backwards(campaign: CampaignConfig, kind: str) -> None:
    campaign = with_objective(campaign, kind)
    networks, batch = moved_networks(campaign), make_batch()
    g, v, r = naive(networks, batch, campaign)
    found = gradprom.gradients(networks, batch, whole(batch), campaign)
    torch.testing.assert_close(found.enhance_D, g, rtol=1e-5, atol=1e-7)
    if kind == "plain":
        assert found.task_D == ()
    else:
        torch.testing.assert_close(found.task_D[0], v, rtol=1e-5, atol=1e-7)
    if kind in ("frozen", "estr"):
        assert found.recogniser_D is None
    else:
        torch.testing.assert_close(found.recogniser_D, r, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("relative", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_one_step_moves_the_enhancer_as_the_rule_says(campaign: CampaignConfig, kind: str, relative: bool) -> None:
    campaign = with_objective(campaign, kind, relative=relative, task_weight=0.3)
    training = replace(campaign.training, optimiser="sgd", learning_rate=0.5, clip_norm=None)
    campaign = replace(campaign, training=training)
    networks, batch = moved_networks(campaign), make_batch()
    g, v, r = naive(networks, batch, campaign)
    weight = 0.3 * float(g.norm() / v.norm()) if relative else 0.3
    open_gate = kind in ("joint", "frozen", "estr") or (kind == "gradprom" and float(g @ v) > 0)
    d = g + weight * v if open_gate else g
    before = weights(networks.enhancer), weights(networks.recogniser)
    found = gradprom.gradients(networks, batch, whole(batch), campaign)
    gradprom.update(networks, optimisers_of(networks, campaign), found, campaign)
    torch.testing.assert_close(weights(networks.enhancer), before[0] - 0.5 * d, rtol=1e-5, atol=1e-6)
    moved = 0 * r if kind in ("frozen", "estr") else r
    torch.testing.assert_close(weights(networks.recogniser), before[1] - 0.5 * moved, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("relative", [True, False])
@pytest.mark.parametrize("seed", range(8))
def test_the_direction_never_opposes_the_enhancement_gradient(relative: bool, seed: int) -> None:
    rng = torch.Generator().manual_seed(seed)
    g, v = torch.randn(50, generator=rng), 100 * torch.randn(50, generator=rng)
    rule = ObjectiveConfig(kind="gradprom", relative=relative, task_weight=0.7)
    step = gradprom.direction(g, [v], rule)
    assert float(step.d_D @ g) >= float(g @ g) * (1 - 1e-6)
    assert bool(step.gate_open) == (float(g @ v) > 0)
    assert float(step.cosine) == pytest.approx(float(torch.cosine_similarity(g, v, dim=0)), abs=1e-6)


@pytest.mark.parametrize("spoiled", [-1.0, float("nan"), float("-inf")])
def test_a_closed_gate_leaves_the_enhancement_gradient_to_the_bit(spoiled: float) -> None:
    g = torch.rand(1000, generator=torch.Generator().manual_seed(0)) + 0.1
    v = -g.clone()
    v[3] = spoiled
    step = gradprom.direction(g, [v], ObjectiveConfig(kind="gradprom", task_weight=5.0))
    assert not bool(step.gate_open)
    assert torch.equal(step.d_D, g)


def test_orthogonal_gradients_close_the_gate() -> None:
    step = gradprom.direction(torch.tensor([1.0, 0.0]), [torch.tensor([0.0, 1.0])], ObjectiveConfig(kind="gradprom"))
    assert not bool(step.gate_open)


def test_no_task_gradient_is_no_division_by_zero() -> None:
    g = torch.ones(3)
    for kind in ("joint", "gradprom"):
        step = gradprom.direction(g, [torch.zeros(3)], ObjectiveConfig(kind=kind, relative=True))  # type: ignore[arg-type]
        assert torch.equal(step.d_D, g)
        assert float(step.cosine) == 0


@pytest.mark.parametrize("kind", ["joint", "gradprom"])
def test_a_task_without_a_gradient_leaves_its_share_of_lambda_to_the_others(kind: str) -> None:
    """No image of the batch has a label for it, or its weight is 0."""
    g, v = torch.tensor([1.0, 2.0]), torch.tensor([3.0, 1.0])
    rule = ObjectiveConfig(kind=kind, relative=True, task_weight=0.5)  # type: ignore[arg-type]
    alone = gradprom.direction(g, [v], rule)
    torch.testing.assert_close(alone.added_D.norm(), 0.5 * g.norm())
    for v_TD in ([v, torch.zeros(2)], [torch.zeros(2), v, torch.zeros(2)]):
        assert torch.equal(gradprom.direction(g, v_TD, rule).d_D, alone.d_D)
    three = gradprom.direction(g, [v, 2 * v, torch.zeros(2)], rule)
    torch.testing.assert_close(three.d_D, alone.d_D)
    assert torch.equal(gradprom.direction(g, [torch.zeros(2)] * 2, rule).d_D, g)


@pytest.mark.parametrize("tasks", [1, 2, 3])
def test_where_every_task_has_a_gradient_each_has_its_part_of_lambda_to_the_bit(tasks: int) -> None:
    rng = torch.Generator().manual_seed(tasks)
    g, *v_TD = torch.randn(tasks + 1, 50, generator=rng)
    rule = ObjectiveConfig(kind="joint", relative=True, task_weight=0.7)
    expected = torch.zeros(50)
    for v in v_TD:
        weight = torch.full_like(v[0], 0.7) / tasks * torch.linalg.vector_norm(g) / torch.linalg.vector_norm(v)
        expected = expected + weight * v
    assert torch.equal(gradprom.direction(g, v_TD, rule).added_D, expected)


class BatchNormRecogniser(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(inplace=True))
        self.head = nn.Conv2d(4, 3, 1)

    def forward(self, image: Tensor) -> Recognition:
        features = self.body(image)
        return Recognition(self.head(features), None, [features])


def batch_norm_networks() -> Networks:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        enhancer = nn.Sequential(
            nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.Conv2d(4, 1, 3, padding=1)
        )
        return Networks(enhancer, BatchNormRecogniser())


@pytest.mark.parametrize("gradients_of", [gradprom.gradients, warmup_gradients])
def test_running_statistics_move_once_per_step(
    campaign: CampaignConfig, gradients_of: Callable[..., Gradients]
) -> None:
    networks, batch = batch_norm_networks(), make_batch()
    gradients_of(networks, batch, whole(batch), campaign)
    assert int(networks.enhancer[1].num_batches_tracked) == 1  # type: ignore[index, union-attr]
    assert int(networks.recogniser.body[1].num_batches_tracked) == 1  # type: ignore[index, union-attr]


def test_batch_norm_gradients_are_those_of_one_forward_and_two_backwards(campaign: CampaignConfig) -> None:
    networks, batch = batch_norm_networks(), make_batch()
    g, v, r = naive(networks, batch, campaign)
    found = gradprom.gradients(networks, batch, whole(batch), campaign)
    for ours, theirs in ((found.enhance_D, g), (found.task_D[0], v), (found.recogniser_D, r)):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


def test_adam_decays_weights_beside_the_gradient_not_in_it(campaign: CampaignConfig) -> None:
    rate, decay = 0.01, 0.5
    training = replace(campaign.training, optimiser="adam", learning_rate=rate, weight_decay=decay, clip_norm=None)
    campaign = replace(with_objective(campaign, "plain"), training=training)
    networks, batch = moved_networks(campaign), make_batch()
    g, _, _ = naive(networks, batch, campaign)
    before = weights(networks.enhancer)
    found = gradprom.gradients(networks, batch, whole(batch), campaign)
    gradprom.update(networks, optimisers_of(networks, campaign), found, campaign)
    # Adam's first step, by hand: both moments are the gradient itself after bias correction.
    expected = before - rate * decay * before - rate * g / (g.abs() + 1e-8)
    torch.testing.assert_close(weights(networks.enhancer), expected, rtol=1e-4, atol=2e-5)


def test_clipping_is_of_the_direction_and_not_of_its_parts(campaign: CampaignConfig) -> None:
    limit = 1e-3
    training = replace(campaign.training, optimiser="sgd", learning_rate=1.0, clip_norm=limit)
    campaign = replace(with_objective(campaign, "joint", relative=False, task_weight=0.5), training=training)
    networks, batch = moved_networks(campaign), make_batch()
    g, v, r = naive(networks, batch, campaign)
    d = g + 0.5 * v
    assert float(d.norm()) > 2 * limit
    before = weights(networks.enhancer), weights(networks.recogniser)
    found = gradprom.gradients(networks, batch, whole(batch), campaign)
    gradprom.update(networks, optimisers_of(networks, campaign), found, campaign)
    torch.testing.assert_close(before[0] - weights(networks.enhancer), limit * d / d.norm(), rtol=1e-2, atol=1e-6)
    torch.testing.assert_close(before[1] - weights(networks.recogniser), limit * r / r.norm(), rtol=1e-2, atol=1e-6)


def test_channels_last_weights_receive_their_own_gradients(campaign: CampaignConfig) -> None:
    campaign = with_objective(campaign, "gradprom")
    batch = make_batch()
    ends = []
    for layout in (torch.contiguous_format, torch.channels_last):
        networks = moved_networks(campaign)
        for network in (networks.enhancer, networks.recogniser):
            network.to(memory_format=layout)  # type: ignore[call-overload]
        moved = batch.to(torch.device("cpu"), channels_last=layout is torch.channels_last)
        optimisers = optimisers_of(networks, campaign)
        for _ in range(2):
            found = gradprom.gradients(networks, moved, whole(moved), campaign)
            gradprom.update(networks, optimisers, found, campaign)
        ends.append((weights(networks.enhancer), weights(networks.recogniser)))
    torch.testing.assert_close(ends[0], ends[1], rtol=1e-3, atol=1e-4)


def test_the_proximal_pull_is_part_of_what_the_gate_looks_at(campaign: CampaignConfig) -> None:
    campaign = with_objective(campaign, "gradprom", relative=False, task_weight=1.0)
    training = replace(campaign.training, optimiser="sgd", learning_rate=1.0, clip_norm=None)
    campaign = replace(campaign, training=training)
    networks = moved_networks(campaign)
    before = weights(networks.enhancer), weights(networks.recogniser)
    g, v, r = (torch.full_like(w, value) for w, value in ((before[0], 1.0), (before[0], 0.5), (before[1], 0.0)))
    found = Gradients(g, (v,), r, torch.tensor(0.0), torch.tensor(0.0))
    # Far behind the anchor: the pull of -3 turns the wish of +1 round, and the task gradient no longer agrees.
    anchor = Anchor(before[0] + 30.0, before[1] + 10.0, mu=0.1)
    record = gradprom.update(networks, optimisers_of(networks, campaign), found, campaign, anchor=anchor)
    assert record.gate_open is not None
    assert not bool(record.gate_open)
    torch.testing.assert_close(weights(networks.enhancer), before[0] + 2.0, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(weights(networks.recogniser), before[1] + 1.0, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("where", ["enhance_D", "task_D", "recogniser_D", "recognise_loss"])
def test_a_value_that_is_not_finite_stops_before_anything_moves(campaign: CampaignConfig, where: str) -> None:
    networks, batch = moved_networks(campaign), make_batch()
    before = weights(networks.enhancer), weights(networks.recogniser)
    found = gradprom.gradients(networks, batch, whole(batch), campaign)
    spoiled = found.task_D[0] if where == "task_D" else getattr(found, where)
    spoiled.view(-1)[0] = float("nan")
    with pytest.raises(DataError, match="not finite"):
        gradprom.update(networks, optimisers_of(networks, campaign), found, campaign)
    assert torch.equal(weights(networks.enhancer), before[0])
    assert torch.equal(weights(networks.recogniser), before[1])


def test_the_graph_is_freed_with_the_step(campaign: CampaignConfig) -> None:
    networks, batch = moved_networks(campaign), make_batch()
    seen = []
    networks.enhancer.register_forward_hook(lambda _module, _inputs, output: seen.append(weakref.ref(output)))
    found = gradprom.gradients(networks, batch, whole(batch), campaign)
    gc.collect()
    assert [reference() for reference in seen] == [None]
    assert not any(tensor.requires_grad for tensor in (found.enhance_D, found.enhance_loss, found.recognise_loss))


def test_plain_keeps_the_task_away_from_the_enhancer(campaign: CampaignConfig) -> None:
    campaign = with_objective(campaign, "plain")
    batch = make_batch()
    other = replace(batch, diagnosis_B=1 - batch.diagnosis_B.clamp(min=0), mask_BHW=2 - batch.mask_BHW)
    ends = []
    for labels in (batch, other):
        networks = moved_networks(campaign)
        found = gradprom.gradients(networks, labels, whole(labels), campaign)
        gradprom.update(networks, optimisers_of(networks, campaign), found, campaign)
        ends.append((weights(networks.enhancer), weights(networks.recogniser)))
    assert torch.equal(ends[0][0], ends[1][0])
    assert not torch.equal(ends[0][1], ends[1][1])


@pytest.mark.parametrize("kind", ["joint", "gradprom", "frozen", "estr"])
@pytest.mark.parametrize("recognition", ["supervised", "unsupervised"])
def test_separate_auxiliaries_have_the_gradients_of_their_own_losses(
    campaign: CampaignConfig, kind: str, recognition: str
) -> None:
    """Masks, then diagnosis; the recogniser learns from their sum, and a micro batch's parts add up."""
    campaign = with_objective(campaign, kind, auxiliaries="separate", recognition=recognition)
    networks, batch = moved_networks(campaign), make_batch()
    theta, phi = list(networks.enhancer.parameters()), list(networks.recogniser.parameters())

    def losses_of() -> list[Tensor]:
        said = networks.recogniser(networks.enhancer(batch.degraded_BCHW))
        if recognition == "supervised":
            return supervised_losses(said, batch, campaign.objective, labelled(batch))
        return soft_target_losses(said, networks.recogniser(batch.clean_BCHW.clone()), campaign.objective)

    expected = [gradprom.flat(torch.autograd.grad(losses_of()[task], theta)) for task in (0, 1)]
    found = gradprom.gradients(networks, batch, whole(batch), campaign)
    assert len(found.task_D) == 2
    for ours, theirs in zip(found.task_D, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-7)
    together = gradprom.gradients(
        networks, batch, whole(batch), with_objective(campaign, kind, auxiliaries="together", recognition=recognition)
    )
    torch.testing.assert_close(sum(found.task_D), together.task_D[0], rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(found.recognise_loss, together.recognise_loss)
    if kind in ("frozen", "estr"):
        assert found.recogniser_D is None
    else:
        torch.testing.assert_close(found.recogniser_D, together.recogniser_D, rtol=1e-4, atol=1e-7)
    if kind in ("joint", "gradprom") and recognition == "supervised":
        r = gradprom.flat(torch.autograd.grad(torch.stack(losses_of()).sum(), phi))
        torch.testing.assert_close(found.recogniser_D, r, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("kind", ["gradprom", "estr"])
def test_unsupervised_recognition_reads_no_label(campaign: CampaignConfig, kind: str) -> None:
    campaign = with_objective(campaign, kind, recognition="unsupervised")
    batch = make_batch()
    other = replace(
        batch,
        mask_BHW=2 - batch.mask_BHW,
        has_mask_B=~batch.has_mask_B,
        diagnosis_B=torch.full_like(batch.diagnosis_B, -1),
    )
    found, same = (
        gradprom.gradients(moved_networks(campaign), labels, whole(labels), campaign) for labels in (batch, other)
    )
    assert torch.equal(found.enhance_D, same.enhance_D)
    assert torch.equal(found.task_D[0], same.task_D[0])
    assert torch.equal(found.recognise_loss, same.recognise_loss)
    assert float(found.task_D[0].norm()) > 0
    if kind == "gradprom":
        assert found.recogniser_D is not None
        assert same.recogniser_D is not None
        assert torch.equal(found.recogniser_D, same.recogniser_D)


def test_what_the_recogniser_says_of_the_clean_image_is_a_target_and_learns_nothing(campaign: CampaignConfig) -> None:
    """The recogniser's gradient is that with a constant target; if it flowed into the target too, it would differ."""
    campaign = with_objective(campaign, "gradprom", recognition="unsupervised")
    networks, batch = moved_networks(campaign), make_batch()
    phi = list(networks.recogniser.parameters())

    def of_recogniser(*, constant: bool) -> Tensor:
        target = networks.recogniser(batch.clean_BCHW)
        if constant:
            target = Recognition(target.mask_logits_BKHW.detach(), target.diagnosis_logits_BN.detach(), [])
        said = networks.recogniser(networks.enhancer(batch.degraded_BCHW).detach())
        losses = [
            weight * (a.softmax(1) - b.softmax(1)).square().mean()
            for weight, a, b in (
                (campaign.objective.mask_weight, said.mask_logits_BKHW, target.mask_logits_BKHW),
                (campaign.objective.diagnosis_weight, said.diagnosis_logits_BN, target.diagnosis_logits_BN),
            )
        ]
        return gradprom.flat(torch.autograd.grad(torch.stack(losses).sum(), phi))

    found = gradprom.gradients(networks, batch, whole(batch), campaign)
    torch.testing.assert_close(found.recogniser_D, of_recogniser(constant=True), rtol=1e-4, atol=1e-8)
    assert float((of_recogniser(constant=False) - of_recogniser(constant=True)).norm()) > 1e-3 * float(
        of_recogniser(constant=True).norm()
    )


def test_equal_images_leave_unsupervised_recognition_nothing_to_say(campaign: CampaignConfig) -> None:
    """The untrained enhancer is the identity: degraded and clean alike, the loss and its gradients are 0."""
    campaign = with_objective(campaign, "gradprom", recognition="unsupervised")
    batch = make_batch()
    batch = replace(batch, degraded_BCHW=batch.clean_BCHW)
    found = gradprom.gradients(build_networks(campaign), batch, whole(batch), campaign)
    assert float(found.recognise_loss) == 0
    assert not bool(found.task_D[0].any())
    assert found.recogniser_D is not None
    assert not bool(found.recogniser_D.any())


def test_a_step_with_two_tasks_moves_the_enhancer_by_the_sum_of_the_open_ones(campaign: CampaignConfig) -> None:
    campaign = with_objective(campaign, "gradprom", relative=False, auxiliaries="separate", task_weight=0.5)
    training = replace(campaign.training, optimiser="sgd", learning_rate=1.0, clip_norm=None)
    campaign = replace(campaign, training=training)
    networks = moved_networks(campaign)
    before = weights(networks.enhancer)
    g = torch.randn(len(before), generator=torch.Generator().manual_seed(0))
    found = Gradients(
        g, (2 * g, -3 * g), torch.zeros_like(weights(networks.recogniser)), torch.tensor(0.0), torch.tensor(0.0)
    )
    record = gradprom.update(networks, optimisers_of(networks, campaign), found, campaign)
    torch.testing.assert_close(weights(networks.enhancer), before - 2 * g, rtol=1e-4, atol=1e-5)
    assert record.gate_open is not None
    assert float(record.gate_open) == 0.5
    assert record.added is not None
    assert float(record.added) == pytest.approx(1.0, rel=1e-5)
    assert float(record.ascended) == 0


def test_a_step_up_the_main_loss_is_recorded_as_one(campaign: CampaignConfig) -> None:
    """Ungated, a large opposing task gradient wins; the record says what happened to the weights."""
    campaign = with_objective(campaign, "joint", relative=False, task_weight=1.0)
    training = replace(campaign.training, optimiser="sgd", learning_rate=0.1, clip_norm=1.0)
    campaign = replace(campaign, training=training)
    networks = moved_networks(campaign)
    g = torch.randn(len(weights(networks.enhancer)), generator=torch.Generator().manual_seed(0))
    for against, expected in ((-0.5, 0.0), (-2.0, 1.0)):
        found = Gradients(
            g, (against * g,), torch.zeros_like(weights(networks.recogniser)), torch.tensor(0.0), torch.tensor(0.0)
        )
        record = gradprom.update(networks, optimisers_of(networks, campaign), found, campaign)
        assert float(record.ascended) == expected
