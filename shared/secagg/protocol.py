"""Secure aggregation in three stages: sites' vectors in, their sum out, and no vector seen by anybody but its site.

After Bonawitz et al. Practical Secure Aggregation for Privacy-Preserving Machine Learning. CCS 2017.
https://doi.org/10.1145/3133956.3133982 (their rounds 0 and 1 are one stage here, because sites know each other's keys).

    offer    every site draws a seed and an X25519 mask key for this session alone, and offers: the public key, a
             commitment to the seed, and for every other site a share of the seed and a share of the private mask key,
             sealed to that site's exchange key; all signed by its site key.
    mask     every site sees all offers of the cohort, and sends its vector + mask(own seed) + for every later site of
             the cohort mask(shared key) - for every earlier one mask(shared key), modulo 2^40. Once.
    reveal   every site that is still there is told who survived, that is, whose masked vector arrived, and answers
             once: of each survivor the share of its seed, of each other site the share of its mask key.
    unmask   from `threshold` answers the coordinator restores the seeds of the survivors and the mask keys of the
             others, takes the masks away that are left in the sum of the survivors, and has the sum.

What a site does, by what it is in (anything else is refused, and its session stays as it was):

    in          may                to          and has wiped
    (none)      offer              offered     the private half of the sealing key
    offered     mask               masked      seed and private mask key
    offered     (a new session)    -           everything: nothing has left but an offer
    masked      reveal             revealed    all shares
    revealed    -                  -

What each may learn.
  The coordinator: the sum over the survivors, who they are, and the counts that travel beside it. An update alone has
  the site's self mask on it, whose seed takes `threshold` shares; sites give them for survivors only, and nobody's mask
  key as well. A site that was said to be lost and whose vector arrives late stays masked for the same reason.
  A site: its own update, and the sum if it is told. From a sum of two each knows the other's; so no site reveals for
  fewer than `minimum` survivors. A cohort of three of which one drops out leaves a sum of two: with minimum=3 the two
  that are left refuse to reveal, nothing is opened, and the attempt is repeated when there are three. Who agrees on
  minimum=2 agrees to that each of two learns the other's update.
  c sites that collude with the coordinator: the sum over the other survivors. With all but one of them it is an update;
  no protocol for sums prevents that.
  The coordinator in the middle: it relays every offer, and it is the certificate authority. Offers are checked under
  the keys that were pinned at the sites when the campaign was approved, so an offer that it makes is refused.

Why the whole cohort has to be in. The terms name the cohort, every offer signs them, and a site masks only when all of
its offers are there: so no two sites mask for different cohorts. A site that does not offer is left out by new terms.

Why the terms name the weights. Sites whose networks were sent dead (no gradient comes through) send an update that is
known beforehand, and the sum is the update of the one site that got live ones (Pasquini et al. Eluding Secure
Aggregation in Federated Learning via Model Inconsistency. CCS 2022. https://doi.org/10.1145/3548606.3560557). All
offers sign one digest of what is trained from, and the caller trains from nothing else.

Why the threshold. An honest site answers once, with one of two shares of each other site. To have both secrets of one
site takes 2 * threshold shares; n honest and colluding sites have n + c, so 2t > n + c keeps one of them closed. With
t = floor(2n/3) + 1 that holds for all c < n/3. The same t bounds what the coordinator gains by telling sites different
survivors (there is no fourth stage to compare them in): every honest site leaves out at most n - t sites, and each one
left out needs t - c of them; at least n - c - floor((n - c)(n - t) / (t - c)) honest sites stay in any sum that can be
opened, which is 2 or more for all c < n/3. Where that is below `minimum` for c = 0, the threshold is raised.

Not prevented here. The difference of two sums: cohorts that differ by one site, in one round, whose sites send the same
update in both, tell that site's update. A site therefore opens two sums of one round only if they differ by `minimum`
sites or more, and never a third (`opened`, which the caller keeps). The cost: a round that sites revealed for and that
stayed shut all the same, because more were lost than it can spare, waits for the same sites. Two rounds on the same
weights, or two campaigns, are not seen here: what bounds them is the number of rounds that was approved, and
differential privacy. Sites that nobody runs: a coordinator that talks operators into pinning keys of its own is, to
this file, so many colluding sites. A site that masks nonsense or deals wrong shares spoils the sum, or keeps it shut:
it learns nothing by it. The terms are not judged here beyond what they say of themselves: that minimum, campaign and
sites are those that were approved is for the caller to check, before `offer`.
"""

from __future__ import annotations

import base64
import hashlib
import secrets
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from shared.errors import DataError, PeerError, RefusedError
from shared.secagg import keys, masks, shamir
from shared.secagg.fixed_point import Vector, packed, unpack
from shared.secagg.messages import Offer, Reveal, SiteSession, Terms
from shared.trust import identity as identities
from shared.trust.identity import Identity, PublicIdentity

__all__ = ["Offer", "Reveal", "SiteSession", "Terms", "check_offer", "check_reveal", "mask", "new_session", "offer",
           "reveal", "threshold", "unmask"]  # fmt: skip

MOST_SUMS = 2
"""Different sums that a site opens of one round."""


def new_session() -> str:
    """Names an attempt; drawn by the coordinator."""
    return secrets.token_hex(16)


def threshold(n: int, minimum: int) -> int:
    """Shares that open a secret, and survivors that a sum must have, in a cohort of `n`; see the top of the file.

    Up to three sites: `minimum`, for there is no site to spare. Above: the smallest t of at least floor(2n/3) + 1 and
    `minimum` with which no lie about the survivors leads to a sum of fewer than `minimum`.
    """
    assert 2 <= minimum <= n
    if n <= 3:
        return minimum
    t = max(2 * n // 3 + 1, minimum)
    while n - n * (n - t) // t < minimum:
        t += 1
    return t


def offer(identity: Identity, peers: Mapping[str, PublicIdentity], terms: Terms) -> tuple[SiteSession, Offer]:
    """This site's part of a new session; `peers` are the identities pinned here, of the cohort at least.

    RefusedError when this site is not of the cohort, another one is not pinned, or two of them are the same.
    """
    site = identity.name
    if site not in terms.cohort:
        raise RefusedError(f"session {terms.session[:8]} is refused: its cohort does not name {site}")
    others = [name for name in terms.cohort if name != site]
    for name in others:
        if name not in peers or peers[name].name != name:
            raise RefusedError(
                f"session {terms.session[:8]} is refused: no key of {name} is pinned here; approve a campaign that "
                "names it, and compare its fingerprint"
            )
    _check_distinct([identity.public, *(peers[name] for name in others)], terms)
    seed, mask_key, share_key = secrets.token_bytes(32), X25519PrivateKey.generate(), X25519PrivateKey.generate()
    n = len(terms.cohort)
    needed = threshold(n, terms.minimum)
    seed_shares = shamir.split(seed, needed, n)
    key_shares = shamir.split(mask_key.private_bytes_raw(), needed, n)
    sealed = {}
    for name in others:
        i = terms.number(name) - 1
        both = seed_shares[i].to_bytes(shamir.SHARE_BYTES) + key_shares[i].to_bytes(shamir.SHARE_BYTES)
        receiver = bytes.fromhex(peers[name].exchange)
        sealed[name] = base64.b64encode(keys.seal(both, share_key, receiver, terms.digest, (site, name))).decode()
    unsigned = Offer(
        site=site,
        terms_digest=terms.digest.hex(),
        mask_key=mask_key.public_key().public_bytes_raw().hex(),
        share_key=share_key.public_key().public_bytes_raw().hex(),
        seed_digest=keys.seed_digest(seed, terms.digest, site),
        shares=sealed,
    )
    signature = base64.b64encode(identities.sign(identity, unsigned.content)).decode()
    session = SiteSession(
        site=site,
        terms=terms,
        stage="offered",
        peers={name: peers[name] for name in others},
        offer_digest=_digest(unsigned),
        seed=seed.hex(),
        mask_key=mask_key.private_bytes_raw().hex(),
        seed_shares={site: seed_shares[terms.number(site) - 1].to_bytes(shamir.SHARE_BYTES).hex()},
    )
    return session, replace(unsigned, signature=signature)


def _check_distinct(cohort: Sequence[PublicIdentity], terms: Terms) -> None:
    """One party under two names would count twice towards the cohort and the shares."""
    for kind in ("key", "exchange"):
        if len({getattr(public, kind) for public in cohort}) < len(cohort):
            raise RefusedError(
                f"session {terms.session[:8]} is refused: two sites of its cohort have the same {kind}, and would "
                "count as two; approve a campaign whose sites have keys of their own"
            )


def check_offer(offer: Offer, terms: Terms) -> None:
    """Raises DataError unless the offer is of a site of the cohort, for these terms, with a share for each other site.

    The coordinator checks so much, to tell early whom to leave out; whose it is, the sites judge by pinned keys.
    """
    if offer.site not in terms.cohort:
        raise DataError(f"an offer of {offer.site}, which is not in the cohort of session {terms.session[:8]}")
    if offer.terms_digest != terms.digest.hex():
        raise DataError(f"the offer of {offer.site} is for another session or other terms than {terms.session[:8]}")
    if offer.shares.keys() != set(terms.cohort) - {offer.site}:
        raise DataError(f"the offer of {offer.site} must hold one share for every other site of the cohort")


def mask(
    session: SiteSession, offers: Mapping[str, Offer], vector: Vector, identity: Identity
) -> tuple[SiteSession, bytes]:  # fmt: skip
    """The masked vector, packed, and the session that may reveal; RefusedError, in this order, unless

    (1) nothing was masked in this session  (2) every site of the cohort offers, and no other  (3) this site's offer is
    the one it made  (4) the others' are for these terms, by their pinned keys  (5) with keys of their own  (6) and with
    shares for this site that open.
    """
    terms, site = session.terms, session.site
    assert identity.name == site, "a session of another site"
    assert vector.dtype == np.uint64
    # (1)
    if session.stage != "offered":
        raise RefusedError(
            f"a masked update of session {terms.session[:8]} has left this site already, and two under the same masks "
            "would tell their difference; a new attempt needs a new session"
        )
    _check_offers(session, offers)  # (2) to (5)
    others = [name for name in terms.cohort if name != site]
    shares = {name: _opened_shares(offers[name], terms, identity) for name in others}  # (6)
    own = X25519PrivateKey.from_private_bytes(bytes.fromhex(session.mask_key))
    pairwise = {
        name: keys.pairwise_mask_key(own, bytes.fromhex(offers[name].mask_key), terms.digest, terms.pair(site, name))
        for name in others
    }
    data = packed(vector)
    masks.apply(
        data,
        plus=[keys.self_mask_key(bytes.fromhex(session.seed), terms.digest, site)]
        + [key for name, key in pairwise.items() if name > site],
        minus=[key for name, key in pairwise.items() if name < site],
    )
    masked = SiteSession(
        site=site,
        terms=terms,
        stage="masked",
        seed_shares={**session.seed_shares, **{name: seed for name, (seed, _) in shares.items()}},
        key_shares={name: key for name, (_, key) in shares.items()},
    )
    return masked, bytes(data)


def _check_offers(session: SiteSession, offers: Mapping[str, Offer]) -> None:
    terms, which = session.terms, f"session {session.terms.session[:8]}"
    # (2)
    if offers.keys() != set(terms.cohort) or any(offer.site != name for name, offer in offers.items()):
        raise RefusedError(f"{which} is refused: expected one offer of each site of the cohort, and of no other")
    # (3)
    if _digest(offers[session.site]) != session.offer_digest:
        raise RefusedError(f"{which} is refused: the offer that came back in the name of {session.site} is not its own")
    # (4)
    for name, peer in session.peers.items():
        try:
            check_offer(offers[name], terms)
        except DataError as error:
            raise RefusedError(f"{which} is refused: {error}") from None
        try:
            identities.verify(peer, offers[name].content, base64.b64decode(offers[name].signature))
        except RefusedError as error:
            raise RefusedError(f"{which} is refused: the offer of {name} is not its own: {error}") from None
    # (5)
    public = [key for offer in offers.values() for key in (offer.mask_key, offer.share_key)]
    if len(set(public)) != len(public):
        raise RefusedError(f"{which} is refused: two offers hold the same key")


def _opened_shares(offer: Offer, terms: Terms, identity: Identity) -> tuple[str, str]:
    """The shares of seed and mask key that `offer` holds for this site, hexadecimal."""
    sealed, sender = offer.sealed_for(identity.name), bytes.fromhex(offer.share_key)
    both = keys.unseal(sealed, sender, identity.exchange, terms.digest, (offer.site, identity.name))
    return both[: shamir.SHARE_BYTES].hex(), both[shamir.SHARE_BYTES :].hex()


def reveal(
    session: SiteSession, survivors: Sequence[str], opened: Sequence[Sequence[str]] = ()
) -> tuple[SiteSession, Reveal]:  # fmt: skip
    """This site's shares for a set of survivors; `opened` are the sets that it revealed for in the same round before.

    RefusedError, in this order, unless (1) this site has masked, and has not revealed  (2) the survivors are of the
    cohort, this site among them  (3) as many as `minimum` and the threshold  (4) the difference to any sum of this
    round that it opened before tells nothing of fewer than `minimum` sites.
    """
    terms, which, told = session.terms, f"session {session.terms.session[:8]}", set(survivors)
    # (1)
    if session.stage == "offered":
        raise RefusedError(f"{which} cannot be opened here: this site has sent no masked update in it")
    if session.stage == "revealed":
        raise RefusedError(
            f"{which} was opened here already; a second answer could hold the other share of a site and open its update"
        )
    # (2)
    if len(told) != len(survivors) or not told <= set(terms.cohort):
        raise RefusedError(f"{which} is refused: the survivors must be sites of its cohort, each named once")
    if session.site not in told:
        raise RefusedError(f"{which} is refused: this site sent its masked update, and is not among the survivors")
    # (3)
    if len(told) < terms.minimum:
        raise RefusedError(
            f"{which} is refused: a sum of {len(told)} sites would be opened, agreed are {terms.minimum} or more; "
            "repeat the attempt when more sites are there"
        )
    needed = threshold(len(terms.cohort), terms.minimum)
    if len(told) < needed:
        raise RefusedError(
            f"{which} is refused: {len(told)} of {len(terms.cohort)} sites survived, opening takes {needed}; repeat "
            "the attempt with the sites that are there"
        )
    # (4)
    _check_difference(told, [set(before) for before in opened], terms)
    answer = Reveal(
        site=session.site,
        session=terms.session,
        seed_shares={name: session.seed_shares[name] for name in terms.cohort if name in told},
        key_shares={name: session.key_shares[name] for name in terms.cohort if name not in told},
    )
    return SiteSession(site=session.site, terms=terms, stage="revealed"), answer


def _check_difference(told: set[str], opened: Sequence[set[str]], terms: Terms) -> None:
    others = [before for before in opened if before != told]  # the same sum again tells nothing new
    if len({frozenset(before) for before in others}) >= MOST_SUMS:
        raise RefusedError(
            f"round {terms.round} is refused: {MOST_SUMS} sums of it were opened here, and a third could be combined "
            "with them to one site's update; go on to the next round"
        )
    for before in others:
        if len(told ^ before) < terms.minimum:
            raise RefusedError(
                f"round {terms.round} is refused: its sum was opened here for a cohort that differs by "
                f"{len(told ^ before)} sites, whose updates the difference would tell; repeat it with the same sites"
            )


def check_reveal(reveal: Reveal, terms: Terms, survivors: Sequence[str]) -> None:
    """Raises DataError unless the reveal is of a survivor, of this session, and for these survivors."""
    if reveal.site not in survivors or reveal.session != terms.session:
        raise DataError(f"a reveal of {reveal.site} that session {terms.session[:8]} did not ask for")
    lost = set(terms.cohort) - set(survivors)
    if reveal.seed_shares.keys() != set(survivors) or reveal.key_shares.keys() != lost:
        raise DataError(f"the reveal of {reveal.site} is not for the survivors that it was asked for")


def unmask(
    total: Vector, terms: Terms, offers: Mapping[str, Offer], survivors: Sequence[str], reveals: Mapping[str, Reveal]
) -> Vector:  # fmt: skip
    """The sum of the survivors' vectors, from the sum `total` of their masked ones.

    PeerError when fewer than the threshold revealed, or what they revealed does not fit what was offered: the attempt
    is over, and a new session is needed.
    """
    needed = threshold(len(terms.cohort), terms.minimum)
    for answer in reveals.values():
        check_reveal(answer, terms, survivors)
    if len(reveals) < needed:
        raise PeerError(
            f"session {terms.session[:8]} stays shut: {needed} sites have to reveal, {len(reveals)} did; repeat the "
            "attempt in a new session"
        )
    lost = [name for name in terms.cohort if name not in survivors]
    minus: list[bytes] = []
    plus: list[bytes] = []
    for name in survivors:
        minus.append(keys.self_mask_key(_restored_seed(offers[name], terms, reveals, needed), terms.digest, name))
    for name in lost:
        private = _restored_key(offers[name], terms, reveals, needed)
        for other in survivors:
            public = bytes.fromhex(offers[other].mask_key)
            key = keys.pairwise_mask_key(private, public, terms.digest, terms.pair(name, other))
            # What the survivor added for a later site is taken away, and the other way round.
            (minus if name > other else plus).append(key)
    data = packed(total)
    masks.apply(data, plus=plus, minus=minus)
    return unpack(data, total.size)


def _restored_seed(offer: Offer, terms: Terms, reveals: Mapping[str, Reveal], needed: int) -> bytes:
    shares = {terms.number(name): int(answer.seed_shares[offer.site], 16) for name, answer in reveals.items()}
    for seed in _combined(shares, needed):
        if keys.seed_digest(seed, terms.digest, offer.site) == offer.seed_digest:
            return seed
    raise _wrong_shares(offer.site)


def _restored_key(offer: Offer, terms: Terms, reveals: Mapping[str, Reveal], needed: int) -> X25519PrivateKey:
    shares = {terms.number(name): int(answer.key_shares[offer.site], 16) for name, answer in reveals.items()}
    for secret in _combined(shares, needed):
        private = X25519PrivateKey.from_private_bytes(secret)
        if private.public_key().public_bytes_raw().hex() == offer.mask_key:
            return private
    raise _wrong_shares(offer.site)


def _combined(shares: Mapping[int, int], needed: int) -> Iterator[bytes]:
    """What `needed` shares lead to, beginning at each of them in turn: where one more than needed was revealed, a site
    that reveals wrong ones is passed over once."""
    numbers = sorted(shares)
    for start in range(len(numbers)):
        chosen = (numbers[start:] + numbers[:start])[:needed]
        try:
            yield shamir.combine({number: shares[number] for number in chosen})
        except DataError:
            continue


def _wrong_shares(site: str) -> PeerError:
    return PeerError(
        f"the shares of {site} that were revealed do not fit its offer: {site} dealt wrong ones, or a site revealed "
        "wrong ones; repeat the attempt in a new session"
    )


def _digest(offer: Offer) -> str:
    return hashlib.sha256(offer.content).hexdigest()
