"""`llm-arch runs`: the local runs, what came of each, and which model each went on from. Reads files, runs nothing."""

from __future__ import annotations

import argparse
import json
import math
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llm_arch.cli.occupied import is_occupied
from llm_arch.cli.options import parse
from llm_arch.types import UserError
from llm_arch.untrusted import read_json

if TYPE_CHECKING:
    from rich.table import Table

_LARGEST_CONFIG = 2**20  # bytes
_SMALLER_IS_BETTER = ("loss", "perplexity", "rmse", "mae", "bits_per_byte")


@dataclass
class Run:
    """A run as its directory tells of it.

    Attributes:
        directory: where it lies.
        when: it began, in local time.
        task: the class of its head.
        backbone: what it began with, as its config names it.
        data: its training rows, as its config names them.
        metric: the metric that decides which state is kept, or None where nothing was measured.
        before: all metrics before training.
        after: all metrics after training.
        seconds: of training.
        state: running; finished; unfinished, with the step to go on from; failed; or damaged.
        parents: the models it went on from.
        fault: what can't be read of it.
    """

    directory: str
    when: str | None = None
    task: str | None = None
    backbone: str | None = None
    data: str | None = None
    metric: str | None = None
    before: dict[str, float] = field(default_factory=dict)
    after: dict[str, float] = field(default_factory=dict)
    seconds: float | None = None
    state: str = ""
    parents: list[dict[str, str]] = field(default_factory=list)
    fault: str | None = None


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "llm-arch runs",
        description="List local runs: what each was, its metrics, and the model it went on from.",
        allow_abbrev=False,
    )
    parser.add_argument("folders", nargs="*", default=["runs"], metavar="FOLDER", help="where to look (default: runs)")
    parser.add_argument("--sort", metavar="METRIC", help="the best by this metric first, instead of the latest")
    parser.add_argument("--json", action="store_true", help="print JSON")
    return parser


def run(arguments: list[str]) -> None:
    """Run `llm-arch runs`."""
    options = parse(_parser(), arguments)
    found = [read_run(path) for folder in options.folders for path in find_runs(Path(folder))]
    if not found and not options.json:
        raise UserError(f"there are no runs below {', '.join(options.folders)}; name the folder that they lie in")
    found.sort(key=lambda one: one.when or "", reverse=True)
    if options.sort:
        found = _sorted(found, options.sort)
    if options.json:
        print(json.dumps([asdict(one) for one in found], indent=2, ensure_ascii=False))
        return
    from rich.console import Console

    made = Console()
    console = made if made.is_terminal else Console(width=200)
    console.print(_table(found, options.sort))
    for one in found:
        if one.fault:
            console.print(f"{one.directory}: {one.fault}", markup=False, highlight=False, soft_wrap=True)


def _sorted(found: list[Run], metric: str) -> list[Run]:
    known = sorted({name for one in found for name in one.after})
    if found and metric not in known:
        raise UserError(f"--sort {metric}: no run has a metric of that name; they have: {', '.join(known) or 'none'}")
    sign = 1 if metric.endswith(_SMALLER_IS_BETTER) else -1
    return sorted(found, key=lambda one: sign * one.after[metric] if metric in one.after else math.inf)


def find_runs(folder: Path) -> Iterator[Path]:
    """The output directories of runs in and below a folder, in order; none within another.

    Raises:
        UserError: there is no such folder.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such directory; name the folder that the runs lie in, such as llm-arch runs DIR")
    for home, inner, files in os.walk(folder):
        inner[:] = sorted(name for name in inner if not name.startswith("."))
        path = Path(home)
        if {"config.yaml", "metrics.json"} & set(files) or (path / "model" / "llm_arch.json").is_file():
            inner.clear()
            yield path


def read_run(directory: Path) -> Run:
    """What a directory tells; what can't be read becomes its fault."""
    one, faults = Run(str(directory)), []
    for read in (_config, _record, _metrics):
        try:
            read(directory, one)
        except FileNotFoundError:
            continue
        except Exception as error:  # whatever was left there, the others are listed
            said = str(error).splitlines()[0] if str(error) else type(error).__name__
            faults.append(said[:160])
    one.state = "damaged" if faults else ""
    if not one.state:
        finished = (directory / "metrics.json").is_file() and (directory / "model" / "llm_arch.json").is_file()
        saved = not (directory / "config.yaml").is_file()
        one.state = "finished" if finished else "saved" if saved else _unfinished(directory)
        if is_occupied(directory):
            one.state = "running"
    one.fault = "; ".join(faults) or None
    return one


def _config(directory: Path, one: Run) -> None:
    import yaml

    path = directory / "config.yaml"
    status = path.stat()
    one.when = datetime.fromtimestamp(status.st_mtime).isoformat(" ", "minutes")
    if status.st_size > _LARGEST_CONFIG:
        raise ValueError(f"config.yaml has {status.st_size:,} bytes, more than any config")
    try:
        config = yaml.load(path.read_text(encoding="utf-8"), getattr(yaml, "CSafeLoader", yaml.SafeLoader))  # noqa: S506
    except yaml.YAMLError as error:
        raise ValueError(f"config.yaml is not valid YAML ({' '.join(str(error).split())})") from error
    if not isinstance(config, dict):
        raise ValueError("config.yaml is no mapping")
    head, backbone = _inside(config, "model", "head", "class_path"), _inside(config, "model", "backbone")
    one.task = str(head).rpartition(".")[2] if head else None
    one.backbone = backbone if isinstance(backbone, str) else _backbone(backbone)
    source = _inside(config, "data", "init_args", "train")
    one.data = str(source) if source else None


def _backbone(backbone: Any) -> str | None:
    arguments = _inside(backbone, "init_args") or {}
    inner = arguments.get("name") or arguments.get("encoder") or arguments.get("backbone")
    if isinstance(inner, dict):
        return _backbone(inner)
    kind = _inside(backbone, "class_path")
    return str(inner or str(kind).rpartition(".")[2]) if inner or kind else None


def _record(directory: Path, one: Run) -> None:
    path = directory / "model" / "llm_arch.json"
    record = read_json(path)
    lineage = _inside(record, "lineage") or {}
    one.task = one.task or record.get("task")
    one.when = one.when or datetime.fromtimestamp(path.stat().st_mtime).isoformat(" ", "minutes")
    one.metric = _inside(lineage, "metric", "name")
    given = lineage.get("parents") or []
    one.parents = [{str(k): str(v) for k, v in parent.items()} for parent in given]
    one.after = _numbers(_inside(record, "metrics", "after"))


def _metrics(directory: Path, one: Run) -> None:
    metrics = read_json(directory / "metrics.json")
    one.before, one.after = _numbers(metrics.get("before")), _numbers(metrics.get("after"))
    seconds = _inside(metrics, "train", "seconds")
    one.seconds = float(seconds) if isinstance(seconds, int | float) else None


def _unfinished(directory: Path) -> str:
    """How far a run came that has no results: by the newest checkpoint that can be read."""
    files = sorted((directory / "checkpoints").glob("*.ckpt"))
    if not files:
        return "failed: no checkpoint"
    from llm_arch.checkpoints import step_of  # torch takes seconds to import

    steps = []
    for path in files:
        try:
            steps.append(step_of(path))
        except Exception:  # cut short or overwritten; `fit --resume auto` says what is wrong with it
            continue
    return f"unfinished, resumable at step {max(steps)}" if steps else "failed: its checkpoints are damaged"


def _inside(values: Any, *keys: str) -> Any:
    for key in keys:
        values = values.get(key) if isinstance(values, dict) else None
    return values


def _numbers(values: Any) -> dict[str, float]:
    pairs = values.items() if isinstance(values, dict) else ()
    return {str(k): float(v) for k, v in pairs if isinstance(v, int | float) and math.isfinite(v)}


def _table(found: list[Run], sort: str | None) -> Table:
    from rich.text import Text

    from llm_arch.cli import tables

    table = tables.table()
    for name in ("run", "when", "task", "backbone", "data", "metric", "before", "after", "seconds", "state", "from"):
        table.add_column(name, justify="right" if name in ("before", "after", "seconds") else "left", overflow="fold")
    for one in found:
        metric = sort or one.metric or next(iter(one.after), None)
        numbers = [f"{of[metric]:.4f}" if metric in of else "" for of in (one.before, one.after)]
        seconds = "" if one.seconds is None else f"{one.seconds:,.1f}"
        parents = ", ".join(_short(parent.get("name", "")) for parent in one.parents)
        cells = [
            one.directory,
            one.when,
            one.task,
            one.backbone,
            one.data,
            metric,
            *numbers,
            seconds,
            one.state,
            parents,
        ]
        # As text: names may hold what a terminal, or rich, would take for an order.
        table.add_row(*(Text("".join(c for c in cell or "" if c.isprintable())) for cell in cells))
    return table


def _short(name: str) -> str:
    """`runs/first/model` is what came of `first`."""
    parts = [part for part in Path(name).parts if part not in ("model", "runs", ".", "..")]
    return "/".join(parts[-2:]) or name
