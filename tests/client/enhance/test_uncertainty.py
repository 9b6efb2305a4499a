from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from client.enhance.release import InUse, enhanced, in_use
from client.enhance.uncertainty import measured_noise, noise_level, spread
from shared.config import CampaignConfig, DegradeConfig, EnhancerConfig, MachineConfig
from shared.networks import Networks, build_networks
from tests.client.enhance.conftest import make_installed
from tests.client.slices import disc_slices


@pytest.fixture(scope="module")
def state() -> dict[str, torch.Tensor]:
    return {}


def trained(campaign: CampaignConfig, machine: MachineConfig, folder: Path, state: dict[str, torch.Tensor]) -> InUse:
    """A denoiser of discs, learnt in seconds and once."""
    campaign = replace(campaign, enhance=EnhancerConfig(kind="unet", channels=8, depth=2))
    networks = build_networks(campaign)
    if not state:
        clean = disc_slices(24, seed=1).clean_NCHW
        rng = torch.Generator().manual_seed(0)
        optimiser = torch.optim.Adam(networks.enhancer.parameters(), lr=5e-3)
        for _ in range(150):
            batch = clean[torch.randint(len(clean), (6,), generator=rng)]
            noisy = (batch + 0.1 * torch.randn(batch.shape, generator=rng)).clamp(0, 1)
            optimiser.zero_grad()
            (networks.enhancer(noisy) - batch).square().mean().backward()
            optimiser.step()
        state.update({name: value.clone() for name, value in networks.enhancer.state_dict().items()})
    networks.enhancer.load_state_dict(state)
    return in_use(make_installed(folder, campaign, Networks(networks.enhancer, networks.recogniser)), machine)


def test_uncertainty_is_higher_at_edges_and_goes_with_the_true_error(
    tmp_path: Path, campaign: CampaignConfig, machine: MachineConfig, state: dict[str, torch.Tensor]
) -> None:
    """On held-out discs: edges are what noise makes ambiguous, flat regions are not; and the map ranks the error."""
    release = trained(campaign, machine, tmp_path / "r", state)
    slices = disc_slices(8, seed=9)
    noise = 0.1 * torch.randn(slices.clean_NCHW.shape, generator=torch.Generator().manual_seed(5))
    noisy = (slices.clean_NCHW + noise).clamp(0, 1)
    spread_FHW = spread(release, noisy, 16)
    clean = slices.clean_NCHW[:, 0]
    edge = torch.zeros_like(clean, dtype=torch.bool)
    edge[:, 1:-1, 1:-1] = (clean[:, 2:, 1:-1] != clean[:, :-2, 1:-1]) | (clean[:, 1:-1, 2:] != clean[:, 1:-1, :-2])
    assert spread_FHW[edge].mean() > 1.2 * spread_FHW[~edge].mean()
    error = (enhanced(release, noisy)[:, 0] - clean).abs()
    ranks = [np.argsort(np.argsort(values.flatten().numpy())) for values in (spread_FHW, error)]
    assert np.corrcoef(*ranks)[0, 1] > 0.2


def test_the_same_seed_draws_the_same_map(
    tmp_path: Path, campaign: CampaignConfig, machine: MachineConfig, state: dict[str, torch.Tensor]
) -> None:
    release = trained(campaign, machine, tmp_path / "r", state)
    image = disc_slices(1).clean_NCHW
    assert torch.equal(spread(release, image, 3, seed=4), spread(release, image, 3, seed=4))
    assert not torch.equal(spread(release, image, 3, seed=4), spread(release, image, 3, seed=5))


def test_the_spread_of_an_identity_is_the_noise_that_was_added(
    tmp_path: Path, campaign: CampaignConfig, machine: MachineConfig
) -> None:
    """Mathematics: half of the campaign's sigma of 0.1."""
    release = in_use(make_installed(tmp_path / "r", campaign), machine)
    found = spread(release, torch.full((1, 1, 32, 32), 0.5), 64)
    assert float(found.mean()) == pytest.approx(0.05, rel=0.03)


def test_noise_is_measured_where_the_degradation_is_none() -> None:
    rng = torch.Generator().manual_seed(0)
    image = 0.5 + 0.03 * torch.randn(2, 1, 64, 64, generator=rng)
    assert measured_noise(image).flatten().tolist() == pytest.approx([0.03, 0.03], rel=0.1)
    blur = noise_level(DegradeConfig(kind="blur"), image)
    assert blur.flatten().tolist() == pytest.approx([0.03, 0.03], rel=0.1)
    assert float(noise_level(DegradeConfig(kind="gaussian", sigma=(0.1, 0.3)), image).max()) == pytest.approx(0.2)
    poisson = noise_level(DegradeConfig(kind="poisson", peak=(100, 100)), torch.full((1, 1, 4, 4), 0.25))
    assert float(poisson.mean()) == pytest.approx(0.05)
