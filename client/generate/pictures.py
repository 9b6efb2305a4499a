"""Synthetic images beside their slices, as one PNG file for the operator's eyes. It shows patients: it stays here.

Each row: a slice of the training split, the first channel of its hint, and images drawn with its mask. Written without
a library for pictures: a PNG file is a header, rows of bytes through zlib, and checksums (https://www.w3.org/TR/png/).
"""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import torch
from torch import Tensor, nn

from client.dataset import Slices, Synthetic
from shared.config import CampaignConfig
from shared.errors import ConfigError
from shared.generate.hints import hint_of

ROWS, VARIANTS, ZOOM, GAP = 12, 4, 2, 4


def write_sheet(
    path: Path, train: Slices, synthetic: Synthetic, campaign: CampaignConfig, hed: nn.Module | None = None
) -> Path:
    """Up to ROWS slices, evenly over those that were drawn from, so that each diagnosis has its part; raises
    ConfigError where the file cannot be written."""
    sources = sorted({int(source) for source in synthetic.source_S}, key=lambda row: (int(train.diagnosis_N[row]), row))
    chosen = [sources[place * len(sources) // min(ROWS, len(sources))] for place in range(min(ROWS, len(sources)))]
    rows = [_row(train, synthetic, source, campaign, hed) for source in chosen]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(torch.cat(rows, dim=1) if rows else torch.zeros(1, 1, 1)))
    except OSError:
        raise ConfigError("the folder of --pictures cannot be written; check its permissions and the disk") from None
    return path


def _row(train: Slices, synthetic: Synthetic, source: int, campaign: CampaignConfig, hed: nn.Module | None) -> Tensor:
    real_1CHW = train.clean_NCHW[source : source + 1]
    mask_1HW = train.mask_NHW[source : source + 1].long()
    with torch.inference_mode():
        hint_1HW = hint_of(campaign.generate, real_1CHW, mask_1HW, len(campaign.data.masks), hed)[0, :1]
    drawn = synthetic.image_SCHW[synthetic.source_S == source][:VARIANTS]
    tiles = [real_1CHW[0], hint_1HW.expand_as(real_1CHW[0]), *drawn]
    empty = torch.zeros_like(real_1CHW[0])
    tiles += [empty] * (2 + VARIANTS - len(tiles))
    return torch.cat([torch.nn.functional.pad(tile, (0, GAP, 0, GAP)) for tile in tiles], dim=2)


def png(image_CHW: Tensor) -> bytes:
    """An image in [0, 1] with one (grey) or three channels as an 8-bit PNG file, each pixel ZOOM x ZOOM."""
    channels = image_CHW.shape[0]
    large_HWC = (image_CHW.clamp(0, 1) * 255).round().byte().permute(1, 2, 0)
    large_HWC = large_HWC.repeat_interleave(ZOOM, 0).repeat_interleave(ZOOM, 1).contiguous()
    height, width, _ = large_HWC.shape
    colour = {1: 0, 3: 2}[channels]
    header = struct.pack(">IIBBBBB", width, height, 8, colour, 0, 0, 0)
    rows = b"".join(b"\0" + row.numpy().tobytes() for row in large_HWC)  # 0: the row's bytes as they are
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(map(_chunk, chunks))


def _chunk(named: tuple[bytes, bytes]) -> bytes:
    kind, content = named
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
