"""The options of the ``shoal`` command: one argparse parser, standard library only.

The parser is also the source of docs/cli.md, which
``python -m shoal.runtime.commands.options`` prints.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import sys
from pathlib import Path

from shoal.graphs.cache_types import CACHE_TYPES
from shoal.runtime.commands.option_types import (
    byte_count,
    draft_length,
    length_list,
    non_negative_float,
    non_negative_int,
    positive_int,
    positive_length_list,
    probability,
    probability_or_zero,
)
from shoal.runtime.commands.options_eval import add_eval_options
from shoal.runtime.commands.options_export import add_export_options, add_hub_options
from shoal.runtime.commands.options_pack import add_pack_options, add_unpack_options

DEFAULT_NEW_TOKENS = 256
DEFAULT_BENCH_DEPTHS = (0, 512, 1024)
DEFAULT_BENCH_PREFILL = (128, 512)
DEFAULT_BENCH_NEW_TOKENS = 16
DEFAULT_BENCH_REPEATS = 3

DESCRIPTION = """\
Export DeepSeek-family checkpoints (MLA, MoE, MTP) to int8 ONNX bundles and run them on any CPU.

  shoal export checkpoints/tiny-v3 build/tiny      checkpoint folder -> bundle folder
  shoal run build/tiny --prompt "Once upon"        bundle -> text

The result goes to stdout, progress and speed to stderr. Exit status: 0 done, 1 it failed (one line
on stderr says why and what to do), 2 wrong usage, 130 stopped with Ctrl-C.
"""

VERBS = {
    "export": "make a bundle from a Hugging Face checkpoint folder or a GGUF file",
    "run": "generate text, or chat when no prompt is given",
    "verify": "check every byte of a bundle, and every weight against the checkpoint",
    "inspect": "say what a bundle or checkpoint is and what it needs, without running it",
    "eval": "measure quality on texts and tasks, and closeness to a reference",
    "bench": "measure load time, prefill and decode speed, and memory",
    "pack": "put a bundle into one file to copy to a device",
    "unpack": "make a bundle folder of such a file",
    "doctor": "say what this machine and this installation can do",
}


class UsageFormatter(argparse.HelpFormatter):
    """Wraps running text, keeps texts that bring their own line breaks, as examples do."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=26, width=100)

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        if "\n" in text:
            return "".join(indent + line for line in text.splitlines(keepends=True))
        return super()._fill_text(text, width, indent)


def build_parser() -> argparse.ArgumentParser:
    """The parser of the whole command; every verb's options are set by a function below."""
    parser = argparse.ArgumentParser(
        prog="shoal", description=DESCRIPTION, formatter_class=UsageFormatter, allow_abbrev=False
    )
    parser.add_argument(
        "--version",
        action="version",
        version=f"shoal {version()}",
        help="show the version and exit",
    )
    parser.add_argument(
        "--debug", action="store_true", help="show the whole traceback when something fails"
    )
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", title="verbs")
    add_export_options(_add_verb(verbs, "export"))
    _add_run(_add_verb(verbs, "run"))
    _add_verify(_add_verb(verbs, "verify"))
    _add_inspect(_add_verb(verbs, "inspect"))
    add_eval_options(evaluation := _add_verb(verbs, "eval"))
    _add_machine(evaluation)
    _add_bench(_add_verb(verbs, "bench"))
    add_pack_options(_add_verb(verbs, "pack"))
    add_unpack_options(_add_verb(verbs, "unpack"))
    _add_doctor(_add_verb(verbs, "doctor"))
    for verb in verbs.choices.values():
        add_common_options(verb)
    return parser


def version() -> str:
    """The version of the installed distribution."""
    return importlib.metadata.version("shoal")


def _add_verb(
    verbs: argparse._SubParsersAction[argparse.ArgumentParser], name: str
) -> argparse.ArgumentParser:
    return verbs.add_parser(
        name, help=VERBS[name], formatter_class=UsageFormatter, allow_abbrev=False
    )


def add_common_options(verb: argparse.ArgumentParser) -> None:
    """Add what every verb takes."""
    verb.add_argument("--json", action="store_true", help="print the result as JSON on stdout")
    verb.add_argument(
        "--debug",
        action="store_true",
        default=argparse.SUPPRESS,  # keeps a --debug given before the verb
        help="show the whole traceback when something fails",
    )


def _add_run(verb: argparse.ArgumentParser) -> None:
    verb.description = (
        "Generate text. With --prompt, or with text piped to stdin: answer once. On a terminal "
        "without --prompt: a chat with history; /help lists its commands. Text appears as it is "
        "decided, speed is reported on stderr. Decoding is greedy unless --temperature is given; "
        "the sampling settings of a generation_config.json are not applied."
    )
    verb.epilog = (
        "examples:\n"
        '  shoal run build/tiny --prompt "It is a truth universally acknowledged, that"\n'
        "  shoal run build/tiny --temperature 0.8 --top-p 0.95 --seed 7 < prompt.txt"
    )
    _add_bundle(verb)
    verb.add_argument("--prompt", metavar="TEXT", help="text to answer or to continue")
    verb.add_argument(
        "--max-new-tokens",
        type=positive_int,
        default=DEFAULT_NEW_TOKENS,
        metavar="N",
        help=f"stop after N tokens (default: {DEFAULT_NEW_TOKENS})",
    )
    verb.add_argument(
        "--draft",
        type=draft_length,
        default=0,
        metavar="N|auto",
        help="tokens the multi-token-prediction module guesses ahead: the same text in fewer "
        "steps; auto drafts as many as pay (default: 0)",
    )
    verb.add_argument(
        "--session",
        metavar="FILE",
        type=Path,
        help="go on with the dialogue kept in this file, if it exists, and keep it there",
    )
    verb.add_argument(
        "--loop",
        action="store_true",
        help="answer each line of stdin, or each JSON object with --json (docs/service.md)",
    )
    verb.add_argument(
        "--listen",
        metavar="ADDRESS",
        help="--loop for lines that come through a socket: a path such as ./shoal.sock, or "
        "HOST:PORT of a loopback address",
    )
    verb.add_argument(
        "-v",
        "--verbose",
        action="store_true",
        help="say on stderr which kernels run, with how many threads and how much memory",
    )
    _add_sampling(verb.add_argument_group("sampling"))
    _add_dialogue(verb.add_argument_group("prompt format"))
    _add_machine(verb)


def _add_sampling(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--temperature",
        type=non_negative_float,
        default=0.0,
        metavar="X",
        help="0 takes the likeliest token every time; 1 samples as trained (default: 0)",
    )
    group.add_argument(
        "--top-k",
        type=non_negative_int,
        default=0,
        metavar="N",
        help="sample among the N likeliest tokens (default: 0, all)",
    )
    group.add_argument(
        "--top-p",
        type=probability,
        default=1.0,
        metavar="X",
        help="sample among the likeliest tokens that make up share X (default: 1, all)",
    )
    group.add_argument(
        "--min-p",
        type=probability_or_zero,
        default=0.0,
        metavar="X",
        help="drop tokens less likely than X times the likeliest (default: 0, none)",
    )
    group.add_argument(
        "--seed",
        type=non_negative_int,
        metavar="N",
        help="makes sampling repeatable (default: none)",
    )
    group.add_argument(
        "--stop",
        action="append",
        default=[],
        metavar="TEXT",
        help="end the answer where this text would begin; may be given several times",
    )


def _add_dialogue(group: argparse._ArgumentGroup) -> None:
    form = group.add_mutually_exclusive_group()
    form.add_argument(
        "--chat",
        dest="form",
        action="store_const",
        const="chat",
        help="put the prompt into the model's chat template (default when the bundle has one)",
    )
    form.add_argument(
        "--raw",
        dest="form",
        action="store_const",
        const="raw",
        help="continue the prompt as plain text (default when the bundle has no chat template)",
    )
    group.add_argument("--system", metavar="TEXT", help="system message of the chat")


def _add_verify(verb: argparse.ArgumentParser) -> None:
    verb.description = (
        "Read every byte of a bundle and compare it with the checksums in its manifest. With "
        "--checkpoint also go through the checkpoint as export does and compare every weight and "
        "the fidelity report (needs the export extra). Opening a bundle, as `run` does, checks "
        "sizes and the graphs but not every weight."
    )
    verb.epilog = "example:\n  shoal verify build/tiny --checkpoint checkpoints/tiny-v3"
    _add_bundle(verb)
    verb.add_argument(
        "--checkpoint",
        metavar="CHECKPOINT",
        help="what the bundle was made from: a folder, or ORG/NAME on the hub",
    )
    add_hub_options(verb)


def _add_inspect(verb: argparse.ArgumentParser) -> None:
    verb.description = (
        "Read the manifest of a bundle, or config.json and the tensor headers of a checkpoint, "
        "and say how many parameters the model has and uses, how many bytes a token reads, and "
        "how much memory it needs. A checkpoint needs the export extra."
    )
    verb.epilog = "example:\n  shoal inspect build/tiny --json"
    verb.add_argument(
        "path",
        metavar="BUNDLE|CHECKPOINT",
        type=Path,
        help="bundle or checkpoint: a folder or .gguf file",
    )


def _add_bench(verb: argparse.ArgumentParser) -> None:
    verb.description = (
        "Measure a bundle on this machine with random tokens: time to open, prefill speed by "
        "prompt length, decode speed by context depth, and memory. One warm-up, then medians of "
        "the repeats. Lengths beyond the model's limit are left out and named on stderr."
    )
    verb.epilog = "example:\n  shoal bench build/tiny --depths 0,1024 --prefill 128 --json"
    _add_bundle(verb)
    verb.add_argument(
        "--depths",
        type=length_list,
        default=DEFAULT_BENCH_DEPTHS,
        metavar="N,..",
        help="tokens in the context before decoding starts "
        f"(default: {','.join(map(str, DEFAULT_BENCH_DEPTHS))})",
    )
    verb.add_argument(
        "--prefill",
        type=positive_length_list,
        default=DEFAULT_BENCH_PREFILL,
        metavar="N,..",
        help=f"prompt lengths in tokens (default: {','.join(map(str, DEFAULT_BENCH_PREFILL))})",
    )
    verb.add_argument(
        "--new-tokens",
        type=positive_int,
        default=DEFAULT_BENCH_NEW_TOKENS,
        metavar="N",
        help=f"tokens decoded per repeat (default: {DEFAULT_BENCH_NEW_TOKENS})",
    )
    verb.add_argument(
        "--repeats",
        type=positive_int,
        default=DEFAULT_BENCH_REPEATS,
        metavar="N",
        help=f"measurements per number; the median counts (default: {DEFAULT_BENCH_REPEATS})",
    )
    verb.add_argument(
        "--batch",
        type=positive_length_list,
        default=(),
        metavar="N,..",
        help="also measure decoding N contexts in one step, at the first of the depths",
    )
    verb.add_argument(
        "--speculate",
        action="store_true",
        help="also measure what drafts of the multi-token-prediction module bring",
    )
    verb.add_argument(
        "--cache-kl",
        action="store_true",
        help="also measure, on the text that comes with shoal and at the same depths, how far "
        "predictions over float16 and int8 caches are from those over a float32 cache",
    )
    verb.add_argument(
        "--report",
        metavar="FILE",
        help="also write figures of this board to a JSON file (- for stdout): cores, governor, "
        "temperature, memory bandwidth and what share of it is used, and print a line for the "
        "table in docs/benchmarks.md",
    )
    _add_machine(verb)


def _add_doctor(verb: argparse.ArgumentParser) -> None:
    verb.description = (
        "Say which versions are installed, what this CPU can do, how much memory there is and "
        "which form of each op will run and why; with a bundle, whether it opens and fits. Exit "
        "status 1 when something would keep shoal from running."
    )
    verb.epilog = "example:\n  shoal doctor build/tiny"
    verb.add_argument("bundle", metavar="BUNDLE", type=Path, nargs="?", help="bundle to check too")


def _add_bundle(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("bundle", metavar="BUNDLE", type=Path, help="bundle folder")


def _add_machine(verb: argparse.ArgumentParser) -> None:
    group = verb.add_argument_group("machine")
    group.add_argument(
        "--threads",
        type=positive_int,
        metavar="N",
        help="threads to compute with (default: one per big core)",
    )
    group.add_argument(
        "--kernels",
        choices=("auto", "native", "portable"),
        default="auto",
        help="form of the ops: native needs compiled kernels, portable only onnxruntime, "
        "auto takes what is there (default: auto)",
    )
    group.add_argument(
        "--cache",
        choices=CACHE_TYPES,
        default="float32",
        help="type of the latent cache: float16 takes half the memory, int8 less than a third "
        "(default: float32)",
    )
    group.add_argument(
        "--max-context",
        type=positive_int,
        metavar="N",
        help="tokens a context may hold; refused at once if that does not fit into memory "
        "(default: as many as the model can read)",
    )
    group.add_argument(
        "--max-memory",
        type=byte_count,
        metavar="SIZE",
        help="memory to take beside the mapped weights, such as 800M or 2G; contexts end where it "
        "is used up, unless --max-context is given (default: what the machine has)",
    )


if __name__ == "__main__":
    from shoal.runtime.commands.cli_page import cli_page

    sys.stdout.write(cli_page(build_parser()))
