"""`wardround-site`: what a hospital's imaging engineer runs. Arguments in; one-line reasons and exit codes out.

Exit codes (shared/errors.py): 0 done, 2 wrong use or config, 3 refused, 4 no answer, 5 bad data.
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.markup import escape
from rich.table import Table

from client import (
    approvals,
    cli_approve,
    cli_audit,
    cli_budget,
    cli_enhance,
    cli_join,
    cli_pacs,
    cli_personal,
    cli_policy,
    cli_releases,
    cli_rights,
    folder,
)
from client.audit import record, record_refusal
from client.rules import has_left
from client.site import load_site
from client.terminal import OUT, command, json_option, progress, two_columns
from shared.config import load_campaign
from shared.errors import ConfigError, DataError, RefusedError, WardroundError
from shared.trust import keystore, vault

if TYPE_CHECKING:
    from rich.progress import TaskID

    from client.generate.arrived import Arrived
    from client.generate.manifest import KeptSet


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; the return value is the exit code."""
    arguments = _parser().parse_args(argv)
    try:
        return int(arguments.command(arguments))
    except WardroundError as error:
        record_refusal(arguments, error)
        if arguments.debug:
            raise
        print(f"wardround-site: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    except Exception as error:  # the last door: no traceback for who did not ask for one
        if arguments.debug:
            raise
        print(f"wardround-site: internal error ({type(error).__name__}); run again with --debug", file=sys.stderr)
        return 1


# ------------------------------------------------------------------------------------------- commands


def _init(arguments: argparse.Namespace) -> int:
    key_file = cli_rights.checked_key_options(arguments) if arguments.encrypt else None
    public = folder.create(arguments.folder, arguments.name, arguments.coordinator, arguments.ca)
    if arguments.encrypt:
        vault.create(arguments.folder, key_file)
    record(folder.read(arguments.folder), "admin.init", site=arguments.name, coordinator=arguments.coordinator,
           encrypted=arguments.encrypt)  # fmt: skip
    OUT.print(f"Site {arguments.name} is made. Send this file to the coordinator: {public}")
    OUT.print(f"and read this out to them by telephone: {keystore.fingerprint(keystore.read_public_line(public))}")
    OUT.print("The private key beside it never leaves this folder.")
    return 0


def _ingest(arguments: argparse.Namespace) -> int:
    site = folder.read(arguments.folder)
    campaign = load_campaign(arguments.campaign)
    masks, diagnoses = _labels(arguments)
    if arguments.pacs == (arguments.source is not None):
        raise ConfigError("ingest takes either SOURCE, a folder with DICOM files, or --pacs")
    if arguments.pacs:
        return cli_pacs.ingest_from_pacs(arguments, site, campaign, masks, diagnoses)
    from client.ingest.run import ingest

    with progress() as shown:
        bars: dict[str, TaskID] = {}

        def advance(stage: str, done: int, total: int) -> None:
            if stage not in bars:
                bars[stage] = shown.add_task(stage, total=total)
            shown.update(bars[stage], completed=done, total=total)

        secret = keystore.read_private(site.secret)
        report = ingest(
            arguments.source,
            site.store,
            campaign.data,
            secret=secret,
            mask_codes=masks,
            diagnosis_codes=diagnoses,
            on_progress=advance,
        )
    table = Table("outcome", "reason", "count", title="Ingest")
    for row in report.table():
        table.add_row(*(str(cell) for cell in row))
    record(site, "store.ingested", campaign=campaign.name, files=report.files,
           series_new=report.series_new, series_updated=report.series_updated, patients=report.patients)  # fmt: skip
    OUT.print(table)
    if not any(row[0] in ("stored", "already stored", "used as label") for row in report.table()):
        OUT.print("Nothing in this folder was taken; is it the one that holds the DICOM files?")
    return 0


def _generators(arguments: argparse.Namespace) -> int:
    from client.generate.arrived import arrived

    rows = arrived(load_site(arguments.folder / "site.json").generators)
    if arguments.json:
        print(json.dumps([_of_generator(one) for one in rows], indent=1))
        return 0
    table = Table("campaign", "arrived at", "MB", "whole", title="Generators at this site")
    table.add_column("digest", overflow="fold")
    for one in rows:
        whole = "yes" if not one.missing else f"waits for {', '.join(one.missing)}"
        table.add_row(one.campaign.name, one.arrived_at, f"{one.size_bytes / 1e6:.1f}", whole, one.digest)
    OUT.print(table if rows else "No generator has arrived at this site.")
    return 0


def _generate(arguments: argparse.Namespace) -> int:
    from client.generate.arrived import named

    setup = load_site(arguments.folder / "site.json")
    one = named(setup.generators, arguments.campaign)
    if one.missing:
        raise DataError(
            f"the generator of campaign {one.campaign.name} still waits for {', '.join(one.missing)}; its phases are "
            "not over"
        )
    from client.generate.now import kept_or_drawn

    with progress() as shown:
        bar = shown.add_task("images", total=None)
        kept = kept_or_drawn(
            setup,
            one.campaign,
            variants=arguments.variants,
            pictures=arguments.pictures,
            on_progress=lambda done, total: shown.update(bar, completed=done, total=total),
        )
    _print_set(kept)
    if kept.report["refused"]:
        raise RefusedError(f"not used: {kept.report['reason']}")
    if arguments.pictures is not None:
        OUT.print(f"Pictures, with patients' images beside them, for this site alone: {arguments.pictures}")
    return 0


def _synthetic(arguments: argparse.Namespace) -> int:
    from client.generate.manifest import kept_sets, remove_set

    site = folder.read(arguments.folder)
    store = site.store
    if arguments.remove is not None:
        removed = remove_set(store, arguments.remove)
        record(site, "synthetic.removed", digest=removed)
        OUT.print(f"Removed: {removed}")
        return 0
    sets = kept_sets(store)
    if arguments.json:
        print(json.dumps([dict(one.manifest) for one in sets], indent=1))
        return 0
    for one in sets:
        _print_set(one)
    if not sets:
        OUT.print("No synthetic images at this site; draw some with: wardround-site generate")
    return 0


def _run(arguments: argparse.Namespace) -> int:
    from client import daemon

    site = folder.read(arguments.folder)
    if has_left(site.folder):
        raise RefusedError(f"site {site.name} has left the federation; a new site is made in a new folder")
    given = approvals.approvals(site.approvals)
    OUT.print(
        f"Site {site.name} runs; coordinator {site.coordinator}; campaigns approved: {len(given)}. Ctrl-C stops it."
    )
    vault.vault_of(site.folder)  # asks for the passphrase now, once, where there is one
    record(site, "admin.run_started", coordinator=site.coordinator, approved=len(given))
    try:
        daemon.run(site, OUT.print)
    finally:
        record(site, "admin.run_stopped")
    return 0


def _check(arguments: argparse.Namespace) -> int:
    from client.check import check_pacs, check_site

    site = folder.read(arguments.folder)
    rows = check_pacs(site) if arguments.what == "pacs" else check_site(site, dt.datetime.now(dt.UTC))
    table = Table("", "what", "answer", title="Is this site ready?")
    for row in rows:
        table.add_row("ok" if row.exit_code == 0 else "NO", row.what, row.answer)
    OUT.print(table)
    missing = [row for row in rows if row.exit_code]
    if missing:
        print(f"wardround-site: not ready: {missing[0].what}: {missing[0].answer}", file=sys.stderr)
    return missing[0].exit_code if missing else 0


def _status(arguments: argparse.Namespace) -> int:
    from client.daemon import status

    state = status(folder.read(arguments.folder))
    if arguments.json:
        print(json.dumps(state, indent=1))
        return 0
    table = two_columns(f"Site {state['site']}")
    table.add_row("coordinator", state["coordinator"])
    table.add_row("running", "yes" if state["running"] else "no; start it with: wardround-site run")
    for name, process in state["processes"].items():
        last = "" if process["last_exit"] is None else f", last exit {process['last_exit']}"
        table.add_row(name, f"{'runs' if process['alive'] else 'stopped'}, starts: {process['starts']}{last}")
    if state["certificate_days"] is not None:
        table.add_row("certificate", f"{state['certificate_days']} days left; `run` renews it in the last third")
    for digest, campaign in state["approved"].items():
        table.add_row("approved", f"{campaign} ({digest})")
    if (release := state["release"]) is not None:
        adapted = "adapted here" if release.get("personal") else "as released"
        whole = f"{release['name']} v{release['version']} ({release['digest']}), {adapted}" if "name" in release else ""
        table.add_row("release", whole or f"damaged: {release['damaged']}")
    OUT.print(table)
    return 0


def _of_generator(one: Arrived) -> dict[str, Any]:
    return {
        "digest": one.digest,
        "campaign": one.campaign.name,
        "arrived_at": one.arrived_at,
        "size_bytes": one.size_bytes,
        "missing": list(one.missing),
    }


def _print_set(one: KeptSet) -> None:
    """Counts, and what the guards measured."""
    report, manifest = one.report, one.manifest
    table = two_columns(f"Synthetic images of campaign {escape(manifest['name'])}")
    table.add_row("digest", one.digest)
    table.add_row("drawn at", manifest["drawn_at"])
    used = f"{manifest['counts']['images']} for {manifest['counts']['slices']} training slices"
    table.add_row("images", "none: refused" if report["refused"] else used)
    for name, row in report["classes"].items():
        lent = f", {row['relabelled']} over masks of other diagnoses" if row["relabelled"] else ""
        table.add_row(f"diagnosis {escape(name)}", f"{row['used']} used of {row['asked']} drawn{lent}")
    share, limit = report["memorised_share"], report["memorised_limit"]
    table.add_row("copies of training images", f"{100 * share:.1f} % (limit {100 * limit:.1f} %)")
    told = report["nearness"].get("membership_auc")
    if told is not None:
        table.add_row("training told from held-out patients", f"in {100 * told:.0f} % of pairs (50 %: not at all)")
    table.add_row("rejected by the quality filter", f"{100 * report['rejected_share']:.0f} %")
    if report["mask_dice"] is not None:
        table.add_row("Dice of masks found in them", f"{report['mask_dice']:.2f}")
    for note in report["notes"]:
        table.add_row("note", escape(note))
    OUT.print(table)


# ------------------------------------------------------------------------------------------- arguments


def _labels(arguments: argparse.Namespace) -> tuple[dict[str, int], dict[str, str]]:
    """Label codes from --labels FILE, overridden by --masks and --diagnoses."""
    masks: dict[str, int] = {}
    diagnoses: dict[str, str] = {}
    if arguments.labels is not None:
        try:
            values = json.loads(arguments.labels.read_text())
            masks = {str(name): int(code) for name, code in values.get("mask_codes", {}).items()}
            diagnoses = {str(word): str(name) for word, name in values.get("diagnosis_codes", {}).items()}
        except (OSError, ValueError, AttributeError, TypeError):
            raise ConfigError(
                f'--labels {arguments.labels.name}: expected JSON {{"mask_codes": {{name: code}}, "diagnosis_codes": '
                "{word: name}}"
            ) from None
    masks |= {name: _integer("--masks", code) for name, code in _pairs("--masks", arguments.masks).items()}
    return masks, diagnoses | dict(_pairs("--diagnoses", arguments.diagnoses))


def _pairs(option: str, texts: Sequence[str]) -> Mapping[str, str]:
    for text in texts:
        if not all(text.partition("=")):
            raise ConfigError(f"{option} takes NAME=VALUE, got {text!r}")
    return {left: right for left, _, right in (text.partition("=") for text in texts)}


def _integer(option: str, text: str) -> int:
    if not text.isdecimal():
        raise ConfigError(f"{option} takes NAME=CODE with a whole number as code, got {text!r}")
    return int(text)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="wardround-site", description="One hospital's part in a Wardround federation."
    )
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    init = command(commands, "init", _init, "make this site's folder, key pair and secret")
    init.add_argument("--name", required=True, help="the site's name in the federation")
    init.add_argument("--coordinator", required=True, metavar="HOST:PORT")
    init.add_argument("--ca", required=True, type=Path, metavar="CA.CRT", help="the federation's certificate")
    init.add_argument("--encrypt", action="store_true", help="with --key-file or --passphrase: an encrypted store")
    cli_rights.add_key_options(init)

    ingest = command(commands, "ingest", _ingest, "de-identify a folder of DICOM files into this site's store")
    ingest.add_argument("source", type=Path, nargs="?", metavar="SOURCE", help="the folder with the DICOM files")
    ingest.add_argument("--campaign", required=True, type=Path, help="whose rule the store follows")
    ingest.add_argument("--masks", nargs="*", default=[], metavar="NAME=CODE", help="this site's segment numbers")
    ingest.add_argument("--diagnoses", nargs="*", default=[], metavar="WORD=NAME", help="this site's words")
    ingest.add_argument("--labels", type=Path, metavar="FILE", help="the same two as JSON (site.json of a simulation)")
    cli_pacs.add_ingest_options(ingest)

    json_option(command(commands, "generators", _generators, "generators of images that arrived here"))
    generate = command(commands, "generate", _generate, "draw synthetic images from this site's training masks, now")
    generate.add_argument("--campaign", required=True, metavar="NAME|DIGEST", help="as `generators` shows it")
    variants = "images per slice; another number than the campaign's makes a set that its training does not use"
    generate.add_argument("--variants", type=int, metavar="K", help=variants)
    generate.add_argument("--pictures", type=Path, metavar="FOLDER", help="slices and synthetic images as a PNG file")
    synthetic = command(commands, "synthetic", _synthetic, "synthetic images at this site, and what the guards say")
    synthetic.add_argument("--remove", metavar="DIGEST", help="remove a set instead")
    json_option(synthetic)
    command(commands, "run", _run, "serve this site in the foreground (outbound connections only)")
    check = command(commands, "check", _check, "keys, certificate, coordinator, store, approvals, PACS")
    check.add_argument("what", nargs="?", choices=("pacs",), help="only this")
    json_option(command(commands, "status", _status, "processes and approvals"))
    for further in (
        cli_join,
        cli_approve,
        cli_policy,
        cli_releases,
        cli_personal,
        cli_enhance,
        cli_pacs,
        cli_audit,
        cli_budget,
        cli_rights,
    ):
        further.add(commands)
    return parser


if __name__ == "__main__":
    sys.exit(main())
