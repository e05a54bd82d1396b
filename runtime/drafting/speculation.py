"""Self-speculative decoding: several tokens per step where guesses come true.

A round reads one decided token together with drafts of what follows it, in one step. Whoever
decodes then asks for the logits after each token as always; while the tokens asked about are the
drafted ones, the answers are there already. So nothing is accepted or rejected here: the sampler
decides every token from the logits it would have seen anyway, with the random numbers it would
have drawn anyway, and a draft only decides how fast that goes. That is the acceptance rule of
speculative sampling for a draft that is certain of itself: token x is drawn from p, which equals
the draft with probability p(draft) and otherwise has the distribution of p without it.

What remains is that a row must not depend on the step it is computed in; see row_audit.py.

Source: Leviathan et al., Fast Inference from Transformers via Speculative Decoding
(arXiv 2211.17192), section 2.3, with q(draft) = 1.
"""

from __future__ import annotations

import time
import warnings
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from shoal.graphs.ops.spec import LONGEST_SHORT_STEP
from shoal.runtime.drafting.draft_policy import DraftPolicy
from shoal.runtime.drafting.drafter import Drafter
from shoal.runtime.drafting.row_audit import RowAudit, left_behind
from shoal.runtime.engine.context import Context
from shoal.runtime.engine.step import FloatArray

LONGEST_DRAFT = LONGEST_SHORT_STEP - 1
"""Drafts of one step at most."""

_INEXACT = (
    "draft: on this machine the kernels in use round steps of several tokens otherwise than single "
    "steps, so drafts would change the output; decoding goes on without them. Use draft 0, native "
    "kernels, or a bundle exported with --block-size 64"
)


@dataclass
class DraftStats:
    """What came of drafting so far."""

    rounds: int = 0  # steps with at least one draft
    plain_steps: int = 0
    drafted: list[int] = field(default_factory=list)  # by position: drafts whose turn came
    accepted: list[int] = field(default_factory=list)  # by position: those that came true

    def count(self, drafts: int, accepted: int) -> None:
        """Count a finished round."""
        if drafts == 0:
            self.plain_steps += 1
            return
        self.rounds += 1
        while len(self.drafted) < drafts:
            self.drafted.append(0)
            self.accepted.append(0)
        for index in range(min(accepted + 1, drafts)):
            self.drafted[index] += 1
            self.accepted[index] += index < accepted

    def tokens_per_step(self) -> float:
        """Tokens decided per step of the decoder."""
        steps = self.rounds + self.plain_steps
        return 1 + sum(self.accepted) / steps if steps else 0.0


@dataclass
class _Round:
    """A round with drafts, while it is under way."""

    drafts: int
    depth: int
    accepted: int = 0
    seconds: float = 0.0
    audit_s: float = 0.0
    logits: deque[FloatArray] = field(default_factory=deque)  # after each draft, [W]
    audit: deque[tuple[int, FloatArray]] = field(default_factory=deque)  # token, what it leaves


class Speculation:
    """Decodes like a context, with drafts.

    Args:
        context: what is decoded in; everything it holds is decided, drafts are only peeked at.
        drafter: that of the context.
        policy: how many tokens to draft.
        audit: what is known of the model's kernels.
        shortest: depth from which drafts are checked.
        warn: whether to say so when drafts are not possible, because they were asked for.
        clock: seconds.
    """

    def __init__(
        self,
        context: Context,
        drafter: Drafter,
        policy: DraftPolicy,
        audit: RowAudit,
        *,
        shortest: int = 0,
        warn: bool = False,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.stats = DraftStats()
        self._context = context
        self._drafter = drafter
        self._policy = policy
        self._audit = audit
        self._shortest = shortest
        self._warn = warn
        self._clock = clock
        self._round: _Round | None = None

    def decode(self, token: int, most_drafts: int | None = None) -> FloatArray:
        """Read one token.

        Args:
            token: any token; quick if it is the one that was drafted.
            most_drafts: tokens that can be wanted after the next one, None if not known.

        Returns:
            Logits float32 [W].

        Raises:
            InputError: see ``Context.prefill``.
            RuntimeFailure: see ``Context.prefill``.
        """
        started_s = self._clock()
        current = self._round
        if current is not None and current.logits and self._context.peeked.tokens[:1] == [token]:
            self._context.adopt(1)
            current.accepted += 1
            current.seconds += self._clock() - started_s
            return current.logits.popleft()
        if current is not None and current.audit and current.audit[0][0] == token:
            current.accepted += 1
            return self._decode_audited(current, token)
        self.finish_round()
        drafts = self._propose(token, most_drafts)
        if not drafts:
            logits_W = self._context.decode(token)
            self.stats.count(0, 0)
            self._policy.record(0, 0, self._clock() - started_s, 0.0)
            return logits_W
        self._round = _Round(len(drafts), self._context.position)
        return self._check(self._round, [token, *drafts], started_s)

    def finish_round(self) -> None:
        """Count the round under way; the drafts that are left did not come true."""
        done, self._round = self._round, None
        if done is None:
            return
        self.stats.count(done.drafts, done.accepted)
        self._policy.record(done.drafts, done.accepted, done.seconds, done.audit_s)
        if done.audit_s and not self._audit.failed:
            self._audit.record(done.drafts + 1, done.depth, is_equal=True)

    def _propose(self, token: int, most_drafts: int | None) -> list[int]:
        depth = self._context.position
        if self._audit.failed:
            if self._warn:
                self._warn = False
                warnings.warn(_INEXACT, RuntimeWarning, stacklevel=1)
            return []
        room = self._context.max_length - depth - 1
        most = room if most_drafts is None else min(room, most_drafts)
        count = self._policy.choose(max(0, most) if depth >= self._shortest else 0)
        return self._drafter.propose(depth, token, count) if count else []

    def _check(self, current: _Round, tokens: list[int], started_s: float) -> FloatArray:
        """Read a token and peek at what drafts after it give."""
        logits_TW = self._context.peek(tokens)
        if self._audit.wants(len(tokens), current.depth):
            peeked = left_behind(
                self._context.layer_state, self._context.position, self._context.peeked.hidden_TD
            )
            peeked = np.concatenate([peeked, logits_TW], axis=1)
            current.audit.extend(zip(tokens, peeked, strict=True))
            current.seconds = self._clock() - started_s
            return self._decode_audited(current, tokens[0])
        self._context.adopt(1)
        current.logits.extend(logits_TW[1:])
        current.seconds = self._clock() - started_s
        first_W: FloatArray = logits_TW[0]
        return first_W

    def _decode_audited(self, current: _Round, token: int) -> FloatArray:
        """Read one token alone and compare what it leaves with what the step had given."""
        started_s = self._clock()
        logits_W = self._context.decode(token)
        _, expected = current.audit.popleft()
        context = self._context
        last = left_behind(context.layer_state, context.position - 1, context.last_hidden[None])
        found = np.concatenate([last[0], logits_W])
        if not np.array_equal(found, expected):
            self._audit.record(current.drafts + 1, current.depth, is_equal=False)
            current.audit.clear()
        current.audit_s += self._clock() - started_s
        return logits_W
