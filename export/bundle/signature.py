"""An ed25519 signature over a bundle's manifest, which holds the sha256 of everything else. Optional; no torch.

Hashes show that files belong together; a signature shows who put them there. Needs `cryptography` (extra `sign`), and
that only where a key is given.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Literal

from zoo.errors import BadDataError, MissingDependencyError, TamperedFileError
from zoo.files import write_file

#: Where a public key is configured for every bundle that is read: the path of a PEM file.
VARIABLE = "SAFETY_ZOO_PUBLIC_KEY"


def signature_path(manifest: Path) -> Path:
    """Where the signature of a manifest lies, raw, 64 bytes."""
    return manifest.with_name(manifest.name + ".sig")


def sign(manifest: Path, private_key: Path) -> Path:
    """Sign a manifest with an ed25519 key (PEM, `openssl genpkey -algorithm ed25519`); returns the signature's path.

    Anything that writes the manifest afterwards (`zoo verify`, another engine) makes the signature invalid: sign last.
    Raises BadInputError for another kind of key, MissingDependencyError without `cryptography`.
    """
    path = signature_path(manifest)
    write_file(path, _key(private_key, "private").sign(manifest.read_bytes()))
    return path


def check_signature(manifest: Path, public_key: Path | None = None) -> bool:
    """Whether the manifest is signed by the given key, or by the one that `SAFETY_ZOO_PUBLIC_KEY` names.

    False when no key is configured: then nothing was checked. Raises TamperedFileError when the signature is missing
    or another, BadInputError for a file that is no ed25519 public key, MissingDependencyError without `cryptography`.
    """
    named = os.environ.get(VARIABLE)
    path = public_key or (Path(named) if named else None)
    if path is None:
        return False
    key = _key(path, "public")
    from cryptography.exceptions import InvalidSignature

    if not signature_path(manifest).is_file():
        raise TamperedFileError(
            f"{manifest}: not signed, and the key {path} is required; sign it with `zoo bundle sign`, or take a bundle "
            "from somebody who did"
        )
    try:
        key.verify(signature_path(manifest).read_bytes(), manifest.read_bytes())
    except InvalidSignature:
        raise TamperedFileError(f"{manifest}: the signature is not one by {path} of this very manifest") from None
    return True


def _key(path: Path, kind: Literal["private", "public"]) -> Any:
    """The ed25519 key in a PEM file. Raises BadInputError for another one, or none."""
    form, ed25519 = _cryptography()
    data = _read(path)
    try:
        key = form.load_pem_private_key(data, None) if kind == "private" else form.load_pem_public_key(data)
    except (ValueError, TypeError) as problem:  # TypeError: it is encrypted
        raise BadDataError(f"{path}: no {kind} key that can be read ({problem})") from None
    if not isinstance(key, ed25519.Ed25519PrivateKey if kind == "private" else ed25519.Ed25519PublicKey):
        hint = "-out private.pem" if kind == "private" else "-out private.pem && openssl pkey -in private.pem -pubout"
        raise BadDataError(f"{path}: no ed25519 {kind} key; make one: openssl genpkey -algorithm ed25519 {hint}")
    return key


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as problem:
        raise BadDataError(f"{path}: key cannot be read: {problem.strerror}") from None


def _cryptography() -> tuple[Any, Any]:
    try:
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric import ed25519
    except ImportError:
        raise MissingDependencyError(
            "a signature key is given, and checking it needs cryptography: pip install 'safety-zoo[sign]'"
        ) from None
    return serialization, ed25519
