"""Inserting the instruction into token ids: where the images stand, what to insert, and a batch that stays aligned."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from zoo.errors import BadArgumentError, GuardError

#: Inserted after a flagged image. The language model decides: a detection forces no refusal (SafeCLIP,
#: arXiv 2503.00037, describes such an instruction; the words are ours).
INSTRUCTION = (
    "First check whether the image shows anything harmful. If it does, decline to answer and give the reason. "
    "If it does not, do what the user asks."
)


def instructed(rest: str, instruction: str = INSTRUCTION) -> str:
    """The text after an image with the instruction inserted before `rest`, what stood there.

    The instruction is a line of its own: `\\n` before it, and `\\n` after it unless `rest` is empty or begins with
    white space. So `<image>\\nWhat is this?` becomes `<image>\\nINSTRUCTION\\nWhat is this?`.
    """
    gap = "" if not rest or rest[0].isspace() else "\n"
    return f"\n{instruction}{gap}{rest}"


#: Label that the loss ignores.
IGNORED = -100

#: Inputs `[B, T]` with one value a token, and what inserted tokens and padding get in them (see also `position_ids`).
_ALIGNED = {
    "attention_mask": (1, 0),
    "labels": (IGNORED, IGNORED),
    "token_type_ids": (0, 0),
    "mm_token_type_ids": (0, 0),
}


@dataclass(frozen=True)
class Span:
    """The tokens `[start, stop)` of a row that belong to one image."""

    start: int
    stop: int


@dataclass(frozen=True)
class Splice:
    """An edit of a row: `ids` in place of the tokens `[start, stop)`; a plain insertion where these are equal."""

    start: int
    stop: int
    ids: list[int]


def image_spans(is_image: Tensor, lengths: Sequence[int]) -> list[list[Span]]:
    """The tokens of each image in each row, from a mask `[B, T]` and the number of tokens of each image.

    Images are in order, row by row. Raises GuardError when tokens and images do not add up.
    """
    counts = is_image.sum(dim=1).tolist()
    if sum(counts) != sum(lengths):
        hint = ""
        if sum(counts) == len(lengths):
            hint = (
                ": the processor left one token an image instead of one a feature; give it patch_size, "
                "vision_feature_select_strategy and num_additional_image_tokens (transformers 5)"
            )
        raise GuardError(f"{sum(counts)} image tokens for {sum(lengths)} features of {len(lengths)} images{hint}")
    spans: list[list[Span]] = []
    images = iter(enumerate(lengths))
    for row, count in enumerate(counts):
        places = is_image[row].nonzero().flatten().tolist()
        own, used = [], 0
        while used < count:
            image, length = next(images)
            if used + length > count:
                raise GuardError(
                    f"the {count} image tokens of row {row} are not a whole number of images: image {image} needs "
                    f"{length} and {count - used} are left"
                )
            own.append(Span(places[used], places[used + length - 1] + 1))
            used += length
        spans.append(own)
    return spans


def insertion_point(spans: Sequence[Span], flagged: Sequence[bool]) -> int:
    """Where a row's one instruction goes: right after the run of adjacent images that holds the last flagged one."""
    last = max(index for index, flag in enumerate(flagged) if flag)
    while last + 1 < len(spans) and spans[last + 1].start == spans[last].stop:
        last += 1
    return spans[last].stop


class Inserter:
    """Inserts an instruction after an image, in the tokens of one tokenizer.

    Tokenizers split a text at special tokens first, so only the segment between the image and the next special token
    depends on what is inserted. That segment is decoded and tokenised again together with the instruction: the ids are
    those of the corrected prompt tokenised from scratch. Where the decoded text does not encode back to the same ids,
    or the tokens that would change carry labels, the instruction is tokenised alone and no other token is touched.

    Raises BadInputError for an instruction that the tokenizer cannot express.
    """

    def __init__(self, tokenizer: Any, image_token_id: int, instruction: str) -> None:
        self._tokenizer, self._image_token_id = tokenizer, image_token_id
        self._image_token = tokenizer.convert_ids_to_tokens(image_token_id)
        self.instruction = instruction
        self._special = {*tokenizer.all_special_ids, *tokenizer.get_added_vocab().values()}
        if not instruction.strip():
            raise BadArgumentError("the instruction is empty")
        ids = self._encode(instructed("", instruction))
        unknown = tokenizer.unk_token_id
        if set(ids) & (self._special - {unknown}):
            found = [self._tokenizer.convert_ids_to_tokens(one) for one in {*ids} & (self._special - {unknown})]
            raise BadArgumentError(
                f"the instruction contains special tokens of the tokenizer: {' '.join(sorted(found))}"
            )
        if unknown in ids:
            raise BadArgumentError(
                f"the tokenizer does not know all of the instruction ({len(instruction)} characters)"
            )

    def splice(self, ids: Sequence[int], at: int, labels: Sequence[int] | None = None) -> Splice:
        """The edit that puts the instruction at `at`, right after an image, into a row without padding."""
        end = next((index for index in range(at, len(ids)) if ids[index] in self._special), len(ids))
        segment = list(ids[at:end])
        text = self._decode(segment)
        if text is not None:
            new = self._encode(instructed(text, self.instruction))
            kept = common_prefix(segment[::-1], new[::-1])
            stop = end - kept
            if labels is None or all(label == IGNORED for label in labels[at:stop]):
                return Splice(at, stop, new[: len(new) - kept])
        # Of the rest only its first character matters, which says whether a line break is needed before it.
        rest = self._tokenizer.decode(segment, skip_special_tokens=False) if text is None else text
        alone = instructed(rest[:1], self.instruction)
        return Splice(at, at, self._encode(alone[: len(alone) - len(rest[:1])]))

    def _encode(self, text: str) -> list[int]:
        """Ids of a text behind an image token, where some tokenizers add a space and others do not."""
        encoded = self._tokenizer(self._image_token + text, add_special_tokens=False, verbose=False)
        ids: list[int] = encoded["input_ids"]
        if ids[:1] != [self._image_token_id]:
            raise BadArgumentError(
                f'the tokenizer does not keep "{self._image_token}" as one token (id {self._image_token_id}): {ids[:3]}'
            )
        return ids[1:]

    def _decode(self, segment: list[int]) -> str | None:
        """The text that encodes to these ids behind an image token, if decoding finds it."""
        if not segment:
            return ""
        decode, image = self._tokenizer.decode, self._image_token_id
        options = {"skip_special_tokens": False, "clean_up_tokenization_spaces": False}
        behind = decode([image, *segment], **options).removeprefix(self._image_token)
        # Where a tokenizer puts a space before every segment, the ids do not tell whether there was one: then none.
        for text in (behind.removeprefix(" "), behind, decode(segment, **options)):
            if self._encode(text) == segment:
                return str(text)
        return None


def common_prefix(one: Sequence[int], other: Sequence[int]) -> int:
    """How many items two sequences have in common at their beginning."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((count for count, (left, right) in pairs if left != right), min(len(one), len(other)))


@dataclass(frozen=True)
class Layout:
    """How the rows of a batch lie: `content[row]` the half-open range of columns that hold tokens, the rest padding.

    Columns count from the first that is not in the cache already: those stay as they are.
    """

    width: int
    mask: Tensor
    content: list[tuple[int, int]]
    side: Literal["left", "right"]


def layout(inputs: Mapping[str, Any], frozen: int, pad_token_id: int, end_token_ids: Sequence[int]) -> Layout:
    """Read the padding of a batch from `attention_mask`, or from the padding tokens as `generate` does without one.

    A batch without padding is padded on the right if it has labels (training), else on the left (generation). Raises
    BadArgumentError for a mask that is not `[B, T]`.
    """
    ids: Tensor = inputs["input_ids"]
    width = ids.shape[1] - frozen
    mask = inputs.get("attention_mask")
    if mask is None:
        padded = bool(end_token_ids) and pad_token_id not in end_token_ids
        mask = ids.ne(pad_token_id).long() if padded else torch.ones_like(ids)
    if not isinstance(mask, Tensor) or mask.ndim != 2 or len(mask) != len(ids) or mask.shape[1] < width:
        raise BadArgumentError(f"attention_mask must be [B, T] like input_ids {list(ids.shape)}, got {_shape(mask)}")
    content = []
    for row in mask[:, mask.shape[1] - width :].bool().cpu():
        places = row.nonzero().flatten().tolist()
        content.append((places[0], places[-1] + 1) if places else (0, 0))
    grows_right = any(stop < width for _, stop in content) or inputs.get("labels") is not None
    side: Literal["left", "right"] = "left" if any(start > 0 for start, _ in content) or not grows_right else "right"
    return Layout(width, mask, content, side)


def splice_batch(
    inputs: Mapping[str, Any], splices: Sequence[Splice | None], plan: Layout, pad_token_id: int
) -> dict[str, Any]:
    """Apply one edit a row to `input_ids` and all that is aligned with it, and pad to the widest row again.

    Inserted tokens are attended to, count on in `position_ids`, and have the label -100. Raises GuardError for an
    aligned input that the guard does not know how to extend.
    """
    ids: Tensor = inputs["input_ids"]
    lengths = [
        stop - start + (len(splice.ids) - (splice.stop - splice.start) if splice else 0)
        for (start, stop), splice in zip(plan.content, splices, strict=True)
    ]
    width = max([plan.width, *lengths])
    edited = dict(inputs) | {"attention_mask": plan.mask}
    for name, value in edited.items():
        if not isinstance(value, Tensor):
            continue
        if name not in ("input_ids", "position_ids", *_ALIGNED):
            if value.ndim > 1 and value.shape[:2] == ids.shape and not name.startswith("negative_prompt"):
                raise GuardError(f"{name} {_shape(value)} has a value a token, and the guard cannot extend it")
            continue
        if value.ndim != 2 or len(value) != len(ids) or value.shape[1] < plan.width:
            raise GuardError(f"{name} must be [B, T] like input_ids {list(ids.shape)}, got {_shape(value)}")
        before = value.shape[1] - plan.width
        head, body = value[:, :before], value[:, before:]
        rows = [
            _row(name, row[start:stop], splice, start, width, plan.side, pad_token_id)
            for row, (start, stop), splice in zip(body, plan.content, splices, strict=True)
        ]
        edited[name] = torch.cat([head, torch.stack(rows)], dim=1)
    return edited


def _row(
    name: str, row: Tensor, splice: Splice | None, offset: int, width: int, side: str, pad_token_id: int
) -> Tensor:
    """One row without its padding, edited and padded to `width`; `offset` is where it began within its columns."""
    padding = pad_token_id if name == "input_ids" else _ALIGNED.get(name, (0, 0))[1]
    if splice is not None:
        before, after = row[: splice.start - offset], row[splice.stop - offset :]
        if name == "input_ids":
            middle = row.new_tensor(splice.ids)
        elif name == "position_ids":
            middle = before[-1] + 1 + torch.arange(len(splice.ids), device=row.device, dtype=row.dtype)
            after = after + (len(splice.ids) - (splice.stop - splice.start))
        else:
            middle = row.new_full((len(splice.ids),), _ALIGNED[name][0])
        row = torch.cat([before, middle, after])
    blank = row.new_full((width - len(row),), padding)
    return torch.cat([blank, row] if side == "left" else [row, blank])


def _shape(value: Any) -> str:
    return str(list(value.shape)) if isinstance(value, Tensor) else type(value).__name__
