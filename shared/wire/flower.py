"""Our records to Flower messages and back, and a link over Flower's Grid. The only file of shared/ that knows Flower.

`GridLink` is what server/rounds.py drives. It polls on its own: Flower's `send_and_receive` keeps every reply in memory
and cannot say which site an error belongs to (the SuperLink answers in its own name), while pulling one message id at a
time holds one reply and knows whose it is.

Why a link of three methods: Flower's API changed three times in a year, and a test wants to script it.
"""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Callable, Collection, Sequence
from typing import cast

from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid

from shared.errors import DataError
from shared.types import Action
from shared.wire.link import Failure, Peer
from shared.wire.messages import ADDED, MASKED, MAX_HEADER_BYTES, Record

NUMPY = "numpy.ndarray"
PACKED = "wardround.packed"
BYTES = "wardround.bytes"
"""Of the array of a masked update, which is no .npy file."""
SMALL_BYTES = 256 * 1024
_MESSAGE_TYPES: dict[Action, str] = {
    "handshake": "query",
    "offer": "query",
    "train": "train",
    "unmask": "query",
    "evaluate": "evaluate",
}
_FAILURES = {
    1: "the site could not load its program",
    2: "the site's program failed",
    3: "the message was no longer available",
    4: "the reply was no longer available",
    5: "the site went offline",
    7: "the site refused the bundle",
    8: "the site's program crashed",
}


def to_content(record: Record) -> RecordDict:
    """Large arrays are handed over as they are: our bytes are Flower's `numpy.ndarray` layout. Small ones go as one.

    Every array costs two requests and their database writes on each of five legs, and a network has a hundred arrays
    of a few kB: sent one by one they cost a deployed round more than its training.
    """
    content = RecordDict({"header": ConfigRecord({"json": record.header})})
    if not record.arrays:
        return content
    shapes = json.loads(record.header)["shapes"]
    small = {name: data for name, data in record.arrays.items() if len(data) < SMALL_BYTES}
    arrays = {
        name: Array(dtype=_dtype(name), shape=tuple(shapes[name]), stype=_kind(name), data=data)
        for name, data in record.arrays.items()
        if name not in small
    }
    if small:
        packed = b"".join(small.values())
        arrays[PACKED] = Array(dtype="uint8", shape=(len(packed),), stype=PACKED, data=packed)
        sizes = {name: len(data) for name, data in small.items()}
        content["small"] = ConfigRecord({"sizes": json.dumps(sizes).encode()})
    content["arrays"] = ArrayRecord(arrays)
    return content


def _dtype(name: str) -> str:
    return "uint8" if name == MASKED else "float16" if name.startswith(ADDED) else "float32"


def _kind(name: str) -> str:
    return BYTES if name == MASKED else NUMPY


def to_record(content: RecordDict) -> Record:
    """DataError when it is not one of our messages.

    Records are taken by key: Flower's `content.array_records` ties the content into a reference cycle, and hundreds of
    megabytes then wait for the garbage collector.
    """
    header, arrays = content.get("header"), content.get("arrays", ArrayRecord())
    text = header.get("json") if isinstance(header, ConfigRecord) else None
    if not isinstance(text, bytes) or not isinstance(arrays, ArrayRecord):
        raise DataError("expected a Wardround message, got one without our header")
    whole = {name: array.data for name, array in arrays.items()}
    if PACKED in whole:
        small = content.get("small")
        whole |= _unpacked(whole.pop(PACKED), small.get("sizes") if isinstance(small, ConfigRecord) else None)
    return Record(text, whole)


def _unpacked(packed: bytes, sizes: object) -> dict[str, bytes]:
    """DataError unless the sizes cut the bytes up exactly."""
    wrong = DataError("the sizes of the packed arrays do not fit their bytes")
    if not isinstance(sizes, bytes) or len(sizes) > MAX_HEADER_BYTES:
        raise wrong
    try:
        lengths = json.loads(sizes)
    except (ValueError, RecursionError):
        raise wrong from None
    if not isinstance(lengths, dict) or any(type(size) is not int or size < 0 for size in lengths.values()):
        raise wrong
    ends = list(itertools.accumulate(lengths.values()))
    if not ends or ends[-1] != len(packed):
        raise wrong
    return {name: packed[end - lengths[name] : end] for name, end in zip(lengths, ends, strict=True)}


class GridLink:
    """Sends records to peers and pulls one reply at a time.

    `ttl_s` bounds how long a message that nobody waits for any more stays with the SuperLink.
    """

    def __init__(
        self,
        grid: Grid,
        *,
        ttl_s: float,
        poll_s: float = 0.5,
        sleep: Callable[[float], None] = time.sleep,
        only: Collection[str] | None = None,
    ) -> None:
        self._grid = grid
        self._only = only
        self._ttl_s = ttl_s
        self._poll_s = poll_s
        self._sleep = sleep

    def peers(self) -> tuple[Peer, ...]:
        """Who is online now, in a fixed order; with `only`, who was registered under one of these names."""
        found = (Peer(int(node.node_id), str(getattr(node, "name", ""))) for node in self._grid.get_nodes())
        named = (peer for peer in found if self._only is None or peer.name in self._only)
        return tuple(sorted(named, key=lambda peer: (peer.name, peer.id)))

    def send(self, action: Action, record: Record, peers: Sequence[Peer]) -> dict[str, Peer]:
        """Tickets to pull the replies with, in the order of `peers`; a peer that could not be sent to has none.

        All messages share one content, which the SuperLink stores once.
        """
        content = to_content(record)
        messages = [Message(content, peer.id, _MESSAGE_TYPES[action], ttl=self._ttl_s) for peer in peers]
        accepted = set(self._grid.push_messages(messages))
        tickets = (message.metadata.message_id for message in messages)
        return {ticket: peer for ticket, peer in zip(tickets, peers, strict=True) if ticket in accepted}

    def receive(self, tickets: Collection[str], timeout_s: float) -> tuple[str, Record | Failure] | None:
        """One reply to any of `tickets`, earlier tickets first; None when none came within the time."""
        left_s = timeout_s
        while True:
            for ticket in tickets:
                for message in self._grid.pull_messages([ticket]):
                    return ticket, _read(message)
            if left_s <= 0:
                return None
            self._sleep(min(self._poll_s, left_s))
            left_s -= self._poll_s


def _read(message: Message) -> Record | Failure:
    if message.has_error():
        code = cast(int, message.error.code)
        return Failure(_FAILURES.get(code, f"transport error {code}"))
    try:
        return to_record(message.content)
    except DataError as error:
        return Failure(str(error))
