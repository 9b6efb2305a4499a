"""Our application entity: AE title, timeouts, and presentation contexts that studies come through (PS3.7, PS3.8)."""

from __future__ import annotations

import logging
import warnings
from typing import Any

from pydicom.uid import (
    JPEG2000,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)
from pynetdicom import AE, AllStoragePresentationContexts, StoragePresentationContexts, build_context
from pynetdicom.presentation import PresentationContext

from client.ingest.pacs.config import Pacs

PLAIN = [ExplicitVRLittleEndian, ImplicitVRLittleEndian]
COMPRESSED = (JPEG2000Lossless, JPEG2000, JPEGLosslessSV1, JPEGLSLossless, RLELossless, JPEGBaseline8Bit)
MOST_CONTEXTS = 128
"""PS3.8 9.3.2.2: odd identifiers of one byte."""
MOST_ASSOCIATIONS = 8

# Classes whose images are commonly kept compressed: CT, enhanced CT, MR, enhanced MR, CR, DX, MG, PET, NM, XA.
_COMPRESSED_CLASSES = tuple(
    f"1.2.840.10008.5.1.4.1.1.{end}" for end in ("2", "2.1", "4", "4.1", "1", "1.1", "1.2", "128", "20", "12.1")
)
# What matters beside them: segmentations, secondary captures, ultrasound, reports.
_FIRST = (
    *_COMPRESSED_CLASSES,
    *(f"1.2.840.10008.5.1.4.1.1.{end}" for end in ("66.4", "66.7", "7", "6.1", "3.1", "88.11", "88.22", "88.33")),
)

# Its log lines and tracebacks hold titles, UIDs and values of data sets; reasons come out of here in our own words.
logging.getLogger("pynetdicom").setLevel(logging.CRITICAL + 1)
# Values that a peer sends against the standard are quoted by pydicom's warnings, from threads of pynetdicom's.
warnings.filterwarnings("ignore", module="pydicom")


def entity(pacs: Pacs) -> Any:
    """An application entity with this site's title and patience."""
    ae: Any = AE(ae_title=pacs.title)
    ae.connection_timeout = pacs.connect_s
    ae.acse_timeout = max(pacs.connect_s, 1.0)
    ae.dimse_timeout = ae.network_timeout = pacs.answer_s
    ae.maximum_associations = MOST_ASSOCIATIONS
    return ae


def get_contexts(model: str) -> list[PresentationContext]:
    """C-GET: what its sub-operations may bring, one transfer syntax family a context, so that nothing is transcoded.

    An acceptor picks one syntax per context, so compressed ones get contexts of their own (PS3.8 9.3.2.2).
    """
    others = (str(context.abstract_syntax) for context in StoragePresentationContexts)
    compressed = [build_context(uid, [syntax]) for uid in _COMPRESSED_CLASSES for syntax in COMPRESSED]
    classes = dict.fromkeys((*_FIRST, *others))
    room = MOST_CONTEXTS - 1 - len(compressed)
    return [build_context(model), *(build_context(uid, PLAIN) for uid in list(classes)[:room]), *compressed]


def storage_contexts() -> list[tuple[str, list[str]]]:
    """What our storage SCP takes: every storage class in every transfer syntax that ingest may know to read."""
    syntaxes = [*PLAIN, *COMPRESSED, DeflatedExplicitVRLittleEndian, *_FURTHER]
    return [(str(context.abstract_syntax), list(syntaxes)) for context in AllStoragePresentationContexts]


_FURTHER = (
    "1.2.840.10008.1.2.2",  # explicit VR big endian
    "1.2.840.10008.1.2.4.51",  # JPEG extended
    "1.2.840.10008.1.2.4.57",  # JPEG lossless
    "1.2.840.10008.1.2.4.81",  # JPEG-LS near-lossless
)
