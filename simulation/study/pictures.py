"""A cell's model and its test slices in, a few pictures of what it recognises out: small enough for report.json.

A picture is {"kind": ..., "caption": ..., "uri": ...}, the uri a PNG as a data URI:

    contours     a test image, and beside it with the true outlines (white, dashed) and the predicted ones (a colour
                 per class, server/charts.py): the median one and the worst one by Dice, else by the probability of the
                 true diagnosis
    saliency     per diagnosis one test image that is read as it, and the saliency behind that; a diagnosis that no
                 test image is read as has none
    similarity   cosine between the channels of one block, before training (left) and after it (right)
    attention    where each block is active, before training (above) and after it (below); of an attention U-Net a
                 second one, of its gates

similarity and attention are there for learn= other than supervised and with selfreg. Together about 50 kB for images of
64 x 64.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from client.dataset import SiteData, Slices
from client.explain import behind_diagnoses
from client.features import Features, redundancy
from client.reading import Reading, judged, read
from server import figures
from server.charts import MASK_COLOURS
from server.looks import ENDS
from shared.config import CampaignConfig, MachineConfig
from shared.networks import Networks
from simulation.explained import attention_shown, before_and_after, brightest, shows_features
from simulation.pictures import DICE, choose, pixels, recognised_by

Picture = dict[str, str]
Colours = npt.NDArray[np.uint8]
WIDTH = 192
"""Pixels of an image's panel, about."""
SMALL = 64
GAP = 6


def cell_pictures(
    networks: Networks, data: SiteData, campaign: CampaignConfig, machine: MachineConfig
) -> list[Picture]:
    """Of the networks as trained, on the cell's test slices; networks and modes are as before. Empty without tests."""
    if not len(data.test):
        return []
    read_as = read(networks, data.test, campaign, machine)[judged(campaign)]
    by, score_N = recognised_by(read_as, data.test, campaign)
    chosen = choose(score_N, data.test)
    pictures = [_contours(read_as, data.test, which, index, by, score_N, campaign) for which, index in chosen.items()]
    pictures += _saliency(networks, data.test, read_as, campaign, machine)
    if shows_features(campaign):
        found = before_and_after(networks, read_as.image_NCHW[chosen["median"]], campaign, machine)
        pictures += [_similarity(found["before"], found["after"], name) for name in found["after"].similarity]
        pictures.append(_attention(found))
        pictures += [_gates(found)] if found["after"].gates else []
    return pictures


def _contours(
    read_as: Reading, slices: Slices, which: str, index: int, by: str, score_N: npt.NDArray[np.float64],
    campaign: CampaignConfig,
) -> Picture:  # fmt: skip
    from PIL import ImageColor

    image = grey(read_as.image_NCHW[index], WIDTH)
    drawn = image.copy()
    scale = len(image) // slices.mask_NHW.shape[1]
    for code in range(1, len(campaign.masks) + 1):
        colour = MASK_COLOURS[(code - 1) % len(MASK_COLOURS)]
        if read_as.found_NHW is not None:
            drawn[_edge(read_as.found_NHW[index].numpy() == code, scale)] = ImageColor.getrgb(colour)
        if slices.has_mask_N[index]:
            drawn[_dashed(_edge(slices.mask_NHW[index].numpy() == code, scale))] = 255
    words = [f"The {which} test image" + (f" by {by}" if np.isfinite(score_N).any() else "")]
    if by == DICE and np.isfinite(score_N[index]):
        words.append(f"Dice {score_N[index]:.3f}")
    words += _said(read_as, slices, index, campaign)
    return {"kind": "contours", "caption": "; ".join(words) + ".", "uri": uri_of(beside([image, drawn]))}


def _said(read_as: Reading, slices: Slices, index: int, campaign: CampaignConfig) -> list[str]:
    if read_as.probabilities_NK is None:
        return []
    probabilities_K = read_as.probabilities_NK[index]
    said, truth = int(probabilities_K.argmax()), int(slices.diagnosis_N[index])
    words = [f"read as {campaign.diagnoses[said]} with {probabilities_K[said]:.2f}"]
    if truth < 0:
        return [*words, "its diagnosis is not known"]
    given = "" if truth == said else f" ({probabilities_K[truth]:.2f})"
    return [*words, f"in truth {campaign.diagnoses[truth]}{given}"]


def _saliency(
    networks: Networks, slices: Slices, read_as: Reading, campaign: CampaignConfig, machine: MachineConfig
) -> list[Picture]:
    pictures = []
    for behind in behind_diagnoses(networks, slices, read_as, campaign, machine):
        image = grey(read_as.image_NCHW[behind.index], WIDTH)
        levels_HW = brightest(behind)
        scale = max(1, len(image) // len(levels_HW))
        map_HW3 = _mapped(_larger(levels_HW, scale) / np.float32(255), "magma")
        what = "saliency as it enters the decoder" if behind.bridge else "|d score / d image|"
        of_all = f"the test image of median probability ({behind.probability:.2f}) among those that are read as it"
        truth = _said(read_as, slices, behind.index, campaign)[1]
        caption = f"Behind “{campaign.diagnoses[behind.code]}”: {what}, on {of_all}; {truth}."
        pictures.append({"kind": "saliency", "caption": caption, "uri": uri_of(beside([image, map_HW3]))})
    return pictures


def _similarity(before: Features, after: Features, name: str) -> Picture:
    panels, words = [], []
    for features in (before, after):
        matrix = features.similarity[name]
        panels.append(_mapped(_larger((matrix + 1) / 2, max(1, WIDTH // len(matrix))), "coolwarm"))
        words.append(f"{redundancy(matrix):.2f}")
    caption = (
        f"Cosine between {len(before.similarity[name])} channels of the {ENDS[name]}, before training "
        f"(left) and after (right), from -1 (blue) to 1 (red); mean |cosine| of different channels {words[0]} and "
        f"{words[1]}."
    )
    return {"kind": "similarity", "caption": caption, "uri": uri_of(beside(panels))}


def _attention(found: Mapping[str, Features]) -> Picture:
    blocks = list(found["after"].attention)
    maps = {when: [attention_shown(found, when, name) for name in blocks] for when in found}
    caption = (
        f"Where each block is active (mean of squared features) in the same image, before training (above) and after "
        f"(below); from left to right: {', '.join(blocks)}. Each block has one scale for both."
    )
    return {"kind": "attention", "caption": caption, "uri": uri_of(_above(maps["before"], maps["after"]))}


def _gates(found: Mapping[str, Features]) -> Picture:
    before, after = (list(found[when].gates.values()) for when in ("before", "after"))
    caption = (
        "What each gate lets pass of its skip, from 0 (dark) to 1 (bright), before training (above) and after (below); "
        "from the coarsest gate to the finest."
    )
    return {"kind": "attention", "caption": caption, "uri": uri_of(_above(before, after))}


def _above(before: Sequence[npt.NDArray[Any]], after: Sequence[npt.NDArray[Any]]) -> Colours:
    """Two rows of maps of 0 to 1, all at the size of the finest."""
    side = max(len(map_HW) for map_HW in after)
    times = max(1, SMALL // side)
    above, below = (
        beside([_mapped(_larger(map_HW, times * side // len(map_HW)), "viridis") for map_HW in maps])
        for maps in (before, after)
    )
    return np.concatenate([above, np.zeros((GAP, *above.shape[1:]), np.uint8), below])


def grey(image_CHW: Tensor, width: int) -> Colours:
    """At a whole multiple of its size, so that every pixel stays one; in colour (H, W, 3)."""
    shown = _few(pixels(image_CHW), 128)
    shown = np.repeat(shown[..., None], 3, axis=2) if shown.ndim == 2 else shown
    return _larger(shown, max(1, width // max(shown.shape[:2])))


def _larger(picture: npt.NDArray[Any], times: int) -> npt.NDArray[Any]:
    return picture.repeat(times, axis=0).repeat(times, axis=1)


def _edge(mask_HW: npt.NDArray[np.bool_], scale: int) -> npt.NDArray[np.bool_]:
    """The pixels of a mask, enlarged, that touch what is outside."""
    large = np.pad(_larger(mask_HW, scale), 1)
    inner = large[:-2, 1:-1] & large[2:, 1:-1] & large[1:-1, :-2] & large[1:-1, 2:]
    edge: npt.NDArray[np.bool_] = large[1:-1, 1:-1] & ~inner
    return edge


def _dashed(edge_HW: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    rows, columns = np.indices(edge_HW.shape)
    dashed: npt.NDArray[np.bool_] = edge_HW & ((rows + columns) // 4 % 2 == 0)
    return dashed


def _mapped(share_HW: npt.NDArray[np.floating], colours: str) -> Colours:
    from matplotlib import colormaps

    return _few(colormaps[colours](np.round(np.clip(share_HW, 0, 1) * 63) / 63)[..., :3], 256)


def _few(share: npt.NDArray[Any], colours: int) -> npt.NDArray[np.uint8]:
    """0 to 1 as bytes, of so many different ones: a picture of few colours is a small file."""
    levels = np.round(np.clip(share, 0, 1) * (colours - 1)) * (255 / (colours - 1))
    few: npt.NDArray[np.uint8] = np.round(levels).astype(np.uint8)
    return few


def beside(panels: Sequence[Colours]) -> Colours:
    """From left to right with clear gaps, opaque elsewhere (H, W, 4); what is lower stands at the top."""
    height = max(len(panel) for panel in panels)
    parts: list[Colours] = []
    for panel in panels:
        rest = np.zeros((height - len(panel), panel.shape[1], 4), np.uint8)
        opaque = np.concatenate([panel, np.full((*panel.shape[:2], 1), 255, np.uint8)], axis=2)
        parts += [np.concatenate([opaque, rest]), np.zeros((height, GAP, 4), np.uint8)]
    return np.concatenate(parts[:-1], axis=1)


def uri_of(picture: Colours) -> str:
    """With a palette where there are few colours: a byte per pixel."""
    from PIL import Image

    packed = np.ascontiguousarray(picture).view(np.uint32)[..., 0]
    colours, index = np.unique(packed, return_inverse=True)
    written, options = Image.fromarray(picture), dict[str, Any]()
    if len(colours) <= 256:
        palette = colours.view(np.uint8).reshape(-1, 4)
        written = Image.fromarray(index.reshape(packed.shape).astype(np.uint8), mode="P")
        written.putpalette(palette[:, :3].tobytes())
        options["transparency"] = palette[:, 3].tobytes()
    return figures.png_uri(written, **options)
