"""llama.cpp, from the source package on PyPI that carries it: built, fed and measured."""

from __future__ import annotations

import json
import shutil
import sys
import tarfile
from pathlib import Path
from typing import Any

from tests.bench.processes import Watch, run

PACKAGE = "llama-cpp-python"
VERSION = "0.3.36"
_DOWNLOAD = ("download", "--quiet", "--no-deps", "--no-binary", ":all:", "--no-build-isolation")
_FLAGS = (
    "-DCMAKE_BUILD_TYPE=Release",
    "-DGGML_NATIVE=ON",
    "-DBUILD_SHARED_LIBS=OFF",
    "-DLLAMA_CURL=OFF",
    "-DLLAMA_OPENSSL=OFF",
    "-DLLAMA_BUILD_TESTS=OFF",
    "-DLLAMA_BUILD_UI=OFF",
)

# Runs llama.cpp's converter, argv[1] its folder. It knows tokenizers and models by name and size,
# which random ones do not have: ours splits text as GPT-2 does, and q_lora_rank 0 means none.
_CONVERT = """
import sys
root = sys.argv.pop(1)
sys.path[:0] = [root, root + "/gguf-py"]
import convert_hf_to_gguf
from conversion import base, deepseek
for kind in (base.ModelBase, base.TextModel):
    if "get_vocab_base_pre" in vars(kind):
        kind.get_vocab_base_pre = lambda self, tokenizer: "gpt-2"
known = deepseek.DeepseekV2Model.set_gguf_parameters
def set_gguf_parameters(self):
    known(self)
    if self.hparams.get("q_lora_rank") is None:
        self.gguf_writer.add_q_lora_rank(0)
deepseek.DeepseekV2Model.set_gguf_parameters = set_gguf_parameters
convert_hf_to_gguf.main()
"""


def prepare(work: Path) -> Path:
    """Source and program in ``work``, fetched and built where they are not there yet.

    Returns:
        llama-bench.
    """
    program = work / "build" / "bin" / "llama-bench"
    if program.is_file():
        return program
    work.mkdir(parents=True, exist_ok=True)
    source = _source(work)
    run(["cmake", "-S", str(source), "-B", str(work / "build"), *_FLAGS])
    run(["cmake", "--build", str(work / "build"), "--parallel", "2", "--target", "llama-bench"])
    return program


def _source(work: Path) -> Path:
    folder = work / f"{PACKAGE.replace('-', '_')}-{VERSION}"
    if not folder.is_dir():
        pip = [sys.executable, "-m", "pip"]
        # To download a source package pip runs its build tool once.
        run([*pip, "install", "--quiet", "--target", str(work / "tools"), "scikit-build-core"])
        run(
            [*pip, *_DOWNLOAD, "--dest", str(work), f"{PACKAGE}=={VERSION}"],
            PYTHONPATH=str(work / "tools"),
        )
        with tarfile.open(folder.with_name(folder.name + ".tar.gz")) as archive:
            archive.extractall(work, filter="data")
    return folder / "vendor" / "llama.cpp"


def convert(work: Path, checkpoint: Path, target: Path) -> None:
    """Write the checkpoint as a Q8_0 file; PyTorch and transformers must be there."""
    making = target.with_name(target.name + ".new")
    places = [str(_source(work)), str(checkpoint), "--outfile", str(making)]
    run([sys.executable, "-c", _CONVERT, *places, "--outtype", "q8_0"])
    making.replace(target)


def measure(
    program: Path,
    model: Path,
    threads: int,
    prefill: tuple[int, ...],
    depths: tuple[int, ...],
    new_tokens: int,
) -> dict[str, Any]:
    """Speed of one run of llama-bench: tokens per second by measurement, load time, memory."""
    figures: dict[str, float] = {}
    command = [str(program), "-m", str(model), "-t", str(threads), "-r", "1", "-o", "jsonl"]
    lengths, places = ",".join(map(str, prefill)), ",".join(map(str, depths))
    prompts = Watch([*command, "--progress", "-p", lengths, "-n", "0"])
    decoding = Watch([*command, "-p", "0", "-n", str(new_tokens), "-d", places])
    for row in map(json.loads, (prompts.output + decoding.output).splitlines()):
        is_prompt = row["n_prompt"] > 0
        name = f"prefill {row['n_prompt']}" if is_prompt else f"decode {row['n_depth']}"
        figures[name] = row["avg_ts"]
    return {
        "tokens_per_s": figures,
        "load_s": prompts.seconds_between("starting", "run"),
        "anonymous_bytes": max(prompts.anonymous_bytes, decoding.anonymous_bytes),
        "resident_bytes": max(prompts.resident_bytes, decoding.resident_bytes),
    }


def is_buildable() -> bool:
    """Whether cmake and a C++ compiler are there."""
    return shutil.which("cmake") is not None and shutil.which("c++") is not None
