"""A process that computes ends soon after SIGTERM, whatever its threads do."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from onnx import TensorProto, helper, save

PREAMBLE = """
import hashlib, os, signal, sys, threading, time
from pathlib import Path
import numpy as np
from shoal.runtime.engine.session import GraphSession, SessionSettings
from shoal.runtime.server.termination import Terminated, raised_on_sigterm

def come(*delays_s):
    def send():
        for delay_s in delays_s:
            time.sleep(delay_s)
            os.kill(os.getpid(), signal.SIGTERM)
    threading.Thread(target=send, daemon=True).start()
"""


def python(program: str, *arguments: str) -> tuple[subprocess.CompletedProcess[str], float]:
    start = time.monotonic()
    process = subprocess.run(
        [sys.executable, "-c", PREAMBLE + program, *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    return process, time.monotonic() - start


@pytest.fixture
def endless_graph(tmp_path: Path) -> Path:
    """y = x + 1 + 1 + ... for years."""
    scalar = [
        helper.make_tensor_value_info("i", TensorProto.INT64, []),
        helper.make_tensor_value_info("more", TensorProto.BOOL, []),
        helper.make_tensor_value_info("a", TensorProto.FLOAT, [1]),
    ]
    more = helper.make_tensor_value_info("still", TensorProto.BOOL, [])
    total = helper.make_tensor_value_info("b", TensorProto.FLOAT, [1])
    one = helper.make_tensor("one", TensorProto.FLOAT, [1], [1.0])
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["more"], ["still"]),
            helper.make_node("Add", ["a", "one"], ["b"]),
        ],
        "body",
        scalar,
        [more, total],
        [one],
    )
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xy")
    turns = helper.make_tensor("turns", TensorProto.INT64, [], [2**62])
    on = helper.make_tensor("on", TensorProto.BOOL, [], [True])
    loop = helper.make_node("Loop", ["turns", "on", "x"], ["y"], body=body)
    graph = helper.make_graph([loop], "g", [x], [y], [turns, on])
    opset = [helper.make_opsetid("", 24)]
    save(helper.make_model(graph, opset_imports=opset, ir_version=10), tmp_path / "g.onnx")
    return tmp_path / "g.onnx"


def test_a_graph_that_runs_is_interrupted(endless_graph: Path) -> None:
    program = """
settings = SessionSettings(threads=2, kernels="portable")
binding = GraphSession(Path(sys.argv[1]), settings).new_binding()
binding.bind_input("x", np.zeros(1, np.float32))
binding.bind_output("y", np.zeros(1, np.float32))
try:
    with raised_on_sigterm(grace_s=60):
        come(0.2)
        binding.run()
except Terminated:
    print("terminated")
"""
    process, _ = python(program, str(endless_graph))
    assert (process.returncode, process.stdout, process.stderr) == (0, "terminated\n", "")


def test_what_cannot_be_interrupted_is_ended_by_force() -> None:
    program = """
with raised_on_sigterm(grace_s=0.2):
    come(0.1)
    hashlib.pbkdf2_hmac("sha256", b"", b"", 2**31 - 1)  # no signal handler before its end
"""
    process, seconds = python(program)
    assert process.returncode == 1
    assert process.stderr == "error: still busy 0 s after SIGTERM; ended by force\n"
    assert seconds < 60


def test_messages_that_nobody_reads_are_no_reason_to_stay() -> None:
    program = """
with raised_on_sigterm(grace_s=0.2):
    come(0.1)
    try:
        sys.stderr.write("x" * (1 << 20))
    except Terminated:
        sys.stderr.write("stopped")
"""
    command = [sys.executable, "-c", PREAMBLE + program]
    with subprocess.Popen(command, stderr=subprocess.PIPE) as process:
        assert process.wait(60) == 1


def test_only_the_first_signal_counts() -> None:
    program = """
try:
    with raised_on_sigterm():
        try:
            come(0, 0.1, 0.1)
            time.sleep(30)
        finally:
            time.sleep(0.4)  # what has to be closed
            print("closed")
except Terminated:
    os.kill(os.getpid(), signal.SIGTERM)
    print("terminated")
"""
    process, _ = python(program)
    assert (process.returncode, process.stdout) == (0, "closed\nterminated\n")


def test_a_block_that_ends_by_itself_leaves_signals_as_they_were() -> None:
    program = """
with raised_on_sigterm():
    pass
assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
assert signal.set_wakeup_fd(-1) == -1
assert [thread.name for thread in threading.enumerate()] == ["MainThread"]
"""
    assert python(program)[0].returncode == 0


@pytest.mark.skipif(not hasattr(os, "fork"), reason="a system without fork")
@pytest.mark.parametrize("threads", [1, 2])
def test_a_forked_process_runs_what_has_no_threads_and_refuses_the_rest(
    int8_bundle: Path, threads: int
) -> None:
    program = """
import warnings
from shoal.graphs.errors import RuntimeFailure
from shoal.runtime import open_bundle

warnings.simplefilter("ignore")  # of Python: forking with threads
model = open_bundle(sys.argv[1], threads=int(sys.argv[2]), kernels="portable")
expected = model.logits([5, 6, 7])
child = os.fork()
if child == 0:
    try:
        os._exit(10 if (model.logits([5, 6, 7]) == expected).all() else 11)
    except RuntimeFailure as error:
        print(error, flush=True)
        os._exit(12)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    process, _ = python(program, str(int8_bundle), str(threads))
    assert process.returncode == (10 if threads == 1 else 12), process.stderr
    assert ("open the bundle after the fork" in process.stdout) == (threads == 2)
