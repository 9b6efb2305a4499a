"""The coordinator in the middle of the key exchange.

The adversary has the federation's certificate authority and the key that manifests and releases are signed with, relays
every message between the sites, and may change, swap or make any of them. It wants one site's update. What stands
against it are the identities that the sites pinned when they approved the campaign; where an operator did not compare
fingerprints and pinned the adversary's, it wins, and the last test shows that.
"""

from __future__ import annotations

import base64
import datetime as dt
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from shared.errors import DataError, RefusedError
from shared.secagg import fixed_point
from shared.secagg.protocol import Offer, Terms, mask, new_session, offer, reveal, threshold, unmask
from shared.trust import signing
from shared.trust.certificates import create_authority
from shared.trust.identity import Identity, PublicIdentity, create_identity, sign
from tests.shared.secagg.cohort import CAMPAIGN, Cohort, make, names, random_vectors

VICTIM, PEER, THIRD = names(3)
NOW = dt.datetime(2026, 11, 22, tzinfo=dt.UTC)


@pytest.fixture(scope="module")
def honest() -> Cohort:
    return make(3)


def adversary_key() -> ec.EllipticCurvePrivateKey:
    """The key that signs manifests, certified by the federation's own authority: the best that the adversary has."""
    signer = signing.create_signer(create_authority("federation", NOW), NOW)
    key = serialization.load_pem_private_key(signer.key, None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    return key


def resigned(offered: Offer, key: ec.EllipticCurvePrivateKey) -> Offer:
    by = Identity(offered.site, key, X25519PrivateKey.generate())
    return replace(offered, signature=base64.b64encode(sign(by, offered.content)).decode())


def own_offer(cohort: Cohort, name: str) -> Offer:
    """A whole offer in the name of a site, with keys and shares of the adversary's own."""
    return offer(Identity(name, adversary_key(), X25519PrivateKey.generate()), cohort.peers, cohort.terms)[1]


def other_mask_key(offered: Offer) -> Offer:
    return replace(offered, mask_key=X25519PrivateKey.generate().public_key().public_bytes_raw().hex())


def refused(cohort: Cohort, offers: dict[str, Offer], reason: str) -> None:
    """The victim masks nothing, and may still mask for the true offers."""
    before = cohort.sessions[VICTIM].to_json()
    vector = random_vectors([VICTIM], 10)[VICTIM]
    with pytest.raises(RefusedError, match=reason):
        mask(cohort.sessions[VICTIM], offers, vector, cohort.identities[VICTIM])
    assert cohort.sessions[VICTIM].to_json() == before
    after, _ = mask(cohort.sessions[VICTIM], cohort.offers, vector, cohort.identities[VICTIM])
    assert after.stage == "masked"


ATTACKS: dict[str, tuple[Callable[[Cohort], dict[str, Offer]], str]] = {
    "a mask key of its own under the peer's old signature": (
        lambda cohort: {PEER: other_mask_key(cohort.offers[PEER])},
        f"the offer of {PEER} is not its own.*signature is not by the key of {PEER}.*pinned here",
    ),
    "a mask key of its own under its certified signature": (
        lambda cohort: {PEER: resigned(other_mask_key(cohort.offers[PEER]), adversary_key())},
        f"the offer of {PEER} is not its own",
    ),
    "a whole offer in the peer's name": (
        lambda cohort: {PEER: own_offer(cohort, PEER)},
        f"the offer of {PEER} is not its own",
    ),
    "offers of all other sites": (
        lambda cohort: {name: own_offer(cohort, name) for name in (PEER, THIRD)},
        "is not its own",
    ),
    "another sealing key, with which it shared out itself": (
        lambda cohort: {PEER: replace(cohort.offers[PEER], share_key=own_offer(cohort, PEER).share_key,
                                      shares=own_offer(cohort, PEER).shares)},
        f"the offer of {PEER} is not its own",
    ),
    "a commitment to another seed": (
        lambda cohort: {PEER: replace(cohort.offers[PEER], seed_digest="0" * 64)},
        f"the offer of {PEER} is not its own",
    ),
    "two offers in each other's place": (
        lambda cohort: {PEER: cohort.offers[THIRD], THIRD: cohort.offers[PEER]},
        "expected one offer of each site of the cohort",
    ),
    "one site's offer under the name of another": (
        lambda cohort: {PEER: replace(cohort.offers[THIRD], site=PEER)},
        f"the offer of {PEER} must hold one share for every other site",
    ),
    "the victim's own offer changed": (
        lambda cohort: {VICTIM: other_mask_key(cohort.offers[VICTIM])},
        f"the offer that came back in the name of {VICTIM} is not its own",
    ),
    "an empty signature": (
        lambda cohort: {PEER: replace(cohort.offers[PEER], signature="")},
        f"the offer of {PEER} is not its own",
    ),
}  # fmt: skip


@pytest.mark.parametrize("attack", ATTACKS)
def test_a_changed_offer_is_refused_under_the_pinned_keys(attack: str, honest: Cohort) -> None:
    change, reason = ATTACKS[attack]
    refused(honest, {**honest.offers, **change(honest)}, reason)


def test_the_keys_of_the_authority_and_of_the_signer_sign_no_offer(honest: Cohort) -> None:
    authority = serialization.load_pem_private_key(create_authority("federation", NOW).key, None)
    assert isinstance(authority, ec.EllipticCurvePrivateKey)
    for key in (authority, adversary_key()):
        refused(honest, {**honest.offers, PEER: resigned(honest.offers[PEER], key)}, f"offer of {PEER} is not its own")


def test_the_signature_of_an_exchange_key_does_not_pass_for_that_of_an_offer(honest: Cohort) -> None:
    moved = replace(honest.offers[PEER], signature=honest.peers[PEER].signature)
    refused(honest, {**honest.offers, PEER: moved}, f"offer of {PEER} is not its own")


def test_an_identity_with_the_adversarys_exchange_key_is_refused_when_it_is_read(honest: Cohort) -> None:
    mine = create_identity(PEER).public
    for changed in (
        replace(honest.peers[PEER], exchange=mine.exchange),
        replace(honest.peers[PEER], exchange=mine.exchange, signature=mine.signature),
        replace(honest.peers[PEER], key=mine.key),
    ):
        with pytest.raises(RefusedError, match=f"the exchange key of {PEER} is not signed by its site key"):
            PublicIdentity.from_json(changed.to_json())


def test_identities_under_exchanged_names_are_refused() -> None:
    peers = {name: create_identity(name).public for name in (PEER, THIRD)}
    swapped = {PEER: peers[THIRD], THIRD: peers[PEER]}
    terms = Terms(new_session(), CAMPAIGN, 1, names(3), 3)
    with pytest.raises(RefusedError, match=f"no key of {PEER} is pinned here"):
        offer(create_identity(VICTIM), swapped, terms)
    with pytest.raises(RefusedError, match="is not signed by its site key"):
        PublicIdentity.from_json({**peers[THIRD].to_json(), "name": PEER})


def test_a_site_that_nobody_pinned_gets_no_offer() -> None:
    identity, terms = create_identity(VICTIM), Terms(new_session(), CAMPAIGN, 1, names(3), 3)
    with pytest.raises(RefusedError, match=f"no key of {PEER} is pinned here"):
        offer(identity, {THIRD: create_identity(THIRD).public}, terms)


def test_shares_of_a_true_offer_are_sealed_to_the_pinned_keys_and_not_to_what_the_relay_says(honest: Cohort) -> None:
    """The adversary relays the victim's true offer, and holds exchange keys that nobody pinned."""
    from shared.secagg import keys

    true = honest.offers[VICTIM]
    for name in (PEER, THIRD):
        fake = X25519PrivateKey.generate()
        with pytest.raises(RefusedError, match="cannot be opened"):
            keys.unseal(true.sealed_for(name), bytes.fromhex(true.share_key), fake, honest.terms.digest, (VICTIM, name))


@pytest.mark.parametrize("field", ["mask_key", "share_key", "seed_digest", "terms_digest"])
def test_every_bit_of_an_offer_is_signed(field: str, honest: Cohort) -> None:
    text = getattr(honest.offers[PEER], field)
    flipped = f"{int(text, 16) ^ 1:064x}"
    refused(honest, {**honest.offers, PEER: replace(honest.offers[PEER], **{field: flipped})}, PEER)


def test_malformed_offers_are_told_before_they_are_read_further(honest: Cohort) -> None:
    good = honest.offers[PEER].to_json()
    for field, bad in (
        ("mask_key", "zz" * 32),
        ("mask_key", "ab" * 31),
        ("mask_key", 7),
        ("site", "../x"),
        ("site", None),
        ("shares", []),
        ("shares", {VICTIM: "!!"}),
        ("shares", {VICTIM: "QUJD"}),
        ("shares", {f"s{i}": "" for i in range(201)}),
        ("signature", "A" * 4000),
        ("signature", None),
    ):
        with pytest.raises(DataError):
            Offer.from_json({**good, field: bad})
    for values in (None, [], {}, {**good, "more": 1}):
        with pytest.raises(DataError, match="must have the fields"):
            Offer.from_json(values)


def test_an_adversary_whose_keys_were_pinned_opens_the_update_so_fingerprints_have_to_be_compared() -> None:
    """Without the comparison by telephone the adversary is every other site of the victim's cohort, and it wins."""
    victim = create_identity(VICTIM)
    true = {name: create_identity(name) for name in (PEER, THIRD)}
    fakes = {name: create_identity(name) for name in (PEER, THIRD)}
    pinned = {name: PublicIdentity.from_json(fake.public.to_json()) for name, fake in fakes.items()}
    assert all(pinned[name].fingerprint != true[name].public.fingerprint for name in pinned)  # what would have told

    everybody = {VICTIM: victim, **fakes}
    peers = {name: identity.public for name, identity in everybody.items()}
    terms = Terms(new_session(), CAMPAIGN, 1, names(3), 3)
    made = {name: offer(identity, peers, terms) for name, identity in everybody.items()}
    offers = {name: offered for name, (_, offered) in made.items()}
    vectors = random_vectors([VICTIM], 50)
    vectors |= {name: np.zeros(50, np.uint64) for name in fakes}
    total, sessions = np.zeros(50, np.uint64), {}
    for name, identity in everybody.items():
        sessions[name], data = mask(made[name][0], offers, vectors[name], identity)
        fixed_point.add_packed(total, data)
    reveals = {name: reveal(sessions[name], names(3))[1] for name in everybody}
    assert len(reveals) >= threshold(3, 3)
    np.testing.assert_array_equal(unmask(total, terms, offers, names(3), reveals), vectors[VICTIM])
