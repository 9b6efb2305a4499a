"""Folder of a hospital in, de-identified store out.

`ingest` is loaded when it is first asked for: reading a store must not import pydicom.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from client.ingest.run import ingest as ingest


def __getattr__(name: str) -> object:
    if name == "ingest":
        from client.ingest.run import ingest

        return ingest
    raise AttributeError(name)
