"""Is this site ready: one row per thing that must hold, each with what is wrong and the exit code it would cost."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from dataclasses import dataclass

from client.approvals import approvals
from client.folder import SiteFolder, private_files
from client.proxy import connected, proxy_of
from shared.errors import DataError, RefusedError, WardroundError
from shared.reach import check_reachable
from shared.trust import certificates, keystore
from shared.trust.site_certificates import read_site_certificate

WARN_DAYS = 365
"""A new authority means a new join, so a year is short."""


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table; `exit_code` is 0 when it holds, which may end soon: the answer says so."""

    what: str
    answer: str
    exit_code: int = 0


def check_site(site: SiteFolder, now: dt.datetime) -> tuple[Row, ...]:
    """Every row is tried, whatever the others say."""
    return (
        _row("keys", lambda: _keys(site)),
        _row("authority", lambda: _authority(site, now)),
        *((_row("certificate", lambda: _certificate(site, now)),) if site.certificate.exists() else ()),
        _row("coordinator", lambda: _coordinator(site)),
        _row("store", lambda: _store(site)),
        _row("approvals", lambda: _approvals(site)),
        _row("release", lambda: _release(site)),
        *(check_pacs(site) if site.pacs.exists() else ()),
    )


def check_pacs(site: SiteFolder) -> tuple[Row, ...]:
    """Only the PACS, which a site may do without."""
    return (_row("PACS", lambda: _pacs(site)),)


def _row(what: str, answer: Callable[[], str]) -> Row:
    try:
        return Row(what, answer())
    except WardroundError as error:
        return Row(what, str(error), error.exit_code)


def _keys(site: SiteFolder) -> str:
    for key in private_files(site):
        keystore.check_private(key)
    line = keystore.read_public_line(site.folder / "key.pub")
    return f"private, mode 0600; public key {keystore.fingerprint(line)}"


def _authority(site: SiteFolder, now: dt.datetime) -> str:
    days = certificates.days_left(site.authority.read_bytes(), now)
    if days < 0:
        raise RefusedError(f"the federation's authority ended {-days} days ago; ask the coordinator for a new ca.crt")
    soon = "; soon over: ask the coordinator what comes then" if days < WARN_DAYS else ""
    return f"valid for {days} days more{soon}"


def _certificate(site: SiteFolder, now: dt.datetime) -> str:
    said = read_site_certificate(site.certificate.read_bytes(), site.authority.read_bytes(), now)
    if said.site != site.name:
        raise RefusedError(f"tls.pem is the certificate of site {said.site}; restore this site's own from a backup")
    due = "; due to be renewed, which `run` does, or: wardround-site renew" if said.renews(now) else ""
    return f"in force for {said.days_left(now)} days more{due}"


def _coordinator(site: SiteFolder) -> str:
    proxy = proxy_of(site)
    certificate = site.certificate if site.certificate.exists() else None
    way = (lambda: connected(site.host, site.port, proxy)) if proxy is not None else None
    check_reachable(site.host, site.port, site.authority, certificate=certificate, connect=way)
    through = f", through the proxy {proxy.where}" if proxy is not None else ""
    return f"{site.coordinator} answers under this federation's certificate{through}"


def _store(site: SiteFolder) -> str:
    from client.ingest.store import Store

    store = Store.open(site.store)
    patients = len({series.patient for series in store.series})
    masks = sum(series.has_mask for series in store.series)
    if patients < 2:
        raise DataError(f"the store holds {patients} patient; training needs 2 or more: ingest more studies")
    return (
        f"{patients} patients, {len(store.series)} series, {masks} with masks, {len(store.quarantine)} files put aside"
    )


def _approvals(site: SiteFolder) -> str:
    given = approvals(site.approvals)
    if not given:
        raise RefusedError("nothing is approved; read a campaign and approve it: wardround-site approve")
    return ", ".join(f"{approval.campaign} ({approval.digest[:12]})" for approval in given)


def _pacs(site: SiteFolder) -> str:
    from client.ingest.pacs import source_of

    return source_of(site).echo()


def _release(site: SiteFolder) -> str:
    """A site can train without one."""
    from client.releases import installed, releases

    if not any(row.current for row in releases(site)):
        return "none is installed; needed only to enhance studies here"
    one = installed(site)
    adapted = "adapted here" if one.personal is not None else "as released"
    return f"{one.manifest.name} v{one.manifest.version} ({one.digest[:12]}), {adapted}"
