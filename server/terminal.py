"""What every command of `wardround-coordinator` writes with: the console, and a command's parser."""

from __future__ import annotations

import argparse
import datetime as dt
from pathlib import Path
from typing import Any

from rich.console import Console

OUT = Console(highlight=False, soft_wrap=True)


def command(commands: Any, name: str, run: object, text: str) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(name, help=text, description=text)
    parser.add_argument("folder", type=Path, metavar="DIR", help="the coordinator's folder")
    parser.set_defaults(command=run)
    return parser


def now() -> dt.datetime:
    return dt.datetime.now(dt.UTC)
