"""The sum under masks is the sum of the integers, whoever drops out when; and the coordinator sees nothing else."""

from __future__ import annotations

import itertools
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import pytest

from shared.errors import PeerError
from shared.secagg import keys, masks, shamir
from shared.secagg.fixed_point import Grid, Vector, grid_for, mean, pack, quantise, unpack
from shared.secagg.protocol import Terms, new_session, offer, threshold
from shared.types import Arrays
from tests.shared.secagg.cohort import CAMPAIGN, MODULO, Cohort, make, names, plain_sum, random_vectors

STEPS = 800
"""Images that a site draws in a round, at most."""


def shapes_of(count: int) -> dict[str, tuple[int, ...]]:
    part = count // 4
    return {"enhancer.w": (count - 3 * part,), "recogniser.down.w": (part, 1), "recogniser.up.w": (1, part),
            "recogniser.diagnosis_head.w": (part,)}  # fmt: skip


def updates_of(sites: tuple[str, ...], count: int) -> tuple[dict[str, Arrays], dict[str, dict[str, int]]]:
    """Every site has its own weights; only every other one trains the decoder, and nobody the class head."""
    rng = np.random.default_rng(len(sites))
    updates, weights = {}, {}
    for i, name in enumerate(sites):
        shapes = shapes_of(count)
        updates[name] = {key: rng.normal(0, 0.02, shape).astype(np.float32) for key, shape in shapes.items()}
        counts = (STEPS - i, STEPS - 2 * i, (i % 2) * (100 + i), 0)
        weights[name] = dict(zip(shapes, counts, strict=True))
    return updates, weights


def plain_mean(
    updates: Mapping[str, Arrays], weights: Mapping[str, Mapping[str, int]], key: str
) -> npt.NDArray[np.float64]:
    total = sum(weights[name][key] for name in updates)
    summed = sum(weights[name][key] * update[key].astype(np.float64) for name, update in updates.items())
    return np.asarray(summed / max(total, 1))


def session(n: int, stage: str, count: int) -> tuple[Cohort, list[str], dict[str, Vector], Grid, Arrays]:
    """A whole session, in which as many sites as it can spare are lost at one stage."""
    everybody = make(n) if stage != "offer" else without_the_last(n)
    sites = everybody.terms.cohort
    spare = n - threshold(n, 3)
    grid = grid_for(4.0, n * STEPS)
    updates, weights = updates_of(sites, count)
    vectors = {name: quantise(updates[name], weights[name], grid) for name in sites}
    survivors = [name for i, name in enumerate(sites) if stage != "mask" or not 0 < i <= spare]
    answering = [name for i, name in enumerate(survivors) if stage != "reveal" or not 0 < i <= spare]
    everybody.mask({name: vectors[name] for name in survivors})
    everybody.reveal(survivors, answering)
    total = everybody.opened(survivors, count)
    shapes = shapes_of(count)
    total_weights = {key: sum(weights[name][key] for name in survivors) for key in shapes}
    got = mean(total, shapes, total_weights, grid)
    for key in shapes:
        wanted = plain_mean({name: updates[name] for name in survivors}, weights, key)
        assert np.abs(got[key] - wanted).max() <= grid.step, key
    np.testing.assert_array_equal(total, plain_sum(vectors, survivors))
    return everybody, survivors, vectors, grid, got


def without_the_last(n: int) -> Cohort:
    """A site that does not offer is left out by new terms; the others offer again, with what they have in hand."""
    if n == 3:
        return make(3)
    cohort = make(n)
    left = names(n)[:-1]
    cohort.terms = Terms(new_session(), CAMPAIGN, 1, left, 3)
    made = {name: offer(cohort.identities[name], cohort.peers, cohort.terms) for name in left}
    cohort.sessions = {name: session for name, (session, _) in made.items()}
    cohort.offers = {name: offered for name, (_, offered) in made.items()}
    return cohort


@pytest.mark.parametrize("stage", ["nowhere", "offer", "mask", "reveal"])
@pytest.mark.parametrize(("n", "count"), [(3, 40_001), (5, 40_001), (10, 10_001)])
def test_the_sum_is_exact_and_the_mean_within_a_step_with_losses_at(stage: str, n: int, count: int) -> None:
    *_, got = session(n, stage, count)
    assert not got["recogniser.diagnosis_head.w"].any()
    assert got["recogniser.up.w"].any()


def test_fifty_sites_of_which_sixteen_are_lost() -> None:
    _, survivors, *_ = session(50, "mask", 1001)
    assert len(survivors) == 34


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["nowhere", "offer", "mask", "reveal"])
@pytest.mark.parametrize("n", [3, 5, 10, 50])
def test_a_million_values_sum_exactly_with_losses_at(stage: str, n: int) -> None:
    session(n, stage, 1_000_000)


def test_sites_lost_after_their_offer_and_after_their_mask_leave_one_exact_sum() -> None:
    cohort, count = make(10), 1000
    vectors = random_vectors(cohort.terms.cohort, count)
    survivors = list(names(10)[1:9])
    cohort.mask({name: vectors[name] for name in survivors})
    cohort.reveal(survivors, survivors[1:])
    np.testing.assert_array_equal(cohort.opened(survivors, count), plain_sum(vectors, survivors))


def test_any_choice_of_enough_answers_gives_the_same_sum() -> None:
    cohort, count = make(5), 100
    vectors = random_vectors(cohort.terms.cohort, count)
    cohort.mask(vectors)
    cohort.reveal(names(5), names(5))
    every = dict(cohort.reveals)
    for answering in itertools.combinations(names(5), 4):
        cohort.reveals = {name: every[name] for name in answering}
        np.testing.assert_array_equal(cohort.opened(names(5), count), plain_sum(vectors, names(5)))


@pytest.mark.parametrize(("n", "minimum"), [(3, 3), (4, 3), (5, 3), (10, 3), (10, 9)])
def test_one_answer_too_few_opens_nothing(n: int, minimum: int) -> None:
    cohort, count = make(n, minimum), 10
    cohort.mask(random_vectors(cohort.terms.cohort, count))
    needed = threshold(n, minimum)
    cohort.reveal(names(n), names(n)[: needed - 1])
    with pytest.raises(PeerError, match=f"{needed} sites have to reveal, {needed - 1} did"):
        cohort.opened(names(n), count)


# --------------------------------------------------------------------------------------- what the coordinator received


def alike(one: Vector, other: Vector) -> bool:
    """Whether two vectors have more in common than chance allows: equal values, correlated integers or equal bits."""
    count = one.size
    equal = int((one == other).sum())
    left, right = (signed(vector) for vector in (one, other))
    correlation = abs(np.corrcoef(left, right)[0, 1])
    bits = np.unpackbits((one ^ other).view(np.uint8).reshape(-1, 8)[:, :5], axis=1).mean(0)  # the 40 that are used
    return bool(equal > 3 or correlation > 6 / count**0.5 or (np.abs(bits - 0.5) > 4 / count**0.5).any())


def signed(vector: Vector) -> npt.NDArray[np.float64]:
    return ((vector ^ np.uint64(2**39)).astype(np.int64) - 2**39).astype(np.float64)


def real_vectors(sites: tuple[str, ...], count: int) -> dict[str, Vector]:
    updates, weights = updates_of(sites, count)
    every = {name: {key: max(1, weight) for key, weight in weights[name].items()} for name in sites}
    return {name: quantise(updates[name], every[name], grid_for(4.0, len(sites) * STEPS)) for name in sites}


def test_the_measure_of_likeness_sees_what_is_alike() -> None:
    vectors = real_vectors(names(3), 20_000)
    one, other = vectors["site-00"], vectors["site-01"]
    assert alike(one, one)
    assert alike(one, (one + np.uint64(7)) & MODULO)
    assert alike((one + other) & MODULO, one)
    uniform = random_vectors(names(2), 20_000)
    assert not alike(uniform["site-00"], uniform["site-01"])


def test_no_vector_that_the_coordinator_received_nor_any_sum_of_some_is_like_an_update() -> None:
    count = 20_000
    cohort = make(5)
    vectors = real_vectors(names(5), count)
    cohort.mask(vectors)
    for size in (1, 2, 3, 4):
        for some in itertools.combinations(names(5), size):
            total = cohort.total(some, count)
            assert not any(alike(total, vectors[name]) for name in some)
            assert not alike(total, plain_sum(vectors, some))
    for one, other in itertools.combinations(names(5), 2):
        difference = (unpack(cohort.masked[one], count) - unpack(cohort.masked[other], count)) & MODULO
        assert not alike(difference, (vectors[one] - vectors[other]) & MODULO)


def test_with_all_that_it_received_the_coordinator_opens_no_update() -> None:
    """One site is said to be lost, its vector arrives all the same; four reveal. What follows from that is computed."""
    count = 20_000
    cohort = make(5)
    vectors = real_vectors(names(5), count)
    cohort.mask(vectors)
    lost, survivors = "site-02", [name for name in names(5) if name != "site-02"]
    cohort.reveal(survivors, survivors)

    seeds = {name: restored(cohort, name, "seed_shares") for name in names(5)}
    private = {name: restored(cohort, name, "key_shares") for name in names(5)}
    assert [name for name in names(5) if seeds[name]] == survivors
    assert [name for name in names(5) if private[name]] == [lost]

    salt = cohort.terms.digest
    for name in names(5):
        plus, minus = [], []
        if seed := seeds[name]:
            minus.append(keys.self_mask_key(seed, salt, name))
        for other in set(names(5)) - {name}:
            if (key := pair_key(cohort, private, name, other)) is not None:
                (minus if other > name else plus).append(key)
        data = bytearray(cohort.masked[name])
        masks.apply(data, plus=plus, minus=minus)  # all that it can take away
        left = unpack(bytes(data), count)
        assert not any(alike(left, vector) for vector in vectors.values()), name
    np.testing.assert_array_equal(cohort.opened(survivors, count), plain_sum(vectors, survivors))


def restored(cohort: Cohort, name: str, kind: str) -> bytes | None:
    """What the shares of `name` that were revealed lead to, where they suffice."""
    shares = {
        cohort.terms.number(by): int(getattr(answer, kind)[name], 16)
        for by, answer in cohort.reveals.items()
        if name in getattr(answer, kind)
    }
    return shamir.combine(shares) if len(shares) >= threshold(5, 3) else None


def pair_key(cohort: Cohort, private: Mapping[str, bytes | None], one: str, other: str) -> bytes | None:
    """The key of the mask of two sites, where the coordinator has the private half of one of them."""
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

    for own, peer in ((one, other), (other, one)):
        if (secret := private[own]) is not None:
            public = bytes.fromhex(cohort.offers[peer].mask_key)
            pair = cohort.terms.pair(one, other)
            return keys.pairwise_mask_key(
                X25519PrivateKey.from_private_bytes(secret), public, cohort.terms.digest, pair
            )
    return None


def test_neither_a_message_nor_a_session_on_disk_holds_what_it_must_not() -> None:
    cohort, count = make(3), 100
    before = dict(cohort.sessions)
    secret = [text for session in before.values() for text in (session.seed, session.mask_key)]
    vectors = random_vectors(names(3), count)
    cohort.mask(vectors)
    said = repr([offered.to_json() for offered in cohort.offers.values()])
    kept = repr([held.to_json() for held in cohort.sessions.values()])
    assert not any(text in said or text in kept for text in secret)  # wiped once the update is masked
    assert not any(pack(vector) == data for vector in vectors.values() for data in cohort.masked.values())
    cohort.reveal(names(3), names(3))
    for held in cohort.sessions.values():
        assert not held.seed_shares
        assert not held.key_shares
        assert not held.seed
        assert "seed" not in repr(held)
