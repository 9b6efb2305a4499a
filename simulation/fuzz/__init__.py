"""Damaged and hostile inputs against every reader of what comes from elsewhere; see simulation/fuzz/__main__.py."""

from __future__ import annotations

import traceback
from pathlib import Path


class Finding(Exception):
    """What a reader should not have done: its kind, and where."""


def where(error: BaseException) -> str:
    """Class and place of an exception, and the last lines of ours that it went through; never its text."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if "site-packages" not in frame.filename and "/lib/python" not in frame.filename]
    places = [f"{Path(frame.filename).name}:{frame.lineno} {frame.name}" for frame in (*ours[-2:], frames[-1])]
    return f"{type(error).__name__} at {' < '.join(reversed(places))}"
