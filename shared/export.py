"""A trained recogniser in, an ONNX file out that other programs evaluate without Wardround or torch.

    image_BCHW       float32 on the campaign's scale; any number of images of the campaign's size
    mask_logits      (B, 1 + masks, H, W), channel 0 background      where the campaign has masks
    diagnosis_logits (B, diagnoses)                                  where it has diagnoses
    saliency         (B, 1, H, W), |d (highest score) / d image|     where the closed form is known

Saliency is the closed form of shared.recognise.saliency, a part of the graph like any other: no runtime needs
gradients for it, nor for the bridge that feeds it to the decoder. The file tells in its metadata what its channels
mean and on which scale images must be. What the exporter notes about the machine that it ran on is taken out.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from shared.checkpoint import write_atomically
from shared.config import CampaignConfig, campaign_digest
from shared.config.recognition import BRIDGED
from shared.errors import ConfigError, DataError
from shared.recognise.recognition import Recognition
from shared.recognise.saliency import Step, saliency_from_steps, saliency_of

if TYPE_CHECKING:
    from onnx import ModelProto

INPUT = "image_BCHW"
TOLERANCE = 1e-4
"""Between onnxruntime and torch, of outputs up to 1; of the largest value of an output above that."""
TRIES = 3


def export_recogniser(recogniser: nn.Module, campaign: CampaignConfig, path: Path) -> tuple[str, ...]:
    """Write the campaign's recogniser, as it judges in evaluation, to `path`; returns the names of the outputs.

    The network is put into evaluation. Raises ConfigError where ONNX is not installed or `path` cannot be written, and
    DataError where the file would not say what the network says (checked where onnxruntime is installed).
    """
    _check_writable(path)
    try:
        import onnx
        import onnxscript  # noqa: F401  # what torch.onnx.export stands on
    except ImportError:
        raise ConfigError("ONNX is not installed here; pip install 'wardround[export]'") from None
    evaluated = _Evaluated(recogniser.cpu().eval(), campaign)
    model = _converted(evaluated, campaign)
    onnx.helper.set_model_props(model, _metadata(campaign))
    onnx.checker.check_model(model, full_check=True)
    data = model.SerializeToString()
    _check_outputs(data, evaluated, campaign)
    try:
        write_atomically(path, data)
    except OSError:
        raise _unwritable(path) from None
    return evaluated.names


class _Evaluated(nn.Module):
    """The outputs that there are, as a tuple; one run of the encoder for all of them."""

    def __init__(self, recogniser: nn.Module, campaign: CampaignConfig) -> None:
        super().__init__()
        self.recogniser = recogniser
        self.salient = campaign.recognise.kind in BRIDGED and bool(campaign.diagnoses)
        self.names = (
            *(("mask_logits",) if campaign.masks else ()),
            *(("diagnosis_logits",) if campaign.diagnoses else ()),
            *(("saliency",) if self.salient else ()),
        )

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
        """The same by the way that an evaluation takes."""
        network: Any = self.recogniser
        saliency = (saliency_of(network, image_BCHW),) if self.salient else ()
        return *_there(network(image_BCHW)), *saliency


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


def _metadata(campaign: CampaignConfig) -> dict[str, str]:
    """Everything that a reader of the file must know, as JSON where it is not a word."""
    from importlib.metadata import PackageNotFoundError, version

    data, intensity = campaign.data, campaign.data.ingest.intensity
    try:
        wardround = version("wardround")
    except PackageNotFoundError:  # run from a source tree
        wardround = "unknown"
    enhanced = campaign.enhance.kind != "none"
    return {
        "wardround": wardround,
        "campaign": campaign.name,
        "campaign_digest": campaign_digest(campaign),
        "recogniser": campaign.recognise.kind,
        "masks": json.dumps(["background", *campaign.masks]) if campaign.masks else "[]",
        "diagnoses": json.dumps(list(campaign.diagnoses)),
        "channels": str(data.channels),
        "image_size": json.dumps(list(data.image_size)),
        "intensity_rule": intensity.rule,
        "intensity_low": str(float(intensity.low)),
        "intensity_high": str(float(intensity.high)),
        "intensity_clip": json.dumps(intensity.clip),
        "intensity_scale": "0 at low, 1 at high",
        "judges": f"images that enhance={campaign.enhance.kind} put out" if enhanced else "images as they are",
    }


def _check_outputs(data: bytes, evaluated: _Evaluated, campaign: CampaignConfig) -> None:
    """Raises DataError unless onnxruntime, where it is installed, says what torch says.

    Of a few seeded images one must agree in everything: rounding alone can move a value across the corner of a ReLU,
    which moves the saliency of its pixels, but a graph that is wrong is wrong on all.
    """
    try:
        import onnxruntime
    except ImportError:
        return
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    apart = [_apart(session, evaluated, _image(campaign, 1 + seed, seed)) for seed in range(TRIES)]
    if all(worst > TOLERANCE for worst in apart):
        raise DataError(
            f"the exported network differs from the trained one by {min(apart):.1e}, allowed are {TOLERANCE:.0e}; "
            "nothing was written. Retry with the versions of torch and onnx in constraints.txt"
        )


def _apart(session: Any, evaluated: _Evaluated, image_BCHW: Tensor) -> float:
    with torch.no_grad():
        expected = [said.numpy() for said in evaluated.expected(image_BCHW)]
    found = session.run(list(evaluated.names), {INPUT: image_BCHW.numpy()})
    return max(_difference(ours, theirs) for ours, theirs in zip(expected, found, strict=True))


def _difference(ours: npt.NDArray[np.float32], theirs: npt.NDArray[np.float32]) -> float:
    if ours.shape != theirs.shape or not np.isfinite(theirs).all():
        return float("inf")
    return float(np.abs(ours - theirs).max() / max(1.0, float(np.abs(ours).max())))


def _image(campaign: CampaignConfig, count: int, seed: int) -> Tensor:
    rng = torch.Generator().manual_seed(seed)
    return torch.rand(count, campaign.data.channels, *campaign.data.image_size, generator=rng)


def _check_writable(path: Path) -> None:
    """Before the work, which takes a while. What is no file, a device or a pipe, would be replaced by one."""
    if (path.exists() and not path.is_file()) or not path.parent.is_dir() or not os.access(path.parent, os.W_OK):
        raise _unwritable(path)


def _unwritable(path: Path) -> ConfigError:
    return ConfigError(f"{path.name} cannot be written there; give a file in a folder that exists and may be written")
