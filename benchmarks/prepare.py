"""`llm-arch prepare` against the tokenizer itself, its memory, and flat files against Arrow.

    python -m benchmarks.prepare [--megabytes 2000] [--part 96] [--repeats 5]

Three measurements. Speed: all of `prepare` (starting its processes, reading JSON lines, encoding, hashing, writing)
against `tokenizers`' own `encode_batch_fast` and `encode_batch` on the same texts, which lie in memory already and
whose ids are not even looked at; all cores for each, interleaved. Memory: the verb in a process of its own on the whole
corpus, resident memory of it and its workers every tenth of a second. Storage: windows of 128 tokens at random places
and all documents in order, from our flat files and from an Arrow file through `datasets`.

The text is that of Python's library, its lines shuffled anew for every document and every fifth one spelled in another
random alphabet, so that there are always more different words than a tokenizer's cache holds (10,000).
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import string
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from transformers import AutoTokenizer

from benchmarks.corpora import train_byte_level, wordpiece_directory
from benchmarks.measure import interleave, median_ratio, write_results
from llm_arch.corpus.documents import documents
from llm_arch.corpus.prepare import prepare
from llm_arch.corpus.shards import Store
from llm_arch.corpus.workers import cores

VOCABULARY = 32_768
WINDOW, READS = 128, 20_000
_DOCUMENT_LINES = 80
_ALPHABETS = 997


def texts(seed: int) -> Iterator[str]:
    """Documents of a few kilobytes without end, no two alike."""
    generator = random.Random(seed)
    lines = [line for document in documents(["stdlib"]) for line in document.text.split("\n") if line.strip()]
    small, large = list(string.ascii_lowercase), list(string.ascii_uppercase)
    alphabets = []
    for _ in range(_ALPHABETS):
        generator.shuffle(small)
        generator.shuffle(large)
        letters = string.ascii_lowercase + string.ascii_uppercase
        alphabets.append(str.maketrans(letters, "".join(small) + "".join(large)))
    while True:
        start = generator.randrange(len(lines))
        own = lines[start : start + _DOCUMENT_LINES]
        generator.shuffle(own)
        alphabet = alphabets[generator.randrange(_ALPHABETS)]
        cut = len(own) // 5
        own[:cut] = [line.translate(alphabet) for line in own[:cut]]
        generator.shuffle(own)
        yield "\n".join(own)


def write_corpus(path: Path, megabytes: int, seed: int) -> list[str]:
    """Write JSON lines of about so many megabytes of text; returns the texts where they are at most 100 megabytes."""
    kept: list[str] = []
    size = 0
    with path.open("w", encoding="utf-8") as file:
        for text in texts(seed):
            file.write(json.dumps({"text": text}, ensure_ascii=False) + "\n")
            size += len(text.encode())
            if megabytes <= 100:
                kept.append(text)
            if size >= megabytes * 1_000_000:
                return kept
    return kept


def seconds(run: Callable[[], object]) -> float:
    """Wall-clock seconds of a call."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def speed(name: str, tokenizer: Path, part: int, repeats: int, folder: Path) -> dict[str, Any]:
    """Megabytes a second of `prepare` and of the raw tokenizer."""
    corpus = folder / "part.jsonl"
    kept = write_corpus(corpus, part, seed=1)
    size = sum(len(text.encode()) for text in kept) / 1e6
    ours = AutoTokenizer.from_pretrained(tokenizer)
    backend = ours.backend_tokenizer
    backend.no_truncation()
    backend.no_padding()

    def raw(encode: Callable[..., list[Any]]) -> Callable[[], float]:
        def run() -> float:
            rest = iter(kept)
            start = time.perf_counter()
            while some := list(islice(rest, 1000)):
                encode(some, add_special_tokens=False)
            return time.perf_counter() - start

        return run

    def whole() -> float:
        store = folder / "store"
        shutil.rmtree(store, ignore_errors=True)
        return seconds(lambda: prepare([str(corpus)], ours, store, workers=cores(), progress=False))

    runs = {
        "prepare": whole,
        "encode_batch_fast": raw(backend.encode_batch_fast),
        "encode_batch": raw(backend.encode_batch),
    }
    found = interleave(runs, repeats)
    store = Store.open(folder / "store", check=True)
    distinct = len({word for text in kept for word in text.split()})
    return {
        "tokenizer": name,
        "megabytes": size,
        "tokens": store.manifest["tokens"],
        "distinct_words": distinct,
        "megabytes_per_second": {run: size / sorted(values)[len(values) // 2] for run, values in found.items()},
        "against_fast": median_ratio(found["encode_batch_fast"], found["prepare"]),
        "against_batch": median_ratio(found["encode_batch"], found["prepare"]),
    }


def memory(tokenizer: Path, megabytes: int, folder: Path) -> dict[str, Any]:
    """Peak memory of the verb and its workers on the whole corpus."""
    corpus = folder / "whole.jsonl"
    write_corpus(corpus, megabytes, seed=2)
    command = [sys.executable, "-m", "llm_arch.cli.main", "prepare", "--input", str(corpus)]
    command += ["--tokenizer", str(tokenizer), "--output", str(folder / "whole")]
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    tree = psutil.Process(process.pid)
    resident = proportional = 0
    while process.poll() is None:
        found, shared = _memory(tree)
        resident, proportional = max(resident, found), max(proportional, shared)
        time.sleep(0.1)
    took = time.perf_counter() - start
    assert process.stdout is not None
    said = process.stdout.read()
    if process.returncode:
        raise SystemExit(f"prepare failed: {said}")
    facts = Store.open(folder / "whole").manifest
    return {
        "megabytes": facts["bytes"] / 1e6,
        "tokens": facts["tokens"],
        "seconds": took,
        "megabytes_per_second": facts["bytes"] / 1e6 / took,
        "peak_resident_mib": resident / 2**20,
        "peak_proportional_mib": proportional / 2**20,
        "processes": 1 + cores(),
    }


def _memory(tree: psutil.Process) -> tuple[int, int]:
    """Resident bytes of a process and its children, pages that they share counted in each, and counted once."""
    resident = proportional = 0
    try:
        for process in [tree, *tree.children(recursive=True)]:
            resident += process.memory_info().rss
            proportional += getattr(process.memory_full_info(), "pss", 0)
    except psutil.Error:  # it ended meanwhile
        return 0, 0
    return resident, proportional


def storage(folder: Path) -> dict[str, Any]:
    """Reads a second from our files and from Arrow: random windows, and whole documents in order."""
    import pyarrow
    from datasets import Dataset

    store = Store.open(folder / "store")
    schema = pyarrow.schema({"input_ids": pyarrow.list_(pyarrow.from_numpy_dtype(store.manifest["dtype"]))})
    with pyarrow.ipc.new_stream(str(folder / "rows.arrow"), schema) as writer:
        for first in range(0, len(store), 1000):
            ids = [store.read(number) for number in range(first, min(first + 1000, len(store)))]
            writer.write_table(pyarrow.table({"input_ids": ids}, schema=schema))
    arrow = Dataset.from_file(str(folder / "rows.arrow")).with_format("numpy")
    generator = np.random.default_rng(0)
    numbers = generator.integers(0, len(store), READS)
    starts = (generator.random(READS) * np.maximum(store.lengths[numbers] - WINDOW, 1)).astype(np.int64)
    places = list(zip(numbers.tolist(), starts.tolist(), strict=True))

    def flat_windows() -> float:
        return seconds(lambda: [store.read(n, s, s + WINDOW).sum() for n, s in places])

    def arrow_windows() -> float:
        return seconds(lambda: [arrow[n]["input_ids"][s : s + WINDOW].sum() for n, s in places])

    def flat_documents() -> float:
        return seconds(lambda: [store.read(n).sum() for n in range(len(store))])

    def arrow_documents() -> float:
        return seconds(lambda: [ids.sum() for batch in arrow.iter(1000) for ids in batch["input_ids"]])

    windows = interleave({"flat": flat_windows, "arrow": arrow_windows}, 3)
    whole = interleave({"flat": flat_documents, "arrow": arrow_documents}, 3)
    return {
        "windows_per_second": {name: READS / min(values) for name, values in windows.items()},
        "documents_per_second": {name: len(store) / min(values) for name, values in whole.items()},
    }


def table(results: dict[str, Any]) -> str:
    """The results for readers."""
    lines = [
        "| tokenizer | prepare | encode_batch_fast | encode_batch | prepare / encode_batch_fast | / encode_batch |",
        "|---|---|---|---|---|---|",
    ]
    for found in results["speed"]:
        rate = found["megabytes_per_second"]
        lines.append(
            f"| {found['tokenizer']} | {rate['prepare']:.2f} MB/s | {rate['encode_batch_fast']:.2f} MB/s "
            f"| {rate['encode_batch']:.2f} MB/s | {found['against_fast']} | {found['against_batch']} |"
        )
    first = results["speed"][0]
    lines += [
        "",
        f"{first['megabytes']:.0f} MB of text with {first['distinct_words']:,} different words (target ≥ 0.90).",
    ]
    if (found := results.get("memory")) is not None:
        lines += [
            "",
            f"Memory: peak {found['peak_resident_mib']:,.0f} MiB resident over {found['processes']} processes "
            f"({found['peak_proportional_mib']:,.0f} MiB with shared pages counted once) on "
            f"{found['megabytes']:,.0f} MB of text in {found['seconds']:,.0f} s (target < 1024).",
        ]
    if (found := results.get("storage")) is not None:
        windows, whole = found["windows_per_second"], found["documents_per_second"]
        lines += [
            "",
            f"Storage, reads a second: random windows of {WINDOW} tokens {windows['flat']:,.0f} flat, "
            f"{windows['arrow']:,.0f} Arrow; documents in order {whole['flat']:,.0f} flat, {whole['arrow']:,.0f} Arrow "
            "in batches of 1,000.",
        ]
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> None:
    """Parse and run."""
    parser = argparse.ArgumentParser(
        "python -m benchmarks.prepare", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--megabytes", type=int, default=2000, help="of the corpus that memory is measured on; 0: not")
    parser.add_argument("--part", type=int, default=96, help="megabytes of the part that speed is measured on, ≤ 100")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument(
        "--folder", help="where to put the corpus (a few times its size is written); default: temporary"
    )
    options = parser.parse_args(arguments)
    if "OMP_NUM_THREADS" not in os.environ:
        os.environ["OMP_NUM_THREADS"] = "1"
    with tempfile.TemporaryDirectory(dir=options.folder) as scratch:
        folder = Path(scratch)
        train = islice(texts(seed=3), 4000)
        tokenizers = {
            "WordPiece 30,522": wordpiece_directory(),
            "byte-level BPE 32,768": train_byte_level(train, VOCABULARY, folder / "bpe"),
        }
        results: dict[str, Any] = {"speed": []}
        for name, tokenizer in tokenizers.items():
            results["speed"].append(speed(name, tokenizer, options.part, options.repeats, folder))
            print(table(results), flush=True)
        results["storage"] = storage(folder)
        if options.megabytes:
            results["memory"] = memory(tokenizers["byte-level BPE 32,768"], options.megabytes, folder)
    write_results("prepare", results, table(results))
    print(table(results))


if __name__ == "__main__":
    main()
