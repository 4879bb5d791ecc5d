"""TF-IDF features: words, pairs of words, their weights, what is not known, and texts without any."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

import zoo
from zoo.contract.card import TextInput
from zoo.contract.verdict import Unseen
from zoo.errors import BadDataError
from zoo.inputs.terms import TermCodec, Terms, codec_of
from zoo.inputs.text import TextCodec, train_tokenizer
from zoo.judging.scorer import feeds

TERMS = Terms(("dog", "dogs run", "für", "run", "walked"), (1.0, 2.0, 1.0, 3.0, 1.5), True, False, ("the", "a"))


def _codec(terms: Terms = TERMS, **changes: Any) -> TextCodec:
    spec = TextInput(len(terms.terms), features="tfidf", variable_length=True, **changes)
    return codec_of(json.dumps(terms.to_dict()), spec)


def _weights(text: str, **changes: Any) -> dict[str, float]:
    tokens = _codec(**changes).encode([text])
    return {TERMS.terms[n]: float(w) for n, w in zip(tokens.ids[0], tokens.mask[0], strict=True) if w}


def test_weights_are_counts_times_idf_of_unit_length() -> None:
    found = _weights("Dogs run: the dog, dog runs. RUN")
    assert found == pytest.approx({t: w / np.sqrt(44) for t, w in {"dog": 2, "dogs run": 2, "run": 6}.items()})


def test_a_batch_is_filled_up_with_terms_of_no_weight() -> None:
    tokens = _codec().encode(["the dog", "dogs run", "nothing", ""])
    assert tokens.ids.shape == tokens.mask.shape == (4, 2)
    assert tokens.mask.dtype == np.float32
    assert (tokens.mask[2:] == 0).all()
    assert tokens.mask[0, 1] == 0


def test_words_end_at_other_letters_where_the_rule_is_that_of_ascii() -> None:
    assert "für" in _weights("für")
    ascii_words = Terms(TERMS.terms, TERMS.idf, True, ascii_words=True)
    assert _weights("für", terms=ascii_words) == {}


def test_unknown_words_are_counted_but_not_those_that_are_left_out() -> None:
    windows = _codec().windows
    assert windows("The dog walked a dog").unseen == {}
    assert windows("the zebra walked").unseen == {"words": Unseen(1, 3)}
    assert windows("d o g").unseen["words"] == Unseen(3, 3)
    assert windows("дог").unseen["words"] == Unseen(1, 1)
    assert windows("дог собака бежит").unseen["language"].note == "Cyrillic"
    long = windows("dog " * 20_000 + "walked")
    assert long.unseen == {}
    assert long.characters == [(0, 80_006)]
    assert (long.mask[0] > 0).sum() == 2


def test_a_text_without_a_known_word_is_never_safe() -> None:
    with zoo.load_scorer("test_terms.random") as scorer:
        known, unknown, mixed = scorer.verdicts(texts=["the dog on a mat", "zebras drink water", "two zebras"])
    assert known.unseen == {}
    assert known.decision != "review"
    assert unknown.decision in ("review", "unsafe")
    assert unknown.unseen is not None
    assert mixed.unseen is not None
    assert unknown.unseen["words"].total == 3
    assert mixed.unseen["words"].tolerated
    assert not unknown.unseen["words"].tolerated


def test_texts_of_any_lengths_share_a_batch() -> None:
    texts = ["dog", "", "the dog runs on the mat with two cats and a photo", "two cats"]
    for name in ("test_terms.random", "test_sentence_bert.random"):
        with zoo.load_scorer(name) as scorer:
            together = [verdict.scores for verdict in scorer.verdicts(texts=texts)]
            alone = [scorer.verdict(text=text).scores for text in texts]
            ready = [scorer.prepare(text=text) for text in texts]
            names = scorer.card.input_names
            shapes = {feeds(scorer.card, [one])["input_ids"].shape[1] for one in ready}
            assert feeds(scorer.card, ready).keys() == set(names)
            assert len(shapes) > 1
        for one, other in zip(together, alone, strict=True):
            assert one == pytest.approx(other, abs=1e-5)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is not JSON, and should hold the terms"),
        (train_tokenizer([], 0), 'missing field "schema_version"'),
        (json.dumps(TERMS.to_dict() | {"idf": [1.0]}), "an idf for each term, got 5 terms and 1"),
        (json.dumps(TERMS.to_dict() | {"idf": [1.0, 1.0, 1.0, 1.0, -1.0]}), "greater than 0"),
        (json.dumps(TERMS.to_dict() | {"terms": ["a"] * 5}), "a term stands there twice"),
    ],
)
def test_another_tokenizer_is_refused(content: str, message: str) -> None:
    with pytest.raises(BadDataError, match=message):
        TermCodec(content, TextInput(5, features="tfidf", variable_length=True))


def test_more_terms_than_the_model_has_rows_are_refused() -> None:
    with pytest.raises(BadDataError, match="knows 5 terms, the card only 4"):
        TermCodec(json.dumps(TERMS.to_dict()), TextInput(4, features="tfidf", variable_length=True))
