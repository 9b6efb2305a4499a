"""How a study's methods, conditions and metrics are shown to people."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, replace

from server.study.rows import Condition, Model
from server.wording import METRICS, Shown, bytes_shown

NETWORKS = {"unet": "U-Net", "vnet": "V-Net", "resunet": "Res-U-Net", "voxresnet": "VoxResNet"}
UPHILL = (
    "share of steps with <change of weights, g> ≥ 0, g the gradient of the main loss: uphill to first order, on the "
    "step's own batch"
)
_RECOGNITION = {
    "drop": Shown("drop", "tests of the own hospitals minus those of the never-seen one", 3, "", False),
    "feature_rank": Shown("feature rank", "effective rank of the last decoder block's features, at the end", 2),
    "pseudo_offered": Shown("offered", "images without a diagnosis, drawn in training", 0),
    "pseudo_accept_rate": Shown("accepted, share", "of the images offered"),
    "pseudo_accepted": Shown("accepted", "images that training took as of this diagnosis", 0),
    "images": Shown("images", "images per round whose loss moved this part of the network", 0),
}
_GENERATION = {
    "autoencoder_psnr_db": Shown("autoencoder PSNR", "test images after encoding and decoding", 2, "dB"),
    "denoiser_loss": Shown("denoiser loss", "mean square of what it tells less the truth, test images", 4, "", False),
    "controlnet_loss": Shown("ControlNet loss", "the same with the hint", 4, "", False),
    "mask_dice": Shown("Dice on generated", "an independent segmenter on generated images, against their masks"),
    "real_dice": Shown("Dice on real", "the same segmenter on the real test images that have these masks"),
    "mask_share": Shown("generated / real", "Dice of the segmenter on generated images over that on real ones"),
    "feature_distance": Shown(
        "feature distance", "squared Fréchet distance to real training images in a judge's features", 3, "", False,
    ),
    "real_distance": Shown("of real images", "feature distance of real test images: what is as near as it gets", 3),
    "nearest_ratio": Shown(
        "nearest ratio", "median distance to the nearest training image over that to other patients' images", 2
    ),
    "memorised_share": Shown("too near, share", "drawn images that the guard takes for copies of training images",
                             3, "", False),
    "membership_auc": Shown(
        "membership", "pairs of a drawn and a held-out image in which the drawn one is nearer to training images; 0.5: "
        "no trace of them", 3, "", False,
    ),
    "rejected_share": Shown("rejected, share", "drawn images that a guard left out"),
    "refused": Shown("refused, share of sites", "where the guard refuses the generator", 2),
    "images_per_s": Shown("images per s", "drawn, all guards left out", 1),
}  # fmt: skip
_PERSONAL = {
    "trained_share": Shown("weights moved, share", "of the enhancer's weights, those that the adaptation has moved"),
    "phi": Shown("phi", "kernels that score below it were retrained", 2),
    "lesion_bias": Shown("lesion bias", "mean of enhanced lesions over acquisitions, off their true mean", 2, "%"),
    "noise_cov": Shown("noise", "spread of an organ's pixels over acquisitions, of its mean", 2, "%", False),
}
_TRUST = {
    "backdoor_success": Shown(
        "backdoor", "of the images in which anything is found, the share in which the patch hides it", 3, "", False
    ),
    "epsilon": Shown("epsilon", "spent over the whole campaign", 2, "", False),
    "noise_multiplier": Shown("noise", "standard deviation over the clipping norm", 2, "", False),
    "privacy_cosine": Shown("cosine", "of a round's noised update with the one without noise, mean over rounds"),
}
SHOWN: Mapping[str, Shown] = {
    **_RECOGNITION,
    **_GENERATION,
    **_PERSONAL,
    **_TRUST,
    **METRICS,
    "judge_accuracy": Shown("judge accuracy", "accuracy of an independent recogniser, trained on clean images only"),
    **{
        f"dice_{kind}": Shown(f"Dice of {name}", f"an independent {name}, trained on clean images only")
        for kind, name in NETWORKS.items()
    },
    **{
        f"no_harm_dice_{kind}": Shown(f"Dice of {name}", "the enhancer was given clean images")
        for kind, name in NETWORKS.items()
    },
    "gate_open_rate": Shown("gate open", "share of steps (or blocks) in which recognition passed the gate"),
    "mean_cosine": Shown("cosine", "mean cosine of the two gradients", 3),
    "ascent_rate": Shown("steps uphill", UPHILL, 3, "", False),
    "added_share": Shown("added share", "length of what recognition added, over |g|", 3),
    "loss_enhance": Shown("main loss", "of the last training record", 5, "", False),
}
NEUTRAL = ("gate_open_rate", "mean_cosine", "added_share", "bytes_up", "feature_rank", "pseudo_offered",
           "pseudo_accept_rate", "pseudo_accepted", "images", "real_dice", "real_distance", "refused",
           "rejected_share", "trained_share", "phi", "lesion_bias", "epsilon", "noise_multiplier",
           "privacy_cosine")  # fmt: skip
"""Neither more nor less of these is better."""
COLOURS: Mapping[str, str] = {
    "gradprom": "#3b74e0",
    "joint": "#d08a2e",
    "frozen": "#2f9c86",
    "estr": "#c0567f",
    "plain": "#7b8794",
    "todnet": "#8a6fd1",
    "todnet-gated": "#3b74e0",
    "mse-wgan": "#d08a2e",
    "sa-wgan": "#2f9c86",
    "cnn3": "#c0567f",
    "nlm": "#a0714a",
}
"""Mid-tones that read on white and on near-black, as those of server/figures.py."""
MARKERS = {"gradprom": "o", "joint": "s", "frozen": "^", "estr": "D", "plain": "v"}
ORDER = ("gradprom", "todnet-gated", "todnet", "joint", "frozen", "estr", "plain", "mse-wgan", "sa-wgan", "cnn3", "nlm")


def shown_of(metric: str) -> Shown:
    """How a metric is shown; `dice.<mask>` and `f1.<diagnosis>` as dice and f1 of that class."""
    name, _, part = metric.partition(".")
    shown = SHOWN[name]
    return replace(shown, heading=f"{shown.heading} of {part.replace('_', ' ')}") if part else shown


def arrow(metric: str) -> str:
    if metric.partition(".")[0] in NEUTRAL:
        return ""
    return " ↑" if shown_of(metric).higher_is_better else " ↓"


def heading(metric: str) -> str:
    """`PSNR, dB ↑`"""
    shown = shown_of(metric)
    return f"{shown.heading}{', ' + shown.unit if shown.unit and shown.unit != 'B' else ''}{arrow(metric)}"


def figure(metric: str, value: float) -> str:
    return bytes_shown(value) if metric == "bytes_up" else _true_minus(f"{value:.{shown_of(metric).decimals}f}")


def signed(metric: str, value: float) -> str:
    """`+0.12`, with a true minus; what rounds to nothing has no sign."""
    text = f"{value:+.{shown_of(metric).decimals}f}"
    return text[1:] if float(text) == 0 else _true_minus(text)


def _true_minus(text: str) -> str:
    return text.replace("-", "−")


def task_weight_shown(task_weight: float) -> str:
    return f"{task_weight:g}"


def method_shown(method: str) -> str:
    return {"nlm": "non-local means, learns nothing"}.get(method, method)


def label(model: Model, among: Sequence[Model]) -> str:
    """The objective, and what tells it from the same objective's other models in the table."""
    same = [each for each in among if each.method == model.method]
    # An optimiser that differs from the others' matters even where the objective was run with one only.
    varied = [
        each.name
        for each in fields(Model)
        if len({getattr(other, each.name) for other in (among if each.name == "optimiser" else same)}) > 1
    ]
    words = [method_shown(model.method), *filter(None, (_WORDS[name](model) for name in varied))]
    return ", ".join(dict.fromkeys(words))


def _adam(model: Model) -> str:
    return "" if model.optimiser == "sgd" else f"Adam, {model.adam_states} state{'s' * (model.adam_states == 'two')}"


def _optimiser(model: Model) -> str:
    return "SGD" if model.optimiser == "sgd" else _adam(model)


_WORDS: Mapping[str, Callable[[Model], str]] = {
    "method": lambda model: method_shown(model.method),
    "setting": lambda model: model.setting,
    "recognition": lambda model: model.recognition,
    "gate": lambda model: f"{model.gate} gate",
    "relative": lambda model: "" if model.relative else "absolute lambda",
    "norm_cap": lambda model: "" if model.norm_cap is None else f"norm cap {model.norm_cap:g}",
    "auxiliaries": lambda model: {
        "together": "two tasks, one gate", "separate": "two tasks, a gate each"
    }.get(model.auxiliaries, model.auxiliaries),
    "adam_states": _adam,
    "optimiser": _optimiser,
    "promotion": lambda model: "" if model.setting != "federated" else f"promotion {model.promotion}",
    "enhancer": lambda model: model.enhancer,
    "output": lambda model: f"{model.output} output",
    "adversarial_weight": lambda model: (
        "adversarial weight not recorded"
        if model.adversarial_weight is None
        else f"adversarial weight {model.adversarial_weight:g}"
    ),
    "recogniser": lambda model: f"through {NETWORKS.get(model.recogniser, model.recogniser)}",
}  # fmt: skip


def condition_label(condition: Condition, among: Sequence[Condition]) -> str:
    """What tells the condition from the table's others."""

    def varies(name: str) -> bool:
        return len({getattr(each, name) for each in among}) > 1

    words = []
    if condition.data != condition.test_data:
        words.append(f"{condition.data} → {condition.test_data}")
    elif varies("data") or varies("test_data"):
        words.append(condition.data)
    if varies("degradation"):
        words.append(condition.degradation)
    if varies("sigma") and condition.sigma is not None:
        words.append(f"sigma {condition.sigma:g}")
    if varies("data_consistency"):
        words.append("with data consistency" if condition.data_consistency else "without data consistency")
    if varies("tuning"):
        words.append(condition.tuning)
    if varies("scanners"):
        words.append(f"scanners {condition.scanners}")
    return ", ".join(words)


def gathered(conditions: Sequence[Condition]) -> tuple[str, ...]:
    """The conditions in full, those that differ in the noise only as one: `mni, gaussian, sigma 0.1, 0.2`."""
    strengths: dict[str, list[str]] = {}
    for each in sorted(conditions, key=lambda each: each.sigma or 0):
        words = whole_label(replace(each, sigma=None))
        sigma = [] if each.sigma is None else [f"{each.sigma:g}"]
        strengths.setdefault(words, []).extend(sigma)
    return tuple(
        f"{words}, sigma {', '.join(dict.fromkeys(found))}" if found else words for words, found in strengths.items()
    )


def whole_label(condition: Condition) -> str:
    """The condition in full: `hippocampus, gaussian, sigma 0.2`."""
    data = condition.data if condition.data == condition.test_data else f"{condition.data} → {condition.test_data}"
    sigma = "" if condition.sigma is None else f", sigma {condition.sigma:g}"
    return f"{data}, {condition.degradation.replace('_', ' ')}{sigma}"
