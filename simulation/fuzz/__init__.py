"""Damaged and hostile inputs against every reader of what comes from elsewhere; see simulation/fuzz/__main__.py."""


class Finding(Exception):
    """What a reader should not have done: its kind, and where."""
