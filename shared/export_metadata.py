"""A campaign in; what a reader of an exported network must know, out: how to prepare a DICOM image, what outputs mean.

Keys of the file's metadata. Values are words, or JSON where the value is a list, a number or true, false and null.

    wardround, campaign, campaign_digest    who wrote the file, for which agreement
    network                                 recogniser or enhancer
    recogniser, enhancer                    kind of the network (the file's own key only)
    masks, diagnoses                        lists of names in the order of the channels (recogniser only; [] without)
    judges, enhances                        which images the network was trained for

    preparation                             list of sentences: from DICOM to the input, step by step, in this order
    modalities                              list of DICOM modalities
    spacing_mm                              [slice, row, column] after resampling; null: the acquired grid is kept
    intensity_rule                          percentile, window or range
    intensity_low, intensity_high           numbers: percentiles of each series, or the window in the modality's unit
                                            (CT: HU); not there for range, which reads its ends from the file
    intensity_clip                          true: values beyond the ends are held at 0 and 1
    intensity_scale                         what becomes 0 and what 1, in words and numbers
    image_size, channels                    [rows, columns] after centre padding or cropping; 1 or 3
    size_fill                               number: the value of padded pixels; they are background (class 0)

    input_order, input_dtype, input_range   axes, type and values of image_BCHW
    mask_logits, diagnosis_logits, saliency, enhanced    of each output that there is: its axes and meaning

Where the rules themselves stand: client/ingest/{pixels,intensity,geometry}.py and shared/images/intensity.py.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Literal

from shared.config import CampaignConfig, DataConfig, IntensityConfig, campaign_digest

Network = Literal["recogniser", "enhancer"]

ORDER = "batch, channel, row, column"


def metadata(campaign: CampaignConfig, network: Network, outputs: Sequence[str]) -> dict[str, str]:
    """The file's metadata, key -> value, as the module's first lines list them."""
    data, intensity = campaign.data, campaign.data.ingest.intensity
    has_ends = intensity.rule != "range"
    meanings = output_meanings(campaign)
    return {
        "wardround": _version(),
        "campaign": campaign.name,
        "campaign_digest": campaign_digest(campaign),
        "network": network,
        **(_of_recogniser(campaign) if network == "recogniser" else _of_enhancer(campaign)),
        "preparation": json.dumps(preparation(data)),
        "modalities": json.dumps(list(data.ingest.modalities)),
        "spacing_mm": json.dumps(data.ingest.spacing_mm),
        "intensity_rule": intensity.rule,
        **({"intensity_low": str(float(intensity.low))} if has_ends else {}),
        **({"intensity_high": str(float(intensity.high))} if has_ends else {}),
        "intensity_clip": json.dumps(intensity.clip),
        "intensity_scale": _scale(intensity),
        "image_size": json.dumps(list(data.image_size)),
        "channels": str(data.channels),
        "size_fill": "0",
        "input_order": ORDER,
        "input_dtype": "float32",
        "input_range": _range(campaign, network),
        **{name: meanings[name] for name in outputs},
    }


def graph_meaning(campaign: CampaignConfig, network: Network) -> str:
    kind = campaign.recognise.kind if network == "recogniser" else campaign.enhance.kind
    return (
        f"The {network} ({kind}) of the Wardround campaign {campaign.name}, in evaluation. How its input is prepared "
        "and what its outputs mean stands in the metadata of this file."
    )


def input_meaning(campaign: CampaignConfig, network: Network) -> str:
    data = campaign.data
    rows, columns = data.image_size
    images = _judged(campaign) if network == "recogniser" else _enhanced(campaign)
    return (
        f"float32 ({ORDER}): any number of images of {data.channels} x {rows} x {columns}, {images}. "
        f"{_scale(data.ingest.intensity)} {_range(campaign, network)}"
    )


def output_meanings(campaign: CampaignConfig) -> dict[str, str]:
    """Of every output that a file of the campaign can have: the axes and what the values are."""
    masks = _numbered(["background", *campaign.masks])
    diagnoses = _numbered(campaign.diagnoses)
    return {
        "mask_logits": f"({_axes('class')}). softmax over axis 1 gives each pixel's probabilities of {masks}.",
        "diagnosis_logits": f"(batch, diagnosis). softmax over axis 1 gives each image's probabilities of {diagnoses}.",
        "saliency": f"({_axes('1')}). |d score / d image|, where score is the highest of diagnosis_logits, that of the "
        "most probable diagnosis (ties share evenly); the largest over the image's channels, in logits per unit of the "
        "image's scale, 0 or more. Computed in closed form: a runtime needs no gradient.",
        "enhanced": f"({ORDER}). The enhanced image on the input's scale, held within 0..1; what the recogniser of "
        "this campaign judges, as it is.",
    }


def preparation(data: DataConfig) -> list[str]:
    """From the DICOM files of a series to the network's input, a sentence for each step, in the order of the steps."""
    rule = data.ingest.intensity
    return [
        "Decode to the modality's unit: modality LUT, or rescale slope and intercept; MONOCHROME1 inverted within the "
        "range of its bit depth; palettes to RGB; no VOI window, no overlay.",
        "One channel: colour becomes 0.299 R + 0.587 G + 0.114 B."
        if data.channels == 1
        else "Three channels, RGB: grey is repeated.",
        "Sort slices along their normal. A stack of 8 slices or more with geometry is turned, by permuting and "
        "flipping axes only, to slice towards the head, row towards the back, column towards the patient's left; "
        "others keep their plane.",
        f"Take the ends of the scale, before resampling: {_ends(rule)}",
        _resampling(data),
        "Scale to (value - low) / (high - low)"
        + ("; values below 0 become 0, values above 1 become 1." if rule.clip else "; values beyond 0..1 stay."),
        f"Each slice to {data.image_size[0]} rows and {data.image_size[1]} columns about its centre: what is too large "
        "is cut on both sides, what is too small is padded on both sides with 0, the low end of the scale, which is "
        "background (class 0). Where the difference is odd, the extra row or column is cut or added at the end.",
    ]


def _of_recogniser(campaign: CampaignConfig) -> dict[str, str]:
    return {
        "recogniser": campaign.recognise.kind,
        "masks": json.dumps(["background", *campaign.masks] if campaign.masks else []),
        "diagnoses": json.dumps(list(campaign.diagnoses)),
        "judges": _judged(campaign),
    }


def _of_enhancer(campaign: CampaignConfig) -> dict[str, str]:
    return {"enhancer": campaign.enhance.kind, "enhances": _enhanced(campaign)}


def _judged(campaign: CampaignConfig) -> str:
    enhance = campaign.enhance
    if enhance.kind != "none":
        corrected = ", after the measured k-space was put back" if enhance.data_consistency else ""
        return f"images that enhance={enhance.kind} put out{corrected}, held within 0..1"
    if campaign.degrade.kind != "none":
        return _enhanced(campaign)
    return "images as they are"


def _enhanced(campaign: CampaignConfig) -> str:
    if campaign.degrade.kind == "none":
        return "images as they are"
    if campaign.degrade.kind == "pairs":
        return "degraded images of real pairs, each scaled with the ends of its clean partner"
    return f"images that degrade={campaign.degrade.kind} made worse"


def _range(campaign: CampaignConfig, network: Network) -> str:
    enhanced = network == "recogniser" and campaign.enhance.kind != "none"
    if enhanced or campaign.data.ingest.intensity.clip or campaign.degrade.kind not in ("none", "pairs"):
        return "Values lie in 0..1."
    return "Values beyond 0..1 are left as they are."


def _scale(rule: IntensityConfig) -> str:
    low, high = f"{rule.low:.10g}", f"{rule.high:.10g}"
    match rule.rule:
        case "percentile":
            words = f"0 is percentile {low} and 1 percentile {high} of each series' own values"
        case "window":
            words = f"0 is {low} and 1 is {high} in the modality's unit (CT: HU)"
        case "range":
            words = "0 is the smallest and 1 the largest value that the file's bit depth can hold"
    return f"{words}; {'clipped' if rule.clip else 'not clipped'}."


def _ends(rule: IntensityConfig) -> str:
    match rule.rule:
        case "percentile":
            return (
                f"low and high are percentiles {rule.low:.10g} and {rule.high:.10g} of all values of the whole series "
                "(all slices and channels; linear between ranks; of more than 16777216 values every k-th)."
            )
        case "window":
            return f"low is {rule.low:.10g} and high is {rule.high:.10g} in the modality's unit (CT: HU)."
        case "range":
            return (
                "low and high are the smallest and the largest value that BitsStored and PixelRepresentation can hold, "
                "in the modality's unit (over the files of the series)."
            )


def _resampling(data: DataConfig) -> str:
    if data.ingest.spacing_mm is None:
        return "No resampling: the acquired grid is kept."
    slices, rows, columns = (f"{spacing:.10g}" for spacing in data.ingest.spacing_mm)
    return (
        f"Resample to {slices} mm between slices, {rows} mm between rows, {columns} mm between columns: linear "
        "interpolation at i * new / old from the centre of the first voxel, to the last such place within the grid; "
        "along axes that get coarser a Gaussian of standard deviation (new / old - 1) / 2 voxels comes first; edges "
        "are continued by their nearest value. A single slice keeps its thickness."
    )


def _numbered(names: Sequence[str]) -> str:
    return ", ".join(f"{place} {name}" for place, name in enumerate(names))


def _axes(channel: str) -> str:
    return ORDER.replace("channel", channel)


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("wardround")
    except PackageNotFoundError:  # run from a source tree
        return "unknown"
