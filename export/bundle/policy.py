"""Give a deployed bundle another policy: no engine is touched. No torch."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from export.bundle.manifest import CARD, POLICY
from export.bundle.read import check_files, read_manifest
from zoo.contract.card import ModelCard
from zoo.contract.panel import AnyPolicy
from zoo.files import edited_directory, sha256, write_file
from zoo.judging.panel import bind


def use_policy(folder: Path, policy: AnyPolicy) -> None:
    """Make a policy that of a bundle, whole or not at all; a signature is taken off, as it was that of the old one.

    The bundle's own `policy.yaml` may have been changed or lost, and nothing else. Raises what `read_bundle` raises,
    BadPolicyError when policy and model do not fit.
    """
    manifest = read_manifest(folder)
    check_files(folder, manifest, but=(POLICY,))
    bind(ModelCard.read(folder / CARD), policy)
    with edited_directory(folder) as work:
        write_file(work / POLICY, policy.to_yaml())
        dataclasses.replace(manifest, files={**manifest.files, POLICY: sha256(work / POLICY)}).write(work)
