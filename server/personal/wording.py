"""How the personalisation study's methods and scanners are shown to people."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields

from server.personal.rows import Model, Place

NAMES: Mapping[str, str] = {
    "none": "the release as it is",
    "finetune": "full fine-tuning",
    "lastblocks": "last blocks",
    "fedbn": "local norms (FedBN)",
    "tgd": "TGD",
    "alone": "the new scanner alone, no release",
}
"""In the order of the tables."""
COLOURS: Mapping[str, str] = {
    "none": "#7b8794",
    "finetune": "#d08a2e",
    "lastblocks": "#2f9c86",
    "fedbn": "#c0567f",
    "tgd": "#3b74e0",
    "alone": "#8a6fd1",
}
"""Mid-tones that read on white and on near-black, as those of server/figures.py."""
MARKERS: Mapping[str, str] = {"none": "x", "finetune": "s", "lastblocks": "^", "fedbn": "D", "tgd": "o", "alone": "v"}
DOMAIN_NAMES: Mapping[str, str] = {"new": "new scanner", "old": "old scanners"}


def method_shown(method: str) -> str:
    return NAMES.get(method, method)


def _steer(model: Model) -> str:
    if model.steer == "none":
        return "not steered"
    how = {"joint": "steered by recognition", "gradprom": "steered under GradProm's gate"}.get(model.steer, model.steer)
    return f"{how}, {'pseudo-labels' if model.labels == 'pseudo' else 'its own labels'}"


_WORDS: Mapping[str, Callable[[Model], str]] = {
    "method": lambda model: method_shown(model.method),
    "loss": lambda model: {"noise2noise": "Noise2Noise", "clean": "towards clean images"}.get(model.loss, model.loss),
    "steer": _steer,
    "labels": _steer,
    "studies": lambda model: f"{model.studies} patients" if model.studies else "all patients",
    "rehearse": lambda model: "rehearsed" if model.rehearse else "",
    "blocks": lambda model: f"last {model.blocks}" if model.blocks else "",
    "tgd_form": lambda model: f"gradients of {model.tgd_form}s masked" if model.tgd_form else "",
    "tgd_first_layer": lambda model: f"first layer {model.tgd_first_layer}" if model.tgd_first_layer else "",
    "tgd_phi": lambda model: f"phi {model.tgd_phi:g}" if model.tgd_phi else "phi by the dropping test",
    "variant": lambda model: model.variant,
}


def label(model: Model, among: Sequence[Model]) -> str:
    """The method, and what tells it from the same method's other models in the table."""
    same = [each for each in among if each.method == model.method]
    varied = [each.name for each in fields(Model) if len({getattr(other, each.name) for other in same}) > 1]
    words = [method_shown(model.method), *(_WORDS[name](model) for name in varied)]
    return ", ".join(dict.fromkeys(filter(None, words)))


def ordered(models: Sequence[Model]) -> list[Model]:
    """The release first; within a method as they were planned, fewer studies and a smaller phi first."""
    names = tuple(NAMES)
    return sorted(
        models,
        key=lambda model: (
            names.index(model.method) if model.method in names else len(names),
            model.rehearse, model.tgd_form, model.tgd_first_layer, model.studies or 10**6, model.tgd_phi,
        ),
    )  # fmt: skip


def whole_label(place: Place) -> str:
    """`mni, gaussian, sigma 0.1 → composite, ..., federated release`"""
    if place.old_degradation == place.new_degradation:
        change = place.old_degradation
    else:
        change = f"{place.old_degradation} → {place.new_degradation}"
    return ", ".join(filter(None, (place.data, change, f"{place.release} release" if place.release else "")))
