"""The errors shoal raises for a user to read.

    ShoalError
    |-- ConfigError        config.json asks for something shoal does not support
    |-- CheckpointError    a checkpoint is incomplete, damaged or in a format that is not read
    |-- ExportError        a bundle could not be written or verified
    |-- BundleError        a bundle folder is incomplete, damaged, too new or hostile
    |-- InputError         token ids, prompts, lengths or options out of range
    `-- RuntimeFailure     onnxruntime or the machine refused: memory, threads, kernels

Every message says where, what was expected, what was found and what to do; what a file or a name
has put into it does not make it longer than ``message_length.LONGEST_MESSAGE``.
"""

from __future__ import annotations

from shoal.graphs.message_length import bounded


class ShoalError(Exception):
    """Root of every error that is reported to the user in one line."""

    def __str__(self) -> str:
        return bounded(super().__str__())


class ConfigError(ShoalError):
    """A checkpoint's config.json names an architecture or key that shoal does not support."""


class CheckpointError(ShoalError):
    """A checkpoint is incomplete, damaged or in a format that shoal does not read."""


class ExportError(ShoalError):
    """A bundle could not be written, checked or verified."""


class BundleError(ShoalError):
    """A bundle folder is incomplete, damaged, too new or refers outside itself."""


class InputError(ShoalError, ValueError):
    """Token ids, a prompt, a length or a sampling option is out of range."""


class RuntimeFailure(ShoalError):
    """onnxruntime or the machine refused to do what was asked."""
