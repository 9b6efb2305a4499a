"""A recogniser's modules are named so that shared.weights.part_of tells what each kind of label moves."""

from __future__ import annotations

from typing import get_args, get_type_hints

import pytest
import torch
from torch import Tensor, nn

from shared.config import RecogniserConfig
from shared.recognise.networks import build_recogniser
from shared.weights import PARTS, part_of

KINDS = get_args(get_type_hints(RecogniserConfig)["kind"])
SEGMENTING = [kind for kind in KINDS if kind != "cnn"]


def network(kind: str, *, masks: int = 2, diagnoses: int = 3) -> nn.Module:
    config = RecogniserConfig(kind=kind, channels=8, depth=3)  # type: ignore[arg-type]
    bridge = "normalised" if kind in ("unet", "multimix") and masks else None
    return build_recogniser(config, 1, masks, diagnoses, 0, bridge=bridge).train()


def moved_by(recogniser: nn.Module, logits: Tensor) -> set[str]:
    recogniser.zero_grad()
    (logits.square() + logits).sum().backward(retain_graph=True)
    return {
        name
        for name, weight in recogniser.named_parameters()
        if weight.grad is not None and float(weight.grad.abs().sum()) > 0
    }


@pytest.mark.parametrize("kind", SEGMENTING)
def test_masks_alone_move_the_decoder_and_diagnoses_alone_the_class_head(kind: str) -> None:
    recogniser = network(kind)
    recognition = recogniser(torch.rand(2, 1, 32, 32, generator=torch.Generator().manual_seed(0)))
    masks = moved_by(recogniser, recognition.mask_logits_BKHW)
    diagnoses = moved_by(recogniser, recognition.diagnosis_logits_BN)
    parts: dict[str, set[str]] = {part: set() for part in PARTS}
    for name in recogniser.state_dict():
        part = part_of(f"recogniser.{name}")
        assert part is not None
        parts[part].add(name)
    assert parts["decoder"] == masks - diagnoses
    assert parts["diagnosis"] == diagnoses - masks
    assert parts["encoder"] == masks & diagnoses
    assert not parts["prior"]
    assert all(parts[part] for part in ("encoder", "decoder", "diagnosis"))


@pytest.mark.parametrize("kind", KINDS)
def test_without_masks_there_is_no_decoder_and_without_diagnoses_no_class_head(kind: str) -> None:
    names = {part_of(f"recogniser.{name}") for name in network(kind, masks=0).state_dict()}
    assert names == {"encoder", "diagnosis"}
    if kind != "cnn":
        names = {part_of(f"recogniser.{name}") for name in network(kind, diagnoses=0).state_dict()}
        assert names == {"encoder", "decoder"}


def test_what_every_image_trains_belongs_to_no_part() -> None:
    assert part_of("enhancer.up.0.weight") is None
    assert part_of("critic.diagnosis_head.weight") is None
    assert part_of("prior.map_KHW") == "prior"
