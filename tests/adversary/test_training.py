"""The attacks of training steps: inside the ball, right to first order, and never at words that make the label."""

from __future__ import annotations

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import Tensor, nn

from zoo.adversary.text.target import watched
from zoo.adversary.training import TextHardening, WordSwaps, perturb_pixels, scaled, training_threat
from zoo.contract.card import TextInput
from zoo.errors import BadCardError, BadInputError
from zoo.inputs.text import TextCodec, train_tokenizer

TEXTS = ["a brown dog runs over green grass", "two puppies sleep near the red house", "the old man reads a long book"]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"norm": "Linf", "eps": "4/255", "restarts": 3}, 'knows no "restarts"'),
        ({"norm": "Linf", "eps": "4/255", "step": 3}, 'knows no "step"; did you mean "steps"'),
        ({"norm": "Linf", "eps": "4/255", "attacks": ["square"]}, 'knows no "attacks"'),
    ],
)
def test_a_threat_that_training_cannot_use_is_refused(fields: dict[str, object], message: str) -> None:
    with pytest.raises(BadInputError, match=message):
        training_threat(fields)


def test_a_single_step_is_longer_than_the_ball() -> None:
    threat = training_threat({"norm": "Linf", "eps": "8/255"}, single_step=True)
    assert threat.steps == 1
    assert threat.pgd_step == pytest.approx(10 / 255)
    assert scaled(threat, 0.5).pgd_step == pytest.approx(5 / 255)
    assert scaled(threat, 0.5).eps == pytest.approx(4 / 255)
    assert training_threat({"norm": "L2", "eps": 1.0}).steps == 10
    with pytest.raises(BadInputError, match="takes 1 step, got 3"):
        training_threat({"norm": "Linf", "eps": "8/255", "steps": 3}, single_step=True)
    with pytest.raises(BadCardError, match="eps must be above 0"):
        training_threat({"norm": "Linf", "eps": 0.0})


@pytest.mark.parametrize(("norm", "eps"), [("Linf", 0.1), ("L2", 0.6)])
def test_pgd_finds_the_worst_image_of_a_linear_loss(norm: str, eps: float) -> None:
    torch.manual_seed(0)
    clean = torch.rand(5, 3, 6, 6) * 0.4 + 0.3 if norm == "L2" else torch.rand(5, 3, 6, 6)
    weight = torch.randn(3, 6, 6)
    threat = training_threat({"norm": norm, "eps": eps, "steps": 40, "step_size": eps / 4})
    found = perturb_pixels(lambda pixels: (pixels * weight).sum(), clean, threat)
    # In L2 nothing meets the box here: the step is shorter than the room.
    worst = {"Linf": clean + eps * weight.sign(), "L2": clean + eps * weight / weight.norm()}[norm]
    wanted = worst.clamp(0, 1)
    assert norm == "Linf" or torch.equal(wanted, worst)
    assert found.dtype == torch.float32
    assert 0 <= float(found.min()) <= float(found.max()) <= 1
    assert torch.allclose(found, wanted, atol=1e-5 if norm == "Linf" else 2e-2)
    offset = (found - clean).flatten(1)
    size = offset.abs().amax(dim=1) if norm == "Linf" else offset.norm(dim=1)
    assert float(size.max()) <= eps * (1 + 1e-5)


def test_a_loss_without_gradient_in_the_pixels_is_refused() -> None:
    threat = training_threat({"norm": "Linf", "eps": 0.1})
    with pytest.raises(BadInputError, match="no gradient in the pixels"):
        perturb_pixels(lambda pixels: pixels.detach().sum(), torch.rand(2, 3, 4, 4), threat)


def _wordpiece() -> str:
    words = [*sorted({word for text in TEXTS for word in text.split()} - {"puppies"}), "cat", "pup", "puppy"]
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", ".", "##pies", "##ing", *words]
    ids = {word: number for number, word in enumerate(vocabulary)}
    tokenizer = Tokenizer(models.WordPiece(ids, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    controls = [(name, ids[name]) for name in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=controls)
    tokenizer.add_special_tokens(["[PAD]", "[UNK]", "[CLS]", "[SEP]"])
    return str(tokenizer.to_str())


def _word_ends() -> str:
    """A BPE that marks where a word ends, as CLIP's does."""
    words = sorted({word for text in TEXTS for word in text.split()})
    vocabulary, merges = {"<s>": 0, "</s>": 1}, []
    for letter in "abcdefghijklmnopqrstuvwxyz":
        vocabulary[letter] = len(vocabulary)
        vocabulary[letter + "</w>"] = len(vocabulary)
    for word in words:
        if word == "puppies":  # stays in pieces
            continue
        parts = [*word[:-1], word[-1] + "</w>"]
        while len(parts) > 1:
            pair = (parts[0], parts[1])
            if "".join(pair) not in vocabulary:
                vocabulary["".join(pair)] = len(vocabulary)
                merges.append(pair)
            parts = ["".join(pair), *parts[2:]]
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, end_of_word_suffix="</w>", continuing_subword_prefix=""))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)]
    )
    tokenizer.add_special_tokens(["<s>", "</s>"])
    return str(tokenizer.to_str())


TOKENIZERS = {
    "byte level": lambda: train_tokenizer([*TEXTS * 4, "dogs and cats"], 420),
    "wordpiece": _wordpiece,
    "word ends": _word_ends,
}


def _swaps(kind: str, protected: tuple[str, ...]) -> tuple[TextCodec, WordSwaps]:
    torch.manual_seed(0)
    codec = TextCodec(TOKENIZERS[kind](), TextInput(24))
    return codec, WordSwaps(codec.json, nn.Embedding(codec.vocabulary_size, 8), protected)


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_exchanged_words_are_the_best_to_first_order_and_make_a_real_text(kind: str) -> None:
    protected = ("Dog", "puppies", "house")
    codec, swaps = _swaps(kind, protected)
    tokens = codec.encode([*TEXTS, ""])
    ids, mask = torch.from_numpy(tokens.ids), torch.from_numpy(tokens.mask)
    gradient = torch.randn(*ids.shape, 8)
    found = swaps.best(ids, mask, gradient, 3)
    changed = found != ids
    assert changed.sum(dim=1).tolist() == [3, 3, 3, 0]
    weight = swaps.embedding.weight.detach()

    def gain(row: int, place: int, token: int) -> float:
        return float((weight[token] - weight[ids[row, place]]) @ gradient[row, place])

    tokenizer = Tokenizer.from_str(codec.json)
    vocabulary = {number: token for token, number in tokenizer.get_vocab().items()}
    for row, text in enumerate(TEXTS):
        gains = [gain(row, int(place), int(found[row, place])) for place in changed[row].nonzero()[:, 0]]
        open_places = swaps.open_places(ids, mask)[row].nonzero()[:, 0].tolist()
        best = sorted((max(gain(row, p, int(w)) for w in swaps.words) for p in open_places), reverse=True)
        assert sorted(gains, reverse=True) == pytest.approx(best[:3])
        # Someone could type it: the ids are those of the text that they spell.
        spelled = _spelled(found[row], mask[row], vocabulary)
        again = codec.encode([spelled]).ids[0]
        assert again.tolist() == found[row].tolist(), spelled
        for word in protected:  # none goes, and none comes
            assert spelled.split().count(word.lower()) == text.split().count(word.lower())


def _spelled(ids: Tensor, mask: Tensor, vocabulary: dict[int, str]) -> str:
    pieces = [vocabulary[int(one)] for one, there in zip(ids, mask, strict=True) if there]
    text = "".join(
        piece.removeprefix("##") if piece.startswith("##") else piece.replace("</w>", " ").replace("Ġ", " ")
        if "</w>" in piece or "Ġ" in piece or len(piece) == 1 else f" {piece}"
        for piece in pieces[1:-1]
    )  # fmt: skip
    return " ".join(text.split())


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_padding_control_tokens_and_pieces_of_words_are_never_open(kind: str) -> None:
    codec, swaps = _swaps(kind, ("dog",))
    tokens = codec.encode(["two puppies sleep", "dog", "quagga xylophone"])
    ids, mask = torch.from_numpy(tokens.ids), torch.from_numpy(tokens.mask)
    places = swaps.open_places(ids, mask)
    vocabulary = {number: token for token, number in Tokenizer.from_str(codec.json).get_vocab().items()}
    shown = [[vocabulary[int(one)].strip("Ġ").removesuffix("</w>") for one in row[at]]
             for row, at in zip(ids, places, strict=True)]  # fmt: skip
    whole = ["two", "puppies", "sleep"] if kind == "byte level" else ["two", "sleep"]
    assert shown == [whole, [], []]
    assert not places[mask == 0].any()


def test_a_place_where_nothing_helps_is_left_alone() -> None:
    codec, swaps = _swaps("byte level", ())
    tokens = codec.encode(TEXTS)
    ids, mask = torch.from_numpy(tokens.ids), torch.from_numpy(tokens.mask)
    assert torch.equal(swaps.best(ids, mask, torch.zeros(*ids.shape, 8), 3), ids)


def test_one_backward_pass_gives_the_gradient_of_embeddings_and_of_the_rest() -> None:
    torch.manual_seed(0)
    embedding, pixels = nn.Embedding(10, 4), torch.rand(2, 3, requires_grad=True)
    ids = torch.tensor([[1, 2, 3], [4, 5, 6]])
    with watched(embedding) as looked_up:
        value = (embedding(ids[:, :2]).sum(dim=(1, 2)) * pixels.sum(dim=1)).sum()
        slope, (other,) = looked_up.gradient(value, ids.shape, [pixels])
    assert torch.allclose(slope[:, :2], pixels.sum(dim=1)[:, None, None].expand(2, 2, 4))
    assert not slope[:, 2].any()
    assert torch.allclose(other, embedding(ids[:, :2]).sum(dim=(1, 2))[:, None].expand(2, 3))
    assert embedding.weight.grad is None
    with watched(embedding) as looked_up, pytest.raises(BadInputError, match="no words can be attacked"):
        looked_up.gradient(pixels.sum(), ids.shape)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"share": 1.5}, "share lies in"),
        ({"share": 0.5, "kinds": ["homoglyph"]}, 'did you mean "homoglyphs"'),
        ({}, "changes nothing"),
        ({"share": 0.5, "aimed": 0.5}, "name them in protected"),
        ({"hotflip_words": -1}, "must not be negative"),
        ({"hotflip": 3}, 'unknown field "hotflip"; did you mean "hotflip_words"'),
    ],
)
def test_a_text_hardening_that_makes_no_sense_is_refused(fields: dict[str, object], message: str) -> None:
    with pytest.raises(BadCardError, match=message):
        TextHardening.from_dict(fields)


def test_character_edits_spend_the_budget_and_differ_from_draw_to_draw() -> None:
    hardening = TextHardening.from_dict({"share": 1.0, "kinds": ["leetspeak", "misspelling"]})
    found = {hardening.edited(TEXTS[0], seed) for seed in range(20)}
    assert len(found) > 10
    assert all(0 < hardening.budget.edits(TEXTS[0], text) <= hardening.budget.allowed(TEXTS[0]) for text in found)


def test_aimed_edits_reach_the_words_that_carry_the_label() -> None:
    fields = {"share": 1.0, "kinds": ["misspelling"], "protected": ["dog"], "budget": {"count": 1}}
    text = 'The man in a red coat calls: "Dog!", and nobody comes'

    def reached(aimed: float) -> float:
        hardening = TextHardening.from_dict({**fields, "aimed": aimed})
        return sum('"Dog!"' not in hardening.edited(text, seed) for seed in range(200)) / 200

    assert reached(1.0) == 1.0
    assert 0.5 < reached(0.6) < 0.75
    assert reached(0.0) < 0.3
