from __future__ import annotations

import pytest
import torch
from torch import nn

from shared.config import RecogniserConfig
from shared.recognise.multimix import MultiMixRecogniser
from shared.recognise.networks import build_recogniser
from shared.recognise.saliency import Bridge
from shared.weights import part_of

PUBLISHED = RecogniserConfig(kind="multimix", channels=16, depth=5, dropout=0.25)


def published(masks: int = 1, bridge: Bridge | None = "raw") -> MultiMixRecogniser:
    made = build_recogniser(PUBLISHED, 1, masks, 2, 0, bridge=bridge)
    assert isinstance(made, MultiMixRecogniser)
    return made


def counted(recogniser: nn.Module) -> dict[str, int]:
    counts: dict[str, int] = {}
    for name, weight in recogniser.named_parameters():
        part = str(part_of(f"recogniser.{name}"))
        counts[part] = counts.get(part, 0) + weight.numel()
    return counts


@pytest.mark.parametrize("masks", [1, 2, 5])
def test_it_has_the_published_number_of_weights(masks: int) -> None:
    # A 1 x 1 convolution from 16 channels has 17 weights for each channel of masks, and the paper has one channel.
    more = 17 * (1 + masks) - 17
    counts = counted(published(masks))
    assert counts["encoder"] + counts["diagnosis"] == 1_178_994
    assert counts["decoder"] == 786_161 + more
    assert sum(counts.values()) == 1_965_155 + more
    # Image and saliency: two channels of 3 x 3 weights into 128.
    assert sum(counts.values()) - sum(counted(published(masks, None)).values()) == 2_304


def test_image_and_saliency_enter_the_decoder_at_an_eighth_behind_what_comes_from_below_and_the_skip() -> None:
    recogniser = published().eval()
    bridge = recogniser.bridge
    assert bridge is not None
    assert bridge is recogniser.up[-1][0]  # type: ignore[index]
    assert bridge.weight.shape == (128, 256 + 128 + 2, 3, 3)
    image = torch.rand(1, 1, 64, 64, generator=torch.Generator().manual_seed(0))
    encoding = recogniser.encode(image)
    saliency = torch.rand(1, 1, 64, 64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        bridge.weight[:, -2:] = 0
        assert torch.equal(
            recogniser.decode(encoding, image, saliency).mask_logits_BKHW,
            recogniser.decode(encoding, 0 * image, 0 * saliency).mask_logits_BKHW,
        )
        bridge.weight[:, -2:] = 1
        bridge.weight[:, :-2] = 0
        first = recogniser.decode(encoding, image, saliency).features[1]
        seen = torch.cat([image, saliency], 1)
        eighth = nn.functional.interpolate(seen, size=(8, 8), mode="bilinear", align_corners=True)
        expected = recogniser.up[-1][1:](nn.functional.conv2d(eighth, bridge.weight[:, -2:], bridge.bias, padding=1))  # type: ignore[index]
    torch.testing.assert_close(first, expected)


def test_blocks_are_twice_convolution_norm_and_leaky_relu_with_dropout() -> None:
    kinds = [type(layer) for layer in published().stem]
    once = [nn.Conv2d, nn.InstanceNorm2d, nn.LeakyReLU]
    assert kinds == [*once, *once, nn.Dropout]
    assert {layer.negative_slope for layer in published().modules() if isinstance(layer, nn.LeakyReLU)} == {0.2}
    assert {layer.p for layer in published().modules() if isinstance(layer, nn.Dropout)} == {0.25}


def test_the_class_head_reads_the_mean_of_the_halved_deepest_features() -> None:
    recogniser = published().eval()
    image = torch.rand(2, 1, 64, 64, generator=torch.Generator().manual_seed(0))
    encoding = recogniser.encode(image)
    squares = encoding.deepest_BCHW.unfold(2, 2, 2).unfold(3, 2, 2)
    head = recogniser.diagnosis_head
    assert head is not None
    torch.testing.assert_close(
        encoding.diagnosis_logits_BN, squares.amax((-1, -2)).mean((2, 3)) @ head.weight.T + head.bias
    )


@pytest.mark.parametrize("size", [(33, 47), (50, 64)])
def test_odd_sizes_are_rounded_up_on_the_way_down(size: tuple[int, int]) -> None:
    recognition = published()(torch.rand(1, 1, *size))
    assert recognition.mask_logits_BKHW.shape == (1, 2, *size)
    assert [feature.shape[1] for feature in recognition.features] == [256, 128, 64, 32, 16]
    assert [skip.shape[1] for skip in recognition.skips] == [16, 32, 64, 128]
