"""The instruction comes out as if the corrected prompt had been tokenised from scratch, whatever the tokenizer."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from zoo.contract.verdict import Verdict
from zoo.errors import BadInputError, GuardError
from zoo.guard.insertion import (
    INSTRUCTION,
    Inserter,
    Span,
    Splice,
    image_spans,
    insertion_point,
    instructed,
    layout,
    splice_batch,
)
from zoo.guard.refusals import refusal_for

SPECIAL = ["<pad>", "<s>", "</s>", "<image>", "<unk>"]
CORPUS = [
    INSTRUCTION,
    "USER: \nWhat is shown in this image? ASSISTANT: A red octagon on a pole.\n\nIt stands there.\n",
    "Describe the first picture, then the second.\n  Which is larger?  The second dog (12 or 345 kg)...\n",
    "ÜBER Größe: naïve café? 日本語 text; emoji 🙂!",
]
LLAMA3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|" + (
    r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
IMAGE = 3


def _trained(tokenizer: Tokenizer, **options: Any) -> Any:
    from transformers import PreTrainedTokenizerFast

    options = {"special_tokens": SPECIAL} | options
    tokenizer.train_from_iterator(CORPUS, trainers.BpeTrainer(vocab_size=700, show_progress=False, **options))
    # The trainer knows byte tokens only as special ones; they are ordinary ones in what sentencepiece makes.
    content = json.loads(tokenizer.to_str())
    content["added_tokens"] = [token for token in content["added_tokens"] if token["content"] in SPECIAL]
    tokenizer = Tokenizer.from_str(json.dumps(content))
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        additional_special_tokens=["<image>"],
    )


def gpt2(*, prefix: bool = False) -> Any:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix)
    tokenizer.decoder = decoders.ByteLevel()
    return _trained(tokenizer, initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()))


def llama3() -> Any:
    tokenizer = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(LLAMA3), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    return _trained(tokenizer, initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()))


BYTES = [f"<0x{byte:02X}>" for byte in range(256)]


def metaspace(scheme: str) -> Any:
    """As sentencepiece models are converted today (Mistral, Llama 2 with legacy=False)."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)
    strip = [] if scheme == "never" else [decoders.Strip(" ", 1, 0)]
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
    )
    return _trained(tokenizer, special_tokens=SPECIAL + BYTES)


def llama2() -> Any:
    """As the tokenizer.json of Llama 2 and LLaVA-1.5: a space before every segment, by a normalizer."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return _trained(tokenizer, special_tokens=SPECIAL + BYTES)


def lowercase() -> Any:
    """One that loses what it was given: case, accents and runs of spaces."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFD(), normalizers.Lowercase(), normalizers.StripAccents()]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(prefix="##")
    return _trained(tokenizer)


TOKENIZERS: dict[str, Callable[[], Any]] = {
    "gpt2": gpt2,
    "gpt2 with a space before": lambda: gpt2(prefix=True),
    "llama3": llama3,
    "metaspace first": lambda: metaspace("first"),
    "metaspace always": lambda: metaspace("always"),
    "metaspace never": lambda: metaspace("never"),
    "llama2": llama2,
}


@pytest.fixture(scope="module", params=TOKENIZERS)
def tokenizer(request: pytest.FixtureRequest) -> Any:
    return TOKENIZERS[request.param]()


def _ids(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def _apply(inserter: Inserter, ids: list[int], at: int, labels: list[int] | None = None) -> list[int]:
    splice = inserter.splice(ids, at, labels)
    return ids[: splice.start] + splice.ids + ids[splice.stop :]


def _indistinguishable(tokenizer: Any, rest: str) -> list[str]:
    """Texts with the same ids: nobody can tell then whether there was a first space, and which ▁ was one."""
    ids, spaced = _ids(tokenizer, f"<image>{rest}"), rest.replace("▁", " ")
    texts = dict.fromkeys([rest, rest.removeprefix(" "), spaced, spaced.removeprefix(" ")])
    return [text for text in texts if _ids(tokenizer, f"<image>{text}") == ids]


RESTS = [
    "\nWhat is shown in this image? ASSISTANT:",
    "\n\nWhat?",
    "What is this?",
    " What is this?",
    "   What is this?\n",
    "\n  indented",
    "",
    "\n",
    " ",
    "!",
    "\n123456 dogs",
    "\nÜBER Größe: naïve café? 日本語 🙂",
    "'s picture",
    "▁odd▁ ones",
    "\tTab\r\nand windows",
]


@pytest.mark.parametrize("rest", RESTS)
def test_the_instruction_is_tokenised_as_from_scratch(tokenizer: Any, rest: str) -> None:
    inserter = Inserter(tokenizer, IMAGE, INSTRUCTION)
    for before in ("", "USER: ", "\n"):
        for after in ("", "</s>", "</s> And then?\n<image>\nAgain"):
            ids = _ids(tokenizer, f"{before}<image><image>{rest}{after}")
            at = ids.index(IMAGE) + 2
            fresh = [
                _ids(tokenizer, f"{before}<image><image>{instructed(same)}{after}")
                for same in _indistinguishable(tokenizer, rest)
            ]
            assert _apply(inserter, ids, at) in fresh, (before, after)


def test_random_words_after_the_image(tokenizer: Any) -> None:
    inserter, generator = Inserter(tokenizer, IMAGE, INSTRUCTION), random.Random(0)
    alphabet = [*"\n\n  aeiounrstd.?,:'09-Äß日🙂", "What", "image", "▁", "\t"]
    for _ in range(300):
        rest = "".join(generator.choices(alphabet, k=generator.randint(0, 12)))
        ids = _ids(tokenizer, f"<image>{rest}")
        fresh = [_ids(tokenizer, f"<image>{instructed(same)}") for same in _indistinguishable(tokenizer, rest)]
        assert _apply(inserter, ids, 1) in fresh, repr(rest)


def test_a_tokenizer_that_loses_the_text_gets_the_instruction_alone() -> None:
    tokenizer = lowercase()
    inserter = Inserter(tokenizer, IMAGE, INSTRUCTION)
    ids = _ids(tokenizer, "<image> USER: What is shown?")
    splice = inserter.splice(ids, 1)
    assert (splice.start, splice.stop) == (1, 1)
    assert splice.ids == _ids(tokenizer, INSTRUCTION)


def test_control_tokens_that_a_user_typed_stay_what_they_were() -> None:
    """Split into characters on purpose, `</s>` must not become an end token when the segment is tokenised anew."""
    tokenizer = gpt2()
    inserter = Inserter(tokenizer, IMAGE, INSTRUCTION)
    typed = tokenizer("\nIgnore </s> this", add_special_tokens=False, split_special_tokens=True)["input_ids"]
    assert 2 not in typed
    new = _apply(inserter, [IMAGE, *typed], 1)
    assert new[-len(typed) :] == typed
    assert new[1 : -len(typed)] == _ids(tokenizer, f"\n{INSTRUCTION}")


def test_tokens_with_labels_stay_as_they_are() -> None:
    tokenizer = llama3()
    inserter = Inserter(tokenizer, IMAGE, INSTRUCTION)
    prompt, answer = _ids(tokenizer, "<image>\nWhat? ASSISTANT:"), _ids(tokenizer, " A red octagon")
    ids, labels = prompt + answer, [-100] * len(prompt) + answer
    splice = inserter.splice(ids, 1, labels)
    assert all(label == -100 for label in labels[splice.start : splice.stop])
    # Llama 3's splitting joins a full stop with the line break after it, so here a token of the prompt was replaced.
    assert splice.stop > splice.start
    corrected = "<image>" + instructed("\nWhat? ASSISTANT: A red octagon")
    assert _apply(inserter, ids, 1, labels) == _ids(tokenizer, corrected)
    everything = inserter.splice(ids, 1, ids)
    assert (everything.start, everything.stop) == (1, 1)
    assert everything.ids == _ids(tokenizer, f"\n{INSTRUCTION}")


@pytest.mark.parametrize("instruction", ["", "  ", "Decline.</s>", "<image> is harmful"])
def test_an_instruction_that_cannot_be_inserted_is_refused(instruction: str) -> None:
    with pytest.raises(BadInputError, match="instruction"):
        Inserter(gpt2(), IMAGE, instruction)


def test_an_instruction_that_the_tokenizer_does_not_know_is_refused() -> None:
    with pytest.raises(BadInputError, match="does not know"):
        Inserter(lowercase(), IMAGE, "Отвечай вежливо")


def test_an_image_token_that_is_none_is_refused() -> None:
    tokenizer = gpt2()
    with pytest.raises(BadInputError, match="one token"):
        Inserter(tokenizer, _ids(tokenizer, " ")[0], INSTRUCTION)


def _mask(*rows: str) -> torch.Tensor:
    return torch.tensor([[character == "i" for character in row] for row in rows])


def test_image_spans_row_by_row() -> None:
    spans = image_spans(_mask(".ii.iii.", "........", "iiii...."), [2, 3, 2, 2])
    assert spans == [[Span(1, 3), Span(4, 7)], [], [Span(0, 2), Span(2, 4)]]


@pytest.mark.parametrize(
    ("rows", "lengths", "message"),
    [
        (("iii.",), [2], "3 image tokens for 2 features of 1 images$"),
        (("i.i.",), [4, 4], "one token an image instead of one a feature"),
        (("ii..", "iiii"), [4, 2], "row 0 are not a whole number of images"),
        (("....",), [2], "0 image tokens for 2 features"),
    ],
)
def test_tokens_that_do_not_fit_the_images_are_refused(rows: tuple[str, ...], lengths: list[int], message: str) -> None:
    with pytest.raises(GuardError, match=message):
        image_spans(_mask(*rows), lengths)


@pytest.mark.parametrize(
    ("flagged", "point"),
    [([True, False, False], 4), ([False, True, False], 4), ([True, False, True], 9), ([False, False, True], 9)],
)
def test_the_instruction_goes_behind_the_run_of_the_last_flagged_image(flagged: list[bool], point: int) -> None:
    assert insertion_point([Span(0, 2), Span(2, 4), Span(7, 9)], flagged) == point


def _batch(side: str) -> dict[str, torch.Tensor]:
    rows = {"left": [[0, 0, 3, 7], [3, 3, 8, 9]], "right": [[3, 7, 0, 0], [3, 3, 8, 9]]}[side]
    ids = torch.tensor(rows)
    mask = ids.ne(0).long()
    return {
        "input_ids": ids,
        "attention_mask": mask,
        "position_ids": (mask.cumsum(1) - 1).clamp(min=0),
        "labels": torch.where(ids > 6, ids, -100),
    }


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_batch_keeps_its_padding_side_and_stays_aligned(side: str) -> None:
    batch = _batch(side)
    plan = layout(batch, 0, 0, (2,))
    assert plan.side == side
    at = 3 if side == "left" else 1
    new = splice_batch(batch, [Splice(at, at, [5, 5, 5]), None], plan, 0)
    tokens, pads = [3, 5, 5, 5, 7], [0]
    wide = {"left": [tokens, [0, 3, 3, 8, 9]], "right": [tokens, [3, 3, 8, 9, 0]]}[side]
    assert new["input_ids"].tolist() == wide
    assert new["attention_mask"].tolist() == [[int(token != 0) for token in row] for row in wide]
    assert new["labels"].tolist() == [[token if token > 6 else -100 for token in row] for row in wide]
    order = [0, 1, 2, 3]
    assert new["position_ids"].tolist() == [[0, 1, 2, 3, 4], pads + order if side == "left" else order + pads]
    assert {key: value.dtype for key, value in new.items()} == {key: value.dtype for key, value in batch.items()}


def test_a_row_that_fits_into_its_padding_widens_nothing() -> None:
    batch = _batch("left")
    new = splice_batch(batch, [Splice(3, 4, [5, 7]), None], layout(batch, 0, 0, (2,)), 0)
    assert new["input_ids"].tolist() == [[0, 3, 5, 7], [3, 3, 8, 9]]
    assert new["position_ids"].tolist()[0][1:] == [0, 1, 2]


@pytest.mark.parametrize(
    ("labels", "side", "rows"),
    [(False, "left", [[3, 5, 7], [0, 3, 7]]), (True, "right", [[3, 5, 7], [3, 7, 0]])],
)
def test_without_padding_generation_grows_to_the_left_and_training_to_the_right(
    labels: bool, side: str, rows: list[list[int]]
) -> None:
    batch = {"input_ids": torch.tensor([[3, 7], [3, 7]])}
    if labels:
        batch["labels"] = torch.tensor([[-100, 7], [-100, 7]])
    plan = layout(batch, 0, 0, (2,))
    new = splice_batch(batch, [Splice(1, 1, [5]), None], plan, 0)
    assert plan.side == side
    assert new["input_ids"].tolist() == rows
    assert new["attention_mask"].tolist() == [[int(token != 0) for token in row] for row in rows]


def test_a_missing_mask_is_read_from_the_padding_unless_that_is_the_end_token() -> None:
    ids = torch.tensor([[0, 3, 7]])
    assert layout({"input_ids": ids}, 0, 0, (2,)).content == [(1, 3)]
    assert layout({"input_ids": ids}, 0, 0, (0,)).content == [(0, 3)]


def test_columns_in_the_cache_are_left_alone() -> None:
    """Two columns are cached; the mask covers them whether or not the ids do."""
    mask = torch.tensor([[0, 1, 1, 1], [1, 1, 1, 1]])
    new_only = {"input_ids": torch.tensor([[3, 7], [3, 8]]), "attention_mask": mask}
    whole = {"input_ids": torch.tensor([[0, 6, 3, 7], [6, 6, 3, 8]]), "attention_mask": mask}
    for inputs, cached, head in ((new_only, 0, [[], []]), (whole, 2, [[0, 6], [6, 6]])):
        new = splice_batch(inputs, [Splice(1, 1, [5]), None], layout(inputs, cached, 0, (2,)), 0)
        assert new["input_ids"].tolist() == [head[0] + [3, 5, 7], head[1] + [0, 3, 8]]
        assert new["attention_mask"].tolist() == [[0, 1, 1, 1, 1], [1, 1, 0, 1, 1]]


def test_what_cannot_be_extended_is_refused() -> None:
    batch = _batch("left")
    plan, splices = layout(batch, 0, 0, (2,)), [Splice(3, 3, [5]), None]
    with pytest.raises(GuardError, match="tone"):
        splice_batch(batch | {"tone": torch.zeros(2, 4)}, splices, plan, 0)
    with pytest.raises(GuardError, match="position_ids"):
        splice_batch(batch | {"position_ids": torch.zeros(3, 2, 4)}, splices, plan, 0)
    with pytest.raises(BadInputError, match="attention_mask"):
        layout(batch | {"attention_mask": torch.ones(2, 1, 4, 4)}, 0, 0, (2,))


def test_the_instruction_is_a_line_of_its_own() -> None:
    assert instructed("\nWhat?", "Look.") == "\nLook.\nWhat?"
    assert instructed("What?", "Look.") == "\nLook.\nWhat?"
    assert instructed(" ASSISTANT:", "Look.") == "\nLook. ASSISTANT:"
    assert instructed("", "Look.") == "\nLook."


def test_a_refusal_names_each_flagged_category_once() -> None:
    scores = {"red_signs": 0.9, "neutral": 0.1}
    flagged = Verdict("ok", "unsafe", "red_signs", scores, "policy", "model")
    review = Verdict("ok", "review", "dogs", scores, "policy", "model")
    safe = Verdict("ok", "safe", "neutral", scores, "policy", "model")
    assert refusal_for([flagged, safe, review, flagged], "No: {categories}.") == "No: red signs, dogs."
    with pytest.raises(BadInputError, match="categories"):
        refusal_for([flagged], "No: {category}.")
