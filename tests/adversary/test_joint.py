"""Image and text attacked together: what holds against each alone, the fusion, budgets, and what cannot break."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import pytest
import torch
from torch import Tensor, nn

from zoo.adversary.image.attack import allowed_images
from zoo.adversary.image.two_logits import Judged
from zoo.adversary.joint import BothInputs, JointModel, attack_jointly, fixed_images, fixed_texts
from zoo.adversary.text.edits import KINDS, TextBudget, count_banned
from zoo.adversary.text.target import input_embedding
from zoo.adversary.text.tokens import TokenEditor
from zoo.adversary.threat import ImagePart, TextPart, Threat
from zoo.contract.card import TextInput
from zoo.contract.policy import Policy
from zoo.errors import BadCardError, BadInputError
from zoo.inputs.text import TextCodec, train_tokenizer
from zoo.models.base import ZooModel
from zoo.registry import create_model

TEXTS = ["a dog runs over the grass", "a red car near the house", "two dogs play on the beach"]
THREATS = Path(__file__).resolve().parents[2] / "configs" / "threat"
PGD = ImagePart("Linf", 0.1, attacks=("pgd",), steps=10)
TYPOS = TextPart(("misspelling", "homoglyphs"), TextBudget("words", count=1))
HOTFLIP = TextPart(("hotflip",), TextBudget("words", count=1))
First = Literal["image", "text"]


@pytest.fixture(scope="module")
def codec() -> TextCodec:
    return TextCodec(train_tokenizer(TEXTS * 5, 340), TextInput(24))


class Both(nn.Module):
    """Unsafe (class 1) by how bright the image is and whether the text names a dog; only both changes turn it."""

    def __init__(self, codec: TextCodec) -> None:
        super().__init__()
        pieces = TokenEditor(codec).pieces
        self.embedding = nn.Embedding(codec.vocabulary_size, 1)
        token = next(place for place in pieces.whole_words() if pieces.surface[place] == "dog")
        with torch.no_grad():
            self.embedding.weight.zero_()
            self.embedding.weight[token] = 1.0

    def forward(self, pixels: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
        dogs = (self.embedding(ids)[:, :, 0] * mask).sum(dim=1)
        unsafe = 5 * (pixels.mean(dim=(1, 2, 3)) - 0.4) + 0.8 * dogs - 0.4  # 0.5 + 0.4 for a mean of 0.5 and a dog
        return torch.stack([torch.zeros_like(unsafe), unsafe], dim=1)


def _grey(count: int = 1) -> Tensor:
    return torch.full((count, 3, 8, 8), 0.5)


UNSAFE = torch.tensor([1])


@pytest.mark.parametrize("text", [TYPOS, HOTFLIP])
@pytest.mark.parametrize("first", ["image", "text"])
@pytest.mark.parametrize("rounds", [1, 2])
def test_both_together_break_what_neither_breaks_alone(
    codec: TextCodec, text: TextPart, first: First, rounds: int
) -> None:
    model = Both(codec)
    threat = Threat(PGD, (text,), first, rounds)
    found = attack_jointly(
        model, _grey(), TEXTS[:1], UNSAFE, threat, codec=codec, embedding=model.embedding, modules=[model]
    )
    assert found.correct.all()
    assert found.broken.all()
    assert found.success_rate == 1.0
    assert found.robust_accuracy == 0.0
    figures = found.to_dict()
    assert figures["clean_accuracy"] == figures["success_rate"] == 1.0
    assert Threat.from_dict(figures["threat"]) == threat
    assert float(found.margins[0]) < 0
    assert text.budget.edits(TEXTS[0], found.texts[0]) == 1
    assert allowed_images(found.pixels, _grey(), PGD).all()


@pytest.mark.parametrize(
    ("image", "text"),
    [(PGD, TextPart(("misspelling",), TextBudget(count=0))), (ImagePart("Linf", 1e-4, ("pgd",), 5), TYPOS)],
)
@pytest.mark.parametrize("rounds", [1, 2])
def test_either_alone_does_not(codec: TextCodec, image: ImagePart, text: TextPart, rounds: int) -> None:
    model = Both(codec)
    threat = Threat(image, (text,), rounds=rounds)
    found = attack_jointly(model, _grey(), TEXTS[:1], UNSAFE, threat, codec=codec, embedding=model.embedding)
    assert not found.broken.any()
    assert found.robust_accuracy == 1.0
    assert float(found.margins[0]) > 0


def test_a_wrongly_judged_item_is_not_attacked(codec: TextCodec) -> None:
    model = Both(codec)
    labels = torch.tensor([1, 1])
    dark = _grey(2) * torch.tensor([1.0, 0.2])[:, None, None, None]
    threat = Threat(PGD, (TYPOS,))
    found = attack_jointly(model, dark, [TEXTS[0], TEXTS[1]], labels, threat, codec=codec, embedding=model.embedding)
    assert found.correct.tolist() == [True, False]
    assert found.broken.tolist() == [True, False]
    assert found.texts[1] == TEXTS[1]
    assert torch.equal(found.pixels[1], dark[1])


@pytest.mark.parametrize("logits", [[0.0, 0.0], [1.0, 0.0]])
def test_a_constant_model_is_never_broken(codec: TextCodec, logits: list[float]) -> None:
    embedding = nn.Embedding(codec.vocabulary_size, 2)

    def constant(pixels: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
        found: Tensor = torch.tensor(logits).expand(len(pixels), 2) + 0 * (embedding(ids).sum() + pixels.sum())
        return found

    quick = ImagePart("Linf", 0.1, ("pgd",), 2, queries=20)
    threat = Threat(quick, (TextPart(("misspelling", "gcg"), queries=60, steps=2),), rounds=2)
    found = attack_jointly(constant, _grey(), TEXTS[:1], torch.tensor([0]), threat, codec=codec, embedding=embedding)
    assert found.correct.all()
    assert not found.broken.any()
    assert found.refuted == 0
    assert found.obfuscated  # no gradient anywhere, and it says so


def test_without_an_image_gradient_square_takes_over(codec: TextCodec) -> None:
    model = Both(codec)

    def hidden(pixels: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
        found: Tensor = model(pixels.detach(), ids, mask)
        return found

    image = ImagePart("Linf", 0.1, ("pgd",), 5, queries=300)
    threat = Threat(image, (TYPOS,))
    found = attack_jointly(hidden, _grey(), TEXTS[:1], UNSAFE, threat, codec=codec, embedding=model.embedding)
    assert found.obfuscated
    assert found.broken.all()


def _fusion(tag: str) -> tuple[ZooModel, TextCodec, Tensor, Tensor]:
    torch.manual_seed(1)
    model = create_model(f"test_multimodal_nsfw.{tag}")
    model.tokenizer_json = train_tokenizer(TEXTS * 5, 300)
    codec = model.codec()
    pixels = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(2))
    return model, codec, pixels, _judged(BothInputs(model, model.card), codec, pixels, TEXTS)


@torch.no_grad()
def _judged(model: JointModel, codec: TextCodec, pixels: Tensor, texts: list[str]) -> Tensor:
    tokens = codec.encode(texts)
    return model(pixels, torch.from_numpy(tokens.ids), torch.from_numpy(tokens.mask)).argmax(dim=1)


@pytest.mark.parametrize("first", ["image", "text"])
def test_the_fusion_is_attacked_on_both_sides_within_budgets(first: First) -> None:
    model, codec, pixels, labels = _fusion("fusion")
    text = TextPart(("homoglyphs", "hotflip"), TextBudget("words", count=3), banned=("red",), steps=3)
    image = ImagePart("Linf", 8 / 255, ("pgd", "apgd-ce"), 4)
    threat = Threat(image, (text,), first, rounds=2)
    found, again = (
        attack_jointly(
            BothInputs(model, model.card),
            pixels,
            TEXTS,
            labels,
            threat,
            codec=codec,
            embedding=input_embedding(model),
            modules=[model],
        )
        for _ in range(2)
    )
    assert found.correct.all()
    assert allowed_images(found.pixels, pixels, image).all()
    assert all(text.budget.permits(a, b) for a, b in zip(TEXTS, found.texts, strict=True))
    assert count_banned(found.texts[1], ["red"]) == 0
    assert (found.pixels != pixels).flatten(1).any(dim=1).all()
    assert all(a != b for a, b in zip(TEXTS, found.texts, strict=True))
    assert found.texts == again.texts
    assert torch.equal(found.pixels, again.pixels)
    assert found.forwards == again.forwards > found.backwards > 0
    judged = _judged(BothInputs(model, model.card), codec, found.pixels, list(found.texts))
    assert torch.equal(found.broken, judged != labels)
    assert not model.training
    assert all(parameter.requires_grad for parameter in model.get_submodule("classifier").parameters())


def test_a_random_fusion_under_a_policy_breaks_at_its_operating_point() -> None:
    model, codec, pixels, _ = _fusion("fusion")
    policy = Policy.from_dict(
        {
            "schema_version": 1,
            "name": "test",
            "version": "1",
            "summary": "",
            "categories": [{"name": "unsafe", "action": "block", "threshold": {"value": 0.5}}],
        }
    )
    tokens = codec.encode(TEXTS)
    with torch.no_grad():
        logits = BothInputs(model, model.card)(pixels, torch.from_numpy(tokens.ids), torch.from_numpy(tokens.mask))
    least = float(logits.softmax(dim=1)[:, 0].min())
    judged = Judged(model, policy, threshold=least - 1e-3)  # just flagged, all three of them
    threat = Threat(
        ImagePart("Linf", 16 / 255, ("pgd",), 10), (TextPart(("homoglyphs",), TextBudget("words", count=3)),)
    )
    found = attack_jointly(
        BothInputs(judged, model.card),
        pixels,
        TEXTS,
        torch.ones(3, dtype=torch.int64),
        threat,
        codec=codec,
        embedding=input_embedding(model),
        modules=[judged],
    )
    assert found.correct.all()
    assert found.broken.any()


def test_as_released_cannot_be_moved_by_its_prompt() -> None:
    model, codec, pixels, labels = _fusion("as_released")
    threat = Threat(ImagePart("Linf", 1e-5, ("fgsm",)), (TextPart(("misspelling",), queries=60),))
    found = attack_jointly(
        BothInputs(model, model.card), pixels, TEXTS, labels, threat, codec=codec, embedding=input_embedding(model)
    )
    assert not found.broken.any()
    clean = _judged(BothInputs(model, model.card), codec, pixels, list(found.texts))
    assert torch.equal(clean, labels)


def test_texts_may_keep_to_any_one_of_several_budgets(codec: TextCodec) -> None:
    model = Both(codec)
    nothing = TextPart(("misspelling",), TextBudget(count=0), banned=("zebra",))
    threat = Threat(PGD, (nothing, TYPOS))
    assert threat.banned == ("zebra",)
    found = attack_jointly(model, _grey(), TEXTS[:1], UNSAFE, threat, codec=codec, embedding=model.embedding)
    assert found.broken.all()
    assert TYPOS.budget.edits(TEXTS[0], found.texts[0]) == 1


def test_images_are_encoded_once_and_answers_stay_the_same() -> None:
    model, codec, pixels, _ = _fusion("fusion")
    tower, both = model.get_submodule("image_tower"), BothInputs(model, model.card)
    passes: list[int] = []
    handle = tower.register_forward_hook(lambda module, args, output: passes.append(len(args[0])))
    tokens = codec.encode(TEXTS * 2)
    ids, mask = torch.from_numpy(tokens.ids), torch.from_numpy(tokens.mask)
    places = torch.tensor([2, 0, 1, 1, 0, 2])
    with torch.no_grad():
        with fixed_images(both, pixels, 2) as fixed:
            found = fixed(places, ids, mask)
            fixed(places, ids, mask)
        assert passes == [2, 1]
        assert model.image_tower is tower
        torch.testing.assert_close(found, both(pixels[places], ids, mask), atol=1e-6, rtol=0)
        with fixed_images(lambda *inputs: both(*inputs), pixels, 2) as plain:  # of any other model they are looked up
            assert torch.equal(plain(places, ids, mask), both(pixels[places], ids, mask))
    handle.remove()


def test_texts_are_encoded_once_while_images_change() -> None:
    model, codec, pixels, _ = _fusion("fusion")
    tower, both = model.get_submodule("text_tower"), BothInputs(model, model.card)
    passes: list[int] = []
    handle = tower.register_forward_hook(lambda module, args, output: passes.append(len(args[0])))
    tokens = codec.encode([*TEXTS, ""])
    ids, mask = torch.from_numpy(tokens.ids), torch.from_numpy(tokens.mask)
    places = torch.tensor([3, 2, 0, 1, 1, 0])
    images = pixels[[0, 1, 2, 2, 1, 0]].requires_grad_()
    with fixed_texts(both, ids, mask, 3) as fixed:
        found = fixed(images, places, mask[places])
    assert passes == [3, 1]
    assert model.text_tower is tower
    wanted = both(images, ids[places], mask[places])
    torch.testing.assert_close(found, wanted, atol=1e-6, rtol=0)
    gradients = [torch.autograd.grad(logits[:, 0].sum(), images)[0] for logits in (found, wanted)]
    torch.testing.assert_close(*gradients, atol=1e-7, rtol=1e-4)
    with fixed_texts(lambda *inputs: both(*inputs), ids, mask, 3) as plain:  # of any other model they are looked up
        assert torch.equal(plain(images, places, mask[places]), wanted)
    handle.remove()


def test_padding_that_all_texts_share_is_cut_off() -> None:
    model, codec, pixels, _ = _fusion("fusion")
    widths: list[int] = []
    model.get_submodule("text_tower").register_forward_hook(lambda module, args, output: widths.append(len(args[0][0])))
    tokens = codec.encode(["a", "a dog"])
    ids, mask = torch.from_numpy(tokens.ids), torch.from_numpy(tokens.mask)
    both, places = BothInputs(model, model.card), torch.tensor([0, 1])
    with torch.no_grad(), fixed_images(both, pixels, 2) as fixed:
        found = fixed(places, ids, mask)
    with torch.no_grad():
        torch.testing.assert_close(found, both(pixels[places], ids, mask), atol=1e-6, rtol=0)
    assert widths == [int(mask.sum(dim=1).max()), ids.shape[1]]
    assert widths[0] < widths[1]


def test_a_model_of_images_alone_is_refused() -> None:
    with pytest.raises(BadInputError, match="not an image with a text"):
        BothInputs(nn.Identity(), create_model("test_nsfwjs.random").card)


@pytest.mark.parametrize(
    ("pixels", "texts", "labels", "message"),
    [
        (_grey(2), TEXTS[:1], UNSAFE, "2 images, 1 texts and 1 labels"),
        (_grey() * 255, TEXTS[:1], UNSAFE, r"in \[0, 1\]"),
        (_grey() * torch.nan, TEXTS[:1], UNSAFE, r"in \[0, 1\]"),
        (_grey(), TEXTS[:1], torch.tensor([2]), "labels must be 0 to 1"),
    ],
)
def test_inputs_that_make_no_sense_are_refused(
    codec: TextCodec, pixels: Tensor, texts: list[str], labels: Tensor, message: str
) -> None:
    model = Both(codec)
    with pytest.raises(BadInputError, match=message):
        attack_jointly(model, pixels, texts, labels, Threat(PGD, (TYPOS,)), codec=codec, embedding=model.embedding)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rounds": 0}, "rounds must be at least 1, got 0"),
        ({"first": "sound"}, "sound"),
        ({"image": {"norm": "Linf", "eps": "4/255", "attacks": ["fab-t"]}}, '"fab-t" on images'),
        ({"round": 1}, 'did you mean "rounds"'),
    ],
)
def test_a_joint_threat_that_makes_no_sense_is_refused(change: dict[str, object], message: str) -> None:
    data = Threat(PGD, (TYPOS,)).to_dict() | change
    with pytest.raises(BadCardError, match=message):
        Threat.from_dict(data)


def test_a_joint_threat_is_read_back_as_it_was_written() -> None:
    threat = Threat(PGD, (HOTFLIP, TYPOS), "text", 3)
    assert Threat.from_dict(threat.to_dict()) == threat


def test_the_shipped_threats_are_read() -> None:
    joint = Threat.read(THREATS / "joint.yaml")
    assert joint.image is not None
    assert joint.image.eps == pytest.approx(4 / 255)
    assert [threat.budget.count for threat in joint.text] == [None, 3]
    assert Threat.read(THREATS / "text.yaml").text[0].kinds == tuple(KINDS)
