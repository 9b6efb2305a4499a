"""Prompts as sentences, read once by a frozen text encoder: a local folder in, a vector per token of each sentence out.

The folder is one that the library transformers saves, with `config.json`, `model.safetensors` (a CLIP model, or its
text part; nothing pickled is read) and the tokenizer's `tokenizer.json`, or `vocab.json` and `merges.txt`. Nothing is
fetched. The vocabulary is closed, so that all sentences, "MR, brain, kind_b" and the like, are encoded when a generator
is built; training moves a linear projection of them, and that alone travels. The projection's name holds a digest of
the encoder and its tokens: weights of sites with different encoders have different names and are refused as weights of
another architecture, instead of being averaged.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn

from shared.errors import ConfigError

if TYPE_CHECKING:
    from transformers import CLIPTextModel, CLIPTokenizer

MOST_SENTENCES = 4096
_TOKENIZERS = (("tokenizer.json",), ("vocab.json", "merges.txt"))
_REMEDY = "save a CLIP text model and its tokenizer there with transformers, or use generate.text=embedding"


@dataclass(frozen=True, slots=True, eq=False)
class Sentences:
    """What a text encoder says of all sentences of a vocabulary; P prompts, T tokens of the longest."""

    vectors_PTC: Tensor
    """The null prompt, then modality, organ and pathology counting as the digits of a number do; unknown first."""
    sizes: tuple[int, ...]
    """Words of each place, unknown among them."""
    digest: str
    """SHA-256 of the encoder's weights, of what of its config changes its answers, and of the sentences' tokens."""


class SentencePrompts(nn.Module):
    """Frozen vectors of sentences and a learned projection of them. Vectors do not travel: every site has them."""

    def __init__(self, sentences: Sentences, starts: Sequence[int], width: int) -> None:
        super().__init__()
        self.starts = tuple(starts)
        self.sizes = sentences.sizes
        self.vectors_PTC: Tensor
        self.register_buffer("vectors_PTC", sentences.vectors_PTC, persistent=False)
        self.projection = nn.ModuleDict(
            {sentences.digest[:16]: nn.Linear(sentences.vectors_PTC.shape[2], width)}  # half the digest: enough
        )

    def forward(self, token_BW: Tensor) -> Tensor:
        """(B, 3) int64 to (B, T, width)."""
        (projection,) = self.projection.values()
        return cast(Tensor, projection(self.vectors_PTC[self._sentence(token_BW)]))

    def _sentence(self, token_BW: Tensor) -> Tensor:
        """The number of each prompt's sentence; 0 is the null prompt."""
        number_B = torch.zeros_like(token_BW[:, 0])
        for place, (start, size) in enumerate(zip(self.starts, self.sizes, strict=True)):
            # unknown, whose token lies below all words', is 0
            number_B = number_B * size + (token_BW[:, place] - start + 1).clamp(0, size - 1)
        return torch.where((token_BW == 0).all(1), 0, number_B + 1)


def sentence(words: Sequence[str]) -> str:
    """Known words in the case of running text, modalities (two capitals) as they are; all unknown is "unknown"."""
    known = [word for word in words if word != "unknown"]
    return ", ".join(word if len(word) <= 2 or not word.isupper() else word.lower() for word in known) or "unknown"


def encoded_sentences(folder: str, kinds: Sequence[Sequence[str]]) -> Sentences:
    """Read the text encoder and encode the null prompt and all sentences of one word of each kind. Raises ConfigError,
    in one line, where the extra, the folder or a file of it is missing or does not fit."""
    texts = ["", *(sentence(words) for words in product(*kinds))]
    if len(texts) > MOST_SENTENCES:
        raise ConfigError(
            f"generate.text=sentence encodes every sentence of the vocabulary: expected {MOST_SENTENCES} or fewer, got "
            f"{len(texts)}; shorten generate.organs to what the campaign is about"
        )
    model, tokenizer = _encoder(Path(folder))
    token_PT = tokenizer(texts, padding="longest", return_tensors="pt").input_ids
    longest = model.config.max_position_embeddings
    if token_PT.shape[1] > longest or int(token_PT.max()) >= model.config.vocab_size:
        raise ConfigError(
            f"generate.text_encoder reads {longest} tokens of {model.config.vocab_size}, a sentence of this campaign "
            f"has {token_PT.shape[1]} and tokens up to {int(token_PT.max())}; shorten the names or take the model's "
            "own tokenizer"
        )
    if len(token_PT.unique(dim=0)) < len(set(texts)):
        raise ConfigError(f"generate.text_encoder's tokenizer reads different sentences alike; {_REMEDY}")
    with torch.inference_mode():
        # Tokens after the end see those before them and never the other way round, so padding changes no sentence.
        parts = [model(input_ids=part_PT).last_hidden_state for part_PT in token_PT.split(256)]
    vectors_PTC = torch.cat(parts).float().clone()
    if not vectors_PTC.isfinite().all():
        raise ConfigError(f"generate.text_encoder gives values that are not finite; {_REMEDY}")
    return Sentences(vectors_PTC, tuple(map(len, kinds)), _digest(Path(folder), model, token_PT))


def _encoder(folder: Path) -> tuple[CLIPTextModel, CLIPTokenizer]:
    missing = [name for name in ("config.json", "model.safetensors") if not (folder / name).is_file()]
    if not any(all((folder / name).is_file() for name in names) for names in _TOKENIZERS):
        missing.append("tokenizer.json")  # without, transformers makes one that knows no word
    if missing:
        raise ConfigError(f"generate.text_encoder: expected a folder with {', '.join(missing)}, got none; {_REMEDY}")
    try:
        from transformers import CLIPTextModel, CLIPTokenizer
        from transformers.utils import logging
    except ImportError:
        raise ConfigError(
            "generate.text=sentence needs the extra `text`: pip install 'wardround[text]'; without it use "
            "generate.text=embedding"
        ) from None
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        model, found = CLIPTextModel.from_pretrained(
            folder, local_files_only=True, use_safetensors=True, output_loading_info=True
        )
        tokenizer = CLIPTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception:  # noqa: BLE001  # transformers raises whatever a file makes it stumble over
        raise ConfigError(f"generate.text_encoder holds no CLIP text model with its tokenizer; {_REMEDY}") from None
    if found["missing_keys"]:  # transformers would draw them at random
        raise ConfigError(f"generate.text_encoder lacks weights of a CLIP text model; {_REMEDY}")
    return model.eval().requires_grad_(False), tokenizer


def _digest(folder: Path, model: CLIPTextModel, token_PT: Tensor) -> str:
    # Of files and tokens, not of vectors: those differ in their last digits from one processor to the next.
    config = model.config
    digest = hashlib.sha256(f"{config.hidden_act} {config.num_attention_heads} {config.layer_norm_eps}".encode())
    digest.update(token_PT.numpy().tobytes())
    with (folder / "model.safetensors").open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
