"""Real processes on loopback: a coordinator and three sites train, lose a site, lose the coordinator, and go on.

Everything runs through the two command lines, as people run it. The story stands in one place because starting four
programs costs half a minute; every sentence of it is a test of its own, in order.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from safetensors.numpy import load_file

import client.cli
import server.cli
from client.generate.arrived import NETWORKS as GENERATOR_NETWORKS
from client.site import load_site
from server.records import all_records, read_records
from shared.config import SimulationConfig, load
from shared.reach import free_port
from shared.supervise import read_record

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

SITES = ("north", "south", "west")
CLIENTAPP = "Start `flwr-clientapp` process"
TINY = [
    "experiment=phantom", "sites=3", "hospitals.slices=4", "seed=0",
    "rounds=2", "training.local_steps=4", "training.batch_size=4",
    "round.quorum=2", "round.grace_s=25", "round.join_deadline_s=90", "round.round_deadline_s=120",
]  # fmt: skip
VISIBLE = ["secagg=visible_updates"]  # a site may be killed in mid-round, and two of three go on
MASKED = ["name=unseen", "rounds=1", "training.local_steps=2", "round.quorum=3"]
DRAWERS = ("north", "south")
PHASES = ("autoencoder", "denoiser", "controlnet")
IMAGES = [
    *TINY, *VISIBLE, "name=images", "round.grace_s=300", "round.join_deadline_s=300", "round.round_deadline_s=600",
    "generate=emit-diff", "generate.draw.variants=1", "generate.draw.steps=1", "generate.draw.memorised_share=1",
    *(f"generate.{phase}.{length}" for phase in PHASES for length in ("rounds=1", "local_steps=2", "batch_size=4")),
]  # fmt: skip


@dataclass
class Federation:
    """The folders of everybody, and the programs that this test started."""

    root: Path
    started: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    @property
    def coordinator(self) -> Path:
        return self.root / "coordinator"

    @property
    def run_dir(self) -> Path:
        return self.coordinator / "runs" / "story"

    @property
    def drawn(self) -> Path:
        """Run folder of the campaign that trains a generator."""
        return self.coordinator / "runs" / "images"

    def site(self, name: str) -> Path:
        return self.root / name

    def start(self, key: str, program: str, *arguments: str) -> subprocess.Popen[bytes]:
        with (self.root / f"{key}.out").open("ab") as output:
            process = subprocess.Popen(
                (sys.executable, "-m", program, *arguments), stdout=output, stderr=output, start_new_session=True
            )
        self.started[key] = process
        return process

    def serve(self) -> None:
        self.start("coordinator", "server.cli", "serve", str(self.coordinator))

    def run_site(self, name: str) -> None:
        self.start(name, "client.cli", "run", str(self.site(name)))

    def output(self, key: str) -> str:
        return (self.root / f"{key}.out").read_text()

    def launches(self, site: str) -> int:
        """How many messages a site has been given so far."""
        return (self.site(site) / "logs" / "superexec.log").read_text().count(CLIENTAPP)

    def kill(self, key: str, folder: Path) -> list[int]:
        """kill -9 of the supervisor, its programs and their children, by pid; returns the pids."""
        programs = [entry["pid"] for entry in read_record(folder)["programs"].values() if entry["pid"]]
        victims = [psutil.Process(self.started[key].pid), *map(psutil.Process, programs)]
        victims += [child for victim in victims[1:] for child in victim.children(recursive=True)]
        for victim in victims:
            with contextlib.suppress(psutil.NoSuchProcess):  # one that was just ending by itself
                victim.send_signal(signal.SIGKILL)
        psutil.wait_procs(victims[1:], timeout=10)
        self.started.pop(key).wait(10)
        return [victim.pid for victim in victims]

    def clean_up(self) -> None:
        for process in self.started.values():
            process.terminate()
        for process in self.started.values():
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
        for folder in (self.coordinator, *map(self.site, (*SITES, "stranger"))):
            for entry in read_record(folder)["programs"].values():
                if entry["alive"]:
                    os.killpg(entry["pid"], signal.SIGKILL)


def wait_for(what: str, condition: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited {seconds:g} s in vain: {what}"
        time.sleep(0.2)


def ok(code: int) -> None:
    assert code == 0


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Federation]:
    made = Federation(tmp_path_factory.mktemp("federation"))
    try:
        provision(made)
        yield made
    finally:
        made.clean_up()


def provision(federation: Federation) -> None:
    """What the coordinator and each site operator type in their first ten minutes."""
    from simulation.hospitals import write_hospitals

    root, folder = federation.root, str(federation.coordinator)
    port = free_ports()
    hospitals = write_hospitals(load("simulation", TINY, SimulationConfig), root / "hospitals")
    ok(server.cli.main(["init", folder, "--name", "test", "--host", "127.0.0.1", "--port", str(port)]))
    federation.serve()
    authority = str(federation.coordinator / "ca" / "ca.crt")
    for name in SITES:
        site = str(federation.site(name))
        ok(client.cli.main(["init", site, "--name", name, "--coordinator", f"127.0.0.1:{port}", "--ca", authority]))
        ok(server.cli.main(["add-site", folder, name, f"{site}/key.json"]))
    for name, more in (("story", VISIBLE), ("unread", [*VISIBLE, "round.join_deadline_s=30"]), ("unseen", MASKED)):
        file = str(root / f"{name}.json")
        ok(server.cli.main(["campaign", "new", folder, "--out", file, *TINY, f"name={name}", *more]))
    for name, hospital in zip(SITES, hospitals, strict=True):
        site = str(federation.site(name))
        source = ["ingest", site, str(hospital), "--campaign", str(root / "story.json")]
        ok(client.cli.main([*source, "--labels", str(hospital / "site.json")]))
        assert client.cli.main(["approve", site, str(root / "story.json"), "--yes"]) == 3  # visible, and nobody said so
        ok(client.cli.main(["approve", site, str(root / "story.json"), "--yes", "--allow-visible-updates"]))
        ok(client.cli.main(["approve", site, str(root / "unseen.json"), "--yes"]))
        federation.run_site(name)
    stranger = str(federation.site("stranger"))
    ok(client.cli.main(["init", stranger, "--name", "north", "--coordinator", f"127.0.0.1:{port}", "--ca", authority]))


def free_ports() -> int:
    """A port that is free with the two above it, where enrolment is served."""
    while True:
        port = free_port()
        with contextlib.ExitStack() as bound:
            try:
                for number in (port, port + 1, port + 2):
                    bound.enter_context(socket.socket()).bind(("127.0.0.1", number))
            except (OSError, OverflowError):
                continue
            return port


def status(federation: Federation, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    capsys.readouterr()
    assert server.cli.main(["status", str(federation.coordinator), "--json"]) == 0
    state: dict[str, Any] = json.loads(capsys.readouterr().out)
    return state


def test_admitted_sites_come_online(federation: Federation, capsys: pytest.CaptureFixture[str]) -> None:
    wait_for("the coordinator serves", lambda: "is served" in federation.output("coordinator"), 60)
    online = dict.fromkeys(SITES, "online")
    wait_for("three sites online", lambda: status(federation, capsys)["sites"] == online, 180)
    for name in SITES:
        assert client.cli.main(["check", str(federation.site(name))]) == 0


def test_a_key_that_was_never_admitted_is_turned_away(
    federation: Federation, capsys: pytest.CaptureFixture[str]
) -> None:
    federation.run_site("stranger")
    log = federation.site("stranger") / "logs" / "supernode.log"
    wait_for("the stranger is refused", lambda: log.exists() and "Failed to activate" in log.read_text(), 60)
    federation.started["stranger"].terminate()
    assert federation.started.pop("stranger").wait(30) == 0
    assert "SuperNode ID" not in log.read_text()
    assert len(json.loads((federation.coordinator / "flower" / "sites.json").read_text())) == len(SITES)


def test_a_campaign_that_no_site_has_approved_ends_as_refused(federation: Federation) -> None:
    before = {name: federation.launches(name) for name in SITES}
    arguments = ("run", str(federation.coordinator), str(federation.root / "unread.json"))
    assert federation.start("unread", "server.cli", *arguments).wait(120) == 3
    assert "not approved here" in federation.output("unread")
    assert "Traceback" not in federation.output("unread")
    assert all(federation.launches(name) == before[name] + 1 for name in SITES)
    assert not list((federation.coordinator / "runs" / "unread").glob("checkpoints/*"))


def test_a_site_killed_in_mid_round_is_done_without_and_comes_back(federation: Federation) -> None:
    before = federation.launches("west")
    federation.start("run", "server.cli", "run", str(federation.coordinator), str(federation.root / "story.json"))
    wait_for("west works on round 1", lambda: federation.launches("west") == before + 2, 120)
    federation.kill("west", federation.site("west"))
    federation.run_site("west")
    wait_for("round 1 is done", lambda: len(read_records(federation.run_dir)) >= 1, 120)
    first = read_records(federation.run_dir)[0]
    assert first["participants"] == ["north", "south"]
    assert list(first["dropped"]) == ["west"]


def test_a_killed_coordinator_resumes_at_the_lost_round(
    federation: Federation, capsys: pytest.CaptureFixture[str]
) -> None:
    first = read_records(federation.run_dir)[0]
    assert len(read_records(federation.run_dir)) == 1, "the coordinator must be killed in round 2"
    federation.kill("coordinator", federation.coordinator)
    federation.started.pop("run").kill()
    federation.serve()
    wait_for("the coordinator serves again", lambda: federation.output("coordinator").count("is served") == 2, 60)
    arguments = ("resume", str(federation.coordinator), str(federation.root / "story.json"))
    assert federation.start("resume", "server.cli", *arguments).wait(240) == 0, federation.output("resume")
    records = read_records(federation.run_dir)
    assert [record["round"] for record in records] == [1, 2, 3]
    assert records[0] == first  # not trained a second time
    assert "going on after round 1" in federation.output("resume")
    # The killed site is back, with the same key and without being admitted again.
    assert records[1]["participants"] == sorted(SITES)
    state = status(federation, capsys)
    assert state["runs"]["story"] == {"rounds_done": 2, "rounds": 2, "state": "completed", "reason": ""}
    assert state["sites"] == dict.fromkeys(SITES, "online")


def test_a_masked_campaign_of_three_sites_is_trained_and_no_update_is_seen(federation: Federation) -> None:
    arguments = ("run", str(federation.coordinator), str(federation.root / "unseen.json"))
    assert federation.start("unseen", "server.cli", *arguments).wait(400) == 0, federation.output("unseen")
    run_dir = federation.coordinator / "runs" / "unseen"
    records = read_records(run_dir)
    assert [(record["round"], record["participants"]) for record in records] == [(1, sorted(SITES)), (2, sorted(SITES))]
    assert list(run_dir.glob("checkpoints/*"))
    for name in SITES:
        assert not list((federation.site(name) / "secagg").glob("*session*")), "a session outlived its round"


def test_a_paused_site_is_done_without_and_says_so(federation: Federation) -> None:
    """Of three sites that must all be there one is paused: the run ends with that site's reason, and nothing moved."""
    site = str(federation.site("north"))
    ok(client.cli.main(["pause", site]))
    file = str(federation.root / "paused.json")
    folder = str(federation.coordinator)
    more = ("name=paused", "rounds=1", "round.quorum=3", "round.join_deadline_s=60")
    ok(server.cli.main(["campaign", "new", folder, "--out", file, *TINY, *more]))
    for name in SITES:
        ok(client.cli.main(["approve", str(federation.site(name)), file, "--yes"]))
    assert federation.start("paused", "server.cli", "run", folder, file).wait(300) == 3, federation.output("paused")
    assert "north was paused by its operator" in federation.output("paused")
    assert not list((federation.coordinator / "runs" / "paused").glob("checkpoints/*"))
    ok(client.cli.main(["resume", site]))


def test_no_site_took_anything_from_a_bundle(federation: Federation) -> None:
    for name in SITES:
        assert not list((federation.site(name) / "flower").rglob("manifest.json"))
        assert not list((federation.site(name) / "flower").rglob("apps"))


def test_a_finished_run_is_not_started_over(federation: Federation) -> None:
    arguments = ("run", str(federation.coordinator), str(federation.root / "story.json"))
    assert federation.start("again", "server.cli", *arguments).wait(60) == 2
    assert "continue with resume" in federation.output("again")


def test_a_report_is_written_without_pictures(federation: Federation) -> None:
    assert server.cli.main(["report", str(federation.run_dir)]) == 0
    assert (federation.run_dir / "report.json").is_file()
    report = json.loads((federation.run_dir / "report.json").read_text())
    assert {row["setting"] for row in report["rows"]} >= {"degraded", "federated"}


@pytest.mark.timeout(1800)
def test_a_generator_is_trained_phase_by_phase_and_every_site_ends_with_all_of_it(
    federation: Federation, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, file = str(federation.coordinator), str(federation.root / "images.json")
    ok(server.cli.main(["campaign", "new", folder, "--out", file, "--sites", ",".join(DRAWERS), *IMAGES]))
    for name in DRAWERS:
        ok(client.cli.main(["approve", str(federation.site(name)), file, "--yes", "--allow-visible-updates"]))
    wait_for("the coordinator serves", lambda: "is served" in federation.output("coordinator"), 120)
    drawers = dict.fromkeys(DRAWERS, "online").items()
    wait_for("two sites online", lambda: drawers <= status(federation, capsys)["sites"].items(), 180)
    west = federation.launches("west")
    arguments = ("run", folder, file)
    assert federation.start("images", "server.cli", *arguments).wait(1500) == 0, federation.output("images")
    records = all_records(federation.drawn)
    assert federation.launches("west") == west, "a plan went to a site that the manifest does not name"
    assert [(record["phase"], record["round"]) for record in records] == [(name, r) for name in PHASES for r in (1, 2)]
    assert all(record["participants"] == sorted(DRAWERS) for record in records)
    assert not (federation.drawn / "rounds.jsonl").exists()
    for name in DRAWERS:
        (generator,) = load_site(federation.site(name) / "site.json").generators.iterdir()
        assert {path.stem for path in generator.glob("*.safetensors")} == {*GENERATOR_NETWORKS}


def test_the_coordinator_exports_the_generator_that_the_sites_hold(federation: Federation) -> None:
    file = federation.root / "generator.safetensors"
    assert server.cli.main(["export", str(federation.drawn), str(file), "--network", "generator"]) == 0
    exported = load_file(file)
    for name in DRAWERS:
        (generator,) = load_site(federation.site(name) / "site.json").generators.iterdir()
        held = {key: values for path in generator.glob("*.safetensors") for key, values in load_file(path).items()}
        assert exported.keys() == held.keys()
        assert all(np.array_equal(exported[key], held[key]) for key in held)


def test_the_report_of_a_generator_has_its_phases_and_speaks_of_no_recogniser(federation: Federation) -> None:
    assert server.cli.main(["report", str(federation.drawn)]) == 0
    report = json.loads((federation.drawn / "report.json").read_text())
    assert [(row["method"], row["test_site"]) for row in report["rows"]] == [
        ("emit-diff", test_site) for test_site in (*DRAWERS, "all")
    ]
    assert {"autoencoder_psnr_db", "denoiser_loss", "controlnet_loss"} <= report["rows"][-1].keys()
    page = (federation.drawn / "report.html").read_text()
    assert "Generator, phase by phase" in page
    assert "recogniser" not in page.partition("Full configuration")[0]


def test_a_site_lists_the_generator_and_draws_with_it(
    federation: Federation, capsys: pytest.CaptureFixture[str]
) -> None:
    site = str(federation.site("north"))
    capsys.readouterr()
    assert client.cli.main(["generators", site, "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert (row["campaign"], row["missing"]) == ("images", [])
    assert client.cli.main(["generate", site, "--campaign", "images"]) == 0
    assert client.cli.main(["synthetic", site, "--json"]) == 0
    printed = capsys.readouterr().out
    (drawn,) = json.loads(printed[printed.index("[\n") :])
    assert drawn["counts"]["images"] > 0


def test_everything_ends_when_told_to(federation: Federation) -> None:
    folders = {"coordinator": federation.coordinator, **{name: federation.site(name) for name in SITES}}
    pids = [
        entry["pid"]
        for folder in folders.values()
        for entry in read_record(folder)["programs"].values()
        if entry["pid"]
    ]
    for key in folders:
        federation.started[key].terminate()
    assert [federation.started.pop(key).wait(40) for key in folders] == [0] * len(folders)
    assert not any(psutil.pid_exists(pid) for pid in pids)
