"""The bundle that Flower delivers to sites: two digests that name a campaign and its signed manifest, and no code.

Flower starts a run from an app folder. Ours holds two small text files; the components that pyproject.toml names,
`server.app:app` and `client.app:app`, are found in the installed package on either side because the bundle has no
module of that name. Sites check the manifest (client/approvals.py) and never unpack it.
"""

from __future__ import annotations

import json
from importlib.metadata import version
from pathlib import Path

PUBLISHER = "wardround"
APP_NAME = "wardround-campaign"  # Flower allows letters, digits and '-' only

_PYPROJECT = """\
[project]
name = "{name}"
version = "{version}"
description = "A campaign manifest; it holds no code"
dependencies = []

[tool.flwr.app]
publisher = "{publisher}"

[tool.flwr.app.components]
serverapp = "server.app:app"
clientapp = "client.app:app"

[tool.flwr.app.config]
run-dir = ""
sites = ""
"""


def write_bundle(folder: Path, config_digest: str, manifest_digest: str) -> Path:
    """Write the app folder of one campaign below `folder` and return it; the same digests give the same bytes."""
    app = folder / config_digest[:16] / APP_NAME
    app.mkdir(parents=True, exist_ok=True)
    ours = version("wardround")
    (app / "pyproject.toml").write_text(_PYPROJECT.format(name=APP_NAME, version=ours, publisher=PUBLISHER))
    manifest = {"config_digest": config_digest, "manifest_digest": manifest_digest, "wardround": ours}
    (app / "manifest.json").write_text(json.dumps(manifest, indent=1, sort_keys=True) + "\n")
    return app


def write_run_config(path: Path, run_dir: str, sites: tuple[str, ...]) -> Path:
    """The run's own values, as a TOML file. `run_dir` is relative to the coordinator's folder: sites can read it."""
    path.write_text(f"run-dir = {json.dumps(run_dir)}\nsites = {json.dumps(','.join(sites))}\n")
    return path
