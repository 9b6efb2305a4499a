"""JSON values in, checked and frozen terms, offers, reveals and sessions out, and back.

Everything is bounded before it is read further: a site's name, a key or a share has one length, and no more of them are
taken than a cohort may have. Raises DataError for what is malformed, RefusedError for terms that protect nobody.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from shared.errors import ConfigError, DataError, RefusedError
from shared.secagg.keys import KEY_BYTES, SEAL_BYTES
from shared.secagg.shamir import SHARE_BYTES
from shared.trust.identity import PublicIdentity
from shared.trust.names import checked_name

LARGEST_COHORT = 150
"""All offers go out in the header of one plan, with a share from each site for each other: they must fit in
shared.wire.messages.MAX_HEADER_BYTES."""
FEWEST = 2
"""With one site the sum is its update."""
SEALED_BYTES = 2 * SHARE_BYTES + SEAL_BYTES
LONGEST_SIGNATURE = 150  # bytes of DER on P-384; at most 104
NO_WEIGHTS = "0" * 64
_MAX_ROUND = 1_000_000
_HEX = re.compile(r"[0-9a-f]*")

Stage: TypeAlias = Literal["offered", "masked", "revealed"]
STAGES: tuple[Stage, ...] = ("offered", "masked", "revealed")


@dataclass(frozen=True, slots=True)
class Terms:
    """What all sites of a cohort sign: which sum is asked for. Chosen by the coordinator, judged by every site."""

    session: str
    """32 hexadecimal digits, drawn anew for every attempt."""
    campaign_digest: str
    round: int
    cohort: tuple[str, ...]
    """Names of the sites whose offers make the session, sorted."""
    minimum: int
    """Fewest sites whose sum may be opened."""
    weights: str = NO_WEIGHTS
    """Digest of what every site of the cohort trains from (shared.masking.start_digest)."""

    def __post_init__(self) -> None:
        _hex(self.session, 16, "session")
        _hex(self.campaign_digest, 32, "campaign digest")
        _hex(self.weights, 32, "digest of the weights")
        if type(self.round) is not int or not 1 <= self.round <= _MAX_ROUND:
            raise DataError(f"round of a session must lie in 1 to {_MAX_ROUND}")
        if not len(self.cohort) <= LARGEST_COHORT:
            raise DataError(f"a cohort has at most {LARGEST_COHORT} sites, got {len(self.cohort)}")
        for name in self.cohort:
            _name(name)
        if list(self.cohort) != sorted(set(self.cohort)):
            raise DataError("the sites of a cohort must be sorted, and none named twice")
        if type(self.minimum) is not int or self.minimum < FEWEST:
            raise RefusedError(f"minimum cohort must be {FEWEST} or more: the sum of one site is its update")
        if len(self.cohort) < self.minimum:
            raise RefusedError(
                f"a cohort of {len(self.cohort)} sites is refused: no sum of fewer than {self.minimum} is opened; wait "
                "for more sites"
            )

    @property
    def digest(self) -> bytes:
        """SHA-256 of the canonical JSON: the salt of every key of the session, 32 bytes."""
        return hashlib.sha256(b"wardround secagg terms 1\n" + canonical(self.to_json())).digest()

    def number(self, site: str) -> int:
        """Which share of a secret is the site's; from 1."""
        return self.cohort.index(site) + 1

    def pair(self, one: str, other: str) -> tuple[str, str]:
        """Two sites in the order of the cohort."""
        return (one, other) if one < other else (other, one)

    def to_json(self) -> dict[str, Any]:
        return {
            "session": self.session,
            "campaign_digest": self.campaign_digest,
            "round": self.round,
            "cohort": list(self.cohort),
            "minimum": self.minimum,
            "weights": self.weights,
        }

    @classmethod
    def from_json(cls, values: Any) -> Terms:
        values = _fields(values, ("session", "campaign_digest", "round", "cohort", "minimum", "weights"), "terms")
        if not isinstance(values["cohort"], list):
            raise DataError("the cohort of a session must be a list of names")
        return cls(**{**values, "cohort": tuple(values["cohort"])})


@dataclass(frozen=True, slots=True)
class Offer:
    """Site to all sites, by way of the coordinator: its keys of this session, and a share of its secrets for each."""

    site: str
    terms_digest: str
    mask_key: str
    """X25519 public key that pairwise masks are agreed with, hexadecimal."""
    share_key: str
    """X25519 public key that the shares are sealed with; its private half is gone when the offer leaves."""
    seed_digest: str
    """Commitment to the seed of the self mask."""
    shares: Mapping[str, str]
    """Every other site of the cohort -> base64 of the sealed shares of seed and private mask key."""
    signature: str = ""
    """Base64 of the signature by the site key over `content`."""

    @property
    def content(self) -> bytes:
        """What is signed: all but the signature."""
        values = self.to_json()
        del values["signature"]
        return b"wardround secagg offer 1\n" + canonical(values)

    def sealed_for(self, site: str) -> bytes:
        return base64.b64decode(self.shares[site])

    def to_json(self) -> dict[str, Any]:
        return {
            "site": self.site,
            "terms_digest": self.terms_digest,
            "mask_key": self.mask_key,
            "share_key": self.share_key,
            "seed_digest": self.seed_digest,
            "shares": dict(self.shares),
            "signature": self.signature,
        }

    @classmethod
    def from_json(cls, values: Any) -> Offer:
        kinds = ("terms_digest", "mask_key", "share_key", "seed_digest")
        values = _fields(values, ("site", *kinds, "shares", "signature"), "an offer")
        _name(values["site"])
        for kind in kinds:
            _hex(values[kind], KEY_BYTES, kind)
        for name, sealed in _by_site(values["shares"], "shares").items():
            _base64(sealed, SEALED_BYTES, SEALED_BYTES, f"share for {name}")
        _base64(values["signature"], 8, LONGEST_SIGNATURE, "signature")
        return cls(**values)


@dataclass(frozen=True, slots=True)
class Reveal:
    """Site to coordinator: of every site of the cohort the share of one of its two secrets, never of both."""

    site: str
    session: str
    seed_shares: Mapping[str, str]
    """Survivor -> share of the seed of its self mask, hexadecimal."""
    key_shares: Mapping[str, str]
    """Site that dropped out -> share of its private mask key."""

    def to_json(self) -> dict[str, Any]:
        return {
            "site": self.site,
            "session": self.session,
            "seed_shares": dict(self.seed_shares),
            "key_shares": dict(self.key_shares),
        }

    @classmethod
    def from_json(cls, values: Any) -> Reveal:
        values = _fields(values, ("site", "session", "seed_shares", "key_shares"), "a reveal")
        _name(values["site"])
        _hex(values["session"], 16, "session")
        for kind in ("seed_shares", "key_shares"):
            for name, share in _by_site(values[kind], kind).items():
                _hex(share, SHARE_BYTES, f"share of {name}")
        if both := values["seed_shares"].keys() & values["key_shares"].keys():
            raise DataError(f"a reveal holds both shares of {min(both)}; expected one of the two")
        return cls(**values)


@dataclass(frozen=True, slots=True, repr=False)
class SiteSession:
    """What a site keeps between the messages of a session; secret, and never printed."""

    site: str
    terms: Terms
    stage: Stage
    peers: Mapping[str, PublicIdentity] = field(default_factory=dict)
    """Identities of the other sites as they are pinned here; until the update is masked."""
    offer_digest: str = ""
    """SHA-256 of what this site signed."""
    seed: str = ""
    mask_key: str = ""
    """Private X25519 key; like `seed` hexadecimal, and gone once the update is masked."""
    seed_shares: Mapping[str, str] = field(default_factory=dict)
    """Site -> share of its seed, hexadecimal: this site's own from the start, the others' once the update is masked."""
    key_shares: Mapping[str, str] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        return {
            "site": self.site,
            "terms": self.terms.to_json(),
            "stage": self.stage,
            "peers": {name: peer.to_json() for name, peer in self.peers.items()},
            "offer_digest": self.offer_digest,
            "seed": self.seed,
            "mask_key": self.mask_key,
            "seed_shares": dict(self.seed_shares),
            "key_shares": dict(self.key_shares),
        }

    @classmethod
    def from_json(cls, values: Any) -> SiteSession:
        secrets = ("offer_digest", "seed", "mask_key")
        held = ("seed_shares", "key_shares")
        values = _fields(values, ("site", "terms", "stage", "peers", *secrets, *held), "a session")
        _name(values["site"])
        if values["stage"] not in STAGES:
            raise DataError(f"stage of a session must be one of {', '.join(STAGES)}; start a new session")
        for kind in secrets:
            if values[kind] != "":
                _hex(values[kind], KEY_BYTES, kind)
        for kind in held:
            for name, share in _by_site(values[kind], kind).items():
                _hex(share, SHARE_BYTES, f"share of {name}")
        peers = {name: PublicIdentity.from_json(peer) for name, peer in _by_site(values["peers"], "peers").items()}
        session = cls(**{**values, "terms": Terms.from_json(values["terms"]), "peers": peers})
        session._check_whole()
        return session

    def _check_whole(self) -> None:
        """Raises DataError unless all that the next stage looks for is there: above all a key for every peer."""
        cohort, none = set(self.terms.cohort), set[str]()
        others = cohort - {self.site}
        peers, seeds, keys = {
            "offered": (others, {self.site}, none),
            "masked": (none, cohort, others),
            "revealed": (none, none, none),
        }[self.stage]
        held = (set(self.peers), set(self.seed_shares), set(self.key_shares))
        named = all(name == peer.name for name, peer in self.peers.items())
        secrets = all((self.offer_digest, self.seed, self.mask_key)) == (self.stage == "offered")
        if self.site not in cohort or held != (peers, seeds, keys) or not named or not secrets:
            raise DataError("the session of secure aggregation on disk is not whole; offer again")


def canonical(values: Mapping[str, Any]) -> bytes:
    """One text for equal values: sorted keys, no spaces, ASCII."""
    return json.dumps(values, sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode()


def _fields(values: Any, names: tuple[str, ...], what: str) -> dict[str, Any]:
    if not isinstance(values, Mapping) or values.keys() != set(names):
        raise DataError(f"{what} of secure aggregation must have the fields {', '.join(names)} and no other")
    return dict(values)


def _by_site(values: Any, what: str) -> dict[str, Any]:
    if not isinstance(values, Mapping) or len(values) > LARGEST_COHORT:
        raise DataError(f"{what} must be a table of up to {LARGEST_COHORT} sites")
    for name in values:
        _name(name)
    return dict(values)


def _name(name: Any) -> None:
    try:
        checked_name("site name", name if isinstance(name, str) else "")
    except ConfigError:
        raise DataError("a site is named by 1 to 40 letters, digits, '-' or '_'") from None


def _hex(text: Any, length: int, what: str) -> None:
    if not isinstance(text, str) or len(text) != 2 * length or not _HEX.fullmatch(text):
        raise DataError(f"{what} must be {2 * length} hexadecimal digits")


def _base64(text: Any, shortest: int, longest: int, what: str) -> None:
    try:
        length = len(base64.b64decode(text, validate=True)) if isinstance(text, str) and len(text) < 1000 else -1
    except (binascii.Error, ValueError):
        length = -1
    if not shortest <= length <= longest:
        raise DataError(f"{what} must be {shortest} to {longest} bytes in base64")
