from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from shoal.graphs.errors import RuntimeFailure
from shoal.runtime.commands import interactive
from shoal.runtime.commands.cli import main
from shoal.runtime.dialogue.dialogue import Dialogue


def piped(monkeypatch: pytest.MonkeyPatch, text: str | bytes) -> None:
    content = text.encode() if isinstance(text, str) else text
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content), encoding="utf-8"))


@pytest.fixture
def typed(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What the user types, a line or an exception an entry; then the end of input."""
    lines: list[Any] = []

    def type_line(prompt: str = "") -> str:
        line = lines.pop(0) if lines else EOFError()
        if isinstance(line, BaseException):
            raise line
        assert isinstance(line, str)
        return line

    monkeypatch.setattr("builtins.input", type_line)
    piped(monkeypatch, "")
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    return lines


def test_prompt_streams_text_to_stdout_and_speed_to_stderr(
    base_model: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", "b", "--prompt", "abc"]) == 0
    captured = capsys.readouterr()
    assert captured.out == "cba\n"
    assert "prompt: 3 tokens" in captured.err
    assert "new: 3 tokens" in captured.err
    assert "first token after" in captured.err


def test_sampling_options_reach_the_model(base_model: Any) -> None:
    argv = ["run", "b", "--prompt", "abc", "--temperature", "0.5", "--top-k", "3", "--top-p"]
    argv += ["0.9", "--min-p", "0.1", "--seed", "7", "--stop", "x", "--stop", "y"]
    argv += ["--draft", "auto", "--presence-penalty", "1", "--frequency-penalty", "-0.5"]
    argv += ["--repetition-penalty", "1.2", "--logit-bias", "5=-100", "--logit-bias", "6=1.5"]
    argv += ["--json", "--logprobs", "2"]
    assert main(argv) == 0
    expected: dict[str, Any] = {
        "temperature": 0.5,
        "top_k": 3,
        "top_p": 0.9,
        "min_p": 0.1,
        "seed": 7,
    }
    expected |= {"presence_penalty": 1.0, "frequency_penalty": -0.5, "repetition_penalty": 1.2}
    expected |= {"logit_bias": {5: -100.0, 6: 1.5}, "logprobs": 2}
    assert base_model.options == expected | {"stop": ("x", "y"), "draft": "auto"}


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--logit-bias", "5"], "expected ID=X such as 42=-1.5 with X from -100 to 100, found ''"),
        (["--logit-bias=-1=2"], "with X from -100 to 100, found '-1'"),
        (["--logit-bias", "5=nan"], "with X from -100 to 100, found 'nan'"),
        (["--presence-penalty", "inf"], "expected a number from -2 to 2, found 'inf'"),
        (["--repetition-penalty", "0"], "expected a number from 0.01 to 100, found '0'"),
        (["--logprobs", "21"], "expected a whole number from 0 to 20, found '21'"),
    ],
    ids=str,
)
def test_options_before_sampling_out_of_range_are_refused(
    argv: list[str], message: str, base_model: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", "b", "--prompt", "abc", *argv]) == 2
    assert message in capsys.readouterr().err


def test_log_probabilities_need_json(base_model: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "b", "--prompt", "abc", "--logprobs", "2"]) == 1
    assert "run --logprobs: only --json can show them" in capsys.readouterr().err


def test_decoding_is_greedy_by_default(base_model: Any) -> None:
    assert main(["run", "b", "--prompt", "abc"]) == 0
    assert base_model.options["temperature"] == 0.0
    assert base_model.options["seed"] is None


def test_json_is_the_only_thing_on_stdout(
    base_model: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", "b", "--prompt", "abc", "--json", "--max-new-tokens", "2"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["prompt"] == "abc"
    assert report["text"] == "cb"
    assert report["token_ids"] == [99, 98]
    assert report["finish_reason"] == "length"
    assert {"load_ms", "first_token_ms", "prompt_tokens_per_s", "new_tokens_per_s"} < set(report)


def test_prompt_is_read_from_a_pipe(
    base_model: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    piped(monkeypatch, "one\ntwo\n")
    assert main(["run", "b"]) == 0
    assert capsys.readouterr().out == "owt\neno\n"


def test_a_byte_order_mark_is_no_part_of_a_prompt(
    base_model: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(
        sys, "stdin", io.TextIOWrapper(io.BytesIO(b"\xef\xbb\xbfone\r\ntwo"), encoding="utf-8")
    )
    assert main(["run", "b"]) == 0
    assert capsys.readouterr().out == "owt\neno\n"
    assert main(["run", "b", "--prompt", "\ufeffabc"]) == 0
    assert capsys.readouterr().out == "cba\n"


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (
            b"x" * ((16 << 20) + 1),
            "error: stdin: expected a prompt of at most 16777216 bytes, found more; shorten it\n",
        ),
        (b"", "error: stdin: expected a prompt, found nothing; give --prompt TEXT\n"),
        (b"\xff\xfe", "error: stdin: expected UTF-8 text, found other bytes; convert it\n"),
    ],
)
def test_bad_piped_prompt_is_one_line(
    content: bytes,
    line: str,
    base_model: Any,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    piped(monkeypatch, content)
    assert main(["run", "b"]) == 1
    assert capsys.readouterr().err == line


@pytest.mark.parametrize(("form", "text"), [([], "u:hi;a:"), (["--raw"], "hi")])
def test_chat_template_is_used_when_there_is_one_unless_raw(
    form: list[str], text: str, chat_model: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", "b", "--prompt", "hi", *form]) == 0
    assert capsys.readouterr().out == text[::-1] + "\n"


def test_system_message_comes_first(chat_model: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "b", "--prompt", "hi", "--system", "be"]) == 0
    assert capsys.readouterr().out == "s:be;u:hi;a:"[::-1] + "\n"


@pytest.mark.parametrize("option", [["--chat"], ["--system", "be"]])
def test_chat_options_are_refused_for_a_base_model(
    option: list[str], base_model: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", "b", "--prompt", "hi", *option]) == 1
    err = capsys.readouterr().err
    assert err.startswith(f"error: b: {option[0]} needs a chat")
    assert err.count("\n") == 1


def test_ctrl_c_ends_a_single_answer_with_130(
    base_model: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    base_model.interrupt_at = 2
    assert main(["run", "b", "--prompt", "abc"]) == 130
    captured = capsys.readouterr()
    assert captured.out == "cb\n"
    assert captured.err.endswith("stopped\n")


def test_dialogue_keeps_history_in_the_context(
    chat_model: Any, typed: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    typed += ["hi", "again", "/exit"]
    assert main(["run", "b", "--max-new-tokens", "3"]) == 0
    first, second = chat_model.generations
    assert second.prompt_tokens == len("u:hi;a::a;;u:again;a:")
    assert second.reused_tokens == len("u:hi;a:") + 2  # all but the last token of the answer
    assert first.reused_tokens == 0
    assert len(chat_model.contexts) == 1
    assert capsys.readouterr().out == ":a;\n:a;\n"


def test_ctrl_c_stops_the_answer_not_the_dialogue(
    chat_model: Any, typed: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    chat_model.interrupt_at = 2
    typed += ["hi", KeyboardInterrupt(), "more"]
    assert main(["run", "b"]) == 0
    captured = capsys.readouterr()
    assert captured.out == ":a\n:a\n"
    assert "ended by Ctrl-C" in captured.err
    assert "".join(map(chr, chat_model.generations[1]._ids)) == "u:hi;a::a;u:more;a:"


def test_reset_forgets(chat_model: Any, typed: list[Any]) -> None:
    typed += ["hi", "/reset", "hi"]
    assert main(["run", "b"]) == 0
    assert [generation.reused_tokens for generation in chat_model.generations] == [0, 0]
    assert len(chat_model.contexts) == 2


def test_multi_line_turns_are_one_turn(chat_model: Any, typed: list[Any]) -> None:
    typed += ["a\\", "b", '"""', "c", "", "/d", '"""']
    assert main(["run", "b"]) == 0
    prompts = ["".join(map(chr, generation._ids)) for generation in chat_model.generations]
    assert prompts[0] == "u:a\nb;a:"
    assert prompts[1].endswith("u:c\n\n/d;a:")


def test_too_long_turn_is_reported_and_forgotten(
    chat_model: Any, typed: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    typed += ["x" * 200, "hi"]
    assert main(["run", "b"]) == 0
    captured = capsys.readouterr()
    assert "error: context: expected at most 100 tokens" in captured.err
    assert "(/reset starts over)" in captured.err
    assert captured.out == "u:hi;a:"[::-1] + "\n"


def test_a_turn_that_cannot_be_kept_in_the_session_is_forgotten(chat_model: Any) -> None:
    class FullDisk:
        path = Path("a.session")

        def save(self, context: object, note: dict[str, Any]) -> None:
            raise RuntimeFailure("a.session: the context could not be written; free disk space")

    options = {"max_new_tokens": 3}
    dialogue = Dialogue(chat_model, options, chat=True, session=FullDisk())  # type: ignore[arg-type]
    with pytest.raises(RuntimeFailure, match="free disk space"):
        dialogue.answer("hi", lambda piece: None)
    assert dialogue.messages == []


def test_base_model_says_once_that_it_continues_text(
    base_model: Any, typed: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    typed += ["", "ab", "", "/nonsense", "/help"]
    assert main(["run", "b"]) == 0
    captured = capsys.readouterr()
    assert captured.err.count("continues your text instead of answering") == 1
    assert "/nonsense: no such command" in captured.err
    assert "/reset" in captured.err
    assert captured.out == "ba\nabba\n"  # the empty line lets "abba"'s first half go on


def test_json_needs_a_prompt(
    base_model: Any, typed: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", "b", "--json"]) == 1
    assert "give --prompt TEXT" in capsys.readouterr().err


def test_read_turn_ends_at_end_of_input(typed: list[Any]) -> None:
    assert interactive.read_turn() is None
