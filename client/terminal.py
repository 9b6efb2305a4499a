"""What every command of `wardround-site` writes with: the console, tables, progress, and a command's parser."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from rich.progress import Progress

OUT = Console(highlight=False, soft_wrap=True)


def two_columns(title: str) -> Table:
    """Nothing is cut off: digests are there to be compared."""
    table = Table(show_header=False, title=title, show_lines=True)
    table.add_column()
    table.add_column(overflow="fold")
    return table


def command(commands: Any, name: str, run: object, text: str) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(name, help=text, description=text)
    parser.add_argument("folder", type=Path, metavar="DIR", help="the site's folder")
    parser.set_defaults(command=run)
    return parser


def json_option(command: argparse.ArgumentParser) -> None:
    command.add_argument("--json", action="store_true", help="for programs")


def progress() -> Progress:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    # Into a file, rich would leave an empty line before the reason of an error.
    return Progress(*columns, console=console, disable=not console.is_terminal)
