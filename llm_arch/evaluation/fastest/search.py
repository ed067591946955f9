"""The fastest way to run a model on this machine that keeps its quality: every one is made, measured and compared.

Ways take turns at the rows of a file, one row at a time, from text to prediction.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

from llm_arch import lineage, model_directory
from llm_arch.data.reading import missing
from llm_arch.evaluation.benchmark import quality, rows, timing
from llm_arch.evaluation.benchmark.in_turns import milliseconds_a_row
from llm_arch.evaluation.fastest.shown import section
from llm_arch.evaluation.fastest.ways import Fastest, Way, judged
from llm_arch.inference import Predictor
from llm_arch.inference.card import model_card
from llm_arch.inference.directory import Model, load
from llm_arch.inference.export import bf16
from llm_arch.inference.export.comparison import agreement, answers, unit_of
from llm_arch.inference.export.exporting import Exporter
from llm_arch.inference.export.runtime import PRECISIONS, Precision, runtime_of
from llm_arch.precision import cpu_has_bf16
from llm_arch.types import UserError

RUNTIMES = ("onnx", "openvino")
AS_IT_IS = "as it is"
_COMPARED, _TIMED = 256, 64  # rows of the file


@dataclass
class _Candidate:
    way: Way
    open: Callable[[], Model]


def fastest(
    model: str | Path,
    data: str,
    directory: str | Path,
    *,
    agreement: float | None = None,
    points: float | None = None,
    runtimes: Sequence[str] = RUNTIMES,
    threads: int = 1,
    seconds: float = 3.0,
    trust: tuple[str, ...] = (),
    advance: Callable[[str, float], None] = lambda what, share: None,
) -> Fastest:
    """Write the fastest way to run a model as a model directory, all or nothing.

    Tried are the model as it is, in fp32 and bfloat16, and every precision of the runtimes. What can't be had here is
    listed with the reason. Scales that are fixed are set by rows of the file.

    Args:
        model: a model directory that is not exported.
        data: rows as for prediction or, with labels, as for `llm-arch test`.
        directory: where it goes.
        agreement: least share of rows that must be predicted as by the model as it is, in [0, 1]; 0.98 for rows without
            labels. With labels it takes the place of `points`.
        points: hundredths that the head's metric may lose where more of it is better, and percent that it may gain
            where less is, at least 0; 1 for rows with labels.
        runtimes: of `onnx` and `openvino`.
        threads: of each way.
        seconds: of timing, for each way; more where three rounds take longer.
        trust: modules outside this package that the model may use.
        advance: told what is being done and which share of it, in [0, 1], is.

    Returns:
        What was measured, and which way was kept.

    Raises:
        UserError: an argument or the rows are wrong, or the model is none that can be exported.
    """
    home, directory = model_directory.home(Path(model)), Path(directory)
    _check(agreement, points, runtimes, threads, seconds)
    if directory.resolve() == home.resolve():
        raise UserError(f"{directory} is the model itself; name another folder for what is fastest")
    made: list[Fastest] = []

    def save(folder: Path) -> dict[str, Any]:
        with timing.on_threads(threads), tempfile.TemporaryDirectory(dir=folder.parent, prefix=".") as temporary:
            search = _Search(home, data, directory, Path(temporary), trust, advance)
            found = search.run(agreement, points, runtimes, threads, seconds)
            made.append(found)
            return _written(search, found, folder)

    model_directory.write(directory, save)
    return made[0]


class _Search:
    """Makes and measures every way.

    Args:
        home: the model directory.
        data: rows.
        directory: where the fastest goes.
        temporary: where all others lie until then.
        trust: modules that the model may use.
        advance: told what is being done.
    """

    def __init__(
        self,
        home: Path,
        data: str,
        directory: Path,
        temporary: Path,
        trust: tuple[str, ...],
        advance: Callable[[str, float], None],
    ) -> None:
        self.home, self.data, self.directory, self.temporary = home, data, directory, temporary
        self.trust, self.advance = trust, advance
        self.model = load(home, trust=trust)
        self.rows = rows.rows_of(self.model.data, data)
        if not self.rows:
            raise UserError(f"{data} has no rows that can be read; name another file")
        form, first = self.model.data, self.rows[0]
        for number, row in enumerate(self.rows, start=1):
            absent = missing([name for name, always in form.columns_of(row).items() if always], row)
            if fault := absent or form.fault(row, False):
                raise UserError(f"{data}, row {number}{' ' if absent else ': '}{fault}")
        self.labelled = missing(form.columns_of(first), first) is None and form.fault(first, True) is None
        self.exporter = Exporter(self.model, self.rows[:_COMPARED])

    def run(
        self, least: float | None, points: float | None, runtimes: Sequence[str], threads: int, seconds: float
    ) -> Fastest:
        if points is not None and not self.labelled:
            raise UserError(f"{self.data} has no labels, and --points is of a metric; give --agreement instead")
        candidates, lost = [self._as_it_is()], []
        makers = {f"{AS_IT_IS}, bf16": self._in_bf16}
        for runtime in runtimes:
            makers |= {
                f"{runtime}, {precision}": partial(self._exported, runtime, precision) for precision in PRECISIONS
            }
        for i, (name, make) in enumerate(makers.items()):
            self.advance(name, i / len(makers))
            try:
                candidates.append(make())
            except UserError as error:
                lost.append(Way(name, verdict=str(error).replace(str(self.temporary / name), "it")))
            except Exception as error:  # of as many kinds as there are runtimes; the other ways may do
                lost.append(Way(name, verdict=(str(error).strip().splitlines() or [type(error).__name__])[0][:200]))
        metric, mode = self._measure_quality(candidates)
        predictors = [Predictor(one.open(), device="cpu") for one in candidates]
        timed = rows.spread(self.rows, _TIMED)
        times = milliseconds_a_row(
            predictors, timed, seconds=seconds * len(predictors), advance=lambda share: self.advance("timing", share)
        )
        ways = [replace(one.way, ms=ms) for one, ms in zip(candidates, times, strict=True)]
        limit, ways = judged(ways, metric, mode, least, points)
        machine = str(lineage.hardware()["cpu"])
        return Fastest((*ways, *lost), metric, mode, limit, len(self.exporter.rows), len(timed), threads, machine)

    def _as_it_is(self) -> _Candidate:
        size = sum(path.stat().st_size for path in self.home.glob("*.safetensors"))
        return _Candidate(Way(f"{AS_IT_IS}, fp32", size, agreement=1.0), lambda: load(self.home, trust=self.trust))

    def _in_bf16(self) -> _Candidate:
        def open_() -> Model:
            model = load(self.home, trust=self.trust)
            bf16.serve_in_bf16(model.backbone)
            return model

        if not cpu_has_bf16():
            raise UserError("this CPU does not compute in bf16")
        after = answers(open_(), self.exporter.rows).predictions
        same = agreement(self.exporter.before.predictions, after, unit_of(self.model.head))
        return _Candidate(replace(self._as_it_is().way, name=f"{AS_IT_IS}, bf16", agreement=same), open_)

    def _exported(self, runtime: str, precision: Precision) -> _Candidate:
        found_runtime, name = runtime_of(runtime), f"{runtime}, {precision}"
        if precision in found_runtime.refused:
            raise UserError(found_runtime.refused[precision])
        folder = self.temporary / name
        found = self.exporter.write(folder, runtime, precision, 0.0, named=self.directory)
        return _Candidate(Way(name, found.bytes, agreement=found.agreement), lambda: load(folder, trust=self.trust))

    def _measure_quality(self, candidates: Sequence[_Candidate]) -> tuple[str | None, Literal["min", "max"] | None]:
        if not self.labelled:
            return None, None
        name, mode = self.model.head.major, self.model.head.mode
        for i, one in enumerate(candidates):
            self.advance(f"{one.way.name}: {name}", i / len(candidates))
            _, value, _ = quality.metric(one.open(), self.data, precision="32-true")
            one.way = replace(one.way, value=value)
        return name, mode


def _written(search: _Search, found: Fastest, folder: Path) -> dict[str, Any]:
    """Fill the folder with the kept way; returns the record."""
    name, model = found.kept.name, search.model
    if name.startswith(AS_IT_IS):
        source, record = search.home, dict(model.record)
        half = name.endswith("bf16")
        record = bf16.mark(record) if half else record
        parents = lineage.parents({"made of": str(search.home)})
        record["lineage"] = {**record.get("lineage", {}), **lineage.surroundings(), "parents": parents}
        record["metrics"] = {} if half else record.get("metrics", {})
    else:
        source = search.temporary / name
        record = model_directory.read(source)
    shutil.copytree(source, folder, dirs_exist_ok=True)
    record["records"] = {**record.get("records", {}), "fastest": asdict(found)}
    columns = [column for column, always in model.data.columns.items() if always]
    written = source / model_directory.CARD
    card = (
        model_card(record, search.directory, columns) if source == search.home else written.read_text(encoding="utf-8")
    )
    (folder / model_directory.CARD).write_text(card + section(found), encoding="utf-8")
    return record


def _check(
    agreement: float | None, points: float | None, runtimes: Sequence[str], threads: int, seconds: float
) -> None:
    if agreement is not None and points is not None:
        raise UserError("agreement and points are two limits; give one")
    if agreement is not None and not 0 <= agreement <= 1:
        raise UserError(f"agreement must be in [0, 1], got {agreement:g}")
    if points is not None and not points >= 0:
        raise UserError(f"points must be at least 0, got {points:g}")
    if threads < 1:
        raise UserError(f"threads must be at least 1, got {threads}")
    if not seconds > 0:
        raise UserError(f"seconds must be above 0, got {seconds:g}")
    for name in runtimes:
        if name not in RUNTIMES:
            raise UserError(f"runtimes must be of {' and '.join(RUNTIMES)}, got {name!r}")
