"""`wardround-coordinator`: what the leader of a federation runs. Arguments in; one-line reasons and exit codes out.

Exit codes (shared/errors.py): 0 done, 2 wrong use or config, 3 refused, 4 no answer, 5 bad data.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table

from server import cli_audit, cli_rest, cli_sites, folder
from server.audit import record, record_refusal
from server.terminal import OUT, command, now
from shared.config import CampaignConfig, ReleaseConfig, campaign_digest, load
from shared.errors import ConfigError, WardroundError
from shared.trust.vault import vault_of

if TYPE_CHECKING:
    from rich.progress import Progress

    from server.records import RoundRecord
    from server.submit import Submitted

_LISTED = ("name", "version", "made_at", "campaign_digest", "architecture_digest")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; the return value is the exit code."""
    arguments = _arguments(argv)
    try:
        return int(arguments.command(arguments))
    except WardroundError as error:
        record_refusal(arguments, error)
        if arguments.debug:
            raise
        print(f"wardround-coordinator: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    except Exception as error:  # the last door: no traceback for who did not ask for one
        if arguments.debug:
            raise
        print(
            f"wardround-coordinator: internal error ({type(error).__name__}); run again with --debug", file=sys.stderr
        )
        return 1


# ------------------------------------------------------------------------------------------- commands


def _init(arguments: argparse.Namespace) -> int:
    hosts = tuple(host.strip() for host in arguments.host.split(",") if host.strip())
    made = folder.found(arguments.folder, arguments.name, hosts, arguments.port, now())
    record(made, "admin.init", federation=made.name, hosts=", ".join(made.hosts), port=made.port)
    OUT.print(f"Federation {made.name} is founded; its certificate is for {', '.join(made.hosts)}.")
    OUT.print(f"Invitations carry its authority; a site that is added without one needs the file {made.authority}")
    return 0


def _serve(arguments: argparse.Namespace) -> int:
    from server.serve import serve

    coordinator = folder.read(arguments.folder)
    port = arguments.port or coordinator.port
    vault_of(coordinator.folder)  # asks for the passphrase now, once, where there is one
    record(coordinator, "admin.serve_started", bind=arguments.bind, port=port)
    try:
        serve(
            coordinator,
            port=port,
            bind=arguments.bind,
            exposed=arguments.dangerously_expose_control,
            say=OUT.print,
            with_gateway=arguments.gateway,
        )
    finally:
        record(coordinator, "admin.serve_stopped")
    return 0


def _campaign_new(arguments: argparse.Namespace) -> int:
    from server.manifests import composed, make_manifest, named_sites
    from server.shelf import publish

    coordinator = folder.read(arguments.folder)
    sites = named_sites(coordinator, [site.strip() for site in arguments.sites.split(",") if site.strip()])
    campaign = composed(arguments.overrides, len(sites))
    if arguments.out.exists():
        raise ConfigError(f"{arguments.out.name} exists already; a campaign that was handed out never changes")
    signed = make_manifest(coordinator, campaign, sites, now())
    try:
        arguments.out.write_bytes(signed.to_json())
    except OSError:
        raise ConfigError(f"{arguments.out.name} cannot be written there; choose another --out") from None
    try:
        publish(coordinator, campaign.name, signed.to_json())
    except WardroundError:
        arguments.out.unlink()
        raise
    digest = signed.manifest.config_digest
    to = ", ".join(sites)
    record(coordinator, "campaign.made", campaign=campaign.name, digest=digest, manifest=signed.digest, sites=to[:4000])
    OUT.print(f"Campaign {campaign.name} for {to}, signed, in {arguments.out}; digest {digest}")
    OUT.print(f"Secure aggregation: {signed.manifest.secagg}")
    OUT.print(f"Privacy: {signed.manifest.privacy}")
    for line in _expected(campaign, len(sites)):
        OUT.print(line, markup=False)
    OUT.print("Every site reads and approves this file: wardround-site approve DIR FILE")
    return 0


def _expected(campaign: CampaignConfig, sites: int) -> list[str]:
    """How an update will stand out of its noise, for sites of some sizes: the coordinator does not know theirs yet."""
    if not campaign.privacy.on:
        return []
    from shared.networks import build_networks
    from shared.privacy.parts import trained_counts
    from shared.privacy.words import EXAMPLES, expected

    sizes = EXAMPLES if campaign.privacy.kind == "patient" else (1,) * sites
    return expected(campaign, trained_counts(build_networks(campaign), campaign), sizes).splitlines()


def _run(arguments: argparse.Namespace) -> int:
    return _submit(arguments, resume=False)


def _resume(arguments: argparse.Namespace) -> int:
    return _submit(arguments, resume=True)


def _submit(arguments: argparse.Namespace, *, resume: bool) -> int:
    from server.journal import in_words
    from server.manifests import own_manifest
    from server.processes import reach
    from server.submit import follow, submit

    coordinator = folder.read(arguments.folder)
    signed = own_manifest(coordinator, arguments.campaign, now())
    campaign = signed.campaign
    reach(coordinator)
    submitted = submit(coordinator, signed, resume=resume)
    event, to = "campaign.resubmitted" if resume else "campaign.submitted", ", ".join(submitted.sites)
    record(coordinator, event, campaign=campaign.name, digest=campaign_digest(campaign), sites=to[:4000])
    OUT.print(f"Campaign {campaign.name} is submitted to {', '.join(submitted.sites)}; files in {submitted.run_dir}")
    with _progress() as progress:
        bar = progress.add_task("rounds", total=submitted.turns)
        progress.update(bar, completed=len(submitted.known))

        def show(record: RoundRecord) -> None:
            progress.console.print(_round_line(record, submitted))
            progress.advance(bar)

        def tell(event: Mapping[str, Any]) -> None:
            words = in_words(event)
            if words:
                progress.console.print(words)

        follow(coordinator, submitted, show, tell)
    OUT.print(f"Completed. Report: wardround-coordinator report {submitted.run_dir}")
    return 0


def _round_line(record: RoundRecord, submitted: Submitted) -> str:
    """The closing evaluation judges the final weights and is numbered after the last round."""
    from server.records import is_closing

    name = "closing evaluation" if is_closing(record) else f"round {record['round']}"
    name = f"{record['phase']}, {name}" if "phase" in record else name
    dropped = "; ".join(f"{site} missing: {reason}" for site, reason in record.get("dropped", {}).items())
    line = f"{name}: {len(record['participants'])} of {len(submitted.sites)} sites, {record['seconds']:.1f} s"
    return f"{line}; {dropped}" if dropped else line


def _status(arguments: argparse.Namespace) -> int:
    from server.serve import status

    state = status(folder.read(arguments.folder), now())
    if arguments.json:
        print(json.dumps(state, indent=1))
        return 0
    served = "served" if state["serving"] else "not served"
    table = Table("", "name", "state", title=f"Federation {state['federation']}: {served}")
    for name, entry in state["processes"].items():
        table.add_row("process", name, f"{'runs' if entry['alive'] else 'starting again'}, {entry['starts']} starts")
    for site, word in state["sites"].items():
        table.add_row("site", site, word)
    for name, run in state["runs"].items():
        table.add_row("run", name, f"{run['rounds_done']} of {run['rounds']} rounds, {run['state']} {run['reason']}")
    OUT.print(table)
    OUT.print(f"Server certificate: {state['certificate_days']} days left; serve renews it in its last 30.")
    for site, days in state["site_certificate_days"].items():
        OUT.print(f"Certificate of {site}: {days if isinstance(days, str) else f'{days} days left'}")
    return 0


def _report(arguments: argparse.Namespace) -> int:
    from server.report import write_report

    OUT.print(f"Written: {write_report(arguments.run_dir)}")
    return 0


def _export(arguments: argparse.Namespace) -> int:
    from server.export import comparison_shown, export_bundle, export_generator, export_network

    if arguments.bundle is not None:
        names = export_bundle(arguments.run_dir, arguments.bundle)
        OUT.print(f"Written: {arguments.bundle}, a MONAI bundle: {', '.join(names)}")
        return 0
    if arguments.file is None:
        raise ConfigError("export what to? give FILE for a network, or --bundle FOLDER for all of a release")
    if arguments.network == "generator":
        made = export_generator(arguments.run_dir, arguments.file)
        OUT.print(f"Written: {arguments.file}, the generator of {made.campaign}: {', '.join(made.networks)}")
        OUT.print(f"Another campaign starts from it with generate.start={arguments.file}")
        return 0
    done = export_network(arguments.run_dir, arguments.file, arguments.network)
    outputs = ", ".join(done.written.outputs)
    OUT.print(f"Written: {arguments.file}, the {done.network} of {done.campaign} {done.state}")
    OUT.print(f"Outputs: {outputs}; what they mean and how images are prepared stands in the file's metadata.")
    OUT.print(comparison_shown(done.written.comparison))
    return 0


def _release(arguments: argparse.Namespace) -> int:
    from server.release import make_release
    from shared.acceptance import Gate
    from shared.gate_table import LEGEND, terminal_tables

    coordinator = folder.read(arguments.folder)
    config = load("release", arguments.overrides, ReleaseConfig)
    made = make_release(
        coordinator,
        arguments.run_dir,
        arguments.out,
        config,
        now(),
        name=arguments.name,
        reference=arguments.reference,
    )
    record(coordinator, "release.made", release=made.manifest.name, version=made.manifest.version, digest=made.digest)
    for table in terminal_tables([Gate(**gate) for gate in made.manifest.gates], OUT.width):
        OUT.print(table)
    OUT.print(LEGEND)
    OUT.print(f"Written: {arguments.out}, {made.manifest.name} v{made.manifest.version}; release digest {made.digest}")
    OUT.print("Every site verifies and installs it: wardround-site install DIR FILE")
    return 0


def _releases(arguments: argparse.Namespace) -> int:
    from server.release import made_releases

    made = made_releases(folder.read(arguments.folder))
    if arguments.json:
        shown = [{**{key: getattr(each, key) for key in _LISTED}, "digest": each.digest} for each in made]
        print(json.dumps(shown, indent=1))
        return 0
    if not made:
        OUT.print("No release yet; make one of a run that is over: wardround-coordinator release DIR RUN_DIR OUT")
        return 0
    for each in made:  # lines, not a table: digests are there to be compared whole
        OUT.print(f"{each.name} v{each.version}, {each.made_at}, of {', '.join(each.sites)}; digest {each.digest}")
    return 0


# ------------------------------------------------------------------------------------------- arguments


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """KEY=VALUE words may stand anywhere; argparse gives up on those that follow an option."""
    parser = _parser()
    arguments, rest = parser.parse_known_args(argv)
    if rest and (not hasattr(arguments, "overrides") or any(word.startswith("-") for word in rest)):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:
        arguments.overrides = [*arguments.overrides, *rest]
    return arguments


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="wardround-coordinator", description="Lead a Wardround federation.")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    init = command(commands, "init", _init, "found a federation in a new folder")
    init.add_argument("--name", required=True)
    init.add_argument("--host", default="127.0.0.1", metavar="NAME[,NAME]", help="names that sites dial")
    init.add_argument("--port", type=int, default=folder.DEFAULT_PORT)

    serve = command(commands, "serve", _serve, "serve the federation in the foreground")
    serve.add_argument("--port", type=int, help="default: the one given to init")
    serve.add_argument("--bind", default="127.0.0.1", metavar="ADDRESS")
    serve.add_argument("--gateway", action="store_true", help="run nginx too, as `gateway` configured it")
    serve.add_argument(
        "--dangerously-expose-control",
        action="store_true",
        help="allow --bind beyond loopback: everyone who reaches the port can start runs at all sites",
    )

    campaign = commands.add_parser("campaign", help="compose and sign a campaign file")
    new = command(campaign.add_subparsers(required=True, metavar="ACTION"), "new", _campaign_new, "compose one")
    new.add_argument("--out", required=True, type=Path, metavar="FILE")
    new.add_argument("--sites", default="", metavar="A,B,C", help="default: every admitted site")
    new.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="as for wardround-simulate: experiment=NAME ...")

    for name, run, text in (
        ("run", _run, "submit a campaign and follow it"),
        ("resume", _resume, "go on with a campaign at the round that was lost"),
    ):
        one = command(commands, name, run, text)
        one.add_argument("campaign", type=Path, metavar="FILE", help="as `campaign new` signed it, with its sites")

    command(commands, "status", _status, "processes, sites, runs").add_argument("--json", action="store_true")
    report = commands.add_parser("report", help="write report.html and report.json of a run")
    report.add_argument("run_dir", type=Path, metavar="RUN_DIR")
    report.set_defaults(command=_report)
    release = command(commands, "release", _release, "sign the weights of a run that is over, if its gates hold")
    release.add_argument("run_dir", type=Path, metavar="RUN_DIR", help="of a coordinator or of wardround-simulate")
    release.add_argument("out", type=Path, metavar="OUT", help="the .release file that sites install")
    release.add_argument("--name", help="default: the campaign's; versions count up per name")
    release.add_argument("--reference", type=Path, metavar="FILE", help="images that no adaptation may get worse on")
    release.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="limits of the gates: erased=0.1 ...")
    command(commands, "releases", _releases, "every release that was made here").add_argument(
        "--json", action="store_true"
    )
    export = commands.add_parser("export", help="write a network of a run or of a release as a file")
    export.add_argument(
        "run_dir", type=Path, metavar="SOURCE", help="run folder (of a coordinator or simulation), or a .release file"
    )
    export.add_argument("file", type=Path, nargs="?", metavar="FILE", help="ONNX; of a generator safetensors")
    export.add_argument("--bundle", type=Path, metavar="FOLDER", help="all of a release, as a MONAI bundle")
    export.add_argument("--network", choices=("recogniser", "enhancer", "generator"), default="recogniser")
    export.set_defaults(command=_export)
    for further in (cli_sites, cli_audit, cli_rest):
        further.add(commands)
    return parser


def _progress() -> Progress:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn

    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    return Progress(*columns, TimeRemainingColumn(), console=OUT)


if __name__ == "__main__":
    sys.exit(main())
