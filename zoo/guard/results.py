"""What the guard gives back: the screening of a batch, corrected inputs, guarded output, and plain answers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from zoo.contract.verdict import Verdict
from zoo.guard.insertion import Span
from zoo.guard.vision import Features


@dataclass(frozen=True)
class Screening:
    """The verdicts on the images of a batch, from one vision pass.

    `verdicts[row][image]` in the order of the prompt (empty for a row of text), `flagged[row]` whether any of them is
    `unsafe` or `review`. `features` are what the language model will read, None without images; `spans[row]` says
    which tokens stand for which image, counted behind the first `cached` columns of `input_ids`.
    """

    verdicts: list[list[Verdict]]
    flagged: list[bool]
    features: Features | None
    spans: list[list[Span]]
    cached: int = 0


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
    """What `Guard.generate` answers. R rows come of B prompts (more with `num_return_sequences`, prompt by prompt).

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
        """The tokens `[N]` that were answered in row `row` of R, up to and with the first end token."""
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
