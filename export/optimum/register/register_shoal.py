"""``optimum-cli export shoal``: installed as optimum.commands.register.register_shoal.

optimum-cli imports every module of that namespace when it starts, so this one imports little.
"""

from __future__ import annotations

import sys
from argparse import ArgumentParser

from optimum.commands.base import BaseOptimumCLICommand, CommandInfo
from optimum.commands.export.base import ExportCommand

from shoal.graphs.model_forms import CHECKPOINT_FORMS
from shoal.runtime.commands.options import add_common_options
from shoal.runtime.commands.options_export import add_bundle_options


class ShoalExportCommand(BaseOptimumCLICommand):  # type: ignore[misc]
    """``shoal export`` with the checkpoint as ``--model``, as optimum's other exports have it."""

    COMMAND = CommandInfo(
        name="shoal", help="Export DeepSeek-family models to int8 ONNX bundles for any CPU."
    )

    @staticmethod
    def parse_args(parser: ArgumentParser) -> None:
        """Add the options."""
        parser.add_argument(
            "-m",
            "--model",
            dest="checkpoint",
            metavar="CHECKPOINT",
            required=True,
            help=CHECKPOINT_FORMS,
        )
        add_bundle_options(parser)
        add_common_options(parser)
        parser.set_defaults(debug=False)

    def run(self) -> None:
        """Export; ends the program with the exit status of ``shoal export``."""
        from shoal.runtime.commands.cli import run_verb

        self.args.verb = "export"
        sys.exit(run_verb(self.args))


REGISTER_COMMANDS = [(ShoalExportCommand, ExportCommand)]
