"""Questions and short answers about the drawn signs, to train a small vision-language model on and to test it."""

from __future__ import annotations

import csv
import io
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from zoo.data.manifest import Split, need_columns, read_manifest
from zoo.data.signs import PLACES, Signs, read_signs
from zoo.errors import BadArgumentError, BadDataError, close_match, quoted
from zoo.files.writing import write_file

Wording = Literal["plain", "new"]
COLUMNS = ("image", "question", "answer", "label", "split", "kind", "reason")

#: By wording and kind. `new` shares no sentence with `plain`: for fine-tuning and for testing.
QUESTIONS: dict[Wording, dict[str, tuple[str, ...]]] = {
    "plain": {
        "shape": (
            "What shape is shown?",
            "Which shape do you see?",
            "What is the shape in the picture?",
            "Name the shape.",
            "What kind of sign is this?",
        ),
        "colour": (
            "What colour is it?",
            "Which colour do you see?",
            "What is the colour in the picture?",
            "Name the colour.",
            "In which colour is it painted?",
        ),
        "count": (
            "How many are there?",
            "How many do you see?",
            "What number of signs is shown?",
            "Count the signs.",
            "Is it one, two or three?",
        ),
        "place": (
            "Where is it?",
            "Where in the picture do you see it?",
            "In which part of the picture is it?",
            "Name the place.",
            "What is its position?",
        ),
        "describe": (
            "Describe the picture.",
            "What do you see?",
            "What is in the image?",
            "What does the picture show?",
            "Say what is shown and where.",
        ),
    },
    "new": {
        "shape": ("Tell me the form of the sign.", "Which form has it?", "What figure was drawn here?"),
        "colour": ("Tell me the paint that was used.", "Which paint has it?", "What is it coloured in?"),
        "count": ("Tell me the number.", "Which number of them is there?", "How often was it drawn?"),
        "place": ("Tell me the spot.", "Which corner or side is it at?", "At what spot was it drawn?"),
        "describe": ("Tell me everything about it.", "Give a short caption.", "Put the image into words."),
    },
}
_NUMBERS = {1: "one", 2: "two", 3: "three"}


@dataclass(frozen=True)
class Question:
    """One question about one picture. `reason` says what is forbidden there, and is empty if nothing is."""

    image: Path
    question: str
    answer: str
    split: Split | None
    kind: str = ""
    reason: str = ""
    unsafe: bool = False


def write_questions(signs: Path, out: Path, *, wording: Wording = "plain", per_image: int = 5, seed: int = 0) -> Path:
    """Write `per_image` questions on each picture of `zoo data signs` as a CSV; returns `out`.

    Columns: image (relative to the CSV), question, answer, label (1 forbidden, 0 not), split, kind (shape, colour,
    count, place, describe; each at most once a picture), reason (what is forbidden, as a refusal would name it).
    Same arguments, same file; does nothing if that file exists already. Raises BadInputError when `out` is
    another file, `signs` is not such a dataset, or `per_image` is not in [1, 5].
    """
    if wording not in QUESTIONS:
        raise BadArgumentError(f'no wording is called "{wording}"' + close_match(wording, QUESTIONS))
    kinds = QUESTIONS[wording]
    if not 1 <= per_image <= len(kinds):
        raise BadArgumentError(f"per_image must lie in [1, {len(kinds)}], got {per_image}")
    rng = np.random.default_rng(seed)
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(COLUMNS)
    for name, split, shown in read_signs(signs):
        image = Path(os.path.relpath(signs / name, out.parent)).as_posix()
        for kind in rng.permutation(list(kinds))[:per_image]:
            question = kinds[kind][int(rng.integers(len(kinds[kind])))]
            label, reason = int(shown.forbidden), thing(shown) if shown.forbidden else ""
            writer.writerow((image, question, answer(shown, kind), label, split, kind, reason))
    text = stream.getvalue()
    if out.exists() and (not out.is_file() or out.read_text(encoding="utf-8") != text):
        raise BadArgumentError(f"{out}: exists with other contents; name another, or remove it first")
    write_file(out, text)
    return out


def answer(signs: Signs, kind: str) -> str:
    """The right answer to a question of this kind."""
    short = {"shape": signs.shape, "colour": signs.colour, "count": _NUMBERS[signs.count], "place": signs.place}
    return short.get(kind) or f"{thing(signs)} {PLACES[signs.place][0]}"


def thing(signs: Signs) -> str:
    """The signs without their place: "a red octagon", "two yellow triangles"."""
    if signs.count == 1:
        return f"a {signs.colour} {signs.shape}"
    return f"{_NUMBERS[signs.count]} {signs.colour} {signs.shape}{'es' if signs.shape.endswith('s') else 's'}"


def read_questions(path: Path, image_root: Path | None = None) -> list[Question]:
    """Read a manifest with the columns image, question, answer; optional are label, split, kind and reason.

    Label 1 marks an unsafe picture. Raises BadInputError naming the column or the line, as `read_manifest` does.
    """
    rows = read_manifest(path, image_root, {"text": "question"})
    need_columns(path, [rows[0].record], ["answer"])
    questions = []
    for row in rows:
        reply, kind, reason = (row.record.get(column) or "" for column in ("answer", "kind", "reason"))
        if row.image is None or row.text is None or not reply:
            raise BadDataError(f"{path}, line {row.line}: needs an image, a question and an answer")
        if any(label not in ("0", "1") for label in row.labels):
            raise BadDataError(
                f"{path}, line {row.line}: label must be 1 (unsafe) or 0, got {quoted('|'.join(row.labels))}"
            )
        questions.append(Question(row.image, row.text, reply, row.split, kind, reason, "1" in row.labels))
    return questions
