"""How the recognition study's methods, labels and places are shown to people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields

from server.recognition.rows import SELFREG, Model, Place

ORDER = ("supervised", "unet", "enc", "encssl", "umtl", "umtls", "umtl-ssl", "multimix")
"""The papers'."""
NAMES: Mapping[str, str] = {
    "unet": "U-Net",
    "enc": "Enc",
    "encssl": "EncSSL",
    "umtl": "UMTL",
    "umtls": "UMTLS",
    "umtl-ssl": "UMTL-SSL",
    "multimix": "MultiMix",
}
REGULARISERS: Mapping[str, str] = {"selfreg": "SelfReg", "scr": "SCR", "ifd": "IFD"}
NETWORKS: Mapping[str, str] = {"unet": "U-Net", "attention-unet": "attention U-Net", "multimix": "MultiMix's network"}
SETTINGS = ("federated", "pooled", "local")
MASK_SSL = ("none", "official0", "pairwise", "prior", "federated", "consistency")
COLOURS: Mapping[str, str] = {
    "multimix": "#3b74e0",
    "unet": "#d08a2e",
    "enc": "#2f9c86",
    "encssl": "#c0567f",
    "umtl": "#8a6fd1",
    "umtls": "#7b9a3a",
    "umtl-ssl": "#4aa3c7",
    "supervised": "#7b8794",
}
"""Mid-tones that read on white and on near-black, as those of server/figures.py."""
MARKERS: Mapping[str, str] = {"multimix": "o", "unet": "s", "enc": "^", "encssl": "D", "umtl": "v", "umtls": "P",
                              "umtl-ssl": "p", "supervised": "X"}  # fmt: skip


def method_shown(model: Model) -> str:
    """`MultiMix + SelfReg`"""
    added = REGULARISERS.get(model.selfreg, model.selfreg)
    plain = model.method == "unet" and model.recogniser == "attention-unet"
    name = "attention U-Net" if plain else NAMES.get(model.method, model.method)
    return name + (f" + {added}" if model.selfreg != "none" else "")


def label(model: Model, among: Sequence[Model]) -> str:
    """The method, and what tells it from the table's other models."""

    def varies(name: str) -> bool:
        same = [each for each in among if each.method == model.method] if name in ("recogniser", "mask_ssl") else among
        return len({getattr(each, name) for each in same}) > 1

    words = [method_shown(model)]
    if varies("recogniser"):
        words.append(NETWORKS.get(model.recogniser, model.recogniser))
    if varies("mask_ssl"):
        words.append(f"divergence {model.mask_ssl}")
    if varies("objective"):
        words.append("alone" if model.objective == "none" else model.objective)
    if varies("setting"):
        words.append(model.setting)
    if model.setting == "local" and varies("site"):
        words.append("mean over the sites' models" if model.site == "all" else f"{model.site}'s model")
    return ", ".join([*words, *filter(None, (model.variant,))])


def ordered(models: Sequence[Model]) -> list[Model]:
    """Methods in the order of the papers, each without and with what regularises it; a mean over sites after them."""

    def place(known: Sequence[str], name: str) -> int:
        return known.index(name) if name in known else len(known)

    return sorted(
        models,
        key=lambda model: (
            place(tuple(NETWORKS), model.recogniser) if model.method == "supervised" else 0,
            place(ORDER, model.method),
            place(SELFREG, model.selfreg),
            place(MASK_SSL, model.mask_ssl),
            place(SETTINGS, model.setting),
            model.site == "all",
            *(str(getattr(model, each.name)) for each in fields(Model)),
        ),
    )


def place_label(place: Place, among: Sequence[Place]) -> str:
    """What tells the place from the table's others."""

    def varies(name: str) -> bool:
        return len({getattr(each, name) for each in among}) > 1

    words = []
    if place.data != place.test_data:
        words.append(f"{place.data} → {place.test_data}")
    elif varies("data") or varies("test_data"):
        words.append(place.data)
    if varies("labels"):
        words.append(place.labels or "all labels")
    if varies("unseen"):
        words.append(f"{place.unseen or 'nobody'} never seen")
    if varies("degradation"):
        words.append("no degradation" if place.degradation == "none" else place.degradation)
    if varies("sigma") and place.sigma is not None:
        words.append(f"sigma {place.sigma:g}")
    return ", ".join(words)


def whole_label(place: Place) -> str:
    """The place in full: `mni, 10 masks, 10 % diagnoses`."""
    data = place.data if place.data == place.test_data else f"{place.data} → {place.test_data}"
    noise = []
    if place.degradation != "none":
        sigma = "" if place.sigma is None else f", sigma {place.sigma:g}"
        noise = [place.degradation.replace("_", " ") + sigma]
    unseen = [f"{place.unseen} never seen"] if place.unseen else []
    return ", ".join([data, place.labels or "all labels", *unseen, *noise])
