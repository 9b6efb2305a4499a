"""Training slices in, the list of images to ask a generator for out: whose mask, which diagnosis, which seed.

Only a training split is asked from. With `draw.classes=balanced` a diagnosis that the site has few patients of is asked
for over masks of other diagnosed patients too: those that show the last class of `data.masks`, a lesion. What a
diagnosis without any lesion looks like over such a mask nobody knows, so only diagnoses whose own slices show that
class take part.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from client.dataset import Slices
from shared.config import CampaignConfig
from shared.seeding import derived_seed, generator


@dataclass(frozen=True, slots=True, eq=False)
class Asks:
    """S images to be drawn."""

    source_S: Tensor
    """int64 index of the slice whose mask and edges steer it."""
    diagnosis_S: Tensor
    """int64; -1 unknown."""
    relabelled_S: Tensor
    """bool: the diagnosis is not the slice's own, so the edges of its lesion are left out."""
    seeds: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.seeds)

    def rows(self, rows: slice) -> Asks:
        return Asks(self.source_S[rows], self.diagnosis_S[rows], self.relabelled_S[rows], self.seeds[rows])


def asked(slices: Slices, campaign: CampaignConfig) -> tuple[Asks, tuple[str, ...]]:
    """`draw.variants` images of each slice that has a mask (of each slice, in a campaign without masks), and what
    balancing adds. The second value says in words what could not be balanced."""
    sources = drawn_from(slices, campaign)
    own = [
        (source, int(slices.diagnosis_N[source]), variant)
        for source in sources
        for variant in range(campaign.generate.draw.variants)
    ]
    extra: list[tuple[int, int, int]] = []
    notes: tuple[str, ...] = ()
    if campaign.generate.draw.classes == "balanced":
        extra, notes = _balancing(slices, sources, campaign)
    return _asks(slices, [*own, *extra], campaign.seed), notes


def asked_apart(slices: Slices, campaign: CampaignConfig, most: int) -> Asks:
    """Of slices that are no training split, to compare with: the first variant of each, then second ones, at most
    `most`, evenly over the slices."""
    sources = drawn_from(slices, campaign)
    rows = [
        (source, int(slices.diagnosis_N[source]), variant)
        for variant in range(campaign.generate.draw.variants)
        for source in sources
    ]
    if len(rows) > most:
        rows = rows[: most - most % len(sources)] or [rows[place * len(sources) // most] for place in range(most)]
    return _asks(slices, rows, campaign.seed)


def drawn_from(slices: Slices, campaign: CampaignConfig) -> list[int]:
    """Indices of the slices whose masks may be used."""
    if not campaign.data.masks:
        return list(range(len(slices)))
    return [int(index) for index in slices.has_mask_N.nonzero()]


def _asks(slices: Slices, rows: Sequence[tuple[int, int, int]], seed: int) -> Asks:
    source_S, diagnosis_S, _ = torch.tensor(rows, dtype=torch.int64).reshape(-1, 3).T
    seeds = tuple(derived_seed(seed, "synthetic", slices.identity[source], variant) for source, _, variant in rows)
    return Asks(source_S, diagnosis_S, diagnosis_S != slices.diagnosis_N[source_S], seeds)


def _balancing(
    slices: Slices, sources: Sequence[int], campaign: CampaignConfig
) -> tuple[list[tuple[int, int, int]], tuple[str, ...]]:
    """(slice, diagnosis, variant) of what is missing, and why some of it cannot be asked for."""
    names, variants = campaign.data.diagnoses, campaign.generate.draw.variants
    patients = [len(set(slices.patient_N[slices.diagnosis_N == code].tolist())) for code in range(len(names))]
    of_code = [[source for source in sources if slices.diagnosis_N[source] == code] for code in range(len(names))]
    last = len(campaign.data.masks)
    lesions = {source for source in sources if last and bool((slices.mask_NHW[source] == last).any())}
    wanted = variants * max(map(len, of_code))
    following = dict.fromkeys(sources, variants)
    rows: list[tuple[int, int, int]] = []
    notes = []
    for code, name in enumerate(names):
        if patients[code] == max(patients):
            continue
        donors = [source for source in sources if source in lesions and slices.diagnosis_N[source] not in (-1, code)]
        if not lesions.intersection(of_code[code]) or not donors:
            notes.append(f"{name}: not balanced; {_why(of_code[code], donors, campaign)}")
            continue
        order = torch.randperm(len(donors), generator=generator(campaign.seed, "synthetic", "balance", name)).tolist()
        for number in range(max(wanted - variants * len(of_code[code]), 0)):
            donor = donors[order[number % len(donors)]]
            rows.append((donor, code, following[donor]))
            following[donor] += 1
    return rows, tuple(notes)


def _why(own: Sequence[int], donors: Sequence[int], campaign: CampaignConfig) -> str:
    if not campaign.data.masks:
        return "without masks nothing says where its edges have to be left out"
    if not own:
        return "no training slice here has it, so nothing says whether it shows a lesion"
    if not donors:
        return f"no other diagnosed patient's training slice shows {campaign.data.masks[-1]}"
    return f"none of its own training slices shows {campaign.data.masks[-1]}"
