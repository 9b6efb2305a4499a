"""Reference sets: at most 64 slices, those with a mask first, degraded as in an evaluation; never of a hospital."""

from __future__ import annotations

import pytest
import torch

from client.batches import evaluation_batch
from client.dataset import Slices
from shared.config import CampaignConfig
from simulation.reference import MOST_SLICES, main, reference_of


def slices(number: int, masked: int) -> Slices:
    rng = torch.Generator().manual_seed(0)
    has_mask_N = torch.zeros(number, dtype=torch.bool)
    has_mask_N[torch.randperm(number, generator=rng)[:masked]] = True
    return Slices(
        clean_NCHW=torch.rand(number, 1, 32, 32, generator=rng),
        mask_NHW=has_mask_N[:, None, None].byte().expand(-1, 32, 32).contiguous(),
        has_mask_N=has_mask_N,
        diagnosis_N=torch.zeros(number, dtype=torch.int64),
        patient_N=torch.arange(number),
        identity=tuple(map(str, range(number))),
    )


@pytest.mark.parametrize(("number", "masked"), [(10, 3), (100, 20), (100, 80), (64, 0)])
def test_slices_with_a_mask_come_first_and_no_more_than_there_is_room_for(
    number: int, masked: int, campaign: CampaignConfig
) -> None:
    made = reference_of(slices(number, masked), campaign)
    assert len(made) == min(number, MOST_SLICES)
    assert int(made.has_mask_N.sum()) == min(masked, MOST_SLICES)
    assert torch.equal(made.mask_NHW.flatten(1).any(1).byte(), made.has_mask_N)


def test_images_are_degraded_as_an_evaluation_does_it(campaign: CampaignConfig) -> None:
    given = slices(6, 6)
    made, batch = reference_of(given, campaign), evaluation_batch(given, campaign, torch.arange(6))
    assert torch.equal(made.clean_NCHW, given.clean_NCHW)
    assert torch.equal(made.degraded_NCHW, batch.degraded_BCHW)
    assert not torch.equal(made.degraded_NCHW, made.clean_NCHW)


def test_a_store_of_a_hospital_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["x.safetensors", "data=store"]) == 2
    assert "may hold real patients" in capsys.readouterr().err
    assert main(["data=store"]) == 2
    assert "python -m simulation.reference OUT" in capsys.readouterr().err
