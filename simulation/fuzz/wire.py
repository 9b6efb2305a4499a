"""Messages between a site and the coordinator, damaged; a reader of them may raise our own errors and nothing else."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from typing import Any

import numpy as np

from client import protect
from server.collect import WeightedSum
from shared.errors import WardroundError
from shared.secagg.messages import Offer, Reveal, Terms
from shared.types import Moments, Offered, Plan, Revealed, SiteCard, Update
from shared.weights import PARTS
from shared.wire.messages import (
    MAX_REASON_CHARS,
    ReceivedUpdate,
    Record,
    card_record,
    masked_record,
    offer_record,
    plan_record,
    read_answer,
    read_plan,
    refusal_record,
    reveal_record,
    update_record,
)
from simulation.fuzz import Finding, where

WEIGHTS = {"enhancer.w": np.ones((2, 3), np.float32), "recogniser.unet.encoder.b": np.arange(4, dtype=np.float32)}
SEALED = base64.b64encode(bytes(82)).decode()
VALUES: tuple[Any, ...] = (
    *(None, True, 0, -1, 2**53, 2**53 + 1, 10**400, 1.5, 1e308, "", "x" * 400, "../..", "a\nb", "\ud800", [], [[]], {}),
    *([1, 2], [-1], [2**52, 2**52], {"a": {}}, {"": 0}, float("nan"), float("inf")),
)


def target() -> tuple[Callable[[np.random.Generator], tuple[str, Record]], Callable[[Record], str]]:
    """(a maker of inputs, the readers)."""
    good = _messages()
    return lambda rng: _damaged(good, rng), read


def _messages() -> tuple[Record, ...]:
    terms = {"session": "0" * 32, "campaign_digest": "a" * 64, "round": 2, "cohort": ["a", "b", "c"], "minimum": 3}
    offer = {
        "site": "b",
        "terms_digest": "1" * 64,
        "mask_key": "2" * 64,
        "share_key": "3" * 64,
        "seed_digest": "4" * 64,
        "shares": {"a": SEALED, "c": SEALED},
        "signature": "A" * 96,
    }
    reveal = {"site": "b", "session": "0" * 32, "seed_shares": {"a": "5" * 66, "b": "5" * 66}, "key_shares": {}}
    moments = {"enhanced.psnr_db": Moments(2, 60.0, 1800.5, (1.0, 2.0, 3.0, 4.0, 5.0))}
    update = Update("b", 2, 10, WEIGHTS, evaluation=moments, images=dict.fromkeys(PARTS, 5))
    plan = Plan("tiny", "train", 2, "a" * 64, "b" * 64, WEIGHTS, secagg={"terms": terms, "offers": {"b": offer}})
    return (
        plan_record(plan),
        update_record(update),
        masked_record(update, "0" * 32, bytes(50)),
        offer_record(Offered("b", 2, offer)),
        reveal_record(Revealed("b", 2, reveal)),
        card_record(SiteCard("b", "a" * 64, "b" * 64, "0.1", {"patients": 3})),
        refusal_record("DataError", "no data"),
    )


def _damaged(good: tuple[Record, ...], rng: np.random.Generator) -> tuple[str, Record]:
    record = good[int(rng.integers(len(good)))]
    kind = ("bytes", "cut", "field", "field", "array")[int(rng.integers(5))]
    header, arrays = bytearray(record.header), dict(record.arrays)
    if kind == "bytes":
        for place in rng.integers(len(header), size=int(rng.integers(1, 5))):
            header[place] = int(rng.integers(256))
    elif kind == "cut":
        start = int(rng.integers(len(header)))
        del header[start : start + int(rng.integers(1, 40))]
    elif kind == "field":
        values = json.loads(record.header)
        _change(values, rng)
        header = bytearray(json.dumps(values).encode())
    elif arrays:
        name = list(arrays)[int(rng.integers(len(arrays)))]
        data = bytearray(arrays[name])
        data[int(rng.integers(len(data)))] ^= 1 << int(rng.integers(8))
        arrays[name] = bytes(data[: int(rng.integers(len(data) + 1))] if rng.random() < 0.5 else data)
    return f"{json.loads(record.header)['kind']}: {kind}", Record(bytes(header), arrays)


def _change(values: Any, rng: np.random.Generator) -> None:
    """One value, at some depth, becomes another, goes, or comes twice under another name."""
    while True:
        keys = list(values) if isinstance(values, dict) else list(range(len(values)))
        if not keys:
            return
        key = keys[int(rng.integers(len(keys)))]
        if isinstance(values[key], dict | list) and values[key] and rng.random() < 0.7:
            values = values[key]
            continue
        if isinstance(values, dict) and rng.random() < 0.2:
            values[f"{key}x"] = values.pop(key)
        else:
            values[key] = VALUES[int(rng.integers(len(VALUES)))]
        return


def read(record: Record) -> str:
    """What the coordinator and a site make of the message; Finding where either fails."""
    total = WeightedSum(WEIGHTS, round=2, max_samples=100)
    said = []
    readers: tuple[Callable[[], str], ...] = (lambda: _plan(record), lambda: _answer(record, total))
    for reader in readers:
        try:
            said.append(reader())
        except WardroundError as error:
            if "\n" in str(error) or len(str(error)) > 2 * MAX_REASON_CHARS:
                raise Finding("reason", str(error)[:80]) from None
            if total.samples:
                raise Finding("state", "a refused update is in the sum") from None
            said.append(type(error).__name__)
        except Exception as error:  # noqa: BLE001 - what is looked for
            raise Finding("exception", where(error)) from None
    return " | ".join(said)


def _plan(record: Record) -> str:
    plan = read_plan(record)
    if plan.secagg:
        Terms.from_json(plan.secagg.get("terms"))
        protect._offers(plan)
    return "a plan"


def _answer(record: Record, total: WeightedSum) -> str:
    answer = read_answer(record)
    if isinstance(answer, ReceivedUpdate):
        total.add(answer, site="b")
        if not all(np.isfinite(values).all() for values in total.mean().values()):
            raise Finding("not finite", "the mean")
    if isinstance(answer, Offered):
        Offer.from_json(answer.offer)
    if isinstance(answer, Revealed):
        Reveal.from_json(answer.reveal)
    return type(answer).__name__
