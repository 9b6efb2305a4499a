"""What may be seen of an update: bounded, masked or refused, and what a site keeps of a session between messages."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from client import protect, sessions
from client.site import SiteSetup
from shared.config import CampaignConfig, MachineConfig, PrivacyConfig, SecAggConfig, StrategyConfig, campaign_digest
from shared.errors import DataError, RefusedError
from shared.masking import grid_of, start_digest
from shared.secagg.fixed_point import add_packed, mean
from shared.secagg.protocol import SiteSession, Terms, new_session
from shared.trust.identity import create_identity
from shared.types import Arrays, Moments, Offered, Plan, Revealed, SiteCard, Update
from shared.weights import norm
from shared.wire.messages import MASKED, ReceivedMasked, ReceivedUpdate, read_answer

NAMES = ("coast", "north", "valley")
LEARNED: Arrays = {"enhancer.w": np.full((2, 3), 0.5, np.float32), "prior.map": np.full(4, 0.25, np.float32)}
UPDATE = Update("north", 1, 4, LEARNED, {"loss": 1.0}, {"clean.dice": Moments(2, 1.0, 0.5)}, images={"prior": 2})


@pytest.fixture(scope="module")
def identities() -> dict[str, Any]:
    return {name: create_identity(name) for name in NAMES}


@pytest.fixture
def sites(identities: dict[str, Any], tmp_path: Path) -> dict[str, SiteSetup]:
    public = {name: identity.public for name, identity in identities.items()}
    return {
        name: SiteSetup(
            name,
            tmp_path,
            MachineConfig(),
            {},
            home=tmp_path / name,
            identity=identity,
            peers={other: public[other] for other in NAMES if other != name},
        )
        for name, identity in identities.items()
    }


@pytest.fixture
def masked(campaign: CampaignConfig) -> CampaignConfig:
    rounds = replace(campaign.rounds, quorum=3)
    return replace(campaign, rounds=rounds, secagg=SecAggConfig(kind="masked"))


def plan(campaign: CampaignConfig, action: Any, terms: Terms | None = None, **secagg: Any) -> Plan:
    digest = campaign_digest(campaign)
    given = {} if terms is None else {"terms": terms.to_json()}
    return Plan(campaign.name, action, 1, digest, "b" * 64, secagg={**given, **secagg})


def terms_of(campaign: CampaignConfig, **changes: Any) -> Terms:
    return replace(Terms(new_session(), campaign_digest(campaign), 1, NAMES, 3, start_digest({}, "")), **changes)


def offers_of(campaign: CampaignConfig, sites: dict[str, SiteSetup], terms: Terms) -> dict[str, Any]:
    return {
        name: dict(protect.offered(plan(campaign, "offer", terms), setup, campaign).offer)
        for name, setup in sites.items()
    }


def send(campaign: CampaignConfig, setup: SiteSetup, terms: Terms, offers: dict[str, Any]) -> ReceivedMasked:
    update = replace(UPDATE, site=setup.name)
    record, _ = protect.protected(update, plan(campaign, "train", terms, offers=offers), setup, campaign)
    received = read_answer(record)
    assert isinstance(received, ReceivedMasked)
    return received


# --------------------------------------------------------------------------------------------------------- in the open


def test_a_card_an_offer_and_a_reveal_go_as_they_are(campaign: CampaignConfig, sites: dict[str, SiteSetup]) -> None:
    card = SiteCard("north", "a" * 64, "b" * 64, "0.1.0", {})
    for done in (card, Offered("north", 1, {}), Revealed("north", 1, {})):
        assert read_answer(protect.protected(done, plan(campaign, "offer"), sites["north"], campaign)[0]) == done


def test_a_visible_update_leaves_as_it_is_and_its_length_is_told_to_the_sites_own_log(
    campaign: CampaignConfig, sites: dict[str, SiteSetup]
) -> None:
    record, facts = protect.protected(UPDATE, plan(campaign, "train"), sites["north"], campaign)
    received = read_answer(record)
    assert isinstance(received, ReceivedUpdate)
    assert received.shapes == {"enhancer.w": (2, 3), "prior.map": (4,)}
    assert facts == {"norm": norm(LEARNED), "masked": False}


def test_an_update_beyond_the_bound_is_cut_to_it_and_the_mask_map_is_not() -> None:
    added = {"enhancer.w": np.full((2, 3), 0.25, np.float32)}
    cut = protect.within(replace(UPDATE, added=added), 0.1)
    assert norm({"enhancer.w": cut.difference["enhancer.w"]}) == pytest.approx(0.1, rel=1e-6)
    np.testing.assert_array_equal(cut.difference["prior.map"], LEARNED["prior.map"])
    np.testing.assert_allclose(cut.added["enhancer.w"], cut.difference["enhancer.w"] / 2, rtol=1e-6)
    assert list(cut.difference) == list(LEARNED)
    assert protect.within(UPDATE, 10.0) is UPDATE
    assert protect.within(UPDATE, None) is UPDATE


# --------------------------------------------------------------------------------------------------------- under masks


def test_a_masked_update_tells_counts_and_metrics_and_no_value(
    masked: CampaignConfig, sites: dict[str, SiteSetup]
) -> None:
    terms = terms_of(masked)
    received = send(masked, sites["north"], terms, offers_of(masked, sites, terms))
    assert (received.head.num_samples, dict(received.head.images)) == (4, {"prior": 2})
    assert received.session == terms.session
    assert list(received.head.shapes) == list(LEARNED)
    assert len(received.masked) == 5 * 10
    assert len(set(received.masked)) > 20, "equal values do not look equal"


def test_a_share_of_noise_beyond_the_range_is_sent_whole_and_not_cut(
    masked: CampaignConfig, sites: dict[str, SiteSetup], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the masks left out: what three sites send adds up to the sum of their shares, beyond the range."""
    private = replace(
        masked,
        privacy=PrivacyConfig(kind="site"),
        strategy=replace(masked.strategy, weight_by="equal"),
        secagg=replace(masked.secagg, range=0.5),
    )
    shares = iter([0.75, -1.5, 1.0])
    monkeypatch.setattr("client.privacy.normal", lambda count, *_: np.full(count, next(shares)))
    monkeypatch.setattr("shared.secagg.masks.apply", lambda *_, **__: None)
    terms, still = terms_of(private), replace(UPDATE, noise_multiplier=5.0, difference=zeros(LEARNED))
    offers = offers_of(private, sites, terms)
    total = np.zeros(10, np.uint64)
    for name, setup in sites.items():
        plan_of = plan(private, "train", terms, offers=offers)
        received = read_answer(protect.protected(replace(still, site=name), plan_of, setup, private)[0])
        assert isinstance(received, ReceivedMasked)
        add_packed(total, received.masked)
    shapes = {name: values.shape for name, values in LEARNED.items()}
    opened = mean(total, shapes, dict.fromkeys(shapes, 3), grid_of(private, 3))
    for values in opened.values():
        np.testing.assert_allclose(3 * values, 0.25, rtol=1e-6)


def zeros(values: Arrays) -> Arrays:
    return {name: np.zeros_like(one) for name, one in values.items()}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda terms: {"secagg": {}}, "names no session: nothing leaves unmasked"),
        (lambda terms: {"secagg": {"terms": terms.to_json()}}, "brings the offers of its session"),
        (lambda terms: {"secagg": {"terms": replace(terms, minimum=2).to_json(), "offers": {}}}, "minimum cohort than"),
        (
            lambda terms: {"secagg": {"terms": replace(terms, round=2).to_json(), "offers": {}}},
            "another campaign, round",
        ),
        (
            lambda terms: {"secagg": {"terms": replace(terms, cohort=("a", "b", "c")).to_json(), "offers": {}}},
            "does not name north; nothing is sent in it",
        ),
        (
            lambda terms: {"secagg": {"terms": replace(terms, weights="0" * 64).to_json(), "offers": {}}},
            "is for other weights than|is not the live one",
        ),
        (
            lambda terms: {"secagg": {"terms": replace(terms, session="0" * 32).to_json(), "offers": {}}},
            "is not the live one",
        ),
        (lambda terms: {"secagg": {"terms": {"session": 1}}}, "must have the fields"),
    ],
)
def test_a_plan_to_train_out_of_order_is_refused_before_anything_is_computed(
    masked: CampaignConfig, sites: dict[str, SiteSetup], change: Callable[[Terms], dict[str, Any]], reason: str
) -> None:
    terms = terms_of(masked)
    offers_of(masked, sites, terms)
    before = session_of(sites["north"], masked)
    asked = replace(plan(masked, "train"), **change(terms))
    for attempt in (protect.check_session, lambda *given: protect.protected(UPDATE, *given)):
        with pytest.raises((RefusedError, DataError), match=reason):
            attempt(asked, sites["north"], masked)
    assert session_of(sites["north"], masked) == before


def session_of(setup: SiteSetup, campaign: CampaignConfig) -> dict[str, Any]:
    assert setup.home is not None
    values: dict[str, Any] = json.loads((setup.home / "secagg" / f"{campaign_digest(campaign)}.session").read_text())
    return values


def test_a_campaign_with_visible_updates_offers_nothing(campaign: CampaignConfig, sites: dict[str, SiteSetup]) -> None:
    visible = replace(campaign, rounds=replace(campaign.rounds, quorum=3))
    with pytest.raises(RefusedError, match="agreed on secagg=visible_updates"):
        protect.offered(plan(visible, "offer", terms_of(visible)), sites["north"], visible)


@pytest.mark.parametrize("lacks", ["identity", "home", "peers"])
def test_a_site_without_keys_or_pins_says_so_at_the_handshake(
    masked: CampaignConfig, campaign: CampaignConfig, sites: dict[str, SiteSetup], lacks: str
) -> None:
    bare = replace(sites["north"], **{lacks: {} if lacks == "peers" else None})
    with pytest.raises(RefusedError, match="which secagg=masked needs"):
        protect.check_can_mask(bare, masked)
    protect.check_can_mask(bare, campaign)


# ------------------------------------------------------------------------------------------------ between the messages


def test_a_session_masks_once_and_reveals_once_whatever_process_asks(
    masked: CampaignConfig, sites: dict[str, SiteSetup]
) -> None:
    terms = terms_of(masked)
    offers = offers_of(masked, sites, terms)
    send(masked, sites["north"], terms, offers)
    with pytest.raises(RefusedError, match="has left this site already"):
        send(masked, sites["north"], terms, offers)
    unmask = plan(masked, "unmask", terms, survivors=list(NAMES))
    first = protect.revealed(unmask, sites["north"], masked)
    assert first.reveal["seed_shares"].keys() == set(NAMES)
    with pytest.raises(RefusedError, match="is not the live one of this campaign here: it was revealed"):
        protect.revealed(unmask, sites["north"], masked)


def test_a_new_offer_ends_the_session_before_it(masked: CampaignConfig, sites: dict[str, SiteSetup]) -> None:
    old, new = terms_of(masked), terms_of(masked)
    offers = offers_of(masked, sites, old)
    offers_of(masked, sites, new)
    with pytest.raises(RefusedError, match="a later offer took its place"):
        send(masked, sites["north"], old, offers)


@pytest.mark.parametrize(
    ("survivors", "reason"),
    [
        (["coast", "north"], "a sum of 2 sites would be opened"),
        (["valley", "north", "coast"], "must be in order"),
        (["coast", "north", "north"], "must be in order, and name no site twice"),
        (["coast", "hill", "north"], "must be sites of its cohort"),
        (["../coast", "north", "valley"], "a site's name must be"),
        ("coast", "must be a list"),
        (None, "must be a list"),
    ],
)
def test_a_sum_below_the_cohort_or_over_strangers_is_not_opened_and_the_session_lives(
    masked: CampaignConfig, sites: dict[str, SiteSetup], survivors: Any, reason: str
) -> None:
    terms = terms_of(masked)
    send(masked, sites["north"], terms, offers_of(masked, sites, terms))
    before = session_of(sites["north"], masked)
    with pytest.raises((RefusedError, DataError), match=reason):
        protect.revealed(plan(masked, "unmask", terms, survivors=survivors), sites["north"], masked)
    assert session_of(sites["north"], masked) == before
    assert protect.revealed(plan(masked, "unmask", terms, survivors=list(NAMES)), sites["north"], masked)


def test_secrets_lie_for_their_owner_alone_and_are_gone_after_the_reveal(
    masked: CampaignConfig, sites: dict[str, SiteSetup]
) -> None:
    terms = terms_of(masked)
    offers = offers_of(masked, sites, terms)
    home = sites["north"].home
    assert home is not None
    seed = session_of(sites["north"], masked)["seed"]
    assert len(seed) == 64
    for path in (home / "secagg").iterdir():
        assert path.stat().st_mode & 0o077 == 0
    send(masked, sites["north"], terms, offers)
    assert seed not in "".join(path.read_text() for path in (home / "secagg").iterdir()), "gone once it is used"
    protect.revealed(plan(masked, "unmask", terms, survivors=list(NAMES)), sites["north"], masked)
    kept = sorted(path.suffix for path in (home / "secagg").iterdir())
    assert kept == [".lock", ".opened"]
    assert sessions.opened(home, terms) == (NAMES,)


def test_a_session_that_lies_open_or_is_damaged_is_not_used(
    masked: CampaignConfig, sites: dict[str, SiteSetup]
) -> None:
    terms = terms_of(masked)
    offers = offers_of(masked, sites, terms)
    home = sites["north"].home
    assert home is not None
    path = home / "secagg" / f"{campaign_digest(masked)}.session"
    path.chmod(0o644)
    with pytest.raises(RefusedError, match="must have mode 0600"):
        send(masked, sites["north"], terms, offers)
    path.chmod(0o600)
    path.write_text('{"cut": ')
    with pytest.raises(RefusedError, match="offer again"):
        send(masked, sites["north"], terms, offers)


def test_a_damaged_list_of_what_was_opened_opens_nothing_more(
    masked: CampaignConfig, sites: dict[str, SiteSetup]
) -> None:
    terms = terms_of(masked)
    send(masked, sites["north"], terms, offers_of(masked, sites, terms))
    home = sites["north"].home
    assert home is not None
    path = home / "secagg" / f"{campaign_digest(masked)}.opened"
    path.write_text("[")
    path.chmod(0o600)
    with pytest.raises(DataError, match="is damaged; no more of this campaign are opened here"):
        protect.revealed(plan(masked, "unmask", terms, survivors=list(NAMES)), sites["north"], masked)


def test_a_session_survives_the_disk(masked: CampaignConfig, sites: dict[str, SiteSetup]) -> None:
    terms = terms_of(masked)
    offers_of(masked, sites, terms)
    home = sites["north"].home
    assert home is not None
    session = sessions.kept(home, terms)
    assert SiteSession.from_json(json.loads(json.dumps(session.to_json()))) == session
    assert MASKED not in session.to_json()


def test_equal_weights_count_a_site_once(masked: CampaignConfig, sites: dict[str, SiteSetup]) -> None:
    equal = replace(masked, strategy=StrategyConfig(kind="fedavg", weight_by="equal"))
    terms = terms_of(equal)
    huge = replace(UPDATE, num_samples=10**9)
    asked = plan(equal, "train", terms, offers=offers_of(equal, sites, terms))
    assert protect.protected(huge, asked, sites["north"], equal)[1]["masked"] is True
    counted = terms_of(masked)
    asked = plan(masked, "train", counted, offers=offers_of(masked, sites, counted))
    with pytest.raises(DataError, match="weight of array"):
        protect.protected(huge, asked, sites["north"], masked)
