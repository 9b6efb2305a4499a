"""What others can send is either what it should be or told in one line; and a session does what the table says."""

from __future__ import annotations

import base64
import copy
import json
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.errors import DataError, RefusedError, WardroundError
from shared.secagg.messages import (
    LARGEST_COHORT,
    LONGEST_SIGNATURE,
    SEALED_BYTES,
    Offer,
    Reveal,
    SiteSession,
    Terms,
    canonical,
)
from shared.secagg.protocol import mask, reveal
from shared.trust.identity import PublicIdentity
from shared.wire.messages import MAX_HEADER_BYTES
from tests.shared.secagg.cohort import Cohort, make, names, random_vectors, wired

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=80) | st.just("0" * 64),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=20), inner, max_size=3),
    max_leaves=5,
)
READERS: dict[str, Callable[[Any], object]] = {
    "terms": Terms.from_json,
    "offer": Offer.from_json,
    "reveal": Reveal.from_json,
    "session": SiteSession.from_json,
    "identity": PublicIdentity.from_json,
}


@lru_cache(maxsize=1)
def valid() -> dict[str, Any]:
    cohort = make(3)
    held = cohort.sessions["site-00"]
    cohort.mask(random_vectors(names(3), 5))
    cohort.reveal(names(3), names(3))
    return {
        "terms": cohort.terms.to_json(),
        "offer": cohort.offers["site-00"].to_json(),
        "reveal": cohort.reveals["site-00"].to_json(),
        "session": held.to_json(),
        "identity": cohort.peers["site-00"].to_json(),
    }


def places(values: Any, path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    found = [path] if path else []
    if isinstance(values, dict):
        for key, inner in values.items():
            found += places(inner, (*path, key))
    return found


def test_the_offers_of_the_largest_cohort_fit_in_the_header_of_a_plan() -> None:
    """With the longest names, and room for the names and shapes of two thousand arrays."""
    sites = [f"s{i:039d}" for i in range(LARGEST_COHORT)]
    offer, sealed = valid()["offer"], base64.b64encode(bytes(SEALED_BYTES)).decode()
    offers = {
        site: offer | {"site": site, "signature": "A" * 200, "shares": {name: sealed for name in sites if name != site}}
        for site in sites
    }
    assert Offer.from_json(offers[sites[0]] | {"signature": base64.b64encode(bytes(LONGEST_SIGNATURE)).decode()})
    header = json.dumps({"secagg": {"offers": offers, "terms": {"cohort": sites}}}, separators=(",", ":"))
    assert len(header) + 2000 * 100 < MAX_HEADER_BYTES


@pytest.mark.parametrize("kind", READERS)
def test_a_good_message_survives_json(kind: str) -> None:
    read = READERS[kind](json.loads(json.dumps(valid()[kind])))
    assert read.to_json() == valid()[kind]  # type: ignore[attr-defined]


@pytest.mark.parametrize("kind", READERS)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_value_in_any_place_is_read_or_told_in_one_line(kind: str, data: st.DataObject) -> None:
    values = copy.deepcopy(valid()[kind])
    path = data.draw(st.sampled_from(places(values)))
    inner = values
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = data.draw(JSON)
    reason = ""
    try:
        READERS[kind](values)
    except WardroundError as error:
        reason = str(error)
    assert "\n" not in reason
    assert len(reason) < 400


@pytest.mark.parametrize("kind", READERS)
@settings(max_examples=30, deadline=None)
@given(values=JSON)
def test_any_json_is_told(kind: str, values: object) -> None:
    with pytest.raises(DataError):
        READERS[kind](values)


def test_tables_of_more_sites_than_a_cohort_has_are_told_unread() -> None:
    many = {f"s{i}": None for i in range(LARGEST_COHORT + 1)}
    for kind, field in (("offer", "shares"), ("reveal", "seed_shares"), ("session", "peers")):
        with pytest.raises(DataError, match=f"{field} must be a table of up to {LARGEST_COHORT} sites"):
            READERS[kind]({**valid()[kind], field: many})


def test_equal_terms_have_one_digest_and_other_terms_another() -> None:
    terms = Terms.from_json(valid()["terms"])
    again = Terms.from_json(dict(reversed(valid()["terms"].items())))
    assert terms.digest == again.digest
    assert len(terms.digest) == 32
    others = [{**valid()["terms"], field: value} for field, value in (
        ("session", "f" * 32), ("campaign_digest", "f" * 64), ("round", 2), ("minimum", 2),
        ("cohort", ["site-00", "site-01", "site-03"]))]  # fmt: skip
    assert len({terms.digest, *(Terms.from_json(values).digest for values in others)}) == 6


def test_canonical_json_is_one_text() -> None:
    assert canonical({"b": [1, "ä"], "a": None}) == b'{"a":null,"b":[1,"\\u00e4"]}'


# -------------------------------------------------------------------------------------------- the table of transitions


def brought_to(stage: str) -> Cohort:
    cohort = make(3)
    if stage != "offered":
        cohort.mask(random_vectors(names(3), 5))
    if stage == "revealed":
        cohort.reveal(names(3), names(3))
    return cohort


@pytest.mark.parametrize(
    ("stage", "action", "leads_to"),
    [
        ("offered", "mask", "masked"),
        ("offered", "reveal", None),
        ("masked", "mask", None),
        ("masked", "reveal", "revealed"),
        ("revealed", "mask", None),
        ("revealed", "reveal", None),
    ],
)
def test_a_session_goes_where_the_table_says_and_nowhere_else(stage: str, action: str, leads_to: str | None) -> None:
    cohort = brought_to(stage)
    session = wired(cohort.sessions["site-00"])
    assert session.stage == stage
    before = session.to_json()

    def act() -> SiteSession:
        if action == "mask":
            identity = cohort.identities["site-00"]
            return mask(session, cohort.offers, np.zeros(5, np.uint64), identity)[0]
        return reveal(session, names(3))[0]

    if leads_to is None:
        with pytest.raises(RefusedError):
            act()
    else:
        assert act().stage == leads_to
    assert session.to_json() == before
