"""The collator: the guard's own ids, labels on answers alone, refusals for flagged images, nothing unjudged learnt."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from zoo.assets import find_asset
from zoo.contract.policy import Policy
from zoo.contract.verdict import Verdict, unjudged
from zoo.errors import BadInputError, GuardError
from zoo.guard.collator import Example, GuardedCollator
from zoo.guard.detector import Detector
from zoo.guard.guard import Guard
from zoo.guard.insertion import INSTRUCTION
from zoo.guard.refusals import REFUSAL
from zoo.models.clip import DualEncoder
from zoo.models.tiny_llava import build_tiny_llava, tiny_llava_processor, train_llava_tokenizer
from zoo.registry import create_model

PROMPT = "USER: <image>\nWhat is shown? ASSISTANT:"
NEXT = "USER: And where? ASSISTANT:"
TEXTS = [PROMPT, NEXT, INSTRUCTION, REFUSAL, "a red octagon", "at the top left"] * 5


def _verdict(decision: Any, category: str = "forbidden_signs") -> Verdict:
    return Verdict("ok", decision, category, {category: 0.9}, "policy", "model")


SAFE, UNSAFE = _verdict("safe", "neutral"), _verdict("unsafe")
#: For review because of what was not given to the tower, which the answer is not about.
UNSEEN = replace(SAFE, decision="review", category=None)


@pytest.fixture(scope="module")
def clip() -> DualEncoder:
    torch.manual_seed(0)
    model = create_model("test_safeclip.random")
    assert isinstance(model, DualEncoder)
    return model


@pytest.fixture(scope="module")
def processor(clip: DualEncoder) -> Any:
    return tiny_llava_processor(clip, train_llava_tokenizer(TEXTS, 400), known=[INSTRUCTION])


@pytest.fixture(scope="module")
def collator(processor: Any) -> GuardedCollator:
    return GuardedCollator(processor)


def _text(collator: GuardedCollator, ids: torch.Tensor) -> str:
    return str(collator.tokenizer.decode(ids))


def _learnt(collator: GuardedCollator, batch: dict[str, torch.Tensor], row: int) -> str:
    labels = batch["labels"][row]
    return _text(collator, labels[labels != -100])


def test_labels_are_the_answers_and_their_end_tokens_and_nothing_else(collator: GuardedCollator) -> None:
    turns = [(PROMPT, "a red octagon"), (NEXT, "at the top left")]
    batch = collator([Example(turns, [16]), Example(turns[:1], [16])])
    assert _learnt(collator, batch, 0) == " a red octagon</s> at the top left</s>"
    assert _learnt(collator, batch, 1) == " a red octagon</s>"
    ids, labels = batch["input_ids"][0], batch["labels"][0]
    assert torch.equal(ids[labels != -100], labels[labels != -100])
    known = collator.tokenizer
    whole = f"{PROMPT} a red octagon</s>{NEXT} at the top left</s>".replace("<image>", "<image>" * 16)
    assert ids.tolist() == known(whole)["input_ids"]
    short = int(batch["attention_mask"][1].sum())
    assert batch["attention_mask"][1].tolist() == [1] * short + [0] * (len(ids) - short)
    assert set(batch["input_ids"][1, short:].tolist()) == {known.pad_token_id}
    assert set(batch["labels"][1, short:].tolist()) == {-100}


def test_the_prompt_before_an_answer_has_the_ids_that_generation_starts_from(collator: GuardedCollator) -> None:
    batch = collator([Example([(PROMPT, "a red octagon")], [16])])
    prompt = collator.prompts([PROMPT], [[16]])["input_ids"][0]
    first = int((batch["labels"][0] != -100).nonzero()[0])
    assert torch.equal(batch["input_ids"][0, :first], prompt)


@pytest.mark.parametrize("question", ["What is shown?", "\n\nWhat is it", " leading space", "two\nlines", ""])
def test_a_flagged_prompt_has_the_guards_own_ids(clip: DualEncoder, processor: Any, question: str) -> None:
    policy = Policy.read(find_asset("configs/policy/quickstart.yaml")).to_dict()
    policy["rule"] = "each"
    policy["categories"][0]["threshold"]["value"] = 0.0  # every picture is flagged
    model = build_tiny_llava(clip, processor, vocabulary_size=400, width=32, layers=1, heads=2)
    guard = Guard(model, processor, Detector(clip, Policy.from_dict(policy)))
    prompt = f"USER: <image>\n{question} ASSISTANT:"
    image = Image.fromarray(np.full((32, 32, 3), 99, np.uint8))
    corrected = guard.correct(processor(images=[image], text=[prompt], return_tensors="pt"))
    assert corrected.corrected == [True]
    ids = corrected.inputs["input_ids"][0]
    collator = GuardedCollator(processor)
    batch = collator([Example([(prompt, "a dog")], [16], corrected.screening.verdicts[0])])
    assert torch.equal(batch["input_ids"][0, : len(ids)], ids)
    assert (batch["labels"][0, : len(ids)] == -100).all()
    assert _learnt(collator, batch, 0) == " " + REFUSAL.format(categories="forbidden signs") + "</s>"


def test_only_flagged_conversations_change(collator: GuardedCollator) -> None:
    turns = [(PROMPT, "a red octagon"), (NEXT, "at the top left")]
    plain = collator([Example(turns, [16])])
    for harmless in (SAFE, UNSEEN):
        same = collator([Example(turns, [16], [harmless])])
        assert all(torch.equal(plain[key], same[key]) for key in plain)
    batch = collator([Example(turns, [16], [_verdict("review", "a_third_thing")]), Example(turns, [16], [SAFE])])
    refused = " " + REFUSAL.format(categories="a third thing") + "</s>"
    assert _learnt(collator, batch, 0) == refused  # and there the conversation ends
    assert INSTRUCTION in _text(collator, batch["input_ids"][0])
    assert INSTRUCTION not in _text(collator, batch["input_ids"][1])
    assert _learnt(collator, batch, 1) == " a red octagon</s> at the top left</s>"


def test_turns_before_the_flagged_image_stay_as_they_are(collator: GuardedCollator) -> None:
    turns = [(PROMPT, "a blue star"), (PROMPT, "a red octagon"), (NEXT, "at the top left")]
    corrected = collator.correct(Example(turns, [16, 16], [SAFE, UNSAFE]))
    refused = REFUSAL.format(categories="forbidden signs")
    assert corrected[0] == turns[0]
    assert corrected[1] == (f"USER: <image>\n{INSTRUCTION}\nWhat is shown? ASSISTANT:", refused)
    assert len(corrected) == 2
    corrected = collator.correct(Example(turns, [16, 16], [UNSAFE, SAFE]))
    assert [answer for _, answer in corrected] == [refused, refused]
    assert corrected[1][0] == turns[1][0]


@pytest.mark.parametrize(
    ("prompt", "flagged", "wanted"),
    [
        ("<image> a <image> b", [True, False], f"<image>\n{INSTRUCTION} a <image> b"),
        ("<image> a <image> b", [True, True], f"<image> a <image>\n{INSTRUCTION} b"),
        ("<image><image> b <image>c", [True, False, False], f"<image><image>\n{INSTRUCTION} b <image>c"),
        ("<image>", [True], f"<image>\n{INSTRUCTION}"),
    ],
)
def test_the_instruction_follows_the_run_of_the_last_flagged_image(
    collator: GuardedCollator, prompt: str, flagged: list[bool], wanted: str
) -> None:
    assert collator.instruct(prompt, flagged) == wanted


@pytest.mark.parametrize("kind", ["metaspace", "byte level with prefix space"])
def test_other_tokenizers(kind: str) -> None:
    special = ["<s>", "</s>", "<pad>", "<image>"]
    tokenizer = Tokenizer(models.BPE(unk_token=None))
    if kind == "metaspace":
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
        tokenizer.decoder = decoders.Metaspace(prepend_scheme="first", split=False)
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
        tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(TEXTS, trainers.BpeTrainer(vocab_size=300, special_tokens=special))
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        additional_special_tokens=["<image>"],
        clean_up_tokenization_spaces=False,
    )

    class Processor:
        tokenizer, image_token, image_token_id = fast, "<image>", 3

    collator = GuardedCollator(Processor())
    batch = collator([Example([(PROMPT, "a red octagon"), (NEXT, "at the top left")], [4], [UNSAFE])])
    refused = REFUSAL.format(categories="forbidden signs")
    whole = f"USER: <image>\n{INSTRUCTION}\nWhat is shown? ASSISTANT: {refused}</s>"
    assert batch["input_ids"][0].tolist() == fast(whole.replace("<image>", "<image>" * 4))["input_ids"]
    labels = batch["labels"][0]
    assert (labels == fast.eos_token_id).sum() == 1
    assert _text(collator, labels[labels != -100]).replace(" ", "") == f"{refused}</s>".replace(" ", "")


@pytest.mark.parametrize(
    ("example", "error", "message"),
    [
        (
            Example([(PROMPT, "a")], [16], [unjudged("invalid_scores", "NaN", policy="p", model="m")]),
            GuardError,
            "could not be judged",
        ),
        (Example([(PROMPT, "a")], [16], [SAFE, UNSAFE]), BadInputError, "2 verdicts for 1 images"),
        (Example([(PROMPT, "a")], [16, 16]), BadInputError, "for fewer image tokens"),
        (Example([(PROMPT, "a")], []), BadInputError, "for more image tokens"),
    ],
)
def test_what_does_not_fit_is_refused(
    collator: GuardedCollator, example: Example, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        collator([example])


def test_an_empty_batch_and_a_wrong_refusal_are_refused(collator: GuardedCollator, processor: Any) -> None:
    with pytest.raises(BadInputError, match="empty batch"):
        collator([])
    with pytest.raises(BadInputError, match="categories"):
        GuardedCollator(processor, refusal="No: {reason}")
