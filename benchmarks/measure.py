"""What every benchmark needs to measure and to report: clocks, ratios, the machine, and the result files."""

from __future__ import annotations

import json
import os
import platform
import re
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from multiprocessing import get_context
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import torch

T = TypeVar("T")

REPOSITORY = Path(__file__).resolve().parent.parent
RESULTS = REPOSITORY / "benchmarks" / "results"
LIBRARIES = ("torch", "lightning", "transformers", "accelerate", "tokenizers", "torchmetrics", "datasets")
_PATH = re.compile(r'"(/[^"\n]+)"')


class Stopwatch:
    """Wall-clock and process CPU seconds (all threads, no child processes) of a `with` block.

    Attributes:
        seconds: wall-clock seconds of the last block.
        cpu_seconds: CPU seconds the process spent during it.
    """

    def __init__(self) -> None:
        self.seconds = 0.0
        self.cpu_seconds = 0.0

    def __enter__(self) -> Stopwatch:
        """Start both clocks."""
        self._start = time.perf_counter(), time.process_time()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop both clocks."""
        self.seconds = time.perf_counter() - self._start[0]
        self.cpu_seconds = time.process_time() - self._start[1]


def wait_for_device() -> None:
    """Let a GPU finish what it was given; before reading a clock."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


@dataclass(frozen=True)
class Spread:
    """A middle value and how far single measurements stand from it; prints as `1.23 (1.20-1.31)`.

    Args:
        median: the median.
        low: the least.
        high: the greatest.
        repeats: the number of measurements.
    """

    median: float
    low: float
    high: float
    repeats: int

    def __str__(self) -> str:
        return f"{self.median:.2f} ({self.low:.2f}–{self.high:.2f})"


@dataclass(frozen=True)
class MeanStd:
    """A mean over seeds and the sample standard deviation (0.0 for one seed); prints as `0.960 ± 0.004`.

    Args:
        mean: the mean.
        std: the standard deviation with n - 1 in the denominator.
        seeds: the number of values.
    """

    mean: float
    std: float
    seeds: int

    def __str__(self) -> str:
        return f"{self.mean:.3f} ± {self.std:.3f}" if self.seeds > 1 else f"{self.mean:.3f} (one seed)"


def interleaved(names: Sequence[str], repeats: Iterable[T]) -> Iterator[tuple[str, T]]:
    """Every name once per repeat, so that a drift of the machine falls on all alike.

    Every other repeat goes through the names backwards, so that none always comes first.

    Args:
        names: the things to compare.
        repeats: their numbers, or seeds.
    """
    for position, repeat in enumerate(repeats):
        yield from ((name, repeat) for name in names[:: 1 if position % 2 == 0 else -1])


def interleave(runs: Mapping[str, Callable[[], T]], repeats: int) -> dict[str, list[T]]:
    """Call every run once per repeat, in the order of `interleaved`.

    Args:
        runs: the things to compare, by name.
        repeats: how often each is called.
    """
    results: dict[str, list[T]] = {name: [] for name in runs}
    for name, _ in interleaved(list(runs), range(repeats)):
        results[name].append(runs[name]())
    return results


def fresh(function: Callable[..., T], *arguments: Any, **options: Any) -> T:
    """Call a function in a new process, so that nothing another run has set, warmed up or kept plays a part.

    Args:
        function: a function of a module.
        *arguments: what it takes; they and the result must be picklable.
        **options: the same by name.
    """
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(function, *arguments, **options).result()


def median_ratio(numerators: Sequence[float], denominators: Sequence[float]) -> Spread:
    """The median, least and greatest of the ratios of paired measurements, as `interleave` makes them.

    For "how many times faster are we" divide the peer's seconds by ours.
    """
    if len(numerators) != len(denominators) or not numerators:
        raise ValueError(f"paired measurements needed, got {len(numerators)} and {len(denominators)}")
    ratios = [a / b for a, b in zip(numerators, denominators, strict=True)]
    return Spread(statistics.median(ratios), min(ratios), max(ratios), len(ratios))


def mean_std(values: Sequence[float]) -> MeanStd:
    """Mean and sample standard deviation of one value per seed."""
    return MeanStd(statistics.mean(values), statistics.stdev(values) if len(values) > 1 else 0.0, len(values))


def confidence_interval(values: Sequence[float], level: float = 0.95) -> tuple[float, float]:
    """Between which numbers the mean of a normal distribution lies, by Student's t; two values at least."""
    from scipy.stats import t

    middle, error = statistics.mean(values), statistics.stdev(values) / len(values) ** 0.5
    reach = float(t.ppf((1 + level) / 2, len(values) - 1)) * error
    return middle - reach, middle + reach


def native_bf16() -> bool:
    """Whether the CPU multiplies bfloat16 in hardware (AVX512_BF16 or AMX); without it bf16 is slower than fp32."""
    return any(
        bool(getattr(torch.cpu, probe, lambda: False)())
        for probe in ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    )


def precision_note() -> str:
    """What benchmarks that take bf16 where it is native say of their precision."""
    return "bf16 autocast" if native_bf16() else "fp32, as this CPU has no bf16"


def machine() -> dict[str, Any]:
    """The hardware and the settings that decide a speed; nothing that names the host."""
    return {
        "cpu": _cpu_model(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "native_bf16": native_bf16(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_gib": _memory_gib(),
        "transparent_huge_pages": _transparent_huge_pages(),
        "float32_matmul_precision": torch.get_float32_matmul_precision(),
        "system": f"{platform.system()} {platform.machine()}",
    }


def versions() -> dict[str, str | None]:
    """Versions of Python, the libraries and llm_arch, and the git revision, marked `+dirty` for uncommitted changes."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for library in LIBRARIES:
        try:
            found[library] = metadata.version(library)
        except metadata.PackageNotFoundError:
            found[library] = None
    found["llm_arch"] = _own_version()
    found["git"] = _git_revision()
    return found


def command_line(data_directory: str | Path | None = None) -> str:
    """The command this process was started with, free of paths of this machine.

    The data directory reads `DIR`, whether it came as an argument or from the environment variable LLM_ARCH_DATA; other
    absolute paths are shown relative to the repository, or by their last part.

    Args:
        data_directory: the data directory, to recognise it in any argument.
    """
    arguments = [_plain(argument, data_directory) for argument in sys.orig_argv[1:]]
    if "--data" in arguments[:-1]:
        arguments[arguments.index("--data") + 1] = "DIR"
    arguments = ["--data=DIR" if argument.startswith("--data=") else argument for argument in arguments]
    from_environment = "DIR" not in arguments and "--data=DIR" not in arguments and "LLM_ARCH_DATA" in os.environ
    threads = [f"{name}={os.environ[name]}" for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS") if name in os.environ]
    prefix = ["LLM_ARCH_DATA=DIR"] if from_environment else []
    return " ".join(prefix + threads + ["python"] + [shlex.quote(argument) for argument in arguments])


def write_results(
    name: str, payload: Mapping[str, Any], table_markdown: str, *, data_directory: str | Path | None = None
) -> tuple[Path, Path]:
    """Write `benchmarks/results/<name>.json` and `.md`, both with machine, versions, date and command line.

    Args:
        name: the name of the benchmark.
        payload: the measurements as JSON-able values; a dataclass such as `Spread` is written as its fields.
        table_markdown: the table (and any text) for readers.
        data_directory: the data directory, shown as `DIR`.
    """
    RESULTS.mkdir(parents=True, exist_ok=True)
    date, command = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"), command_line(data_directory)
    hardware, software = machine(), versions()
    record = {"name": name, "date": date, "command": command, "machine": hardware, "versions": software}
    json_path, markdown_path = RESULTS / f"{name}.json", RESULTS / f"{name}.md"
    text = json.dumps(record | {"results": dict(payload)}, indent=2, ensure_ascii=False, default=_jsonable)
    if data_directory is not None:  # a path of this machine
        text = text.replace(json.dumps(str(data_directory)), '"DIR"')
    for path in sorted({found for found in _PATH.findall(text) if Path(found).exists()}, reverse=True):
        text = text.replace(path, f"PATH/{Path(path).name}")  # in sentences too
    json_path.write_text(text + "\n", encoding="utf-8")
    bf16 = "native bf16" if hardware["native_bf16"] else "no native bf16"
    libraries = ", ".join(f"{key} {value}" for key, value in software.items() if value and key != "git")
    lines = [
        f"# {name}",
        "",
        table_markdown.strip(),
        "",
        f"- Command: `{command}`",
        f"- Date: {date}",
        f"- Machine: {hardware['cpu']}, {hardware['cpu_capability']}, {bf16}, {hardware['cores']} cores, "
        f"{hardware['threads']} threads, {hardware['memory_gib']} GiB, "
        f"transparent huge pages: {hardware['transparent_huge_pages']}",
        f"- Versions: {libraries}",
        f"- Revision: {software['git'] or 'none'}",
    ]
    markdown_path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return json_path, markdown_path


def _plain(argument: str, data_directory: str | Path | None) -> str:
    """One argument without paths of this machine."""
    option, equals, value = argument.partition("=") if argument.startswith("-") else ("", "", argument)
    path = Path(value)
    if data_directory is not None and value and path.expanduser().resolve() == Path(data_directory).resolve():
        return f"{option}{equals}DIR"
    if not path.is_absolute():
        return argument
    inside = path.is_relative_to(REPOSITORY)
    return f"{option}{equals}{path.relative_to(REPOSITORY) if inside else Path('PATH') / path.name}"


def _jsonable(value: object) -> object:
    """Values json does not know: dataclasses as their fields, paths by name, the rest as text."""
    if hasattr(value, "__dataclass_fields__"):
        return {field: getattr(value, field) for field in value.__dataclass_fields__}
    return value.name if isinstance(value, Path) else str(value)


def _cpu_model() -> str:
    """The CPU's model name."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _memory_gib() -> float | None:
    """Physical memory in GiB, or None where the system does not tell."""
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    except (AttributeError, OSError, ValueError):
        return None


def _transparent_huge_pages() -> str:
    """The kernel's setting ("always", "madvise", "never"): large zeroed gradients cost a fault per page."""
    try:
        setting = Path("/sys/kernel/mm/transparent_hugepage/enabled").read_text(encoding="utf-8")
    except OSError:
        return "unknown"
    return setting.partition("[")[2].partition("]")[0] or "unknown"


def _own_version() -> str | None:
    """The version of llm_arch, installed or importable from the working tree."""
    try:
        return metadata.version("llm_arch")
    except metadata.PackageNotFoundError:
        try:
            import llm_arch
        except ImportError:
            return None
        return str(llm_arch.__version__)


def _git_revision() -> str | None:
    """The commit the working tree stands on; earlier results do not count as a change."""
    revision = _git("rev-parse", "--short=12", "HEAD")
    if not revision:
        return None
    changed = _git("status", "--porcelain", "--", ".", ":(exclude)benchmarks/results")
    return f"{revision}+dirty" if changed else revision


def _git(*arguments: str) -> str | None:
    """The output of a git command in the repository, or None where it fails."""
    try:
        done = subprocess.run(["git", "-C", str(REPOSITORY), *arguments], capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
