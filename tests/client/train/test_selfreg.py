"""SelfReg: against its own Monte Carlo, plain loops and what linear algebra says of the rank."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from client.train.selfreg import effective_rank, ifd, scr, selfreg_loss, sorted_BCHW
from shared.config import RecogniserConfig, SelfRegConfig
from shared.recognise.networks import build_recogniser
from shared.recognise.recognition import Recognition
from shared.seeding import generator

BOTH = SelfRegConfig(consistency_weight=0.3, distillation_weight=0.2)


def maps(channels: int, height: int, width: int, name: str = "maps") -> Tensor:
    rng = generator(0, name, channels, height)
    return torch.randn(2, channels, height, width, generator=rng).requires_grad_()


def unet_maps() -> Recognition:
    """Three levels of a map that is not square; channels differ between blocks and one count is odd."""
    skips = (maps(4, 12, 8, "e1"), maps(7, 6, 4, "e2"))
    return Recognition(None, None, [maps(12, 3, 2, "b"), maps(8, 6, 4, "d2"), maps(6, 12, 8, "d1")], skips)


@pytest.mark.parametrize(
    ("student", "teacher"),
    [((12, 6, 4), (6, 12, 8)), ((5, 6, 4), (8, 12, 8)), ((10, 12, 8), (6, 6, 4))],
    ids=["more channels, smaller", "fewer channels, smaller", "larger map"],
)
def test_the_mean_of_1500_random_draws_is_the_mean_form_plus_the_teachers_variance(
    student: tuple[int, int, int], teacher: tuple[int, int, int]
) -> None:
    ours, theirs = maps(*student, "student").detach(), maps(*teacher, "teacher").detach()
    rng = generator(0, "draws")
    drawn = sum(float(scr([ours], theirs, rng)) for _ in range(1500)) / 1500
    size = (min(student[1], teacher[1]), min(student[2], teacher[2]))
    variance = float(F.adaptive_avg_pool2d(theirs, size).var(dim=1, unbiased=False).mean())
    assert drawn - variance == pytest.approx(float(scr([ours], theirs)), rel=0.02)


def test_the_random_forms_mean_gradient_is_the_mean_forms_gradient() -> None:
    ours, theirs = maps(6, 4, 2), maps(4, 8, 4)
    rng = generator(0, "draws")
    loss = torch.stack([scr([ours], theirs, rng) for _ in range(3000)]).mean()
    (of_random,) = torch.autograd.grad(loss, ours)
    (of_mean,) = torch.autograd.grad(scr([ours], theirs), ours)
    assert float((of_random - of_mean).norm() / of_mean.norm()) < 0.05


@pytest.mark.parametrize("random", [False, True])
def test_no_gradient_reaches_the_teacher_through_consistency(random: bool) -> None:
    ours, theirs = maps(6, 4, 2), maps(4, 8, 4)
    torch.autograd.backward(scr([ours], theirs, generator(0) if random else None))
    assert theirs.grad is None
    assert ours.grad is not None
    assert float(ours.grad.abs().sum()) > 0


def test_the_random_form_compares_channels_drawn_for_each_side_by_itself() -> None:
    ours = torch.arange(4.0).view(1, 4, 1, 1)
    theirs = 10 * torch.arange(3.0).view(1, 3, 1, 1)
    ours_drawn, theirs_drawn = (torch.randperm(n, generator=rng)[:3] for rng in [generator(3)] for n in (4, 3))
    expected = ((ours_drawn - 10.0 * theirs_drawn) ** 2).float().mean()
    assert float(scr([ours], theirs, generator(3))) == pytest.approx(float(expected))
    assert float(scr([ours], theirs, generator(3))) == float(scr([ours], theirs, generator(3)))


@pytest.mark.parametrize("sort", [False, True])
def test_without_detach_distillation_pulls_both_halves_alike_and_with_it_only_the_second(sort: bool) -> None:
    block = maps(8, 5, 3)
    (both,) = torch.autograd.grad(ifd([block], detach=False, sort=sort), block)
    (second,) = torch.autograd.grad(ifd([block], sort=sort), block)
    moved = (second.abs().sum((0, 2, 3)) > 0).nonzero().flatten()
    order = block.detach().flatten(2) / block.detach().flatten(2).norm(dim=2, keepdim=True)
    place = order.mean((0, 2)).argsort(descending=True) if sort else torch.arange(8)
    assert sorted(moved.tolist()) == sorted(place[4:].tolist())
    torch.testing.assert_close(both[:, place[:4]], -both[:, place[4:]])
    torch.testing.assert_close(both[:, place[4:]], second[:, place[4:]])


def test_an_odd_channel_is_left_out_and_a_single_one_has_nothing_to_distil() -> None:
    odd = maps(7, 4, 2)
    expected = ((odd[:, 3:6] - odd[:, :3]) ** 2).mean()
    torch.testing.assert_close(ifd([odd]), expected)
    assert float(ifd([maps(1, 4, 2).detach()])) == 0


def test_channels_are_sorted_by_the_mean_of_the_maps_divided_by_their_norm() -> None:
    flat, peak, none = torch.ones(4, 4), torch.zeros(4, 4), torch.zeros(4, 4)
    peak[0, 0] = 9.0
    features = torch.stack([none, peak, -flat, flat])[None]
    # flat / |flat| = 1/4 everywhere; peak / |peak| = 1 in one of 16 pixels
    assert torch.equal(sorted_BCHW(features), torch.stack([flat, peak, none, -flat])[None])


def test_the_loss_is_the_sum_over_the_blocks_that_the_method_names() -> None:
    said = unet_maps()
    deepest, d2, d1 = said.features
    teacher = d1.detach().mean(1, keepdim=True)
    students = [said.skips[1], deepest, d2]
    consistency = [((F.adaptive_avg_pool2d(teacher, (f.shape[2], f.shape[3])) - f) ** 2).mean() for f in students]
    distilled = [((f[:, h : 2 * h] - f[:, :h].detach()) ** 2).mean() for f in students for h in [f.shape[1] // 2]]
    expected = 0.3 * sum(consistency) / 3 + 0.2 * ((distilled[0] + distilled[1]) / 2 + distilled[2])
    torch.testing.assert_close(selfreg_loss(said, BOTH), expected)
    torch.testing.assert_close(
        selfreg_loss(said, SelfRegConfig(consistency_weight=0.3))
        + selfreg_loss(said, SelfRegConfig(distillation_weight=0.2)),
        expected,
    )
    assert float(selfreg_loss(said, SelfRegConfig()).detach()) == 0


def test_the_configured_form_of_consistency_is_used() -> None:
    said = unet_maps()
    config = SelfRegConfig(consistency_weight=1.0, consistency="random")
    deepest, d2, d1 = said.features
    expected = scr([said.skips[1], deepest, d2], d1, generator(5))
    assert torch.equal(selfreg_loss(said, config, generator(5)), expected)
    assert not torch.equal(selfreg_loss(said, SelfRegConfig(consistency_weight=1.0), generator(5)), expected)


@pytest.mark.parametrize("kind", ["unet", "without a decoder", "two levels", "one level"])
def test_every_network_that_hands_out_features_has_a_finite_loss(kind: str) -> None:
    depth = {"two levels": 2, "one level": 1}.get(kind, 3)
    masks = 0 if kind == "without a decoder" else 2
    recogniser = build_recogniser(RecogniserConfig(kind="unet", channels=5, depth=depth), 1, masks, 2, 0)
    said = recogniser(torch.rand(2, 1, 18, 14, generator=generator(0)))
    loss = selfreg_loss(said, BOTH)
    assert bool(torch.isfinite(loss))
    if kind == "without a decoder":
        torch.testing.assert_close(loss, 0.2 * ifd([*said.skips[1:], said.features[0]]))
    parameters = list(recogniser.parameters())
    found = torch.autograd.grad(loss, parameters, allow_unused=True)
    assert all(bool(torch.isfinite(g).all()) for g in found if g is not None)


@pytest.mark.parametrize("rank", [1, 3, 8])
def test_the_effective_rank_of_r_orthogonal_equal_maps_is_r(rank: int) -> None:
    basis, _ = torch.linalg.qr(torch.randn(24, rank, generator=generator(0)))
    features = basis.T.reshape(1, rank, 6, 4) * 5
    assert effective_rank(features) == pytest.approx(rank, rel=1e-4)
    # Eight copies of each are the same r directions.
    assert effective_rank(features.repeat(1, 8, 1, 1)) == pytest.approx(rank, rel=1e-4)


def test_the_effective_rank_of_one_repeated_map_is_1_also_where_it_is_constant() -> None:
    assert effective_rank(torch.randn(3, 1, 6, 4, generator=generator(0)).repeat(1, 16, 1, 1)) == pytest.approx(1, 1e-3)
    assert effective_rank(torch.full((3, 16, 6, 4), 0.7)) == pytest.approx(1, rel=1e-3)


def test_the_effective_rank_is_that_of_the_singular_values() -> None:
    features = torch.randn(3, 9, 6, 4, generator=generator(0)) ** 2
    share = torch.linalg.svdvals(features.movedim(1, 0).flatten(1).double())
    share = share / share.sum()
    assert effective_rank(features) == pytest.approx(math.exp(-float((share * share.log()).sum())), rel=1e-9)


def test_the_effective_rank_of_nothing_is_0_and_of_nan_is_nan() -> None:
    assert effective_rank(torch.zeros(2, 4, 3, 3)) == 0
    assert math.isnan(effective_rank(torch.full((2, 4, 3, 3), math.nan)))


def plainly(said: Recognition, config: SelfRegConfig) -> Tensor:
    """The same equations, left to autograd."""
    deepest, *decoder = said.features
    encoder, inner = [*said.skips[1:], deepest], decoder[:-1]
    teacher = decoder[-1].detach().mean(1, keepdim=True)
    consistency = []
    for student in [*encoder, *inner]:
        size = (min(student.shape[2], teacher.shape[2]), min(student.shape[3], teacher.shape[3]))
        consistency.append(((F.adaptive_avg_pool2d(student, size) - F.adaptive_avg_pool2d(teacher, size)) ** 2).mean())
    loss = config.consistency_weight * torch.stack(consistency).mean()
    for part in (encoder, inner):
        halves = [block[:, : block.shape[1] // 2 * 2].chunk(2, dim=1) for block in part]
        apart = [second - (first.detach() if config.detach else first) for first, second in halves]
        loss = loss + config.distillation_weight * torch.stack([each.square().mean() for each in apart]).mean()
    return loss


@pytest.mark.parametrize("detach", [False, True])
@pytest.mark.parametrize("memory", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("finest", [(12, 8), (5, 4)], ids=["finest teacher", "teacher smaller than a student"])
def test_the_gradient_that_is_written_down_is_autograds(
    detach: bool, memory: torch.memory_format, finest: tuple[int, int]
) -> None:
    config = SelfRegConfig(consistency_weight=0.3, distillation_weight=0.2, detach=detach)
    said = unet_maps()
    leaves = [*said.skips, *said.features[:-1], maps(6, *finest, "d1")]
    laid_out = [leaf.contiguous(memory_format=memory) for leaf in leaves]
    said = Recognition(None, None, laid_out[2:], tuple(laid_out[:2]))
    for factor in (1, 3):
        loss, expected = factor * selfreg_loss(said, config), factor * plainly(said, config)
        torch.testing.assert_close(loss, expected)
        expected_grads = torch.autograd.grad(expected, leaves, allow_unused=True, retain_graph=True)
        for _ in range(2):  # a graph that is kept gives the same a second time
            found = torch.autograd.grad(loss, leaves, allow_unused=True, retain_graph=True)
            for ours, theirs in zip(found, expected_grads, strict=True):
                assert (ours is None) == (theirs is None)
                if ours is not None:
                    torch.testing.assert_close(ours, theirs)


def test_in_half_precision_the_loss_is_taken_in_float32() -> None:
    said = unet_maps()
    halved = Recognition(None, None, [f.bfloat16() for f in said.features], tuple(f.bfloat16() for f in said.skips))
    loss = selfreg_loss(halved, BOTH)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, selfreg_loss(said, BOTH), rtol=5e-3, atol=0)
    torch.autograd.backward(loss)
    assert all(f.grad is not None for f in (said.skips[1], *said.features[:-1]))
