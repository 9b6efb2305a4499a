"""The messages of enrolment: the committed code is that of the committed file, and a stranger's field is not kept."""

from __future__ import annotations

from pathlib import Path

import pytest

from shared.wire.enrol import generate

ROOT = Path(__file__).parents[3]


def test_generated_code_is_that_of_the_proto_file(tmp_path: Path) -> None:
    pytest.importorskip("grpc_tools", reason="grpcio-tools is not installed: pip install '.[dev]' compares the code")
    generate.generate(tmp_path)
    for name in generate.NAMES:
        made = (tmp_path / "shared" / "wire" / "enrol" / name).read_text()
        kept = (ROOT / "shared" / "wire" / "enrol" / name).read_text()
        assert made == kept, f"{name} is not of enrol.proto: python -m shared.wire.enrol.generate"


def test_a_message_comes_back_as_it_went() -> None:
    from shared.wire.enrol import enrol_pb2

    went = enrol_pb2.JoinRequest(token="a.b", site="north", csr=b"\x01", identity="{}", proof=b"\x02", version="0.1.0")
    assert enrol_pb2.JoinRequest.FromString(went.SerializeToString()) == went
