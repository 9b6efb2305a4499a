from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest

from client.enhance.pipeline import ahead_of, behind


def test_items_come_in_order_and_no_more_than_a_few_ahead() -> None:
    made: list[int] = []

    def items() -> Iterator[int]:
        for number in range(20):
            made.append(number)
            yield number

    with ahead_of(items(), ahead=2) as ready:
        first = next(ready)
        time.sleep(0.05)
        assert len(made) <= 1 + 2 + 1  # taken, waiting, in the thread's hand
        assert [first, *ready] == list(range(20))


def test_an_error_in_a_thread_is_raised_where_its_result_is_used() -> None:
    def items() -> Iterator[int]:
        yield 1
        raise ValueError("decode")

    with pytest.raises(ValueError, match="decode"), ahead_of(items()) as ready:
        list(ready)

    def failing() -> None:
        raise ValueError("encode")

    with pytest.raises(ValueError, match="encode"), behind() as hand_over:
        hand_over(failing)


def test_threads_end_with_the_block_even_where_nobody_reads_on() -> None:
    before = threading.active_count()
    with ahead_of(iter(range(1000)), ahead=1) as ready:
        next(ready)
    done: list[int] = []
    with behind(ahead=1) as hand_over:
        for number in range(5):
            hand_over(lambda number=number: done.append(number))
    assert done == list(range(5))
    assert threading.active_count() == before
