"""Bundles in EleutherAI's lm-evaluation-harness, as ``--model shoal``; no torch needed.

The harness knows only its own models, so this module is its command line with one more model:

    python -m shoal.runtime.lm_eval run --model shoal --model_args pretrained=build/tiny --tasks ...

In Python, ``import shoal.runtime.lm_eval`` is enough for ``simple_evaluate(model="shoal", ...)``.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model
from lm_eval.models.utils import normalize_gen_kwargs
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from tqdm import tqdm

from shoal.graphs.errors import InputError, ShoalError
from shoal.runtime.engine.token_ids import check_token
from shoal.runtime.evaluation.metrics import log_softmax
from shoal.runtime.evaluation.task_options import answer_options
from shoal.runtime.opening import open_bundle

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance

    from shoal.runtime.engine.session import Kernels
    from shoal.runtime.engine.step import FloatArray

_LOGITS_AT_ONCE = 64  # positions; a row of logits is half a megabyte for large vocabularies


@register_model("shoal")
class ShoalLM(TemplateLM):  # type: ignore[misc]
    """A bundle as the harness sees a model. Requests run one after another on all threads.

    The beginning that a request shares with the one before is not computed again, so requests run
    in the order of their tokens; answers come in the order of the requests.

    Args:
        pretrained: the bundle folder.
        threads: threads that compute; None for one per big core.
        kernels: "auto", "native" or "portable"; see ``open_bundle``.
        max_length: longest context in tokens; None for max_position_embeddings.
        max_gen_toks: most tokens of an answer, if the task does not say.
        prefix_token_id: what the first token of a text is conditioned on; None for the BOS token,
            or the EOS token if there is none.
        batch_size: without effect, as contexts run one at a time.
        max_batch_size: without effect.
        device: without effect; bundles run on the CPU.

    Raises:
        BundleError: see ``open_bundle``.
        InputError: ``max_length`` or ``prefix_token_id`` is out of range.
        RuntimeFailure: see ``open_bundle``.
    """

    def __init__(
        self,
        pretrained: str,
        *,
        threads: int | None = None,
        kernels: Kernels = "auto",
        max_length: int | None = None,
        max_gen_toks: int = 256,
        prefix_token_id: int | None = None,
        batch_size: int | str | None = None,
        max_batch_size: int | None = None,
        device: str | None = None,
    ) -> None:
        super().__init__()
        self.model = open_bundle(pretrained, threads=threads, kernels=kernels)
        info = self.model.manifest.model
        self.max_length = info.max_position_embeddings if max_length is None else max_length
        if not 1 <= self.max_length <= info.max_position_embeddings:
            raise InputError(
                f"max_length: expected 1 to {info.max_position_embeddings}, which the model can "
                f"read, found {max_length}"
            )
        self.max_gen_toks = max_gen_toks
        self._bos, self._eos = info.bos_token_id, info.eos_token_ids
        if prefix_token_id is not None:
            prefix_token_id = check_token(prefix_token_id, info.vocab_size)
        self._prefix = prefix_token_id
        self._context = self.model.new_context()

    @property
    def eot_token_id(self) -> int | None:
        """The token that ends a text; None if the model has none."""
        return self._eos[0] if self._eos else None

    @property
    def prefix_token_id(self) -> int:
        """What the first token of a text is conditioned on: the BOS token, else the EOS token.

        Raises:
            InputError: the model has neither, and no other token was chosen.
        """
        for token in (self._prefix, self._bos, self.eot_token_id):
            if token is not None:
                return token
        raise InputError(
            "prefix_token_id: the model has no BOS and no EOS token for a text to begin after; "
            "choose a token with --model_args prefix_token_id=ID"
        )

    @property
    def tokenizer_name(self) -> str:
        """Name by which the harness tells caches of requests apart."""
        return self.model.bundle_id

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **options: Any
    ) -> list[int]:
        """Token ids of a text.

        Args:
            string: the text.
            add_special_tokens: whether to add the BOS token; None adds it unless the text has it
                already, as text from a chat template may.
            options: of other tokenizers; ignored.
        """
        bare = self.model.encode(string, add_special_tokens=False)
        if add_special_tokens is False or (add_special_tokens is None and bare[:1] == [self._bos]):
            return bare
        return self.model.encode(string)

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """The text of a conversation, by the chat template."""
        return self.model.chat_text(chat_history, add_generation_prompt=add_generation_prompt)

    def loglikelihood_rolling(
        self, requests: list[Instance], disable_tqdm: bool = False
    ) -> list[float]:
        """Log-likelihood of whole texts, in nats.

        A text begins after the BOS token, or the EOS token if there is none. A text longer than the
        context is scored in windows, each token once; the last window is full.

        Args:
            requests: each with a text.
            disable_tqdm: whether to hide progress.
        """
        totals = []
        for request in tqdm(requests, desc="shoal: texts", disable=disable_tqdm):
            (text,) = request.args
            windows = get_rolling_token_windows(
                token_list=self.tok_encode(text, add_special_tokens=False),
                prefix_token=self.prefix_token_id,
                max_seq_len=self.max_length,
                context_len=1,
            )
            totals.append(sum(self._score(*make_disjoint_window(pair))[0] for pair in windows))
            self.cache_hook.add_partial("loglikelihood_rolling", (text,), totals[-1])
        return totals

    def _loglikelihood_tokens(
        self,
        requests: list[tuple[tuple[str, str], list[int], list[int]]],
        disable_tqdm: bool = False,
        **options: Any,
    ) -> list[tuple[float, bool]]:
        answers: list[tuple[float, bool]] = [(0.0, True)] * len(requests)
        order = sorted(range(len(requests)), key=lambda n: requests[n][1] + requests[n][2])
        for number in tqdm(order, desc="shoal: continuations", disable=disable_tqdm):
            texts, context_ids, ids = requests[number]
            answers[number] = self._score(context_ids, ids)
            self.cache_hook.add_partial("loglikelihood", texts, answers[number])
        return answers

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Answers to prompts.

        Args:
            requests: each with a prompt and options: ``until``, ``max_gen_toks``, ``do_sample``,
                those of sampling, penalties and ``logit_bias``.
            disable_tqdm: whether to hide progress.

        Raises:
            InputError: an option of any request is not one of a bundle, or out of range. Nothing
                has been computed.
        """
        options = [self._options(request.args[1]) for request in requests]
        prompts = [self.tok_encode(request.args[0]) for request in requests]
        answers = [""] * len(requests)
        for number in tqdm(
            sorted(range(len(requests)), key=prompts.__getitem__),
            desc="shoal: answers",
            disable=disable_tqdm,
        ):
            answers[number] = self._answer(prompts[number], options[number])
            self.cache_hook.add_partial("generate_until", requests[number].args, answers[number])
        return answers

    def _options(self, asked: dict[str, Any]) -> dict[str, Any]:
        """What ``Model.generate`` is to be given."""
        named = {name: value for name, value in asked.items() if value is not None}
        try:
            normal = dict(normalize_gen_kwargs(named, self.max_gen_toks))
        except (TypeError, ValueError, OverflowError) as error:
            raise InputError(
                f"generation_kwargs: expected numbers as temperature and max_gen_toks: {error}"
            ) from error
        options = answer_options(normal, self.model.manifest.model.vocab_size)
        if options["max_new_tokens"] >= self.max_length:
            raise InputError(
                f"max_gen_toks: expected less than the context of {self.max_length} tokens, found "
                f"{options['max_new_tokens']}"
            )
        return options

    def _answer(self, prompt: list[int], options: dict[str, Any]) -> str:
        room = self.max_length - options["max_new_tokens"]
        answer = self.model.generate(prompt[-room:], context=self._context, **options)
        return "".join(answer.pieces())

    def _score(self, context_ids: Sequence[int], ids: Sequence[int]) -> tuple[float, bool]:
        """Log-likelihood of ``ids`` after ``context_ids``; whether greedy decoding gives them."""
        if len(ids) > self.max_length:
            raise InputError(
                f"loglikelihood: expected at most {self.max_length} tokens, found {len(ids)}; "
                "shorten the text"
            )
        read = [*context_ids, *ids][-self.max_length - 1 : -1]
        total, is_greedy = 0.0, True
        for logits_TW, wanted_T in self._logits(read, ids):
            total += float(log_softmax(logits_TW)[np.arange(len(wanted_T)), wanted_T].sum())
            is_greedy &= bool((logits_TW.argmax(axis=1) == wanted_T).all())
        return total, is_greedy

    def _logits(
        self, read: list[int], ids: Sequence[int]
    ) -> Iterator[tuple[FloatArray, Sequence[int]]]:
        """Logits [T,W] at the positions before ``ids``, with these, a few at a time.

        Args:
            read: tokens to read; the last of ``ids`` would come after them.
            ids: as many tokens at the end.
        """
        context, first = self._context, len(read) - len(ids)
        context.rewind(min(context.common_prefix(read), first))
        if context.position < first:
            context.step(read[context.position : first], logits="none")
        for start in range(0, len(ids), _LOGITS_AT_ONCE):
            wanted = ids[start : start + _LOGITS_AT_ONCE]
            begin = first + start
            yield context.step(read[begin : begin + len(wanted)], logits="all").logits, wanted


def main() -> None:
    """The harness's command line."""
    from lm_eval.__main__ import cli_evaluate

    try:
        cli_evaluate()
    except ShoalError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
