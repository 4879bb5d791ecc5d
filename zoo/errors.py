"""Every error that Safety Zoo raises on purpose: what was wrong, with the value, and what would be right."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager


class ZooError(Exception):
    """Base of all errors below: `except ZooError` catches every refusal of the zoo and no bug."""


class BadInputError(ZooError, ValueError):
    """An image, text, array, file or argument that cannot be used. Nothing was judged. One of the two below."""


class BadDataError(BadInputError):
    """What a file, a row, an image or a text holds cannot be used: correct the data."""


class BadArgumentError(BadInputError):
    """An argument, a name, a path or a combination of them is wrong: correct the call.

    The message has the name of an argument in backticks, and a command shows its flag there.
    """


class BadTypeError(ZooError, TypeError):
    """An argument of a type that is not taken, such as a list in place of an image: correct the call."""


class UnknownModelError(ZooError, KeyError):
    """No model of that name is registered."""

    def __str__(self) -> str:
        return str(self.args[0])  # KeyError would quote the message


class NoWeightsError(ZooError):
    """The architecture is known, but no downloadable weights are registered for it."""


class BadCardError(ZooError, ValueError):
    """A card, policy, verdict or manifest with unknown, missing or wrong fields, or of a newer schema."""


class BadPolicyError(BadCardError):
    """A policy that contradicts itself, or names a category that the model cannot score."""


class TamperedFileError(ZooError):
    """The bytes on disk are not the ones that the card or the manifest names."""


class ParityError(ZooError):
    """The exported model does not answer what the trained one answers, within its budget."""


class IncompatibleBundleError(ZooError):
    """A bundle that this machine or this version cannot run; the message has the command that repairs it."""


class GuardError(ZooError):
    """The guard could not do its work on an image, so nothing was answered."""


class ServiceError(ZooError):
    """The service could not judge a request, for a reason other than its input. Nothing was judged."""


class OverloadError(ServiceError):
    """The service holds as many unanswered requests as it may; the message says how many. Ask again later."""


class EngineError(ServiceError):
    """The engine failed on the batch that the request was in."""


class ClosedError(ServiceError):
    """The service or scorer was closed before it judged the request."""


class MissingDependencyError(ZooError, ImportError):
    """An optional package is needed for this; the message names the extra that brings it."""


def refusal(problem: BaseException | None) -> str | None:
    """The one-line message to the user about an expected error; None for a bug.

    Follows `__cause__` to an error of the zoo. Errors of the operating system (a full disk), a missing package, and
    input that is nested too deeply are expected too.
    """
    cause = problem
    while cause is not None and not isinstance(cause, ZooError):
        cause = cause.__cause__
    if cause is not None:
        return str(cause)
    if isinstance(problem, OSError) and problem.strerror:
        return ": ".join([*(str(name) for name in [problem.filename] if name is not None), problem.strerror])
    if isinstance(problem, ModuleNotFoundError) and (problem.name or "zoo").split(".")[0] not in ("zoo", "export"):
        return _not_installed(problem)
    return "the input is nested too deeply" if isinstance(problem, RecursionError) else None


#: The packages of the extra `train`, by the names that are imported.
TRAINING = frozenset(
    {"torch", "lightning", "transformers", "torchmetrics", "onnxscript", "omegaconf", "jsonargparse", "scipy", "jinja2"}
    | {"matplotlib"}
)


def _not_installed(problem: ModuleNotFoundError) -> str:
    name = (problem.name or "").split(".")[0]
    if name in TRAINING:
        return f"this needs {name}, which judging by a bundle does not: pip install 'safety-zoo[train]'"
    return f'the package "{problem.name}" is not installed; pip install --upgrade safety-zoo brings what it needs'


@contextmanager
def training_needed() -> Iterator[None]:
    """Raise MissingDependencyError, which names the extra, for a package of `train` that is not installed."""
    try:
        yield
    except ModuleNotFoundError as problem:
        if (problem.name or "").split(".")[0] not in TRAINING:
            raise
        raise MissingDependencyError(_not_installed(problem)) from None


def quoted(value: object) -> str:
    """A value of somebody's data for a message: a short name in quotes; of what may be a text its length alone.

    Invisible characters stand as escapes. Messages end up in logs, where prompts and captions are nobody's business.
    """
    text = str(value)
    shown = text if text.isprintable() else ascii(text)[1:-1]
    return f'"{shown}"' if _is_name(shown) else f"a text of {len(text):,} characters"


def _is_name(text: str) -> bool:
    return len(text) <= 40 and len(text.split()) <= 4 and text.isprintable()


@contextmanager
def named_as(name: object, place: object) -> Iterator[None]:
    """Let errors name what the user named, and not the folder of this machine that stands for it."""
    try:
        yield
    except ZooError as problem:
        problem.args = tuple(str(part).replace(str(place), str(name)) for part in problem.args)
        raise


def close_match(word: str, known: Iterable[str]) -> str:
    """Return `; did you mean "x"?` for the known words nearest to `word`, or the first few known ones.

    What may be a text, and no name, is left out.
    """
    choices = sorted({choice for choice in known if _is_name(choice)})
    if near := near_match(word, choices):
        return near
    if not choices:
        return ""
    return "; known: " + ", ".join(choices[:12]) + (", ..." if len(choices) > 12 else "")


def near_match(word: str, known: Iterable[str]) -> str:
    """Return `; did you mean "x"?` for the known words nearest to `word`; "" if none is near."""
    near = difflib.get_close_matches(word, sorted({choice for choice in known if _is_name(choice)}), n=3, cutoff=0.5)
    return "; did you mean " + " or ".join(f'"{match}"' for match in near) + "?" if near else ""
