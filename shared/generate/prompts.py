"""Modality, organ and pathology of an image in, a prompt's vectors out: what the denoiser reads beside the image.

As published a prompt is the sentence "modality, organ, pathology". The words come from a closed vocabulary: Modality
(0008,0060) as far as the campaign ingests it, Body Part Examined (0018,0015) as far as generate.organs lists it, and
the campaign's diagnoses; what is none of these is the word `unknown`, and is never stored or shown as it stood.

    token       0     1        2 ..                                    then            then
    word        null  unknown  data.ingest.modalities, in their order  generate.organs  data.diagnoses

`text=embedding` learns a vector for each token and each place; `text=sentence` learns a projection of what a text
encoder says of the sentence (shared/generate/sentences.py); `text=none` has the null token alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from shared.config import CampaignConfig
from shared.generate.sentences import SentencePrompts, encoded_sentences

NULL = 0
"""The token of no prompt, at each of the three places: trained by dropping prompts, read by guidance."""
UNKNOWN = 1
WORDS = 3
"""Tokens of a prompt: modality, organ, pathology."""


class EmbeddedPrompts(nn.Module):
    """A learned vector for each word, and one for each place; both start small beside what latents are (spread 1)."""

    def __init__(self, words: int, width: int) -> None:
        super().__init__()
        self.word = nn.Embedding(words, width)
        self.place = nn.Parameter(0.1 * torch.randn(WORDS, width))

    def forward(self, token_BW: Tensor) -> Tensor:
        """(B, 3) int64 to (B, 3, width)."""
        return cast(Tensor, self.word(token_BW)) + self.place


Prompts = EmbeddedPrompts | SentencePrompts
"""Tokens (B, 3) int64 in, the vectors (B, W, width) that cross-attention reads out."""


def build_prompts(campaign: CampaignConfig, width: int) -> Prompts:
    """The prompts of `campaign.generate.text`; learned weights from torch's current generator. Raises ConfigError for
    a text encoder that is missing or does not fit."""
    generate = campaign.generate
    if generate.text == "sentence":
        assert generate.text_encoder is not None, "checked by the config"
        kinds = [["unknown", *words] for words in _kinds(campaign)]
        return SentencePrompts(encoded_sentences(generate.text_encoder, kinds), _starts(campaign), width)
    words = 1 if generate.text == "none" else 2 + sum(map(len, _kinds(campaign)))
    return EmbeddedPrompts(words, width)


def prompt_tokens(campaign: CampaignConfig, acquired: Sequence[tuple[str, str]], diagnosis_B: Tensor) -> Tensor:
    """Modality (0008,0060) and Body Part Examined (0018,0015) of each image, and its diagnosis' code (-1: unknown), to
    (B, 3) int64 tokens on the device of `diagnosis_B`; `acquired` may be empty: all unknown. With text=none: null."""
    assert len(acquired) in (0, len(diagnosis_B))
    if campaign.generate.text == "none":
        return torch.full((len(diagnosis_B), WORDS), NULL, device=diagnosis_B.device)
    modality, organ, _ = (
        {word.upper(): start + place for place, word in enumerate(words)}
        for start, words in zip(_starts(campaign), _kinds(campaign), strict=True)
    )
    read = [(modality.get(_code(kind), UNKNOWN), organ.get(_code(part), UNKNOWN)) for kind, part in acquired]
    token_BW = torch.full((len(diagnosis_B), WORDS), UNKNOWN, device=diagnosis_B.device)
    if read:
        token_BW[:, :2] = torch.tensor(read, device=diagnosis_B.device)
    assert int(diagnosis_B.max()) < len(campaign.data.diagnoses) if len(diagnosis_B) else True
    token_BW[:, 2] = torch.where(diagnosis_B >= 0, diagnosis_B + _starts(campaign)[2], UNKNOWN)
    return token_BW


def prompt_words(campaign: CampaignConfig, token: Sequence[int] | Tensor) -> str:
    """Three tokens as a person reads them: "MR, BRAIN, kind_b"; the null prompt is empty."""
    words = ["", "unknown", *(word for words in _kinds(campaign) for word in words)]
    return ", ".join(words[int(place)] for place in token if int(place) != NULL)


def dropped(token_BW: Tensor, share: float, rng: torch.Generator) -> Tensor:
    """A copy in which each prompt is the null prompt with probability `share`; drawn on the CPU."""
    drop_B = torch.rand(len(token_BW), generator=rng) < share
    return token_BW.masked_fill(drop_B.to(token_BW.device)[:, None], NULL)


def _code(value: str) -> str:
    """Code strings are padded with spaces and of capital letters (PS3.5 6.2); sites write them otherwise too."""
    return value.strip().upper()


def _kinds(campaign: CampaignConfig) -> tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]:
    """Words of each place, without unknown."""
    return campaign.data.ingest.modalities, campaign.generate.organs, campaign.data.diagnoses


def _starts(campaign: CampaignConfig) -> tuple[int, int, int]:
    """The first token of each place's words."""
    modalities, organs, _ = _kinds(campaign)
    first = UNKNOWN + 1
    return first, first + len(modalities), first + len(modalities) + len(organs)
