"""multipart/related bodies (RFC 2387, RFC 2046 5.1) as streams: parts come block by block, never whole in memory."""

from __future__ import annotations

from collections.abc import Iterator
from email.message import Message

from client.ingest.pacs.source import Failure, TransferError

MOST_HEAD_BYTES = 1 << 16
"""Of a preamble, or of the headers of one part."""
MOST_BOUNDARY = 200


def boundary_of(content_type: str) -> bytes:
    """The boundary that a response announces; TransferError unless it is multipart/related."""
    header = Message()
    header["content-type"] = content_type
    boundary = header.get_param("boundary")
    if header.get_content_type() != "multipart/related" or not isinstance(boundary, str):
        raise TransferError(Failure.NOT_UNDERSTOOD)
    if not 0 < len(boundary) <= MOST_BOUNDARY or not boundary.isascii():
        raise TransferError(Failure.NOT_UNDERSTOOD)
    return boundary.encode()


class Parts:
    """Iterate over the parts; each is (media type, blocks), and its blocks are drained before the next one comes."""

    def __init__(self, blocks: Iterator[bytes], boundary: bytes) -> None:
        self._blocks = blocks
        self._mark = b"\r\n--" + boundary
        # The first boundary may open the body, without the line end before it.
        self._buffer = b"\r\n"

    def __iter__(self) -> Iterator[tuple[str, Iterator[bytes]]]:
        preamble = 0
        for block in self._body():
            preamble += len(block)
            if preamble > MOST_HEAD_BYTES:
                raise TransferError(Failure.NOT_UNDERSTOOD)
        while not self._is_last():
            media_type = self._head()
            body = self._body()
            yield media_type, body
            for _ in body:
                pass

    def _body(self) -> Iterator[bytes]:
        """Up to the next boundary; the buffer is left behind it."""
        while True:
            place = self._buffer.find(self._mark)
            if place >= 0:
                block, self._buffer = self._buffer[:place], self._buffer[place + len(self._mark) :]
                if block:
                    yield block
                return
            # The boundary may have begun in the last bytes.
            keep = len(self._mark) - 1
            block, self._buffer = self._buffer[:-keep], self._buffer[-keep:]
            if block:
                yield block
            self._more()

    def _is_last(self) -> bool:
        """Whether the boundary just passed was the closing one."""
        while len(self._buffer) < 2:
            self._more()
        return self._buffer.startswith(b"--")

    def _head(self) -> str:
        """The part's media type; application/dicom where it does not say (PS3.18 8.6.1.2)."""
        while (end := self._buffer.find(b"\r\n\r\n")) < 0:
            if len(self._buffer) > MOST_HEAD_BYTES:
                raise TransferError(Failure.NOT_UNDERSTOOD)
            self._more()
        head, self._buffer = self._buffer[:end], self._buffer[end + 4 :]
        for line in head.split(b"\r\n"):
            name, _, value = line.partition(b":")
            if name.strip().lower() == b"content-type":
                return value.partition(b";")[0].strip().lower().decode("ascii", "replace")
        return "application/dicom"

    def _more(self) -> None:
        block = next(self._blocks, b"")
        if not block:
            raise TransferError(Failure.CUT_OFF)
        self._buffer += block
