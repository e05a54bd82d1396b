"""Whether a row has the same bits in a step of several tokens as in a step of one.

That is what makes checking drafts exact. Kernels may compute one row in another order than several,
and int8 activations turn the last bit of a sum into a whole rounding step. Which kernel runs
depends on the processor, the number of tokens and the depth, not on the values, so a model is
audited where it is used: the first steps of each size and depth are computed both ways, the
one-token results are used, and one difference ends drafting for good.
"""

from __future__ import annotations

import threading
from collections import Counter

import numpy as np

from shoal.runtime.engine.layer_state import LayerState
from shoal.runtime.engine.session import SessionSettings
from shoal.runtime.engine.step import FloatArray

_CLEAN_STEPS = 2  # equal steps after which a size is believed at a depth

_COLUMNS_PER_THREAD = 80  # 5 blocks of 16, of which the last may hold one column: 65 and more

_Key = tuple[int, int]


class RowAudit:
    """What is known of one opened model. May be used from several threads."""

    def __init__(self) -> None:
        self._clean: Counter[_Key] = Counter()
        self._failed = False
        self._lock = threading.Lock()

    @property
    def failed(self) -> bool:
        """Whether a row was found to depend on the step it was computed in."""
        return self._failed

    def wants(self, count: int, depth: int) -> bool:
        """Whether a step of ``count`` tokens at ``depth`` is still to be compared."""
        return not self._failed and self._clean[_key(count, depth)] < _CLEAN_STEPS

    def record(self, count: int, depth: int, *, is_equal: bool) -> None:
        """Record a comparison."""
        with self._lock:
            if is_equal:
                self._clean[_key(count, depth)] += 1
            else:
                self._failed = True


def left_behind(state: LayerState, first: int, hidden_TD: FloatArray) -> FloatArray:
    """All values that tokens left behind, to be compared: [T, D + values of a token in the state].

    Args:
        state: of the layers, to which the tokens were written.
        first: position of the first token.
        hidden_TD: their hidden states.

    Returns:
        A copy in float32, which holds values of all types exactly.
    """
    parts = [hidden_TD, *state.rows_at(first, len(hidden_TD)).values()]
    return np.concatenate(parts, axis=1, dtype=np.float32)


def _key(count: int, depth: int) -> _Key:
    return count, depth.bit_length()


def shortest_depth(settings: SessionSettings) -> int:
    """Tokens a context must hold before steps of several tokens are worth an audit.

    The stock MatMul divides the columns of the attention scores, one for each token in the cache,
    among the threads in blocks of 16, and a thread with 64 columns or fewer adds in longer pieces.
    So single steps can differ at depths that no audit happens to see; further on none can.
    """
    return _COLUMNS_PER_THREAD * settings.threads if settings.kernels == "portable" else 0
