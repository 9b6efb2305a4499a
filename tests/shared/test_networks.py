from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from shared.config import CampaignConfig, MachineConfig
from shared.errors import ConfigError
from shared.networks import build_networks, placed, resolved_device


def test_a_campaign_builds_the_same_networks_everywhere(campaign: CampaignConfig) -> None:
    one, same = build_networks(campaign), build_networks(campaign)
    image = torch.rand(2, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    for ours, theirs in zip(one.recogniser(image)[:2], same.recogniser(image)[:2], strict=True):
        assert torch.equal(ours, theirs)


def test_a_campaigns_channels_reach_both_networks(campaign: CampaignConfig) -> None:
    colour = build_networks(replace(campaign, data=replace(campaign.data, channels=3)))
    image = torch.rand(1, 3, 32, 32)
    assert colour.enhancer(image).shape == image.shape
    assert colour.recogniser(image).mask_logits_BKHW.shape == (1, 3, 32, 32)


def test_a_device_that_is_not_here_is_refused_with_the_way_out() -> None:
    with pytest.raises(ConfigError, match="machine.device=cuda:99 is not on this machine; choose machine.device=cpu"):
        resolved_device(MachineConfig(device="cuda:99"))
    with pytest.raises(ConfigError, match="must be auto, cpu, cuda"):
        resolved_device(MachineConfig(device="abacus"))


def test_placing_fixes_threads_and_layout(campaign: CampaignConfig) -> None:
    networks = build_networks(campaign)
    device = placed(networks, MachineConfig(device="cpu", threads=1, channels_last=True))
    assert device.type == "cpu"
    assert torch.get_num_threads() == 1
    layouts = [
        p.is_contiguous(memory_format=torch.channels_last) for p in networks.enhancer.parameters() if p.ndim == 4
    ]
    assert all(layouts)


def test_small_networks_are_built_without_heavy_imports(campaign: CampaignConfig) -> None:
    code = """
import sys
import client.train.local, client.evaluate
from shared.config import EnhancerConfig, RecogniserConfig
from shared.enhance.networks import build_enhancer
from shared.recognise.networks import build_recogniser
build_enhancer(EnhancerConfig(kind="cnn3", channels=8), 1, 0)
build_recogniser(RecogniserConfig(kind="cnn", channels=8), 1, 0, 2, 0)
heavy = {"monai", "scipy", "matplotlib", "skimage", "sklearn", "pydicom", "highdicom", "nilearn"}
heavy |= {"hydra", "flwr", "ray", "pandas"}
print(sorted(heavy & set(sys.modules)))
"""
    out = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert out.stdout.strip() == "[]"


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc only")
def test_freed_memory_is_taken_again_without_page_faults() -> None:
    code = """
import resource, sys, torch
from shared.networks import keep_freed_memory
if sys.argv[1] == "keep":
    keep_freed_memory()
torch.set_num_threads(1)
image = torch.rand(8, 16, 64, 64)
def work():
    parts = [image + number for number in range(12)]  # 24 MB, taken and freed
for _ in range(3): work()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10): work()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
    kept, plain = (
        int(subprocess.run([sys.executable, "-c", code, how], check=True, capture_output=True, text=True).stdout)
        for how in ("keep", "plain")
    )
    assert kept < max(2_000, 0.1 * plain)  # 60,000 pages are taken; a busy kernel takes some away
