"""What is done with a checkpoint of any form once it has been opened."""

from __future__ import annotations

import math
from pathlib import Path

from shoal.export.checkpoint.open_checkpoint import Checkpoint
from shoal.export.inspection import checkpoint_report
from shoal.runtime.text.tokenizer import tokenizer_of

_MOST_TENSORS_READ = 40
_MOST_ITEMS_READ = 1 << 20


def use_checkpoint(name: Path, checkpoint: Checkpoint) -> None:
    """Look at a checkpoint as an export does, without the work that depends on its size."""
    checkpoint_report(name)
    files, _ = checkpoint.tokenizer, checkpoint.special_tokens
    if "tokenizer.json" in files:
        tokenizer = tokenizer_of(files, name)
        tokenizer.decode(tokenizer.encode("Hello, world 123"))
    for tensor, header in list(checkpoint.tensors.headers.items())[:_MOST_TENSORS_READ]:
        rows = header.shape[0] if header.shape else 0
        width = max(1, math.prod(header.shape[1:]))
        if rows and width <= _MOST_ITEMS_READ:
            checkpoint.tensors.read_rows(tensor, 0, min(rows, _MOST_ITEMS_READ // width))
            checkpoint.tensors.read_rows(tensor, rows - 1, rows)
