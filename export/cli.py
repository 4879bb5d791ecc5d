"""`zoo export`, `zoo verify`, `zoo bench`, `zoo bundle`, `zoo policy`, found by `zoo` through entry points."""

from __future__ import annotations

from export.commands import bundle, formats, policy
from export.commands.bundle import add_bench, add_verify
from zoo.commands.common import Commands

__all__ = ["add_bench", "add_export", "add_verify"]


def add_export(commands: Commands) -> None:
    """Add `zoo export`, and `zoo bundle` and `zoo policy` for what was exported."""
    for module in (formats, bundle, policy):
        module.add(commands)
