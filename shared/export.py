"""A trained network in, an ONNX file out that other programs evaluate without Wardround or torch.

    recogniser   image_BCHW -> mask_logits       (B, 1 + masks, H, W), channel 0 background   where there are masks
                               diagnosis_logits  (B, diagnoses)                           where there are diagnoses
                               saliency          (B, 1, H, W), |d (highest score) / d image|  where its closed form is
                                                 known
    enhancer     image_BCHW -> enhanced          (B, C, H, W), held within 0..1, as what a recogniser judges and what is
                                                 written to DICOM

image_BCHW is float32 on the campaign's scale; any number of images of the campaign's size. Saliency is the closed form
of shared.recognise.saliency, a part of the graph like any other: no runtime needs gradients for it, nor for the bridge
that feeds it to the decoder. The file tells in its metadata what its outputs mean and how a DICOM image becomes its
input: shared/export_metadata.py lists the keys. What the exporter notes about the machine that it ran on is taken out.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from shared.checkpoint import write_atomically
from shared.config import CampaignConfig
from shared.config.recognition import BRIDGED
from shared.errors import ConfigError, DataError
from shared.export_metadata import Network, graph_meaning, input_meaning, metadata, output_meanings
from shared.recognise.recognition import Recognition
from shared.recognise.saliency import Step, saliency_from_steps, saliency_of

if TYPE_CHECKING:
    from onnx import ModelProto

INPUT = "image_BCHW"
TOLERANCE = 1e-4
"""Between onnxruntime and torch, of outputs up to 1; of the largest value of an output above that."""
SALIENCY_TOLERANCE = 1e-3
"""Of the largest value of an image's saliency."""
BATCHES = (1, 2, 3)
"""Images in each of the batches that are compared."""
Values = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Comparison:
    """What onnxruntime says of seeded images, against what torch says; of an image's largest value where that is above
    1, of saliency always, for a gradient has no scale of its own."""

    images: int
    largest: Mapping[str, float]
    """Output -> its largest difference."""
    beyond: Mapping[str, float]
    """Output -> share of its values that differ by more than is allowed of the others."""


@dataclass(frozen=True, slots=True)
class Written:
    outputs: tuple[str, ...]
    comparison: Comparison | None
    """None: onnxruntime is not installed, and nothing was compared."""


def export_recogniser(recogniser: nn.Module, campaign: CampaignConfig, path: Path) -> Written:
    """Write the campaign's recogniser, as it judges in evaluation, to `path`.

    The network is put into evaluation. Raises ConfigError where ONNX is not installed or `path` cannot be written, and
    DataError where the file would not say what the network says (checked where onnxruntime is installed).
    """
    return _exported(_Recogniser(recogniser.cpu().eval(), campaign), "recogniser", campaign, path)


def export_enhancer(enhancer: nn.Module, campaign: CampaignConfig, path: Path) -> Written:
    """As `export_recogniser`; also ConfigError where there is no enhancer or the network is not the whole of it."""
    if campaign.enhance.kind == "none":
        raise ConfigError(
            "the campaign has no enhancer (enhance=none), its recogniser judges images as they come; export the "
            "recogniser: --network recogniser"
        )
    if campaign.enhance.data_consistency:
        raise ConfigError(
            "enhance.data_consistency=true: every enhanced image takes the measured k-space of its scan, which a file "
            "with one image as its input does not have; only the recogniser can be exported: --network recogniser"
        )
    return _exported(_Enhancer(enhancer.cpu().eval()), "enhancer", campaign, path)


def _exported(evaluated: _Evaluated, network: Network, campaign: CampaignConfig, path: Path) -> Written:
    check_writable(path)
    try:
        import onnx
        import onnxscript  # noqa: F401  # what torch.onnx.export stands on
    except ImportError:
        raise ConfigError("ONNX is not installed here; pip install 'wardround[export]'") from None
    model = _converted(evaluated, campaign)
    _describe(model, network, evaluated.names, campaign)
    onnx.helper.set_model_props(model, metadata(campaign, network, evaluated.names))
    onnx.checker.check_model(model, full_check=True)
    data = model.SerializeToString()
    comparison = _compared(data, evaluated, campaign)
    try:
        write_atomically(path, data)
    except OSError:
        raise unwritable(path) from None
    return Written(evaluated.names, comparison)


class _Evaluated(nn.Module):
    """A network whose outputs are a tuple of tensors, with their names."""

    names: tuple[str, ...]
    cornered: tuple[str, ...] = ()
    """Outputs that leap where a value crosses the corner of a ReLU: a gradient, and what is computed of one."""

    def expected(self, image_BCHW: Tensor) -> tuple[Tensor, ...]:
        """The same by the way that an evaluation takes."""
        raise NotImplementedError


class _Recogniser(_Evaluated):
    """The outputs that there are; one run of the encoder for all of them."""

    def __init__(self, recogniser: nn.Module, campaign: CampaignConfig) -> None:
        super().__init__()
        self.recogniser = recogniser
        self.salient = campaign.recognise.kind in BRIDGED and bool(campaign.diagnoses)
        self.names = (
            *(("mask_logits",) if campaign.masks else ()),
            *(("diagnosis_logits",) if campaign.diagnoses else ()),
            *(("saliency",) if self.salient else ()),
        )
        bridged = getattr(recogniser, "saliency", None) is not None
        self.cornered = ("saliency", "mask_logits") if bridged else ("saliency",)

    def forward(self, image_BCHW: Tensor) -> tuple[Tensor, ...]:
        if not self.salient:
            return _there(self.recogniser(image_BCHW))
        network: Any = self.recogniser
        steps: list[Step] = []
        encoding = network.encode(image_BCHW, steps)
        saliency_B1HW = saliency_from_steps(steps, encoding.diagnosis_logits_BN)
        if network.mask_head is None:
            return encoding.diagnosis_logits_BN, saliency_B1HW
        into_decoder = None if network.saliency is None else saliency_B1HW
        return *_there(network.decode(encoding, image_BCHW, into_decoder)), saliency_B1HW

    def expected(self, image_BCHW: Tensor) -> tuple[Tensor, ...]:
        network: Any = self.recogniser
        saliency = (saliency_of(network, image_BCHW),) if self.salient else ()
        return *_there(network(image_BCHW)), *saliency


class _Enhancer(_Evaluated):
    names = ("enhanced",)

    def __init__(self, enhancer: nn.Module) -> None:
        super().__init__()
        self.enhancer = enhancer

    def forward(self, image_BCHW: Tensor) -> tuple[Tensor, ...]:
        return (self.enhancer(image_BCHW).clamp(0, 1),)

    def expected(self, image_BCHW: Tensor) -> tuple[Tensor, ...]:
        return self.forward(image_BCHW)


def _there(recognition: Recognition) -> tuple[Tensor, ...]:
    logits = (recognition.mask_logits_BKHW, recognition.diagnosis_logits_BN)
    return tuple(said for said in logits if said is not None)


def _converted(evaluated: _Evaluated, campaign: CampaignConfig) -> ModelProto:
    image_BCHW = _image(campaign, 2, seed=0)
    with _quiet(), torch.no_grad():
        program = torch.onnx.export(
            evaluated,
            (image_BCHW,),
            input_names=[INPUT],
            output_names=list(evaluated.names),
            dynamic_shapes=({0: torch.export.Dim("batch", min=1)},),
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    model: ModelProto = program.model_proto
    # Source lines and folders of this machine are in there.
    for function in (model.graph, *model.functions):
        for part in (function, *function.node):
            del part.metadata_props[:]
            part.ClearField("doc_string")
    for value in (*model.graph.value_info, *model.graph.input, *model.graph.output, *model.graph.initializer):
        del value.metadata_props[:]
    del model.metadata_props[:]
    return model


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The exporter tells of packages that it does not find and of its steps, on every channel that there is."""
    exporter = logging.getLogger("torch.onnx")
    level = exporter.level
    exporter.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        exporter.setLevel(level)


def _describe(model: ModelProto, network: Network, names: Sequence[str], campaign: CampaignConfig) -> None:
    """What programs that show a graph show beside it."""
    model.doc_string = model.graph.doc_string = graph_meaning(campaign, network)
    model.graph.input[0].doc_string = input_meaning(campaign, network)
    meanings = output_meanings(campaign)
    for output, name in zip(model.graph.output, names, strict=True):
        assert output.name == name
        output.doc_string = meanings[name]


def _compared(data: bytes, evaluated: _Evaluated, campaign: CampaignConfig) -> Comparison | None:
    """Raises DataError unless onnxruntime, where it is installed, says what torch says of a few seeded images."""
    try:
        import onnxruntime
    except ImportError:
        return None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    parts = [_differences(session, evaluated, _image(campaign, count, seed=count)) for count in BATCHES]
    of_outputs = {name: np.concatenate([part[name] for part in parts]) for name in evaluated.names}
    largest = {name: float(difference.max()) for name, difference in of_outputs.items()}
    for name, difference in of_outputs.items():
        if not _agrees(difference, _tolerance(name), everywhere=name not in evaluated.cornered):
            raise DataError(
                f"{name} of the exported network differs from the trained one's by {largest[name]:.1e}, allowed are "
                f"{_tolerance(name):.0e}; nothing was written. Retry with the versions of torch and onnx in "
                "constraints.txt"
            )
    beyond = {name: float((difference > _tolerance(name)).mean()) for name, difference in of_outputs.items()}
    return Comparison(sum(BATCHES), largest, beyond)


def _agrees(difference: Values, tolerance: float, *, everywhere: bool) -> bool:
    """`everywhere`, or where corners allow it: in most values of every image, and at every place in some image.

    Rounding alone can move a value across the corner of a ReLU or of a maximum, which moves the saliency around it and
    what a bridge makes of that: the larger the image, the more of that. But a graph that is wrong is wrong in most of
    an image, or at the same place of every image.
    """
    within = difference <= tolerance
    if everywhere:
        return bool(within.all())
    shares_B = within.reshape(len(within), -1).mean(1)
    return bool((shares_B > 0.5).all() and within.any(0).all())


def _differences(session: Any, evaluated: _Evaluated, image_BCHW: Tensor) -> dict[str, Values]:
    """Output -> difference of each of its values."""
    with torch.no_grad():
        expected = [said.numpy() for said in evaluated.expected(image_BCHW)]
    found = session.run(list(evaluated.names), {INPUT: image_BCHW.numpy()})
    pairs = zip(evaluated.names, expected, found, strict=True)
    return {name: _difference(ours, theirs, name) for name, ours, theirs in pairs}


def _difference(ours: Values, theirs: Values, name: str) -> Values:
    if ours.shape != theirs.shape or not np.isfinite(theirs).all():
        return np.full_like(ours, np.inf)
    largest = np.abs(ours).max(tuple(range(1, ours.ndim)), keepdims=True)
    least = np.finfo(np.float32).tiny if name == "saliency" else np.float32(1)
    difference: Values = np.abs(ours - theirs) / np.maximum(largest, least)
    return difference


def _tolerance(name: str) -> float:
    return SALIENCY_TOLERANCE if name == "saliency" else TOLERANCE


def _image(campaign: CampaignConfig, count: int, seed: int) -> Tensor:
    rng = torch.Generator().manual_seed(seed)
    return torch.rand(count, campaign.data.channels, *campaign.data.image_size, generator=rng)


def check_writable(path: Path) -> None:
    """Before the work, which takes a while. What is no file, a device or a pipe, would be replaced by one."""
    if (path.exists() and not path.is_file()) or not path.parent.is_dir() or not os.access(path.parent, os.W_OK):
        raise unwritable(path)


def unwritable(path: Path) -> ConfigError:
    return ConfigError(f"{path.name} cannot be written there; give a file in a folder that exists and may be written")
