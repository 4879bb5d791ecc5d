"""What the guard says: the instruction that it adds to a prompt, and the refusal that it answers with. No torch."""

from __future__ import annotations

from collections.abc import Iterable

from zoo.contract.verdict import Verdict
from zoo.errors import BadArgumentError

#: Inserted after a flagged image. The language model decides: a detection forces no refusal (SafeCLIP,
#: arXiv 2503.00037, describes such an instruction; the words are ours).
INSTRUCTION = (
    "First check whether the image shows anything harmful. If it does, decline to answer and give the reason. "
    "If it does not, do what the user asks."
)

#: Answered in place of the language model; `{categories}` are those that the detector flagged.
REFUSAL = "I'm sorry, but I can't help with this image, because it appears to show {categories}."


def instructed(rest: str, instruction: str = INSTRUCTION) -> str:
    """The text after an image with the instruction inserted before `rest`, what stood there.

    The instruction is a line of its own: `\\n` before it, and `\\n` after it unless `rest` is empty or begins with
    white space. So `<image>\\nWhat is this?` becomes `<image>\\nINSTRUCTION\\nWhat is this?`.
    """
    gap = "" if not rest or rest[0].isspace() else "\n"
    return f"\n{instruction}{gap}{rest}"


def refusal_for(verdicts: Iterable[Verdict], refusal: str = REFUSAL) -> str:
    """The refusal that names the flagged categories of these verdicts, each once; raises BadInputError if it cannot."""
    names = [verdict.category.replace("_", " ") for verdict in verdicts if not verdict.is_safe and verdict.category]
    try:
        return refusal.format(categories=", ".join(dict.fromkeys(names)))
    except (KeyError, IndexError, ValueError, AttributeError) as problem:
        raise BadArgumentError(
            f"refusal {refusal!r} cannot be filled in ({problem!r}): the only field is {{categories}}"
        ) from None
