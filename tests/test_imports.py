"""Fences between rooms: who may import whom, and which package may know which library."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ALLOWED = {
    "shared": {"shared"},
    "client": {"client", "shared"},
    "server": {"server", "shared"},
    "simulation": {"simulation", "client", "server", "shared"},
}
ONLY_IN = {
    "flwr": (
        *("client/app.py", "server/app.py", "shared/wire/flower.py", "simulation/run.py", "simulation/bench/"),
        "simulation/adversaries.py",
    ),
    "monai": (
        *("shared/recognise/downstream.py", "shared/recognise/attention.py", "shared/recognise/surfaces.py"),
        *("shared/generate/networks.py", "shared/generate/sampling.py"),
        "simulation/bench/",
    ),
    "onnx": ("shared/export.py",),
    "onnxscript": ("shared/export.py",),
    "onnxruntime": ("shared/export.py",),
    "ray": ("simulation/run.py", "simulation/bench/"),
    "pydicom": (
        *("client/ingest/", "client/enhance", "simulation/hospitals/", "simulation/fuzz/"),
        "simulation/bench/ingest.py",
    ),
    "highdicom": ("client/ingest/", "client/enhance", "simulation/hospitals/"),
    "pynetdicom": ("client/ingest/pacs/",),
    "dicomweb_client": (),
    "hydra": ("shared/config/load.py",),
    "omegaconf": ("shared/config/load.py",),
    "cryptography": ("shared/trust/", "shared/secagg/"),
    "dp_accounting": ("shared/privacy/accountant.py",),
    "grpc": ("shared/wire/enrol/", "server/enrol.py", "client/join.py"),
    "grpc_tools": ("shared/wire/enrol/generate.py",),
    "nilearn": ("simulation/hospitals/",),
    "skimage": ("simulation/study/denoisers.py",),
    "transformers": ("shared/generate/sentences.py",),
    "pickle": (),
}  # fmt: skip
HEAVY = ("monai", "matplotlib", "highdicom", "nilearn", "skimage", "sklearn", "ray", "hydra", "scipy", "pandas",
         "transformers", "pynetdicom", "pydicom", "dp_accounting")  # fmt: skip


def source_files() -> Iterator[Path]:
    for package in ALLOWED:
        yield from sorted((ROOT / package).rglob("*.py"))


def imported_names(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names.add(node.module or "")
    return {name.split(".")[0] for name in names}


@pytest.mark.parametrize("path", list(source_files()), ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_inwards(path: Path) -> None:
    inside = str(path.relative_to(ROOT))
    package = inside.split("/")[0]
    names = imported_names(path)
    wrong = (names & ALLOWED.keys()) - ALLOWED[package]
    assert not wrong, f"{inside} imports {sorted(wrong)}; {package} may import {sorted(ALLOWED[package])}"
    for library in names & ONLY_IN.keys():
        assert inside.startswith(ONLY_IN[library]), f"{inside} imports {library}, which belongs to {ONLY_IN[library]}"


@pytest.mark.parametrize("module", ["simulation.cli", "client.cli", "server.cli", "client.app", "server.app"])
def test_nothing_heavy_is_imported_at_start_up(module: str) -> None:
    code = f"import {module}, sys; print([name for name in {HEAVY!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("module", ["client.cli", "server.cli", "simulation.cli"])
def test_a_command_line_starts_without_torch_and_grpc(module: str) -> None:
    code = f"import {module}, sys; print('torch' in sys.modules or 'grpc' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "False"
