"""`llm-arch export`: a trained model for ONNX Runtime, OpenVINO or torch.export, compared with what it was."""

from __future__ import annotations

import argparse
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llm_arch.cli import fastest
from llm_arch.cli.options import model_parser, parse
from llm_arch.types import UserError

if TYPE_CHECKING:
    from llm_arch.data.module import DataModule
    from llm_arch.inference.export.runtime import Precision

_ROWS = 64  # of a file, or made
_LENGTHS = (8, 12, 16, 24, 32, 48, 64, 96)
_MB = 1e6


def _parser() -> argparse.ArgumentParser:
    parser = model_parser(
        "llm-arch export",
        "Write a trained model as one graph, from token ids to the logits of its head, in a model directory that "
        "`llm-arch predict`, `test` and `benchmark` take as any other. The graph is run and compared with the model "
        "before it is kept.",
    )
    parser.add_argument(
        "--to",
        required=True,
        choices=("onnx", "openvino", "torch", "fastest"),
        help="ONNX Runtime, OpenVINO, torch.export, or what is fastest on this machine at the rows of --data and keeps "
        "the quality: all of the first two in every precision, and the model as it is, are made and measured",
    )
    parser.add_argument(
        "--int8",
        nargs="?",
        const="dynamic",
        choices=("dynamic", "static"),
        help="8-bit layers and embeddings; activations are scaled as they come (dynamic, the default), or by fixed "
        "scales that the rows of --data set (static)",
    )
    parser.add_argument("--half", action="store_true", help="weights of 16 bits; bf16 arithmetic where the CPU has it")
    parser.add_argument(
        "--output", dest="folder", metavar="DIR", help="where it goes (default: beside the model, as MODEL-RUNTIME)"
    )
    parser.add_argument(
        "--data",
        metavar="FILE",
        help=f"rows to compare with, and to set scales by, as `llm-arch predict` takes them (the first {_ROWS}); "
        "without it rows are made of words of the tokenizer",
    )
    parser.add_argument(
        "--agreement",
        type=float,
        metavar="SHARE",
        help="of these rows that must be predicted as before, with --int8 or --half (0.9), or fastest (0.98)",
    )
    parser.add_argument(
        "--points",
        type=float,
        metavar="P",
        help="with --to fastest and labels: hundredths that the head's metric may lose, percent that it may gain where "
        "less is better (1)",
    )
    parser.add_argument(
        "--runtimes", nargs="+", metavar="NAME", help="with --to fastest: which of onnx and openvino are tried (both)"
    )
    parser.add_argument("--threads", type=int, metavar="N", help="with --to fastest: threads of each way (1)")
    parser.add_argument("--seconds", type=float, metavar="S", help="with --to fastest: of timing, for each way (3)")
    parser.set_defaults(output=None)  # that `parse` looks at; it names a file elsewhere
    return parser


def run(arguments: list[str]) -> None:
    """Run `llm-arch export`."""
    options = parse(_parser(), arguments)
    if options.to == "fastest":
        fastest.run(options)
        return
    for name in fastest.OWN:
        if getattr(options, name) is not None:
            raise UserError(f"--{name} is for --to fastest; leave it out")
    precision = _precision(options)
    if options.agreement is not None and precision == "fp32":
        raise UserError("--agreement is for --int8 and --half; in fp32 logits must be the same")
    from llm_arch.cli.quiet import quiet

    quiet()
    from llm_arch.inference.directory import load
    from llm_arch.inference.export.exporting import AGREEMENT, export

    model = load(options.model, trust=tuple(options.trust))
    folder = options.folder or _beside(model.directory, options.to, precision)
    rows = _rows(model.data, options.data)
    agreement = AGREEMENT if options.agreement is None else options.agreement
    found = export(model, folder, options.to, rows, precision=precision, agreement=agreement)
    of = f"{found.rows} {'rows of ' + options.data if options.data else 'made rows'}"
    print(f"{options.to}, {precision}: {found.bytes / _MB:,.1f} MB, from {found.bytes_before / _MB:,.1f} MB of weights")
    print(f"on {of}: {found.agreement:.1%} predicted as before, logits differ by up to {found.difference:.2g}")
    trust = " --trust torch_export" if options.to == "torch" else ""
    print(f"written: {folder}; use it as any model: llm-arch predict --model {folder}{trust}")


def _precision(options: argparse.Namespace) -> Precision:
    if options.half and options.int8:
        raise UserError("--half and --int8 exclude each other; name one")
    if options.int8 == "static" and not options.data:
        raise UserError("--int8 static sets its scales by rows of yours; name a file with --data")
    if options.half:
        return "half"
    return {None: "fp32", "dynamic": "int8", "static": "int8-static"}[options.int8]  # type: ignore[return-value]


def _beside(model: Path, runtime: str, precision: str) -> Path:
    """A folder named after the model and what became of it."""
    model = model.resolve()
    suffix = runtime if precision == "fp32" else f"{runtime}-{precision}"
    return model.with_name(f"{model.name}-{suffix}")


def _words(words: list[str], start: int) -> str:
    return " ".join(words[(start + j) % len(words)] for j in range(3))


def _rows(data: DataModule, name: str | None) -> list[Any]:
    from llm_arch.cli.rows import rows_of
    from llm_arch.evaluation.benchmark import rows

    if name is not None:
        return [row.values for row in islice(rows_of(data.source(name)), _ROWS)]
    words = rows.vocabulary_words(data.tokenizer)
    each = _ROWS // len(_LENGTHS)
    made = rows.made_row(data)
    samples = [  # other words in each
        {name: _words(words, 3 * i) if isinstance(value, str) else value for name, value in made.items()}
        for i in range(_ROWS)
    ]
    found = [row for i, n in enumerate(_LENGTHS) for row in rows.of_length(data, samples[i * each :], n, each)]
    if not found:
        raise UserError("no rows can be made for this model to compare with; give some with --data")
    return found
