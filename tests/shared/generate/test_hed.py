"""The edge detector: its sides, its balanced loss against the paper's sums, learning, and files of weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from shared.errors import ConfigError
from shared.generate.edges import gaussian_edges
from shared.generate.hed import VGG, Hed, Layout, build_hed, converted, hed_edges, hed_loss, hed_target, own_layout
from shared.generate.hints import label_outline
from shared.seeding import generator


def squares(count: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Bright squares with noise, and their masks."""
    rng = np.random.default_rng(seed)
    image_BCHW, mask_BHW = torch.zeros(count, 1, 32, 32), torch.zeros(count, 32, 32, dtype=torch.int64)
    for number in range(count):
        top, left = rng.integers(4, 14, 2)
        side = rng.integers(8, 14)
        mask_BHW[number, top : top + side, left : left + side] = 1
    image_BCHW = 0.6 * mask_BHW[:, None] + 0.2 + 0.05 * torch.randn(image_BCHW.shape, generator=generator(seed, "hed"))
    return image_BCHW, mask_BHW


@pytest.mark.parametrize("size", [(64, 64), (72, 40), (16, 8), (8, 8)])
def test_sides_and_fusion_have_the_size_of_the_image(size: tuple[int, int]) -> None:
    logit_BSHW = build_hed(1, None)(torch.rand(2, 1, *size))
    assert logit_BSHW.shape == (2, 6, *size)
    assert logit_BSHW.isfinite().all()


def test_the_layouts_are_as_large_as_they_say() -> None:
    own = sum(p.numel() for p in Hed(own_layout(1)).parameters())
    assert own == 55_043
    # VGG-16's thirteen convolutions (14 714 688) and five 1 x 1 sides, and the fusion's five weights and its bias
    with torch.device("meta"):
        published = sum(p.numel() for p in Hed(VGG).parameters())
    assert published == 14_714_688 + sum(VGG.widths) + 5 + 6


def test_the_fused_output_is_the_mean_of_the_sides_at_first() -> None:
    logit_BSHW = build_hed(1, None)(torch.rand(2, 1, 32, 32))
    torch.testing.assert_close(logit_BSHW[:, 5], logit_BSHW[:, :5].mean(1), rtol=1e-4, atol=1e-5)


def test_every_side_is_supervised() -> None:
    hed = build_hed(1, None)
    image_BCHW, mask_BHW = squares(2)
    hed_loss(hed(image_BCHW), hed_target(image_BCHW, mask_BHW)).backward()
    assert all(p.grad is not None and p.grad.count_nonzero() for p in hed.sides.parameters())
    with torch.no_grad():
        hed.fuse.weight.zero_()
    hed.zero_grad()
    hed_loss(hed(image_BCHW), hed_target(image_BCHW, mask_BHW)).backward()
    assert all(p.grad is not None and p.grad.count_nonzero() for p in hed.stages[0].parameters()), "without the fusion"


def test_the_loss_is_that_of_the_paper_summed_pixel_by_pixel() -> None:
    rng = generator(0, "hed")
    logit_BSHW = torch.randn(2, 6, 5, 4, generator=rng, dtype=torch.float64)
    target_B1HW = (torch.rand(2, 1, 5, 4, generator=rng) < 0.2).double()
    total = 0.0
    for image in range(2):
        edge_HW = target_B1HW[image, 0].bool()
        beta = float((~edge_HW).sum()) / edge_HW.numel()
        for side in range(6):
            p_HW = logit_BSHW[image, side].sigmoid()
            total += float(-beta * p_HW[edge_HW].log().sum() - (1 - beta) * (1 - p_HW[~edge_HW]).log().sum())
    assert float(hed_loss(logit_BSHW, target_B1HW)) == pytest.approx(total / (2 * 20), rel=1e-9)


@pytest.mark.parametrize("level", [0.0, 1.0])
def test_a_target_without_edges_or_of_nothing_else_has_a_finite_loss(level: float) -> None:
    logit_BSHW = torch.randn(1, 6, 8, 8, generator=generator(0, "flat"))
    assert float(hed_loss(logit_BSHW, torch.full((1, 1, 8, 8), level))) == pytest.approx(0)


def test_a_target_is_strong_gradients_and_outlines() -> None:
    image_BCHW, mask_BHW = squares(3)
    target = hed_target(image_BCHW, mask_BHW)
    expected = (gaussian_edges(image_BCHW) >= 0.5) | (label_outline(mask_BHW) == 1)
    assert torch.equal(target.bool(), expected)
    assert set(target.unique().tolist()) == {0.0, 1.0}
    assert torch.equal(hed_target(image_BCHW, 0 * mask_BHW).bool(), gaussian_edges(image_BCHW) >= 0.5)


def test_it_learns_edges_of_images_that_it_has_not_seen() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        hed = build_hed(1, None)
    optimiser = torch.optim.Adam(hed.parameters(), lr=5e-3)
    image_BCHW, mask_BHW = squares(16)
    target = hed_target(image_BCHW, mask_BHW)
    for _ in range(30):
        optimiser.zero_grad()
        hed_loss(hed(image_BCHW), target).backward()
        optimiser.step()
    unseen_BCHW, mask_BHW = squares(8, seed=1)
    wanted = hed_target(unseen_BCHW, mask_BHW).bool()
    edges = hed_edges(hed, unseen_BCHW)
    assert edges.shape == (8, 1, 32, 32)
    assert not edges.requires_grad
    # Edges and the rest weigh alike in the loss, so they do in what it is judged by.
    assert float((edges[wanted] > 0.5).float().mean()) > 0.95
    assert float((edges[~wanted] < 0.5).float().mean()) > 0.85


def test_own_weights_are_read_from_a_file(tmp_path: Path) -> None:
    hed = build_hed(3, None)
    for prefix in ("", "hed."):  # as this module names them, and as they travel
        save_file({prefix + name: tensor for name, tensor in hed.state_dict().items()}, tmp_path / "hed.safetensors")
        read = build_hed(3, str(tmp_path / "hed.safetensors"))
        image_BCHW = torch.rand(1, 3, 16, 16)
        assert torch.equal(hed(image_BCHW), read(image_BCHW))


def published_weights() -> dict[str, Tensor]:
    """Random weights under the names of the published file."""
    numerals, given, arrays = ("One", "Two", "Three", "Four", "Five"), 3, {}
    rng = generator(0, "published")
    for stage, (width, count) in enumerate(zip(VGG.widths, VGG.convolutions, strict=True)):
        for number in range(count):
            name = f"moduleVgg{numerals[stage]}.{2 * number + (stage > 0)}"  # ReLU between; pooling first but in One
            arrays[f"{name}.weight"] = torch.randn(width, given, 3, 3, generator=rng) / (3 * given**0.5)
            arrays[f"{name}.bias"] = torch.randn(width, generator=rng)
            given = width
        arrays[f"moduleScore{numerals[stage]}.weight"] = torch.randn(1, width, 1, 1, generator=rng) / width
        arrays[f"moduleScore{numerals[stage]}.bias"] = torch.randn(1, generator=rng)
    arrays["moduleCombine.0.weight"] = torch.randn(1, 5, 1, 1, generator=rng)
    arrays["moduleCombine.0.bias"] = torch.randn(1, generator=rng)
    return arrays


def published_edges(arrays: dict[str, Tensor], image_B3HW: Tensor) -> Tensor:
    """The published network, layer by layer from its arrays: RGB in [0, 1] to the fused edges."""
    mean_BGR = torch.tensor([104.00698793, 116.66876762, 122.67891434])[:, None, None]
    x = image_B3HW[:, [2, 1, 0]] * 255 - mean_BGR
    sides = []
    for stage, numeral in enumerate(("One", "Two", "Three", "Four", "Five")):
        layers = [F.relu] * 6 if stage == 0 else [lambda x: F.max_pool2d(x, 2, 2), *[F.relu] * 6]
        convolutions = sorted(
            int(name.split(".")[1]) for name in arrays if name.startswith(f"moduleVgg{numeral}.") and "weight" in name
        )
        for place in range(convolutions[-1] + 2):
            if place in convolutions:
                name = f"moduleVgg{numeral}.{place}"
                x = F.conv2d(x, arrays[f"{name}.weight"], arrays[f"{name}.bias"], padding=1)
            else:
                x = layers[place](x)
        side = F.conv2d(x, arrays[f"moduleScore{numeral}.weight"], arrays[f"moduleScore{numeral}.bias"])
        sides.append(F.interpolate(side, size=image_B3HW.shape[-2:], mode="bilinear", align_corners=False))
    weight, bias = arrays["moduleCombine.0.weight"], arrays["moduleCombine.0.bias"]
    return F.conv2d(torch.cat(sides, 1), weight, bias).sigmoid()


def test_published_weights_give_the_published_network(tmp_path: Path) -> None:
    arrays = published_weights()
    save_file(arrays, tmp_path / "hed.safetensors")
    hed = build_hed(1, str(tmp_path / "hed.safetensors"))
    image_BCHW = torch.rand(1, 3, 32, 16, generator=generator(0, "image"))
    torch.testing.assert_close(hed_edges(hed, image_BCHW), published_edges(arrays, image_BCHW))
    grey_BCHW = image_BCHW[:, :1]
    torch.testing.assert_close(hed_edges(hed, grey_BCHW), published_edges(arrays, grey_BCHW.expand(-1, 3, -1, -1)))


def test_names_with_net_instead_of_module_are_the_same() -> None:
    arrays = {name: torch.zeros(1) for name in published_weights()}
    with torch.device("meta"):
        expected = Hed(VGG).state_dict().keys()
    assert converted(arrays).keys() == expected
    assert converted({f"net{name[6:]}": tensor for name, tensor in arrays.items()}).keys() == expected


def test_a_file_that_does_not_fit_is_refused_with_the_reason(tmp_path: Path) -> None:
    path = tmp_path / "hed.safetensors"
    with pytest.raises(ConfigError, match="expected a safetensors file"):
        build_hed(1, str(path))
    path.write_bytes(b"\x80\x04pickled")
    with pytest.raises(ConfigError, match="expected a safetensors file"):
        build_hed(1, str(path))
    own = {name: tensor.clone() for name, tensor in build_hed(1, None).state_dict().items()}
    for wrong, reason in (
        ({**own, "more": torch.zeros(1)}, "does not have"),
        ({name: tensor for name, tensor in own.items() if name != "fuse.bias"}, "lack"),
        ({**own, "fuse.bias": torch.zeros(2)}, "shape"),
        ({**own, "fuse.bias": torch.tensor([float("nan")])}, "finite"),
    ):
        save_file(wrong, path)
        with pytest.raises(ConfigError, match=f"hed_weights: .*{reason}"):
            build_hed(1, str(path))
    save_file(own, path)
    with pytest.raises(ConfigError, match="shape"):
        build_hed(3, str(path))


def test_any_layout_can_be_built() -> None:
    assert Hed(Layout(2, (4, 8), (1, 1), norm=False))(torch.zeros(1, 2, 8, 8)).shape == (1, 3, 8, 8)
