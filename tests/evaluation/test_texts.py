"""`zoo evaluate texts`: figures against torchmetrics, a model that knows against one that guesses, and the command."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from transformers import BertConfig, BertModel

from zoo.adversary.threat import TextPart
from zoo.cli import run
from zoo.contract.policy import Category, Policy, Threshold
from zoo.errors import BadInputError
from zoo.evaluation.text.rankers import (
    FrozenBaseline,
    ReleaseRanker,
    TextRows,
    encode_texts,
    read_text_rows,
    style_tests,
)
from zoo.evaluation.text.report import PairedFigures, Scored, TextReport
from zoo.evaluation.text.run import edited, only_searched, sample_positives, searched
from zoo.inputs.text import train_tokenizer
from zoo.metrics import Draws, Ranking, auroc, average_precision, estimate
from zoo.registry import create_model
from zoo.release.store import write_release

MODEL = "test_prompt_bert.random"
LABELS = ("rude", "loud", "style")
ANIMALS, FRUITS = ("dog", "cat", "horse", "goat"), ("apple", "pear", "plum", "fig")


def _manifest(folder: Path) -> Path:
    """Animals are `rude`, texts in the plural `loud`; `style` is all of one source and nothing of another."""
    path = folder / "manifest.csv"
    rng = np.random.default_rng(0)
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(["text", "labels", "judged", "source", "split"])
        for number in range(240):
            split = ("train", "train", "val", "test")[number % 4]
            animal, many = rng.random() < 0.5, rng.random() < 0.4
            word = str(rng.choice(ANIMALS if animal else FRUITS))
            text = f"{'many' if many else 'one'} {word} seen on day {number}"
            labels = [name for name, true in (("rude", animal), ("loud", many)) if true]
            writer.writerow([text, "|".join(labels), "rude|loud", "zoo", split])
        for number in range(40):
            split = ("train", "train", "val", "test")[number % 4]
            writer.writerow([f"a stall of {rng.choice(FRUITS)} {number}", "style", "style", "market", split])
            writer.writerow([f"photo, {rng.choice(FRUITS)}, {number}", "", "style", "photos", split])
    return path


class _Counts:
    """Ranks by how often the text holds each of three words."""

    name = "counts"

    def logits(self, texts: Sequence[str]) -> NDArray[np.float64]:
        return np.array([[text.count(word) for word in ("dog", "many", "stall")] for text in texts], dtype=np.float64)


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> dict[str, TextRows]:
    return read_text_rows(_manifest(tmp_path_factory.mktemp("rows")), LABELS)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny BERT of random weights as transformers writes one, with a tokenizer."""
    folder = tmp_path_factory.mktemp("bert")
    tokenizer = train_tokenizer([f"many one {word} seen on day" for word in (*ANIMALS, *FRUITS)] * 5, 300)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=300, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=128
    )
    BertModel(config, add_pooling_layer=False).save_pretrained(folder)
    (folder / "tokenizer.json").write_text(tokenizer, encoding="utf-8")
    return folder


# PairedFigures


@pytest.mark.parametrize("distinct", [5, 1000])
def test_the_figures_are_those_of_torchmetrics(distinct: int) -> None:
    rng = np.random.default_rng(1)
    scores, labels = rng.integers(0, distinct, 200).astype(float), rng.integers(0, 2, 200)
    ranking, counts = Ranking(scores, labels), Draws(range(200), seed=0, draws=100).counts
    for figure, reference in ((ranking.average_precision, average_precision), (ranking.auroc, auroc)):
        values = figure(counts)
        assert values[0] == pytest.approx(reference(scores.tolist(), labels.tolist()), abs=1e-6)
        drawn = np.repeat(np.arange(200), counts[7].astype(int))
        assert values[7] == pytest.approx(reference(scores[drawn].tolist(), labels[drawn].tolist()), abs=1e-6)


def test_a_figure_without_both_classes_is_none() -> None:
    values = Ranking(np.arange(4.0), np.ones(4, dtype=np.int64)).average_precision(
        Draws(range(4), seed=0, draws=100).counts
    )
    assert estimate(values, 4).value is None
    with pytest.raises(BadInputError, match="draws must be at least 100"):
        Draws(range(4), seed=0, draws=99)


def test_means_leave_out_tests_of_style_and_pair_the_draws() -> None:
    labels = np.array([[1, 1], [0, 1], [1, 0], [0, 0]] * 10)
    right, wrong = labels.astype(float), 1.0 - labels
    figures = PairedFigures(("content", "style"), frozenset({"style"}), Draws(range(40), seed=0, draws=200).counts)
    clean = [Scored("a", right, labels), Scored("b", np.stack([right[:, 0], wrong[:, 1]], axis=1), labels)]
    condition = figures.condition("clean", "none", clean)
    assert [one.mean_auprc.value for one in condition.rankers] == [1.0, 1.0]
    assert condition.rankers[1].auroc["style"].value == 0.0
    assert condition.gain is not None
    assert (condition.gain.low, condition.gain.value, condition.gain.high) == (0.0, 0.0, 0.0)
    attacked = figures.condition("typos", "all", [Scored("a", wrong, labels), clean[1]], clean)
    losses = [one.relative_loss for one in attacked.rankers]
    assert losses[0] is not None
    assert losses[1] is not None
    assert losses[0].value == pytest.approx(0.5)  # all on one tie of 0, and below it: precision is 1/2
    assert losses[1].value == 0.0


# Rows


def test_what_was_not_judged_counts_for_nothing(rows: dict[str, TextRows]) -> None:
    test = rows["test"]
    assert len(test) == 60 + 20
    assert set(test.labels[:60, :2].flatten().tolist()) == {0, 1}
    assert (test.labels[:60, 2] == -1).all()
    assert (test.labels[60:, :2] == -1).all()


def test_categories_whose_sources_differ_are_tests_of_style(rows: dict[str, TextRows]) -> None:
    assert style_tests(rows["test"], LABELS) == {"style"}
    nameless = TextRows(rows["test"].texts, rows["test"].labels, (frozenset(),) * len(rows["test"]))
    assert style_tests(nameless, LABELS) == {"style"} - {"style"}


def test_rows_that_cannot_be_used_are_refused(tmp_path: Path) -> None:
    path = _manifest(tmp_path)
    with pytest.raises(BadInputError, match=r'line 2: the model has no output "rude"; did you mean "rudee"'):
        read_text_rows(path, ("rudee", "loud", "style"))
    path.write_text("text,labels,split\nhello,,\n", encoding="utf-8")
    with pytest.raises(BadInputError, match="line 2: names no split"):
        read_text_rows(path, LABELS)


# Attacks


def test_edits_keep_to_the_budget_and_repeat(rows: dict[str, TextRows]) -> None:
    threat = TextPart(seed=3)
    texts = rows["test"].texts
    once = edited(texts, "misspelling", threat)
    assert once == edited(texts, "misspelling", threat)
    assert sum(a != b for a, b in zip(texts, once, strict=True)) > 70
    assert all(threat.budget.permits(a, b) for a, b in zip(texts, once, strict=True))


def test_the_search_hides_words_and_leaves_the_rest_alone(rows: dict[str, TextRows]) -> None:
    test = rows["test"]
    ranker = _Counts()
    clean = ranker.logits(test.texts)
    chosen = sample_positives(test, 6, seed=0)
    assert chosen.sum(axis=0).tolist() == [6, 6, 6]
    assert (test.labels[chosen] == 1).all()
    found, queries = searched(ranker, test, clean, chosen, TextPart(attacks=("misspelling",), queries=100))
    assert 0 < queries <= 100 * 18 * 2
    assert np.array_equal(found[~chosen], clean[~chosen])
    assert (found[chosen] == 0).all()  # one letter hides any of the three words
    labels = only_searched(test.labels, chosen)
    assert (labels == 1).sum() == 18
    assert ((labels == 0) == (test.labels == 0)).all()


# Rankers


def test_batches_by_length_change_nothing(encoder: Path) -> None:
    model = create_model(MODEL)
    codec = model.codec()
    texts = [f"word {'more ' * (number % 7)}" for number in range(70)]
    tokens = codec.encode(texts)
    with torch.inference_mode():
        wanted = model(torch.from_numpy(tokens.ids), torch.from_numpy(tokens.mask)).numpy()
    assert np.abs(encode_texts(codec, model, texts, batch_size=8) - wanted).max() < 1e-5
    with pytest.raises(BadInputError, match="no texts"):
        encode_texts(codec, model, [])


def test_the_baseline_learns_what_its_embeddings_tell(encoder: Path, rows: dict[str, TextRows]) -> None:
    pytest.importorskip("sklearn")
    baseline = FrozenBaseline(str(encoder), rows, LABELS)
    embedded = baseline.embed(rows["test"].texts)
    assert np.abs(np.linalg.norm(embedded, axis=1) - 1).max() < 1e-6
    figures = PairedFigures(LABELS, frozenset(), Draws(range(len(rows["test"])), seed=0, draws=100).counts)
    found = figures.condition("clean", "none", [Scored("b", baseline.logits(rows["test"].texts), rows["test"].labels)])
    assert (found.rankers[0].auroc["loud"].value or 0) > 0.9
    assert set(baseline.strengths) == set(LABELS)
    with pytest.raises(BadInputError, match=r"none: no such directory"):
        FrozenBaseline(str(encoder / "none"), rows, LABELS)
    with pytest.raises(BadInputError, match='have no split "val"'):
        FrozenBaseline(str(encoder), {"train": rows["train"]}, LABELS)


def test_only_models_of_texts_are_ranked() -> None:
    with pytest.raises(BadInputError, match=r"is a test_nsfwjs\.random, which does not judge texts alone"):
        ReleaseRanker("test_nsfwjs.random")


# The command


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A release whose three outputs are those of the manifest."""
    torch.manual_seed(0)
    model = create_model(MODEL, labels=list(LABELS))
    category = Category("any", "block", Threshold(0.5), labels=LABELS)
    folder = tmp_path_factory.mktemp("texts") / "release"
    write_release(model, Policy("three", "1", "any of three", (category,), pooling="max"), folder)
    return folder


def test_the_command_writes_everything(
    release: Path, encoder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("sklearn")
    data = _manifest(tmp_path)
    arguments = ["--baseline", f"minilm:{encoder}", "--attacks", "homoglyphs", "--search", "1"]
    arguments += ["--queries", "10", "--draws", "100", "--latency", "4", "--out", str(tmp_path / "out")]
    command = ["evaluate", "texts", "--model", str(release), "--data", str(data), *arguments, "--update-card"]
    assert run(command) == 0
    path = tmp_path / "out" / f"{MODEL}.json"
    report = TextReport.from_dict(json.loads(path.read_text(encoding="utf-8")))
    assert [(one.name, one.style) for one in report.categories] == [("rude", False), ("loud", False), ("style", True)]
    found = [(one.attack, one.changed) for one in report.conditions]
    kinds = [("homoglyphs", on) for on in ("positives", "all")]
    assert found == [("clean", "none"), *kinds, ("before the search", "none"), ("search", "sample")]
    clean, after = report.conditions[0], report.conditions[-1]
    assert len(clean.rankers) == 2
    means = [np.mean([one.auprc[name].value for name in ("rude", "loud")]) for one in clean.rankers]
    assert [one.mean_auprc.value for one in clean.rankers] == pytest.approx(means)
    assert clean.gain is not None
    assert clean.gain.value == pytest.approx(means[0] - means[1])
    for one in after.rankers:
        assert one.queries > 0
        assert one.relative_loss is not None
        assert one.relative_loss.value is not None
        assert one.relative_loss.value >= 0
    assert [latency.count for latency in report.latency] == [4, 4]
    assert path.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    shown = capsys.readouterr().out
    assert "tests of style" in shown
    assert "loss" in shown
    card = json.loads((release / "card.json").read_text(encoding="utf-8"))
    assert {"mean_auprc", "mean_auroc", "relative_loss"} <= {one["metric"] for one in card["measurements"]}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--baseline", "bert"], 'baseline "bert": must be minilm:DIRECTORY'),
        (["--attacks", "homoglyph"], 'no character attack is named "homoglyph"; did you mean "homoglyphs"'),
        (["--limit", "0"], "limit must be at least 1"),
    ],
)
def test_what_makes_no_sense_is_refused(
    release: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    data = _manifest(tmp_path)
    assert run(["evaluate", "texts", "--model", str(release), "--data", str(data), *arguments]) == 1
    assert message in capsys.readouterr().err
