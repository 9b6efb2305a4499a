"""The comparison: equal budgets, the same test noise for all, and rows that repeat what the federation measured."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from client.dataset import open_site
from server.report import write_report
from server.summary import at_home
from shared.config import (
    CampaignConfig,
    CompareConfig,
    CrossConfig,
    HospitalConfig,
    HospitalsConfig,
    LabelsConfig,
    LearnConfig,
    MachineConfig,
    ScannerConfig,
    SimulationConfig,
    StrategyConfig,
    build,
    load,
    to_dict,
)
from shared.errors import ConfigError, DataError
from shared.networks import build_networks
from shared.types import Arrays
from shared.weights import to_arrays
from simulation.campaigns import Cell, load_cell, save_cell
from simulation.claims import claims_of
from simulation.comparators import side_by_side
from simulation.compare import Comparison, check_elsewhere, compare, write_record
from simulation.progress import ModelStep
from tests.server.test_generator import ALL as PHASES


@dataclass(frozen=True)
class Untrained:
    """A federation that ended before its first round."""

    weights: Arrays
    records: tuple[dict[str, Any], ...] = field(default_factory=tuple)


def simulation(campaign: CampaignConfig, machine: MachineConfig, run_dir: Path, **compared: Any) -> SimulationConfig:
    hospitals = (HospitalConfig(name="coast", patients=6, scanner=ScannerConfig(noise=0.02)),)
    return SimulationConfig(
        experiment="tiny",
        budget="quick",
        sites=2,
        seeds=(0,),
        transport="inprocess",
        run_dir=str(run_dir),
        campaign=campaign,
        hospitals=HospitalsConfig(sites=hospitals),
        compare=CompareConfig(**compared),
        machine=machine,
    )


def untrained(campaign: CampaignConfig) -> Untrained:
    return Untrained(to_arrays(build_networks(campaign)))


def find(comparison: Comparison, setting: str, site: str, test_site: str) -> dict[str, Any]:
    rows = comparison.rows
    (row,) = [r for r in rows if (r["setting"], r["site"], r["test_site"]) == (setting, site, test_site)]
    return row


@pytest.fixture
def campaign(campaign: CampaignConfig) -> CampaignConfig:
    """As it reads in a campaign file: 1.0 where a float is meant, since a store keeps the digest of its rule."""
    return build(CampaignConfig, to_dict(campaign))


@pytest.fixture
def quiet() -> list[ModelStep]:
    return []


def test_federation_and_comparison_tell_the_same_and_make_a_report(
    campaign: CampaignConfig, machine: MachineConfig, stores: dict[str, Path], tmp_path: Path, quiet: list[ModelStep]
) -> None:
    from simulation.run import run_federation

    config = simulation(campaign, machine, tmp_path, judge=True)
    federated = run_federation(campaign, stores, tmp_path / "federation", machine=machine)
    comparison = compare(config, 0, stores, federated, machine=machine, on_event=quiet.append)

    # every figure of the closing evaluation is the figure of the row
    for site, metrics in federated.closing.items():
        for key in ("psnr_db", "ssim", "dice", "accuracy"):
            row = find(comparison, "federated", "all", site)
            assert row[key] == pytest.approx(metrics[f"enhanced.{key}"].mean, rel=1e-5)  # six digits leave
            if key in ("psnr_db", "ssim"):
                assert find(comparison, "degraded", "all", site)[key] == pytest.approx(metrics[f"degraded.{key}"].mean)

    # equal budgets, in images drawn: 2 rounds x 4 steps x 4 images
    assert find(comparison, "local", "coast", "all")["samples_seen"] == 32
    assert find(comparison, "local", "all", "all")["samples_seen"] == 32
    assert find(comparison, "pooled", "all", "all")["samples_seen"] == 64
    assert find(comparison, "federated", "all", "all")["samples_seen"] == 64
    assert find(comparison, "federated", "all", "all")["bytes_up"] > 0

    # an independent recogniser judges clean, degraded and every model's enhanced images
    for setting in ("clean", "degraded", "local", "pooled", "federated"):
        assert 0 <= find(comparison, setting, "all", "all")["judge_dice"] <= 1

    # progress ends at the last step of each comparator
    ends = {step.model: (step.done, step.total) for step in quiet}
    trained = {"local: coast": (8, 8), "local: north": (8, 8), "pooled": (16, 16), "judge": (8, 8)}
    judged = ("judging federated", "judging local coast", "judging local north", "judging pooled")
    assert ends == {**trained, **dict.fromkeys(judged, (2, 2))}

    write_record(tmp_path / "run", config, [comparison], wall_s=1.5, timings={"federation": 1.0})
    page = write_report(tmp_path / "run").read_text()
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert len(report["claims"]) == 7
    assert {row["setting"] for row in report["rows"]} == {"clean", "degraded", "local", "pooled", "federated"}
    assert report["versions"].keys() >= {"wardround", "torch", "flwr", "python"}
    # two sites, two images each: a strip of five, per state the image and two maps of each of two tasks, two errors;
    # then the image and its saliency behind each diagnosis that is read anywhere
    behind = page.count("data:image/png") - (2 * 2 * 5 + 2 * 2 * (3 * 5 + 2))
    assert behind in (2, 4)
    assert "noise 0.02" in page


def test_same_seed_gives_the_same_rows_and_no_row_holds_a_hole(
    campaign: CampaignConfig, machine: MachineConfig, stores: dict[str, Path], tmp_path: Path, quiet: list[ModelStep]
) -> None:
    config = simulation(campaign, machine, tmp_path, local=False)
    federated = untrained(campaign)
    first, second = (compare(config, 0, stores, federated, machine=machine, on_event=quiet.append) for _ in range(2))

    def without_time(comparison: Comparison) -> list[dict[str, Any]]:
        return [{key: value for key, value in row.items() if key != "seconds"} for row in comparison.rows]

    assert without_time(first) == without_time(second)
    json.dumps(first.rows, allow_nan=False)


def test_side_by_side_or_one_after_the_other_the_figures_are_the_same(
    campaign: CampaignConfig, machine: MachineConfig, stores: dict[str, Path], tmp_path: Path, quiet: list[ModelStep]
) -> None:
    config = simulation(campaign, machine, tmp_path)
    figures = [
        [
            {key: value for key, value in row.items() if key != "seconds"}
            for row in compare(
                config, 0, stores, untrained(campaign), machine=replace(machine, threads=lanes), on_event=quiet.append
            ).rows
        ]
        for lanes in (1, 3)
    ]
    assert figures[0] == figures[1]


def test_first_error_ends_every_lane_and_is_the_one_that_is_raised() -> None:
    steps: list[int] = []

    def endless(on_step: Any) -> None:
        while True:
            on_step(ModelStep("a", 1, 1))
            steps.append(1)
            time.sleep(0.001)

    def failing(on_step: Any) -> None:
        on_step(ModelStep("b", 1, 1))
        raise DataError("loss is not finite")

    with pytest.raises(DataError, match="not finite"):
        side_by_side([endless, failing, endless], lanes=2, on_step=lambda step: None)
    count = len(steps)
    time.sleep(0.05)
    assert len(steps) == count


def test_auc_and_f1_over_all_sites_are_measured_over_their_patients_together(
    campaign: CampaignConfig, machine: MachineConfig, stores: dict[str, Path], tmp_path: Path, quiet: list[ModelStep]
) -> None:
    from client.dataset import merge, open_site
    from client.evaluate import evaluate

    config = simulation(campaign, machine, tmp_path, local=False, pooled=False)
    row = find(
        compare(config, 0, stores, untrained(campaign), machine=machine, on_event=quiet.append),
        "federated",
        "all",
        "all",
    )
    together = merge([open_site(store, site, campaign) for site, store in stores.items()])
    expected = evaluate(build_networks(campaign), together.test, campaign, machine).values
    for metric in ("auc", "f1", "f1.none", "f1.lesion"):
        assert row[metric] == pytest.approx(float(expected[f"enhanced.{metric}"][0]))
    assert row["accuracy"] == pytest.approx(float(expected["enhanced.accuracy"].mean()))


def test_comparators_are_free_of_the_proximal_pull(
    campaign: CampaignConfig, machine: MachineConfig, stores: dict[str, Path], tmp_path: Path, quiet: list[ModelStep]
) -> None:
    prox = replace(campaign, strategy=StrategyConfig(kind="fedprox", proximal_mu=100.0))
    figures = [
        find(
            compare(
                simulation(each, machine, tmp_path, local=False),
                0,
                stores,
                untrained(each),
                machine=machine,
                on_event=quiet.append,
            ),
            "pooled",
            "all",
            "all",
        )["psnr_db"]
        for each in (campaign, prox)
    ]
    assert figures[0] == figures[1]


def test_all_models_are_judged_on_the_same_noise(
    campaign: CampaignConfig, machine: MachineConfig, stores: dict[str, Path], tmp_path: Path, quiet: list[ModelStep]
) -> None:
    from client.dataset import merge, open_site
    from client.evaluate import evaluate

    datas = [open_site(store, site, campaign) for site, store in stores.items()]
    networks = build_networks(campaign)
    apart = [evaluate(networks, data.test, campaign, machine).values["degraded.psnr_db"] for data in datas]
    together = evaluate(networks, merge(datas).test, campaign, machine).values["degraded.psnr_db"]
    assert [value for values in apart for value in values] == list(together)


def test_seed_of_the_comparison_is_the_seed_of_its_rows(
    campaign: CampaignConfig, machine: MachineConfig, stores: dict[str, Path], tmp_path: Path, quiet: list[ModelStep]
) -> None:
    config = simulation(campaign, machine, tmp_path, local=False, pooled=False)
    other = replace(campaign, seed=7)
    comparison = compare(config, 7, stores, untrained(other), machine=machine, on_event=quiet.append)
    assert {row["seed"] for row in comparison.rows} == {7}
    assert {step.model for step in quiet} == {"judging federated"}, "nothing was trained"


def test_data_without_masks_has_no_mask_metric(
    campaign: CampaignConfig, machine: MachineConfig, tmp_path: Path, quiet: list[ModelStep], make_store: Any
) -> None:
    bare = replace(campaign, data=replace(campaign.data, masks=()))
    found = {site: make_store(tmp_path / site, bare.data, seed) for seed, site in enumerate(("coast", "north"), 3)}
    config = simulation(bare, machine, tmp_path, local=False)
    comparison = compare(config, 0, found, untrained(bare), machine=machine, on_event=quiet.append)
    assert not [key for row in comparison.rows for key in row if "dice" in key or "region" in key]
    assert "accuracy" in find(comparison, "federated", "all", "all")
    write_record(tmp_path / "run", config, [comparison], wall_s=1.0)
    page = write_report(tmp_path / "run").read_text()
    assert "Where the recogniser looks" in page
    assert "summed logits" not in page
    assert "Dice" not in page.split("To do it again")[0].split("Limits")[0]


def without_enhancer(campaign: CampaignConfig, *, degraded: bool, **learn: bool) -> CampaignConfig:
    return replace(
        campaign,
        enhance=replace(campaign.enhance, kind="none"),
        degrade=campaign.degrade if degraded else replace(campaign.degrade, kind="none"),
        objective=replace(campaign.objective, kind="plain"),
        learn=LearnConfig(**learn),
    )


@pytest.mark.parametrize("learn", [{}, {"segment": False}, {"diagnose": False}])
@pytest.mark.parametrize("degraded", [True, False])
def test_a_recogniser_alone_has_rows_and_a_report_without_image_quality(
    campaign: CampaignConfig, machine: MachineConfig, stores: dict[str, Path], tmp_path: Path, quiet: list[ModelStep],
    learn: dict[str, bool], degraded: bool,
) -> None:  # fmt: skip
    alone = without_enhancer(campaign, degraded=degraded, **learn)
    config = simulation(alone, machine, tmp_path, local=False, pooled=False)
    comparison = compare(config, 0, stores, untrained(alone), machine=machine, on_event=quiet.append)
    settings = {row["setting"] for row in comparison.rows}
    assert settings == ({"clean", "degraded", "federated"} if degraded else {"federated"})
    row = find(comparison, "federated", "all", "all")
    assert not {"psnr_db", "ssim", "rmse"} & row.keys()
    assert ("dice" in row) is learn.get("segment", True)
    assert ("accuracy" in row) is learn.get("diagnose", True)
    if degraded:
        of_degraded = find(comparison, "degraded", "all", "all")
        assert "psnr_db" in of_degraded
        assert not {"dice", "accuracy"} & of_degraded.keys()
    write_record(tmp_path / "run", config, [comparison], wall_s=1.0)
    page = write_report(tmp_path / "run").read_text()
    assert "trained a recogniser together" in page
    assert "An enhancer can remove" not in page


def test_promises_without_an_enhancer_are_of_recognition_alone(
    campaign: CampaignConfig, machine: MachineConfig, stores: dict[str, Path], tmp_path: Path, quiet: list[ModelStep]
) -> None:
    alone = without_enhancer(campaign, degraded=True)
    config = simulation(alone, machine, tmp_path)
    comparison = compare(config, 0, stores, untrained(alone), machine=machine, on_event=quiet.append)
    path = write_record(tmp_path / "run", config, [comparison], wall_s=1.0)
    claims = json.loads(path.read_text())["claims"]
    assert [claim["claim"].split()[1] for claim in claims] == ["Dice", "Dice", "accuracy", "Dice"]


def test_labels_that_a_site_may_not_train_with_teach_its_own_model_nothing(
    campaign: CampaignConfig, machine: MachineConfig, stores: dict[str, Path], tmp_path: Path, quiet: list[ModelStep]
) -> None:
    alone = without_enhancer(campaign, degraded=False)
    budgets = {"coast": LabelsConfig(masks=0), "north": LabelsConfig(diagnoses=0.0)}
    scarce = replace(alone, data=replace(alone.data, labels=budgets))
    comparison = compare(
        simulation(scarce, machine, tmp_path), 0, stores, untrained(scarce), machine=machine, on_event=quiet.append
    )
    counted = {
        site: [find(comparison, "local", site, "all")[f"train_{kind}"] > 0 for kind in ("masks", "diagnoses")]
        for site in stores
    }
    assert counted == {"coast": [False, True], "north": [True, False]}
    sheet = comparison.sites["coast"]
    train = open_site(stores["coast"], "coast", alone).train
    assert sheet["masks"] == 6  # of the store: series, whatever may be trained with
    assert (sheet["train_masks"], sheet["train_diagnoses"]) == (0, len(set(train.patient_N.tolist())))
    assert comparison.sites["north"]["train_masks"] == len(train)
    mean = find(comparison, "local", "all", "all")
    assert mean["dice"] == find(comparison, "local", "north", "all")["dice"]
    assert mean["accuracy"] == find(comparison, "local", "coast", "all")["accuracy"]


def test_pseudo_labels_of_the_federated_model_go_through_the_record_into_the_report(
    campaign: CampaignConfig, machine: MachineConfig, stores: dict[str, Path], tmp_path: Path, quiet: list[ModelStep]
) -> None:
    learn = LearnConfig(kind="multimix", pseudo_labels=True, threshold=0.0)  # every offer is accepted
    alone = replace(without_enhancer(campaign, degraded=True), learn=learn)
    hidden = replace(alone, data=replace(alone.data, labels={"north": LabelsConfig(diagnoses=0.0)}))
    config = simulation(hidden, machine, tmp_path, local=False, pooled=False)
    comparison = compare(config, 0, stores, untrained(hidden), machine=machine, on_event=quiet.append)
    offered = len(open_site(stores["north"], "north", hidden).train)
    counts = comparison.pseudo_labels["north"]
    assert (counts["offered"], counts["accepted"], counts["known"]) == (offered, offered, offered)
    assert 0 <= counts["right"] <= offered
    save_cell(tmp_path, Cell(comparison, {}, 1.0))
    kept = load_cell(tmp_path)
    assert kept is not None
    record = write_record(tmp_path / "run", config, [kept.comparison], wall_s=1.0)
    assert json.loads(record.read_text())["runs"][0]["pseudo_labels"] == comparison.pseudo_labels
    assert (
        f"<td>north</td><td>{offered}</td><td>{offered}</td><td>100.0</td>"
        in write_report(tmp_path / "run").read_text()
    )


def test_a_generators_phases_go_through_the_record_into_the_report_and_into_the_cost(
    campaign: CampaignConfig, machine: MachineConfig, stores: dict[str, Path], tmp_path: Path, quiet: list[ModelStep]
) -> None:
    config = simulation(campaign, machine, tmp_path, local=False, pooled=False)
    federated = replace(untrained(campaign), records=tuple(PHASES))
    comparison = compare(config, 0, stores, federated, machine=machine, on_event=quiet.append)
    assert comparison.rounds == ()
    assert find(comparison, "federated", "all", "all")["bytes_up"] == sum(record["bytes_up"] for record in PHASES)
    save_cell(tmp_path, Cell(comparison, {}, 1.0))
    kept = load_cell(tmp_path)
    assert kept is not None
    assert kept.comparison.phases == tuple(PHASES)
    write_record(tmp_path / "run", config, [kept.comparison], wall_s=1.5)
    assert json.loads((tmp_path / "run" / "record.json").read_text())["runs"][0]["phases"] == PHASES
    assert "Generator, phase by phase" in write_report(tmp_path / "run").read_text()


def test_every_enhancer_is_judged_on_the_other_data_set_too(
    campaign: CampaignConfig, machine: MachineConfig, stores: dict[str, Path], tmp_path: Path, quiet: list[ModelStep]
) -> None:
    config = simulation(campaign, machine, tmp_path)
    cross = CrossConfig(data=replace(campaign.data, kind="mni"), hospitals=config.hospitals)
    one_site = dict(list(stores.items())[:1])
    comparison = compare(
        replace(config, cross=cross), 0, stores, untrained(campaign), machine=machine, on_event=quiet.append,
        elsewhere=one_site,
    )  # fmt: skip
    other = {row["setting"]: row for row in comparison.rows if row.get("test_data") == "mni"}
    assert set(other) == {"degraded", "federated", "local", "pooled"}
    # An untrained enhancer is the identity: its row is that of the degraded image; and one site's tests are fewer.
    assert other["federated"]["psnr_db"] == pytest.approx(other["degraded"]["psnr_db"], abs=1e-4)
    (site,) = one_site
    here = find(comparison, "degraded", "all", site)
    assert other["degraded"]["psnr_db"] == pytest.approx(here["psnr_db"], abs=1e-6)
    assert other["degraded"]["n"] == here["n"]
    assert not any("dice" in key or "accuracy" in key for row in other.values() for key in row)

    # What happens elsewhere is shown apart: no figure at home changes.
    plain = compare(config, 0, stores, untrained(campaign), machine=machine, on_event=quiet.append)
    at_home_rows = [row for row in comparison.rows if at_home(row)]
    for ours, theirs in zip(at_home_rows, plain.rows, strict=True):
        assert {k: v for k, v in ours.items() if k != "seconds"} == {k: v for k, v in theirs.items() if k != "seconds"}
    record = write_record(tmp_path, config, [comparison], wall_s=1.0)
    assert json.loads(record.read_text())["claims"] == claims_of(plain.rows, config.compare, masks=True)
    assert "On another data set" in write_report(tmp_path).read_text()


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (("data.test=hippocampus",), "data.test=hippocampus needs data.test_root=FOLDER"),
        (("data.test=hippocampus", "data.test_root=/nowhere/secret"), "needs data.test_root=FOLDER"),
        (("data.test=mni", "data.channels=3"), "has images of 1 channel"),
        (("data.test=mni", "degrade=low_dose"), "data.test=mni does not go with this campaign: degrade=low_dose"),
        (
            ("data.test=mni", "recognise=cnn", "data.masks=[]"),
            "data.test=mni does not go with this campaign: recognise",
        ),
    ],
)
def test_a_data_set_that_cannot_be_tested_on_is_refused_before_training(words: tuple[str, ...], reason: str) -> None:
    config = load("simulation", ["data=phantom", *words], SimulationConfig)
    with pytest.raises(ConfigError, match=reason) as caught:
        check_elsewhere(config)
    assert "secret" not in str(caught.value)


def test_a_data_set_that_can_be_tested_on_passes() -> None:
    check_elsewhere(load("simulation", ["data=phantom", "data.test=mni"], SimulationConfig))
    check_elsewhere(load("simulation", ["data=phantom"], SimulationConfig))
