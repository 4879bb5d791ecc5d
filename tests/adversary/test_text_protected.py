"""Protected words: exchanging words leaves them, changing characters may disguise them, and both are checked."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor, nn

from zoo.adversary.joint import attack_jointly
from zoo.adversary.text.attack import attack_texts
from zoo.adversary.text.edits import KINDS, TextBudget, keeps_protected
from zoo.adversary.text.gradient import Method
from zoo.adversary.text.synonyms import Synonyms
from zoo.adversary.text.target import Goal, TextModel, TextResult
from zoo.adversary.text.tokens import TokenEditor
from zoo.adversary.threat import ImagePart, TextPart, Threat
from zoo.contract.card import TextInput
from zoo.errors import BadCardError
from zoo.inputs.text import TextCodec, train_tokenizer

DOGS = ("dog", "dogs")
TEXTS = ["A dog runs over the green grass", "two Dogs play with a dog", "a red car near the house"]
WORDS = TextBudget("words", count=2)
NEAR = Synonyms(["dog", "dogs", "car", "grass", "house"], torch.eye(5), least=-2.0)
METHODS: tuple[Method, ...] = ("hotflip", "gcg")


def substitute_tokens(
    model: TextModel, texts: list[str], threat: TextPart, method: Method, *, threshold: float
) -> list[TextResult]:
    return attack_texts(model, texts, dataclasses.replace(threat, attacks=(method,)), threshold=threshold)


@pytest.fixture(scope="module")
def codec() -> TextCodec:
    return TextCodec(train_tokenizer([text.lower() for text in TEXTS] * 5, 340), TextInput(24))


class Keyword(nn.Module):
    """Ten for each token `dog` and a little for each other, by way of an embedding of one number."""

    def __init__(self, codec: TextCodec) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(codec.vocabulary_size, 1)
        pieces = TokenEditor(codec).pieces
        token = next(place for place in pieces.whole_words() if pieces.surface[place] == "dog")
        with torch.no_grad():
            self.embedding.weight.uniform_(0, 1)
            self.embedding.weight[token] = 10.0

    def forward(self, ids: Tensor, mask: Tensor, items: Tensor) -> Tensor:
        score: Tensor = (self.embedding(ids)[:, :, 0] * mask).sum(dim=1)
        return score


def _model(codec: TextCodec) -> TextModel:
    module = Keyword(codec)
    return TextModel(module, codec, module.embedding, (module,))


@pytest.mark.parametrize(
    ("changed", "exchanged", "kept"),
    [
        ("a dog sits on two Dogs", True, True),  # where they stand is free
        ("A DOG, two dogs!", True, True),
        ("two dogs and a cat", True, False),
        ("two dogs and a hotdog", True, False),  # whole words only
        ("two dogs and two dogs", True, False),
        ("a dog, two dogs, a dog", True, False),  # a new one may bring the label
        ("a d0g and two d\u043egs", True, False),
        ("a d0g and two d\u043egs", False, True),
        ("a dgo and two dosg", False, True),
        ("a dog and dog and dog", False, False),
    ],
)
def test_what_keeps_protected_words(changed: str, exchanged: bool, kept: bool) -> None:
    assert keeps_protected("a dog and two dogs", changed, DOGS, exchanged=exchanged) == kept
    assert keeps_protected("a dog and two dogs", changed, (), exchanged=exchanged)


@pytest.mark.parametrize("method", METHODS)
def test_exchanges_of_tokens_leave_them(codec: TextCodec, method: Method) -> None:
    free = TextPart(budget=WORDS, steps=6, suffix=1)
    bound = TextPart(budget=WORDS, steps=6, suffix=1, protected=DOGS)
    without = substitute_tokens(_model(codec), TEXTS[:2], free, method, threshold=9.0)
    assert [result.outcome for result in without] == ["broken", "broken"]
    assert not any(bound.permits(result.original, result.text, exchanged=True) for result in without)
    found = substitute_tokens(_model(codec), TEXTS, bound, method, threshold=-1.0)
    assert {result.outcome for result in found} == {"held"}
    assert all(bound.permits(result.original, result.text, exchanged=True) for result in found)
    assert all(result.text != result.original for result in found)  # other words went


@pytest.mark.parametrize("method", METHODS)
def test_a_text_is_not_broken_by_a_protected_word_that_is_brought_in(codec: TextCodec, method: Method) -> None:
    model = _model(codec)
    module = model.modules[0]
    upside = TextModel(lambda *inputs: -module(*inputs), codec, model.embedding)
    free = substitute_tokens(upside, TEXTS[2:], TextPart(budget=WORDS), method, threshold=-10.0)[0]
    assert free.outcome == "broken"
    assert "dog" in free.text.lower().split()
    bound = TextPart(budget=WORDS, steps=8, protected=DOGS)
    assert substitute_tokens(upside, TEXTS[2:], bound, method, threshold=-10.0)[0].outcome == "held"


def _keyword(texts: list[str]) -> list[float]:
    return [sum(word in ("dog", "dogs") for word in text.lower().split()) + len(text) / 1000 for text in texts]


def test_synonyms_leave_them_and_no_query_is_spent_on_others() -> None:
    asked: list[str] = []

    def score(texts: list[str], _: list[int]) -> list[float]:
        asked.extend(texts)
        return _keyword(texts)

    free = attack_texts(score, TEXTS[:1], TextPart(("synonyms",), WORDS), threshold=0.5, synonyms=NEAR)
    assert free[0].outcome == "broken"
    asked.clear()
    bound = TextPart(("synonyms",), WORDS, protected=("DOG", "dogs"))
    held = attack_texts(score, TEXTS[:1], bound, threshold=0.5, synonyms=NEAR)[0]
    assert held.outcome == "held"
    assert held.exchanged
    words = len(TEXTS[0].split())  # asked about without each of them, to find the order
    assert all("dog" in text.split() for text in asked[1 + words :])
    assert len(asked) > 2 + words


@pytest.mark.parametrize("kind", KINDS)
def test_attacks_on_characters_may_disguise_them(kind: str) -> None:
    threat = TextPart((kind,), protected=("dog", "dogs"))
    result = attack_texts(
        lambda texts, _: [float("dog" in text.split()) for text in texts], TEXTS[:1], threat, threshold=0.5
    )[0]
    assert result.outcome == "broken"
    assert not result.exchanged


def test_attacks_on_characters_bring_none_in() -> None:
    def score(texts: list[str], _: list[int]) -> list[float]:
        return [float("dog" not in text.split()) for text in texts]

    free = attack_texts(score, ["they dig a hole"], TextPart(("misspelling",)), threshold=0.5)[0]
    assert free.text == "they dog a hole"
    bound = TextPart(("misspelling",), protected=DOGS, queries=200)
    assert attack_texts(score, ["they dig a hole"], bound, threshold=0.5)[0].outcome == "held"


def test_a_claim_without_a_protected_word_is_refuted() -> None:
    threat = TextPart(("synonyms",), WORDS, protected=DOGS)
    for exchanged, outcome in ((True, "refuted"), (False, "broken")):
        claim = TextResult("a dog", "a cat", "broken", 1.0, 0.0, 1, 1, exchanged=exchanged)
        assert Goal(lambda texts, _: [0.0], threat, 0.5, 8).confirmed([claim], [0])[0].outcome == outcome


def test_one_threat_with_both_kinds_of_attacks_tells_them_apart(codec: TextCodec) -> None:
    threat = TextPart(("homoglyphs", "synonyms", "hotflip"), WORDS, protected=DOGS)
    result = attack_texts(_model(codec), TEXTS[:1], threat, threshold=9.0, synonyms=NEAR)[0]
    assert (result.outcome, result.exchanged) == ("broken", False)
    words = TextPart(("synonyms", "hotflip"), WORDS, protected=DOGS)
    held = attack_texts(_model(codec), TEXTS[:1], words, threshold=9.0, synonyms=NEAR)[0]
    assert (held.outcome, held.exchanged) == ("held", True)


@pytest.mark.parametrize(("attack", "broken"), [("hotflip", False), ("misspelling", True)])
def test_the_joint_attack_keeps_them_too(codec: TextCodec, attack: str, broken: bool) -> None:
    module = Keyword(codec)

    def model(pixels: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
        unsafe = module(ids, mask, ids) - 9 + 0 * pixels.mean(dim=(1, 2, 3))
        return torch.stack([torch.zeros_like(unsafe), unsafe], dim=1)

    # The protected words of one alternative are those of all.
    other = TextPart(("casing",), TextBudget(count=0), protected=DOGS)
    image = ImagePart("Linf", 0.01, ("fgsm",), queries=20)
    found = attack_jointly(
        model,
        torch.full((1, 3, 8, 8), 0.5),
        TEXTS[:1],
        torch.tensor([1]),
        Threat(image, (other, TextPart((attack,), WORDS))),
        codec=codec,
        embedding=module.embedding,
    )
    assert found.correct.all()
    assert bool(found.broken[0]) == broken
    assert found.refuted == 0
    assert ("dog" in found.texts[0].lower().split()) != broken


@pytest.mark.parametrize("word", ["", " ", "two words", "dog "])
def test_a_protected_word_is_one_word(word: str) -> None:
    with pytest.raises(BadCardError, match="one word without blanks"):
        TextPart.from_dict({"protected": [word]})
