"""How the generation study's augmentations, generators and conditions are shown to people."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields

from server.generation.rows import Model

NAMES: Mapping[str, str] = {
    "none": "no augmentation",
    "contrast": "contrast",
    "noise": "noise",
    "rotate": "rotation",
    "scale": "scaling",
    "deepstack": "DeepStack",
    "emit-diff": "EMIT-Diff",
    "emit-diff+spatial": "EMIT-Diff + spatial",
}
"""In the order of the tables."""
SETTINGS = ("federated", "pooled", "local")
GENERATORS = ("none", *SETTINGS)
SAMPLERS: Mapping[str, str] = {"ddim": "DDIM", "dpm": "DPM-Solver++", "rflow": "rectified flow"}
COLOURS: Mapping[str, str] = {"ddim": "#d08a2e", "dpm": "#2f9c86", "rflow": "#3b74e0"}
"""Mid-tones that read on white and on near-black, as those of server/figures.py."""
MARKERS: Mapping[str, str] = {"ddim": "s", "dpm": "^", "rflow": "o"}


def method_shown(method: str) -> str:
    return NAMES.get(method, method)


def sampling_shown(model: Model) -> str:
    """`DDIM, 20 steps`"""
    return f"{SAMPLERS.get(model.sampler, model.sampler)}, {model.steps} step{'s' * (model.steps != 1)}"


def _of_generator(model: Model) -> str:
    return "" if model.generator == "none" else f"{model.generator} generator"


def _setting(model: Model) -> str:
    if model.setting != "local":
        return model.setting
    return "local, mean over sites" if model.site == "all" else f"local, {model.site}"


def _task(model: Model) -> str:
    if not model.task_weight:
        return "no task" if model.task_gate else ""
    gate = "no gate" if model.task_gate == "none" else f"{model.task_gate} gate"
    return f"task {model.task_weight:g}, {gate}"


_MASKS = {
    "none": "masks not shown",
    "channel": "outlines in a channel",
    "merged": "outlines merged with edges",
    "filled": "masks filled",
}
_WORDS: Mapping[str, Callable[[Model], str]] = {
    "method": lambda model: method_shown(model.method),
    "setting": _setting,
    "site": _setting,
    "generator": _of_generator,
    "prediction": lambda model: "",  # its sampler says so
    "text": lambda model: f"text {model.text}" if model.text else "",
    "edges": lambda model: f"edges {model.edges}" if model.edges else "",
    "contour": lambda model: _MASKS.get(model.contour, ""),
    "box": lambda model: "with box" if model.box else "",
    "sampler": lambda model: sampling_shown(model) if model.sampler else "",
    "steps": lambda model: sampling_shown(model) if model.sampler else "",
    "guidance": lambda model: f"guidance {model.guidance:g}" if model.guidance else "",
    "classes": lambda model: "balanced classes" if model.classes == "balanced" else "",
    "task_weight": _task,
    "task_gate": _task,
    "balance": lambda model: "balanced batches" if model.balance else "",
    "variant": lambda model: model.variant,
}


def label(model: Model, among: Sequence[Model]) -> str:
    """What tells the model from the table's others; of a recogniser first of all its augmentation."""
    generated = {each.method for each in among} == {"emit-diff"}
    drawn = [each for each in among if each.generator != "none"]
    varied = []
    for each in fields(Model):
        # How images are drawn says nothing of a recogniser that trains without them.
        of_drawing = each.name not in ("method", "setting", "site", "variant")
        others = drawn if of_drawing and drawn else among
        if len({getattr(other, each.name) for other in others}) > 1:
            varied.append(each.name)
    if not generated:
        varied = list(dict.fromkeys(["method", *varied]))
    words = [_WORDS[name](model) for name in varied] or [_setting(model)]
    return ", ".join(dict.fromkeys(filter(None, words))) or method_shown(model.method)


def ordered(models: Sequence[Model]) -> list[Model]:
    """Augmentations from none to all, a generator's settings from federated to local; within them as they were
    planned, a mean over sites before its sites."""

    def place(known: Sequence[str], name: str) -> int:
        return known.index(name) if name in known else len(known)

    return sorted(
        models,
        key=lambda model: (
            place(tuple(NAMES), model.method),
            place(SETTINGS, model.setting),
            place(GENERATORS, model.generator),
            model.site != "all",
        ),
    )
