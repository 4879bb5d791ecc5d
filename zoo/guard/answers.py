"""The results of the guard: the screening of a batch, corrected inputs, guarded output, and plain answers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from zoo.contract.verdict import Verdict
from zoo.errors import GuardError
from zoo.guard.detector import Features
from zoo.guard.insertion import Span


@dataclass(frozen=True)
class Screening:
    """The verdicts on the images of a batch, from one vision pass.

    `verdicts[row][image]` in the order of the prompt (empty for a row of text). `features` are those that the language
    model will read, None without images; `spans[row]` are the tokens of each image, counted behind the first `cached`
    columns of `input_ids`.
    """

    verdicts: list[list[Verdict]]
    features: Features | None
    spans: list[list[Span]]
    cached: int = 0

    @property
    def flagged(self) -> list[bool]:
        """Whether a category was flagged in any verdict of a row, for each row: what is unseen alone flags nothing."""
        return [any(verdict.is_flagged for verdict in row) for row in self.verdicts]

    @property
    def flagged_rows(self) -> list[int]:
        """The numbers of these rows."""
        return [row for row, flag in enumerate(self.flagged) if flag]


@dataclass(frozen=True)
class Corrected:
    """`inputs` for `model(**inputs)` or `model.generate(**inputs)`, once each: beams repeat the features in place.

    They hold the image features of the screening in place of the pixels. `corrected[row]` says whether the
    instruction was inserted.
    """

    inputs: dict[str, Any]
    screening: Screening
    corrected: list[bool]


@dataclass(frozen=True)
class GuardedOutput:
    """The answer of `Guard.generate`: R rows for B prompts (more with `num_return_sequences`, prompt by prompt).

    `sequences` int64 `[R, T]` are prompts, with the inserted instruction, and answers; `text` the R answers;
    `verdicts` (per image), `flagged` and `corrected` have B entries. `output` is what the model's own `generate`
    returned for the rows that ran (scores among them, if asked for), None when every row was refused.
    """

    sequences: Tensor
    text: list[str]
    verdicts: list[list[Verdict]]
    flagged: list[bool]
    corrected: list[bool]
    output: Any
    prompt_length: int
    end_token_ids: tuple[int, ...]

    def new_tokens(self, row: int) -> Tensor:
        """The tokens `[N]` of the answer in row `row` of R, up to and including the first end token."""
        tokens = self.sequences[row, self.prompt_length :]
        ends = [place for place, token in enumerate(tokens.tolist()) if token in self.end_token_ids]
        return tokens[: ends[0] + 1] if ends else tokens


@dataclass(frozen=True)
class Answer:
    """One answer: its text, the verdict on each image, whether one was flagged, and whether that changed the answer."""

    text: str
    verdicts: list[Verdict]
    flagged: bool
    corrected: bool


#: Arguments that belong to a batch as a whole: with them a part of it cannot run alone.
_WHOLE = ("past_key_values", "prefix_allowed_tokens_fn", "negative_prompt_ids", "streamer")


def generate_or_refuse(
    model: Any, inner: Any, tokenizer: Any, inputs: Mapping[str, Any], screening: Screening, texts: Mapping[int, str]
) -> tuple[Tensor, Any]:
    """Sequences `[R, T]` in the order of the prompts, and what `model.generate` returned for the rows not in `texts`.

    `texts` are the refusals by row. Raises GuardError when only a part of the batch is refused and an argument
    belongs to the whole.
    """
    ids: Tensor = inputs["input_ids"]
    kept = [row for row in range(len(ids)) if row not in texts]
    output, answers = None, ids.new_empty((0, 0))
    if kept:
        output = model.generate(**_rows(inputs, screening, kept))
        answers = (output if isinstance(output, Tensor) else output.sequences)[:, ids.shape[1] :]
    config = inputs.get("generation_config") or inner.generation_config
    asked = int(inputs.get("num_return_sequences") or config.num_return_sequences or 1)
    copies = len(answers) // len(kept) if kept else asked
    pad, end = control_tokens(inner, tokenizer, inputs)
    refusals = {
        row: torch.tensor([*tokenizer(text, add_special_tokens=False)["input_ids"], *end[:1]], device=ids.device)
        for row, text in texts.items()
    }
    sequences = []
    for row in range(len(ids)):
        for copy in range(copies):
            new = refusals[row] if row in texts else answers[kept.index(row) * copies + copy]
            sequences.append(torch.cat([ids[row], new]))
    if inputs.get("streamer") is not None:
        _stream(inputs["streamer"], ids, [refusals[row] for row in sorted(refusals)], pad)
    return pad_sequence(sequences, batch_first=True, padding_value=pad), output


def control_tokens(model: Any, tokenizer: Any, inputs: Mapping[str, Any]) -> tuple[int, tuple[int, ...]]:
    """The padding token and the end tokens, as `generate` would choose them; padding is 0 without one."""
    config = inputs.get("generation_config") or model.generation_config
    given = (inputs.get("eos_token_id"), config.eos_token_id, tokenizer.eos_token_id)
    end: Any = next((one for one in given if one is not None), [])
    ends = tuple(end) if isinstance(end, (list, tuple)) else (int(end),)
    pads = (inputs.get("pad_token_id"), config.pad_token_id, tokenizer.pad_token_id, *ends, 0)
    return int(next(pad for pad in pads if pad is not None)), ends


def _rows(inputs: Mapping[str, Any], screening: Screening, kept: list[int]) -> dict[str, Any]:
    """The inputs of these rows alone."""
    for name in _WHOLE:
        if inputs.get(name) is not None:
            raise GuardError(
                f"rows {screening.flagged_rows} are refused, but a batch with {name} cannot run in part: one row at a "
                "time"
            )
    rows = len(inputs["input_ids"])
    consumed = screening.features.consumed if screening.features else ()
    part = {
        name: value[kept] if isinstance(value, Tensor) and value.ndim > 1 and len(value) == rows else value
        for name, value in inputs.items()
        if name not in consumed
    }
    owners = [row for row, spans in enumerate(screening.spans) for _ in spans]
    images = [number for number, row in enumerate(owners) if row in kept]
    if screening.features is not None and images:
        part["mm_encoder_outputs"] = screening.features.encoder_outputs(images)
    return part


def _stream(streamer: Any, ids: Tensor, refusals: list[Tensor], pad: int) -> None:
    """Feed a streamer as `generate` does: the prompts, then one token a row at a time, then the end."""
    streamer.put(ids.cpu())
    for tokens in pad_sequence(refusals, batch_first=True, padding_value=pad).T:
        streamer.put(tokens.cpu())
    streamer.end()
