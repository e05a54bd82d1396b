"""``optimum-cli export shoal``: the one file of the distribution shoal-optimum.

optimum-cli imports every module of this namespace when it starts, so this one imports little and
never fails: without a shoal that fits, optimum-cli goes on without the command.
"""

from __future__ import annotations

import logging
import sys
from argparse import ArgumentParser

from optimum.commands.base import BaseOptimumCLICommand, CommandInfo
from optimum.commands.export.base import ExportCommand


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


try:
    from shoal.graphs.model_forms import CHECKPOINT_FORMS
    from shoal.runtime.commands.options import add_common_options
    from shoal.runtime.commands.options_export import add_bundle_options
except ImportError as error:
    REGISTER_COMMANDS = []
    logging.getLogger(__name__).warning("optimum-cli export shoal is not there: %s", error)
else:
    REGISTER_COMMANDS = [(ShoalExportCommand, ExportCommand)]
