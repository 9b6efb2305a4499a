"""A simulation's config in, one folder of DICOM per hospital out. The stages of this room, straight down the page.

    FOLDER/hospitals.json                    marker: recipe digest and file counts, written last
    FOLDER/<site>/studies/<patient>/series-001/IM0001.dcm ...
    FOLDER/<site>/labels/<patient>.dcm       DICOM SEG of the labelled share
    FOLDER/<site>/diagnoses.csv              PatientID,diagnosis of the diagnosed share
    FOLDER/<site>/site.json                  the codes that a site operator would hand to ingest

Data are re-used where the marker's digest is the recipe's and every file is still there; otherwise written afresh.
"""

from __future__ import annotations

import csv
import hashlib
import json
import shutil
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from shared.config import HospitalConfig, SimulationConfig, to_dict
from shared.errors import ConfigError
from simulation.hospitals.cohort import Case, hospitals_of
from simulation.hospitals.identity import patient_identity, site_identity
from simulation.hospitals.volume import Renderer, Source

_MODULES = {
    "mni": "simulation.hospitals.brain",
    "phantom": "simulation.hospitals.phantom",
    "hippocampus": "simulation.hospitals.hippocampus",
    "pneumonia": "simulation.hospitals.pneumonia",
    "totalseg": "simulation.hospitals.totalseg",
}
_PARTS = ("studies", "labels", "diagnoses.csv", "site.json")
_MARKER = "hospitals.json"

Progress = Callable[[str, int, int], None]


def write_hospitals(config: SimulationConfig, folder: Path, *, on_progress: Progress | None = None) -> tuple[Path, ...]:
    """Write (or find again) the hospitals of `config` under `folder`; returns their folders in the order of the sites.

    `on_progress(site, done, total)` is called after each patient. Raises ConfigError where the config asks for what
    the kind of data cannot give, DataError where a data set cannot be read.
    """
    source = _source(config)
    hospitals = hospitals_of(config)
    places = tuple(folder / hospital.name for hospital in hospitals)
    recipe = _recipe_digest(config, hospitals)
    if _is_complete(folder, recipe, places):
        return places
    cohorts = source.cohorts(config, hospitals)
    render = source.renderer(config)
    _clear(folder, places)
    for hospital, cases, place in zip(hospitals, cohorts, places, strict=True):
        _write_site(config, source, hospital, cases=cases, place=place, render=render, on_progress=on_progress)
    counts = {place.name: _count_files(place) for place in places}
    _write_marker(folder, {"recipe": recipe, "sites": counts})
    return places


def _source(config: SimulationConfig) -> Source:
    data = config.campaign.data
    if data.kind not in _MODULES:
        raise ConfigError(
            f"data.kind={data.kind} has no hospitals to write; ingest its stores directly, or choose "
            f"data={', data='.join(_MODULES)}"
        )
    source = import_module(_MODULES[data.kind]).SOURCE
    assert isinstance(source, Source)
    for key, asked, known in (("masks", data.masks, source.masks), ("diagnoses", data.diagnoses, source.diagnoses)):
        if not set(asked) <= set(known):
            raise ConfigError(f"data.{key}: data={data.kind} knows {list(known)}, got {list(asked)}")
    if config.hospitals.slices < 1:
        raise ConfigError(f"hospitals.slices must be 1 or more, got {config.hospitals.slices}")
    return source


def _write_site(
    config: SimulationConfig,
    source: Source,
    hospital: HospitalConfig,
    *,
    cases: Sequence[Case],
    place: Path,
    render: Renderer,
    on_progress: Progress | None,
) -> None:
    from simulation.hospitals.dicom import write_study
    from simulation.hospitals.segmentation import write_segmentation

    seed, data = config.campaign.seed, config.campaign.data
    mask_codes = dict(hospital.mask_codes) or {name: code for code, name in enumerate(data.masks, start=1)}
    segments = {name: (1 + source.masks.index(name), mask_codes[name]) for name in data.masks}
    site = site_identity(seed, hospital.name)
    diagnoses: list[tuple[str, str]] = []
    for case in cases:
        patient = patient_identity(seed, case.site, case.number)
        volume = render(case, hospital)
        images = write_study(place / "studies", source=source, volume=volume, site=site, patient=patient)
        if case.labelled and volume.label_DHW is not None:
            write_segmentation(place / "labels" / f"{patient.patient_id}.dcm", images, volume.label_DHW, segments)
        if case.diagnosed:
            diagnoses.append((patient.patient_id, str(case.diagnosis)))
        if on_progress is not None:
            on_progress(case.site, case.number + 1, len(cases))
    with (place / "diagnoses.csv").open("w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([("PatientID", "diagnosis"), *diagnoses])
    codes = {
        "name": hospital.name,
        "mask_codes": mask_codes,
        "diagnosis_codes": {name: name for name in data.diagnoses},
    }
    (place / "site.json").write_text(json.dumps(codes, indent=1, sort_keys=True) + "\n")


def _recipe_digest(config: SimulationConfig, hospitals: Sequence[HospitalConfig]) -> str:
    """Everything that decides a byte: the code of this room, the seed, the data set, the hospitals."""
    data = config.campaign.data
    recipe = {
        "code": _code_digest(),
        "seed": config.campaign.seed,
        "data": [data.kind, data.masks, data.diagnoses, data.image_size],
        "data set": _data_set_digest(data.root),
        "slices": config.hospitals.slices,
        "hospitals": [to_dict(hospital) for hospital in hospitals],
    }
    return hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()


def _code_digest() -> str:
    """Of this room's sources: a version number would one day not be raised, and old images pass for new ones."""
    sources = sorted(Path(__file__).parent.glob("*.py"))
    return hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()


def _data_set_digest(root: str | None) -> str:
    """Of the list of contents: a data set that changes its images has to change its labels.csv too."""
    listed = Path(root) / "labels.csv" if root else None
    return hashlib.sha256(listed.read_bytes()).hexdigest() if listed and listed.is_file() else ""


def _read_marker(folder: Path) -> dict[str, Any]:
    try:
        marker = json.loads((folder / _MARKER).read_text())
    except (OSError, ValueError):
        return {}
    return marker if isinstance(marker, dict) else {}


def _write_marker(folder: Path, marker: dict[str, Any]) -> None:
    half = folder / (_MARKER + ".half")
    half.write_text(json.dumps(marker, sort_keys=True) + "\n")
    half.replace(folder / _MARKER)


def _count_files(place: Path) -> int:
    return sum(1 for part in _PARTS for path in [place / part, *(place / part).rglob("*")] if path.is_file())


def _is_complete(folder: Path, recipe: str, places: Sequence[Path]) -> bool:
    marker = _read_marker(folder)
    return marker.get("recipe") == recipe and marker.get("sites") == {p.name: _count_files(p) for p in places}


def _clear(folder: Path, places: Sequence[Path]) -> None:
    """Remove what an earlier call wrote; a folder of anybody else's data is refused, never emptied."""
    written = _read_marker(folder).get("sites", {})
    strangers = [p.name for p in places if p.name not in written and any((p / part).exists() for part in _PARTS)]
    if strangers:
        raise ConfigError(
            f"the folder for hospital {strangers[0]!r} holds data that this program did not write; "
            "choose an empty run_dir"
        )
    for name in {*written, *(place.name for place in places)}:
        for part in _PARTS:
            target = folder / name / part
            shutil.rmtree(target) if target.is_dir() else target.unlink(missing_ok=True)
    for place in places:
        place.mkdir(parents=True, exist_ok=True)
    # From here on the sites are ours, and incomplete: no recipe.
    _write_marker(folder, {"sites": dict.fromkeys((place.name for place in places), 0)})
