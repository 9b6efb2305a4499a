"""Adversary: who can change, repeat or invent messages between a site and the coordinator. Each is refused with its
reason, and neither the coordinator's sum nor what a site keeps is another than before."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from client import protect
from client.site import SiteSetup
from server.collect import WeightedSum
from server.masked import MaskedSum
from shared.config import CampaignConfig, MachineConfig, SecAggConfig
from shared.errors import DataError, RefusedError, WardroundError
from shared.secagg.messages import Offer, Reveal, Terms
from shared.secagg.protocol import new_session
from shared.seeding import numpy_generator
from shared.trust.identity import create_identity
from shared.types import Moments, Offered, Plan, Revealed, Update
from shared.weights import PARTS
from shared.wire.messages import (
    MASKED,
    MAX_ARRAYS,
    MAX_HEADER_BYTES,
    ReceivedMasked,
    ReceivedUpdate,
    Record,
    masked_record,
    offer_record,
    plan_record,
    read_answer,
    read_plan,
    reveal_record,
    update_record,
)
from simulation.fuzz import release as fuzz_release
from simulation.fuzz import wire as fuzz_wire

WEIGHTS = {"enhancer.w": np.ones((2, 3), np.float32), "recogniser.unet.encoder.b": np.arange(4, dtype=np.float32)}
EVERY = dict.fromkeys(PARTS, 5)
METRICS = {"enhanced.psnr_db": Moments(2, 60.0, 1800.5, (1.0, 2.0, 3.0, 4.0, 5.0))}
NAMES = ("a", "b", "c")


def update(site: str = "b", round: int = 2, **changes: Any) -> Update:
    values: dict[str, Any] = {"num_samples": 10, "difference": WEIGHTS, "images": EVERY, "evaluation": METRICS}
    return Update(site, round, **{**values, **changes})


class Coordinator:
    """The sum of a round in which site a has answered."""

    def __init__(self) -> None:
        self.total = WeightedSum(WEIGHTS, round=2, max_samples=100)
        self.deliver(update_record(update("a")), "a")

    def deliver(self, record: Record, site: str = "b") -> None:
        answer = read_answer(record)
        if not isinstance(answer, ReceivedUpdate):
            raise DataError("not an update")
        self.total.add(answer, site=site)

    def state(self) -> str:
        sums = b"".join(values.tobytes() for values in self.total._sums.values())
        return hashlib.sha256(sums + repr((self.total.samples, self.total.images)).encode()).hexdigest()


@pytest.fixture
def coordinator() -> Coordinator:
    return Coordinator()


def header(record: Record, **changes: Any) -> Record:
    return Record(json.dumps(json.loads(record.header) | changes).encode(), record.arrays)


def text(record: Record, before: str, after: str) -> Record:
    assert before.encode() in record.header
    return Record(record.header.replace(before.encode(), after.encode(), 1), record.arrays)


def arrays(record: Record, **changes: bytes) -> Record:
    return Record(record.header, {**record.arrays, **changes})


GOOD = update_record(update())
FIRST = "enhancer.w"

HOSTILE: dict[str, tuple[Callable[[], Record], str]] = {
    "stale": (lambda: update_record(update(round=1)), "round"),
    "of a later round": (lambda: update_record(update(round=3)), "round"),
    "of another site": (lambda: update_record(update("c")), "expected a reply in the name of b"),
    "of a site that is a path": (lambda: header(GOOD, site="../../a"), "a site's name must be 1 to 64"),
    "another kind": (lambda: header(GOOD, kind="gradient"), "got another kind of message"),
    "an old format": (lambda: header(GOOD, format=4), "expected a message of format 5"),
    "array cut": (lambda: arrays(GOOD, **{FIRST: GOOD.arrays[FIRST][:-1]}), "not the bytes of a float32 array"),
    "array longer": (lambda: arrays(GOOD, **{FIRST: GOOD.arrays[FIRST] + b"\0"}), "not the bytes of a float32 array"),
    "array missing": (lambda: Record(GOOD.header, {FIRST: GOOD.arrays[FIRST]}), "not those that its header names"),
    "array nobody named": (lambda: arrays(GOOD, evil=b""), "not those that its header names"),
    "pickled object": (lambda: arrays(GOOD, **{FIRST: b"\x80\x04\x95" + bytes(149)}), "not the bytes of a float32"),
    "not finite": (
        lambda: update_record(update(difference=WEIGHTS | {FIRST: np.full((2, 3), np.nan, np.float32)})),
        "not finite",
    ),
    "other shape": (
        lambda: update_record(update(difference=WEIGHTS | {FIRST: np.ones((3, 2), np.float32)})),
        "shape",
    ),
    "shape of 2^52 values": (lambda: header(GOOD, shapes={FIRST: [2**26, 2**26], list(WEIGHTS)[1]: [4]}), "shape"),
    "negative shape": (lambda: header(GOOD, shapes={FIRST: [-2, 3], list(WEIGHTS)[1]: [4]}), "whole numbers"),
    "shape of nine dimensions": (lambda: header(GOOD, shapes={FIRST: [1] * 9, list(WEIGHTS)[1]: [4]}), "dimensions"),
    "too many arrays": (lambda: header(GOOD, shapes={str(n): [1] for n in range(MAX_ARRAYS + 1)}), "at most 20000"),
    "huge count": (lambda: header(GOOD, num_samples=2**63), "whole number from 0 to 2\\^53"),
    "more samples than the plan": (lambda: header(GOOD, num_samples=101), "0 to 100 samples"),
    "fractional count": (lambda: header(GOOD, num_samples=1.5), "whole number"),
    "count that is true": (lambda: header(GOOD, num_samples=True), "whole number"),
    "number of 5000 digits": (lambda: text(GOOD, '"num_samples":10', f'"num_samples":{"9" * 5000}'), "not JSON"),
    "NaN": (lambda: text(GOOD, '"total":60.0', '"total":NaN'), "finite number"),
    "Infinity": (lambda: text(GOOD, '"total":60.0', '"total":-Infinity'), "finite number"),
    "1e999": (lambda: text(GOOD, '"total":60.0', '"total":1e999'), "finite number"),
    "a field twice": (lambda: text(GOOD, '"num_samples":10', '"num_samples":10,"num_samples":99'), "not JSON"),
    "a nested field twice": (lambda: text(GOOD, '"count":2', '"count":2,"count":3'), "not JSON"),
    "deep JSON": (lambda: Record(b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}", GOOD.arrays), "not JSON"),
    "a hundred thousand lists": (lambda: Record(b"[" + b"[]," * 100_000 + b"[]]", GOOD.arrays), "not an object"),
    "oversized header": (lambda: Record(b" " * MAX_HEADER_BYTES + GOOD.header, GOOD.arrays), "at most 4194304 bytes"),
    "not UTF-8": (lambda: Record(b"\xff\xfe" + GOOD.header, GOOD.arrays), "not JSON"),
    "empty": (lambda: Record(b"", {}), "not JSON"),
    "a metric with a name of a page": (lambda: header(GOOD, training={"x" * 301: 1.0}), "group of at most"),
    "a thousand metrics more": (lambda: header(GOOD, training={str(n): 1.0 for n in range(1001)}), "group of at most"),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_update_has_its_reason_and_leaves_the_sum_as_it_was(coordinator: Coordinator, name: str) -> None:
    make, reason = HOSTILE[name]
    before = coordinator.state()
    with pytest.raises(DataError, match=reason) as refusal:
        coordinator.deliver(make())
    assert "\n" not in str(refusal.value)
    assert len(str(refusal.value)) < 500
    assert coordinator.state() == before
    coordinator.deliver(GOOD)
    assert coordinator.state() != before, "the honest one still counts"


def test_an_update_that_is_sent_again_counts_once(coordinator: Coordinator) -> None:
    coordinator.deliver(GOOD)
    before = coordinator.state()
    for again in (GOOD, update_record(update(num_samples=90))):
        with pytest.raises(DataError, match="already received"):
            coordinator.deliver(again)
        assert coordinator.state() == before


def test_an_update_cut_at_any_byte_leaves_the_sum_as_it_was(coordinator: Coordinator) -> None:
    before = coordinator.state()
    cut = [Record(GOOD.header[:length], GOOD.arrays) for length in range(len(GOOD.header))]
    for name, data in GOOD.arrays.items():
        cut += [arrays(GOOD, **{name: data[:length]}) for length in range(len(data))]
    for record in cut:
        with pytest.raises(DataError):
            coordinator.deliver(record)
    assert coordinator.state() == before


def flipped(record: Record) -> Iterator[Record]:
    """Every byte of the header and of each array, with one bit of it turned: each bit in turn."""
    for place in range(len(record.header)):
        for bit in (0, 3, 5, 7):
            changed = bytearray(record.header)
            changed[place] ^= 1 << bit
            yield Record(bytes(changed), record.arrays)
    for name, data in record.arrays.items():
        for place in range(len(data)):
            changed = bytearray(data)
            changed[place] ^= 1 << (place % 8)
            yield arrays(record, **{name: bytes(changed)})


def test_a_bit_turned_at_any_byte_is_refused_whole_or_gives_a_well_formed_update() -> None:
    """No format can tell a changed value from a true one (TLS and the masks' arithmetic are for that): what is taken
    has the names, shapes and bounds of an update, and what is not has changed nothing."""
    coordinator, refused, taken = Coordinator(), 0, 0
    before = coordinator.state()
    for record in flipped(GOOD):
        try:
            coordinator.deliver(record)
        except DataError:
            refused += 1
            assert coordinator.state() == before
            continue
        taken += 1
        assert coordinator.total.samples.keys() == {"a", "b"}
        assert 0 <= coordinator.total.samples["b"] <= 100
        assert all(np.isfinite(values).all() for values in coordinator.total._sums.values())
        coordinator = Coordinator()
    assert refused > 2 * taken > 0


# ------------------------------------------------------------------------------------------------------------ to a site


PLAN = plan_record(
    Plan("tiny", "train", 2, "a" * 64, "b" * 64, WEIGHTS, manifest_digest="c" * 64, secagg={"terms": {}})
)
HOSTILE_PLANS: dict[str, tuple[Callable[[], Record], str]] = {
    "an update": (lambda: GOOD, "expected a plan"),
    "unknown action": (lambda: header(PLAN, action="export"), "a plan's action must be one of"),
    "action with an escape": (lambda: header(PLAN, action="\x1b[31m"), "a plan's action must be one of"),
    "round below": (lambda: header(PLAN, round=-1), "whole number"),
    "digest that is a path": (lambda: header(PLAN, config_digest="../" * 21 + "a"), "must be a SHA-256"),
    "digest of a number": (lambda: header(PLAN, manifest_digest=7), "must be a text"),
    "weights cut": (lambda: arrays(PLAN, **{FIRST: PLAN.arrays[FIRST][:-4]}), "not the bytes"),
    "weights bomb": (lambda: header(PLAN, shapes={FIRST: [2**40], list(WEIGHTS)[1]: [4]}), "not the bytes"),
    "deep": (lambda: text(PLAN, '"terms":{}', '"terms":' + "[" * 50_000 + "]" * 50_000), "not JSON"),
    "twice": (lambda: text(PLAN, '"round":2', '"round":2,"round":1'), "not JSON"),
    "secagg of many fields": (lambda: header(PLAN, secagg={str(n): 1 for n in range(4)}), "group of at most 3"),
}


@pytest.mark.parametrize("name", HOSTILE_PLANS)
def test_a_hostile_plan_has_its_reason(name: str) -> None:
    make, reason = HOSTILE_PLANS[name]
    with pytest.raises(DataError, match=reason) as refusal:
        read_plan(make())
    assert str(refusal.value).isprintable()


def test_a_plan_with_a_bit_turned_anywhere_raises_nothing_but_our_own_errors() -> None:
    refused = 0
    for record in flipped(PLAN):
        try:
            plan = read_plan(record)
        except DataError:
            refused += 1
        else:
            assert {name: values.shape for name, values in plan.weights.items()} == {
                name: values.shape for name, values in WEIGHTS.items()
            }
    assert refused > 500


# ---------------------------------------------------------------------------------------------------- under the masks


@pytest.fixture
def masked_campaign(campaign: CampaignConfig) -> CampaignConfig:
    return replace(campaign, secagg=SecAggConfig(kind="masked"), rounds=replace(campaign.rounds, quorum=3))


@pytest.fixture
def setups(tmp_path: Path) -> dict[str, SiteSetup]:
    identities = {name: create_identity(name) for name in NAMES}
    public = {name: identity.public for name, identity in identities.items()}
    return {
        name: SiteSetup(name, tmp_path, MachineConfig(), {}, tmp_path / "sites" / name, identities[name], public)
        for name in NAMES
    }


def kept(setup: SiteSetup) -> str:
    """What the site keeps, as one digest."""
    assert setup.home is not None
    files = sorted(path for path in setup.home.rglob("*") if path.is_file() and "lock" not in path.name)
    return hashlib.sha256(b"".join(path.name.encode() + path.read_bytes() for path in files)).hexdigest()


class Session:
    """A masked round up to the offers, as the coordinator relays them."""

    def __init__(self, setups: dict[str, SiteSetup], campaign: CampaignConfig) -> None:
        self.setups, self.campaign = setups, campaign
        self.digest = "a" * 64
        self.terms = Terms(new_session(), self.digest, 1, NAMES, 3)
        self.offers = {name: self.offer(name) for name in NAMES}

    def plan(self, action: Any, **secagg: Any) -> Plan:
        terms = {"terms": self.terms.to_json()}
        return Plan("tiny", action, 1, self.digest, "b" * 64, secagg={**terms, **secagg})

    def offer(self, name: str) -> dict[str, Any]:
        made = protect.offered(self.plan("offer"), self.setups[name], self.campaign)
        answer = read_answer(offer_record(made))
        assert isinstance(answer, Offered)
        return dict(answer.offer)

    def train(self, name: str, **changes: Any) -> Record:
        plan = self.plan("train", **{"offers": self.offers, **changes})
        return protect.protected(update(name, 1), plan, self.setups[name], self.campaign)[0]

    def reveal(self, name: str, survivors: tuple[str, ...] = NAMES) -> Record:
        plan = self.plan("unmask", survivors=list(survivors))
        return reveal_record(protect.revealed(plan, self.setups[name], self.campaign))


@pytest.fixture
def session(setups: dict[str, SiteSetup], masked_campaign: CampaignConfig) -> Session:
    return Session(setups, masked_campaign)


def test_a_masked_update_that_is_hostile_leaves_the_masked_sum_as_it_was(
    session: Session, masked_campaign: CampaignConfig
) -> None:
    total = MaskedSum(WEIGHTS, masked_campaign)
    good = {name: session.train(name) for name in NAMES}

    def deliver(record: Record, site: str) -> None:
        answer = read_answer(record)
        assert isinstance(answer, ReceivedMasked)
        total.add(answer, site)

    deliver(good["a"], "a")
    before = total.vector.copy()
    size = len(good["b"].arrays[MASKED])
    hostile = {
        "already received": (good["a"], "a"),
        "bytes": (masked_record(update("b", 1), session.terms.session, good["b"].arrays[MASKED][:-5]), "b"),
        "one array of bytes": (Record(good["b"].header, {MASKED: bytes(size + 5)}), "b"),
        "32 hexadecimal": (header(good["b"], session="x" * 32), "b"),
        "another order": (
            header(good["b"], stands_for=dict(reversed(json.loads(good["b"].header)["stands_for"].items()))),
            "b",
        ),
        "samples": (header(good["b"], num_samples=10**9), "b"),
        "is missing": (header(good["b"], stands_for={FIRST: [2, 3]}), "b"),
    }
    for reason, (record, site) in hostile.items():
        with pytest.raises(DataError, match=reason):
            deliver(record, site)
        np.testing.assert_array_equal(total.vector, before)
        assert total.samples.keys() == {"a"}
    deliver(good["b"], "b")
    assert (total.vector != before).any()


def test_a_site_masks_one_vector_in_a_session_and_says_one_reveal(session: Session) -> None:
    """A plan that is sent again gets no second answer: two masked vectors of one mask would tell their difference."""
    with pytest.raises(RefusedError):
        session.reveal("a")
    for name in NAMES:
        session.train(name)
    before = kept(session.setups["a"])
    with pytest.raises(RefusedError):
        session.train("a")
    assert kept(session.setups["a"]) == before
    session.reveal("a")
    after = kept(session.setups["a"])
    for survivors in (NAMES, NAMES[:2]):
        with pytest.raises(RefusedError):
            session.reveal("a", survivors)
    assert kept(session.setups["a"]) == after


def _without_signature(offer: dict[str, Any]) -> dict[str, Any]:
    return {**offer, "signature": "AAAAAAAAAAAA"}


OFFERS: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "another mask key": lambda offer: {**offer, "mask_key": "11" * 32},
    "another share key": lambda offer: {**offer, "share_key": "11" * 32},
    "another commitment": lambda offer: {**offer, "seed_digest": "11" * 32},
    "no true signature": _without_signature,
    "a field more": lambda offer: {**offer, "note": "x"},
    "a field of another kind": lambda offer: {**offer, "mask_key": 7},
    "a share that is too long": lambda offer: {**offer, "shares": {**offer["shares"], "a": "A" * 4000}},
    "of another site": lambda offer: {**offer, "site": "c"},
}


@pytest.mark.parametrize("name", OFFERS)
def test_an_offer_that_was_changed_on_its_way_is_refused_before_anything_is_masked(session: Session, name: str) -> None:
    before = kept(session.setups["a"])
    with pytest.raises((DataError, RefusedError)) as refusal:
        session.train("a", offers={**session.offers, "b": OFFERS[name](session.offers["b"])})
    assert "\n" not in str(refusal.value)
    assert kept(session.setups["a"]) == before
    session.train("a")


def test_an_offer_or_a_reveal_with_a_bit_turned_anywhere_raises_nothing_but_our_own_errors(session: Session) -> None:
    for name in NAMES:
        session.train(name)
    said = session.reveal("a")
    record = offer_record(Offered("a", 1, session.offers["a"]))
    kinds: tuple[tuple[Record, Any, type], ...] = ((record, Offer, Offered), (said, Reveal, Revealed))
    for good, kind, noun in kinds:
        refused = 0
        for changed in flipped(good):
            try:
                answer = read_answer(changed)
                assert isinstance(answer, noun)
                kind.from_json(answer.offer if isinstance(answer, Offered) else answer.reveal)  # type: ignore[union-attr]
            except WardroundError:
                refused += 1
        assert refused > 100


@pytest.mark.parametrize("value", [float("nan"), -1, 2**70, [], {}, None, True, "x" * 10_000, [[[]]]])
@pytest.mark.parametrize("field", ["session", "campaign_digest", "round", "cohort", "minimum"])
def test_terms_of_another_kind_are_refused(session: Session, field: str, value: Any) -> None:
    values = {**session.terms.to_json(), field: value}
    with pytest.raises((DataError, RefusedError)):
        Terms.from_json(values)


@pytest.mark.parametrize(("module", "taken"), [(fuzz_wire, "ReceivedUpdate"), (fuzz_release, "Error")])
def test_some_fuzzed_messages_and_releases_raise_nothing_but_our_own_errors(module: Any, taken: str) -> None:
    make, read = module.target()
    outcomes = Counter(read(make(numpy_generator(1, "fuzz", "test", number))[1]) for number in range(600))
    assert any("DataError" in outcome for outcome in outcomes)
    assert any(taken in outcome for outcome in outcomes), "some get past the door"
