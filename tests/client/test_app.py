"""What crosses a site's border on an error, and what does not."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from flwr.app import Context, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity

import client.app
from client.app import make_app, setup_from_node_config
from shared.errors import ConfigError, DataError
from shared.types import Plan, SiteCard, Update
from shared.wire.flower import to_content, to_record
from shared.wire.messages import Answer, ReceivedUpdate, Record, Refusal, plan_record, read_answer

PLAN = plan_record(Plan("demo", "train", 1, "a" * 64, "b" * 64, {"w": np.ones(2, np.float32)}))
SECRET = "/data/patients/Mustermann^Max 19700101"


def ask(
    monkeypatch: pytest.MonkeyPatch, does: Callable[..., Any], kind: str = "train", record: Record = PLAN
) -> Answer:
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 1
    monkeypatch.setattr(client.app, "answer", does)
    app = make_app(lambda context: "setup")  # type: ignore[arg-type,return-value]
    message = Message(to_content(record), 7, kind)
    message.metadata.__dict__["_message_id"] = "m1"
    reply = app(message, Context(1, 7, {}, RecordDict(), {}))
    assert reply.metadata.reply_to_message_id == "m1"
    return read_answer(to_record(reply.content))


def raises(error: Exception) -> Callable[..., Any]:
    def does(*arguments: object, **more: object) -> None:
        raise error

    return does


@pytest.mark.parametrize("kind", ["query", "train", "evaluate"])
def test_every_kind_of_message_is_answered(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    card = SiteCard("north", "a" * 64, "b" * 64, "0.1.0", {})
    assert ask(monkeypatch, lambda plan, setup, on_step: card, kind) == card


def test_an_update_is_sent_with_its_arrays(monkeypatch: pytest.MonkeyPatch) -> None:
    update = Update("north", 1, 4, {"w": np.ones(2, np.float32)})
    received = ask(monkeypatch, lambda plan, setup, on_step: update)
    assert isinstance(received, ReceivedUpdate)
    assert received.shapes == {"w": (2,)}


def test_our_own_errors_leave_with_their_text(monkeypatch: pytest.MonkeyPatch) -> None:
    error = DataError("the store holds no series; ingest a folder")
    assert ask(monkeypatch, raises(error)) == Refusal("DataError", "the store holds no series; ingest a folder")


@pytest.mark.parametrize("error", [ValueError(SECRET), KeyError(SECRET), RuntimeError(SECRET), OSError(2, SECRET)])
def test_of_other_errors_only_the_class_leaves(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    assert ask(monkeypatch, raises(error)) == Refusal("Exception", f"site error: {type(error).__name__}")


def test_the_sites_own_log_holds_the_place_but_not_the_text(monkeypatch: pytest.MonkeyPatch) -> None:
    lines: list[str] = []

    class Kept(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(record.getMessage())

    handler = Kept()
    client.app.log.addHandler(handler)
    try:
        ask(monkeypatch, raises(ValueError(SECRET)))
    finally:
        client.app.log.removeHandler(handler)
    assert lines[0].startswith("failed: ValueError at test_app.py:")
    assert "Mustermann" not in "".join(lines)


def test_a_message_that_is_no_plan_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    refusal = ask(monkeypatch, raises(AssertionError()), record=Record(b"{}"))
    assert refusal == Refusal("DataError", "message header is not an object with a kind")


def test_a_supernode_without_a_site_file_is_told_what_to_do() -> None:
    with pytest.raises(ConfigError, match="start it with: wardround-site run"):
        setup_from_node_config(Context(1, 7, {}, RecordDict(), {}))
