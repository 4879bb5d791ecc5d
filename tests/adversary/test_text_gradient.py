"""Token substitution by gradient: exact on a linear model, on a transformer, without a gradient, with banned words."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor, nn
from transformers import BertConfig, BertModel

from zoo.adversary.text.attack import attack_texts
from zoo.adversary.text.edits import TextBudget, count_banned
from zoo.adversary.text.gradient import Method
from zoo.adversary.text.synonyms import Synonyms
from zoo.adversary.text.target import TextModel, TextResult, imitation, input_embedding
from zoo.adversary.text.tokens import TokenEditor
from zoo.adversary.threat import TextPart
from zoo.contract.card import TextInput
from zoo.errors import BadInputError
from zoo.inputs.text import TextCodec, train_tokenizer
from zoo.models.clip import PhraseEncoder
from zoo.registry import create_model

TEXTS = ["a dog runs over the green grass", "Two dogs play, on the Beach", "a red car near the house"]
WORDS = TextBudget("words", count=2)
METHODS: tuple[Method, ...] = ("hotflip", "gcg")


def substitute_tokens(
    model: TextModel, texts: list[str], threat: TextPart, method: Method, *, threshold: float
) -> list[TextResult]:
    return attack_texts(model, texts, dataclasses.replace(threat, attacks=(method,)), threshold=threshold)


@pytest.fixture(scope="module")
def codec() -> TextCodec:
    return TextCodec(train_tokenizer([text.lower() for text in TEXTS] * 5, 340), TextInput(24))


class Linear(nn.Module):
    """The mean over the tokens of one weight each, by way of an embedding."""

    def __init__(self, codec: TextCodec, word: str | None = "dog") -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(codec.vocabulary_size, 8)
        self.weight = nn.Parameter(torch.randn(8))
        if word:
            pieces = TokenEditor(codec).pieces
            token = next(place for place in pieces.whole_words() if pieces.surface[place] == word)
            with torch.no_grad():
                self.embedding.weight.mul_(0.05)
                self.embedding.weight[token] = self.weight * 3

    def forward(self, ids: Tensor, mask: Tensor, items: Tensor) -> Tensor:
        weights = mask[:, :, None].float()
        pooled = (self.embedding(ids) * weights).sum(dim=1) / weights.sum(dim=1)
        score: Tensor = pooled @ self.weight
        return score


class Bert(nn.Module):
    """A small random BERT with one output."""

    def __init__(self, codec: TextCodec) -> None:
        super().__init__()
        torch.manual_seed(0)
        config = BertConfig(
            vocab_size=codec.vocabulary_size,
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=64,
            max_position_embeddings=32,
            initializer_range=0.3,
        )
        self.bert = BertModel(config, add_pooling_layer=False)
        self.head = nn.Linear(32, 1)

    def forward(self, ids: Tensor, mask: Tensor, items: Tensor) -> Tensor:
        states = self.bert(input_ids=ids, attention_mask=mask).last_hidden_state
        score: Tensor = self.head(states.mean(dim=1))[:, 0]
        return score


def _linear(codec: TextCodec, word: str | None = "dog") -> TextModel:
    module = Linear(codec, word)
    return TextModel(module, codec, module.embedding, (module,))


def _bert(codec: TextCodec) -> TextModel:
    module = Bert(codec)
    return TextModel(module, codec, input_embedding(module), (module,))


def test_the_first_order_estimate_is_exact_for_a_linear_model(codec: TextCodec) -> None:
    model, editor = _linear(codec, None), TokenEditor(codec)
    read = editor.read(TEXTS[0])
    ids, mask = torch.from_numpy(read.ids), torch.from_numpy(read.mask)
    gradient = model.token_gradient(ids, mask, 0)
    assert gradient.shape == (24, 8)
    assert gradient[mask == 0].count_nonzero() == 0
    place, token = read.places[2], 300
    swapped = ids.clone()
    swapped[place] = token
    weight = model.embedding.weight
    estimate = gradient[place] @ (weight[token] - weight[ids[place]])
    scores = model.token_score(torch.stack([ids, swapped]), torch.stack([mask, mask]), torch.zeros(2))
    torch.testing.assert_close(scores[1] - scores[0], estimate, atol=1e-5, rtol=0)


@pytest.mark.parametrize("method", METHODS)
def test_the_word_that_decides_is_exchanged(codec: TextCodec, method: Method) -> None:
    model = _linear(codec)
    result = substitute_tokens(model, TEXTS[:1], TextPart(budget=WORDS), method, threshold=0.2)[0]
    assert result.outcome == "broken"
    assert "dog" not in result.text.split()
    assert 1 <= result.edits <= 2
    assert result.score_after <= 0.2 < result.score_before
    assert not result.obfuscated


def test_hotflip_needs_one_word_only(codec: TextCodec) -> None:
    result = substitute_tokens(_linear(codec), TEXTS[:1], TextPart(budget=WORDS), "hotflip", threshold=0.2)[0]
    assert result.edits == 1
    assert result.text.split()[2:] == TEXTS[0].split()[2:]


@pytest.mark.parametrize("budget", [WORDS, TextBudget("words", count=0), TextBudget(share=0.2), TextBudget("words")])
@pytest.mark.parametrize("method", METHODS)
def test_budgets_round_trips_and_seeds_on_a_transformer(codec: TextCodec, method: Method, budget: TextBudget) -> None:
    model = _bert(codec)
    seen: list[Tensor] = []

    def spied(ids: Tensor, mask: Tensor, items: Tensor) -> Tensor:
        seen.append(ids)
        return model.token_score(ids, mask, items)

    spy = TextModel(spied, codec, model.embedding, model.modules)
    threat = TextPart(budget=budget, steps=4, candidates=16, suffix=1)
    results = substitute_tokens(spy, TEXTS, threat, method, threshold=-1e9)
    assert all(budget.permits(result.original, result.text) for result in results)
    assert [result.edits for result in results] == [budget.edits(r.original, r.text) for r in results]
    assert all(result.score_after <= result.score_before + 1e-5 for result in results)
    assert any(result.score_after < result.score_before - 0.01 for result in results) == (budget.count != 0)
    assert {result.outcome for result in results} == {"held"}
    assert results == substitute_tokens(model, TEXTS, threat, method, threshold=-1e9)
    # What the model was asked about has all its ids inside the vocabulary, and the control token in place.
    asked = torch.cat(seen)
    assert int(asked.max()) < codec.vocabulary_size
    assert (asked[:, 0] == 0).all()


def test_unrealisable_exchanges_are_counted_and_never_asked_about(codec: TextCodec) -> None:
    model = _bert(codec)
    asked: set[tuple[int, ...]] = set()

    def spied(ids: Tensor, mask: Tensor, items: Tensor) -> Tensor:
        asked.update(tuple(row) for row in ids.tolist())
        return model.token_score(ids, mask, items)

    texts = ["zebras graze in the grass"]  # words of several tokens: other ones in their place may merge
    threat = TextPart(budget=TextBudget("words", count=6), steps=6, candidates=40, top=400)
    result = substitute_tokens(TextModel(spied, codec, model.embedding), texts, threat, "gcg", threshold=-1e9)[0]
    assert result.unrealisable > 0
    tokenizer = TokenEditor(codec)._tokenizer
    for row in asked:
        text = tokenizer.decode([token for token in row if token > 1], skip_special_tokens=False)
        assert codec.encode([text]).ids[0].tolist()[: len(row)] == list(row), text


@pytest.mark.parametrize("method", METHODS)
def test_banned_words_stay_out(codec: TextCodec, method: Method) -> None:
    model = _linear(codec, "car")
    free = substitute_tokens(model, TEXTS[:2], TextPart(budget=WORDS), method, threshold=-1e9)
    banned = tuple(
        {word for result in free for word in result.text.lower().split()} - {"a", "dogs", "two", "the", "on"}
    )
    threat = TextPart(budget=WORDS, banned=(*banned, "dog"), steps=8)
    results = substitute_tokens(model, TEXTS[:2], threat, method, threshold=-1e9)
    assert all(
        count_banned(result.text, threat.banned) <= count_banned(result.original, threat.banned) for result in results
    )
    assert [result.text for result in results] != [result.text for result in free]


@pytest.mark.parametrize("method", METHODS)
def test_banned_words_of_the_text_are_removed_first(codec: TextCodec, method: Method) -> None:
    threat = TextPart(budget=WORDS, banned=("dog",))
    results = substitute_tokens(_linear(codec, "car"), TEXTS[:2], threat, method, threshold=10.0)
    assert [result.outcome for result in results] == ["broken", "broken"]
    assert all("dog" not in result.text.lower() for result in results)


@pytest.mark.parametrize("method", METHODS)
def test_without_a_gradient_it_says_so_and_goes_on(codec: TextCodec, method: Method) -> None:
    inner = _linear(codec)

    def hidden(ids: Tensor, mask: Tensor, items: Tensor) -> Tensor:
        return inner.token_score(ids, mask, items).detach()

    threat = TextPart(budget=WORDS, steps=30)
    result = substitute_tokens(TextModel(hidden, codec, inner.embedding), TEXTS[:1], threat, method, threshold=0.2)[0]
    assert result.obfuscated
    assert result.outcome == "broken"


@pytest.mark.parametrize("method", METHODS)
def test_a_constant_model_is_never_broken(codec: TextCodec, method: Method) -> None:
    inner = _linear(codec)

    def constant(ids: Tensor, mask: Tensor, items: Tensor) -> Tensor:
        return 0 * inner.token_score(ids, mask, items) + 0.5

    model = TextModel(constant, codec, inner.embedding)
    results = substitute_tokens(model, TEXTS, TextPart(budget=WORDS, steps=5), method, threshold=0.4)
    assert {result.outcome for result in results} == {"held"}


def test_a_suffix_is_appended_within_the_budget(codec: TextCodec) -> None:
    threat = TextPart(budget=TextBudget("words", count=2), suffix=5, steps=1)
    result = substitute_tokens(_linear(codec, None), TEXTS[:1], threat, "gcg", threshold=-1e9)[0]
    assert result.edits <= 2
    assert len(result.text.split()) == len(TEXTS[0].split()) + 2


def test_the_wrong_embedding_is_refused(codec: TextCodec) -> None:
    model = _linear(codec)
    other = TextModel(model.token_score, codec, nn.Embedding(codec.vocabulary_size, 8))
    with pytest.raises(BadInputError, match="does not go through the embedding"):
        substitute_tokens(other, TEXTS[:1], TextPart(budget=WORDS), "hotflip", threshold=0.2)


def test_the_embedding_of_a_text_tower_is_found_and_nothing_is_guessed() -> None:
    for name in ("test_multimodal_nsfw.fusion", "test_clip_resnet.random"):
        model = create_model(name)
        assert input_embedding(model).num_embeddings == model.card.hparams["vocabulary_size"]
    with pytest.raises(BadInputError, match="holds 0 language models"):
        input_embedding(nn.Linear(2, 2))


def test_another_text_is_imitated_without_its_words() -> None:
    torch.manual_seed(3)
    model = create_model("test_safeclip.random")
    model.tokenizer_json = train_tokenizer([text.lower() for text in TEXTS] * 5, 300)
    assert isinstance(model, PhraseEncoder)
    start = ["the grass the house the car", "on on on on on on"]
    threat = TextPart(budget=TextBudget("words", count=6), steps=15, candidates=48, banned=("dog",))
    target = imitation(model, TEXTS[:2])
    before = target.score(start)
    results = substitute_tokens(target, start, threat, "gcg", threshold=0.0)
    assert [result.score_before for result in results] == pytest.approx(before.tolist(), abs=1e-5)
    assert all(result.score_after < result.score_before - 0.02 for result in results)
    assert all("dog" not in result.text for result in results)
    own = target.score(TEXTS[:2])
    assert own.abs().max() < 1e-5


def test_the_model_is_left_as_it_was(codec: TextCodec) -> None:
    model = _bert(codec)
    model.modules[0].train()
    substitute_tokens(model, TEXTS[:1], TextPart(budget=WORDS, steps=1), "hotflip", threshold=-1e9)
    assert all(module.training for module in model.modules[0].modules())
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.modules[0].parameters())


def test_all_attacks_one_after_the_other(codec: TextCodec) -> None:
    model = _linear(codec)
    near = Synonyms(["dog", "dogs", "car"], torch.eye(3), least=-2.0)
    attacks = ("zero_width", "synonyms", "hotflip")
    results = attack_texts(model, TEXTS, TextPart(attacks, WORDS), threshold=0.2, synonyms=near)
    assert [result.outcome for result in results] == ["broken", "missed", "missed"]
    weak = attack_texts(model, TEXTS, TextPart(("zero_width",), WORDS), threshold=0.2)
    assert weak[0].outcome == "held"  # cleaned away
    assert results[0].queries > weak[0].queries
    by_synonym = attack_texts(model.score, TEXTS, TextPart(("synonyms",), WORDS), threshold=0.2, synonyms=near)
    assert by_synonym[0].outcome == "broken"
    assert by_synonym[0].text in ("a dogs runs over the green grass", "a car runs over the green grass")


@pytest.mark.parametrize(("attack", "message"), [("synonyms", "give `synonyms`"), ("gcg", "as a TextModel")])
def test_an_attack_that_lacks_something_is_refused(codec: TextCodec, attack: str, message: str) -> None:
    with pytest.raises(BadInputError, match=message):
        attack_texts(_linear(codec).score, TEXTS, TextPart((attack,)), threshold=0.5)
