"""The folder of a model: a directory, or a download from the Hugging Face Hub. No torch."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from pathlib import Path

from zoo.errors import BadArgumentError, close_match

#: What names on the Hugging Face Hub begin with. Without it nothing is downloaded.
HUB = "hf-hub:"

#: What is fetched from the Hub: weights as safetensors alone, for other forms can run code.
_FETCHED = ("*.safetensors", "*.json", "*.yaml", "*.txt", "*.jinja", "*.model")


def model_folder(source: str | Path, known: Iterable[str] = ()) -> tuple[Path, str]:
    """The folder of a model, and where it is from: a directory, or `hf-hub:ORG/NAME[@REVISION]`, fetched from the Hub.

    The second is `hf-hub:ORG/NAME@COMMIT` whatever the revision, or the directory as given. Raises BadArgumentError for
    anything else, with the close match among the `known` names and the folders beside it.
    """
    name = str(source)
    check_named(name)
    if Path(source).is_dir() or name.startswith(HUB):
        folder, place = (Path(source), name) if Path(source).is_dir() else _fetched(name)
        if (folder / "adapter_config.json").is_file():  # transformers would download what it names
            raise BadArgumentError(
                f"{name}: holds an adapter of peft on another model, which is not fetched: merge the two "
                "(`merge_and_unload`), and give the folder of the result"
            )
        return folder, place
    near = Path(source).parent
    folders = [str(near / path.name) for path in near.glob("*") if path.is_dir()] if near.is_dir() else []
    hint = f'; a model on the Hugging Face Hub is "{HUB}{name}"' if re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", name) else ""
    raise BadArgumentError(
        f"{name}: no such directory" + close_match(name, difflib.get_close_matches(name, [*known, *folders])) + hint
    )


def check_named(name: str) -> None:
    """Raise BadArgumentError for an empty name: as a path it is the current folder, whatever lies there."""
    if not name.strip():
        raise BadArgumentError("the name of the model is empty; give a folder, a registered name or hf-hub:ORG/NAME")


def _fetched(name: str) -> tuple[Path, str]:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    repository, _, revision = name.removeprefix(HUB).partition("@")
    try:
        folder = Path(snapshot_download(repository, revision=revision or None, allow_patterns=list(_FETCHED)))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as problem:
        reason = getattr(problem, "strerror", None) or problem
        raise BadArgumentError(f"{name}: cannot be fetched from the Hugging Face Hub: {reason}") from None
    return folder, f"{HUB}{repository}@{folder.name}"
