"""An adversary who wants patient data out by another way than images: through what a site reports beside its weights.

Two of them. The coordinator writes what it likes into plan, campaign and manifest (it has the signing key). The other
has changed the site's own training code, so that what the policy is handed may hold anything. The oracle is the bytes:
a secret is put in at every place that a message has, and none of it may be in what comes out.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from client import approvals, pins
from client.approving import approvable
from client.policy import admitted, permitted
from client.rules import SiteRules, write_rules
from client.site import SiteSetup, load_site
from client.update import forget
from shared.config import CampaignConfig, SecAggConfig, build, to_dict
from shared.errors import RefusedError
from shared.manifest import SignedManifest
from shared.networks import build_networks
from shared.types import Moments, Plan, Update
from shared.weights import architecture_digest, parts_of, to_arrays
from shared.wire.arrays import encode_array
from shared.wire.messages import FORMAT, Record, card_record, update_record
from simulation.bench.stores import write_random_store
from tests.client.manifest_files import NOW, Federation

SECRET = "Mustermann^Max 19700101"
DIGITS = 0.123456789012345  # further digits than any figure needs


@pytest.fixture
def campaign(campaign: CampaignConfig) -> CampaignConfig:
    return build(CampaignConfig, to_dict(campaign))


@pytest.fixture
def federation() -> Federation:
    return Federation()


@pytest.fixture
def setup(tmp_path: Path, campaign: CampaignConfig, federation: Federation) -> Iterator[SiteSetup]:
    """A real site's folder, whose operator has allowed visible updates and approved the campaign."""
    site = federation.site(tmp_path / "north")
    write_random_store(site.store, campaign.data, patients=12, slices=2, seed=1)
    write_rules(site.folder, SiteRules(allow_visible_updates=True))
    approved(site.folder, federation.signed(campaign))
    yield load_site(site.folder / "site.json")
    forget()


def approved(folder: Path, signed: SignedManifest) -> None:
    from client.folder import read

    site = read(folder)
    approvable(site, signed, NOW)
    pins.pin(folder, signed.manifest.sites, site.name)
    approvals.approve(site.approvals, signed, NOW)


def plan_of(setup: SiteSetup, action: str = "train", **more: Any) -> Plan:
    (signed,) = setup.manifests.values()
    weights = to_arrays(build_networks(signed.campaign))
    named = {"manifest_digest": signed.digest, "weights": weights, "round": 1} | more
    return Plan(
        signed.campaign.name,
        action,  # type: ignore[arg-type]
        named.pop("round"),
        signed.manifest.config_digest,
        architecture_digest(weights),
        **named,
    )


def honest(plan: Plan, setup: SiteSetup) -> Update:
    """What an honest round of this campaign hands over, in small."""
    moments = Moments(24, 24 * 20.0, 24 * 401.0, (18.0, 19.0, 20.0, 21.0, 22.0))
    scores = Moments(24, 12.0, 8.0, (0.1, 0.3, 0.5, 0.7, 0.9))
    training = {"loss_enhance": 0.5, "learning_rate": 1e-3, "samples": 16.0, "seconds": 1.0, "gate_open_rate": 0.5}
    return Update(
        setup.name,
        plan.round,
        16,
        {name: np.zeros_like(values) for name, values in plan.weights.items()},
        training,
        {"enhanced.psnr_db": moments, "enhanced.dice": scores},
        images=dict.fromkeys(parts_of(plan.weights), 16),
    )


def header(record: Record) -> dict[str, Any]:
    return dict(json.loads(record.header))


def with_header(record: Record, **changed: Any) -> Record:
    return replace(record, header=json.dumps(header(record) | changed).encode())


def files(setup: SiteSetup) -> dict[str, bytes]:
    """Everything in the site's folder but what a log is for."""
    assert setup.home is not None
    return {
        str(path): path.read_bytes() for path in setup.home.rglob("*") if path.is_file() and "audit" not in path.name
    }


# ------------------------------------------------------------------------------------------- patched training code


def test_what_is_honest_passes_and_is_the_same_but_for_its_digits(setup: SiteSetup) -> None:
    plan = plan_of(setup)
    record = update_record(honest(plan, setup))
    out = permitted(record, plan, setup)
    assert header(out) == header(record)
    assert out.arrays == record.arrays


SMUGGLED: dict[str, tuple[Callable[[Update], Update], str]] = {
    "a name of a training figure": (
        lambda update: replace(update, training={**update.training, SECRET: 1.0}),
        "a training figure that is not on the list",
    ),
    "a name of a metric": (
        lambda update: replace(update, evaluation={**update.evaluation, SECRET: Moments(5, 1.0, 1.0)}),
        "a metric that is not on the list",
    ),
    "a patient's name behind a listed one": (
        lambda update: replace(update, evaluation={f"enhanced.dice.{SECRET}": Moments(5, 1.0, 1.0)}),
        "a metric that is not on the list",
    ),
    "a metric of acceptance in the midst of training": (
        lambda update: replace(update, evaluation={"describe.mean": Moments(5, 1.0, 1.0)}),
        "a metric that is not on the list",
    ),
    "an age as a dice": (
        lambda update: replace(update, evaluation={"enhanced.dice": Moments(3, 54.0 * 3, 54.0**2 * 3)}),
        "metric enhanced.dice is not the count, sums and quantiles of values from 0 to 1",
    ),
    "a date as a gate's rate": (
        lambda update: replace(update, training={"gate_open_rate": 19700101.0}),
        "training figure gate_open_rate must be a number from 0 to 1",
    ),
    "sums that no values have": (
        lambda update: replace(update, evaluation={"enhanced.dice": Moments(10, 9.0, 0.2)}),
        "metric enhanced.dice is not the count, sums and quantiles of values",
    ),
    "a quantile out of range": (
        lambda update: replace(update, evaluation={"enhanced.dice": Moments(30, 9.0, 9.0, (0.0, 0.1, 0.2, 0.3, 19.0))}),
        "metric enhanced.dice is not the count, sums and quantiles of values",
    ),
    "a value of one patient as quantiles of a whole test": (
        lambda update: replace(update, evaluation={"enhanced.auc": Moments(1, 0.5, 0.25, (0.5,) * 5)}),
        "quantiles of metric enhanced.auc are not on the list",
    ),
    "an array under a patient's name": (
        lambda update: replace(update, difference={**update.difference, SECRET: np.ones(4, np.float32)}),
        "an array that is not on the list|images are counted for a part",
    ),
    "more images than the plan can draw": (
        lambda update: replace(update, num_samples=19700101),
        "a count of images is not a whole number from 0 to 16",
    ),
}


@pytest.mark.parametrize("way", SMUGGLED)
def test_what_patched_training_code_puts_in_is_refused_without_being_repeated(setup: SiteSetup, way: str) -> None:
    change, reason = SMUGGLED[way]
    plan, before = plan_of(setup), files(setup)
    with pytest.raises(RefusedError, match=reason) as refused:
        permitted(update_record(change(honest(plan, setup))), plan, setup)
    assert "Mustermann" not in str(refused.value)
    assert "1970" not in str(refused.value)
    assert files(setup) == before


FIELDS: dict[str, tuple[Callable[[Record], Record], str]] = {
    "a field of its own": (lambda record: with_header(record, note=SECRET), "a field that is not on the list"),
    "another site's name": (lambda record: with_header(record, site=SECRET), "another site's name"),
    "another round": (lambda record: with_header(record, round=19700101), "or another round"),
    "a field within a metric": (
        lambda record: with_header(
            record,
            evaluation={"enhanced.dice": {"count": 3, "total": 1, "total_sq": 1, "quantiles": [], "who": SECRET}},
        ),
        "metric enhanced.dice is not the count",
    ),
    "text as a number": (lambda record: with_header(record, training={"samples": SECRET}), "must be a number from"),
    "a shape that is none": (
        lambda record: with_header(record, shapes={**header(record)["shapes"], SECRET: [1]}),
        "an array that is not on the list",
    ),
    "a count of a part that is none": (
        lambda record: with_header(record, images={**header(record)["images"], SECRET: 1}),
        "a part that is not on the list",
    ),
    "bytes behind an array": (
        lambda record: replace(record, arrays={name: data + SECRET.encode() for name, data in record.arrays.items()}),
        "is not one of shape",
    ),
    "an array of another shape": (
        lambda record: replace(record, arrays={name: encode_array(np.ones(3, np.float32)) for name in record.arrays}),
        "is not one of shape",
    ),
    "text in an array's own header": (
        lambda record: replace(
            record, arrays={name: b"\x93NUMPY" + SECRET.encode() + data[29:] for name, data in record.arrays.items()}
        ),
        "is not one of shape",
    ),
    "another kind of answer": (lambda record: with_header(record, kind="card"), "an answer of another kind"),
}


@pytest.mark.parametrize("way", FIELDS)
def test_no_field_of_a_message_carries_what_it_is_not_for(setup: SiteSetup, way: str) -> None:
    change, reason = FIELDS[way]
    plan, before = plan_of(setup), files(setup)
    with pytest.raises(RefusedError, match=reason) as refused:
        permitted(change(update_record(honest(plan, setup))), plan, setup)
    assert "Mustermann" not in str(refused.value)
    assert files(setup) == before


def test_further_digits_are_cut_off(setup: SiteSetup) -> None:
    plan = plan_of(setup)
    moments = Moments(24, 24 * DIGITS, 24 * DIGITS**2 + 1e-9, (DIGITS,) * 5)
    update = replace(honest(plan, setup), training={"gate_open_rate": DIGITS}, evaluation={"enhanced.dice": moments})
    told = header(permitted(update_record(update), plan, setup))
    assert told["training"] == {"gate_open_rate": 0.123457}
    assert told["evaluation"]["enhanced.dice"] == {
        "count": 24, "total": 2.96296, "total_sq": 0.365798, "quantiles": [0.123457] * 5,
    }  # fmt: skip


def test_figures_of_few_values_stay_and_so_do_their_quantiles(setup: SiteSetup) -> None:
    plan = plan_of(setup)
    few = Moments(2, 1.0, 0.6, (0.4, 0.4, 0.5, 0.6, 0.6))
    some = Moments(10, 5.0, 3.0, (0.1, 0.3, 0.5, 0.7, 0.9))
    many = Moments(20, 10.0, 6.0, (0.1, 0.3, 0.5, 0.7, 0.9))
    given = {"clean.dice": few, "degraded.dice": some, "enhanced.dice": many,
             "clean.accuracy": Moments(2, 1.0, 1.0), "clean.auc": Moments(1, 0.75, 0.5625),
             "enhanced.accuracy": Moments(3, 1.0, 1.0), "enhanced.auc": Moments(1, 0.75, 0.5625)}  # fmt: skip
    update = replace(honest(plan, setup), evaluation=given)
    told = header(permitted(update_record(update), plan, setup))["evaluation"]
    assert told.keys() == {"degraded.dice", "enhanced.dice", "enhanced.accuracy", "enhanced.auc"}
    assert told["degraded.dice"]["quantiles"] == []
    assert len(told["enhanced.dice"]["quantiles"]) == 5
    strict = replace(setup, rules=SiteRules(quantiles=False, minimum_patients=15))
    told = header(permitted(update_record(update), plan, strict))["evaluation"]
    assert told.keys() == {"enhanced.dice"}
    assert told["enhanced.dice"]["quantiles"] == []


def test_a_card_has_the_listed_counts_and_nothing_else(setup: SiteSetup) -> None:
    from client.update import answer

    plan = plan_of(setup, "handshake", weights={})
    card = card_record(answer(plan, setup))  # type: ignore[arg-type]
    out = permitted(card, plan, setup)
    assert header(out) == header(card)
    counts = header(card)["counts"]
    for wrong in ({**counts, SECRET: 1}, {**counts, "patients": 1.5}, {}):
        with pytest.raises(RefusedError, match="a count that is not on the list, or is no whole number"):
            permitted(with_header(card, counts=wrong), plan, setup)
    with pytest.raises(RefusedError, match="an array in an answer that has none"):
        permitted(replace(card, arrays={"x": b"1"}), plan, setup)
    with pytest.raises(RefusedError, match="of another campaign or version"):
        permitted(with_header(card, version=SECRET), plan, setup)


# ------------------------------------------------------------------------------------------- the coordinator


def test_a_plan_cannot_name_arrays_for_the_answer_to_bring(setup: SiteSetup) -> None:
    """The policy takes shapes from the plan: what they are must still be what was approved."""
    plan = plan_of(setup)
    wider = replace(plan, weights={**plan.weights, "enhancer.patients": np.zeros((64, 64), np.float32)})
    update = honest(wider, setup)
    with pytest.raises(RefusedError, match="what this version lets leave is not what was approved"):
        permitted(update_record(update), wider, setup)


@pytest.mark.parametrize(
    ("group", "name", "value"),
    [
        ("metrics", "enhanced.*", {"low": -1e300, "high": 1e300, "least": 0, "quantiles": 1}),
        ("metrics", "patient.age", {"low": 0.0, "high": 120.0, "least": 1, "quantiles": 0}),
        ("training", "anything", {"low": -1e300, "high": 1e300, "least": 1, "quantiles": 0}),
        ("arrays", "images", [1000, 64, 64]),
    ],
)
def test_a_manifest_that_lists_more_is_signed_and_still_not_approved(
    setup: SiteSetup, federation: Federation, group: str, name: str, value: Any
) -> None:
    (signed,) = setup.manifests.values()
    leaves = json.loads(json.dumps(signed.manifest.leaves))
    leaves[""][group][name] = value
    forged = federation.forged(signed, leaves=leaves)
    before = files(setup)
    assert setup.home is not None
    with pytest.raises(RefusedError, match="list of what may leave is not what this version of Wardround derives"):
        approved(setup.home, forged)
    assert files(setup) == before


@pytest.mark.parametrize("field", ["policy", "filters", "allow", "rules"])
def test_no_field_of_campaign_or_manifest_switches_the_policy_off(
    setup: SiteSetup, federation: Federation, field: str
) -> None:
    (signed,) = setup.manifests.values()
    campaign = json.loads(signed.content)["campaign"] | {field: "off"}
    with pytest.raises(Exception, match=f"unknown key 'campaign.{field}'"):
        federation.forged(signed, campaign=campaign)
    with pytest.raises(Exception, match="lacks a field or has one that is none"):
        federation.forged(signed, **{field: "off"})


def test_words_that_soothe_are_not_signed_into_a_manifest(setup: SiteSetup, federation: Federation) -> None:
    (signed,) = setup.manifests.values()
    assert setup.home is not None
    for field, what in (("secagg", "words on secure aggregation"), ("privacy", "words on privacy")):
        with pytest.raises(RefusedError, match=f"{what} is not what this version"):
            approved(setup.home, federation.forged(signed, **{field: "nothing of a single site is seen"}))


def test_an_update_in_the_open_never_leaves_a_masked_campaign(
    tmp_path: Path, campaign: CampaignConfig, federation: Federation
) -> None:
    masked = replace(campaign, secagg=SecAggConfig(kind="masked"), rounds=replace(campaign.rounds, quorum=3))
    site = federation.site(tmp_path / "masked")
    write_random_store(site.store, campaign.data, patients=12, slices=2, seed=1)
    approved(site.folder, federation.signed(masked))
    setup = load_site(site.folder / "site.json")
    plan = plan_of(setup)
    with pytest.raises(RefusedError, match="names no cohort; no single update is sent"):
        admitted(plan, setup)
    with pytest.raises(RefusedError, match="the approved campaign is masked, and this update is not"):
        permitted(update_record(honest(plan, setup)), plan, setup)


def test_the_format_of_what_goes_out_is_the_one_that_is_read(setup: SiteSetup) -> None:
    plan = plan_of(setup)
    out = header(permitted(update_record(honest(plan, setup)), plan, setup))
    assert (out["format"], out["kind"]) == (FORMAT, "update")
