"""A DataModule of questions about images: conversations to train a vision-language model on, questions to test it."""

from __future__ import annotations

import random
from collections import defaultdict
from pathlib import Path
from typing import Any, NamedTuple

from torch.utils.data import DataLoader, Dataset

from zoo.data.manifest import Row, Split
from zoo.data.questions import Question, read_questions
from zoo.data.splits import fingerprints
from zoo.errors import BadArgumentError
from zoo.guard.refusals import REFUSAL
from zoo.training.order import EpochOrder, SplitData, drawn_item, loader


class Conversation(NamedTuple):
    """Questions about one image with the answers to learn or to expect; `instructed`: the guard's instruction is in."""

    image: Path
    questions: tuple[str, ...]
    answers: tuple[str, ...]
    instructed: bool
    unsafe: bool
    kind: str = ""


class QuestionData(SplitData[Question]):
    """Conversations from a manifest of questions (see `read_questions`), unreadable images set aside.

    Training batches have one conversation about each image, with questions and an order that each epoch draws again.
    A share of the conversations carries the guard's instruction: the first answer about an unsafe image is then a
    refusal with the reason, and all answers about a safe one are plain. Without the instruction every answer is
    plain. So the language model learns to look at the image, and a detection alone forces no refusal.

    Args:
        questions: CSV or Parquet file with image, question, answer; optional are label (1 unsafe), split, kind, reason.
        image_root: folder that image paths are relative to; the manifest's own when None.
        batch_size: conversations in a batch.
        turns: questions in a training conversation, at most.
        instructed: share of training conversations with the instruction, in [0, 1].
        evaluated: how many questions validation and test ask, each with and without the instruction: the first of a
            seeded order. 0 asks all.
        splits: shares of train, val and test, for rows without a split in the manifest.
        split_seed: seeds the hash that assigns them, and the order of the questions to evaluate on.
    """

    def __init__(
        self,
        questions: str,
        *,
        image_root: str | None = None,
        batch_size: int = 32,
        turns: int = 5,
        instructed: float = 0.5,
        evaluated: int = 300,
        splits: tuple[float, float, float] = (0.8, 0.1, 0.1),
        split_seed: int = 0,
    ) -> None:
        super().__init__(questions, image_root, batch_size, splits, split_seed)
        self.save_hyperparameters()
        if batch_size < 1 or turns < 1 or evaluated < 0:
            raise BadArgumentError(
                f"need batch_size, turns >= 1, evaluated >= 0; got {batch_size}, {turns}, {evaluated}"
            )
        if not 0 <= instructed <= 1:
            raise BadArgumentError(f"instructed is a share in [0, 1], got {instructed}")
        self.turns, self.instructed, self.evaluated = turns, instructed, evaluated

    def setup(self, stage: str | None = None) -> None:
        """Read the manifest, decode every image once, set aside what cannot be read, assign the splits."""
        if self.by_split:
            return
        questions = read_questions(Path(self.manifest), self.image_root)
        prints, refused = fingerprints(sorted({question.image for question in questions}))
        self.unreadable = [
            (line, str(question.image), refused[question.image])
            for line, question in enumerate(questions, start=2)
            if question.image in refused
        ]
        self.report_unreadable(len(questions))
        readable = [question for question in questions if question.image in prints]
        self.unread = {one.split for one in questions if one.split} - {one.split for one in readable}
        rows = [Row(0, question.image, question.question, (), question.split) for question in readable]
        self.divide(readable, rows, prints)

    def train_texts(self) -> list[str]:
        """Questions, answers and refusals of the training split, to train a tokenizer on."""
        rows = self.by_split["train"]
        return [text for row in rows for text in (row.question, row.answer, refusal(row) if row.unsafe else "") if text]

    def images(self, *splits: Split) -> list[Path]:
        """The images of these splits, each once."""
        return list(dict.fromkeys(question.image for split in splits for question in self.by_split[split]))

    def train_dataloader(self) -> DataLoader[list[Conversation]]:
        """Shuffled conversations, one an image; the last, smaller batch is left out."""
        by_image: dict[Path, list[Question]] = defaultdict(list)
        for question in self.by_split["train"]:
            by_image[question.image].append(question)
        items = _Conversations(list(by_image.values()), self.turns, self.instructed)
        return loader(items, self.training_order(len(items)), list)

    def evaluation_dataloader(self, split: Split) -> DataLoader[list[Conversation]]:
        """Single questions of a split, without and with the instruction."""
        questions = list(self.items(split))
        random.Random(self.split_seed).shuffle(questions)
        asked = questions[: self.evaluated or None]
        items = [conversation([question], instructed) for instructed in (False, True) for question in asked]
        return loader(_Questions(items), EpochOrder(len(items), self.trainer, 64), list)

    def transfer_batch_to_device(self, batch: Any, device: Any, dataloader_idx: int) -> Any:
        """Return the batch unchanged: it is text, of which the model makes tensors."""
        return batch


def conversation(questions: list[Question], instructed: bool) -> Conversation:
    """A conversation about one image. With the instruction, it is one refused question if the image is unsafe."""
    first = questions[0]
    if refused := instructed and first.unsafe:
        questions = questions[:1]
    asked = tuple(one.question for one in questions)
    answers = tuple(refusal(one) if refused else one.answer for one in questions)
    return Conversation(first.image, asked, answers, instructed, first.unsafe, first.kind)


def refusal(question: Question) -> str:
    """The refusal that names what is wrong with the image."""
    return REFUSAL.format(categories=question.reason or "harmful content")


class _Conversations(Dataset[Conversation]):
    """One conversation an image, of at most `turns` questions in a random order."""

    def __init__(self, items: list[list[Question]], turns: int, instructed: float) -> None:
        self.items, self.turns, self.instructed = items, turns, instructed

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, drawn: tuple[int, int] | int) -> Conversation:
        index, number = drawn_item(drawn)
        questions, own = self.items[index], random.Random(number)
        asked = own.sample(questions, min(self.turns, len(questions)))
        return conversation(asked, own.random() < self.instructed)


class _Questions(Dataset[Conversation]):
    """Conversations as they are, by what an order yields."""

    def __init__(self, items: list[Conversation]) -> None:
        self.items = items

    def __getitem__(self, drawn: tuple[int, int] | int) -> Conversation:
        return self.items[drawn_item(drawn)[0]]
