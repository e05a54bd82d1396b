from __future__ import annotations

import dataclasses
import operator
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.graphs.errors import InputError, RuntimeFailure
from shoal.graphs.manifest import Manifest, ModelInfo, TensorInfo
from shoal.runtime.bundle import Bundle
from shoal.runtime.commands.cli import main
from shoal.runtime.engine import fit
from shoal.runtime.engine.fit import find_room
from shoal.runtime.engine.need import Form, Need, bundle_need
from shoal.runtime.engine.session import Kernels
from shoal.runtime.kernels.library import KernelLibrary, find_library
from shoal.runtime.machine.memory import Memory, ResidentMemory
from shoal.runtime.opening import open_bundle

MODEL = ModelInfo(
    model_type="deepseek_v3",
    vocab_size=1000,
    hidden_size=64,
    num_hidden_layers=2,
    num_attention_heads=4,
    kv_lora_rank=48,
    qk_nope_head_dim=16,
    qk_rope_head_dim=16,
    v_head_dim=16,
    max_position_embeddings=100_000,
    moe_layers=(1,),
    n_routed_experts=8,
    num_experts_per_tok=2,
    num_mtp_layers=0,
    parameters=1,
    active_parameters=1,
    eos_token_ids=(),
    bos_token_id=None,
)
SIZES = {
    "embed_tokens.weight": (1000, 64),
    "layers.0.self_attn.w_uk": (4, 16, 48),
    "layers.0.mlp.gate_proj.weight": (256, 64),
    "layers.1.mlp.experts.gate_up": (8, 2 * 32, 64),
    "lm_head.weight": (1000, 64),
}
MB = 1 << 20


def manifest() -> Manifest:
    tensors = {}
    for name, shape in SIZES.items():
        size = 1
        for length in shape:
            size *= length
        tensors[name] = TensorInfo(dtype="uint8", shape=shape, offset=0, size=size)
    return Manifest(
        shoal_version="0",
        weights="int8",
        model=MODEL,
        graphs={},
        files={},
        tensors=tensors,
        token_read_bytes=60_000,
        config={},
    )


def memory(available: int, **changes: int | str | None) -> Memory:
    free = Memory(total_bytes=1 << 34, available_bytes=available)
    return dataclasses.replace(free, **changes)  # type: ignore[arg-type]


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Sets what the machine has left; this process takes 50 MB."""
    taken = ResidentMemory(anonymous_bytes=50 * MB, file_bytes=0)
    monkeypatch.setattr(fit, "read_resident", lambda: taken)
    return monkeypatch


def has(machine: pytest.MonkeyPatch, found: Memory | None) -> None:
    machine.setattr(fit, "read_memory", lambda: found)


def test_native_maps_all_weights_and_portable_copies_what_it_multiplies() -> None:
    native, portable = (bundle_need(manifest(), form) for form in ("native", "portable"))
    every = 64_000 + 3072 + 16_384 + 32_768 + 64_000
    assert (native.mapped_bytes, native.copied_bytes) == (every, 0)
    assert (portable.mapped_bytes, portable.copied_bytes) == (67_072, every - 67_072)


def test_scratch_covers_a_dense_network_beside_the_experts() -> None:
    bare = manifest()
    name = "layers.1.dense_mlp.gate_proj.weight"
    wide = TensorInfo(dtype="uint8", shape=(1 << 14, 64), offset=0, size=1 << 20)
    both = dataclasses.replace(bare, tensors={**bare.tensors, name: wide})
    values = [bundle_need(m, "native").activation_bytes // 4 for m in (bare, both)]
    assert values[1] - values[0] == 3 * ((1 << 14) - 256)


def test_cache_grows_with_the_context_and_scratch_ends_with_the_chunk() -> None:
    need = bundle_need(manifest(), "native")
    assert need.cache_bytes(10) == 10 * 2 * (48 + 16) * 4
    assert need.scratch_bytes(512) == need.scratch_bytes(100_000) > need.scratch_bytes(16)


def test_scores_of_the_portable_form_stay_below_their_limit() -> None:
    native, portable = (bundle_need(manifest(), form) for form in ("native", "portable"))
    scores = [portable.scratch_bytes(n) - native.scratch_bytes(n) for n in (100, 512, 100_000)]
    assert scores == [3 * 4 * 4 * 100 * 100, 3 * 4 * 4 * 512 * 512, 3 * (64 << 20)]


@given(free=st.integers(0, 1 << 31), form=st.sampled_from(["native", "portable"]))
def test_the_longest_context_fits_and_one_token_more_does_not(free: int, form: Form) -> None:
    need = bundle_need(manifest(), form)
    longest = need.longest_context(free)
    assert longest == 0 or need.anonymous_bytes(longest) <= free
    assert longest == 100_000 or need.anonymous_bytes(longest + 1) > free


def room_bytes(need: Need, found: Memory | None, max_memory: int | None = None) -> int | None:
    taken = ResidentMemory(anonymous_bytes=50 * MB, file_bytes=0)
    room = find_room(need, memory=found, resident=taken, threads=3, max_memory=max_memory)
    return None if room is None else room.usable_bytes


def test_room_is_the_tightest_of_memory_budget_and_address_space() -> None:
    need = bundle_need(manifest(), "portable")
    assert room_bytes(need, None) is None
    assert room_bytes(need, memory(500 * MB)) == 500 * MB
    assert room_bytes(need, memory(500 * MB, swap_bytes=9)) == 500 * MB + 9
    assert room_bytes(need, memory(500 * MB), max_memory=200 * MB) == 150 * MB
    assert room_bytes(need, memory(500 * MB), max_memory=900 * MB) == 500 * MB
    assert room_bytes(need, None, max_memory=40 * MB) == 0
    # Mapped files and the stacks of two pools of two more threads take address space too.
    stacks = 2 * 2 * 8 * MB
    left = room_bytes(need, memory(500 * MB, address_space_bytes=300 * MB))
    assert left == 300 * MB - stacks - need.mapped_bytes - need.loading_bytes


def test_a_bundle_that_does_not_fit_is_refused_with_numbers_and_advice(
    int8_bundle: Path, machine: pytest.MonkeyPatch
) -> None:
    has(machine, memory(30 * MB, limited_by="the limit of the control group"))
    with pytest.raises(RuntimeFailure) as raised:
        open_bundle(int8_bundle, kernels="portable")
    text = str(raised.value)
    for part in (
        "portable kernels and a context of 512 tokens need",
        "MB copied weights",
        "MB latent cache",
        "found 31.5 MB (the limit of the control group)",
        "use a context of at most",
        "use native kernels, which need",
        "free memory",
    ):
        assert part in text
    assert "\n" not in text


def test_a_context_that_does_not_fit_is_refused_and_a_shorter_one_is_not(
    int8_bundle: Path, machine: pytest.MonkeyPatch
) -> None:
    need = bundle_need(Bundle.open(int8_bundle).manifest, "portable")
    has(machine, memory(need.anonymous_bytes(700)))
    with pytest.raises(RuntimeFailure, match=r"at most 700 tokens \(max_context\)"):
        open_bundle(int8_bundle, kernels="portable", max_context=701)
    with pytest.warns(UserWarning, match="come from the disk"):
        assert open_bundle(int8_bundle, kernels="portable", max_context=700).max_context == 700


def test_a_smaller_type_of_cache_is_advised_where_it_helps(
    int8_bundle: Path, machine: pytest.MonkeyPatch
) -> None:
    float32, float16 = (
        bundle_need(Bundle.open(int8_bundle).manifest, "native", cache_type).anonymous_bytes(2000)
        for cache_type in ("float32", "float16")
    )
    for free, is_advised in ((float16, True), (float16 - 1, False)):
        has(machine, memory(free))
        assert free < float32
        with pytest.raises(RuntimeFailure) as raised:
            open_bundle(int8_bundle, kernels="native", max_context=2000)
        assert ("use a cache of type float16 or int8" in str(raised.value)) == is_advised
    has(machine, memory(float16))
    with pytest.warns(UserWarning, match="come from the disk"):
        open_bundle(int8_bundle, kernels="native", max_context=2000, cache="float16")


def test_contexts_end_where_the_budget_does(int8_bundle: Path, machine: pytest.MonkeyPatch) -> None:
    need = bundle_need(Bundle.open(int8_bundle).manifest, "portable")
    has(machine, memory(1 << 34))
    budget = 50 * MB + need.anonymous_bytes(600)
    model = open_bundle(int8_bundle, kernels="portable", max_memory=budget)
    assert model.max_context == 600
    generation = model.generate([5] * 597, stop_tokens=(), max_new_tokens=10)
    assert len(list(generation)) == 4, "the last token needs no room"
    assert generation.finish_reason == "context_full"
    with pytest.raises(InputError, match="601 tokens are more than the model's 600"):
        model.generate([5] * 601)


@pytest.mark.parametrize("kernels", ["portable", "auto"])
def test_graphs_that_are_loaded_later_are_refused_where_they_do_not_fit(
    kernels: Kernels, int8_bundle: Path, machine: pytest.MonkeyPatch
) -> None:
    has(machine, memory(1 << 34))
    model = open_bundle(int8_bundle, kernels=kernels, threads=1)
    context = model.new_context()
    has(machine, memory(5 * MB))
    found = r"takes [\d.]+ MB of memory, found 5\.24 MB .*; {}, free memory or raise"
    with pytest.raises(RuntimeFailure, match=found.format("use draft 0")) as refused:
        model.generate([5, 6], draft=2, context=context)
    assert "mtp.onnx" in str(refused.value)
    with pytest.raises(RuntimeFailure, match=found.format("decode one context at a time")):
        model.decode_batch([context], [5])
    assert len(list(model.generate([5, 6], max_new_tokens=1, context=context))) == 1
    has(machine, memory(1 << 34))
    assert model.decode_batch([context], [5]).shape[0] == 1
    assert list(model.generate([5, 6], max_new_tokens=1, draft=2))


@pytest.mark.parametrize("part", ["drafts._mtp", "_batch_step"])
def test_later_graphs_take_no_more_than_is_asked_for(
    part: str, int8_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a process of its own, whose memory nothing else has touched."""
    code = (
        "import operator, sys\n"
        "from shoal.runtime import open_bundle\n"
        "from shoal.runtime.machine.memory import read_resident\n"
        "model = open_bundle(sys.argv[1], kernels='portable', threads=1)\n"
        "model.new_context().prefill([5, 6, 7])\n"
        "before = read_resident().anonymous_bytes\n"
        "operator.attrgetter(sys.argv[2])(model)\n"
        "print(read_resident().anonymous_bytes - before)\n"
    )
    argv = [sys.executable, "-c", code, str(int8_bundle), part]
    taken = int(subprocess.run(argv, capture_output=True, check=True, text=True).stdout)
    asked: list[int] = []

    def note(count: int) -> str:
        asked.append(count)
        return ""

    model = open_bundle(int8_bundle, kernels="portable", threads=1)
    monkeypatch.setattr(fit, "format_bytes", note)
    monkeypatch.setattr(fit, "read_memory", lambda: memory(0))
    with pytest.raises(RuntimeFailure):
        operator.attrgetter(part)(model)
    assert taken <= asked[0]


def test_unlimited_contexts_hold_what_the_model_can_read(
    int8_bundle: Path, machine: pytest.MonkeyPatch
) -> None:
    has(machine, None)  # a system that does not say
    assert open_bundle(int8_bundle).max_context == 2048
    with pytest.warns(UserWarning, match="5000 is more than the model was made for"):
        assert open_bundle(int8_bundle, max_context=5000).max_context == 5000


@pytest.mark.parametrize("option", ["max_context", "max_memory"])
@pytest.mark.parametrize("value", [0, -1, True])
def test_limits_that_are_none_are_refused(option: str, value: int, int8_bundle: Path) -> None:
    with pytest.raises(InputError, match=f"{option} must be a whole number from 1 on"):
        open_bundle(int8_bundle, **{option: value})  # type: ignore[arg-type]


def warnings_for(need: Need, free: int, swap: int = 0) -> list[str]:
    room = find_room(need, memory=memory(free, swap_bytes=swap), resident=None, threads=1)
    assert room is not None
    return fit.fit_warnings("b", need, room, 512)


def test_weights_beyond_memory_are_said_to_come_from_disk() -> None:
    need = dataclasses.replace(
        bundle_need(manifest(), "native"), mapped_bytes=26_000_000_000, token_read_bytes=2 * 10**9
    )
    own = need.anonymous_bytes(512)
    (warning,) = warnings_for(need, own + 7_000_000_000)
    assert "its weights (26 GB) are more than the memory left for them (7 GB)" in warning
    assert "at worst 2 GB for each token" in warning
    assert warnings_for(need, own + 26_000_000_000) == []


def test_limits_of_the_process_alone_do_not_push_weights_to_disk() -> None:
    need = bundle_need(manifest(), "native")
    own = need.anonymous_bytes(512)
    for limits in (
        {"memory": memory(1 << 34), "max_memory": own + 1},
        {"memory": memory(own + 1, limited_by="the limit of data (ulimit -d)")},
    ):
        room = find_room(need, resident=None, threads=1, **limits)
        assert room is not None
        assert fit.fit_warnings("b", need, room, 512) == []


def test_memory_in_swap_is_said() -> None:
    need = bundle_need(manifest(), "native")
    own = need.anonymous_bytes(512)
    (warning,) = warnings_for(need, own - 3_000_000, swap=3_000_000)
    assert "3 MB of it will lie in swap" in warning


def test_native_kernels_open_a_model_that_portable_ones_cannot_hold(
    int8_bundle: Path, machine: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert isinstance(find_library(), KernelLibrary), "the tests need the native kernels"
    need = bundle_need(Bundle.open(int8_bundle).manifest, "native")
    has(machine, memory(need.anonymous_bytes(512) + 2 * MB))
    with pytest.warns(UserWarning, match=r"at worst 5\.\d+ MB for each token"):
        model = open_bundle(int8_bundle, kernels="native")
    assert model.logits([1, 2, 3]).shape == (3, 4096)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(RuntimeFailure, match="copied weights"):
            open_bundle(int8_bundle, kernels="portable")


def test_the_command_refuses_in_one_line(
    int8_bundle: Path, machine: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["run", str(int8_bundle), "--prompt", "x", "--max-context", "2000"]
    assert main([*argv, "--max-memory", "53M"]) == 1
    err = capsys.readouterr().err
    assert "(left of max_memory 53 MB, of which this process has 52.4 MB already)" in err
    assert err.startswith("error: ")
    assert err.count("\n") == 1


MARGIN_BYTES = 8 * MB  # what Python itself takes and gives back meanwhile

# Leaves itself as much address space as the estimate says, and a given number of bytes more.
LIMITED = """
import resource, sys
from shoal.runtime.bundle import Bundle
from shoal.runtime.engine.need import bundle_need
from shoal.runtime.opening import open_bundle
from shoal.runtime.engine.session import Kernels
from shoal.runtime.machine.system_files import PROC, read_text

bundle, kernels, more = sys.argv[1], sys.argv[2], int(sys.argv[3])
need = bundle_need(Bundle.open(bundle).manifest, kernels)
size = int(read_text(PROC / "self/statm").split()[0]) * resource.getpagesize()
limit = size + need.mapped_bytes + need.loading_bytes + need.anonymous_bytes(512) + more
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
model = open_bundle(bundle, kernels=kernels, threads=1, max_context=512)
context = model.new_context()
context.prefill([7] * 511)
context.decode(8)
print("ran", context.position)
"""


@pytest.mark.parametrize("kernels", ["native", "portable"])
def test_what_is_said_to_fit_into_a_real_limit_does(kernels: str, int8_bundle: Path) -> None:
    done = limited(int8_bundle, kernels, MARGIN_BYTES)
    assert (done.stdout, done.stderr) == ("ran 512\n", "")


@pytest.mark.parametrize("kernels", ["native", "portable"])
def test_what_does_not_fit_into_a_real_limit_is_refused_before_loading(
    kernels: str, int8_bundle: Path
) -> None:
    done = limited(int8_bundle, kernels, -MARGIN_BYTES)
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert last.startswith(f"shoal.graphs.errors.RuntimeFailure: {int8_bundle}: {kernels} kernels")
    assert "(ulimit -v)" in last


def limited(bundle: Path, kernels: str, more: int) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "ignore", "-c", LIMITED, str(bundle), kernels, str(more)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
