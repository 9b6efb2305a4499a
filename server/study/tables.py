"""A sheet in, tables out: models down, conditions across, each figure with its paired difference.

Beside every rival stands ours minus the rival, over the seeds that both have. Ours is GradProm where the table has it,
else TOD-Net; where the table varies GradProm itself (gates, optimisers), the rest is compared with its plainest form.

A block per condition with the metrics across; where a table asks how something depends on lambda or on the noise, a
block per metric with the conditions across. Lambda is a column of the tables that ask about
it; elsewhere every model stands with the lambda that its validation patients chose (server/study/rows.py).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields

from server.study.rows import EQUAL, STATES, Condition, Model, Sheet, Trained, tried, tuned
from server.study.statistics import BySeed, Difference, mean, paired
from server.study.wording import ORDER, condition_label, heading, label, task_weight_shown

BY_LAMBDA = ("lambda", "gates")
"""Tables that show every lambda."""
BY_METRIC = ("lambda", "ladder", "severity", "tuning", "federated-tuning")
MERGED = {
    "federated": ("federated", "federated-pooled", "federated-local", "federated-iid", "federated-iid-pooled"),
    "todnet": ("todnet", "todnet-nlm"),
}
"""Tables of the plan that answer one question together."""
RIVALS = "rivals"
"""The table that is no table of the plan: every objective at its own lambda on every data set."""
OURS = {"todnet": "todnet", "tod-transfer": "todnet"}
_IMAGE = ("psnr_db", "ssim", "judge_dice", "judge_accuracy")
_REGION = ("psnr_db", "psnr_db_region", "ssim", "ssim_region", "rmse", "rmse_region")
_OWN = ("dice", "accuracy")
_TRAINING = ("gate_open_rate", "mean_cosine", "ascent_rate")
_DOWNSTREAM = ("dice_unet", "dice_vnet", "dice_resunet", "dice_voxresnet")
_HARM = tuple(f"no_harm_{name}" for name in _DOWNSTREAM)
_GROUPS: dict[str, tuple[tuple[str, tuple[str, ...]], ...]] = {
    "todnet": (("image quality", _REGION), ("four networks on enhanced images", _DOWNSTREAM),
               ("four networks on clean images that were enhanced", _HARM)),
    "tod-transfer": (("image quality", _REGION[:4]), ("four networks on enhanced images", _DOWNSTREAM),
                     ("four networks on clean images that were enhanced", _HARM)),
    "tuning": (("validation patients", ("psnr_db", "ssim")),),
    "federated-tuning": (("validation patients", ("psnr_db", "ssim")),),
    "gates": (("", _IMAGE + _TRAINING),),
    "adam": (("", (*_IMAGE, "loss_enhance", *_TRAINING)),),
    "auxiliaries": (("", ("psnr_db", "ssim", "judge_dice", "judge_accuracy", "dice", "accuracy")),),
    "federated": (("", ("psnr_db", "ssim", "dice", "accuracy", "judge_dice", "judge_accuracy", "bytes_up")),),
}  # fmt: skip


Place = tuple[Condition, float | None]
"""A condition, and a lambda where lambda is asked about."""


@dataclass(frozen=True, slots=True)
class Score:
    metric: str
    mean: float
    seeds: int
    difference: Difference | None = None
    """Of ours minus this model's figure; for images without harm, of this model's minus the clean image's."""


@dataclass(frozen=True, slots=True)
class Line:
    label: str
    scores: tuple[Score | None, ...]
    ours: bool = False
    state: bool = False
    """Images that no model made."""
    note: str = ""
    """The lambda, and among how many it was chosen."""


@dataclass(frozen=True, slots=True)
class Block:
    title: str
    columns: tuple[str, ...]
    lines: tuple[Line, ...]

    @property
    def seeds(self) -> int:
        """Of the figure with the most; the mean of one with fewer must not be read against it."""
        return max((score.seeds for line in self.lines for score in line.scores if score), default=0)


@dataclass(frozen=True, slots=True)
class Column:
    condition: Condition
    task_weight: float | None
    """A lambda that is asked about; None takes the chosen one."""
    metric: str


def blocks_of(sheet: Sheet, name: str) -> list[Block]:
    """The table `name` of the study; empty where no model was tested."""
    places = list(_places(sheet, name))
    ours = ours_in(sheet.models, name)
    models = sorted(ordered(sheet.models), key=lambda model: model.method != ours)
    blocks = []
    for title, metrics in _GROUPS.get(name, (("", _IMAGE),)):
        there = [metric for metric in metrics if any(sheet.values(each, metric) for each in sheet.test)]
        if name in BY_METRIC:
            for metric in there:
                columns = [Column(*place, metric) for place in places]
                blocks.append(_block(sheet, name, _title(title, heading(metric)), columns, models))
            continue
        for place in places:
            columns = [Column(*place, metric) for metric in there]
            where = _place_label(place, places) if len(places) > 1 else ""
            blocks.append(_block(sheet, name, _title(title, where), columns, models))
    return [block for block in blocks if block.columns and block.lines]


def _title(*words: str) -> str:
    return ": ".join(filter(None, words))


def _place_label(place: Place, places: Sequence[Place]) -> str:
    words = condition_label(place[0], [condition for condition, _ in places])
    task_weight = "" if place[1] is None else f"lambda {task_weight_shown(place[1])}"
    return ", ".join(filter(None, (words, task_weight)))


def _places(sheet: Sheet, name: str) -> Iterator[Place]:
    """Conditions (by strength of the noise) and, where lambda is asked about, every lambda of each."""
    first = {data: place for place, data in enumerate(dict.fromkeys(each.data for each in sheet.conditions))}
    for condition in sorted(
        sheet.conditions,
        key=lambda c: (first[c.data], c.data != c.test_data, c.sigma or 0, c.scanners == EQUAL, c.tuning),
    ):
        asked = {
            each.task_weight
            for each in sheet.test
            if each.condition == condition and each.task_weight is not None and each.model.relative
        }
        if name in BY_LAMBDA and len(asked) > 1:
            yield from ((condition, task_weight) for task_weight in sorted(asked))
        else:
            yield condition, None


def _block(sheet: Sheet, name: str, title: str, columns: Sequence[Column], models: Sequence[Model]) -> Block:
    lines = [_state_line(sheet, state, columns) for state in STATES]
    for model in models:
        reference = reference_of(model, models, name)
        scores = tuple(_score(sheet, model, reference, column) for column in columns)
        if any(scores):
            asked = model.relative and any(column.task_weight is not None for column in columns)
            note = "" if asked else _note(sheet, model, columns)
            lines.append(Line(label(model, models), scores, ours=reference is None, note=note))
    used = [place for place in range(len(columns)) if any(line.scores[place] for line in lines if not line.state)]
    kept = [_only(line, used) for line in lines]
    return Block(
        title, tuple(_headings([columns[place] for place in used])), tuple(line for line in kept if any(line.scores))
    )


def _only(line: Line, places: Sequence[int]) -> Line:
    return Line(line.label, tuple(line.scores[place] for place in places), line.ours, line.state, line.note)


def _headings(columns: Sequence[Column]) -> Iterator[str]:
    places = list(dict.fromkeys((column.condition, column.task_weight) for column in columns))
    for column in columns:
        place = (column.condition, column.task_weight)
        yield heading(column.metric) if len(places) == 1 else _place_label(place, places)


def _state_line(sheet: Sheet, state: str, columns: Sequence[Column]) -> Line:
    scores = []
    for column in columns:
        metric = column.metric.removeprefix("no_harm_") if state == "clean" else column.metric
        values = sheet.of_state(state, column.condition, metric)
        # PSNR and SSIM of the clean image with itself say nothing.
        # Dice and accuracy without a judge are those of whichever model's own recogniser.
        shown = values and metric not in _OWN and (state == "degraded" or metric not in _REGION)
        scores.append(Score(column.metric, mean(values), len(values)) if shown else None)
    return Line(f"{state} images", tuple(scores), state=True)


def _score(sheet: Sheet, model: Model, reference: Model | None, column: Column) -> Score | None:
    values = values_in(sheet, model, column)
    if not values:
        return None
    difference = None
    if column.metric.startswith("no_harm_"):
        clean = sheet.of_state("clean", column.condition, column.metric.removeprefix("no_harm_"))
        difference = paired(values, clean)
    elif reference is not None and column.metric not in _TRAINING and column.metric != "bytes_up":
        difference = paired(values_in(sheet, reference, column), values)
    return Score(column.metric, mean(values), len(values), difference)


def values_in(sheet: Sheet, model: Model, column: Column) -> BySeed:
    """Test figures by seed at the column's lambda, or at the chosen one; models that lambda does not steer, or whose
    lambda is on another scale, stand in every column."""
    task_weights = sheet.task_weights(model, column.condition)
    if column.task_weight is not None and model.relative and any(each is not None for each in task_weights):
        return sheet.values(Trained(model, column.condition, column.task_weight), column.metric)
    return sheet.values(Trained(model, column.condition, tuned(sheet, model, column.condition)), column.metric)


def _note(sheet: Sheet, model: Model, columns: Sequence[Column]) -> str:
    notes = []
    for condition in dict.fromkeys(column.condition for column in columns):
        task_weights, chosen = tried(sheet, model, condition), tuned(sheet, model, condition)
        if chosen is not None:
            among = f" of {', '.join(task_weight_shown(each) for each in task_weights if each is not None)}" * (
                len(task_weights) > 1
            )
            notes.append(f"lambda {task_weight_shown(chosen)}{among}")
    return "; ".join(dict.fromkeys(notes))


def ordered(models: Sequence[Model]) -> list[Model]:
    """Ours first, rivals in a fixed order, the plainest form of each before its variants."""
    place = {method: number for number, method in enumerate(ORDER)}
    return sorted(models, key=lambda model: (place.get(model.method, len(place)), _oddness(model)))


def ours_in(models: Sequence[Model], name: str) -> str:
    """The objective whose table it is."""
    return OURS.get(name, "gradprom" if any(each.method == "gradprom" for each in models) else "todnet")


def reference_of(model: Model, models: Sequence[Model], name: str = "") -> Model | None:
    """Ours that the model is compared with: the plainest one for ours themselves (None for that one), else the one
    that is most like the rival in everything but the objective."""
    method = ours_in(models, name)
    ours = sorted((each for each in models if each.method == method), key=_oddness)
    if not ours or model == ours[0]:
        return None
    if model.method == method:
        return ours[0]
    return min(ours, key=lambda each: _unlike(each, model))


_PAIRED_BY = ("setting", "recognition", "auxiliaries", "adam_states", "optimiser", "promotion", "enhancer", "output",
              "recogniser", "adversarial_weight")  # fmt: skip


def _unlike(one: Model, other: Model) -> int:
    return sum(getattr(one, name) != getattr(other, name) for name in _PAIRED_BY)


_ANY = ("adversarial_weight",)


def _oddness(model: Model) -> tuple[int, int, bool]:
    plain = Model(model.method, setting="federated" if model.setting == "federated" else "pooled")
    odd = sum(getattr(model, each.name) != getattr(plain, each.name) for each in fields(Model) if each.name not in _ANY)
    place = int(model.setting not in ("federated", "pooled")) + (model.setting == "pooled")
    # No adversarial weight is the plain one; one that is not known comes last.
    return place, odd, model.adversarial_weight is None
