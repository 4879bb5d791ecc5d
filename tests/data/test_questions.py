"""Questions about drawn signs: right answers, the same file again, conversations that refuse only where they should."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest

from zoo.cli import run
from zoo.data.questions import QUESTIONS, answer, read_questions, thing, write_questions
from zoo.data.signs import Signs, read_signs, write_signs
from zoo.errors import BadInputError
from zoo.guard.refusals import REFUSAL, is_refusal
from zoo.training.question_data import QuestionData, conversation


@pytest.fixture(scope="module")
def signs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_signs(tmp_path_factory.mktemp("signs"), train=30, val=8, test=12, size=32, seed=5).parent


def _rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


def test_what_is_read_back_is_what_the_manifest_says(signs: Path) -> None:
    rows = {row["image"]: row for row in _rows(signs / "manifest.csv")}
    found = {name: (split, shown) for name, split, shown in read_signs(signs)}
    assert list(found) == list(rows)
    for name, (split, shown) in found.items():
        assert (rows[name]["split"], rows[name]["label"]) == (split, str(int(shown.forbidden)))
        assert rows[name]["held_out"] == str(int(shown.held_out))


def test_no_signs_are_read_from_another_folder(tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match="holds no drawn signs"):
        list(read_signs(tmp_path))


@pytest.mark.parametrize(
    ("signs", "kind", "wanted"),
    [
        (Signs("octagon", "red", 1, "centre"), "shape", "octagon"),
        (Signs("octagon", "red", 1, "centre"), "colour", "red"),
        (Signs("cross", "black", 2, "left"), "count", "two"),
        (Signs("cross", "black", 2, "top left"), "place", "top left"),
        (Signs("cross", "black", 2, "left"), "describe", "two black crosses on the left"),
        (Signs("star", "blue", 1, "centre"), "describe", "a blue star in the middle"),
    ],
)
def test_answers(signs: Signs, kind: str, wanted: str) -> None:
    assert answer(signs, kind) == wanted


def test_every_row_agrees_with_its_picture(signs: Path, tmp_path: Path) -> None:
    path = write_questions(signs, tmp_path / "deep" / "questions.csv", seed=1)
    contents = {name: (split, shown) for name, split, shown in read_signs(signs)}
    rows = _rows(path)
    assert len(rows) == 5 * 50
    for row in rows:
        picture = (path.parent / row["image"]).resolve()
        assert picture.is_file()
        split, shown = contents[f"images/{picture.name}"]
        assert row["question"] in QUESTIONS["plain"][row["kind"]]
        assert (row["answer"], row["split"]) == (answer(shown, row["kind"]), split)
        assert (row["label"], row["reason"]) == (("1", thing(shown)) if shown.forbidden else ("0", ""))
    assert len({(row["image"], row["kind"]) for row in rows}) == len(rows)
    assert [q.answer for q in read_questions(path)] == [row["answer"] for row in rows]


def test_the_same_file_again_and_no_other_is_overwritten(signs: Path, tmp_path: Path) -> None:
    path = write_questions(signs, tmp_path / "questions.csv", per_image=2)
    before = path.read_bytes()
    assert write_questions(signs, path, per_image=2).read_bytes() == before
    with pytest.raises(BadInputError, match="other contents"):
        write_questions(signs, path, per_image=2, seed=1)
    with pytest.raises(BadInputError, match="other contents"):
        write_questions(signs, tmp_path)
    assert path.read_bytes() == before


def test_the_two_wordings_share_no_sentence_and_the_same_kinds() -> None:
    plain, new = ({q for group in QUESTIONS[wording].values() for q in group} for wording in ("plain", "new"))
    assert not plain & new
    assert QUESTIONS["plain"].keys() == QUESTIONS["new"].keys()


def test_wrong_arguments_are_refused(signs: Path, tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match=r"per_image must lie in \[1, 5\], got 6"):
        write_questions(signs, tmp_path / "q.csv", per_image=6)
    wrong: Any = "plian"
    with pytest.raises(BadInputError, match='no wording is called "plian"; did you mean "plain"'):
        write_questions(signs, tmp_path / "q.csv", wording=wrong)


def test_the_command(signs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "questions.csv"
    arguments = ["data", "questions", "--signs", str(signs), "--out", str(out), "--wording", "new"]
    assert run(arguments) == 0
    assert capsys.readouterr().out.strip() == str(out)
    assert {row["question"] for row in _rows(out)} <= {q for group in QUESTIONS["new"].values() for q in group}
    assert run([*arguments, "--seed", "9"]) == 1
    assert "other contents" in capsys.readouterr().err


def test_signs_are_drawn_in_the_asked_number(tmp_path: Path) -> None:
    numbers = ["--train", "3", "--val", "2", "--test", "1", "--seed", "4"]
    assert run(["data", "signs", "--out", str(tmp_path), *numbers]) == 0
    assert [split for _, split, _ in read_signs(tmp_path)] == ["train"] * 3 + ["val"] * 2 + ["test"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("image,question\na.png,What?\n", 'no column "answer"'),
        ("image,question,answer\na.png,What?,\n", "line 2: needs an image, a question and an answer"),
        ("image,question,answer,label\na.png,What?,red,unsafe\n", "line 2: label must be 1"),
    ],
)
def test_a_wrong_manifest_is_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "q.csv"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(BadInputError, match=message):
        read_questions(path)


def test_kind_reason_and_label_may_be_missing(tmp_path: Path) -> None:
    path = tmp_path / "q.csv"
    path.write_text("image,question,answer\na.png,What?,red\n", encoding="utf-8")
    (question,) = read_questions(path)
    assert (question.answer, question.kind, question.reason, question.unsafe, question.split) == (
        "red", "", "", False, None,
    )  # fmt: skip


# Conversations


def _data(signs: Path, folder: Path, **options: Any) -> QuestionData:
    data = QuestionData(str(write_questions(signs, folder / "questions.csv")), **options)
    data.setup("fit")
    return data


def test_only_an_unsafe_image_with_the_instruction_is_refused(signs: Path, tmp_path: Path) -> None:
    data = _data(signs, tmp_path)
    kinds = set()
    for question in data.by_split["train"]:
        for instructed in (False, True):
            made = conversation([question, question], instructed)
            kinds.add((question.unsafe, instructed))
            if question.unsafe and instructed:
                assert made.answers == (REFUSAL.format(categories=question.reason),)
                assert is_refusal(made.answers[0])
            else:
                assert made.answers == (question.answer,) * 2
                assert not is_refusal(made.answers[0])
    assert len(kinds) == 4


def test_training_draws_one_conversation_an_image_with_the_asked_share(signs: Path, tmp_path: Path) -> None:
    data = _data(signs, tmp_path, batch_size=30, turns=3, instructed=0.5)
    loader = data.train_dataloader()
    epochs = []
    for epoch in range(20):
        loader.sampler.set_epoch(epoch)  # type: ignore[attr-defined]
        epochs += list(loader)
    assert {len(batch) for batch in epochs} == {30}
    assert all(len({row.image for row in batch}) == 30 for batch in epochs)
    rows = [row for batch in epochs for row in batch]
    assert {len(row.questions) for row in rows if not (row.unsafe and row.instructed)} == {3}
    assert sum(row.instructed for row in rows) / len(rows) == pytest.approx(0.5, abs=0.1)
    assert len({row.questions for row in rows if row.image == rows[0].image}) > 5  # drawn anew
    never = _data(signs, tmp_path, batch_size=30, instructed=0.0).train_dataloader()
    assert not any(row.instructed for batch in never for row in batch)


def test_evaluation_asks_each_question_without_and_with_the_instruction(signs: Path, tmp_path: Path) -> None:
    data = _data(signs, tmp_path, evaluated=10)
    rows = [row for batch in data.val_dataloader() for row in batch]
    asked = [[(row.image, row.questions) for row in rows if row.instructed is value] for value in (False, True)]
    assert asked[0] == asked[1]
    assert len(asked[0]) == 10
    again = [row for batch in _data(signs, tmp_path, evaluated=10).val_dataloader() for row in batch]
    assert rows == again
    assert len([1 for batch in _data(signs, tmp_path, evaluated=0).test_dataloader() for _ in batch]) == 2 * 5 * 12


def test_unreadable_images_are_set_aside_and_listed(
    signs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "q.csv"
    (tmp_path / "broken.jpg").write_bytes(b"no image")
    good = signs / "images" / "train_00000.jpg"
    path.write_text(
        f"image,question,answer,split\n{good},What?,red,train\nbroken.jpg,What?,red,train\n", encoding="utf-8"
    )
    data = QuestionData(str(path), batch_size=1)
    data.setup()
    assert data.images("train") == [good]
    (row,) = _rows(tmp_path / "unreadable.csv")
    assert (row["line"], row["reason"].split(":")[-1].strip()[:12]) == ("3", "not an image")


@pytest.mark.parametrize("options", [{"batch_size": 0}, {"turns": 0}, {"instructed": 1.5}, {"evaluated": -1}])
def test_senseless_options_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(BadInputError, match=r"need|share"):
        QuestionData("q.csv", **options)


def test_splits_that_the_manifest_leaves_open_are_assigned_by_image(signs: Path, tmp_path: Path) -> None:
    rows = _rows(write_questions(signs, tmp_path / "questions.csv"))
    path = tmp_path / "open.csv"
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(["image", "question", "answer"])
        writer.writerows([row["image"], row["question"], row["answer"]] for row in rows)
    data = QuestionData(str(path), splits=(0.5, 0.25, 0.25))
    data.setup()
    by_split = [set(data.images(split)) for split in ("train", "val", "test")]
    assert sum(map(len, by_split)) == len(set.union(*by_split)) == 50
    assert all(by_split)
