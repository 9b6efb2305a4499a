"""The adversary has an audit log's files, and wants another history to be believed. The oracle is the attack itself:
each is told with the first wrong entry, and looking at a log changes nothing."""

from __future__ import annotations

import datetime as dt
import json
import multiprocessing
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from shared import audit_retention
from shared.audit import Anchor, AuditLog, head_path, last_head, read, signers_in, verify
from shared.audit_entry import CLOSED, parse
from shared.errors import DataError, RefusedError
from shared.trust import certificates, keystore, signing
from shared.trust.line_signatures import lines_of, signer_of

NOW = dt.datetime(2026, 11, 22, 12, tzinfo=dt.UTC)


class Written:
    """A log of ten entries, its key, and what the other end kept of it on the way."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.key = keystore.read_public_line(keystore.create_site_key(folder / "key"))
        self.log = AuditLog(folder / "audit.jsonl", signer_of((folder / "key").read_bytes()))
        self.path = self.log.path
        self.heads = []
        for number in range(10):
            entry = self.log.append("round.left", campaign="tiny", round=number, bytes=1000 + number)
            self.heads.append(Anchor(entry.number, entry.head))

    def lines(self) -> list[bytes]:
        return self.path.read_bytes().splitlines(keepends=True)

    def put(self, lines: list[bytes]) -> None:
        self.path.write_bytes(b"".join(lines))


@pytest.fixture
def written(tmp_path: Path) -> Written:
    return Written(tmp_path / "site")


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_log_that_nobody_touched_is_whole_and_leads_to_every_head_that_was_kept(written: Written) -> None:
    found = verify(written.path, written.key, written.heads)
    assert (found.entries, found.last, found.head) == (10, 10, written.heads[-1].head)
    assert found.anchors == 10
    assert found.notes == ()
    assert last_head(written.path) == written.heads[-1]


def _edited(lines: list[bytes]) -> list[bytes]:
    return [*lines[:4], lines[4].replace(b'"bytes":1004', b'"bytes":1005'), *lines[5:]]


def _signature_removed(lines: list[bytes]) -> list[bytes]:
    values = json.loads(lines[4]) | {"signature": ""}
    return [*lines[:4], json.dumps(values, sort_keys=True, separators=(",", ":")).encode() + b"\n", *lines[5:]]


ATTACKS: list[tuple[str, Callable[[list[bytes]], list[bytes]], str]] = [
    ("edit", _edited, "entry 5 .* signature is not of this log's signer"),
    ("no signature", _signature_removed, "entry 5 .* signature is not of this log's signer"),
    ("other form", lambda lines: [lines[0].replace(b",", b", ", 1), *lines[1:]], "entry 1 .* not written as an entry"),
    ("no JSON", lambda lines: [*lines[:2], b"{}}\n", *lines[3:]], "entry 3 .* is not JSON"),
    ("cut at the head", lambda lines: lines[3:], "entry 1 .* entries 1 to 3 are missing"),
    ("cut in the middle", lambda lines: [*lines[:4], *lines[6:]], "entry 5 .* entries 5 to 6 are missing"),
    ("cut at the tail", lambda lines: lines[:7], "entry 8 is wrong: the log ends before it, the head file knows 10"),
    ("all cut", lambda lines: [], "entry 1 is wrong: the log ends before it"),
    ("half the tail cut", lambda lines: [*lines[:9], lines[9][:40]], "entry 10 is wrong: the log ends before it"),
    ("reordered", lambda lines: [*lines[:3], lines[4], lines[3], *lines[5:]], "entry 4 .* entries 4 are missing"),
    ("duplicated", lambda lines: [*lines[:5], lines[4], *lines[5:]], "entry 6 .* number 5 again"),
    ("duplicated at the end", lambda lines: [*lines, lines[-1]], "entry 11 .* number 10 again"),
]


@pytest.mark.parametrize(("attack", "reason"), [row[1:] for row in ATTACKS], ids=[row[0] for row in ATTACKS])
def test_what_was_done_to_the_lines_is_told_with_the_first_wrong_entry(
    written: Written, attack: Callable[[list[bytes]], list[bytes]], reason: str
) -> None:
    written.put(attack(written.lines()))
    before = files_of(written.path.parent)
    with pytest.raises(RefusedError, match=reason):
        verify(written.path, written.key)
    assert files_of(written.path.parent) == before


def test_every_bit_of_a_line_counts(written: Written) -> None:
    whole = written.path.read_bytes()
    line = written.lines()[4]
    start = whole.index(line)
    for place in range(start, start + len(line), 7):
        changed = bytearray(whole)
        changed[place] ^= 1
        written.path.write_bytes(bytes(changed))
        with pytest.raises(RefusedError, match="entry [567]"):
            verify(written.path, written.key)


def test_an_entry_that_is_signed_by_another_key_is_refused(written: Written, tmp_path: Path) -> None:
    other = Written(tmp_path / "other")
    forged = AuditLog(written.path, other.log.sign).append("campaign.approved", campaign="theirs")
    assert forged.number == 11
    with pytest.raises(RefusedError, match=r"entry 11 \(line 11\) .* signature is not of this log's signer"):
        verify(written.path, written.key)


def test_another_sites_log_in_its_place_is_refused(written: Written, tmp_path: Path) -> None:
    other = Written(tmp_path / "other")
    for source, target in ((other.path, written.path), (head_path(other.path), head_path(written.path))):
        shutil.copy(source, target)
    with pytest.raises(RefusedError, match=r"entry 1 \(line 1\) .* signature is not of this log's signer"):
        verify(written.path, written.key)


def test_a_forged_head_file_does_not_hide_a_cut_tail(written: Written) -> None:
    written.put(written.lines()[:7])
    seventh = parse(written.lines()[6])
    head_path(written.path).write_text(json.dumps({"number": 7, "head": seventh.head, "signer": "", "signature": ""}))
    with pytest.raises(RefusedError, match="the head file is wrong: it is not signed"):
        verify(written.path, written.key)
    head_path(written.path).unlink()
    with pytest.raises(RefusedError, match="the head file is missing"):
        verify(written.path, written.key)


def test_an_older_copy_of_log_and_head_file_is_told_by_the_head_that_the_other_end_keeps(tmp_path: Path) -> None:
    written = Written(tmp_path / "site")
    copy = files_of(written.path.parent)
    entry = written.log.append("release.installed", release="tiny")
    for name, content in copy.items():
        (written.path.parent / name).write_bytes(content)
    assert verify(written.path, written.key).last == 10  # alone, the folder of yesterday is as good as today's
    with pytest.raises(RefusedError, match="entry 11 is wrong: the log ends before it, the other end knows 11"):
        verify(written.path, written.key, [(entry.number, entry.head)])


def test_a_history_that_the_keys_owner_wrote_anew_does_not_lead_to_the_head_that_the_other_end_keeps(
    written: Written,
) -> None:
    kept = written.heads[5]
    written.path.unlink()
    head_path(written.path).unlink()
    for number in range(12):
        written.log.append("round.left", campaign="tiny", round=number, bytes=1)
    assert verify(written.path, written.key).last == 12
    with pytest.raises(RefusedError, match="entry 6 is wrong: the other end knows another; the log was replaced"):
        verify(written.path, written.key, [kept])


def test_a_cut_that_others_append_to_stays_a_gap_for_ever(written: Written) -> None:
    written.put(written.lines()[:7])
    written.log.append("round.left", campaign="tiny", round=11)
    written.log.append("round.left", campaign="tiny", round=12)
    gap = next(entry for entry in read(written.path) if entry.event == "audit.gap")
    assert (gap.number, gap.facts["expected"], gap.facts["found"]) == (11, 10, 7)
    with pytest.raises(RefusedError, match="entry 8 .* entries 8 to 10 are missing"):
        verify(written.path, written.key)


def test_a_log_that_was_deleted_and_begun_again_starts_with_the_gap(written: Written) -> None:
    written.path.unlink()
    written.log.append("round.left", campaign="tiny", round=11)
    with pytest.raises(RefusedError, match="entry 1 .* entries 1 to 10 are missing"):
        verify(written.path, written.key)


def test_half_a_line_after_a_kill_is_recognised_and_mended_with_an_entry_that_says_so(written: Written) -> None:
    with written.path.open("ab") as file:
        file.write(b'{"by":"root","event":"round.left"')
    assert verify(written.path, written.key).notes == (
        "the log ends in 33 bytes of half a line, as a kill leaves; the next entry says so",
    )
    assert len(read(written.path)) == 10
    entry = written.log.append("round.left", campaign="tiny", round=11)
    assert entry.number == 12
    repaired = read(written.path)[10]
    assert (repaired.event, repaired.facts["what"], repaired.facts["bytes"]) == ("audit.repaired", "half a line", 33)
    assert "mended after half a line" in verify(written.path, written.key).notes[0]


def test_an_append_that_was_killed_before_the_head_file_was_written_is_whole(written: Written) -> None:
    before = head_path(written.path).read_bytes()
    written.log.append("round.left", campaign="tiny", round=11)
    head_path(written.path).write_bytes(before)
    assert verify(written.path, written.key).notes == ("the head file is 1 behind, as a kill leaves it",)
    assert written.log.append("round.left", campaign="tiny", round=12).number == 12
    assert verify(written.path, written.key).notes == ()


def test_a_full_disk_ends_the_work_and_leaves_the_log_whole(written: Written, monkeypatch: pytest.MonkeyPatch) -> None:
    before = written.path.read_bytes()
    real = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda descriptor, content, offset: real(descriptor, content[:20], offset))
    with pytest.raises(DataError, match="what is not recorded is not done"):
        written.log.append("round.left", campaign="tiny", round=11)
    monkeypatch.undo()
    assert written.path.read_bytes() == before
    assert verify(written.path, written.key).last == 10


def _many(path: Path, key: bytes) -> None:
    log = AuditLog(path, signer_of(key))
    for number in range(15):
        log.append("round.left", round=number)


def test_processes_that_append_at_once_make_one_chain(written: Written) -> None:
    key = (written.path.parent / "key").read_bytes()
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=_many, args=(written.path, key)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert verify(written.path, written.key).last == 10 + 45


def test_old_months_are_closed_by_a_signed_summary_and_the_chain_still_verifies(
    written: Written, monkeypatch: pytest.MonkeyPatch
) -> None:
    later = NOW + dt.timedelta(days=60)

    class Clock(dt.datetime):
        @classmethod
        def now(cls, tz: dt.tzinfo | None = None) -> dt.datetime:  # type: ignore[override]
            return later

    monkeypatch.setattr("shared.audit.dt.datetime", Clock)
    young = AuditLog(written.path, written.log.sign, days=20)
    assert young.append("round.left", round=11).number == 12
    entries = read(written.path)
    assert [entry.event for entry in entries] == [CLOSED, "audit.retired", "round.left"]
    summary = entries[0]
    assert (summary.last, summary.head) == (10, written.heads[-1].head)
    assert summary.facts["events"] == "round.left 10"
    found = verify(written.path, written.key, written.heads[-1:])
    assert (found.closed, found.entries, found.last, found.anchors) == (10, 2, 12, 1)
    later += dt.timedelta(days=90)
    young.append("round.left", round=12)
    assert read(written.path)[0].last == 12
    assert verify(written.path, written.key).closed == 12
    forged = json.loads(written.lines()[0]) | {"number": 13}
    written.put([json.dumps(forged, sort_keys=True, separators=(",", ":")).encode() + b"\n", *written.lines()[1:]])
    with pytest.raises(RefusedError, match=r"entry 1 \(line 1\) .* signature"):
        verify(written.path, written.key)


def test_nothing_is_closed_before_its_time(written: Written) -> None:
    assert not audit_retention.due(written.path, dt.datetime.now(dt.UTC), audit_retention.DAYS)


def test_a_new_signer_of_the_same_federation_goes_on_and_one_of_another_is_refused(tmp_path: Path) -> None:
    authority = certificates.create_authority("fed", NOW)
    first, second = signing.create_signer(authority, NOW), signing.create_signer(authority, NOW)
    path = tmp_path / "audit.jsonl"
    for signer in (first, second):
        AuditLog(path, signer_of(signer.key), signer.certificate.decode()).append("admin.init")
    assert [entry.event for entry in read(path)] == ["audit.signer", "admin.init"] * 2
    keys = signers_in(path, authority.certificate)
    assert keys == lines_of(authority.certificate, [first.certificate.decode(), second.certificate.decode()])
    assert verify(path, keys).last == 4
    elsewhere = certificates.create_authority("other", NOW)
    with pytest.raises(RefusedError, match="entry 1 is wrong: the log is not signed by a signer of this federation"):
        signers_in(path, elsewhere.certificate)
    server = certificates.issue_server(authority, ["localhost"], NOW)
    assert lines_of(authority.certificate, [server.certificate.decode()]) == ()
