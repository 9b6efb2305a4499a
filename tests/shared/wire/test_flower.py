"""Records through Flower's own objects, and a link that knows whose reply it holds."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, RecordDict
from flwr.proto.node_pb2 import NodeInfo
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects
from flwr.supercore.task_identity import TaskIdentity

from shared.errors import DataError
from shared.types import Plan, Update
from shared.wire.flower import SMALL_BYTES, GridLink, to_content, to_record
from shared.wire.link import Failure, Peer
from shared.wire.messages import Record, masked_record, plan_record, read_plan, update_record

WEIGHTS = {"b.weight": np.ones((2, 2), np.float32), "a.bias": np.zeros(3, np.float32)}
RECORD = plan_record(Plan("demo", "train", 1, "a" * 64, "b" * 64, WEIGHTS))


def test_a_record_comes_back_from_flowers_content_byte_for_byte() -> None:
    back = to_record(to_content(RECORD))
    assert back.header == RECORD.header
    assert back.arrays == RECORD.arrays
    assert list(read_plan(back).weights) == list(WEIGHTS)


def test_flower_reads_our_large_arrays_as_its_own() -> None:
    large = np.arange(SMALL_BYTES, dtype=np.float32).reshape(-1, 2)
    arrays = to_content(plan_record(Plan("demo", "train", 1, "a" * 64, "b" * 64, {"w": large})))["arrays"]
    assert isinstance(arrays, ArrayRecord)
    assert arrays["w"].shape == large.shape
    np.testing.assert_array_equal(arrays["w"].numpy(), large)


def test_flower_reads_what_recognition_added_as_float16() -> None:
    values = np.linspace(-1, 1, SMALL_BYTES, dtype=np.float32)
    record = update_record(Update("a", 1, 1, {"enhancer.w": values}, added={"enhancer.w": values}))
    arrays = to_content(record)["arrays"]
    assert isinstance(arrays, ArrayRecord)
    assert arrays["added.enhancer.w"].dtype == "float16"
    np.testing.assert_array_equal(arrays["added.enhancer.w"].numpy(), values.astype(np.float16))
    assert to_record(to_content(record)).arrays == record.arrays


@pytest.mark.parametrize("size", [100, SMALL_BYTES])
def test_a_masked_update_travels_as_the_bytes_that_it_is(size: int) -> None:
    record = masked_record(Update("a", 1, 1, {"w": np.ones(size // 5, np.float32)}), "0" * 32, bytes(size))
    arrays = to_content(record)["arrays"]
    assert isinstance(arrays, ArrayRecord)
    assert [array.dtype for array in arrays.values()] == ["uint8"]
    assert to_record(to_content(record)).arrays == record.arrays


def test_small_arrays_travel_as_one_object_beside_the_large_ones() -> None:
    rng = np.random.default_rng(0)
    weights = {f"s{i}": rng.standard_normal(i, dtype=np.float32) for i in range(100)}
    weights["large"] = rng.standard_normal(SMALL_BYTES, dtype=np.float32)
    record = plan_record(Plan("demo", "train", 1, "a" * 64, "b" * 64, weights))
    content = to_content(record)
    assert isinstance(content["arrays"], ArrayRecord)
    assert list(content["arrays"]) == ["large", "wardround.packed"]
    assert len(get_all_nested_objects(content)) < 12  # a hundred and more when each goes alone
    assert to_record(content).arrays == record.arrays
    back = read_plan(to_record(content)).weights
    assert all(np.array_equal(back[name], weights[name]) for name in weights)


@pytest.mark.parametrize(
    "sizes",
    [
        b"",
        b"{",
        b"[1]",
        b"{}",
        b'{"a": 283}',
        b'{"a": 285}',
        b'{"a": 300, "b": -16}',
        b'{"a": 284.0}',
        b'{"a": true}',
        7,
    ],
)
def test_packed_arrays_whose_sizes_do_not_fit_are_refused(sizes: bytes | int) -> None:
    content = to_content(RECORD)
    assert sum(map(len, RECORD.arrays.values())) == 284
    content["small"] = ConfigRecord({"sizes": sizes})
    with pytest.raises(DataError, match="do not fit their bytes"):
        to_record(content)
    del content["small"]
    with pytest.raises(DataError, match="do not fit their bytes"):
        to_record(content)


@pytest.mark.parametrize(
    "content",
    [
        RecordDict({"arrays": ArrayRecord({"w": Array(np.ones(2, np.float32))})}),
        RecordDict({"header": ConfigRecord({"json": "text"})}),
        RecordDict({"header": ArrayRecord({"json": Array(np.ones(2, np.float32))})}),
        RecordDict({"header": ConfigRecord({"json": b"{}"}), "arrays": ConfigRecord({"w": 1})}),
    ],
)
def test_content_that_is_not_ours_is_refused(content: RecordDict) -> None:
    with pytest.raises(DataError, match="without our header"):
        to_record(content)


def test_reading_a_reply_leaves_no_cycle_behind() -> None:
    """Else a hundred megabytes a reply would wait for the garbage collector."""
    content = to_content(RECORD)
    gone = weakref.ref(content)
    gc.disable()
    try:
        to_record(content)
        del content
        assert gone() is None
    finally:
        gc.enable()


class ScriptedGrid:
    """As much of Flower's Grid as the link uses; replies appear under their message's number when the test says so."""

    def __init__(self, refuses: frozenset[int] = frozenset()) -> None:
        TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 1
        self.sent: dict[str, Message] = {}
        self.replies: dict[str, Message] = {}
        self.refuses = refuses
        self.asked: list[str] = []

    def get_nodes(self) -> list[Any]:
        return [SimpleNamespace(node_id=7, name="b"), SimpleNamespace(node_id=9, name="a")]

    def push_messages(self, messages: Iterable[Message]) -> list[str | None]:
        ids: list[str | None] = []
        for message in messages:
            number = f"m{message.metadata.dst_node_id}"
            message.metadata.__dict__["_message_id"] = number
            refused = message.metadata.dst_node_id in self.refuses
            ids.append(None if refused else number)
            self.sent[number] = message
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        (number,) = message_ids
        self.asked.append(number)
        return [self.replies.pop(number)] if number in self.replies else []


def test_peers_come_in_the_order_of_their_names() -> None:
    assert GridLink(ScriptedGrid(), ttl_s=60).peers() == (Peer(9, "a"), Peer(7, "b"))


def test_all_messages_of_a_round_share_one_content_and_live_as_long_as_the_round() -> None:
    grid = ScriptedGrid()
    link = GridLink(grid, ttl_s=60)
    assert link.send("train", RECORD, link.peers()) == {"m9": Peer(9, "a"), "m7": Peer(7, "b")}
    first, second = grid.sent.values()
    assert first.content is second.content
    assert first.metadata.ttl == 60
    assert first.metadata.message_type == "train"


def test_a_peer_that_cannot_be_sent_to_has_no_ticket() -> None:
    link = GridLink(ScriptedGrid(refuses=frozenset({9})), ttl_s=60)
    assert link.send("handshake", RECORD, link.peers()) == {"m7": Peer(7, "b")}


def test_an_error_made_by_the_superlink_is_told_by_its_ticket_and_in_our_words() -> None:
    grid = ScriptedGrid()
    link = GridLink(grid, ttl_s=60, sleep=lambda seconds: None)
    tickets = link.send("train", RECORD, link.peers())
    grid.replies["m7"] = Message(Error(code=2, reason="ValueError: /data/patient 123"), reply_to=grid.sent["m7"])
    assert link.receive(tickets, 1.0) == ("m7", Failure("the site's program failed"))
    grid.replies["m9"] = Message(Error(code=99, reason="x"), reply_to=grid.sent["m9"])
    assert link.receive(tickets, 1.0) == ("m9", Failure("transport error 99"))


def test_one_reply_is_pulled_at_a_time_and_waiting_ends_at_the_timeout() -> None:
    slept: list[float] = []
    grid = ScriptedGrid()
    link = GridLink(grid, ttl_s=60, poll_s=0.4, sleep=slept.append)
    tickets = link.send("train", RECORD, link.peers())
    for number in ("m7", "m9"):
        grid.replies[number] = Message(to_content(RECORD), reply_to=grid.sent[number])
    answer = link.receive(tickets, 1.0)
    assert answer is not None
    assert answer[0] == "m9"
    assert isinstance(answer[1], Record)
    assert set(grid.replies) == {"m7"}
    assert grid.asked == ["m9"]
    assert link.receive(["m9"], 1.0) is None
    assert sum(slept) == pytest.approx(1.0)


def test_a_reply_that_is_no_message_of_ours_is_a_failure_not_an_exception() -> None:
    grid = ScriptedGrid()
    link = GridLink(grid, ttl_s=60, sleep=lambda seconds: None)
    tickets = link.send("train", RECORD, link.peers())
    grid.replies["m9"] = Message(RecordDict(), reply_to=grid.sent["m9"])
    answer = link.receive(tickets, 1.0)
    assert answer == ("m9", Failure("expected a Wardround message, got one without our header"))


def test_a_link_for_named_sites_sees_no_other_peer_and_none_without_a_name() -> None:
    class Nodes:
        def get_nodes(self) -> list[NodeInfo]:
            return [NodeInfo(node_id=number, name=name) for number, name in ((3, "north"), (1, "east"), (2, ""))]

    everybody = GridLink(Nodes(), ttl_s=1)  # type: ignore[arg-type]
    assert [peer.name for peer in everybody.peers()] == ["", "east", "north"]
    named = GridLink(Nodes(), ttl_s=1, only=frozenset({"north", "south"}))  # type: ignore[arg-type]
    assert [(peer.id, peer.name) for peer in named.peers()] == [(3, "north")]
