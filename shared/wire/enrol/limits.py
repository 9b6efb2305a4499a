"""Sizes and times that both ends of enrolment keep."""

from __future__ import annotations

import json
from typing import Any

from shared.errors import DataError

MAX_MESSAGE = 65_536  # bytes of a request
CHUNK = 65_536  # bytes of a file in one message
MAX_ANSWER = 1 << 20  # bytes; a long list of releases
MAX_IDENTITY = 4096  # characters
MAX_CAMPAIGN = 4 << 20  # bytes of a signed manifest
MAX_RELEASE = 8 << 30  # bytes
CALL_S = 30.0
FETCH_S = 3600.0
LONGEST_CALL_S = FETCH_S + 60.0

SERVER_OPTIONS = (
    ("grpc.max_receive_message_length", MAX_MESSAGE),
    ("grpc.max_send_message_length", MAX_ANSWER),
    ("grpc.max_metadata_size", 8192),
    ("grpc.max_concurrent_streams", 8),
    ("grpc.max_connection_idle_ms", 60_000),
    ("grpc.server_handshake_timeout_ms", 10_000),
    ("grpc.http2.min_ping_interval_without_data_ms", 60_000),
    ("grpc.so_reuseport", 0),
)
JOIN_OPTIONS = (
    *SERVER_OPTIONS,
    ("grpc.max_connection_age_ms", 10_000),
    ("grpc.max_connection_age_grace_ms", 20_000),
)
"""Whoever reaches the port may begin calls and send nothing, and each holds a worker: none lives longer than this."""


def bounded_json(text: str) -> Any:
    """JSON of a few short values; DataError for what is long, deep or none."""
    if len(text) > MAX_IDENTITY:
        raise DataError(f"the public identity has {len(text)} characters, expected at most {MAX_IDENTITY}")
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise DataError("the public identity is not JSON; expected what key.json holds") from None
