"""Stores and tokenizers that a run makes for itself, kept in the cache and found again by what they were made from."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, get_args

from filelock import FileLock

from llm_arch.corpus import prepare, shards  # as modules: both import from llm_arch.data, which imports this
from llm_arch.corpus.deduplicate import Deduplicate
from llm_arch.corpus.documents import documents
from llm_arch.corpus.inputs import Unit, fingerprint, parts_of
from llm_arch.corpus.tokenizer_training import Kind, train_tokenizer
from llm_arch.types import UserError

_TRAINED = "trained:"
# Raise when other texts or tokens would come out of the same input: older caches are then made anew.
_VERSION = 1


def cached_store(
    source: str, tokenizer: Any, root: Path, *, unit: Unit, column: str, deduplicate: Deduplicate
) -> shards.Store:
    """The store of a corpus that is given as text, made first when there is none.

    Args:
        source: files, a folder, a glob, `stdlib` or `hub:NAME`.
        tokenizer: what makes the tokens.
        root: folder of the cache.
        unit: what a document of a plain text file is, as for `prepare`.
        column: where the text stands in .jsonl, .parquet and hub sets.
        deduplicate: as for `prepare`.
    """
    from llm_arch.data.store import key_of
    from llm_arch.data.tokenizers import fingerprint as fingerprint_of

    parts = fingerprint(parts_of([source], unit))
    key = key_of({"store": [_VERSION, shards.VERSION, source, parts, column, deduplicate, fingerprint_of(tokenizer)]})
    return prepare.prepare(
        [source], tokenizer, root / "corpora" / key, documents=unit, column=column, deduplicate=deduplicate
    )


def is_store(source: str) -> bool:
    """Whether a source names a store, finished or not, and no text."""
    place = Path(source).expanduser()
    return any((place / name).is_file() for name in (shards.MANIFEST, shards.JOURNAL))


def is_to_train(name: str) -> bool:
    """Whether a tokenizer's name asks for one to be trained: `trained:KIND:SIZE`."""
    return name.startswith(_TRAINED)


def cached_tokenizer(name: str, source: str, root: Path, *, unit: Unit, column: str) -> Path:
    """The directory of a tokenizer trained on a corpus, trained first when there is none.

    Args:
        name: `trained:KIND:SIZE`.
        source: the corpus, as text.
        root: folder of the cache.
        unit: what a document of a plain text file is, as for `prepare`.
        column: where the text stands in .jsonl, .parquet and hub sets.

    Raises:
        UserError: when the name asks for no kind that there is, or the corpus is not text any more.
    """
    made_of = [source, fingerprint(parts_of([source], unit)), column]
    return trained_on(
        name, made_of, lambda: (document.text for document in documents([source], unit, column=column)), root
    )


def trained_on(name: str, made_of: list[Any], texts: Callable[[], Iterable[str]], root: Path) -> Path:
    """The directory of a tokenizer trained on some texts, trained first when there is none.

    Args:
        name: `trained:KIND:SIZE`.
        made_of: what tells these texts from all others, JSON-able.
        texts: gives them.
        root: folder of the cache.

    Raises:
        UserError: when the name asks for no kind that there is.
    """
    from llm_arch.data.store import key_of

    kind, _, size = name.removeprefix(_TRAINED).partition(":")
    if kind not in get_args(Kind) or not size.isdecimal():
        raise UserError(
            f"data.tokenizer is {name!r}; to train one write trained:KIND:SIZE with a kind out of "
            f"{', '.join(get_args(Kind))}, such as trained:bpe:8192"
        )
    home = root / "tokenizers"
    key = key_of({"tokenizer": [_VERSION, kind, int(size), *made_of]})
    home.mkdir(parents=True, exist_ok=True)
    # Ranks of one machine ask for the same tokenizer at once: the first trains it, the others wait.
    with FileLock(home / f"{key}.lock"):
        if not (home / key).is_dir():
            temporary = Path(tempfile.mkdtemp(prefix=f"{key}.", dir=home))
            try:
                train_tokenizer(texts(), kind, int(size)).save_pretrained(temporary)  # type: ignore[arg-type]
                temporary.rename(home / key)
            finally:
                shutil.rmtree(temporary, ignore_errors=True)
    return home / key
