"""Counts per site in, "The sites' data" out: what is counted down, sites across, in one order whoever wrote them.

A simulation writes the counts in the order of client/dataset.py; a coordinator's about.json has them by the alphabet.
What a store holds is one thing, and what a site may train with another: data.labels hides training labels, and only a
simulation (simulation/compare.py) knows how many are left.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

_DIAGNOSIS = "diagnoses."
_STORE = "in the store"
_SPLIT = "shared out, by patient"
_TRAINING = "labels to train with"
_NAMED: Mapping[str, tuple[str, str]] = {
    "patients": (_STORE, "patients"),
    "series": (_STORE, "image series"),
    "slices": (_STORE, "slices"),
    "masks": (_STORE, "image series with a mask"),
    _DIAGNOSIS: (_STORE, "patients with the diagnosis “{}”"),
    "train_patients": (_SPLIT, "training patients"),
    "validation_patients": (_SPLIT, "validation patients"),
    "test_patients": (_SPLIT, "test patients"),
    "train_masks": (_TRAINING, "training slices with a mask"),
    "train_diagnoses": (_TRAINING, "training patients with a diagnosis"),
}
"""Key of a count -> group and words, in the order of the table."""


@dataclass(frozen=True, slots=True)
class Line:
    words: str
    cells: tuple[str, ...]
    """Of the sites, in the table's order."""


@dataclass(frozen=True, slots=True)
class DataTable:
    sites: tuple[str, ...]
    groups: tuple[tuple[str, tuple[Line, ...]], ...]
    """Heading and lines; what has no heading stands last."""
    note: str


def data_table(sites: Mapping[str, Mapping[str, Any]], campaign: Mapping[str, Any]) -> DataTable:
    """`sites`: their counts; `campaign`: as plain values, for data.diagnoses and data.labels."""
    data = campaign.get("data", {})
    keys = list(dict.fromkeys(key for counts in sites.values() for key in counts))
    places = {name: place for place, name in enumerate(_NAMED)}
    diagnoses = {f"{_DIAGNOSIS}{name}": place for place, name in enumerate(data.get("diagnoses", ()))}
    keys.sort(key=lambda key: (places.get(_kind(key), len(places)), diagnoses.get(key, len(diagnoses))))
    groups: dict[str, list[Line]] = {}
    for key in keys:
        group, words = _NAMED.get(_kind(key), ("", key.replace("_", " ").replace(".", ": ")))
        cells = tuple(_cell(counts.get(key)) for counts in sites.values())
        line = Line(words.replace("{}", key.removeprefix(_DIAGNOSIS)), cells)
        groups.setdefault(group, []).append(line)
    found = tuple((group, tuple(lines)) for group, lines in groups.items())
    return DataTable(tuple(sites) if keys else (), found, " ".join(_note(list(sites), keys, data.get("labels"))))


def _kind(key: str) -> str:
    return _DIAGNOSIS if key.startswith(_DIAGNOSIS) else key


def _note(sites: Sequence[str], keys: Sequence[str], labels: Any) -> Iterator[str]:
    hidden = [site for site in sites if isinstance(labels, Mapping) and site in labels]
    told = any(_NAMED.get(key, ("", ""))[0] == _TRAINING for key in keys)
    if hidden:
        yield f"The campaign's data.labels lets {_joined(hidden)} train with no more labels than it says."
    if told:
        yield "Labels to train with are those of training patients alone: a store holds more, and tests keep theirs."
    elif hidden:
        yield "How many are left is not told here: a deployed site reports what its store holds."


def _joined(names: Sequence[str]) -> str:
    return " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))


def _cell(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{value:.2f}".rstrip("0").rstrip(".")
    return f"{value:,}" if isinstance(value, int) else str(value)
