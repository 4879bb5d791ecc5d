"""Corpora of texts: each row judged for what its source looks for, one row a text, near-duplicates in one split."""

from __future__ import annotations

import itertools
from collections import Counter
from pathlib import Path

import pytest
import yaml

from zoo.assets import find_asset
from zoo.cli import run
from zoo.data.corpora import Corpora, normalised, write_corpora
from zoo.data.manifest import Row, read_manifest
from zoo.data.splits import hashed_splits, joined, near_texts
from zoo.errors import BadCardError, BadInputError
from zoo.registry import model_card

SPEC = {
    "schema_version": 1,
    "sources": [
        {"file": "a.csv", "categories": [{"name": "rude", "column": "label", "values": ["hate", "spite"]}]},
        {"file": "b.csv", "text": "words", "categories": [{"name": "loud", "column": "caps", "values": ["1"]}]},
        {"file": "c.csv", "name": "photos", "categories": [{"name": "style", "every": "negative"}]},
    ],
}
A = [
    "Hello there,hate",
    "hello  THERE,hate",
    "good day @ann https://x.y/1,spite",
    "GOOD day @bob http://z,hate",
    "fine,no",
]
B = ["hello there,0", "so loud,1", "so loud,0", "fine,1", " ,1"]


def _corpora(folder: Path, changes: dict[str, str] | None = None) -> Corpora:
    files = {"a.csv": "text,label\n" + "\n".join(A), "b.csv": "words,caps\n" + "\n".join(B), "c.csv": "text\na photo"}
    for name, content in (files | (changes or {})).items():
        (folder / name).write_text(content, encoding="utf-8")
    (folder / "spec.yaml").write_text(yaml.safe_dump(SPEC), encoding="utf-8")
    return Corpora.read(folder / "spec.yaml")


def _by_text(path: Path) -> dict[str, Row]:
    return {row.text or "": row for row in read_manifest(path)}


def test_rows_of_one_text_become_one_and_contradictions_are_unknown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    corpora, out = _corpora(tmp_path), tmp_path / "out" / "manifest.csv"
    report = write_corpora(corpora, tmp_path, out)
    rows = _by_text(out)
    assert list(rows) == ["Hello there", "good day @ann https://x.y/1", "fine", "a photo"]
    assert (rows["Hello there"].labels, rows["Hello there"].judged) == (("rude",), ("rude", "loud"))
    assert (rows["fine"].labels, rows["fine"].judged) == (("loud",), ("rude", "loud"))
    assert (rows["a photo"].labels, rows["a photo"].judged) == ((), ("style",))
    assert report.contradictions == {"loud": 1}
    assert report.unlabelled == 1  # "so loud" was judged for nothing else
    counts = {name: (count.rows, count.merged, count.unusable) for name, count in report.sources.items()}
    assert counts == {"a": (5, 2, 0), "b": (5, 3, 1), "photos": (1, 0, 0)}
    assert sum(report.judged[name, split] for name, split in report.judged if name == "rude") == 3
    assert "Hello there,rude,rude|loud,a|b," in out.read_text(encoding="utf-8")
    arguments = ["data", "corpora", str(tmp_path / "spec.yaml"), "--root", str(tmp_path), "--out", str(out)]
    before = out.read_bytes()
    assert run(arguments) == 0
    assert out.read_bytes() == before
    assert "labelled both ways in everything" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"a.csv": "text,lable\nx,hate"}, 'no column "label"; did you mean "lable"'),
        ({"b.csv": "text,caps\nx,1"}, 'no column "words"'),
        ({"a.csv": "text,label\nx,hate"}, 'the column "label" never says "spite"'),
        ({"c.csv": "text"}, "has no rows"),
    ],
)
def test_files_that_do_not_fit_are_refused(tmp_path: Path, changes: dict[str, str], message: str) -> None:
    with pytest.raises(BadInputError, match=message):
        write_corpora(_corpora(tmp_path, changes), tmp_path, tmp_path / "m.csv")


@pytest.mark.parametrize(
    ("mark", "message"),
    [
        ({"name": "x"}, "takes either `column` with `values`, or `every`"),
        ({"name": "x", "column": "y"}, "takes either"),
        ({"name": "x", "column": "y", "values": ["1"], "every": "positive"}, "takes either"),
        ({"name": "x|y", "every": "positive"}, 'may not be empty or hold "|"'),
        ({"name": "x", "every": "negatve"}, "every"),
        ({"name": "x", "colum": "y"}, 'unknown field .*did you mean "column"'),
    ],
)
def test_a_spec_that_makes_no_sense_is_refused(mark: dict[str, object], message: str) -> None:
    with pytest.raises(BadCardError, match=message.replace("|", r"\|")):
        Corpora.from_dict({"schema_version": 1, "sources": [{"file": "a.csv", "categories": [mark]}]})


def test_the_shipped_spec_has_the_categories_of_the_model() -> None:
    spec = Corpora.read(find_asset("configs/data/text_corpora.yaml"))
    names = dict.fromkeys(mark.name for source in spec.sources for mark in source.categories)
    assert tuple(names) == model_card("prompt_minilm.multilabel").labels


def test_links_users_case_and_invisible_characters_make_no_difference() -> None:
    assert normalised("See  https://a.b/c @Ann\u200b!") == normalised("see HTTP://x.y @bob!") == "see http @user!"


def test_near_duplicates_are_found_as_by_comparing_all_pairs() -> None:
    words = ["red", "green", "blue", "black", "white", "brown", "grey", "pink", "gold", "teal"]
    texts = [" ".join(words[:n]) for n in range(1, 11)] + ["a b c d e", "a b c d x", "a b c d e f", "!!", "??", ""]
    found = joined(len(texts), near_texts(texts))

    def jaccard(one: str, other: str) -> float:
        a, b = (set(text.replace("!", "").replace("?", "").split()) for text in (one, other))
        return len(a & b) / len(a | b) if a | b else 0.0

    wanted = list(range(len(texts)))
    for _ in texts:
        for i, j in itertools.combinations(range(len(texts)), 2):
            if jaccard(texts[i], texts[j]) >= 0.8 - 1e-9:
                wanted[i] = wanted[j] = min(wanted[i], wanted[j])
    assert found == wanted
    assert len(set(found)) < len(texts) - 3


def test_splits_keep_groups_together_and_texts_in_place() -> None:
    texts = [f"text number {number}" for number in range(2000)]
    groups = [number - number % 2 for number in range(2000)]
    splits = hashed_splits(texts, groups, seed=0)
    assert splits[::2] == splits[1::2]
    shares = {split: count / 2000 for split, count in Counter(splits).items()}
    assert shares == pytest.approx({"train": 0.8, "val": 0.1, "test": 0.1}, abs=0.03)
    assert hashed_splits(texts[:10], groups[:10], seed=0) == splits[:10]
    assert hashed_splits(texts, groups, seed=1) != splits


def test_a_corpus_is_not_replaced_by_the_manifest(tmp_path: Path) -> None:
    corpora = _corpora(tmp_path)
    with pytest.raises(BadInputError, match="is what this reads"):
        write_corpora(corpora, tmp_path, tmp_path / "b.csv")
    assert (tmp_path / "b.csv").read_text(encoding="utf-8").startswith("words,caps")
