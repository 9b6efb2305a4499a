"""Every yaml composes into its dataclass, and what cannot be kept is refused in one line with the way out."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from shared.config import (
    CampaignConfig,
    GenerateConfig,
    RoundsConfig,
    SimulationConfig,
    build,
    campaign_digest,
    load,
    load_campaign,
    save_campaign,
    to_dict,
)
from shared.errors import ConfigError

CONFIGS = Path(__file__).parents[1] / "configs"


def choices(group: str) -> list[str]:
    return sorted(path.stem for path in (CONFIGS / group).glob("*.yaml"))


@pytest.mark.parametrize("name", choices("experiment"))
@pytest.mark.parametrize("budget", ["quick", "full"])
def test_every_experiment_composes(name: str, budget: str) -> None:
    config = load("simulation", [f"experiment={name}", f"budget={budget}"], SimulationConfig)
    assert config.experiment == name
    assert config.run_dir == f"runs/{name}"
    assert len(config.seeds) == (1 if budget == "quick" else 3)


GROUPS = ["data", "degrade", "enhance", "recognise", "learn", "objective", "strategy", "generate", "augment"]


@pytest.mark.parametrize(("group", "choice"), [(group, choice) for group in GROUPS for choice in choices(group)])
def test_every_choice_of_every_group_composes(group: str, choice: str) -> None:
    extra = ["data=phantom"] if group == "degrade" else []
    if choice == "vgg-wgan":
        extra = ["objective.vgg_weights=vgg19.pth"]
    if choice == "none":
        extra += ["objective=plain", "enhance=none"]
    if choice == "cnn":
        extra = ["data=pneumonia"]
    if (group, choice) == ("recognise", "multimix"):
        extra = ["recognise.depth=4"]  # as published it halves the image four times, and data=mni is 64 x 56
    if choice.startswith("emit-diff") and group == "augment":
        extra = ["generate=emit-diff", "objective=plain", "enhance=none", "degrade=none"]
    config = load("simulation", [f"{group}={choice}", *extra], SimulationConfig)
    assert getattr(config.campaign, group).kind == choice


def test_the_command_line_beats_the_experiment() -> None:
    config = load(
        "simulation", ["experiment=phantom", "rounds=5", "seed=7", "sites=2", "objective=joint"], SimulationConfig
    )
    assert (config.campaign.rounds.rounds, config.seeds, config.campaign.seed, config.sites) == (5, (7,), 7, 2)
    assert config.campaign.objective.kind == "joint"


@pytest.mark.parametrize(
    ("override", "reason"),
    [
        ("foo=1", "unknown key 'foo'"),
        ("data.rot=/data", "did you mean data.root"),
        (
            "objective=gradpom",
            "choose one of estr, frozen, gradprom, joint, mse-wgan, plain, todnet",
        ),
        ("sites=many", "sites must be int"),
        ("sites=true", "sites must be int"),
        ("budget=huge", "one of quick, full"),
        ("rounds=0", "must be 1 or more"),
        ("sites=1", "lower the quorum"),
        ("transport=smoke", "one of inprocess, ray"),
        ("data.image_size=[30,30]", "multiples of 8"),
        ("data.image_size=[64]", "2 values"),
        ("degrade=low_dose", "modality is CT"),
        ("recognise=cnn", "cannot segment"),
        ("learn.kind=multimix", "write learn=multimix"),
        ("strategy.proximal_mu=1", "belongs to strategy=fedprox"),
        ("degrade.sigma=[0.3,0.1]", "low <= high"),
        ("objective.warmup=1", "must lie in [0, 1)"),
        ("+data.colour=red", "unknown key 'campaign.data.colour'"),
        ("enhance.depth=0", "must be 1 or more"),
        ("recognise.channels=0", "must be 1 or more"),
        ("recognise.dropout=2", "[0, 1)"),
        ("strategy.beta2=2", "[0, 1)"),
        ("strategy.server_learning_rate=0", "above 0"),
        ("round.round_deadline_s=-1", "above 0"),
        ("machine.threads=0", "1 or more"),
        ("degrade.peak=[0,0]", "above 0"),
        ("degrade.acceleration=[0.5,2]", "1 or more"),
        ("data.ingest.deidentify.options=[retain_everything]", "may hold"),
        ("name=a/b", "letters, digits"),
        ("objective.mask_weight=-1", "not be negative"),
        ("objective=vgg-wgan", "needs objective.vgg_weights=FILE"),
        ("objective.gate=locked", "one of global, layer, weighted, projected, confident"),
        ("objective.norm_cap=0", "1e-06 or more"),
        ("objective.norm_cap=1e-7", "1e-06 or more"),
        ("enhance.channels=1025", "enhance.channels must be 1024 or less; got 1025"),
        ("recognise.channels=10000000", "recognise.channels must be 1024 or less"),
        ("objective.critic.channels=1025", "objective.critic.channels must be 1024 or less"),
        ("enhance.depth=13", "enhance.depth must be 12 or less"),
        ("recognise.depth=1000000", "recognise.depth must be 12 or less"),
        ("data.image_size=[64,4104]", "data.image_size must be 4096 or less; got 4104"),
        ("training.batch_size=4097", "training.batch_size must be 4096 or less"),
        ("training.learning_rate=1001", "training.learning_rate must be 1000 or less"),
        ("strategy.server_learning_rate=1e39", "strategy.server_learning_rate must be 1000 or less"),
        ("objective.task_weight=1e7", "objective.task_weight must be 1e+06 or less"),
        ("objective.critic.learning_rate=1e7", "objective.critic.learning_rate must be 1e+06 or less"),
        ("objective.critic.adversarial_weight=1e30", "objective.critic.adversarial_weight must be 1e+06 or less"),
        ("objective.critic.fidelity_weight=1e30", "objective.critic.fidelity_weight must be 1e+06 or less"),
        ("objective.confidence=1", "[0.5, 1)"),
        ("objective.micro_batches=1", "2 or more"),
        ("objective.critic.channels=0", "1 or more"),
        ("enhance.attention=true", "belong to enhance=todnet"),
        ("enhance.data_consistency=true", "choose degrade=kspace"),
        ("training.learning_rate=nan", "learning_rate must be a finite number"),
        ("training.weight_decay=inf", "finite"),
        ("degrade.sigma=[0,inf]", "sigma[1] must be a finite number"),
        (f"training.learning_rate={10**400}", "finite"),
        ("data.ingest.spacing_mm=[0,1,1]", "0.05..100 mm"),
        ("data.ingest.spacing_mm=[1,1,1e9]", "0.05..100 mm"),
        ('data.masks=["[red]organ",lesion]', "letters, digits"),
        ('data.masks=["organ\x1b",lesion]', "letters, digits"),
        ("data.masks=[organ,organ]", "nothing twice"),
        ("nonsense", "KEY=VALUE"),
        ("=3", "KEY=VALUE"),
    ],
)
def test_a_wrong_override_is_refused_in_one_line(override: str, reason: str) -> None:
    with pytest.raises(ConfigError) as error:
        load("simulation", [override], SimulationConfig)
    assert reason in str(error.value)
    assert "\n" not in str(error.value)


def test_the_override_that_cannot_be_read_is_shown_behind_many_others() -> None:
    with pytest.raises(ConfigError, match="name=ü"):
        load("simulation", [*["experiment=phantom"] * 20, "name=ü"], SimulationConfig)


def test_unknown_missing_and_mistyped_keys_are_named() -> None:
    with pytest.raises(ConfigError, match="did you mean 'rounds'"):
        build(RoundsConfig, {"round": 3})
    with pytest.raises(ConfigError, match="missing key 'name'"):
        build(CampaignConfig, {})
    with pytest.raises(ConfigError, match="rounds must be int, got '3'"):
        build(RoundsConfig, {"rounds": "3"})


def test_a_campaign_file_comes_back_equal(campaign: CampaignConfig, tmp_path: Path) -> None:
    save_campaign(campaign, tmp_path / "campaign.json")
    assert load_campaign(tmp_path / "campaign.json") == campaign
    assert build(CampaignConfig, to_dict(campaign)) == campaign


def test_the_digest_moves_with_the_agreement_and_not_with_places(campaign: CampaignConfig) -> None:
    digest = campaign_digest(campaign)
    assert campaign_digest(replace(campaign, data=replace(campaign.data, root="/elsewhere"))) == digest
    assert campaign_digest(replace(campaign, seed=campaign.seed + 1)) != digest
    masks = ("lesion", "organ")
    assert campaign_digest(replace(campaign, data=replace(campaign.data, masks=masks))) != digest


@pytest.mark.parametrize("text", ["", "{", "[]", '{"name": "x"}', "[" * 100_000])
def test_a_broken_campaign_file_is_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "campaign.json"
    path.write_text(text)
    with pytest.raises(ConfigError):
        load_campaign(path)


@pytest.mark.parametrize(
    ("override", "reason"),
    [
        ("generate.phase=denoiser", "leave it at all"),
        ("generate.denoiser.rounds=100000000000000000000", "1e+06 or less"),
        ("generate.autoencoder.local_steps=1000000000000", "1e+06 or less"),
        ("generate.kl_weight=1e30", "0 to 1e+06"),
        ("generate.organs=['BRAIN\x1b[31M']", "capital letters"),
        ("generate.organs=['BRAIN;HEAD']", "capital letters"),
    ],
)
def test_a_generator_that_nobody_could_train_is_refused_in_one_line(override: str, reason: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load("simulation", ["data=phantom", "generate=emit-diff", override], SimulationConfig)
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_of_one_phase_is_no_campaign_to_approve(campaign: CampaignConfig, tmp_path: Path) -> None:
    generating = replace(campaign, generate=GenerateConfig(kind="emit-diff"))
    save_campaign(generating.in_phase("denoiser"), tmp_path / "campaign.json")
    with pytest.raises(ConfigError, match="leave it at all"):
        load_campaign(tmp_path / "campaign.json")


def test_the_data_set_to_test_on_is_no_part_of_the_agreement() -> None:
    alone = load("simulation", ["data=mni"], SimulationConfig)
    both = load("simulation", ["data=mni", "data.test=hippocampus", "data.test_root=somewhere"], SimulationConfig)
    assert both.cross is not None
    assert (both.cross.data.kind, both.cross.data.root) == ("hippocampus", "somewhere")
    assert both.cross.hospitals == load("simulation", ["data=hippocampus"], SimulationConfig).hospitals
    assert campaign_digest(both.campaign) == campaign_digest(alone.campaign)
    with pytest.raises(ConfigError, match="another data set than data=mni"):
        load("simulation", ["data=mni", "data.test=mni"], SimulationConfig)
    with pytest.raises(ConfigError, match="data=nothing is not known"):
        load("simulation", ["data.test=nothing"], SimulationConfig)


def test_a_classifier_without_a_decoder_learns_diagnoses_of_data_that_have_masks_too() -> None:
    config = load("simulation", ["data=phantom", "learn=enc", "recognise=cnn"], SimulationConfig)
    assert (config.campaign.masks, config.campaign.recognise.kind) == ((), "cnn")
