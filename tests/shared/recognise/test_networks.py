from __future__ import annotations

import pytest
import torch

from shared.config import RecogniserConfig
from shared.recognise.networks import build_recogniser


@pytest.mark.parametrize("size", [(64, 64), (24, 40), (28, 33)])
@pytest.mark.parametrize("channels", [1, 3])
def test_heads_have_the_campaigns_classes(channels: int, size: tuple[int, int]) -> None:
    recogniser = build_recogniser(RecogniserConfig(kind="unet", channels=4, depth=3), channels, 2, 3, seed=0)
    recognition = recogniser(torch.rand(2, channels, *size, generator=torch.Generator().manual_seed(0)))
    assert recognition.mask_logits_BKHW.shape == (2, 3, *size)
    assert recognition.diagnosis_logits_BN.shape == (2, 3)
    assert [feature.shape[1] for feature in recognition.features] == [16, 8, 4]
    assert recognition.features[-1].shape[-2:] == size


def test_skips_are_handed_out_from_fine_to_coarse_without_the_deepest() -> None:
    recogniser = build_recogniser(RecogniserConfig(kind="unet", channels=4, depth=4), 1, 1, 2, seed=0)
    skips = recogniser(torch.rand(1, 1, 28, 33)).skips
    assert [tuple(skip.shape) for skip in skips] == [(1, 4, 28, 33), (1, 8, 14, 17), (1, 16, 7, 9)]


@pytest.mark.parametrize("kind", ["unet", "cnn"])
def test_without_masks_there_is_no_decoder(kind: str) -> None:
    config = RecogniserConfig(kind=kind, channels=4, depth=3)  # type: ignore[arg-type]
    recogniser = build_recogniser(config, 1, 0, 2, seed=0)
    recognition = recogniser(torch.rand(2, 1, 32, 32))
    assert recognition.mask_logits_BKHW is None
    assert recognition.diagnosis_logits_BN.shape == (2, 2)
    assert len(recognition.features) == 1
    assert not [name for name, _ in recogniser.named_parameters() if "up" in name or "mask" in name]


def test_without_diagnoses_there_is_no_class_head() -> None:
    recogniser = build_recogniser(RecogniserConfig(kind="unet", channels=4, depth=2), 1, 2, 0, seed=0)
    recognition = recogniser(torch.rand(1, 1, 16, 16))
    assert recognition.diagnosis_logits_BN is None
    assert recognition.mask_logits_BKHW.shape == (1, 3, 16, 16)


def test_every_weight_learns() -> None:
    recogniser = build_recogniser(
        RecogniserConfig(kind="unet", channels=8, depth=3), 1, 2, 2, seed=0, bridge="normalised"
    )
    recognition = recogniser(torch.rand(2, 1, 16, 16, generator=torch.Generator().manual_seed(0)))
    (recognition.mask_logits_BKHW.square().sum() + recognition.diagnosis_logits_BN.square().sum()).backward()
    assert not [name for name, p in recogniser.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
