"""Every error that a person or a peer can cause, and the exit code each one ends a program with.

    WardroundError
    ├── ConfigError       2  wrong use, or a config that cannot be kept
    ├── RefusedError      3  policy or trust says no
    ├── PeerError         4  a peer cannot be reached, or too few answered in time
    └── DataError         5  a file, a store, a checkpoint or an update that cannot be used

A message says what was expected, what was got, and the way out, in one line. It never holds a patient's value, a path
below a hospital's data folder, or the message of a third-party exception: messages may cross a site's border.
"""

from __future__ import annotations


class WardroundError(Exception):
    """Base of all errors with a reason for people; `exit_code` ends the program that meets one."""

    exit_code = 1


class ConfigError(WardroundError):
    """Wrong use or configuration."""

    exit_code = 2


class RefusedError(WardroundError):
    """A policy or a trust check said no."""

    exit_code = 3


class PeerError(WardroundError):
    """A peer did not answer, or too few did."""

    exit_code = 4


class DataError(WardroundError):
    """Data that cannot be used: DICOM, store, checkpoint, update."""

    exit_code = 5
