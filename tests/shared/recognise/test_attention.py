from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from shared.config import RecogniserConfig
from shared.recognise.attention import AttentionUNetRecogniser
from shared.recognise.downstream import norms_of_single_images
from shared.recognise.networks import build_recogniser


def network(masks: int = 2, depth: int = 4, **own: float) -> AttentionUNetRecogniser:
    config = RecogniserConfig(kind="attention-unet", channels=4, depth=depth, **own)  # type: ignore[arg-type]
    made = build_recogniser(config, 1, masks, 2, 0)
    assert isinstance(made, AttentionUNetRecogniser)
    rng = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for weight in made.parameters():
            weight.add_(0.1 * torch.randn(weight.shape, generator=rng))
    return made.eval()


def images(size: tuple[int, int] = (32, 48)) -> Tensor:
    return torch.rand(2, 1, *size, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("depth", [2, 3, 4])
def test_its_masks_are_those_of_monais_network_with_the_same_weights(depth: int) -> None:
    from monai.networks.nets.attentionunet import AttentionUnet

    ours = network(depth=depth)
    theirs = AttentionUnet(2, 1, 3, [4 * 2**level for level in range(depth)], [2] * (depth - 1)).eval()
    norms_of_single_images(theirs)
    head, layer, last = theirs.model
    pairs: list[tuple[nn.Module, nn.Module]] = [(head, ours.stem), (last.conv, ours.mask_head)]  # type: ignore[list-item]
    for level in range(depth - 1):
        block = layer.submodule[0] if level < depth - 2 else layer.submodule
        pairs += [
            (block, ours.down[level]),
            (layer.attention, ours.gate[level]),
            (layer.upconv, ours.up[level]),
            (layer.merge, ours.narrow[level]),
        ]
        layer = layer.submodule[1] if level < depth - 2 else layer
    for of_theirs, of_ours in pairs:
        of_theirs.load_state_dict(of_ours.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(ours(images()).mask_logits_BKHW, theirs(images()))


def test_attention_maps_are_coefficients_of_the_skips_from_coarse_to_fine() -> None:
    with torch.no_grad():
        maps = network().attention_maps(images())
    assert [tuple(psi.shape) for psi in maps] == [(2, 1, 8, 12), (2, 1, 16, 24), (2, 1, 32, 48)]
    assert all(0 <= float(psi.min()) < float(psi.max()) <= 1 for psi in maps)
    assert network(masks=0).attention_maps(images()) == []


def test_a_closed_gate_keeps_its_skip_from_the_masks() -> None:
    recogniser = network()
    said = recogniser(images())
    with torch.no_grad():
        norm = recogniser.gate[0].psi[1]  # type: ignore[index, union-attr]
        norm.weight.zero_()
        norm.bias.fill_(-1e4)
        assert float(recogniser.attention_maps(images())[-1].abs().max()) == 0
        closed = recogniser(images())
        # With the gate shut, nothing but what comes from below reaches the last block: its other half of inputs idles.
        recogniser.narrow[0].conv.weight[:, :4] += 1  # type: ignore[index, operator, union-attr]
        again = recogniser(images())
    assert not torch.allclose(said.mask_logits_BKHW, closed.mask_logits_BKHW)
    assert torch.equal(closed.mask_logits_BKHW, again.mask_logits_BKHW)


def test_skips_and_features_are_handed_out() -> None:
    recognition = network()(images())
    assert [tuple(skip.shape[1:]) for skip in recognition.skips] == [(4, 32, 48), (8, 16, 24), (16, 8, 12)]
    assert [tuple(found.shape[1:]) for found in recognition.features] == [
        (32, 4, 6),
        (16, 8, 12),
        (8, 16, 24),
        (4, 32, 48),
    ]
    assert len(network(masks=0)(images()).skips) == 3
