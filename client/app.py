"""A Flower message in, a Flower message out: the site's side of the transport, and the border that errors cross.

What leaves on an error is decided here: the text of our own errors, which hold no patient's value and no path; of any
other exception its class name alone, because a library's message may quote what it read. (Flower itself would send the
text.) The site's own log adds the place in the code, never the message.
"""

from __future__ import annotations

import logging
import os
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from client.audit import record
from client.folder import read
from client.leaving import note_leaving, note_refusal
from client.policy import admitted, check_delivered, permitted, still_answers
from client.protect import protected
from client.site import SiteSetup, load_site
from client.update import OnStep, agreed_of, answer
from shared.errors import ConfigError, RefusedError, WardroundError
from shared.types import Plan
from shared.wire.flower import to_content, to_record
from shared.wire.messages import Record, read_plan, refusal_record

log = logging.getLogger("wardround.site")


def make_app(resolve: Callable[[Context], SiteSetup], *, on_step: OnStep | None = None) -> ClientApp:
    """The ClientApp of a site; `resolve` says which site a message's context belongs to."""
    app = ClientApp()

    def reply(message: Message, context: Context) -> Message:
        return Message(to_content(_guarded(message, context, resolve, on_step)), reply_to=message)

    app.query()(reply)
    app.train()(reply)
    app.evaluate()(reply)
    return app


def _guarded(
    message: Message, context: Context, resolve: Callable[[Context], SiteSetup], on_step: OnStep | None
) -> Record:
    setup: SiteSetup | None = None
    try:
        plan = read_plan(to_record(message.content))
        setup = resolve(context)
        return _answered(plan, setup, on_step)
    except WardroundError as error:
        log.warning("declined: %s", error)
        note_refusal(setup, str(error))
        return refusal_record(type(error).__name__, str(error))
    except (Exception, SystemExit) as error:  # noqa: BLE001 - the border: nothing of a library may leave in words
        log.error("failed: %s at %s", _class(error), _place(error))
        note_refusal(setup, f"site error: {_class(error)}")
        return refusal_record("Exception", f"site error: {_class(error)}")


def _answered(plan: Plan, setup: SiteSetup, on_step: OnStep | None) -> Record:
    """What a site does with a message, in this order; whatever is not in order ends in a refusal."""
    admitted(plan, setup)
    agreed, campaign = agreed_of(plan, setup)
    done = answer(plan, setup, on_step=on_step)
    record, facts = protected(done, plan, setup, campaign)
    record = permitted(record, plan, setup)
    still_answers(setup)
    note_leaving(record, plan, setup, agreed, facts)
    return record


def _class(error: BaseException) -> str:
    """The name that a class was defined under in its module; one that was made up at run time is not told."""
    kind = type(error)
    known = getattr(sys.modules.get(kind.__module__), kind.__name__, None) is kind
    return kind.__name__ if known else "Exception"


def _place(error: BaseException) -> str:
    """Innermost frames by file name and line: enough to find it, nothing of what was read."""
    frames = traceback.extract_tb(error.__traceback__)[-4:]
    return " < ".join(f"{Path(frame.filename).name}:{frame.lineno}" for frame in reversed(frames))


def setup_from_node_config(context: Context) -> SiteSetup:
    """The site of this machine, by the `site-file` that its SuperNode was started with."""
    path = context.node_config.get("site-file")
    if not isinstance(path, str):
        raise ConfigError("the SuperNode has no site-file in its node-config; start it with: wardround-site run")
    return load_site(Path(path))


app = make_app(setup_from_node_config)


def run_message_process() -> NoReturn:
    """What the command `flwr-clientapp` is at a site (client/daemon.py): one message, answered by the installed `app`.

    Flower's own would unpack the bundle and import from it. The two functions that do so are replaced where Flower
    calls them (flwr is pinned for this too; a test holds it): the bundle is checked as bytes, a refused one is answered
    with the reason, and no byte of it is written to disk or imported.
    """
    from flwr.supernode.cli import flwr_clientapp
    from flwr.supernode.runtime import run_clientapp

    site = Path(os.environ["WARDROUND_SITE"])
    os.environ["PATH"] = os.environ["WARDROUND_PATH"]
    refused: list[WardroundError] = []

    def check_only(bundle: bytes, *_: object, **__: object) -> None:
        try:
            check_delivered(bundle, site)
        except WardroundError as error:
            refused.append(error)
        except Exception as error:  # noqa: BLE001 - the border: Flower would send the text of any other error
            refused.append(RefusedError(f"site error: {type(error).__name__}"))

    def installed_app(*_: object, **__: object) -> Callable[..., Callable[[Message, Context], Message]]:
        return lambda *_: (lambda message, context: _refusal(message, refused[0], site)) if refused else app

    assert {"install_from_fab", "get_load_client_app_fn"} <= vars(run_clientapp).keys(), "flwr must be 1.41.0"
    run_clientapp.install_from_fab = check_only
    run_clientapp.get_load_client_app_fn = installed_app
    sys.exit(flwr_clientapp())


def _refusal(message: Message, error: WardroundError, site: Path) -> Message:
    log.warning("declined: %s", error)
    with suppress(WardroundError, OSError):  # a log that cannot be written does not undo a refusal
        record(read(site), "refused", reason=str(error)[:500])
    return Message(to_content(refusal_record(type(error).__name__, str(error))), reply_to=message)
