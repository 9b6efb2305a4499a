"""The score against loops, the masks against each other, and protected kernels to the last bit."""

from __future__ import annotations

import copy
import itertools
import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from client.train import tgd
from shared.config import EnhancerConfig, TGDConfig
from shared.enhance.kernels import wiring
from shared.enhance.networks import build_enhancer
from shared.errors import RefusedError

ENHANCERS = ("cnn3", "unet", "srresnet", "todnet", "todnet+attention")


def moved_enhancer(kind: str, seed: int = 0, width: int = 6) -> nn.Module:
    """Away from the start, where the end is 0 and nothing would flow back."""
    name, _, attention = kind.partition("+")
    config = EnhancerConfig(kind=name, channels=width, depth=2, attention=bool(attention))  # type: ignore[arg-type]
    network = build_enhancer(config, 1, seed)
    rng = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=rng))
    return network


def masks_at(network: nn.Module, phi: float, **changes: str) -> tgd.Masks:
    wired = wiring(network, 1)
    return tgd.masks_of(wired, tgd.group_scores_G(network, wired, 5), phi, **changes)  # type: ignore[arg-type]


def pair(seed: int = 0) -> tuple[Tensor, Tensor]:
    rng = torch.Generator().manual_seed(seed)
    clean = torch.rand(2, 1, 8, 8, generator=rng)
    return clean + 0.1 * torch.randn(clean.shape, generator=rng), clean


def gradients(network: nn.Module, seed: int = 0) -> dict[str, Tensor]:
    degraded, clean = pair(seed)
    network.zero_grad(set_to_none=True)
    F.mse_loss(network(degraded), clean).backward()
    return {name: p.grad.clone() for name, p in network.named_parameters() if p.grad is not None}


# ------------------------------------------------------------------------------------------- the score


def scaled(values: list[float]) -> list[float]:
    low, high = min(values), max(values)
    return [(value - low) / (high - low) if high > low else 0.0 for value in values]


def slow_scores(weight: Tensor, k: int) -> list[float]:
    """Equations 1 to 3, kernel by kernel."""
    count, channels = weight.shape[:2]
    sums, entropies = [], []
    for c in range(channels):
        kernels = [weight[n, c].double().flatten().tolist() for n in range(count)]
        sums.append(sum(abs(value) for kernel in kernels for value in kernel))
        density = []
        for n in range(count):
            far = sorted(math.dist(kernels[n], kernels[m]) for m in range(count) if m != n)
            density.append(sum(far[: min(k, count - 1)]))
        total = sum(density)
        shares = [value / total if total else 0.0 for value in density]
        entropies.append(-sum(share * math.log2(share) for share in shares if share))
    spread = scaled(entropies)
    return scaled([math.sqrt(s / (1 + e)) for s, e in zip(scaled(sums), spread, strict=True)])


@pytest.mark.parametrize(
    ("shape", "k"), [((8, 6, 3, 3), 5), ((3, 5, 3, 3), 5), ((1, 4, 3, 3), 5), ((7, 4, 1, 1), 2), ((6, 3, 2, 2, 2), 5)]
)
def test_the_score_equals_a_brute_force_loop(shape: tuple[int, ...], k: int) -> None:
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(tgd.kernel_scores_C(weight, k), torch.tensor(slow_scores(weight, k)), atol=1e-5, rtol=0)


def test_the_score_of_many_channels_is_taken_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = torch.randn(6, 9, 3, 3, generator=torch.Generator().manual_seed(1))
    whole = tgd.kernel_scores_C(weight, 5)
    monkeypatch.setattr(tgd, "MOST_DISTANCES", 2 * 6**2)
    assert torch.equal(tgd.kernel_scores_C(weight, 5), whole)


def test_kernels_that_are_all_alike_score_zero_and_not_nan() -> None:
    assert tgd.kernel_scores_C(torch.ones(4, 3, 3, 3), 5).tolist() == [0, 0, 0]


def test_one_kernel_each_scores_by_its_size_alone() -> None:
    weight = torch.tensor([1.0, 2.0, 5.0]).view(1, 3, 1, 1)
    torch.testing.assert_close(tgd.kernel_scores_C(weight, 5), torch.tensor([0.0, 0.5, 1.0]))


def test_a_transposed_convolution_is_scored_by_its_input_channels() -> None:
    up = nn.ConvTranspose2d(4, 3, 2, stride=2)
    network = nn.Sequential(nn.Conv2d(1, 4, 1), up, nn.Conv2d(3, 1, 1))
    wired = wiring(network, 1)
    scores = tgd.group_scores_G(network, wired, 5)[wired.reads["1"]]
    expected = torch.tensor(slow_scores(up.weight.detach().transpose(0, 1), 5))
    torch.testing.assert_close(scores, expected, atol=1e-5, rtol=0)


def test_a_channel_read_twice_is_redundant_only_where_both_readers_say_so() -> None:
    network = moved_enhancer("unet")
    wired = wiring(network, 1)
    scores = tgd.group_scores_G(network, wired, 5)[wired.writes["stem.0"]]
    down, up = (tgd.kernel_scores_C(network.get_submodule(name).weight, 5) for name in ("down.0.0", "up.0.0"))  # type: ignore[arg-type]
    assert torch.equal(scores, torch.maximum(down, up))
    masks = tgd.masks_of(wired, tgd.group_scores_G(network, wired, 5), 0.5)
    assert masks.rows["stem.0"].tolist() == ((down < 0.5) & (up < 0.5)).tolist()
    assert torch.equal(masks.rows["stem.0"], masks.rows["narrow.0"]), "summands have one decision"


# ------------------------------------------------------------------------------------------- masks


@pytest.mark.parametrize("kind", ENHANCERS)
def test_the_end_and_what_all_channels_share_are_protected(kind: str) -> None:
    network = moved_enhancer(kind)
    free = tgd.retrained(network, masks_at(network, 1.0))
    last = {"cnn3": "body.4", "unet": "correction", "srresnet": "correction"}.get(kind, "residual")
    shared = [name for name, module in network.named_modules() if isinstance(module, nn.PReLU)]
    parts = [last, *shared, *(["attention.query", "attention.key"] if "+" in kind else [])]
    for name, mask in free.items():
        if name.startswith(tuple(f"{part}." for part in parts)) or name == "attention.gain":
            assert not mask.any(), name


@pytest.mark.parametrize("kind", ENHANCERS)
def test_the_ends_of_phi_take_the_least_kernels_and_all_but_the_most_useful(kind: str) -> None:
    network = moved_enhancer(kind)
    wired = wiring(network, 1)
    scores = tgd.group_scores_G(network, wired, 5)
    for phi, expected in ((1e-9, scores == 0), (1.0, scores < 1)):
        masks = tgd.masks_of(wired, scores, phi)
        for name, groups in wired.made.items():
            assert torch.equal(masks.rows[name], expected[groups]), name
    shares = [tgd.share(tgd.retrained(network, tgd.masks_of(wired, scores, phi))) for phi in (1e-9, 0.3, 0.6, 1.0)]
    assert shares == sorted(shares)
    assert 0 <= shares[0] < shares[-1] < 1


def test_the_first_layer_is_masked_free_or_frozen_as_asked() -> None:
    network = moved_enhancer("cnn3")
    rows = {choice: masks_at(network, 0.5, first_layer=choice).rows for choice in ("masked", "free", "frozen")}
    assert 0 < int(rows["masked"]["body.0"].sum()) < 6
    assert bool(rows["free"]["body.0"].all())
    assert not rows["frozen"]["body.0"].any()
    for choice in ("free", "frozen"):
        assert torch.equal(rows[choice]["body.2"], rows["masked"]["body.2"])


# ------------------------------------------------------------------------------------------- gradients


@pytest.mark.parametrize("kind", ENHANCERS)
def test_the_layers_alone_bring_protected_kernels_and_norms_exactly_nothing(kind: str) -> None:
    network = moved_enhancer(kind)
    masks = masks_at(network, 0.6)
    free = tgd.retrained(network, masks)
    with tgd.cut(network, masks):
        found = gradients(network)
    for name in masks.layers:
        for parameter in ("weight", "bias"):
            gradient = found.get(f"{name}.{parameter}")
            if gradient is not None:
                assert not gradient[~free[f"{name}.{parameter}"]].any(), f"{name}.{parameter}"
    assert any(bool(found[name][free[name]].any()) for name in free)
    assert not any(module._forward_hooks for module in network.modules()), "the hooks are gone"


def test_a_trunk_without_a_redundant_map_does_not_keep_the_loss_from_what_is_behind_it() -> None:
    network = moved_enhancer("srresnet")
    masks = masks_at(network, 0.5)
    assert not masks.rows["gather.0"].any()
    with tgd.cut(network, masks):
        found = gradients(network)
    assert found["blocks.0.body.0.weight"][masks.rows["blocks.0.body.0"]].any()


def test_behind_a_group_norm_the_layer_after_the_norm_is_not_enough() -> None:
    network = moved_enhancer("unet")
    masks = masks_at(network, 0.6)
    norms = replace(masks, layers={name: rows for name, rows in masks.layers.items() if name.endswith(".1")})
    free = tgd.retrained(network, masks)
    with tgd.cut(network, norms):
        found = gradients(network)
    assert found["up.0.0.weight"][~free["up.0.0.weight"]].any()


def test_the_activation_form_blocks_the_flow_through_protected_maps() -> None:
    network = moved_enhancer("cnn3", width=12)
    masks = masks_at(network, 0.5)
    free = tgd.retrained(network, masks)
    true = gradients(network)
    with tgd.cut(network, masks):
        cut = gradients(network)
    last, before = "body.2.weight", "body.0.weight"
    rows = {name: free[name] for name in (last, before)}
    torch.testing.assert_close(cut[last][rows[last]], true[last][rows[last]])
    agreement = F.cosine_similarity(cut[before][rows[before]], true[before][rows[before]], dim=0)
    assert agreement < 0.999, "earlier kernels see the loss through redundant maps alone"


def test_the_cut_of_a_chain_equals_one_worked_out_by_hand() -> None:
    """Two 1 x 1 convolutions of two channels: with map 0 of the second protected, the first sees path 1 alone."""
    network = nn.Sequential(*(nn.Conv2d(a, b, 1, bias=False) for a, b in ((1, 2), (2, 2), (2, 1))))
    masks = tgd.Masks({}, {"1": torch.tensor([False, True])})
    with tgd.cut(network, masks):
        network(torch.ones(1, 1, 1, 1)).sum().backward()
    first, second, third = (module.weight.detach() for module in network)  # type: ignore[union-attr]
    expected = (third[0, 1] * second[1]).view(2, 1, 1, 1)
    torch.testing.assert_close(network[0].weight.grad, expected)
    assert network[1].weight.grad[0].abs().sum() == 0  # type: ignore[union-attr, index]
    assert first.shape == expected.shape


def trained_for(
    network: nn.Module,
    steps: int,
    form: str,
    free: dict[str, Tensor],
    masks: tgd.Masks,
    optimiser: torch.optim.Optimizer,
) -> None:
    for step in range(steps):
        if form == "activation":
            with tgd.cut(network, masks):
                gradients(network, step)
        else:
            gradients(network, step)
        for name, parameter in network.named_parameters():
            assert parameter.grad is not None
            parameter.grad = torch.where(free[name], parameter.grad, 0.0)
        optimiser.step()


@pytest.mark.parametrize(("kind", "form"), list(itertools.product(ENHANCERS, ("activation", "weight"))))
def test_protected_kernels_are_bit_identical_after_a_hundred_adam_steps(kind: str, form: str) -> None:
    network = moved_enhancer(kind)
    before = copy.deepcopy(network)
    masks = masks_at(network, 0.5)
    free = tgd.retrained(network, masks)
    trained_for(network, 100, form, free, masks, torch.optim.Adam(network.parameters(), lr=1e-3))
    assert tgd.touched(before, network, free) == []
    changed = sum(int((old != new).sum()) for old, new in zip(before.parameters(), network.parameters(), strict=True))
    assert changed > 0


@pytest.mark.parametrize("carried", [True, False])
def test_an_optimiser_that_is_carried_over_would_move_them(carried: bool) -> None:
    network = moved_enhancer("unet")
    optimiser = torch.optim.Adam(network.parameters(), lr=1e-3)
    if carried:
        gradients(network)
        optimiser.step()
    before = copy.deepcopy(network)
    masks = masks_at(network, 0.5)
    free = tgd.retrained(network, masks)
    trained_for(network, 1, "weight", free, masks, optimiser)
    assert bool(tgd.touched(before, network, free)) is carried


def test_what_is_touched_is_told_to_the_sign_of_a_zero() -> None:
    before = nn.Conv2d(1, 2, 1)
    after = copy.deepcopy(before)
    free = {"weight": torch.tensor([True, False]).view(2, 1, 1, 1), "bias": torch.zeros(2, dtype=torch.bool)}
    with torch.no_grad():
        before.bias.zero_()  # type: ignore[union-attr]
        after.bias.zero_()  # type: ignore[union-attr]
        after.weight[0] += 1
    assert tgd.touched(before, after, free) == []
    with torch.no_grad():
        after.bias[1] = -0.0  # type: ignore[index]
    assert tgd.touched(before, after, free) == ["bias"]


# ------------------------------------------------------------------------------------------- the dropping test


def with_idle_kernels() -> nn.Module:
    """Of six channels in each layer the last two hardly write and are hardly read."""
    network = moved_enhancer("cnn3")
    with torch.no_grad():
        for name in ("body.2", "body.4"):
            network.get_submodule(name).weight[:, 4:] *= 1e-4  # type: ignore[index, operator, union-attr]
    return network


def psnr(network: nn.Module) -> float:
    """Against the network itself, so that what is lost is what the kernels did."""
    with torch.no_grad():
        return -10 * math.log10(float((network(pair()[0]) - TARGET).square().mean()))


with torch.no_grad():
    TARGET = with_idle_kernels()(pair()[0]) + 0.05


def test_dropped_kernels_make_nothing() -> None:
    network = moved_enhancer("unet")
    masks = masks_at(network, 0.6)
    without = tgd.dropped(network, masks)
    seen: dict[str, Tensor] = {}
    for name in ("down.0.1", "stem.0"):
        without.get_submodule(name).register_forward_hook(lambda m, i, o, name=name: seen.update({name: o.clone()}))
    with torch.no_grad():
        without(pair()[0])
    for name, features in seen.items():
        assert not features[:, masks.rows[name]].any()
        assert features[:, ~masks.rows[name]].any()
    assert tgd.touched(network, without, tgd.retrained(network, masks)) == []


def test_the_dropping_test_takes_the_largest_phi_that_costs_little() -> None:
    network = with_idle_kernels()
    wired = wiring(network, 1)
    scores = tgd.group_scores_G(network, wired, 5)
    curve = tgd.dropping_test(network, wired, scores, (0.6, 0.01, 0.99), psnr)
    assert [row["phi"] for row in curve] == [0.01, 0.6, 0.99]
    for row in curve:
        lost = psnr(network) - psnr(tgd.dropped(network, tgd.masks_of(wired, scores, row["phi"])))
        assert row["lost_db"] == pytest.approx(lost)
    assert curve[0]["lost_db"] < 0.1 < curve[-1]["lost_db"]
    assert tgd.chosen_phi(curve, TGDConfig(drop_db=0.1)) == max(r["phi"] for r in curve if r["lost_db"] <= 0.1)
    assert tgd.chosen_phi(curve, TGDConfig(drop_db=100)) == 0.99


def test_where_every_phi_costs_too_much_there_is_nothing_redundant() -> None:
    curve = [{"phi": 0.2, "lost_db": 3.0, "share": 0.1}, {"phi": 0.3, "lost_db": 4.0, "share": 0.2}]
    with pytest.raises(RefusedError, match=r"tgd\.phi=0\.2 the enhancer loses 3\.00 dB, more than tgd\.drop_db=0\.5"):
        tgd.chosen_phi(curve, TGDConfig())
