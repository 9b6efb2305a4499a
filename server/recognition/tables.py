"""A sheet in, tables out: methods down in the papers' order, metrics across, a block per data set and label setting.

Beside a figure stands this row minus the row that it is compared with, over the seeds that both have. That row is the
supervised network for the same task (U-Net for masks, Enc for diagnoses), or what the table asks about: the same
network without SelfReg, no divergence of masks, the federation, the supervised recogniser.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace

from server.recognition.rows import WEIGHTS, Model, Place, Row, Sheet, sites_without
from server.recognition.unseen import Drop, drops
from server.recognition.wording import label as model_label
from server.recognition.wording import ordered, place_label, whole_label
from server.study.rows import STATES
from server.study.statistics import BySeed, mean, paired
from server.study.tables import Block, Line, Score
from server.study.wording import heading

MERGED = {
    "thirds": ("thirds", "thirds-pooled", "thirds-local"),
    "unseen": ("unseen", "unseen-pooled", "unseen-local"),
}
"""Tables of the plan that answer one question together."""
BORROWED = {"ablation": "few", WEIGHTS: "selfreg"}
"""Tables of networks with SelfReg, and the one in which the same stand without it."""
MASK_METRICS = ("dice", "jaccard", "hd95_mm", "hd95_px", "missed", "mask_ssim", "precision", "recall")
DIAGNOSIS_METRICS = ("accuracy", "f1", "auc")
METRICS = MASK_METRICS + DIAGNOSIS_METRICS
_DISTANCES = ("hd_mm", "hd_px", "ahd_mm", "ahd_px")
_IMAGE = ("psnr_db", "ssim", "judge_dice", "judge_accuracy")
_COUNTED = ("pseudo_offered", "pseudo_accept_rate", "pseudo_accepted", "images")
"""What is shown as it is: no difference of it says anything."""
_TASKS = ("dice", "accuracy")
_UNSEEN = ("dice", "hd95_mm", "hd95_px", "accuracy", "f1")
LOCAL = ("local", "all")
"""Setting and site of the mean over the sites' own models."""
Reference = Callable[[Model, Place, str], Model | None]


def blocks_of(sheet: Sheet, name: str, cells: Sequence[Mapping[str, object]] = ()) -> list[Block]:
    """The table `name` of the study; empty where no model was tested. `cells` tell which sites have which labels."""
    if name.startswith("ladder"):
        return list(_ladder(sheet, name, _TASKS))
    if name == "unseen":
        return list(_unseen(sheet))
    if name == "thirds":
        sheet = without_untrained(sheet, cells)
    ranked = ("feature_rank",) if name.startswith("selfreg") or name in BORROWED else ()
    images = [("images", _IMAGE)] if name == "whole" else []
    groups = [("masks", MASK_METRICS + ranked), ("diagnoses", DIAGNOSIS_METRICS), *images]
    groups = [(title, metrics) for title, metrics in groups if _there(sheet, sheet.conditions, metrics)]
    return list(_by_place(sheet, name, groups))


def rows_for(rows: Sequence[Row], names: Sequence[str]) -> list[Row]:
    """The rows of these tables; where networks with SelfReg stand alone there, also the same without it."""
    own = [row for row in rows if row.get("table") in names]
    methods = {row["method"].partition("+")[0] for row in own}
    lent = [BORROWED[name] for name in names if name in BORROWED]
    borrowed = [row for row in rows if row.get("table") in lent and row["method"].partition("+")[0] in methods]
    return [*own, *({**row, "table": names[0]} for row in borrowed)]


def details_of(sheet: Sheet, name: str) -> list[Block]:
    """What stands folded below: each class alone, the other distances, and what pseudo-labels were taken."""
    per_class = sorted({key for row in _rows(sheet) for key in row if key.startswith(("dice.", "f1."))})
    taken = ["pseudo_offered", "pseudo_accept_rate"]
    taken += sorted({key for row in _rows(sheet) for key in row if key.startswith("pseudo_accepted.")})
    parts = [f"images.{part}" for part in ("encoder", "decoder", "diagnosis", "prior")] if name == "thirds" else []
    if name == "unseen":
        return []
    if name.startswith("ladder"):
        return list(_ladder(sheet, name, [key for key in METRICS if key not in _TASKS]))
    groups = (
        ("Each class", [*per_class, *_DISTANCES]),
        ("Pseudo-labels in training", taken),
        ("Images per round whose loss moved each part of the network", parts),
    )
    return list(_by_place(sheet, name, groups))


def _rows(sheet: Sheet) -> Iterator[Mapping[str, object]]:
    for rows in sheet.test.values():
        yield from rows.values()


def without_untrained(sheet: Sheet, cells: Sequence[Mapping[str, object]]) -> Sheet:
    """Without the masks' figures of local models whose site has no mask, and likewise for diagnoses: that part of the
    network was never trained, and being above it says nothing."""
    missing = {kind: sites_without(kind, cells) for kind in ("masks", "diagnoses")}
    test = {}
    for (model, place), rows in sheet.test.items():
        kept = {}
        for seed, row in rows.items():
            drop: tuple[str, ...] = ()
            for kind, metrics in (("masks", (*MASK_METRICS, *_DISTANCES)), ("diagnoses", DIAGNOSIS_METRICS)):
                without = missing[kind].get(row.get("cell", ""), frozenset())
                all_of_them = model.site == "all" and bool(without)
                drop += metrics if model.setting == "local" and (model.site in without or all_of_them) else ()
            kept[seed] = {key: value for key, value in row.items() if key.partition(".")[0] not in drop}
        test[model, place] = kept
    return replace(sheet, test=test)


def _there(sheet: Sheet, places: Sequence[Place], metrics: Sequence[str]) -> list[str]:
    return [
        key for key in metrics if any(sheet.values(model, place, key) for model in sheet.models for place in places)
    ]


def _by_place(sheet: Sheet, name: str, groups: Sequence[tuple[str, Sequence[str]]]) -> Iterator[Block]:
    """A block per place and group of metrics."""
    places = sheet.conditions
    compared = reference_in(sheet, name)
    for place in places:
        for group, metrics in groups:
            there = _there(sheet, [place], metrics)
            lines = [_state(sheet, state, place, there) for state in STATES]
            lines += [_line(sheet, model, [(place, key) for key in there], compared) for model in ordered(sheet.models)]
            where = place_label(place, places) if len(places) > 1 else ""
            title = ": ".join(filter(None, (where, group if len(groups) > 1 else "")))
            block = Block(title, tuple(map(heading, there)), tuple(line for line in lines if any(line.scores)))
            if there and block.lines:
                yield block


def _ladder(sheet: Sheet, name: str, metrics: Sequence[str]) -> Iterator[Block]:
    """A block per metric, label settings across."""
    places = sheet.conditions
    compared = reference_in(sheet, name)
    for key in _there(sheet, places, metrics):
        shown = [place for place in places if _there(sheet, [place], [key])]
        lines = [_line(sheet, model, [(place, key) for place in shown], compared) for model in ordered(sheet.models)]
        columns = tuple(place_label(place, shown) or whole_label(place) for place in shown)
        yield Block(heading(key), columns, tuple(line for line in lines if any(line.scores)))


def _line(sheet: Sheet, model: Model, columns: Sequence[tuple[Place, str]], compared: Reference) -> Line:
    references = [compared(model, place, key) for place, key in columns]
    scores = tuple(
        _score(sheet, model, place, key, reference) for (place, key), reference in zip(columns, references, strict=True)
    )
    is_one = any(
        compared(other, place, key) == model for place, key in columns for other in sheet.models if other != model
    )
    return Line(model_label(model, sheet.models), scores, ours=is_one)


def _score(sheet: Sheet, model: Model, place: Place, key: str, reference: Model | None) -> Score | None:
    values = sheet.values(model, place, key)
    if not values:
        return None
    if reference is None or key.partition(".")[0] in _COUNTED:
        return Score(key, mean(values), len(values))
    return Score(key, mean(values), len(values), paired(values, sheet.values(reference, place, key)))


def _state(sheet: Sheet, state: str, place: Place, metrics: Sequence[str]) -> Line:
    """Images that no model made: of these only what an independent judge and the comparison with clean ones say."""
    scores = []
    for key in metrics:
        values = sheet.of_state(state, place, key) if key in _IMAGE else {}
        shown = values and (state == "degraded" or key.startswith("judge"))
        scores.append(Score(key, mean(values), len(values)) if shown else None)
    return Line(f"{state} images", tuple(scores), state=True)


def reference_in(sheet: Sheet, name: str) -> Reference:
    """What a model of the table `name` is compared with, by place and metric; None for that one itself."""

    def of(model: Model, place: Place, key: str) -> Model | None:
        if name.startswith("selfreg") or name in BORROWED:
            found: Model | None = sheet.like(model, selfreg="none")
        elif name == "mask-ssl":
            found = sheet.like(model, mask_ssl="none")
        elif name == "thirds":
            found = next(
                (m for m in ordered(sheet.models) if m.setting == "federated" and m.method == model.method), None
            )
        elif name == "whole":
            found = supervised_like(sheet, model)
        else:
            found = baseline(sheet, model, place, key)
        return None if found == model else found

    return of


def supervised_like(sheet: Sheet, model: Model) -> Model | None:
    """The supervised recogniser of both tasks, inside the same objective where there is one."""
    found = [m for m in ordered(sheet.models) if m.method in ("supervised", "umtl") and m.selfreg == "none"]
    return min(found, key=lambda each: (each.objective != model.objective, each.setting != model.setting), default=None)


def baseline(sheet: Sheet, model: Model, place: Place, key: str) -> Model | None:
    """The supervised network for the task that `key` measures, of the model's setting where there is one."""
    of_masks = key.partition(".")[0] in (*MASK_METRICS, *_DISTANCES)
    for method in ("unet" if of_masks else "enc", "supervised", "umtl"):
        found = [each for each in ordered(sheet.models) if (each.method, each.selfreg) == (method, "none")]
        found = [each for each in found if sheet.values(each, place, key)]
        if found:
            return min(found, key=lambda each: (each.setting != model.setting, each.recogniser != model.recogniser))
    return None


def _unseen(sheet: Sheet) -> Iterator[Block]:
    """Per metric: own hospitals' tests, the never-seen one's, and the drop, beside it this row's minus local's."""
    for key in _UNSEEN:
        found = list(drops(sheet, key))
        for condition in dict.fromkeys(each.condition for each in found):
            here = {each.model: each for each in found if each.condition == condition}
            local = next((each for each in here.values() if (each.model.setting, each.model.site) == LOCAL), None)
            lines = [_drop_line(here[model], local, key, list(here)) for model in ordered(list(here))]
            many = len(sheet.conditions) > 1
            title = f"{heading(key)}: {whole_label(condition)}" if many else heading(key)
            yield Block(title, ("own hospitals", "never-seen hospital", "drop ↓"), tuple(lines))


def _drop_line(drop: Drop, local: Drop | None, key: str, among: Sequence[Model]) -> Line:
    sign = -1 if key.startswith("hd") else 1  # of a distance the drop is what it grows by
    by_seed = _signed(drop.by_seed, sign)
    difference = None if local is None or local is drop else paired(by_seed, _signed(local.by_seed, sign))
    scores = (
        Score(key, mean(drop.own), len(drop.own)),
        Score(key, mean(drop.away), len(drop.away)),
        Score(f"drop.{key}", mean(by_seed), len(by_seed), difference),
    )
    return Line(model_label(drop.model, among), scores, ours=drop is local)


def _signed(by_seed: BySeed, sign: int) -> dict[int, float]:
    return {seed: sign * value for seed, value in by_seed.items()}
