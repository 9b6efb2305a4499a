"""The hospital's PACS as a source and a sink, over DICOMweb (PS3.18) or DIMSE (PS3.4, PS3.7), behind four functions.

config     <site folder>/pacs.json, typed          source     what is asked and answered, in words of a fixed vocabulary
dicomweb   QIDO-RS, WADO-RS, STOW-RS               dimse      C-ECHO, C-FIND, C-GET or C-MOVE, C-STORE
listen     our own storage SCP                     studies    query, fetch in batches, ingest

Study and patient identifiers live in values that do not print them; no error, log or count holds one.
"""

from __future__ import annotations

from client.folder import SiteFolder
from client.ingest.pacs.config import Pacs, read_pacs
from client.ingest.pacs.source import Source


def connect(pacs: Pacs) -> Source:
    """The four functions of a PACS: echo, find, fetch, send. Nothing is asked of it yet."""
    if pacs.dicomweb is not None:
        from client.ingest.pacs.dicomweb import DicomwebSource

        return DicomwebSource(pacs, pacs.dicomweb)
    from client.ingest.pacs.dimse import DimseSource

    assert pacs.dimse is not None
    return DimseSource(pacs, pacs.dimse)


def source_of(site: SiteFolder) -> Source:
    """The PACS of a site's pacs.json; ConfigError where there is none."""
    return connect(read_pacs(site))
