"""The guard at fine-tuning time: training conversations whose images are flagged are corrected before they are learnt.

Fine-tuning on plain answers to harmful images teaches a model to answer them. The SafeCLIP paper (arXiv 2503.00037)
claims a defence at this point; no code for it was released. **This is our interpretation of that claim**: a flagged
conversation gets the instruction, where the guard would insert it, and its answer becomes a refusal with the category.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from zoo.contract.verdict import Verdict
from zoo.errors import BadArgumentError, BadDataError, GuardError
from zoo.guard.insertion import IGNORED, INSTRUCTION, Span, common_prefix, insertion_point, instructed
from zoo.guard.refusals import REFUSAL, refusal_for


@dataclass(frozen=True)
class Example:
    """A conversation to learn: `turns` are prompt and answer, as text in the model's own format.

    Prompts hold one image token an image, in order; `image_tokens[i]` says how many tokens image i fills, and
    `verdicts[i]` what the guard says of it (none: it was not asked). The space between prompt and answer and the end
    token are added: `("USER: <image>\\nWhat is this? ASSISTANT:", "a dog")`.
    """

    turns: Sequence[tuple[str, str]]
    image_tokens: Sequence[int]
    verdicts: Sequence[Verdict] = ()


class GuardedCollator:
    """Makes a right-padded batch of conversations, with the flagged ones corrected (see the module's docstring).

    The batch has `input_ids`, `attention_mask` and `labels`, int64 `[B, T]`; labels are -100 except on answers and
    their end tokens. Pixels or features are the caller's: verdicts are those of a frozen tower, so they are computed
    once for a data set and not in each epoch (`Guard.screen`, or `zoo.training.VisionLanguage`).

    From the turn with the first flagged image on, every answer is a refusal, and turns after the last image are left
    out: many refusals would drown the few tokens of plain answers. Raises GuardError for a verdict that judges nothing,
    BadInputError for images, tokens and verdicts that do not go together.
    """

    def __init__(self, processor: Any, *, instruction: str = INSTRUCTION, refusal: str = REFUSAL) -> None:
        self.tokenizer = processor.tokenizer
        self.image_token: str = processor.image_token
        self.image_token_id: int = processor.image_token_id
        self.instruction, self.refusal = instruction, refusal
        if self.tokenizer.eos_token is None:
            raise BadDataError("the tokenizer has no end token, so no answer would ever end")
        refusal_for([], refusal)

    def __call__(self, examples: Sequence[Example]) -> dict[str, Tensor]:
        """Correct, tokenise and pad a batch."""
        return self._pad([self._row(self.correct(example), example.image_tokens) for example in examples], "right")

    def prompts(self, prompts: Sequence[str], image_tokens: Sequence[Sequence[int]]) -> dict[str, Tensor]:
        """The left-padded `input_ids` and `attention_mask` of prompts to generate from, as they are."""
        rows = [self._expand(self._ids(text), counts) for text, counts in zip(prompts, image_tokens, strict=True)]
        batch = self._pad([(ids, ids) for ids in rows], "left")
        del batch["labels"]
        return batch

    def correct(self, example: Example) -> list[tuple[str, str]]:
        """The turns to learn: those of the example, or instructed and refused."""
        if not example.verdicts:
            return list(example.turns)
        unjudged = [verdict for verdict in example.verdicts if verdict.status != "ok"]
        if unjudged:
            raise GuardError(f"an image could not be judged, so its conversation is not learnt: {unjudged[0].detail}")
        images = sum(prompt.count(self.image_token) for prompt, _ in example.turns)
        if images != len(example.verdicts):
            raise BadArgumentError(f"{len(example.verdicts)} verdicts for {images} images in the prompts")
        turns: list[tuple[str, str]] = []
        seen: list[Verdict] = []
        for prompt, answer in example.turns:
            new = example.verdicts[len(seen) : len(seen) + prompt.count(self.image_token)]
            seen += new
            if any(verdict.is_flagged for verdict in new):
                prompt = self.instruct(prompt, [verdict.is_flagged for verdict in new])
            refuse = any(verdict.is_flagged for verdict in seen)
            turns.append((prompt, refusal_for(seen, self.refusal) if refuse else answer))
            if refuse and len(seen) == images:
                break
        return turns

    def instruct(self, prompt: str, flagged: Sequence[bool]) -> str:
        """The prompt with the instruction where `Guard` inserts it: behind the run with the last flagged image."""
        spans = [Span(*found.span()) for found in re.finditer(re.escape(self.image_token), prompt)]
        if len(spans) != len(flagged):
            raise BadArgumentError(
                f'{len(flagged)} images for {len(spans)} "{self.image_token}" in {len(prompt)} characters of prompt'
            )
        at = insertion_point(spans, flagged)
        return prompt[:at] + instructed(prompt[at:], self.instruction)

    def _row(self, turns: Sequence[tuple[str, str]], image_tokens: Sequence[int]) -> tuple[list[int], list[int]]:
        """Ids and labels of a conversation."""
        text, ids, labels = "", list[int](), list[int]()
        for prompt, answer in turns:
            text += prompt
            start = self._ids(text)
            gap = "" if text[-1:].isspace() else " "
            text += f"{gap}{answer}{self.tokenizer.eos_token}"
            whole = self._ids(text)
            # What generation is given is the prompt tokenised by itself; a token that reaches over counts as answer.
            known = common_prefix(start, whole)
            labels += [IGNORED] * (known - len(labels)) + whole[known:]
            ids = whole
        return self._expand(ids, image_tokens), self._expand(labels, image_tokens, ids)

    def _ids(self, text: str) -> list[int]:
        return list(self.tokenizer(text, verbose=False)["input_ids"])

    def _expand(
        self, values: Sequence[int], image_tokens: Sequence[int], ids: Sequence[int] | None = None
    ) -> list[int]:
        """Each value once, or on an image token of `ids` (default: the values) as often as the image has tokens."""
        images = iter(image_tokens)
        result: list[int] = []
        try:
            for value, token in zip(values, ids or values, strict=True):
                result += [value] * (next(images) if token == self.image_token_id else 1)
        except StopIteration:
            raise BadArgumentError(f"{len(image_tokens)} images for more image tokens in the prompts") from None
        if next(images, None) is not None:
            raise BadArgumentError(f"{len(image_tokens)} images for fewer image tokens in the prompts")
        return result

    def _pad(self, rows: Sequence[tuple[list[int], list[int]]], side: str) -> dict[str, Tensor]:
        if not rows:
            raise BadArgumentError("an empty batch")
        pad = self.tokenizer.pad_token_id
        blank = pad if pad is not None else self.tokenizer.eos_token_id

        def stack(values: Iterable[list[int]], fill: int) -> Tensor:
            tensors = [torch.tensor(row, dtype=torch.int64) for row in values]
            return pad_sequence(tensors, batch_first=True, padding_value=fill, padding_side=side)

        return {
            "input_ids": stack((ids for ids, _ in rows), blank),
            "attention_mask": stack(([1] * len(ids) for ids, _ in rows), 0),
            "labels": stack((labels for _, labels in rows), IGNORED),
        }
