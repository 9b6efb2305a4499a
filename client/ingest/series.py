"""Headers of one folder in; stacks of slices that belong together, with pseudonyms for names, out.

An `Instance` is the last place that is made from a file's identifiers: it keeps keyed pseudonyms, numbers, and the
path (in memory only). Whatever later steps write down is made from here.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from pydicom.dataset import Dataset

from client.ingest.deidentify import patient_pseudonym
from client.ingest.geometry import FramePlanes, frame_planes, layers
from client.ingest.keys import keyed_id
from client.ingest.reasons import Reason
from client.ingest.sources import SourceFile
from client.ingest.validate import num_frames, reading, text

Protocol = Literal["full", "low"]

# Dose words go first: "LOW DOSE STANDARD" names a dose and a kernel.
_PROTOCOL_WORDS: tuple[tuple[str, str], ...] = (
    (
        r"\b(FULL ?DOSE|NORMAL ?DOSE|ROUTINE ?DOSE|HIGH ?DOSE|FDCT|NDCT|FD)\b",
        r"\b(LOW ?DOSE|HALF ?DOSE|QUARTER ?DOSE|REDUCED ?DOSE|ULTRA ?LOW|LDCT|LD|QD)\b",
    ),
    (r"\b(STANDARD|ROUTINE|FULLY SAMPLED|LONG)\b", r"\b(FAST|ACCELERATED|QUICK|SHORT)\b"),
)


@dataclass(frozen=True, slots=True, eq=False)
class Instance:
    """One image file, by its header."""

    source: SourceFile
    identity: str
    """Keyed SOP instance UID, or keyed content where there is none."""
    series: str
    study: str
    patient: str
    frame_of_reference: str
    """Keyed UIDs and patient ID; "" where the file has none."""
    lookup: str
    """Keyed patient ID without issuer: what a table of diagnoses can be matched by."""
    modality: str
    signature: tuple[str, ...]
    """What slices of one stack share, beside the series."""
    planes: FramePlanes
    shape: tuple[int, int, int]
    """Frames, rows, columns."""
    order: tuple[float, float]
    """Acquisition number, instance number."""
    protocol: Protocol | None
    exposure: float
    """mAs, 0 unknown."""
    beam: tuple[str, str]
    """Tube voltage and convolution kernel."""
    copies: tuple[SourceFile, ...] = ()
    """Other files with the same instance UID: read where this one turns out to be damaged."""

    @property
    def stackable(self) -> bool:
        return self.shape[0] == 1 and self.planes.placed


@dataclass(frozen=True, slots=True, eq=False)
class Stack:
    """Instances of one volume in the order of their slices; a series of the store."""

    key: str
    patient: str
    study: str
    instances: tuple[Instance, ...]

    @property
    def first(self) -> Instance:
        return self.instances[0]

    @property
    def num_frames(self) -> int:
        return sum(instance.shape[0] for instance in self.instances)


def instance_of(dataset: Dataset, source: SourceFile, identity: str, secret: bytes) -> Instance:
    """Everything that grouping, matching and pairing need, with identifiers already keyed."""
    with reading(Reason.MALFORMED):
        frames = num_frames(dataset)
        planes = frame_planes(dataset, frames)
        patient_id = text(dataset, "PatientID")
        return Instance(
            source=source,
            identity=identity,
            series=keyed(dataset, "SeriesInstanceUID", secret),
            study=keyed(dataset, "StudyInstanceUID", secret),
            patient=patient_pseudonym(dataset, secret) or "",
            frame_of_reference=keyed(dataset, "FrameOfReferenceUID", secret),
            lookup=lookup_key(patient_id, secret) if patient_id else "",
            modality=text(dataset, "Modality").upper(),
            signature=_signature(dataset, planes),
            planes=planes,
            shape=(frames, int(dataset.Rows), int(dataset.Columns)),
            order=(_number(dataset.get("AcquisitionNumber")), _number(dataset.get("InstanceNumber"))),
            protocol=protocol_of(f"{text(dataset, 'ProtocolName')} {text(dataset, 'SeriesDescription')}"),
            exposure=_number(dataset.get("Exposure")),
            beam=(text(dataset, "KVP"), text(dataset, "ConvolutionKernel")),
        )


def keyed(dataset: Dataset, keyword: str, secret: bytes) -> str:
    """A UID of the dataset as a pseudonym, "" where there is none."""
    uid = text(dataset, keyword)
    return keyed_id(secret, "uid", uid) if uid else ""


def lookup_key(patient_id: str, secret: bytes) -> str:
    return keyed_id(secret, "lookup", patient_id)


def protocol_of(description: str) -> Protocol | None:
    """Whether protocol and series name say full or low quality; None where they say neither, or both."""
    words = re.sub(r"[^A-Z0-9]+", " ", description.upper())
    for full, low in _PROTOCOL_WORDS:
        is_full, is_low = re.search(full, words) is not None, re.search(low, words) is not None
        if is_full != is_low:
            return "full" if is_full else "low"
    return None


def _signature(dataset: Dataset, planes: FramePlanes) -> tuple[str, ...]:
    directions = [*planes.row_direction, *planes.column_direction]
    parts: list[object] = [dataset.Rows, dataset.Columns, text(dataset, "PhotometricInterpretation")]
    parts += [*(f"{value + 0.0:.2f}".replace("-0.00", "0.00") for value in directions)]
    parts += [*(f"{value:.3f}" for value in planes.spacing_hw)]
    parts += [text(dataset, keyword) for keyword in ("EchoTime", "TemporalPositionIdentifier", "DiffusionBValue")]
    image_type = dataset.get("ImageType") or []
    parts += [str(word) for word in (image_type if not isinstance(image_type, str) else [image_type])[2:]]
    return tuple(map(str, parts))


def _number(value: Any) -> float:
    return float(value) if value not in (None, "") else 0.0


# ---------------------------------------------------------------------------------------------------------- grouping


def stacks_of(instances: Iterable[Instance], secret: bytes) -> tuple[Stack, ...]:
    """Slices with one series, place and look into one stack each; every other image becomes a stack of its own.

    Files without a series UID are grouped by folder; their key comes from their content, never from a path.
    """
    groups: dict[tuple[str, ...], list[Instance]] = {}
    for instance in instances:
        own = () if instance.stackable else (instance.identity,)
        series = ("uid", instance.series) if instance.series else ("folder", str(instance.source.path.parent))
        groups.setdefault((*series, instance.patient, *instance.signature, *own), []).append(instance)
    stacks: list[Stack] = []
    for group in groups.values():
        ordered = sorted(group, key=lambda instance: (instance.order, instance.identity))
        chosen = _layers(ordered)
        stacks += [_stack([ordered[index] for index in layer], place, secret) for place, layer in enumerate(chosen)]
    return tuple(sorted(stacks, key=lambda stack: stack.key))


def _layers(instances: list[Instance]) -> tuple[tuple[int, ...], ...]:
    if not instances[0].stackable:
        return ((0,),)
    normal = instances[0].planes.normal
    return layers(np.array([float(instance.planes.positions_F3[0] @ normal) for instance in instances]))


def _stack(instances: list[Instance], layer: int, secret: bytes) -> Stack:
    first = instances[0]
    identities = sorted(instance.identity for instance in instances)
    if first.series:
        own = () if first.stackable else (first.identity,)
        key = keyed_id(secret, "series", first.series, first.patient, str(layer), *first.signature, *own)
    else:
        key = keyed_id(secret, "content", *identities)
    study = first.study or keyed_id(secret, "no study", key)
    # Without a patient ID a study is the largest thing known to be one person; splits must not tear it apart.
    patient = first.patient or keyed_id(secret, "no patient", study)
    return Stack(key, patient, study, tuple(instances))
