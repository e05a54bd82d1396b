"""A JSON line: what a request may hold, and how much of it."""

from __future__ import annotations

import json
import math
from typing import Any

from shoal.graphs.errors import InputError
from shoal.graphs.strict_json import object_without_duplicates

OPTIONS = frozenset(
    {
        "max_new_tokens",
        *("temperature", "top_k", "top_p", "min_p", "seed"),
        *("presence_penalty", "frequency_penalty", "repetition_penalty", "logit_bias"),
        *("stop", "logprobs"),
    }
)
"""Keys of a request that are options of ``Model.generate``."""

MOST_STOPS = 16
LONGEST_STOP = 256
"""Characters of a stop text: each token of an answer is compared with all of them."""

MOST_LOGPROBS = 20
"""Tokens whose log-probabilities may be asked for at each place of an answer."""

LONGEST_ID = 256
"""Characters of an id, which is sent back."""

_LONGEST_INTEGER = 1000  # digits

_KEYS = OPTIONS | {"id", "prompt", "messages"}


def read_object(text: str) -> dict[str, Any]:
    """The object in a line.

    Raises:
        InputError: there is none, or a number in it is none that JSON has.
    """
    try:
        request = json.loads(
            text,
            object_pairs_hook=object_without_duplicates,
            parse_constant=_no_number,
            parse_float=_float,
            parse_int=_int,
        )
    except InputError:
        raise
    except (ValueError, RecursionError) as error:
        raise InputError(f'line: expected JSON such as {{"prompt": "Hello"}} ({error})') from error
    if not isinstance(request, dict):
        raise InputError('line: expected an object such as {"prompt": "Hello"}; send that')
    return request


def take_id(request: dict[str, Any]) -> str | int | float | None:
    """The id of a request, None if it has none.

    Raises:
        InputError: it is no text or number, or too long.
    """
    id_ = request.get("id")
    if id_ is None:
        return None
    if not isinstance(id_, str | int | float) or len(str(id_)) > LONGEST_ID:
        raise InputError(
            f"request: id must be a text or a number of at most {LONGEST_ID} characters; send a "
            "shorter one"
        )
    return id_


def check_request(request: dict[str, Any], most_new_tokens: int | None) -> None:
    """Refuse what can be said to be wrong before anything is computed.

    Args:
        request: the object.
        most_new_tokens: that it may ask for, None for no limit.

    Raises:
        InputError: there are unknown keys, both or none of prompt and messages, stop texts that are
            none, too long or too many, or too many new tokens or log-probabilities are asked for.
    """
    unknown = sorted(set(request) - _KEYS)
    if unknown:
        raise InputError(
            f"request: unknown key {unknown[0][:80]!a}; known are {', '.join(sorted(_KEYS))}"
        )
    if ("prompt" in request) == ("messages" in request):
        raise InputError("request: expected either prompt or messages; send one of the two")
    if "prompt" in request and not isinstance(request["prompt"], str):
        raise InputError("request: prompt must be a text; send one")
    if not request.get("prompt", "x"):
        raise InputError("request: expected a prompt, found an empty one; send text")
    _check_stops(request.get("stop", []))
    logprobs = request.get("logprobs", 0)
    if isinstance(logprobs, int) and logprobs > MOST_LOGPROBS:
        raise InputError(
            f"request: logprobs must be at most {MOST_LOGPROBS}, found "
            f"{json.dumps(logprobs)[:40]}; ask for fewer"
        )
    wanted = request.get("max_new_tokens", 0)
    is_number = isinstance(wanted, int)  # others are refused by the model, but for null: no limit
    if most_new_tokens is not None and (wanted is None or (is_number and wanted > most_new_tokens)):
        raise InputError(
            f"request: max_new_tokens must be at most {most_new_tokens} here, found "
            f"{json.dumps(wanted)}; ask for fewer"
        )


def _check_stops(stops: object) -> None:
    if not isinstance(stops, list) or not all(isinstance(text, str) and text for text in stops):
        raise InputError('request: stop must be a list of texts such as ["\\n"]; send that')
    if len(stops) > MOST_STOPS or any(len(text) > LONGEST_STOP for text in stops):
        raise InputError(
            f"request: stop must be at most {MOST_STOPS} texts of at most {LONGEST_STOP} "
            "characters; send fewer or shorter ones"
        )


def _no_number(name: str) -> object:
    raise InputError(f"line: expected JSON, which has no {name}; send a number or leave it out")


def _float(digits: str) -> float:
    number = float(digits)
    if not math.isfinite(number):
        raise _too_large(digits)
    return number


def _int(digits: str) -> int:
    if len(digits) > _LONGEST_INTEGER:
        raise _too_large(digits)
    return int(digits)


def _too_large(digits: str) -> InputError:
    return InputError(f"line: the number {digits[:20]}... is too large; send a smaller one")
