"""Generation options of the harness's tasks: what a bundle can do of them, the rest refused."""

from __future__ import annotations

from typing import Any

from shoal.graphs.errors import InputError
from shoal.runtime.generate import GenerateOptions
from shoal.runtime.sampling.bias import check_ids, read_bias
from shoal.runtime.sampling.options import SamplingOptions

_SAMPLING = ("temperature", "top_k", "top_p", "min_p")
_ALWAYS = ("presence_penalty", "frequency_penalty", "repetition_penalty", "logit_bias")
_KNOWN = ("until", "max_gen_toks", "do_sample", *_SAMPLING, *_ALWAYS, "seed")

_WITHOUT_EFFECT: dict[str, tuple[Any, ...]] = {
    "num_beams": (1,),
    "num_beam_groups": (1,),
    "num_return_sequences": (1,),
    "n": (1,),
    "best_of": (1,),
    "early_stopping": (False,),
    "length_penalty": (1.0,),
    "diversity_penalty": (0.0,),
    "encoder_repetition_penalty": (1.0,),
    "no_repeat_ngram_size": (0,),
    "min_length": (0,),
    "min_new_tokens": (0,),
    "min_tokens": (0,),
    "typical_p": (1.0,),
    "epsilon_cutoff": (0.0,),
    "eta_cutoff": (0.0,),
    "guidance_scale": (1.0,),
    "ignore_eos": (False,),
    "renormalize_logits": (False,),
    "use_cache": (True, False),  # says how to compute an answer, not which
}
"""Values of other programs' options under which these do nothing; None is another, of all."""


def answer_options(asked: dict[str, Any], vocab_size: int) -> dict[str, Any]:
    """What ``Model.generate`` is to be given for one request.

    Everything is checked whether it is used or not: temperature, top_k, top_p, min_p and seed are
    not, unless the task samples. Penalties and bias change greedy answers too.

    Args:
        asked: as the harness's ``normalize_gen_kwargs`` returns them.
        vocab_size: of the model.

    Raises:
        InputError: an option that a bundle does not have, or a value out of range.
    """
    options = dict(asked)
    limit, do_sample = options.pop("max_gen_toks"), options.pop("do_sample")
    stop = _stop_texts(options.pop("until"))
    if not isinstance(do_sample, bool):
        raise InputError(f"do_sample: expected true or false, found {do_sample!r:.60}")
    sampling = {"temperature": 1.0} | {k: options.pop(k) for k in _SAMPLING if k in options}
    always = {k: options.pop(k) for k in _ALWAYS if k in options}
    seed = options.pop("seed", None)
    _refuse_others(options)
    # Its checks are what is wanted of it here.
    checked = SamplingOptions(**sampling, **always)
    GenerateOptions(max_new_tokens=limit, seed=seed, sampling=checked)
    check_ids(read_bias(checked.logit_bias), vocab_size)
    used = sampling | {"seed": seed} if do_sample else {}
    return {"max_new_tokens": limit, "stop": stop, **always, **used}


def _stop_texts(until: list[Any]) -> tuple[str, ...]:
    if not all(isinstance(text, str) for text in until):
        raise InputError(f"until: expected texts that end an answer, found {until!r:.60}")
    return tuple(text for text in until if text)


def _refuse_others(options: dict[str, Any]) -> None:
    unknown = [
        f"{name}={value!r:.40}"
        for name, value in sorted(options.items())
        if value not in _WITHOUT_EFFECT.get(name, ())
    ]
    if unknown:
        raise InputError(
            f"generation_kwargs: expected {', '.join(_KNOWN[:-1])} or {_KNOWN[-1]}, found "
            f"{', '.join(unknown[:8])}; leave these out"
        )
