"""Linear models on TF-IDF features: llm_guardrail's JSON, and the pickles of alt-profanity-check."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zoo.archives.archive import Weights, json_of
from zoo.archives.pickles import Held, unpickle
from zoo.contract.card import ModelCard
from zoo.errors import BadDataError
from zoo.inputs.terms import Terms

PROFANITY_MODEL = "profanity_check/data/model.joblib"
PROFANITY_VECTORIZER = "profanity_check/data/vectorizer.joblib"

#: The classes whose objects the pickles of alt-profanity-check hold.
_CLASSES = (
    "sklearn.calibration.CalibratedClassifierCV",
    "sklearn.calibration._CalibratedClassifier",
    "sklearn.calibration._SigmoidCalibration",
    "sklearn.svm._classes.LinearSVC",
    "sklearn.feature_extraction.text.TfidfTransformer",
    "sklearn.feature_extraction.text.TfidfVectorizer",
)
#: How the vectorizer must have been set for `Terms` to say the same.
_SETTINGS = {
    "analyzer": "word",
    "lowercase": True,
    "token_pattern": r"(?u)\b\w\w+\b",
    "ngram_range": (1, 1),
    "strip_accents": None,
    "binary": False,
    "norm": "l2",
    "use_idf": True,
    "sublinear_tf": False,
}
#: Words of English grammar, and letters that apostrophes leave alone. Both models were made without such words, so that
#: one of them is no gap in what they know.
_GRAMMAR = (
    "a about above after again against all also always am an and any are as at be because been before being below "
    "between both but by can cannot could did do does doing don done down due during each either else ever every few "
    "for from further get give go had has have having he her here hers herself him himself his how however i if in "
    "into is it its itself just last least less ll m made many may me might mine more most move much must my myself "
    "name neither never no nobody none noone nor not nothing now nowhere of off often on once one only onto or other "
    "others our ours ourselves out over own part per perhaps please put rather re s same see seem seemed seems several "
    "she should show side since six so some somehow someone something sometimes still such t take ten than that the "
    "their them themselves then there therefore these they thing third this those though three through thus to "
    "together too top toward towards two under until up upon us ve very was we well were what whatever when where "
    "whether which while who whoever whole whom whose why will with within without would yet you your yours yourself "
    "yourselves d"
)


def guardrail(card: ModelCard, members: Mapping[str, bytes]) -> Weights:
    """The weights of `prompt_injection_tfidf.*`: one linear layer on words and pairs of words, from the one member."""
    ((name, raw),) = members.items()
    content = json_of(raw, name)
    try:
        terms, idf = _ordered(content["vocabulary"], content["idf"])
        (coefficients,), (intercept,) = content["coefficients"], content["intercept"]
        if content["ngram_range"] != [1, 2] or content["lowercase"] is not True or content["classes"] != [0, 1]:
            raise ValueError("settings that are not those of words and pairs of words in lower case")
        weight = np.array(coefficients, dtype=np.float64)[:, None]
        known = Terms(terms, idf, pairs=True, ascii_words=True, left_out=_left_out(terms))
        return _weights(known, weight, np.array([float(intercept)]))
    except (KeyError, TypeError, ValueError) as problem:
        raise BadDataError(f"{name} holds no model of TF-IDF features: {problem}") from None


def profanity(card: ModelCard, members: Mapping[str, bytes]) -> Weights:
    """The weights of `profanity_tfidf.alt_profanity_check`: support vector machines of folds, Platt-scaled each.

    The sigmoid of a fold, 1 / (1 + exp(a * (w x + c) + b)), is one of a linear layer: -a * w, and -a * c - b.
    """
    terms, idf = _vectorizer(_unpickled(members, PROFANITY_VECTORIZER))
    model = _unpickled(members, PROFANITY_MODEL)
    folds = [_fold(one, len(terms)) for one in model.get("calibrated_classifiers_", list)]
    if len(folds) != card.hparams["folds"]:
        raise BadDataError(f"{PROFANITY_MODEL} holds {len(folds)} folds, expected {card.hparams['folds']}")
    weight, bias = np.stack([weight for weight, _ in folds], axis=1), np.array([bias for _, bias in folds])
    return _weights(Terms(terms, idf, pairs=False, ascii_words=False, left_out=_left_out(terms)), weight, bias)


def _unpickled(members: Mapping[str, bytes], name: str) -> Held:
    try:
        found = unpickle(members[name], _CLASSES)
    except BadDataError as problem:
        raise BadDataError(f"{name} {problem}") from None
    if not isinstance(found, Held):
        raise BadDataError(f"{name} holds one of {type(found).__name__}, expected an object of scikit-learn")
    return found


def _vectorizer(vectorizer: Held) -> tuple[tuple[str, ...], tuple[float, ...]]:
    for setting, wanted in _SETTINGS.items():
        found = vectorizer.__dict__.get(setting)
        if found != wanted:
            raise BadDataError(f"{PROFANITY_VECTORIZER}: {setting} is {found}, expected {wanted}")
    idf: NDArray[Any] = vectorizer.get("_tfidf", Held).get("idf_", np.ndarray)
    try:
        return _ordered(vectorizer.get("vocabulary_", dict), idf.tolist())
    except (TypeError, ValueError) as problem:
        raise BadDataError(f"{PROFANITY_VECTORIZER}: {problem}") from None


def _ordered(vocabulary: Mapping[str, int], idf: Sequence[float]) -> tuple[tuple[str, ...], tuple[float, ...]]:
    """Terms in the order of their places, and the idf of each. Raises ValueError."""
    places = sorted(vocabulary.values())
    if places != list(range(len(idf))):
        raise ValueError(f"{len(places)} terms do not have the places 0 to {len(idf) - 1}")
    weights = tuple(map(float, idf))
    if not all(0 < weight < math.inf for weight in weights):
        raise ValueError("an idf that is not above 0")
    return tuple(sorted(vocabulary, key=vocabulary.__getitem__)), weights


def _left_out(terms: Sequence[str]) -> tuple[str, ...]:
    known = set(terms)
    return tuple(word for word in _GRAMMAR.split() if word not in known)


def _fold(fold: Any, terms: int) -> tuple[NDArray[np.float64], float]:
    """The linear layer `[V]` and bias of one fold's calibrated probability."""
    if not isinstance(fold, Held):
        raise BadDataError(f"{PROFANITY_MODEL}: a fold is one of {type(fold).__name__}")
    machine, calibrators = fold.get("estimator", Held), fold.get("calibrators", list)
    weight, bias = machine.get("coef_", np.ndarray), machine.get("intercept_", np.ndarray)
    classes = fold.get("classes", np.ndarray)
    if weight.shape != (1, terms) or bias.shape != (1,) or len(calibrators) != 1 or classes.tolist() != [0, 1]:
        raise BadDataError(f"{PROFANITY_MODEL}: a fold of {weight.shape}, expected (1, {terms}) and two classes")
    a, b = (calibrators[0].get(name, float) for name in ("a_", "b_"))
    return -a * weight[0], float(-a * bias[0] - b)


def _weights(terms: Terms, weight: NDArray[np.float64], bias: NDArray[np.float64]) -> Weights:
    if len(weight) != len(terms.terms) or not (np.isfinite(weight).all() and np.isfinite(bias).all()):
        raise BadDataError(f"{len(weight)} coefficients, expected a finite number for each of {len(terms.terms)} terms")
    tokenizer = json.dumps(terms.to_dict(), ensure_ascii=False)
    return Weights({"weight": weight.astype(np.float32), "bias": bias.astype(np.float32)}, tokenizer)
