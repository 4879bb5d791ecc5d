"""Every attack with what it attacks, under which bound, and where it comes from."""

from __future__ import annotations

from typing import NamedTuple


class Source(NamedTuple):
    """What an attack changes, what bounds it, what it asks of the model, and the paper."""

    kind: str
    bound: str
    needs: str
    paper: str


_NORMS = "Linf, L2"
_EDITS = "characters or words"

SOURCES = {
    "fgsm": Source("image", _NORMS, "gradient", "Goodfellow et al. 2015, arXiv 1412.6572"),
    "pgd": Source("image", _NORMS, "gradient", "Madry et al. 2018, arXiv 1706.06083"),
    "apgd-ce": Source("image", _NORMS, "gradient", "Croce & Hein 2020, arXiv 2003.01690"),
    "apgd-t": Source("image", _NORMS, "gradient", "Croce & Hein 2020, arXiv 2003.01690"),
    "fab-t": Source("image", _NORMS, "gradient", "Croce & Hein 2020, arXiv 1907.02044"),
    "square": Source("image", _NORMS, "logits", "Andriushchenko et al. 2020, arXiv 1912.00049"),
    "homoglyphs": Source("text", _EDITS, "scores", "look-alikes of Unicode Technical Standard 39"),
    "zero_width": Source("text", _EDITS, "scores", "Boucher et al. 2022, arXiv 2106.09898"),
    "leetspeak": Source("text", _EDITS, "scores", "searched as Gao et al. 2018, arXiv 1801.04354"),
    "spacing": Source("text", _EDITS, "scores", "searched as Gao et al. 2018, arXiv 1801.04354"),
    "casing": Source("text", _EDITS, "scores", "searched as Gao et al. 2018, arXiv 1801.04354"),
    "misspelling": Source("text", _EDITS, "scores", "Belinkov & Bisk 2018, arXiv 1711.02173"),
    "synonyms": Source("text", _EDITS, "scores, word vectors", "Jin et al. 2020, arXiv 1907.11932"),
    "hotflip": Source("text", _EDITS, "gradient", "Ebrahimi et al. 2018, arXiv 1712.06751"),
    "gcg": Source("text", _EDITS, "gradient", "Zou et al. 2023, arXiv 2307.15043"),
}
