"""What a person reads before saying yes: what leaves, and that more leaves where the campaign promotes."""

from __future__ import annotations

from dataclasses import replace

from client.describe import describe
from shared.config import CampaignConfig, StrategyConfig


def test_what_recognition_caused_is_told_where_it_leaves_apart(campaign: CampaignConfig) -> None:
    promoting = replace(campaign, strategy=StrategyConfig(kind="fedavg", promotion="global"))
    assert "recognition caused (0.0 MB as float16)" in dict(describe(promoting))["leaves, each round"]
    assert "recognition caused" not in dict(describe(campaign))["leaves, each round"]
