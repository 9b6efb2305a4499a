"""What crosses a site's border on an error, and what does not."""

from __future__ import annotations

import datetime as dt
import io
import json
import logging
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Context, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity

import client.app
from client.app import make_app, setup_from_node_config
from client.approvals import check_bundle
from client.folder import create
from client.site import SiteSetup
from shared import audit
from shared.config import CampaignConfig, MachineConfig
from shared.errors import ConfigError, DataError, RefusedError
from shared.trust import certificates
from shared.types import Plan, SiteCard, Update
from shared.wire.flower import to_content, to_record
from shared.wire.messages import Answer, ReceivedUpdate, Record, Refusal, plan_record, read_answer

PLAN = plan_record(Plan("demo", "train", 1, "a" * 64, "b" * 64, {"w": np.ones(2, np.float32)}))
CARD = SiteCard("north", "a" * 64, "b" * 64, "0.1.0", {})
SECRET = "/data/patients/Mustermann^Max 19700101"


class Log:
    """Stands for a site's audit log; a full one takes nothing."""

    def __init__(self, full: bool = False) -> None:
        self.full = full
        self.entries: list[dict[str, Any]] = []

    def append(self, event: str, /, **facts: Any) -> None:
        if self.full:
            raise DataError("the disk takes no more entries")
        self.entries.append({"event": event, **facts})


@pytest.fixture(autouse=True)
def _campaign(campaign: CampaignConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a site does between the doors is tested elsewhere: here they stand open."""
    monkeypatch.setattr(client.app, "agreed_of", lambda plan, setup: (campaign, campaign))
    monkeypatch.setattr(client.app, "admitted", lambda plan, setup: None)
    monkeypatch.setattr(client.app, "permitted", lambda record, plan, setup: record)


def ask(
    monkeypatch: pytest.MonkeyPatch,
    does: Callable[..., Any],
    kind: str = "train",
    record: Record = PLAN,
    audit: Log | None = None,
) -> Answer:
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 1
    monkeypatch.setattr(client.app, "answer", does)
    setup = SiteSetup("north", Path("store"), MachineConfig(), {}, audit=audit)  # type: ignore[arg-type]
    app = make_app(lambda context: setup)
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
    assert ask(monkeypatch, lambda plan, setup, on_step: CARD, kind) == CARD


def test_an_update_is_sent_with_its_arrays(monkeypatch: pytest.MonkeyPatch) -> None:
    update = Update("north", 1, 4, {"w": np.ones(2, np.float32)})
    received = ask(monkeypatch, lambda plan, setup, on_step: update)
    assert isinstance(received, ReceivedUpdate)
    assert received.shapes == {"w": (2,)}


def test_the_doors_stand_in_their_order_and_the_log_before_the_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []

    def step(name: str, gives: Callable[..., Any]) -> Callable[..., Any]:
        def does(*arguments: Any, **more: Any) -> Any:
            order.append(name)
            return gives(*arguments)

        return does

    update = Update("north", 1, 4, {"w": np.ones(2, np.float32)})
    monkeypatch.setattr(client.app, "admitted", step("admitted", lambda plan, setup: None))
    monkeypatch.setattr(client.app, "protected", step("protected", client.app.protected))
    monkeypatch.setattr(client.app, "permitted", step("permitted", lambda record, plan, setup: record))
    monkeypatch.setattr(client.app, "note_leaving", step("noted", client.app.note_leaving))
    log = Log()
    ask(monkeypatch, step("answer", lambda plan, setup: update), audit=log)
    assert order == ["admitted", "answer", "protected", "permitted", "noted"]
    (entry,) = log.entries
    assert (entry["event"], entry["campaign"], entry["digest"], entry["round"]) == ("round.left", "demo", "a" * 64, 1)
    assert (entry["kind"], entry["arrays"], entry["masked"]) == ("update", 1, False)
    assert entry["norm"] == pytest.approx(2**0.5)
    assert entry["bytes"] > 8


def test_what_cannot_be_written_down_does_not_leave(monkeypatch: pytest.MonkeyPatch) -> None:
    refusal = ask(monkeypatch, lambda plan, setup, on_step: CARD, audit=Log(full=True))
    assert refusal == Refusal("DataError", "the disk takes no more entries")


def test_what_was_declined_is_written_down_in_the_words_that_leave(monkeypatch: pytest.MonkeyPatch) -> None:
    log = Log()
    ask(monkeypatch, raises(RefusedError("campaign aaaaaaaaaaaa is not approved at north")), audit=log)
    ask(monkeypatch, raises(ValueError(SECRET)), audit=log)
    reasons = ["campaign aaaaaaaaaaaa is not approved at north", "site error: ValueError"]
    assert log.entries == [{"event": "refused", "reason": reason} for reason in reasons]


def test_a_plan_that_is_not_admitted_computes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuses(plan: Plan, setup: SiteSetup) -> None:
        raise RefusedError("paused")

    monkeypatch.setattr(client.app, "admitted", refuses)
    assert ask(monkeypatch, lambda *_, **__: pytest.fail("answered")) == Refusal("RefusedError", "paused")


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


def bundle(config_digest: str = "a" * 64, **more: str) -> bytes:
    manifest = json.dumps({"config_digest": config_digest, "manifest_digest": "c" * 64})
    files = {"pyproject.toml": "", ".info/CONTENT": "", "manifest.json": manifest} | more
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, text in files.items():
            archive.writestr(name, text)
    return buffer.getvalue()


def run_process(monkeypatch: pytest.MonkeyPatch, site: Path, fab: bytes) -> tuple[Any, Answer | None]:
    """What Flower's program does with our replacements: take in the bundle, load an app, call it with the message."""
    import flwr.supernode.cli
    from flwr.supernode.runtime import run_clientapp

    answers: list[tuple[Any, Answer | None]] = []

    def flower() -> None:
        run_clientapp.install_from_fab(fab, skip_prompt=True)
        app = run_clientapp.get_load_client_app_fn(default_app_ref="", app_path=None, multi_app=True)("id", "1", "hash")
        if app is client.app.app:
            answers.append((app, None))
            return
        message = Message(to_content(PLAN), 7, "train")
        message.metadata.__dict__["_message_id"] = "m1"
        answers.append((app, read_answer(to_record(app(message=message, context=None).content))))

    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 1
    for name in ("install_from_fab", "get_load_client_app_fn"):  # put back after the test
        monkeypatch.setattr(run_clientapp, name, getattr(run_clientapp, name))
    monkeypatch.setattr(flwr.supernode.cli, "flwr_clientapp", flower)
    monkeypatch.setenv("WARDROUND_SITE", str(site))
    monkeypatch.setenv("WARDROUND_PATH", os.environ["PATH"])
    monkeypatch.setenv("PATH", "")
    with pytest.raises(SystemExit):
        client.app.run_message_process()
    return answers[0]


def approving(given: dict[str, str]) -> Callable[[bytes, Path], None]:
    def check(bundle: bytes, folder: Path) -> None:
        check_bundle(bundle, given)

    return check


def test_an_approved_bundle_runs_the_installed_app_and_nothing_is_unpacked(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(client.app, "check_delivered", approving({"a" * 64: "c" * 64}))
    monkeypatch.setenv("FLWR_HOME", str(tmp_path / "home"))
    app, _ = run_process(monkeypatch, tmp_path, bundle())
    assert app is client.app.app
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("fab", "reason"),
    [
        (bundle(), "campaign aaaaaaaaaaaa is not approved here"),
        (bundle(**{"client/app.py": "raise SystemExit"}), "no code is taken from outside"),
        (b"garbage", "not a campaign manifest"),
    ],
)
def test_a_refused_bundle_is_answered_with_the_reason(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, fab: bytes, reason: str
) -> None:
    monkeypatch.setattr(client.app, "check_delivered", approving({}))
    _, answer = run_process(monkeypatch, tmp_path, fab)
    assert isinstance(answer, Refusal)
    assert reason in answer.reason


def test_a_refused_bundle_stands_in_the_audit_log(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    authority = tmp_path / "ca.crt"
    authority.write_bytes(certificates.create_authority("test", dt.datetime.now(dt.UTC)).certificate)
    create(tmp_path / "site", "north", "127.0.0.1:8443", authority)
    run_process(monkeypatch, tmp_path / "site", bundle())
    (entry,) = [entry for entry in audit.read(tmp_path / "site" / "audit.jsonl") if entry.event == "refused"]
    assert "is not approved here" in str(entry.facts["reason"])


def test_an_error_while_the_bundle_is_checked_leaves_no_text(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def broken(bundle: bytes, folder: Path) -> None:
        raise PermissionError(13, "Permission denied", SECRET)

    monkeypatch.setattr(client.app, "check_delivered", broken)
    assert run_process(monkeypatch, tmp_path, bundle())[1] == Refusal("RefusedError", "site error: PermissionError")
