"""The texts of an export, as windows of token ids: one to measure on, and one to calibrate on."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from shoal.export.config.model_config import ModelConfig
from shoal.export.fidelity.calibration import CalibrationText
from shoal.export.tokenizer.files import TOKENIZER_FILE, read_tokenizer
from shoal.graphs.errors import CheckpointError, ExportError
from shoal.graphs.fidelity import DEFAULT_CALIBRATE_TOKENS, shipped_text
from shoal.graphs.input_files import TextError, read_text
from shoal.graphs.recipes import FLOAT32, INT4_EXPERTS, Recipe
from shoal.graphs.text.library_tokenizer import LibraryTokenizer

WINDOW = 512
"""Tokens of context each position may see at most; long texts are cut into windows of this."""


@dataclass(frozen=True, kw_only=True)
class TextChoice:
    """What fidelity is to be measured on, if at all and if the weights are int8."""

    wanted: bool
    path: Path | None  # None: the text shipped with shoal
    num_tokens: int
    calibrate: Path | None = None  # text that improves rounding to 4 bits
    calibrate_tokens: int = DEFAULT_CALIBRATE_TOKENS


@dataclass(frozen=True, kw_only=True)
class FidelityText:
    """What to measure fidelity on, and perhaps to calibrate on: a name and int64 windows [B,T].

    ``calibration``, with windows of the same length, improves the rounding to 4 bits.
    """

    name: str
    ids_BT: Tensor
    calibration: CalibrationText | None = None

    @property
    def parts(self) -> tuple[Tensor, ...]:
        """The windows to measure on and, if there are any, those to calibrate on."""
        return (
            (self.ids_BT,) if self.calibration is None else (self.ids_BT, self.calibration.ids_BT)
        )

    @property
    def all_ids(self) -> Tensor:
        """All windows."""
        return torch.cat(self.parts)


def check_calibration(recipe: Recipe | None, choice: TextChoice) -> None:
    """Refuse a text to calibrate on where it would change nothing.

    Raises:
        ExportError: the recipe has no 4-bit weights, or fidelity is not measured.
    """
    if choice.calibrate is None:
        return
    if recipe is None or all(form.bits != 4 for form in recipe.formats.values()):
        found = FLOAT32 if recipe is None else recipe.name
        raise ExportError(
            f"--calibrate: expected a recipe with 4-bit weights, found {found}; add --weights "
            f"{INT4_EXPERTS} or leave it out"
        )
    if not choice.wanted:
        raise ExportError("--calibrate: works while fidelity is measured; drop --no-fidelity")


def fidelity_text(
    files: dict[str, bytes], where: Path, config: ModelConfig, choice: TextChoice
) -> tuple[FidelityText | None, tuple[str, ...]]:
    """The text to measure fidelity on, or a note why there is none.

    Args:
        files: content of the checkpoint's tokenizer files by name.
        where: the checkpoint, for messages.
        config: of the model, which bounds windows and token ids.
        choice: what the user asked for.

    Raises:
        CheckpointError: the tokenizer cannot be read, or gives ids that are none of the model's.
        ExportError: a text cannot be read or is too short.
    """
    if TOKENIZER_FILE not in files:
        return None, ("fidelity was not measured: the checkpoint has no tokenizer",)
    tokenizer = read_tokenizer(files[TOKENIZER_FILE], where / TOKENIZER_FILE)
    window = min(WINDOW, config.max_position_embeddings)
    name, ids_BT = fidelity_windows(tokenizer, choice.path, choice.num_tokens, window=window)
    calibration = _calibration(tokenizer, choice, ids_BT.shape[1])
    text = FidelityText(name=name, ids_BT=ids_BT, calibration=calibration)
    largest = int(text.all_ids.max())
    if largest >= config.vocab_size:
        raise CheckpointError(
            f"{where / TOKENIZER_FILE}: expected token ids below vocab_size {config.vocab_size}, "
            f"found {largest}; config.json and tokenizer.json must belong together"
        )
    return text, ()


def fidelity_windows(
    tokenizer: LibraryTokenizer,
    text: Path | None,
    num_tokens: int,
    *,
    window: int = WINDOW,
    option: str = "--fidelity-text",
) -> tuple[str, Tensor]:
    """Tokenize the fidelity text.

    Args:
        tokenizer: of the model.
        text: a UTF-8 text file or pipe; None takes the text shipped with shoal.
        num_tokens: how many tokens to use at most.
        window: longest window.
        option: what named the text, for errors.

    Returns:
        The text's name and int64 [B,T] windows.

    Raises:
        ExportError: the text cannot be read or is too short.
    """
    name = "shipped" if text is None else text.name
    try:
        content = shipped_text() if text is None else read_text(text)
    except TextError as error:
        raise ExportError(
            f"{text}: cannot be read as UTF-8 text ({error}); choose another {option}"
        ) from error
    ids = tokenizer.encode(content, add_special_tokens=False).ids
    prefix = tokenizer.encode("", add_special_tokens=True).ids[:1]  # the begin token, if it has one
    step = min(window, num_tokens, len(ids) + len(prefix)) - len(prefix)
    count = min(num_tokens, len(ids)) // step if step > 1 else 0
    if count < 1:
        raise ExportError(
            f"{name}: {min(num_tokens, len(ids))} tokens are too few; choose a "
            f"longer {option} or more tokens of it"
        )
    windows = [prefix + ids[i * step : (i + 1) * step] for i in range(count)]
    return name, torch.tensor(windows, dtype=torch.int64)


def _calibration(
    tokenizer: LibraryTokenizer, choice: TextChoice, window: int
) -> CalibrationText | None:
    """Windows spread over the text to calibrate on, as long as those fidelity is measured on."""
    if choice.calibrate is None:
        return None
    name, all_BT = fidelity_windows(
        tokenizer, choice.calibrate, sys.maxsize, window=window, option="--calibrate"
    )
    count = min(len(all_BT), choice.calibrate_tokens // window)
    if all_BT.shape[1] < window or count < 1:
        raise ExportError(
            f"{name}: expected a window of {window} tokens, found "
            f"{min(all_BT.numel(), choice.calibrate_tokens)} tokens; choose a longer text or more "
            "--calibrate-tokens"
        )
    chosen = torch.arange(count) * len(all_BT) // count
    return CalibrationText(name=name, ids_BT=all_BT[chosen])
