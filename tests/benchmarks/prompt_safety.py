"""How `prompt_safety_minilm.zoo` was trained: `python -m tests.benchmarks.prompt_safety TEXTS PYRIT.whl WORK`.

TEXTS is a folder with davidson_tweets.csv (MIT), i2p_half.csv (MIT), nibbler_round1_submitted.csv and
coco_captions_10k.csv (CC BY 4.0), and with the three sources that only measure: toxic_chat_train.csv,
tweeteval_hate_train.csv, tweeteval_offensive_train.csv. PYRIT.whl is pyrit 1.1.0 of PyPI (MIT): answers that people
marked for harm. Embeddings are kept in the folder WORK, where the weights are written, too.

AUPRC on the three held-out sources, mean of three seeds (80 % of the rows each), the baseline is logistic regression on
frozen MiniLM on the same rows, C by the same validation; in brackets the 95 % interval of 1,000 bootstrap draws:

| | baseline | ours | gain |
| --- | --- | --- | --- |
| ToxicChat | 0.385 | 0.399 | +0.015 [-0.030, +0.060] |
| HatEval | 0.581 | 0.617 | +0.036 [+0.022, +0.051] |
| OLID | 0.493 | 0.623 | +0.130 [+0.107, +0.151] |
| mean | 0.486 | 0.547 | +0.060 [+0.044, +0.077] |

Held-out figures were seen in earlier trials: with weights of words up to 2, validation took 2, and the gain was +0.055,
with a loss of 0.02 on ToxicChat; with tokens counted as often as they occur it was +0.038 on the first seed. For this
run, 2,693 rows of tweets and prompts were embedded as they stand, before entities such as &amp; were replaced, so that
another run differs a little.
"""

from __future__ import annotations

import csv
import io
import json
import random
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import average_precision_score, roc_auc_score

from zoo.models.base import ZooModel
from zoo.release.store import load_release

Floats = NDArray[np.floating[Any]]

#: Each held-out source: its file, the column that says 1, and how many rows are drawn.
HELD_OUT = {
    "toxicchat": ("toxic_chat_train.csv", "toxicity", 2801),
    "hateval": ("tweeteval_hate_train.csv", "label", 2500),
    "olid": ("tweeteval_offensive_train.csv", "label", 2500),
}
#: The kind of each source of training, which has its own intercept: what tells kinds apart is not learned as harm.
KINDS = {"davidson": 0, "coco": 1, "i2p": 1, "nibbler": 1, "pyrit": 2}
#: The kinds that hold both classes: each is left out in turn to choose C and the weight of the words.
VALIDATED = (0, 2)
#: The words weigh at most as much as the embedding: their teacher has seen Davidson's tweets, so that validation on
#: them would choose words alone.
GRID_C, GRID_WORDS = (0.03, 0.1, 0.3, 1.0, 3.0), (0.0, 0.25, 0.5, 1.0)
SEEDS, DRAWS = 3, 1000


class Rows(NamedTuple):
    """Texts, their source, and whether they are offensive or harmful (1)."""

    texts: list[str]
    source: NDArray[np.str_]
    label: NDArray[np.int64]


def read_rows(folder: Path, pyrit: Path) -> Rows:
    """All rows; where a source has more than is needed, they are drawn from seed 0."""
    found: list[tuple[str, str, int]] = []

    def add(texts: Sequence[str], source: str, label: int, most: int = sys.maxsize) -> None:
        found.extend((text, source, label) for text in _drawn(list(dict.fromkeys(texts)), most))

    tweets = _read(folder / "davidson_tweets.csv")
    for name, label, most in (("neither", 0, sys.maxsize), ("hate", 1, sys.maxsize), ("offensive", 1, 2800)):
        add([row["text"] for row in tweets if row["label"] == name], "davidson", label, most)
    add([row["text"] for row in _read(folder / "coco_captions_10k.csv")], "coco", 0, 3000)
    add([row["text"] for row in _read(folder / "i2p_half.csv")], "i2p", 1)
    add([row["text"] for row in _read(folder / "nibbler_round1_submitted.csv")], "nibbler", 1)
    found.extend((text, "pyrit", label) for text, label in _answers(pyrit))
    for source, (file, column, most) in HELD_OUT.items():
        drawn = _drawn(_read(folder / file), most)
        found.extend((row["text"], source, int(row[column])) for row in drawn)
    texts, sources, labels = zip(*found, strict=True)
    return Rows(list(texts), np.array(sources), np.array(labels))


def _read(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", errors="replace", newline="") as stream:
        return list(csv.DictReader(stream))


def _drawn(rows: list[Any], most: int) -> list[Any]:
    random.Random(0).shuffle(rows)
    return rows[:most]


def _answers(wheel: Path) -> list[tuple[str, int]]:
    """Answers of language models whose harm people rated: 1 from the middle of a file's scale on, 0 below a quarter."""
    found: dict[str, int] = {}
    with zipfile.ZipFile(wheel) as archive:
        for name in sorted(archive.namelist()):
            kind = Path(name).stem
            if "scorer_evals/harm/" not in name or not name.endswith(".csv"):
                continue
            if any(other in kind for other in ("privacy", "info_integrity", "exploits", "mini_")):
                continue
            lines = io.StringIO(archive.read(name).decode("utf-8", "replace"), newline="").readlines()
            rows = list(csv.DictReader(line for line in lines if not line.startswith("# dataset_version")))
            scores = [[float(row[key]) for key in row if key and "human_score" in key and row[key]] for row in rows]
            low, high = min(map(min, filter(None, scores))), max(map(max, filter(None, scores)))
            for row, given in zip(rows, scores, strict=True):
                share = (sum(given) / len(given) - low) / (high - low) if given else 0.4
                if share <= 0.25 or share >= 0.5:
                    found.setdefault(row["assistant_response"].strip(), int(share >= 0.5))
    return [(text, label) for text, label in found.items() if text]


def embedded(model: ZooModel, texts: Sequence[str]) -> Floats:
    """The embeddings `[N, 384]` of texts, of unit length: what `SentenceClassifier` reads."""
    codec, tower = model.codec(), model.get_submodule("text_tower")
    order = np.argsort([len(text) for text in texts], kind="stable")
    out = np.zeros((len(texts), 384), dtype=np.float32)
    with torch.inference_mode():
        for start in range(0, len(order), 64):
            batch = order[start : start + 64]
            tokens = codec.encode([texts[index] for index in batch])
            states = tower(torch.from_numpy(tokens.ids), torch.from_numpy(tokens.mask)).embedding
            out[batch] = torch.nn.functional.normalize(states, dim=-1).numpy()
    return out


def counted(model: ZooModel, texts: Sequence[str]) -> Any:
    """Which tokens each text has, over the root of their number: sparse `[N, vocabulary]`.

    Without the two that begin and end a text.
    """
    from scipy.sparse import csr_matrix

    codec = model.codec()
    ids = [np.unique(codec.encode([text]).ids[0][1:-1]) for text in texts]
    weights = np.concatenate([np.full(len(one), max(len(one), 1) ** -0.5) for one in ids])
    ends = np.cumsum([0, *map(len, ids)])
    shape = (len(texts), model.card.hparams["vocabulary_size"])
    return csr_matrix((weights, np.concatenate(ids), ends), shape=shape, dtype=np.float64)


def words_of_teacher(model: ZooModel, rows: Rows, folder: Path) -> Floats:
    """A weight for each token, so that their sum says what alt-profanity-check says of texts and of its own words.

    Ridge regression on its logits for the rows of training, all of Davidson's tweets and its vocabulary.
    """
    teacher = load_release("profanity_tfidf.alt_profanity_check").model
    assert teacher.tokenizer_json is not None
    from zoo.inputs.terms import Terms

    texts = [text for text, source in zip(rows.texts, rows.source, strict=True) if source not in HELD_OUT]
    texts += [row["text"] for row in _read(folder / "davidson_tweets.csv")]
    texts = list(dict.fromkeys(texts))
    texts += Terms.from_dict(json.loads(teacher.tokenizer_json)).terms
    codec, logits = teacher.codec(), []
    with torch.inference_mode():
        for start in range(0, len(texts), 256):
            tokens = codec.encode(texts[start : start + 256])
            logits.append(teacher(torch.from_numpy(tokens.ids), torch.from_numpy(tokens.mask))[:, 0].numpy())
    target = np.concatenate(logits).clip(-7, 7)
    ridge = Ridge(alpha=0.5, solver="lsqr", max_iter=60).fit(counted(model, texts), target)
    return np.asarray(ridge.coef_, dtype=np.float64)


class Fitter:
    """Fits heads on some of the rows; all scores have the standard deviation 1 on them."""

    def __init__(self, rows: Rows, embeddings: Floats, words: Floats) -> None:
        self.label, self.source, self.embeddings, self.words = rows.label, rows.source, embeddings, words
        self.kind = np.array([KINDS.get(source, -1) for source in rows.source])

    def head(self, index: NDArray[np.int64], c: float, *, own: bool) -> Floats:
        """A linear layer on embeddings by logistic regression; with `own`, each kind of source has its intercept."""
        features = self.embeddings[index]
        if own:
            features = np.concatenate([features, 3 * np.eye(1 + max(KINDS.values()))[self.kind[index]]], axis=1)
        fitted = LogisticRegression(C=c, max_iter=300).fit(features, self.label[index])
        weight: Floats = fitted.coef_[0, :384]
        scaled: Floats = weight / (self.embeddings[index] @ weight).std()
        return scaled

    def chosen(self, index: NDArray[np.int64], *, own: bool) -> tuple[float, float]:
        """C and the weight of words with the best mean AUPRC, less the share of positives, on the kinds left out."""
        found: dict[tuple[float, float], list[float]] = {}
        for c in GRID_C:
            for left_out in VALIDATED:
                rest, other = index[self.kind[index] != left_out], index[self.kind[index] == left_out]
                score = self.embeddings @ self.head(rest, c, own=own)
                for weight in GRID_WORDS if own else (0.0,):
                    total = (score + weight * self.words)[other]
                    gain = average_precision_score(self.label[other], total) - self.label[other].mean()
                    found.setdefault((c, weight), []).append(float(gain))
        return max(found, key=lambda one: float(np.mean(found[one])))

    def auprc(self, score: Floats, draw: np.random.Generator | None = None) -> Floats:
        """The AUPRC of each held-out source, of a draw with replacement where there is one."""
        out = []
        for source in HELD_OUT:
            rows = np.flatnonzero(self.source == source)
            rows = rows if draw is None else draw.choice(rows, len(rows))
            out.append(average_precision_score(self.label[rows], score[rows]))
        return np.array(out)


def measure(fitter: Fitter, training: NDArray[np.int64]) -> None:
    """Print what ours and the baseline reach on held-out sources, and the interval of their difference."""
    pairs = []
    for seed in range(SEEDS):
        index = training[np.random.RandomState(seed).rand(len(training)) < 0.8]
        scores = []
        for name, own in (("baseline", False), ("ours", True)):
            c, weight = fitter.chosen(index, own=own)
            scores.append(fitter.embeddings @ fitter.head(index, c, own=own) + weight * fitter.words)
            found = fitter.auprc(scores[-1])
            print(f"seed {seed} {name:8} C {c} words {weight}: {found.round(3)} mean {found.mean():.3f}", flush=True)
        pairs.append(scores)
    gains = np.array([fitter.auprc(ours) - fitter.auprc(base) for base, ours in pairs]).mean(axis=0)
    draws = []
    for number in range(DRAWS):
        base, ours = pairs[number % SEEDS]
        draws.append(
            fitter.auprc(ours, np.random.default_rng(number)) - fitter.auprc(base, np.random.default_rng(number))
        )
    low, high = np.percentile(draws, [2.5, 97.5], axis=0)
    mean_low, mean_high = np.percentile(np.mean(draws, axis=1), [2.5, 97.5])
    print(f"gain in mean AUPRC {gains.mean():+.3f} [{mean_low:+.3f}, {mean_high:+.3f}]")
    for source, *one in zip(HELD_OUT, gains, low, high, strict=True):
        print("gain on {} {:+.3f} [{:+.3f}, {:+.3f}]".format(source, *one))


def main(folder: Path, pyrit: Path, work: Path) -> None:
    """Train, measure, and write prompt_safety.safetensors."""
    from safetensors.numpy import save_file

    rows = read_rows(folder, pyrit)
    print({name: np.bincount(rows.label[rows.source == name]).tolist() for name in (*KINDS, *HELD_OUT)}, flush=True)
    model = load_release("prompt_injection_minilm.jailguard").model.eval()
    kept = work / "embeddings.npy"
    if not kept.exists():
        np.save(kept, embedded(model, rows.texts))
    table = work / "words.npy"
    if not table.exists():
        np.save(table, words_of_teacher(model, rows, folder))
    training = np.flatnonzero(~np.isin(rows.source, list(HELD_OUT)))
    words: Floats = np.load(table)
    sums = counted(model, rows.texts) @ words
    scale = sums[training].std()
    fitter = Fitter(rows, np.load(kept), sums / scale)
    c, weight = fitter.chosen(training, own=True)
    head = fitter.head(training, c, own=True)
    score = fitter.embeddings @ head + weight * fitter.words
    slope, bias = calibrated(score, rows)
    print(f"shipped: C {c}, words {weight}, {fitter.auprc(score).round(3)}, mean {fitter.auprc(score).mean():.3f}")
    for name in (*KINDS, *HELD_OUT):
        of = rows.source == name
        classes = sorted(set(rows.label[of].tolist()))
        shares = [f"{(slope * score[of & (rows.label == one)] + bias > 0).mean():.3f} of {one}" for one in classes]
        auroc = f"AUROC {roc_auc_score(rows.label[of], score[of]):.3f}" if len(classes) == 2 else ""
        print(f"{name}: flagged {', '.join(shares)} {auroc}")
    arrays = {
        "layers.0.weight": slope * head[None],
        "layers.0.bias": np.array([bias]),
        "words.weight": slope * weight / scale * words[:, None],
    }
    save_file({key: one.astype(np.float32) for key, one in arrays.items()}, work / "prompt_safety.safetensors")
    measure(fitter, training)


def calibrated(score: Floats, rows: Rows) -> tuple[float, float]:
    """The slope of the probability on Davidson's tweets, and the bias that puts a tenth of harmless ones above 0.5.

    Harmless tweets of that set were found by words of hate: few harmless texts are harder.
    """
    tweets = rows.source == "davidson"
    platt = LogisticRegression(C=10, class_weight="balanced").fit(score[tweets][:, None], rows.label[tweets])
    slope = float(platt.coef_[0, 0])
    return slope, -slope * float(np.quantile(score[tweets & (rows.label == 0)], 0.9))


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:4]))
