"""Modality, organ and pathology of an image in, a prompt's vectors out: what the denoiser reads beside the image.

As published a prompt is the sentence "modality, organ, pathology". The words come from a closed vocabulary: Modality
(0008,0060) as far as the campaign ingests it, Body Part Examined (0018,0015) as far as generate.organs lists it, and the
campaign's diagnoses; what is none of these is the word `unknown` of its kind, and is never stored or shown as it stood.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from shared.config import CampaignConfig

NULL = 0
"""The token of no prompt, at each of the three places: trained by dropping prompts, read by guidance."""
UNKNOWN = 1
WORDS = 3
"""Tokens of a prompt: modality, organ, pathology."""


class Prompts(Protocol):
    """Tokens to the vectors that cross-attention reads; an nn.Module besides."""

    def __call__(self, token_BW: Tensor) -> Tensor: ...
