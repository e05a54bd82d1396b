"""``shoal run --loop`` and ``--listen`` as their users meet them: processes, sockets, signals."""

from __future__ import annotations

import json
import os
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.graphs.errors import InputError
from shoal.runtime.bundle import Bundle
from shoal.runtime.commands.cli import main
from shoal.runtime.model import Model
from shoal.runtime.opening import open_bundle
from shoal.runtime.server import connections, listener
from shoal.runtime.server import loop as service
from shoal.runtime.server.line_buffer import LineBuffer
from shoal.runtime.server.line_requests import LONGEST_LINE_BYTES
from shoal.runtime.server.listener import listen
from shoal.runtime.units import format_bytes

PROMPT = "It is a truth"
Server = Callable[..., "Running"]


class Running:
    """A ``shoal run`` process that has said it is ready."""

    def __init__(self, *arguments: str, **environment: str) -> None:
        self.process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "shoal.runtime.commands.cli",
                "run",
                *arguments,
                "--threads",
                "1",
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=os.environ | environment,
        )
        self.ready = self.read_error_line()

    def read_error_line(self) -> str:
        assert self.process.stderr is not None
        return self.process.stderr.readline().decode()

    def connect(self) -> socket.socket:
        where = self.ready.split()[-1]
        if "/" in where:
            client = socket.socket(socket.AF_UNIX)
            client.connect(where)
        else:
            host, _, port = where.rpartition(":")
            client = socket.create_connection((host, int(port)))
        client.settimeout(120)
        return client

    def cpu_s(self) -> float:
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def end(self) -> tuple[int, str]:
        """Send SIGTERM; returns the exit status and the rest of stderr."""
        self.process.send_signal(signal.SIGTERM)
        _, err = self.process.communicate(timeout=120)
        return self.process.returncode, err.decode()


@pytest.fixture(scope="module")
def plain(int8_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    path = tmp_path_factory.mktemp("s") / "shoal.sock"
    running = Running(str(int8_bundle), "--listen", str(path), "--max-new-tokens", "5")
    yield running
    assert running.end()[0] == 0


@pytest.fixture(scope="module")
def in_json(int8_bundle: Path) -> Iterator[Running]:
    arguments = ["--json", "--listen", "127.0.0.1:0", "--cap-new-tokens", "1500"]
    running = Running(str(int8_bundle), *arguments)
    yield running
    assert running.end()[0] == 0


@pytest.fixture(scope="module")
def model(int8_bundle: Path) -> Model:
    return open_bundle(int8_bundle, threads=1)


def continued(model: Model, prompt: str, count: int = 5) -> str:
    return "".join(model.generate(model.encode(prompt), max_new_tokens=count).pieces())


def read_until(client: socket.socket, end: bytes) -> bytes:
    data = b""
    while not data.endswith(end):
        part = client.recv(4096)
        assert part, f"the connection ended after {data!r}"
        data += part
    return data.removesuffix(end)


def ask(client: socket.socket, line: bytes) -> str:
    client.sendall(line + b"\n")
    return read_until(client, b"\n\0").decode()


def ask_json(client: socket.socket, request: Any) -> dict[str, Any]:
    client.sendall(json.dumps(request).encode() + b"\n")
    reply: dict[str, Any] = json.loads(read_until(client, b"\n"))
    return reply


def test_clients_that_stay_connected_are_answered_in_turn(plain: Running, model: Model) -> None:
    expected = {prompt: continued(model, prompt) for prompt in (PROMPT, "And God said")}
    with plain.connect() as first, plain.connect() as second, plain.connect():
        for _ in range(2):
            for client in (first, second):
                for prompt, text in expected.items():
                    assert ask(client, prompt.encode()) == text


def test_lines_sent_at_once_are_answered_in_order(plain: Running, model: Model) -> None:
    with plain.connect() as client:
        client.sendall(b"And God said\nIt is a truth\r\n")
        answers = b""
        while answers.count(b"\n\0") < 2:  # they may come in one piece
            part = client.recv(4096)
            assert part, f"the connection ended after {answers!r}"
            answers += part
    expected = [continued(model, prompt) + "\n\0" for prompt in ("And God said", PROMPT)]
    assert answers.decode() == "".join(expected)


def test_a_last_line_without_an_end_is_answered_before_the_connection_ends(
    plain: Running, model: Model
) -> None:
    with plain.connect() as client:
        client.sendall(PROMPT.encode())
        client.shutdown(socket.SHUT_WR)
        assert read_until(client, b"\n\0").decode() == continued(model, PROMPT)
        assert client.recv(10) == b""


@pytest.mark.parametrize(
    ("line", "error"),
    [
        (b"", "error: line: expected a prompt, found nothing; send text"),
        (b"  \r", "error: line: expected a prompt, found nothing; send text"),
        (b"\xff\xfe", "error: line: expected UTF-8 text, found other bytes; convert it"),
        (b"x " * 5000, "error: context: 10001 tokens are more than the model's 2048"),
        (b"x" * (LONGEST_LINE_BYTES + 1), f"error: line: expected at most {LONGEST_LINE_BYTES} "),
    ],
    ids=["empty", "blank", "bytes", "too many tokens", "too long"],
)
def test_a_line_that_cannot_be_answered_gets_an_error_and_the_next_an_answer(
    line: bytes, error: str, plain: Running, model: Model
) -> None:
    with plain.connect() as client:
        assert ask(client, line).startswith(error)
        assert ask(client, PROMPT.encode()) == continued(model, PROMPT)


def test_a_request_may_ask_for_penalties_bias_and_log_probabilities(
    in_json: Running, model: Model
) -> None:
    options: dict[str, Any] = {
        "max_new_tokens": 12,
        "temperature": 1.0,
        "seed": 4,
        "repetition_penalty": 1.2,
        "presence_penalty": 0.5,
        "logit_bias": {"70": 4.0},
        "logprobs": 2,
    }
    generation = model.generate(model.encode(PROMPT), **options)
    tokens = list(generation)
    assert generation.logprobs is not None
    expected = [
        {
            "token_id": found.token,
            "bytes": list(model.token_bytes(found.token)),
            "logprob": found.logprob,
            "top_logprobs": [
                {"token_id": token, "bytes": list(model.token_bytes(token)), "logprob": logprob}
                for token, logprob in found.top
            ],
        }
        for found in generation.logprobs
    ]
    with in_json.connect() as client:
        reply = ask_json(client, {"prompt": PROMPT} | options)
        assert reply["token_ids"] == tokens
        assert reply["logprobs"] == expected
        spelled = bytes(byte for found in reply["logprobs"] for byte in found["bytes"])
        assert spelled.decode(errors="replace").strip() == reply["text"].strip()
        assert "logprobs" not in ask_json(client, {"prompt": PROMPT, "max_new_tokens": 1})


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"logit_bias": {"4096": 1}}, "logit_bias: token id 4096 is outside the vocabulary of"),
        ({"logit_bias": {"x": 1}}, "logit_bias must have token ids as keys, found 'x'"),
        ({"logit_bias": {"5": "1"}}, "logit_bias of token 5 must be a number in -100..100"),
        ({"logit_bias": [5]}, "logit_bias must be numbers by token id"),
        ({"presence_penalty": 1e300}, "presence_penalty must be a number in -2..2, found 1e+300"),
        ({"frequency_penalty": None}, "frequency_penalty must be a number in -2..2, found None"),
        ({"repetition_penalty": "2"}, "repetition_penalty must be a number in 0.01..100"),
        ({"logprobs": True}, "logprobs must be an integer of at least 0 or None, found True"),
        ({"logprobs": -1}, "logprobs must be an integer of at least 0 or None, found -1"),
        ({"allowed": [1]}, "request: unknown key 'allowed'"),
    ],
    ids=str,
)
def test_what_no_sampler_can_do_is_answered_with_an_error(
    options: dict[str, Any], error: str, in_json: Running
) -> None:
    with in_json.connect() as client:
        reply = ask_json(client, {"id": 3, "prompt": PROMPT} | options)
    assert reply["id"] == 3
    assert reply["error"].startswith(error)


def test_a_byte_order_mark_is_no_part_of_a_json_line(in_json: Running, model: Model) -> None:
    request = {"prompt": PROMPT, "max_new_tokens": 3}
    with in_json.connect() as client:
        client.sendall(b"\xef\xbb\xbf" + json.dumps(request).encode() + b"\n")
        reply = json.loads(read_until(client, b"\n"))
        assert reply["text"] == continued(model, PROMPT, 3)


def test_json_requests_set_options_and_get_their_id_back(in_json: Running, model: Model) -> None:
    with in_json.connect() as client:
        reply = ask_json(client, {"id": "a7", "prompt": PROMPT, "max_new_tokens": 3})
        assert (reply["id"], reply["text"]) == ("a7", continued(model, PROMPT, 3))
        assert (reply["finish_reason"], reply["new_tokens"]) == ("length", 3)
        reply = ask_json(client, {"prompt": PROMPT, "max_new_tokens": 9, "stop": ["a", "e", " "]})
        assert reply["finish_reason"] == "stop_string"


@pytest.mark.parametrize(
    ("request_", "error"),
    [
        ([], "line: expected an object"),
        ({}, "request: expected either prompt or messages"),
        ({"prompt": "x", "messages": []}, "request: expected either prompt or messages"),
        ({"prompt": 7}, "request: prompt must be a text"),
        ({"prompt": ""}, "request: expected a prompt, found an empty one"),
        ({"prompt": "\ud800"}, "text"),
        ({"prompt": "x", "max_tokens": 4}, "request: unknown key 'max_tokens'"),
        ({"prompt": "x", "max_new_tokens": "4"}, "max_new_tokens must be an integer"),
        ({"prompt": "x", "temperature": -1}, "temperature must be a number"),
        ({"prompt": "x", "temperature": 10**400}, "temperature must be a number"),
        ({"prompt": "x", "max_new_tokens": 1501}, "at most 1500 here, found 1501; ask for fewer"),
        ({"prompt": "x", "max_new_tokens": None}, "at most 1500 here, found null; ask for fewer"),
        ({"prompt": "x", "stop": "."}, "request: stop must be a list of texts"),
        ({"messages": [{"role": "user", "content": "x"}]}, "without a chat template"),
    ],
)
def test_json_errors_are_answers_too(request_: Any, error: str, in_json: Running) -> None:
    with in_json.connect() as client:
        reply = ask_json(client, {"id": 1} | request_ if isinstance(request_, dict) else request_)
        assert error in reply["error"]
        assert "\n" not in reply["error"]
        assert isinstance(request_, list) or reply["id"] == 1
        client.sendall(b'{"prompt": \n')
        assert "expected JSON" in json.loads(read_until(client, b"\n"))["error"]


def test_an_answer_ends_when_its_client_goes_and_others_are_served(
    int8_bundle: Path, tmp_path: Path, model: Model
) -> None:
    path = tmp_path / "s"
    running = Running(str(int8_bundle), "--listen", str(path), "--max-new-tokens", "1500")
    with running.connect() as client:
        client.sendall(PROMPT.encode() + b"\n")
        client.recv(1)  # the answer has begun
    with running.connect() as client:
        client.sendall(b"And God said\n")
        begun = client.recv(1)
        assert continued(model, "And God said").encode().startswith(begun)
        status, err = running.end()
    assert status == 0
    assert "new: " not in err, "no answer was finished"
    assert err.splitlines()[-1] == "stopped"
    assert not path.exists()


def test_a_client_that_goes_before_its_json_answer_stops_it(
    int8_bundle: Path, tmp_path: Path
) -> None:
    running = Running(str(int8_bundle), "--json", "--listen", str(tmp_path / "s"))
    with running.connect() as client:
        client.sendall(b'{"prompt": "x", "max_new_tokens": 1500}\n')
    with running.connect() as client:
        assert ask_json(client, {"prompt": "x", "max_new_tokens": 2})["new_tokens"] == 2
    status, err = running.end()
    assert status == 0
    assert err.count("new: ") == 1


def test_sigterm_ends_an_idle_service_which_told_the_manager_about_itself(
    int8_bundle: Path, tmp_path: Path
) -> None:
    path = tmp_path / "shoal.sock"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(120)
        running = Running(
            str(int8_bundle), "--listen", str(path), NOTIFY_SOCKET=str(tmp_path / "notify")
        )
        assert manager.recv(100) == b"READY=1"
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, "for this user only"
        assert running.end() == (0, "stopped\n")
        assert manager.recv(100) == b"STOPPING=1"
    assert not path.exists()


def test_a_socket_left_by_a_killed_process_is_taken_over(int8_bundle: Path, tmp_path: Path) -> None:
    path = tmp_path / "s"
    killed = Running(str(int8_bundle), "--listen", str(path))
    with pytest.raises(InputError, match="another process listens there"), listen(str(path)):
        pass
    killed.process.kill()
    killed.process.communicate(timeout=60)
    assert path.exists()
    with listen(str(path)) as server:
        assert server.getsockname() == str(path)
    assert not path.exists()


def test_clients_beyond_the_most_wait_until_one_leaves(plain: Running, model: Model) -> None:
    clients = [plain.connect() for _ in range(connections.MOST_CLIENTS + 1)]
    for client in clients[:-1]:
        assert ask(client, PROMPT.encode()) == continued(model, PROMPT)
    last = clients.pop()
    last.sendall(b"And God said\n")
    last.settimeout(0.2)
    with pytest.raises(TimeoutError):
        last.recv(1)
    for client in clients:
        client.close()
    last.settimeout(120)
    assert read_until(last, b"\n\0").decode() == continued(model, "And God said")
    last.close()


def test_waiting_costs_no_processor_time(plain: Running) -> None:
    with plain.connect() as client:
        ask(client, PROMPT.encode())
        before = plain.cpu_s()
        time.sleep(1)
        # The clock of /proc has ticks of 10 ms; a spinning thread would use up to a second.
        assert plain.cpu_s() - before <= 0.02


@pytest.mark.parametrize(
    ("address", "error"),
    [
        ("0.0.0.0:0", "only loopback addresses"),
        ("shoal.sock", "expected a path such as ./shoal.sock or 127.0.0.1:PORT"),
        ("localhost:http", "expected a path"),
        ("127.0.0.1:70000", "expected a path"),
        ("127.0.0.1:" + "1" * 5000, "expected a path"),
        ("127.0.0.1:\N{ARABIC-INDIC DIGIT EIGHT}080", "expected a path"),
        ("x" * 70 + ".localhost:80", "there is no such host; give a path"),
        ("nowhere.invalid:80", "; choose a path such as"),
        ("/nowhere/at/all", "No such file or directory; make the folder"),
        ("/tmp/" + "x" * 200, "path too long; choose a shorter path"),
    ],
)
def test_addresses_that_will_not_do_are_refused(address: str, error: str) -> None:
    with pytest.raises(InputError, match=error), listen(address):
        pass


def test_a_file_is_never_replaced_by_a_socket(tmp_path: Path) -> None:
    (tmp_path / "notes").write_text("mine")
    address = str(tmp_path / "notes")
    with pytest.raises(InputError, match="there is a file of this name"), listen(address):
        pass
    assert (tmp_path / "notes").read_text() == "mine"


def test_a_socket_that_may_have_a_listener_is_not_taken_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other:
        other.bind(str(path))
        with pytest.raises(InputError, match="another process listens there"), listen(str(path)):
            pass
        assert path.is_socket()
    with listen(str(tmp_path / "t")):

        def connect(probe: object, address: str) -> None:
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr(socket.socket, "connect", connect)
        with pytest.raises(InputError, match="Permission denied"), listen(str(tmp_path / "t")):
            pass
        assert (tmp_path / "t").is_socket(), "another user's, who listens"


def test_a_socket_that_is_not_let_in_at_once_is_not_taken_over(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as busy, socket.socket(socket.AF_UNIX) as client:
        busy.bind(str(path))
        busy.listen(0)
        client.connect(str(path))  # the one who may wait
        with pytest.raises(InputError, match="another process listens there"), listen(str(path)):
            pass


def test_a_socket_of_another_process_is_left_when_a_service_ends(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with listen(str(path)), socket.socket(socket.AF_UNIX) as other:
        path.unlink()
        other.bind(str(path))
    assert path.is_socket()


def test_a_port_in_use_is_refused() -> None:
    with listen("127.0.0.1:0") as server:
        address = listener.address_of(server)
        advice = f"--listen {address}: .*; end it or choose another address"
        with pytest.raises(InputError, match=advice), listen(address):
            pass


def run_lines(*arguments: str, lines: bytes) -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-m", "shoal.runtime.commands.cli", "run", *arguments]
    return subprocess.run(command, input=lines, capture_output=True, check=False, timeout=120)


def test_lines_of_stdin_are_answered_until_it_ends(int8_bundle: Path, model: Model) -> None:
    long = b"x" * (LONGEST_LINE_BYTES + 5)
    lines = b"\xef\xbb\xbf" + PROMPT.encode() + b"\n" + long + b"\nAnd God said"
    done = run_lines(str(int8_bundle), "--loop", "--max-new-tokens", "5", lines=lines)
    first, second, third, rest = done.stdout.decode().split("\n\0")
    assert (first, third) == (continued(model, PROMPT), continued(model, "And God said"))
    assert second.startswith("error: line: expected at most")
    assert (rest, done.returncode) == ("", 0)


def test_with_a_session_each_line_goes_on_with_the_last(
    int8_bundle: Path, tmp_path: Path, model: Model
) -> None:
    session = ["--session", str(tmp_path / "d")]
    arguments = [str(int8_bundle), "--loop", "--max-new-tokens", "5", *session]
    done = run_lines(*arguments, lines=b"And God said\n and then\n")
    first, second, _ = done.stdout.decode().split("\n\0")
    ids = model.encode("And God said")
    ids += list(model.generate(ids, max_new_tokens=5))
    assert first == continued(model, "And God said")
    ids += model.encode(" and then", add_special_tokens=False)
    assert second == "".join(model.generate(ids, max_new_tokens=5).pieces())


def test_a_full_session_says_how_to_start_anew(int8_bundle: Path, tmp_path: Path) -> None:
    arguments = ["--loop", "--session", str(tmp_path / "d"), "--max-context", "20"]
    done = run_lines(str(int8_bundle), *arguments, lines=b"And God said\n" * 4)
    *_, last, _ = done.stdout.decode().split("\n\0")
    assert last.startswith(f"error: {tmp_path / 'd'}: the dialogue and this turn take ")
    assert "remove the file (or name another with --session) to start anew" in last
    log = done.stderr.decode().splitlines()
    assert log[1].startswith("[request 1: prompt: ")
    assert log[-1] == "[request 4: refused]"


def test_a_session_in_use_is_refused(
    int8_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    session = ["--session", str(tmp_path / "d")]
    running = Running(str(int8_bundle), "--loop", *session)
    assert main(["run", str(int8_bundle), "--threads", "1", "--prompt", "x", *session]) == 1
    error = f"error: {tmp_path / 'd'}: another process has this session open; end that or name "
    assert capsys.readouterr().err.startswith(error)
    assert running.end() == (0, "stopped\n")
    assert not (tmp_path / "d").exists(), "nothing was said"


def test_sigterm_ends_a_service_whose_answers_nobody_reads(int8_bundle: Path) -> None:
    running = Running(str(int8_bundle), "--loop")
    assert running.process.stdin is not None
    running.process.stdin.write(b"\n" * 1500)
    running.process.stdin.flush()
    time.sleep(0.5)  # more than the pipe holds has been answered
    running.process.send_signal(signal.SIGTERM)
    assert running.process.wait(5) == 0
    running.process.communicate()


def test_a_prompt_and_a_loop_exclude_each_other(int8_bundle: Path) -> None:
    done = run_lines(str(int8_bundle), "--loop", "--prompt", "x", lines=b"")
    assert done.returncode == 1
    assert done.stderr.startswith(b"error: run --loop: expected prompts line by line")


def test_a_cap_is_for_services(int8_bundle: Path) -> None:
    done = run_lines(str(int8_bundle), "--cap-new-tokens", "3", lines=b"hello")
    assert done.returncode == 1
    assert (
        done.stderr
        == b"error: run --cap-new-tokens: expected --loop or --listen; give one of them\n"
    )


def test_verbose_says_what_runs(int8_bundle: Path) -> None:
    arguments = [str(int8_bundle), "-v", "--prompt", "x", "--max-new-tokens", "3"]
    err = run_lines(*arguments, "--kernels", "portable", lines=b"").stderr.decode()
    for text in (
        "[opened in ",
        f"{format_bytes(Bundle.open(int8_bundle).manifest.token_read_bytes)} read per token",
        "[portable kernels: Embedding, Linear, LatentAttention, ",
        "[threads: ",
        "[latent cache: float32, 3.2 kB per token, contexts of up to 2048 tokens]",
        "new: 3 tokens",
    ):
        assert text in err
    assert err.count("[memory: ") == 2
    native = run_lines(*arguments, "--kernels", "native", lines=b"").stderr.decode()
    assert "[native kernels (" in native
    assert "[portable kernels: Embedding, Route" in native


def test_an_absent_service_manager_is_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "nobody"))
    with pytest.warns(RuntimeWarning, match="NOTIFY_SOCKET .*: No such file"):
        service.notify("READY=1")


@given(
    lines=st.lists(st.binary(max_size=6).map(lambda line: line.replace(b"\n", b"").rstrip(b"\r"))),
    size=st.integers(1, 9),
)
def test_lines_are_the_same_however_they_arrive(lines: list[bytes], size: int) -> None:
    buffer, found = LineBuffer(), []
    data = b"\n".join(lines)
    for start in range(0, len(data), size):
        buffer.feed(data[start : start + size])
    buffer.finish()
    while buffer.has_line:
        found.append(buffer.take())
    assert found == (lines if lines and lines[-1] else lines[:-1])


@pytest.mark.parametrize("size", [1000, LONGEST_LINE_BYTES + 10])
def test_only_a_line_that_is_too_long_is_dropped(size: int) -> None:
    buffer, found = LineBuffer(), []
    longest = b"a" * LONGEST_LINE_BYTES
    data = longest + b"\r\nb\n" + longest + b"a\nc\n"
    for start in range(0, len(data), size):
        buffer.feed(data[start : start + size])
    while buffer.has_line:
        found.append(buffer.take())
    assert found == [longest, b"b", None, b"c"]
