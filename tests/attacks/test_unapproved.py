"""A coordinator that asks for what a site's operator has not said yes to: another campaign, another manifest of it,
more sites or rounds, smaller cohorts; and one that puts keys of its own where a site's should be.

Each is refused at the site with the reason, before a byte is read or computed: the site's folder stays as it was.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from client import approvals, pins
from client.approving import approvable
from client.folder import SiteFolder
from client.policy import admitted, still_answers
from client.rules import SiteRules, mark_left, pause, read_rules, resume, write_rules
from client.site import SiteSetup, load_site
from client.update import forget
from shared.config import (
    CampaignConfig,
    PrivacyConfig,
    SecAggConfig,
    StrategyConfig,
    build,
    campaign_digest,
    save_campaign,
    to_dict,
)
from shared.errors import ConfigError, DataError, RefusedError
from shared.manifest import SignedManifest, parse_manifest
from shared.trust import certificates, signing
from shared.trust.identity import create_identity
from shared.types import Plan
from simulation.bench.stores import write_random_store
from tests.client.manifest_files import NOW, SITES, Federation

SESSION = "0" * 32


@pytest.fixture
def campaign(campaign: CampaignConfig) -> CampaignConfig:
    masked = replace(campaign, secagg=SecAggConfig(kind="masked"), rounds=replace(campaign.rounds, quorum=3))
    return build(CampaignConfig, to_dict(masked))


@pytest.fixture
def federation() -> Federation:
    return Federation()


@pytest.fixture
def site(tmp_path: Path, campaign: CampaignConfig, federation: Federation) -> Iterator[SiteFolder]:
    site = federation.site(tmp_path / "north")
    write_random_store(site.store, campaign.data, patients=6, slices=1, seed=1)
    yield site
    forget()


@pytest.fixture
def signed(site: SiteFolder, federation: Federation, campaign: CampaignConfig) -> SignedManifest:
    return federation.signed(campaign)


def approve(site: SiteFolder, signed: SignedManifest, **more: Any) -> SiteSetup:
    """As the command does, once its operator has typed yes."""
    approvable(site, signed, NOW, **more)
    pins.pin(site.folder, signed.manifest.sites, site.name)
    approvals.approve(site.approvals, signed, NOW)
    return load_site(site.folder / "site.json")


def plan_of(signed: SignedManifest, action: str = "train", **more: Any) -> Plan:
    terms = {
        "session": SESSION,
        "campaign_digest": signed.manifest.config_digest,
        "round": more.get("round", 1),
        "cohort": list(more.pop("cohort", SITES)),
        "minimum": 3,
    }
    values: dict[str, Any] = {"round": 1, "manifest_digest": signed.digest, "secagg": {"terms": terms}} | more
    config = values.pop("config_digest", signed.manifest.config_digest)
    return Plan(signed.campaign.name, action, values.pop("round"), config, "0" * 64, **values)  # type: ignore[arg-type]


def files(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def refuses(site: SiteFolder, plan: Plan, setup: SiteSetup, reason: str) -> None:
    before = files(site.folder)
    with pytest.raises(RefusedError, match=reason):
        admitted(plan, setup)
    assert files(site.folder) == before


# ------------------------------------------------------------------------------------------- plans


def test_what_was_approved_is_admitted_in_all_its_stages(site: SiteFolder, signed: SignedManifest) -> None:
    setup = approve(site, signed)
    for action, number in (("handshake", 1), ("offer", 1), ("train", 2), ("unmask", 2), ("evaluate", 3)):
        admitted(plan_of(signed, action, round=number), setup)


def test_a_campaign_that_is_not_approved_or_only_nearly_is_refused(
    site: SiteFolder, signed: SignedManifest, federation: Federation, campaign: CampaignConfig
) -> None:
    refuses(site, plan_of(signed), load_site(site.folder / "site.json"), "is not approved at north")
    setup = approve(site, signed)
    other = campaign_digest(replace(campaign, seed=1))
    refuses(site, plan_of(signed, config_digest=other), setup, f"campaign {other[:12]} is not approved at north")
    approvals.revoke(site.approvals, signed.manifest.config_digest)
    refuses(site, plan_of(signed), load_site(site.folder / "site.json"), "is not approved at north")


def test_a_run_under_another_manifest_of_the_same_campaign_is_refused(
    site: SiteFolder, signed: SignedManifest, federation: Federation, campaign: CampaignConfig
) -> None:
    """Its list of sites differs, and nothing else."""
    setup = approve(site, signed)
    federation.identities["east"] = create_identity("east")
    wider = federation.signed(campaign)
    assert wider.manifest.config_digest == signed.manifest.config_digest
    refuses(site, plan_of(wider), setup, f"under manifest {wider.digest[:12]}, and north approved {signed.digest[:12]}")
    refuses(site, plan_of(signed, manifest_digest=""), setup, r"under manifest \(none\)")


@pytest.mark.parametrize(
    ("action", "number", "last"),
    [("train", 3, 2), ("train", 0, 2), ("offer", 3, 2), ("unmask", 3, 2), ("evaluate", 4, 3)],
)
def test_a_round_beyond_the_budget_is_refused(
    site: SiteFolder, signed: SignedManifest, action: str, number: int, last: int
) -> None:
    setup = approve(site, signed)
    reason = f"has 2 rounds; expected 1 to {last}, got round {number}"
    refuses(site, plan_of(signed, action, round=number), setup, reason)


@pytest.mark.parametrize(
    ("cohort", "reason"),
    [
        (("north", "south"), "below the floor: expected 3 different sites or more, got 2"),
        (("north", "south", "south"), "below the floor: expected 3 different sites or more, got 3"),
        (("east", "south", "west"), "does not hold north itself"),
        (("east", "north", "south", "west"), "holds 1 sites that the approved manifest does not name"),
    ],
)
@pytest.mark.parametrize("action", ["offer", "train", "unmask"])
def test_a_cohort_below_the_floor_or_with_strangers_is_refused(
    site: SiteFolder, signed: SignedManifest, action: str, cohort: tuple[str, ...], reason: str
) -> None:
    setup = approve(site, signed)
    refuses(site, plan_of(signed, action, cohort=cohort), setup, reason)


def test_the_sites_own_floor_is_above_the_campaigns(site: SiteFolder, signed: SignedManifest) -> None:
    setup = approve(site, signed)
    strict = replace(setup, rules=SiteRules(minimum_cohort=4))
    refuses(site, plan_of(signed), strict, "expected 4 different sites or more, got 3")


def test_a_sum_of_too_few_survivors_is_not_opened(site: SiteFolder, signed: SignedManifest) -> None:
    setup = approve(site, signed)
    plan = plan_of(signed, "unmask")
    fewer = replace(plan, secagg={**plan.secagg, "survivors": ["north", "south"]})
    refuses(site, fewer, setup, "number of sites whose sum is opened is below the floor")


def test_masked_stages_of_a_visible_campaign_are_refused(
    site: SiteFolder, federation: Federation, campaign: CampaignConfig
) -> None:
    open_ = federation.signed(replace(campaign, secagg=SecAggConfig()))
    setup = approve(site, open_, allow_visible_updates=True)
    admitted(plan_of(open_, secagg={}), setup)
    for action, secagg in (("offer", {}), ("train", plan_of(open_).secagg), ("unmask", {})):
        refuses(site, plan_of(open_, action, secagg=secagg), setup, "has visible updates, and the plan asks for masked")


def test_too_few_patients_are_told_of_by_their_lack_alone(site: SiteFolder, signed: SignedManifest) -> None:
    setup = replace(approve(site, signed), rules=SiteRules(minimum_patients=7))
    refuses(site, plan_of(signed, "handshake"), setup, "fewer patients than its own rules ask for")


def test_rules_that_became_stricter_hold_from_the_next_message_on(site: SiteFolder, signed: SignedManifest) -> None:
    setup = replace(approve(site, signed), rules=SiteRules(max_rounds=1))
    refuses(site, plan_of(signed, round=1), setup, "has 2 rounds, and this site's rules allow 1")


def test_a_paused_site_answers_nothing_and_goes_on_when_told_to(site: SiteFolder, signed: SignedManifest) -> None:
    approve(site, signed)
    pause(site.folder, NOW)
    refuses(
        site, plan_of(signed), load_site(site.folder / "site.json"), "north was paused by its operator on 2026-11-22"
    )
    assert resume(site.folder)
    admitted(plan_of(signed), load_site(site.folder / "site.json"))
    mark_left(site.folder, NOW)
    refuses(site, plan_of(signed), load_site(site.folder / "site.json"), "north has left the federation on 2026-11-22")
    with pytest.raises(ConfigError, match="cannot be undone"):
        resume(site.folder)


def test_a_site_that_is_paused_while_it_trains_sends_nothing(site: SiteFolder, signed: SignedManifest) -> None:
    setup = approve(site, signed)
    admitted(plan_of(signed), setup)
    still_answers(setup)
    pause(site.folder, NOW)
    with pytest.raises(RefusedError, match="north was paused by its operator"):
        still_answers(setup)


def test_a_deployed_site_without_a_manifest_of_a_campaign_refuses_it(site: SiteFolder, signed: SignedManifest) -> None:
    setup = replace(approve(site, signed), manifests={})
    refuses(site, plan_of(signed), setup, "was approved without a signed manifest")


# ------------------------------------------------------------------------------------------- manifests


def declines(site: SiteFolder, signed: SignedManifest, reason: str, **more: Any) -> None:
    before = files(site.folder)
    with pytest.raises(RefusedError, match=reason):
        approve(site, signed, **more)
    assert files(site.folder) == before


def test_a_manifest_of_another_federation_or_signed_with_another_purpose_is_refused(
    site: SiteFolder, signed: SignedManifest, federation: Federation, campaign: CampaignConfig
) -> None:
    declines(site, Federation(identities=federation.identities).signed(campaign), "signed for another federation")
    server = certificates.issue_server(federation.authority, ("localhost",), NOW)
    by_server = Federation(federation.authority, federation.identities)
    by_server.__dict__["signer"] = server
    declines(site, by_server.signed(campaign), "not for signing releases")
    as_release = signing.sign(federation.signer.key, signed.content)
    declines(site, replace(signed, signature=as_release), "the signature is wrong")
    elsewhere = federation.forged(signed, federation="0" * 64)
    declines(site, elsewhere, "of another federation than this folder's ca.crt")


@pytest.mark.parametrize("place", [b'"seed":0', b'"minimum_cohort":3', b'"rounds":2', b'"high":1.0'])
def test_a_manifest_that_was_edited_after_it_was_signed_is_refused(
    site: SiteFolder, signed: SignedManifest, place: bytes
) -> None:
    assert place in signed.content
    declines(site, replace(signed, content=signed.content.replace(place, place[:-1] + b"9")), "the signature is wrong")


def test_a_bare_campaign_file_is_refused_with_the_way_out(site: SiteFolder, campaign: CampaignConfig) -> None:
    save_campaign(campaign, site.folder / "campaign.json")
    with pytest.raises(RefusedError, match="is not signed.*wardround-coordinator campaign new"):
        parse_manifest((site.folder / "campaign.json").read_bytes())


@pytest.mark.parametrize("theirs", ["0.0.9", "0.1.1", "9.0"])
def test_only_equal_versions_meet(
    site: SiteFolder, signed: SignedManifest, federation: Federation, theirs: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    declines(site, federation.forged(signed, wardround=theirs), f"runs on Wardround {theirs}, this is .*only equal")
    setup = approve(site, signed)
    monkeypatch.setattr("client.policy.version", lambda _: theirs)  # the site was upgraded within a campaign
    refuses(site, plan_of(signed), setup, f"this is {theirs}; only equal versions meet in a campaign")


def test_digests_that_are_not_the_campaigns_are_refused(
    site: SiteFolder, signed: SignedManifest, federation: Federation
) -> None:
    declines(site, federation.forged(signed, config_digest="1" * 64), "digest of its campaign is not what this version")
    declines(site, federation.forged(signed, architecture_digests={"": "1" * 64}), "networks is not what this version")


def test_a_manifest_that_does_not_name_this_site_or_by_anothers_key_is_refused(
    site: SiteFolder, federation: Federation, campaign: CampaignConfig
) -> None:
    others = {name: one for name, one in federation.public.items() if name != "north"}
    declines(site, federation.signed(campaign, others), "is for south, west; north is not among them")
    impostor = {**others, "north": create_identity("north").public}
    declines(site, federation.signed(campaign, impostor), "keys for north that are not this site's")


def test_keys_that_changed_since_they_were_pinned_are_refused_until_named(
    site: SiteFolder, signed: SignedManifest, federation: Federation, campaign: CampaignConfig
) -> None:
    """The coordinator has the signing key and the authority's; what it lacks is the key of south."""
    approve(site, signed)
    federation.identities["south"] = create_identity("south")
    middle = federation.signed(campaign)
    declines(site, middle, "the keys of south are not those pinned here .*--repin south")
    declines(site, middle, "keys of south are not those pinned", repin=("west", "north"))
    declines(site, signed, "its keys have not changed", repin=("south",))
    setup = approve(site, middle, repin=("south",))
    assert pins.same_keys(setup.peers["south"], federation.public["south"])
    admitted(plan_of(middle), setup)


def test_pins_that_differ_from_the_manifest_stop_a_round(site: SiteFolder, signed: SignedManifest) -> None:
    setup = approve(site, signed)
    swapped = replace(setup, peers={**setup.peers, "south": create_identity("south").public})
    refuses(site, plan_of(signed), swapped, "the keys of south are not those that were pinned here")
    unknown = replace(setup, peers={})
    refuses(site, plan_of(signed), unknown, "the keys of south are not those that were pinned here")


def test_damaged_pins_are_not_taken_for_none(site: SiteFolder, signed: SignedManifest) -> None:
    approve(site, signed)
    (site.folder / pins.PINS).write_text("{")
    with pytest.raises(DataError, match=r"peers.json cannot be read; restore it"):
        load_site(site.folder / "site.json")


# ------------------------------------------------------------------------------------------- the site's rules


def test_visible_updates_are_refused_unless_the_operator_says_so(
    site: SiteFolder, federation: Federation, campaign: CampaignConfig
) -> None:
    open_ = federation.signed(replace(campaign, secagg=SecAggConfig()))
    declines(site, open_, "would see this site's own update .*--allow-visible-updates")
    approvable(site, open_, NOW, allow_visible_updates=True)
    write_rules(site.folder, SiteRules(allow_visible_updates=True))
    approve(site, open_)


@pytest.mark.parametrize(
    ("rules", "reason"),
    [
        (SiteRules(minimum_cohort=4), "has 3 sites, and this site's rules open no sum of fewer than 4"),
        (SiteRules(max_rounds=1), "has 2 rounds, and this site's rules allow 1"),
        (SiteRules(epsilon_total=1), "has no differential privacy, and this site's rules allow epsilon 1"),
    ],
)
def test_what_the_rules_do_not_allow_cannot_be_approved(
    site: SiteFolder, signed: SignedManifest, rules: SiteRules, reason: str
) -> None:
    write_rules(site.folder, rules)
    declines(site, signed, reason)


def test_an_epsilon_beyond_the_sites_own_is_refused(
    site: SiteFolder, federation: Federation, campaign: CampaignConfig
) -> None:
    private = replace(
        campaign,
        privacy=PrivacyConfig(kind="site", epsilon=50),
        strategy=StrategyConfig(kind="fedavg", weight_by="equal"),
    )
    write_rules(site.folder, SiteRules(epsilon_total=8))
    declines(site, federation.signed(private), "has epsilon 50, and this site's rules allow epsilon 8")
    approve(site, federation.signed(replace(private, privacy=PrivacyConfig(kind="site", epsilon=8))))


@pytest.mark.parametrize(
    "text", ['{"minimum_kohort": 9}', "{", '{"minimum_cohort": "9"}', '{"minimum_cohort": 1}', "[]"]
)
def test_rules_that_cannot_be_read_are_not_taken_for_none(site: SiteFolder, text: str) -> None:
    (site.folder / "rules.json").write_text(text)
    with pytest.raises((ConfigError, DataError), match=r"rules\.json"):
        read_rules(site.folder)


def test_a_manifest_from_the_future_is_not_signed_yet(
    site: SiteFolder, federation: Federation, campaign: CampaignConfig
) -> None:
    before = NOW - dt.timedelta(days=3)
    with pytest.raises(RefusedError, match="set this machine's clock"):
        approvable(site, federation.signed(campaign), before)
