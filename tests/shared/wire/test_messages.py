"""Plans, updates and cards survive the wire; what is out of bounds is refused, whatever the bytes."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.config import CampaignConfig, EnhancerConfig, RecogniserConfig
from shared.errors import DataError
from shared.networks import build_networks
from shared.types import Moments, Offered, Plan, Revealed, SiteCard, Update
from shared.weights import ENHANCER, PARTS, to_arrays
from shared.wire import messages
from shared.wire.arrays import decode_half
from shared.wire.messages import (
    ReceivedMasked,
    ReceivedUpdate,
    Record,
    Refusal,
    card_record,
    masked_record,
    offer_record,
    one_line,
    plan_record,
    read_answer,
    read_plan,
    refusal_record,
    reveal_record,
    update_record,
)

DIGEST = "a" * 64
WEIGHTS = {"enhancer.z": np.ones((2, 3), np.float32), "recogniser.a": np.arange(4, dtype=np.float32)}
EVERY = dict.fromkeys(PARTS, 1)
UPDATE = Update(
    site="hospital-1",
    round=3,
    num_samples=64,
    difference=WEIGHTS,
    images={"encoder": 60, "decoder": 0},
    training={"loss_enhance": 0.25},
    evaluation={
        "enhanced.psnr_db": Moments(2, 60.0, 1800.5, (1.0, 2.0, 3.0, 4.0, 5.0)),
        "clean.dice": Moments(0, 0, 0),
    },
)


def test_a_plan_survives_the_wire_in_the_order_of_its_weights() -> None:
    plan = read_plan(plan_record(Plan("demo", "train", 2, DIGEST, "b" * 64, WEIGHTS)))
    assert (plan.campaign, plan.action, plan.round) == ("demo", "train", 2)
    assert (plan.config_digest, plan.architecture_digest) == (DIGEST, "b" * 64)
    assert list(plan.weights) == list(WEIGHTS)
    for name, values in WEIGHTS.items():
        np.testing.assert_array_equal(plan.weights[name], values)


def test_an_update_survives_the_wire_with_its_arrays_still_bytes() -> None:
    update = read_answer(update_record(UPDATE))
    assert isinstance(update, ReceivedUpdate)
    assert (update.site, update.round, update.num_samples) == ("hospital-1", 3, 64)
    assert dict(update.images) == {"encoder": 60}, "these weights have no decoder"
    assert dict(update.training) == {"loss_enhance": 0.25}
    assert dict(update.evaluation) == dict(UPDATE.evaluation)
    assert update.shapes == {"enhancer.z": (2, 3), "recogniser.a": (4,)}
    assert all(isinstance(data, bytes) for data in update.arrays.values())


ADDED = {"enhancer.z": np.array([[0.5, -1e-9, 0], [3e-7, 1e-3, -0.25]], np.float32)}
PROMOTING = replace(UPDATE, added=ADDED)


def test_what_recognition_added_survives_the_wire_beside_the_difference() -> None:
    update = read_answer(update_record(PROMOTING))
    assert isinstance(update, ReceivedUpdate)
    assert list(update.shapes) == list(update.arrays) == list(WEIGHTS)
    assert list(update.added) == ["enhancer.z"]
    half = update.added["enhancer.z"]
    values = half.scale * decode_half("enhancer.z", half, (2, 3)).astype(np.float64)
    np.testing.assert_allclose(values, ADDED["enhancer.z"], rtol=2**-11, atol=0.5 * 2**-25)


def test_an_update_without_it_carries_no_trace_of_it() -> None:
    assert b"added" not in update_record(UPDATE).header
    assert all(not name.startswith(messages.ADDED) for name in update_record(UPDATE).arrays)


@pytest.mark.parametrize(
    ("enhancer", "share"),
    [
        (EnhancerConfig(kind="unet"), 0.2),
        (EnhancerConfig(kind="cnn3", channels=32), 0.04),
        (EnhancerConfig(kind="srresnet", channels=32, depth=5), 0.27),
        (EnhancerConfig(kind="unet", depth=4), 0.5),
    ],
    ids=["unet", "cnn3", "srresnet", "as-large-as-the-recogniser"],
)
def test_both_parts_travel_in_1_3_of_a_model(campaign: CampaignConfig, enhancer: EnhancerConfig, share: float) -> None:
    """The bytes of real messages of the networks as configured, with names, headers and scales."""
    weights = to_arrays(build_networks(replace(campaign, enhance=enhancer, recognise=RecogniserConfig(kind="unet"))))
    part = {name: values for name, values in weights.items() if name.startswith(ENHANCER)}
    of_all = sum(values.size for values in part.values()) / sum(values.size for values in weights.values())
    assert of_all == pytest.approx(share, abs=0.01)
    model = update_record(Update("a", 1, 1, weights, images=EVERY)).num_bytes
    both = update_record(Update("a", 1, 1, weights, added=part, images=EVERY)).num_bytes
    assert both / model == pytest.approx(1 + of_all / 2, abs=0.01)
    assert both / model <= 1.3


SESSION = "0" * 32
MASKED = masked_record(PROMOTING, SESSION, b"12345" * 16)


def test_a_masked_update_tells_its_counts_and_what_its_bytes_stand_for_and_no_array() -> None:
    received = read_answer(MASKED)
    assert isinstance(received, ReceivedMasked)
    assert (received.session, received.masked) == (SESSION, b"12345" * 16)
    head = received.head
    assert (head.site, head.round, head.num_samples, dict(head.images)) == ("hospital-1", 3, 64, {"encoder": 60})
    assert list(head.shapes.items()) == [("enhancer.z", (2, 3)), ("recogniser.a", (4,)), ("added.enhancer.z", (2, 3))]
    assert head.arrays == head.added == {}
    assert dict(head.evaluation) == dict(UPDATE.evaluation)
    assert MASKED.num_bytes == len(MASKED.header) + len("masked") + 80


def test_offers_reveals_and_plans_for_them_survive_the_wire() -> None:
    for answer, write in (
        (Offered("a", 2, {"key": "00"}), offer_record),
        (Revealed("a", 2, {"seeds": {}}), reveal_record),
    ):
        assert read_answer(write(answer)) == answer  # type: ignore[operator]
    asked = Plan("demo", "unmask", 2, DIGEST, DIGEST, manifest_digest="c" * 64, secagg={"survivors": ["a", "b"]})
    plan = read_plan(plan_record(asked))
    assert (plan.action, plan.manifest_digest, plan.secagg) == ("unmask", "c" * 64, {"survivors": ["a", "b"]})


def test_a_card_and_a_refusal_survive_the_wire() -> None:
    card = SiteCard("hospital-1", DIGEST, "b" * 64, "0.1.0", {"patients": 7, "diagnoses.none": 3})
    assert read_answer(card_record(card)) == card
    assert read_answer(refusal_record("RefusedError", "not approved")) == Refusal("RefusedError", "not approved")


def test_what_is_not_a_number_stays_at_the_site() -> None:
    measured = replace(
        UPDATE,
        training={"loss": float("nan"), "gate": 0.5},
        evaluation={"a.auc": Moments(1, float("nan"), float("nan")), "a.dice": Moments(1, 0.5, 0.25)},
    )
    update = read_answer(update_record(measured))
    assert isinstance(update, ReceivedUpdate)
    assert dict(update.training) == {"gate": 0.5}
    assert list(update.evaluation) == ["a.dice"]


def test_a_reason_is_one_printable_bounded_line() -> None:
    assert one_line("a\x1b[31m\nb\u202e  c") == "a [31m b c"
    assert len(one_line("x" * 10_000)) == messages.MAX_REASON_CHARS


def header(record: Record, **changes: Any) -> Record:
    values = json.loads(record.header)
    values.update(changes)
    return replace(record, header=json.dumps(values).encode())


CARD = card_record(SiteCard("hospital-1", DIGEST, DIGEST, "0.1.0", {}))


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        (header(update_record(UPDATE), format=1), "expected a message of format 5"),
        (header(update_record(UPDATE), format=2), "expected a message of format 5"),
        (header(update_record(UPDATE), format=3), "expected a message of format 5"),
        (header(update_record(UPDATE), format=4), "expected a message of format 5"),
        (header(update_record(UPDATE), kind="pickle"), "another kind of message"),
        (header(update_record(UPDATE), kind=3), "not an object with a kind"),
        (header(update_record(UPDATE), site="../../etc"), "a site's name must be"),
        (header(update_record(UPDATE), site="a" * 65), "a site's name must be"),
        (header(update_record(UPDATE), site=None), "field 'site' must be a text"),
        (header(update_record(UPDATE), round=-1), "field 'round' must be a whole number"),
        (header(update_record(UPDATE), round=1.5), "field 'round' must be a whole number"),
        (header(update_record(UPDATE), round=True), "field 'round' must be a whole number"),
        (header(update_record(UPDATE), num_samples=2**60), "field 'num_samples' must be a whole number"),
        (header(update_record(UPDATE), images=None), "field 'images' must be a group of at most 4 names"),
        (header(update_record(UPDATE), images={str(i): 1 for i in range(5)}), "must be a group of at most 4 names"),
        (header(update_record(UPDATE), images={"critic": 1}), "encoder, decoder, diagnosis, prior, not for 'critic'"),
        (header(update_record(UPDATE), images={"\n\x1b": 1}), "diagnosis, prior, not for ''"),
        (header(update_record(UPDATE), images={"decoder": -1}), "field 'decoder' must be a whole number"),
        (header(update_record(UPDATE), images={"decoder": 1.0}), "field 'decoder' must be a whole number"),
        (header(update_record(UPDATE), images={"decoder": True}), "field 'decoder' must be a whole number"),
        (header(update_record(UPDATE), images={"decoder": None}), "field 'decoder' must be a whole number"),
        (header(update_record(UPDATE), images={"decoder": 2**53 + 1}), "field 'decoder' must be a whole number"),
        (header(update_record(UPDATE), training=[1]), "field 'training' must be a group"),
        (header(update_record(UPDATE), training={"loss": "low"}), "field 'loss' must be a finite number"),
        (header(update_record(UPDATE), training={"loss": 10**400}), "field 'loss' must be a finite number"),
        (header(update_record(UPDATE), training={str(i): 1 for i in range(2000)}), "at most 1000 names"),
        (header(update_record(UPDATE), evaluation={"a": {"count": 1, "total": float("nan"), "total_sq": 1}}), "finite"),
        (header(update_record(UPDATE), evaluation={"a": 3}), "field 'a' must be a group"),
        (
            header(update_record(UPDATE), evaluation={"a": {"count": 1, "total": 1, "total_sq": 1, "quantiles": [1]}}),
            "five numbers or none",
        ),
        (header(update_record(UPDATE), shapes={"other": [1]}), "not those that its header names"),
        (header(update_record(UPDATE), shapes={"enhancer.z": [2, -3], "recogniser.a": [4]}), "whole numbers"),
        (header(update_record(UPDATE), shapes={"enhancer.z": [1] * 9, "recogniser.a": [4]}), "out of bounds"),
        (header(update_record(UPDATE), added=[1]), "field 'added' must be a group"),
        (header(update_record(UPDATE), added={"enhancer.z": 1.0}), "has no array in the message"),
        (header(update_record(PROMOTING), added={"enhancer.none": 1.0}), "has no array in the message"),
        (header(update_record(PROMOTING), added={"enhancer.z": float("inf")}), "field 'enhancer.z' must be a finite"),
        (header(update_record(PROMOTING), added={"enhancer.z": float("nan")}), "field 'enhancer.z' must be a finite"),
        (header(update_record(PROMOTING), added={"enhancer.z": 10**400}), "field 'enhancer.z' must be a finite"),
        (header(update_record(PROMOTING), added={"enhancer.z": None}), "field 'enhancer.z' must be a finite"),
        (header(update_record(PROMOTING), added={"x" * 1000: 1.0}), "field 'added' must be a group"),
        (header(update_record(PROMOTING), added={str(i): 1.0 for i in range(20_001)}), "at most 20000 names"),
        (
            header(
                update_record(PROMOTING),
                shapes={"enhancer.z": [2, 3], "recogniser.a": [4], "added.enhancer.z": [3, 2]},
            ),
            "must have the shape of that array",
        ),
        (header(update_record(PROMOTING), shapes={"enhancer.z": [2, 3], "recogniser.a": [4]}), "not those that its"),
        (header(MASKED, session="0" * 31), "32 hexadecimal digits"),
        (header(MASKED, session="Z" * 32), "32 hexadecimal digits"),
        (header(MASKED, shapes={"masked": [79]}), "one array of bytes and no other"),
        (header(update_record(UPDATE), kind="masked"), "one array of bytes and no other"),
        (header(MASKED, stands_for=[1]), "field 'stands_for' must be a group"),
        (header(MASKED, stands_for={"a": [-1]}), "whole numbers"),
        (header(MASKED, stands_for={"a": [1] * 9}), "out of bounds"),
        (header(MASKED, num_samples=-1), "field 'num_samples' must be a whole number"),
        (header(offer_record(Offered("a", 1, {})), offer=3), "field 'offer' must be a group"),
        (header(offer_record(Offered("a", 1, {})), site="../a"), "a site's name must be"),
        (header(reveal_record(Revealed("a", 1, {})), reveal={str(i): 1 for i in range(1001)}), "at most 1000 names"),
        (header(CARD, config_digest="zz"), "must be a SHA-256"),
        (header(CARD, counts={"patients": -1}), "field 'patients' must be a whole number"),
        (Record(b"\xff\x00"), "not JSON"),
        (Record(b"[" * 100_000), "not JSON"),
        (Record(b"[1]"), "not an object"),
        (Record(b" " * (messages.MAX_HEADER_BYTES + 1)), "at most"),
    ],
)
def test_an_answer_out_of_bounds_is_refused_with_the_reason(record: Record, reason: str) -> None:
    with pytest.raises(DataError, match=reason) as refused:
        read_answer(record)
    assert "\n" not in str(refused.value)


def test_a_plan_with_an_unknown_action_or_a_broken_array_is_refused() -> None:
    plan = plan_record(Plan("demo", "train", 2, DIGEST, DIGEST, WEIGHTS))
    with pytest.raises(DataError, match="action must be one of handshake, offer, train, unmask, evaluate"):
        read_plan(header(plan, action="run"))
    with pytest.raises(DataError, match="array 'enhancer.z'"):
        read_plan(replace(plan, arrays={**plan.arrays, "enhancer.z": b"short"}))
    with pytest.raises(DataError, match="expected a plan, got a 'update' message"):
        read_plan(update_record(UPDATE))


@given(
    st.binary(max_size=200)
    | st.recursive(st.none() | st.integers() | st.text(), st.lists).map(json.dumps).map(str.encode)
)
def test_no_header_gets_past_the_checks_as_another_error(data: bytes) -> None:
    with pytest.raises(DataError):
        read_answer(Record(data))


def test_bytes_are_counted_with_names_and_header() -> None:
    assert Record(b"12345", {"ab": b"123"}).num_bytes == 10
