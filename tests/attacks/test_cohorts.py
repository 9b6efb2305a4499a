"""A coordinator that keeps to the messages and plays with cohorts: too small ones, two answers, lies about survivors,
sums whose difference is one update, and offers that were made for something else.

What is not prevented is shown as well: two sums that differ by one site tell its update, where a site opens both.
"""

from __future__ import annotations

import base64
import itertools
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from shared.errors import DataError, PeerError, RefusedError
from shared.secagg import keys
from shared.secagg.fixed_point import Vector
from shared.secagg.messages import FEWEST, LARGEST_COHORT
from shared.secagg.protocol import (
    Offer,
    Reveal,
    SiteSession,
    Terms,
    check_offer,
    check_reveal,
    mask,
    new_session,
    offer,
    reveal,
    threshold,
    unmask,
)
from shared.trust.identity import sign
from tests.shared.secagg.cohort import CAMPAIGN, MODULO, Cohort, make, names, plain_sum, random_vectors, wired

ME = "site-00"
COUNT = 50


def terms_of(cohort: Sequence[str], minimum: int = 3, **changes: object) -> Terms:
    return replace(Terms(new_session(), CAMPAIGN, 1, tuple(cohort), minimum), **changes)


def masked(n: int, minimum: int = 3, *, of: Cohort | None = None, vectors: dict[str, Vector] | None = None) -> Cohort:
    cohort = make(n, minimum, of=of)
    cohort.mask(vectors or random_vectors(cohort.terms.cohort, COUNT))
    return cohort


def refused_reveal(cohort: Cohort, survivors: Sequence[str], reason: str, opened: Sequence[Sequence[str]] = ()) -> None:
    before = cohort.sessions[ME].to_json()
    with pytest.raises(RefusedError, match=reason):
        reveal(cohort.sessions[ME], survivors, opened)
    assert cohort.sessions[ME].to_json() == before


def refused_mask(cohort: Cohort, offers: dict[str, Offer], reason: str) -> None:
    before = cohort.sessions[ME].to_json()
    with pytest.raises(RefusedError, match=reason):
        mask(cohort.sessions[ME], offers, np.zeros(3, np.uint64), cohort.identities[ME])
    assert cohort.sessions[ME].to_json() == before


# ------------------------------------------------------------------------------------------------------- small cohorts


def test_a_cohort_below_the_minimum_has_no_terms() -> None:
    with pytest.raises(RefusedError, match="a cohort of 2 sites is refused: no sum of fewer than 3 is opened"):
        terms_of(names(2))


@pytest.mark.parametrize("minimum", [1, 0, -1])
def test_a_minimum_that_opens_single_updates_is_refused(minimum: int) -> None:
    with pytest.raises(RefusedError, match="minimum cohort must be 2 or more"):
        terms_of(names(3), minimum)


def test_of_three_sites_with_one_lost_the_two_that_are_left_refuse_to_open_their_sum() -> None:
    cohort = masked(3)
    refused_reveal(cohort, names(3)[:2], "a sum of 2 sites would be opened, agreed are 3 or more")
    vectors = random_vectors(names(2), COUNT)
    agreed_on_two = make(3, 2)
    agreed_on_two.mask(vectors)
    agreed_on_two.reveal(names(2), names(2))  # who agrees on two may
    np.testing.assert_array_equal(agreed_on_two.opened(names(2), COUNT), plain_sum(vectors, names(2)))


def test_fewer_survivors_than_the_threshold_are_refused() -> None:
    assert threshold(10, 3) == 7
    cohort = masked(10)
    refused_reveal(cohort, names(10)[:6], "6 of 10 sites survived, opening takes 7")


def test_a_lone_survivor_is_refused() -> None:
    refused_reveal(masked(3), [ME], "a sum of 1 sites would be opened")


def test_survivors_outside_of_the_cohort_named_twice_or_without_the_site_itself_are_refused() -> None:
    cohort = masked(4)
    refused_reveal(cohort, [*names(3), "stranger"], "the survivors must be sites of its cohort")
    refused_reveal(cohort, [*names(3), ME], "each named once")
    refused_reveal(cohort, names(4)[1:], "this site sent its masked update, and is not among the survivors")


def test_a_site_that_did_not_mask_reveals_nothing() -> None:
    refused_reveal(make(3), names(3), "this site has sent no masked update")


@pytest.mark.parametrize("missing", ["site-01", ME])
def test_offers_of_less_than_the_cohort_are_refused_so_that_it_is_one_cohort_for_all(missing: str) -> None:
    cohort = make(5)
    fewer = {name: offered for name, offered in cohort.offers.items() if name != missing}
    refused_mask(cohort, fewer, "expected one offer of each site of the cohort, and of no other")


def test_sites_that_were_told_of_different_cohorts_do_not_mask_together() -> None:
    cohort = make(5)
    cut = replace(cohort.terms, cohort=names(4))
    _, elsewhere = offer(cohort.identities["site-01"], cohort.peers, cut)
    refused_mask(cohort, {**cohort.offers, "site-01": elsewhere}, "is for another session or other terms")


def test_terms_are_judged_before_anything_is_drawn_for_them() -> None:
    cohort = make(3)
    with pytest.raises(RefusedError, match="its cohort does not name site-00"):
        offer(cohort.identities[ME], cohort.peers, terms_of(("x", "y", "z")))


def test_one_party_under_two_names_makes_no_cohort() -> None:
    from shared.trust.identity import Identity

    cohort = make(3)
    twin = cohort.identities["site-01"]
    again = Identity("site-02", twin.key, twin.exchange).public
    for peers, kind in (
        ({**cohort.peers, "site-02": again}, "key"),
        ({**cohort.peers, "site-02": replace(cohort.peers["site-02"], exchange=again.exchange)}, "exchange"),
    ):
        with pytest.raises(RefusedError, match=f"two sites of its cohort have the same {kind}"):
            offer(cohort.identities[ME], peers, cohort.terms)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("session", "abc"),
        ("session", "g" * 32),
        ("session", 3),
        ("campaign_digest", "a" * 63),
        ("round", 0),
        ("round", True),
        ("round", "1"),
        ("cohort", ["b", "a", "c"]),
        ("cohort", ["a", "a", "b"]),
        ("cohort", ["a", "b", "c d"]),
        ("cohort", ["a", "b", 3]),
        ("cohort", "abc"),
        ("cohort", [f"s{i:03d}" for i in range(LARGEST_COHORT + 1)]),
        ("minimum", "3"),
        ("minimum", 2.5),
        ("more", 1),
    ],
)
def test_malformed_terms_are_told(field: str, value: object) -> None:
    good = terms_of(names(3)).to_json()
    assert Terms.from_json(good).to_json() == good
    with pytest.raises((DataError, RefusedError)):
        Terms.from_json({**good, field: value})


# --------------------------------------------------------------------------------------------------------- two answers


def test_a_second_vector_in_one_session_is_refused() -> None:
    cohort = masked(3)
    refused_mask(cohort, cohort.offers, "a masked update of session .* has left this site already")


def test_a_session_is_opened_once_whatever_the_survivors_are() -> None:
    cohort = masked(4)
    cohort.reveal(names(4), [ME])
    for survivors in (names(4), names(4)[:3]):
        refused_reveal(cohort, survivors, "was opened here already")
    cohort.sessions[ME] = wired(cohort.sessions[ME])  # also after a restart
    refused_reveal(cohort, names(4)[:3], "was opened here already")


def test_seed_and_key_share_of_one_site_are_not_had_in_two_messages() -> None:
    """The second message would say that site-03 was lost, for the share of its mask key."""
    cohort = masked(4)
    cohort.reveal(names(4), [ME])
    answer = cohort.reveals[ME]
    assert "site-03" in answer.seed_shares
    refused_reveal(cohort, names(4)[:3], "could hold the other share of a site and open its update")
    assert not cohort.sessions[ME].key_shares  # it could not even if it would


def test_one_answer_never_holds_both_shares_of_a_site() -> None:
    cohort = masked(5)
    for survivors in itertools.combinations(names(5), 4):
        if ME not in survivors:
            continue
        _, answer = reveal(cohort.sessions[ME], survivors)
        assert answer.seed_shares.keys() == set(survivors)
        assert answer.key_shares.keys() == set(names(5)) - set(survivors)
    both = {**answer.to_json(), "key_shares": answer.to_json()["seed_shares"]}
    with pytest.raises(DataError, match="holds both shares of"):
        Reveal.from_json(both)


def test_answers_for_different_survivors_do_not_add_up_to_a_sum() -> None:
    """Every site is told that another one was lost: each secret lacks shares, and nothing opens."""
    cohort = masked(4)
    for i, name in enumerate(names(4)):
        told = [other for j, other in enumerate(names(4)) if j != (i + 1) % 4]
        cohort.sessions[name], cohort.reveals[name] = reveal(cohort.sessions[name], told)
    for survivors in (names(4), names(4)[:3]):
        with pytest.raises(DataError, match="not for the survivors that it was asked for|did not ask for"):
            cohort.opened(survivors, COUNT)
    held = [sum(name in answer.key_shares for answer in cohort.reveals.values()) for name in names(4)]
    assert held == [1, 1, 1, 1]
    assert max(held) < threshold(4, 3)


@pytest.mark.parametrize(
    ("n", "colluding"), [(n, c) for n in (4, 5, 6) for c in range((n - 1) // 3 + 1)]
)  # fmt: skip
def test_no_lie_about_survivors_leaves_fewer_honest_sites_in_a_sum_than_the_bound_says(n: int, colluding: int) -> None:
    """All answers that honest sites may be led to, one by one; colluding sites give both shares of everybody."""
    t, honest = threshold(n, 3), range(n - colluding)
    allowed = {
        i: [
            frozenset(out)
            for size in range(n - t + 1)
            for out in itertools.combinations([j for j in honest if j != i], size)
        ]
        for i in honest
    }
    fewest = n
    for answers in itertools.product(*allowed.values()):
        keyed = {j for j in honest if sum(j in out for out in answers) + colluding >= t}
        seeded = {j for j in honest if sum(j not in out for out in answers) + colluding >= t}
        assert not keyed & seeded  # never both secrets of one site
        if keyed | seeded == set(honest):
            fewest = min(fewest, len(seeded))
    assert fewest >= n - colluding - (n - colluding) * (n - t) // (t - colluding)
    assert fewest >= (3 if colluding == 0 else FEWEST)


@pytest.mark.parametrize("n", range(2, 60))
def test_the_threshold_keeps_one_secret_closed_and_the_minimum(n: int) -> None:
    for minimum in range(2, n + 1):
        t = threshold(n, minimum)
        assert minimum <= t <= n
        if n > 3:
            assert 3 * t > 2 * n
            assert n - n * (n - t) // t >= minimum
            for c in range((n - 1) // 3 + 1):
                assert 2 * t > n + c
                assert n - c - (n - c) * (n - t) // (t - c) >= 2


# ----------------------------------------------------------------------------------------- the difference of two sums


def test_a_sum_that_differs_by_one_site_from_one_of_the_same_round_is_not_opened() -> None:
    """The first attempt is said to have failed, and is repeated without site-04, with the others' same updates."""
    vectors = random_vectors(names(5), COUNT)
    first = masked(5, vectors=vectors)
    first.reveal(names(5), names(5))
    again = masked(4, of=first, vectors={name: vectors[name] for name in names(4)})
    refused_reveal(again, names(4), "differs by 1 sites, whose updates the difference would tell", [names(5)])
    again.reveal(names(4), names(4)[1:])  # sites that do not remember would open it,
    shut = [name for name in names(4) if name != ME]
    assert len(shut) == threshold(4, 3)
    difference = (first.opened(names(5), COUNT) - again.opened(names(4), COUNT)) & MODULO
    np.testing.assert_array_equal(difference, vectors["site-04"])  # and this is what it would tell: `opened` is needed


def test_the_same_sites_may_repeat_a_round() -> None:
    first = masked(5)
    again = masked(5, of=first)
    _, answer = reveal(again.sessions[ME], names(5), [names(5), names(5)])
    assert answer.seed_shares.keys() == set(names(5))


def test_a_repeated_round_may_differ_by_the_minimum_and_not_a_third_time() -> None:
    cohort = masked(10)
    _, answer = reveal(cohort.sessions[ME], names(7), [names(10)])
    assert len(answer.seed_shares) == 7
    refused_reveal(cohort, names(8), "differs by 2 sites", [names(10)])
    reason = "2 sums of it were opened here, and a third could be combined with them"
    refused_reveal(cohort, [ME, *names(10)[4:]], reason, [names(10), names(7)])


# -------------------------------------------------------------------------------------- offers made for something else


def test_offers_of_an_earlier_session_are_refused() -> None:
    old = make(3)
    new = make(3, of=old)
    refused_mask(new, {**new.offers, "site-01": old.offers["site-01"]}, "is for another session or other terms")
    refused_mask(new, dict(old.offers), "the offer that came back in the name of site-00 is not its own")
    with pytest.raises(DataError, match="for another session"):
        check_offer(old.offers["site-01"], new.terms)


@pytest.mark.parametrize("change", [{"round": 2}, {"campaign_digest": "d" * 64}, {"minimum": 2}])
def test_offers_for_other_terms_are_refused(change: dict[str, object]) -> None:
    cohort = make(3)
    other = replace(cohort.terms, **change)
    _, elsewhere = offer(cohort.identities["site-01"], cohort.peers, other)
    refused_mask(cohort, {**cohort.offers, "site-01": elsewhere}, "is for another session or other terms")


def test_an_offer_relabelled_for_this_session_is_refused() -> None:
    old = make(3)
    new = make(3, of=old)
    relabelled = replace(old.offers["site-01"], terms_digest=new.terms.digest.hex())
    refused_mask(new, {**new.offers, "site-01": relabelled}, "the offer of site-01 is not its own")


def test_a_share_with_one_bit_changed_on_the_way_is_refused() -> None:
    cohort = make(3)
    offered = cohort.offers["site-01"]
    for position in (0, 40, 81):
        sealed = bytearray(offered.sealed_for(ME))
        sealed[position] ^= 1
        changed = replace(offered, shares={**offered.shares, ME: base64.b64encode(sealed).decode()})
        refused_mask(cohort, {**cohort.offers, "site-01": changed}, "the offer of site-01 is not its own")


def signed_by(cohort: Cohort, name: str, changed: Offer) -> Offer:
    """A malicious site signs what it likes."""
    return replace(changed, signature=base64.b64encode(sign(cohort.identities[name], changed.content)).decode())


def test_shares_that_a_malicious_site_sealed_wrongly_are_refused() -> None:
    cohort = make(3)
    offered = cohort.offers["site-01"]
    swapped = {ME: offered.shares["site-02"], "site-02": offered.shares[ME]}
    garbage = {**offered.shares, ME: base64.b64encode(bytes(82)).decode()}
    for shares in (swapped, garbage):
        changed = signed_by(cohort, "site-01", replace(offered, shares=shares))
        refused_mask(cohort, {**cohort.offers, "site-01": changed}, "the shares from site-01 cannot be opened")


def test_a_malicious_site_may_not_take_over_the_key_of_another() -> None:
    """With one mask key for two sites, their masks could be made to cancel."""
    cohort = make(3)
    copied = replace(cohort.offers["site-01"], mask_key=cohort.offers["site-02"].mask_key)
    offers = {**cohort.offers, "site-01": signed_by(cohort, "site-01", copied)}
    refused_mask(cohort, offers, "two offers hold the same key")


@pytest.mark.parametrize("field", ["mask_key", "share_key"])
def test_a_key_of_low_order_whose_secret_everybody_knows_is_refused(field: str) -> None:
    cohort = make(3)
    changed = signed_by(cohort, "site-01", replace(cohort.offers["site-01"], **{field: "00" * 32}))
    refused_mask(cohort, {**cohort.offers, "site-01": changed}, "low order")


def test_a_mask_that_was_made_for_another_session_does_not_come_off() -> None:
    vectors = random_vectors(names(3), COUNT)
    old = masked(3, vectors=vectors)
    new = masked(3, of=old, vectors=vectors)
    new.masked["site-01"] = old.masked["site-01"]
    new.reveal(names(3), names(3))
    assert not (new.opened(names(3), COUNT) == plain_sum(vectors, names(3))).any()


# ----------------------------------------------------------------------------------------------- what a site reveals


def test_wrong_shares_are_found_by_what_was_offered_and_nothing_is_opened() -> None:
    for kind, site in (("seed_shares", "site-01"), ("key_shares", "site-04")):
        cohort = masked(5)
        cohort.reveal(names(4), names(4))
        good = cohort.reveals[ME]
        wrong = {**getattr(good, kind), site: f"{int(getattr(good, kind)[site], 16) ^ 1:066x}"}
        cohort.reveals[ME] = replace(good, **{kind: wrong})
        with pytest.raises(PeerError, match=f"the shares of {site} that were revealed do not fit its offer"):
            cohort.opened(names(4), COUNT)
        cohort.reveals[ME] = replace(good, **{kind: {**getattr(good, kind), site: "f" * 66}})
        with pytest.raises(PeerError, match=f"the shares of {site} that were revealed do not fit its offer"):
            cohort.opened(names(4), COUNT)


@pytest.mark.parametrize("liar", [0, 2, 4])
def test_where_more_reveal_than_are_needed_one_site_that_reveals_wrong_shares_does_not_stop_the_others(
    liar: int,
) -> None:
    vectors = random_vectors(names(10), COUNT)
    survivors = names(10)[:9]
    cohort = masked(10, vectors={name: vectors[name] for name in survivors})
    cohort.reveal(survivors, survivors)
    site = names(10)[liar]
    answer = cohort.reveals[site]
    wrong = {kind: dict.fromkeys(getattr(answer, kind), "0" * 66) for kind in ("seed_shares", "key_shares")}
    cohort.reveals[site] = replace(answer, **wrong)
    np.testing.assert_array_equal(cohort.opened(survivors, COUNT), plain_sum(vectors, survivors))


def test_a_share_made_to_lead_beyond_every_secret_is_found_as_well() -> None:
    """297 residues modulo the prime are no secret of 32 bytes; a site that knows the others' shares can hit one."""
    from shared.secagg import shamir

    cohort = masked(3)
    cohort.reveal(names(3), names(3))
    good = cohort.reveals[ME]
    shares = {i: int(cohort.reveals[name].seed_shares["site-01"], 16) for i, name in enumerate(names(3), 1)}
    wanted = 2**256 - int.from_bytes(shamir.combine(shares))
    first = (shares[1] + wanted * pow(3, -1, shamir.PRIME)) % shamir.PRIME  # share 1 of 1, 2, 3 counts three times
    cohort.reveals[ME] = replace(good, seed_shares={**good.seed_shares, "site-01": f"{first:066x}"})
    with pytest.raises(DataError, match="do not fit one another"):
        shamir.combine({**shares, 1: first})
    with pytest.raises(PeerError, match="the shares of site-01 that were revealed do not fit its offer"):
        cohort.opened(names(3), COUNT)


def test_an_offer_of_a_stranger_or_with_shares_for_others_is_told_at_the_coordinator() -> None:
    cohort = make(3)
    check_offer(cohort.offers[ME], cohort.terms)
    with pytest.raises(DataError, match="is not in the cohort"):
        check_offer(replace(cohort.offers[ME], site="stranger"), cohort.terms)
    with pytest.raises(DataError, match="one share for every other site"):
        check_offer(replace(cohort.offers[ME], shares={}), cohort.terms)


def test_a_reveal_of_another_session_or_of_a_stranger_is_told() -> None:
    cohort, other = masked(3), masked(3)
    other.reveal(names(3), names(3))
    with pytest.raises(DataError, match="did not ask for"):
        check_reveal(other.reveals[ME], cohort.terms, names(3))
    cohort.reveal(names(3), names(3))
    with pytest.raises(DataError, match="did not ask for"):
        check_reveal(replace(cohort.reveals[ME], site="stranger"), cohort.terms, names(3))
    with pytest.raises(DataError, match="not for the survivors"):
        check_reveal(replace(cohort.reveals[ME], seed_shares={}), cohort.terms, names(3))
    with pytest.raises(DataError, match="did not ask for"):
        unmask(np.zeros(3, np.uint64), cohort.terms, cohort.offers, names(3), other.reveals)


@pytest.mark.parametrize(
    "values",
    [
        None,
        {"site": ME},
        {"site": ME, "session": "a" * 32, "seed_shares": {ME: "ab"}, "key_shares": {}},
        {"site": ME, "session": "a" * 32, "seed_shares": {"a b": "0" * 66}, "key_shares": {}},
        {"site": ME, "session": "a" * 31, "seed_shares": {}, "key_shares": {}},
        {"site": ME, "session": "a" * 32, "seed_shares": [], "key_shares": {}},
    ],
)
def test_malformed_reveals_are_told(values: object) -> None:
    with pytest.raises(DataError):
        Reveal.from_json(values)


@pytest.mark.parametrize(
    ("field", "value"),
    [("stage", "offering"), ("seed", "ab"), ("mask_key", 1), ("seed_shares", {"x": 1}), ("peers", {"x": {}}),
     ("terms", None), ("site", "")],
)  # fmt: skip
def test_a_damaged_session_on_disk_is_told(field: str, value: object) -> None:
    held = make(3).sessions[ME]
    assert SiteSession.from_json(held.to_json()) == held
    with pytest.raises(DataError):
        SiteSession.from_json({**held.to_json(), field: value})


def test_a_session_on_disk_from_which_a_peer_or_a_share_was_taken_is_told() -> None:
    """Without a peer's key its offer would go unchecked."""
    offered, masks = make(3).sessions[ME], masked(3).sessions[ME]
    peer = offered.peers["site-01"].to_json()
    swapped = {"site-01": offered.peers["site-02"].to_json(), "site-02": peer}
    for held, change in (
        (offered, {"peers": {}}),
        (offered, {"peers": {"site-01": peer}}),
        (offered, {"peers": swapped}),
        (offered, {"seed": ""}),
        (offered, {"stage": "masked"}),
        (offered, {"site": "stranger"}),
        (masks, {"seed_shares": {}}),
        (masks, {"key_shares": {}}),
        (masks, {"stage": "offered"}),
        (masks, {"stage": "revealed"}),
    ):
        with pytest.raises(DataError, match="is not whole"):
            SiteSession.from_json({**held.to_json(), **change})


def test_a_stolen_exchange_key_does_not_open_what_its_site_once_sent() -> None:
    """Shares are sealed with a key that is thrown away: the thief reads what was sent to the site, not by it."""
    cohort = make(3)
    stolen = cohort.identities[ME]
    offered = cohort.offers[ME]
    for name in names(3)[1:]:
        receiver = bytes.fromhex(cohort.peers[name].exchange)
        with pytest.raises(RefusedError, match="cannot be opened"):
            keys.unseal(offered.sealed_for(name), receiver, stolen.exchange, cohort.terms.digest, (ME, name))
