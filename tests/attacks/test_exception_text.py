"""An adversary who makes things fail: whatever breaks at a site, and wherever, no word of a patient leaves with it.

The coordinator can send weights and plans that make libraries raise, and whoever has changed the training code can
raise what it likes. The oracle is the text of the answer and of the site's own log: a secret goes into every error, and
must come out nowhere.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
import torch
from flwr.app import Context, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity

import client.app
from client import update
from client.app import make_app
from client.ingest.store import Store, array_path
from client.site import SiteSetup
from shared.config import CampaignConfig, MachineConfig, build, campaign_digest, save_campaign, to_dict
from shared.errors import DataError
from shared.networks import build_networks
from shared.types import Plan
from shared.weights import architecture_digest, to_arrays
from shared.wire.flower import to_content, to_record
from shared.wire.messages import MAX_REASON_CHARS, Refusal, plan_record, read_answer
from simulation.bench.stores import write_random_store

SECRET = "Mustermann^Max 19700101 /data/patients/4711"
WORDS = ("Mustermann", "19700101", "/data", "4711")


@pytest.fixture
def setup(tmp_path: Path, campaign: CampaignConfig) -> Iterator[SiteSetup]:
    campaign = build(CampaignConfig, to_dict(campaign))
    place = tmp_path / "Mustermann" / "19700101"
    place.mkdir(parents=True)
    save_campaign(campaign, place / "campaign.json")
    store = write_random_store(place / "store", campaign.data, patients=6, slices=1, seed=1)
    approved = {campaign_digest(campaign): place / "campaign.json"}
    yield SiteSetup("north", store, MachineConfig(device="cpu", threads=1), approved)
    update.forget()


@pytest.fixture
def log() -> Iterator[list[str]]:
    lines: list[str] = []

    class Kept(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(self.format(record))

    handler = Kept()
    client.app.log.addHandler(handler)
    yield lines
    client.app.log.removeHandler(handler)


def plan_of(setup: SiteSetup, **changed: Any) -> Plan:
    (file,) = setup.approved.values()
    campaign = build(CampaignConfig, json.loads(file.read_text()))
    weights = to_arrays(build_networks(campaign))
    plan = Plan(campaign.name, "train", 1, campaign_digest(campaign), architecture_digest(weights), weights)
    return replace(plan, **changed)


def asked(plan: Plan, setup: SiteSetup) -> Refusal:
    """The answer, which must be a no, as bytes and as what the coordinator reads in them."""
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 1
    message = Message(to_content(plan_record(plan)), 7, "train")
    message.metadata.__dict__["_message_id"] = "m1"
    reply = make_app(lambda context: setup)(message, Context(1, 7, {}, RecordDict(), {}))
    assert not reply.has_error()
    record = to_record(reply.content)
    assert not any(word in repr(record) for word in WORDS)
    answer = read_answer(record)
    assert isinstance(answer, Refusal)
    return answer


def silent(lines: list[str]) -> None:
    assert lines
    assert not any(word in line for word in WORDS for line in lines), lines


class Custom(Exception):
    """Of a library that was installed beside."""


def made_up() -> Exception:
    return type(SECRET, (ValueError,), {})(1)


def chained() -> Exception:
    error = RuntimeError("while reading")
    error.__cause__ = ValueError(SECRET)
    error.add_note(SECRET)
    return error


ERRORS: dict[str, tuple[Callable[[], BaseException], str]] = {
    "a value": (lambda: ValueError(SECRET), "site error: ValueError"),
    "a missing file": (lambda: FileNotFoundError(2, "No such file", SECRET), "site error: FileNotFoundError"),
    "a text that is none": (lambda: UnicodeDecodeError("utf-8", SECRET.encode(), 0, 1, SECRET), "site error: Unicode"),
    "pydicom's": (lambda: pydicom.errors.InvalidDicomError(SECRET), "site error: InvalidDicomError"),
    "torch's": (lambda: torch.OutOfMemoryError(SECRET), "site error: OutOfMemoryError"),
    "another library's": (lambda: Custom(SECRET), "site error: Custom"),
    "one behind another": (chained, "site error: RuntimeError"),
    "a group": (lambda: ExceptionGroup(SECRET, [ValueError(SECRET)]), "site error: ExceptionGroup"),
    "a class named for a patient": (made_up, "site error: Exception"),
    "a way out of the process": (lambda: SystemExit(SECRET), "site error: SystemExit"),
}


@pytest.mark.parametrize("stage", ["admitted", "answer", "protected", "permitted", "note_leaving"])
@pytest.mark.parametrize("error", ["a value", "a way out of the process"])
def test_no_stage_of_an_answer_lets_a_text_out(
    setup: SiteSetup, log: list[str], monkeypatch: pytest.MonkeyPatch, stage: str, error: str
) -> None:
    make, reason = ERRORS[error]

    def fails(*_: object, **__: object) -> None:
        raise make()

    monkeypatch.setattr(client.app, stage, fails)
    assert asked(plan_of(setup), setup).reason.startswith(reason)
    silent(log)


@pytest.mark.parametrize("error", ERRORS)
def test_of_whatever_training_raises_the_class_leaves_at_most(
    setup: SiteSetup, log: list[str], monkeypatch: pytest.MonkeyPatch, error: str
) -> None:
    make, reason = ERRORS[error]

    def fails(*_: object, **__: object) -> None:
        raise make()

    monkeypatch.setattr("client.train.local.batch_gradients", fails)
    # Out of memory is met where it arises, by smaller batches; what training raises beyond that ends here.
    assert asked(plan_of(setup), setup).reason.startswith(reason)
    silent(log)


def test_a_damaged_store_is_told_of_without_its_place(setup: SiteSetup, log: list[str]) -> None:
    record = Store.open(setup.store).series[0]
    path = array_path(setup.store, record, "image")
    path.write_bytes(path.read_bytes()[:100])
    told = asked(plan_of(setup), setup)
    assert told.error in ("DataError", "Exception")
    silent(log)
    update.forget()
    (setup.store / "index.json").write_text(f'{{"{SECRET}": ')
    told = asked(plan_of(setup), setup)
    assert told.error == "DataError"
    silent(log)


def test_a_store_that_is_gone_or_locked_is_told_of_without_its_place(setup: SiteSetup, log: list[str]) -> None:
    gone = replace(setup, store=setup.store.with_name("4711"))
    assert asked(plan_of(gone), gone).error == "DataError"
    (file,) = setup.approved.values()
    plan = plan_of(setup)
    file.write_text(SECRET)
    update.forget()
    assert asked(plan, setup).error in ("ConfigError", "RefusedError")
    silent(log)


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e38])
def test_weights_that_break_training_tell_nothing_of_what_was_trained_on(
    setup: SiteSetup, log: list[str], value: float
) -> None:
    plan = plan_of(setup)
    poisoned = {name: np.full_like(values, value) for name, values in plan.weights.items()}
    told = asked(replace(plan, weights=poisoned), setup)
    assert told.error in ("DataError", "Exception")
    assert not re.search(r"\d\.\d|\de[+-]?\d|\d{3}", told.reason), told.reason
    silent(log)


def test_our_own_reasons_are_one_short_line(setup: SiteSetup, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object, **__: object) -> None:
        raise DataError("first line\n\x1b[31msecond\x00 line " + "x" * 10_000)

    monkeypatch.setattr(client.app, "answer", fails)
    reason = asked(plan_of(setup), setup).reason
    assert len(reason) <= MAX_REASON_CHARS
    assert reason.isprintable()
