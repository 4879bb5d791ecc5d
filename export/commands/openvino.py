"""`zoo export openvino`."""

from __future__ import annotations

import argparse

from export.commands.options import add_engine_options, engine_options, print_exported
from zoo.commands.common import Commands, add_command


def add(formats: Commands) -> None:
    """Declare the subcommand."""
    text = "an OpenVINO graph, for CPUs: fp32, or int8_qdq with --calibrate"
    example = "zoo export openvino --model releases/x --out bundles/x --precision int8_qdq --calibrate photos/"
    add_engine_options(add_command(formats, "openvino", _export_openvino, text, example))


def _export_openvino(options: argparse.Namespace) -> int:
    from export.openvino import export_openvino

    print_exported(options, "openvino", export_openvino(options.model, options.out, **engine_options(options)))
    return 0
