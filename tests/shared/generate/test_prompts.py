"""Prompts: what is a word and what is not, the null prompt, and sentences against the text encoder itself."""

from __future__ import annotations

import json
from dataclasses import replace
from importlib.util import find_spec
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from shared.config import CampaignConfig, GenerateConfig
from shared.errors import ConfigError, DataError
from shared.generate.networks import build_generator, load_parts, parts_arrays
from shared.generate.prompts import (
    NULL,
    UNKNOWN,
    EmbeddedPrompts,
    build_prompts,
    dropped,
    prompt_tokens,
    prompt_words,
)
from shared.generate.sentences import SentencePrompts, Sentences, sentence
from shared.seeding import generator
from shared.weights import architecture_digest

with_transformers = pytest.mark.skipif(
    find_spec("transformers") is None, reason="the extra `text` (transformers) is not installed"
)
ORGANS = ("BRAIN", "CHEST", "SPINE")
UNKNOWN_DIAGNOSIS = torch.tensor([-1])


@pytest.fixture
def prompting(campaign: CampaignConfig) -> CampaignConfig:
    """Two modalities, three organs, two diagnoses: tokens 2..3, 4..6, 7..8."""
    ingest = replace(campaign.data.ingest, modalities=("CT", "MR"))
    generate = GenerateConfig(kind="emit-diff", organs=ORGANS)
    return replace(campaign, data=replace(campaign.data, ingest=ingest), generate=generate)


def with_text(campaign: CampaignConfig, text: str, folder: Path | None = None) -> CampaignConfig:
    draw = replace(campaign.generate.draw, guidance=1.0)
    changed = {"text": text, "draw": draw, "text_encoder": None if folder is None else str(folder)}
    return replace(campaign, generate=replace(campaign.generate, **changed))


def test_every_word_has_a_token_of_its_own_and_is_read_back(prompting: CampaignConfig) -> None:
    every = list(product(("CT", "MR"), ORGANS, (0, 1)))
    acquired, diagnosis_B = [(kind, part) for kind, part, _ in every], torch.tensor([code for *_, code in every])
    token_BW = prompt_tokens(prompting, acquired, diagnosis_B)
    assert token_BW.dtype == torch.int64
    assert len({tuple(token) for token in token_BW.tolist()}) == 12
    assert [set(column.tolist()) for column in token_BW.T] == [{2, 3}, {4, 5, 6}, {7, 8}]
    said = [prompt_words(prompting, token) for token in token_BW]
    assert said == [f"{kind}, {part}, {prompting.data.diagnoses[code]}" for kind, part, code in every]


@pytest.mark.parametrize(
    ("acquired", "expected"),
    [
        (("MR", "BRAIN"), "MR, BRAIN, unknown"),
        ((" mr ", "Brain "), "MR, BRAIN, unknown"),
        (("US", "HAND"), "unknown, unknown, unknown"),
        (("MR", ""), "MR, unknown, unknown"),
        (("BRAIN", "MR"), "unknown, unknown, unknown"),
        (("MR", "DOE^JANE"), "MR, unknown, unknown"),
        (("unknown", "none"), "unknown, unknown, unknown"),
    ],
)
def test_what_is_no_word_of_its_place_is_unknown(
    prompting: CampaignConfig, acquired: tuple[str, str], expected: str
) -> None:
    (token_W,) = prompt_tokens(prompting, [acquired], UNKNOWN_DIAGNOSIS)
    assert prompt_words(prompting, token_W) == expected


def test_slices_of_which_nothing_is_known_and_none_at_all_have_prompts(prompting: CampaignConfig) -> None:
    assert prompt_tokens(prompting, [], torch.tensor([1, -1])).tolist() == [[1, 1, 8], [1, 1, 1]]
    assert prompt_tokens(prompting, [], torch.zeros(0, dtype=torch.int64)).shape == (0, 3)


def test_a_diagnosis_that_has_an_organs_name_is_a_word_of_its_own(prompting: CampaignConfig) -> None:
    named = replace(prompting, data=replace(prompting.data, diagnoses=("BRAIN", "CT")))
    assert prompt_tokens(named, [("CT", "BRAIN")], torch.tensor([0])).tolist() == [[2, 4, 7]]


def test_without_text_every_prompt_is_the_null_prompt(prompting: CampaignConfig) -> None:
    silent = with_text(prompting, "none")
    token_BW = prompt_tokens(silent, [("MR", "BRAIN")] * 2, torch.tensor([0, 1]))
    assert (token_BW == NULL).all()
    assert prompt_words(silent, token_BW[0]) == ""
    prompts = build_prompts(silent, 16)
    assert prompts(token_BW).shape == (2, 3, 16)
    assert isinstance(prompts, EmbeddedPrompts)
    assert prompts.word.num_embeddings == 1


def test_an_embedding_tells_every_prompt_from_every_other(prompting: CampaignConfig) -> None:
    prompts = build_prompts(prompting, 16)
    places = [[NULL], [UNKNOWN, 2, 3], [UNKNOWN, 4, 5, 6], [UNKNOWN, 7, 8]]
    token_BW = torch.tensor([[NULL] * 3, *map(list, product(*places[1:]))])
    vectors = prompts(token_BW)
    assert vectors.shape == (37, 3, 16)
    assert torch.cdist(vectors.flatten(1), vectors.flatten(1)).fill_diagonal_(1).min() > 1e-2
    null_WC = vectors[0]
    assert torch.cdist(null_WC, null_WC).fill_diagonal_(1).min() > 1e-2, "the same word at another place is another"


def test_the_null_prompt_and_each_word_learn(prompting: CampaignConfig) -> None:
    prompts = build_prompts(prompting, 8)
    prompts(torch.tensor([[NULL] * 3, [2, 4, 7]])).square().sum().backward()
    assert isinstance(prompts, EmbeddedPrompts)
    moved = prompts.word.weight.grad
    assert moved is not None
    assert moved.abs().sum(1).nonzero().flatten().tolist() == [NULL, 2, 4, 7]


def test_dropping_makes_whole_prompts_null_at_its_share() -> None:
    token_BW = torch.tensor([[2, 4, 7]]).repeat(4000, 1)
    found = dropped(token_BW, 0.1, generator(0, "drop"))
    null_B = (found == NULL).all(1)
    assert torch.equal(found[~null_B], token_BW[~null_B])
    assert 400 - 4 * 19 < int(null_B.sum()) < 400 + 4 * 19  # four standard deviations of the binomial
    assert torch.equal(found, dropped(token_BW, 0.1, generator(0, "drop")))
    assert torch.equal(dropped(token_BW, 0.0, generator(0, "drop")), token_BW)
    assert (token_BW != NULL).all(), "a copy"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("MR", "BRAIN", "kind_b"), "MR, brain, kind_b"),
        (("CT", "unknown", "Viral pneumonia"), "CT, Viral pneumonia"),
        (("unknown", "CHEST", "unknown"), "chest"),
        (("unknown", "unknown", "unknown"), "unknown"),
    ],
)
def test_a_sentence_says_what_is_known(words: tuple[str, str, str], said: str) -> None:
    assert sentence(words) == said


def test_a_token_is_projected_from_the_vectors_of_its_own_sentence() -> None:
    sizes = (3, 4, 3)
    vectors_PTC = torch.arange(1.0 + 3 * 4 * 3).reshape(-1, 1, 1)
    prompts = SentencePrompts(Sentences(vectors_PTC, sizes, "0" * 64), (2, 4, 7), 1)
    for projection in prompts.projection.values():
        assert isinstance(projection, nn.Linear)
        nn.init.ones_(projection.weight)
        nn.init.zeros_(projection.bias)
    places = [[UNKNOWN, 2, 3], [UNKNOWN, 4, 5, 6], [UNKNOWN, 7, 8]]
    token_BW = torch.tensor([[NULL] * 3, *map(list, product(*places))])
    assert prompts(token_BW).flatten().tolist() == list(range(37))


def test_a_text_encoder_that_is_not_there_is_refused_in_one_line(prompting: CampaignConfig, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^generate\.text.*use (generate\.text=)?embedding$"):
        build_prompts(with_text(prompting, "sentence", tmp_path / "nowhere"), 16)


def save_clip(folder: Path, seed: int = 0, *, longest: int = 24, vocabulary: int | None = None) -> None:
    """A CLIP text model of random weights, and a tokenizer of the alphabet."""
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    letters = [chr(code) for code in range(33, 127)]
    symbols = [*letters, *(letter + "</w>" for letter in letters), "br", "ai", "<|startoftext|>", "<|endoftext|>"]
    tokenizer = CLIPTokenizer({symbol: place for place, symbol in enumerate(symbols)}, [("b", "r"), ("a", "i")])
    end = len(symbols) - 1
    config = CLIPTextConfig(
        vocab_size=vocabulary or len(symbols), hidden_size=16, intermediate_size=32, num_hidden_layers=2,
        num_attention_heads=2, max_position_embeddings=longest,
        bos_token_id=end - 1, eos_token_id=end, pad_token_id=end,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        CLIPTextModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clip")
    save_clip(folder)
    return folder


@with_transformers
def test_sentences_are_what_the_encoder_says_of_each_alone(prompting: CampaignConfig, clip: Path) -> None:
    from transformers import CLIPTextModel, CLIPTokenizer

    prompts = build_prompts(with_text(prompting, "sentence", clip), 8)
    assert isinstance(prompts, SentencePrompts)
    assert prompts.vectors_PTC.shape[0] == 1 + 3 * 4 * 3
    model, tokenizer = CLIPTextModel.from_pretrained(clip).eval(), CLIPTokenizer.from_pretrained(clip)
    (projection,) = prompts.projection.values()
    for token, said in [
        ([0, 0, 0], ""),
        ([3, 4, 8], "MR, brain, lesion"),
        ([1, 5, 1], "chest"),
        ([1, 1, 1], "unknown"),
    ]:
        own_1T = tokenizer(said, return_tensors="pt").input_ids
        with torch.no_grad():
            expected_1TC = projection(model(own_1T).last_hidden_state)
        context_1TC = prompts(torch.tensor([token]))
        torch.testing.assert_close(context_1TC[:, : own_1T.shape[1]], expected_1TC, rtol=1e-4, atol=1e-5)
    assert prompts(torch.tensor([[0, 0, 0], [3, 4, 8]])).shape[::2] == (2, 8)


@with_transformers
def test_the_text_part_of_a_whole_clip_model_gives_the_same(
    prompting: CampaignConfig, clip: Path, tmp_path: Path
) -> None:
    from transformers import CLIPConfig, CLIPModel, CLIPTextModel, CLIPTokenizer, CLIPVisionConfig

    text = CLIPTextModel.from_pretrained(clip)
    vision = CLIPVisionConfig(hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1)
    whole = CLIPModel(CLIPConfig(text_config=text.config.to_dict(), vision_config=vision.to_dict()))
    same = {name.removeprefix("text_model."): values for name, values in text.state_dict().items()}
    whole.get_submodule("text_model").load_state_dict(same)
    whole.save_pretrained(tmp_path)
    CLIPTokenizer.from_pretrained(clip).save_pretrained(tmp_path)
    prompts, expected = (build_prompts(with_text(prompting, "sentence", folder), 8) for folder in (tmp_path, clip))
    torch.testing.assert_close(prompts.vectors_PTC, expected.vectors_PTC)


@with_transformers
def test_only_the_projection_is_trained_and_travels(prompting: CampaignConfig, clip: Path) -> None:
    built = build_generator(with_text(prompting, "sentence", clip))
    arrays = parts_arrays(built, ("prompts",))
    (prefix,) = {name.rpartition(".")[0] for name in arrays}
    assert sorted(array.shape for array in arrays.values()) == [(64,), (64, 16)]
    assert prefix.startswith("prompts.projection.")
    assert sum(p.numel() for p in built.prompts.parameters()) == 64 * 16 + 64
    assert architecture_digest(arrays) == architecture_digest(
        parts_arrays(build_generator(with_text(prompting, "sentence", clip)), ("prompts",))
    )


@with_transformers
@pytest.mark.parametrize("change", ["weights", "tokenizer", "heads"])
def test_weights_of_a_site_with_another_encoder_do_not_fit(
    prompting: CampaignConfig, clip: Path, tmp_path: Path, change: str
) -> None:
    save_clip(tmp_path, seed=1 if change == "weights" else 0)
    if change == "tokenizer":
        path = tmp_path / "tokenizer.json"
        content = json.loads(path.read_text())
        content["model"]["merges"] = content["model"]["merges"][:1]
        path.write_text(json.dumps(content))
    if change == "heads":
        path = tmp_path / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "num_attention_heads": 4}))
    own = build_generator(with_text(prompting, "sentence", clip))
    other = parts_arrays(build_generator(with_text(prompting, "sentence", tmp_path)), ("prompts",))
    assert architecture_digest(other) != architecture_digest(parts_arrays(own, ("prompts",)))
    with pytest.raises(DataError, match="projection"):
        load_parts(own, other, ("prompts",))


@with_transformers
def test_folders_that_do_not_fit_are_refused_with_the_reason(
    prompting: CampaignConfig, clip: Path, tmp_path: Path
) -> None:
    def refused(folder: Path, reason: str, campaign: CampaignConfig = prompting) -> None:
        with pytest.raises(ConfigError, match=reason) as caught:
            build_prompts(with_text(campaign, "sentence", folder), 8)
        assert "\n" not in str(caught.value)
        assert str(tmp_path) not in str(caught.value)

    pickled = tmp_path / "pickled"
    pickled.mkdir()
    for name in ("config.json", "tokenizer.json"):
        (pickled / name).write_text((clip / name).read_text())
    (pickled / "pytorch_model.bin").write_bytes(b"\x80\x04")
    refused(pickled, r"expected a folder with model\.safetensors")
    (pickled / "model.safetensors").write_bytes(b"\x80\x04")
    refused(pickled, "holds no CLIP text model with its tokenizer")
    lone = tmp_path / "lone"
    lone.mkdir()
    for name in ("config.json", "model.safetensors"):
        (lone / name).write_bytes((clip / name).read_bytes())
    refused(lone, r"expected a folder with tokenizer\.json")
    (lone / "vocab.json").write_text('{"<|startoftext|>": 0, "<|endoftext|>": 1}')
    (lone / "merges.txt").write_text("#version: 0.2\n")
    refused(lone, "reads different sentences alike")
    save_clip(tmp_path / "part")
    arrays = load_file(tmp_path / "part" / "model.safetensors")
    save_file(dict(list(arrays.items())[1:]), tmp_path / "part" / "model.safetensors", {"format": "pt"})
    refused(tmp_path / "part", "lacks weights")
    save_clip(tmp_path / "short", longest=8)
    refused(tmp_path / "short", "reads 8 tokens of")
    save_clip(tmp_path / "few", vocabulary=50)
    refused(tmp_path / "few", "tokens of 50")
    organs = tuple(f"ORGAN{chr(65 + place % 26)}{chr(65 + place // 26)}" for place in range(100))
    diagnoses = tuple(f"kind {place}" for place in range(20))
    many = replace(
        prompting,
        data=replace(prompting.data, diagnoses=diagnoses),
        generate=replace(prompting.generate, organs=organs),
    )
    refused(clip, "4096 or fewer", many)


@with_transformers
def test_building_asks_no_network_and_touches_no_global_generator(
    prompting: CampaignConfig, clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import socket

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a connection was asked for")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    before: Tensor = torch.random.get_rng_state()
    numpy_before = np.random.get_state()[1].copy()  # noqa: NPY002  # the global one is what must stay
    build_generator(with_text(prompting, "sentence", clip))
    assert torch.equal(before, torch.random.get_rng_state())
    assert np.array_equal(numpy_before, np.random.get_state()[1])  # noqa: NPY002
