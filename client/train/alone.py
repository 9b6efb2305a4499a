"""The campaign of a federation in, that of a recogniser out which one site trains on its real images by itself."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from shared.config import (
    AugmentConfig,
    CampaignConfig,
    DegradeConfig,
    EnhancerConfig,
    GenerateConfig,
    LearnConfig,
    ObjectiveConfig,
    RoundsConfig,
    SelfRegConfig,
    StrategyConfig,
    TrainingConfig,
)


def alone(campaign: CampaignConfig, training: TrainingConfig, **further: Any) -> CampaignConfig:
    """One round of `training` on slices as they are: no degradation, no enhancer, no generator, no other site.

    `further`: fields of CampaignConfig that are to be otherwise.
    """
    plain: dict[str, Any] = {
        "degrade": DegradeConfig(kind="none"),
        "enhance": EnhancerConfig(kind="none"),
        "objective": ObjectiveConfig(kind="plain"),
        "strategy": StrategyConfig(kind="fedavg"),
        "rounds": RoundsConfig(rounds=1),
        "learn": LearnConfig(),
        "selfreg": SelfRegConfig(),
        "generate": GenerateConfig(),
        "augment": AugmentConfig(),
    }
    return replace(campaign, training=training, **{**plain, **further})
