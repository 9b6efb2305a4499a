from __future__ import annotations

import pytest
import torch

from shared.config import RecogniserConfig
from shared.recognise.networks import build_recogniser


@pytest.mark.parametrize("size", [(64, 64), (24, 40), (28, 33)])
@pytest.mark.parametrize("channels", [1, 3])
def test_heads_have_the_campaigns_classes(channels: int, size: tuple[int, int]) -> None:
    recogniser = build_recogniser(RecogniserConfig(kind="unet", channels=4, depth=3), channels, 2, 3, seed=0)
    image = torch.rand(2, channels, *size, generator=torch.Generator().manual_seed(0))
    mask_logits, diagnosis_logits, features = recogniser(image)
    assert mask_logits.shape == (2, 3, *size)
    assert diagnosis_logits.shape == (2, 3)
    assert [feature.shape[1] for feature in features] == [16, 8, 4]
    assert features[-1].shape[-2:] == size


@pytest.mark.parametrize("kind", ["unet", "cnn"])
def test_without_masks_there_is_no_decoder(kind: str) -> None:
    config = RecogniserConfig(kind=kind, channels=4, depth=3)  # type: ignore[arg-type]
    recogniser = build_recogniser(config, 1, 0, 2, seed=0)
    mask_logits, diagnosis_logits, features = recogniser(torch.rand(2, 1, 32, 32))
    assert mask_logits is None
    assert diagnosis_logits.shape == (2, 2)
    assert len(features) == 1
    assert not [name for name, _ in recogniser.named_parameters() if "up" in name or "mask" in name]


def test_without_diagnoses_there_is_no_class_head() -> None:
    recogniser = build_recogniser(RecogniserConfig(kind="unet", channels=4, depth=2), 1, 2, 0, seed=0)
    mask_logits, diagnosis_logits, _ = recogniser(torch.rand(1, 1, 16, 16))
    assert diagnosis_logits is None
    assert mask_logits.shape == (1, 3, 16, 16)


def test_every_weight_learns() -> None:
    recogniser = build_recogniser(RecogniserConfig(kind="unet", channels=8, depth=3), 1, 2, 2, seed=0)
    mask_logits, diagnosis_logits, _ = recogniser(torch.rand(2, 1, 16, 16, generator=torch.Generator().manual_seed(0)))
    (mask_logits.square().sum() + diagnosis_logits.square().sum()).backward()
    assert not [name for name, p in recogniser.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
