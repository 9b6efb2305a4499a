"""Typed configuration: yaml and overrides in at the door, frozen values everywhere else.

A `CampaignConfig` is what sites agree on: its digest travels with every plan. A `MachineConfig` is one machine's own
affair (device, threads) and part of no digest.
"""

from shared.config.build import build
from shared.config.campaign import (
    CampaignConfig,
    DataConfig,
    DegradeConfig,
    DeidentifyConfig,
    EnhancerConfig,
    IngestConfig,
    IntensityConfig,
    ObjectiveConfig,
    RoundsConfig,
    SplitConfig,
    StrategyConfig,
    TrainingConfig,
)
from shared.config.digest import agreed_phase, campaign_digest, load_campaign, save_campaign, to_dict, without_places
from shared.config.generation import (
    AugmentConfig,
    DrawConfig,
    GenerateConfig,
    Phase,
    PhaseConfig,
    TaskConfig,
)
from shared.config.load import load
from shared.config.personal import PersonaliseConfig, TGDConfig
from shared.config.programs import (
    CompareConfig,
    CrossConfig,
    HospitalConfig,
    HospitalsConfig,
    MachineConfig,
    ScannerConfig,
    SimulationConfig,
    StudyConfig,
    TableConfig,
)
from shared.config.protection import PrivacyConfig, SecAggConfig
from shared.config.recognition import LabelsConfig, LearnConfig, RecogniserConfig, SelfRegConfig
from shared.config.releasing import ReleaseConfig

__all__ = [
    "AugmentConfig",
    "CampaignConfig",
    "CompareConfig",
    "CrossConfig",
    "DataConfig",
    "DegradeConfig",
    "DeidentifyConfig",
    "DrawConfig",
    "EnhancerConfig",
    "GenerateConfig",
    "HospitalConfig",
    "HospitalsConfig",
    "IngestConfig",
    "IntensityConfig",
    "LabelsConfig",
    "LearnConfig",
    "MachineConfig",
    "ObjectiveConfig",
    "PersonaliseConfig",
    "Phase",
    "PhaseConfig",
    "PrivacyConfig",
    "RecogniserConfig",
    "ReleaseConfig",
    "RoundsConfig",
    "ScannerConfig",
    "SecAggConfig",
    "SelfRegConfig",
    "SimulationConfig",
    "SplitConfig",
    "StrategyConfig",
    "StudyConfig",
    "TGDConfig",
    "TableConfig",
    "TaskConfig",
    "TrainingConfig",
    "agreed_phase",
    "build",
    "campaign_digest",
    "load",
    "load_campaign",
    "save_campaign",
    "to_dict",
    "without_places",
]
