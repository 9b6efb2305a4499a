"""Write the code of shared/wire/enrol.proto anew: `python -m shared.wire.enrol.generate` (needs grpcio-tools)."""

from __future__ import annotations

import sys
from pathlib import Path

HERE = Path(__file__).parent
NAMES = ("enrol_pb2.py", "enrol_pb2_grpc.py")


def generate(out: Path) -> None:
    """Write the files NAMES below `out`/shared/wire/enrol; raises ImportError where grpcio-tools is not installed."""
    from grpc_tools import protoc

    # The file stands one folder above what is made of it: the first path is what generated code imports.
    arguments = (
        *("protoc", f"-Ishared/wire/enrol={HERE.parent}"),
        *(f"--python_out={out}", f"--grpc_python_out={out}"),
        "shared/wire/enrol/enrol.proto",
    )
    if protoc.main(arguments) != 0:
        raise RuntimeError("protoc did not accept shared/wire/enrol.proto")


if __name__ == "__main__":
    generate(HERE.parents[2])
    sys.exit(0)
