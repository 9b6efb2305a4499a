"""Decoding, network and encoding beside one another: an iterator read ahead in a thread, and work handed to a thread.

Order is kept, and at most `ahead` items wait at each end, so that memory is bounded whatever the length of a series.
An error in a thread is raised where its result would have been used; the threads end with the block.
"""

from __future__ import annotations

import queue
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar, cast

T = TypeVar("T")
AHEAD = 3
SWITCH_S = 5e-4
"""How long a thread may keep the interpreter while another waits: by default ten times as long, and the network, whose
hundred operations a slice need it for microseconds each, would wait that long behind a header that is being read."""


@contextmanager
def switching() -> Iterator[None]:
    """The interpreter changes threads more often inside."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(SWITCH_S)
    try:
        yield
    finally:
        sys.setswitchinterval(before)


@contextmanager
def ahead_of(items: Iterator[T], ahead: int = AHEAD) -> Iterator[Iterator[T]]:
    """The same items, computed in a thread up to `ahead` of who reads them."""
    waiting: queue.Queue[tuple[str, object]] = queue.Queue(maxsize=ahead)
    stopped = threading.Event()

    def put(kind: str, value: object) -> bool:
        while not stopped.is_set():
            try:
                waiting.put((kind, value), timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def work() -> None:
        try:
            for item in items:
                if not put("item", item):
                    return
            put("end", None)
        except BaseException as error:  # noqa: BLE001 - raised again by the reader
            put("error", error)

    def read() -> Iterator[T]:
        while True:
            kind, value = waiting.get()
            if kind == "error":
                raise cast(BaseException, value)
            if kind == "end":
                return
            yield cast(T, value)

    thread = threading.Thread(target=work, name="decode", daemon=True)
    thread.start()
    try:
        yield read()
    finally:
        stopped.set()
        thread.join()


@contextmanager
def behind(ahead: int = AHEAD) -> Iterator[Callable[[Callable[[], None]], None]]:
    """A function that hands work to one thread; it waits while `ahead` pieces are unfinished. At the end of the block
    all of them are done."""
    pending: list[Future[None]] = []
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="encode") as pool:

        def hand_over(work: Callable[[], None]) -> None:
            pending.append(pool.submit(work))
            while len(pending) > ahead:
                pending.pop(0).result()

        try:
            yield hand_over
            while pending:
                pending.pop(0).result()
        finally:
            for each in pending:
                each.cancel()
