"""What pretraining is measured on: texts, cut into parts by documents, and tokenizers for them.

The standard library of the running Python is the default, so that nothing needs to be fetched; WikiText-2 and
tiny-shakespeare are read from the folder of the evaluation sets.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from benchmarks.evaluation_data import data_root, load, write_jsonl
from benchmarks.peer_trainer import minilm_directory

Unit = Literal["file", "block", "line"]

CORPORA = ("stdlib", "stdlib:docs", "stdlib:source", "wikitext2")
_HEADING = re.compile(r"^ = [^=].*[^=] = $")  # of an article; those of its sections have more signs
_AT_ONCE = 64


@dataclass(frozen=True)
class Corpus:
    """Documents to train on and documents held out, each a JSON line `{"text": …}` of a file.

    Args:
        train: the file of the training documents.
        validation: the file of the documents to tune on.
        test: the file of the documents to report on.
        tokenizer: the directory of the tokenizer.
        tokens: tokens of the training documents, special tokens not counted.
    """

    train: Path
    validation: Path
    test: Path
    tokenizer: Path
    tokens: int


def documents_of(name: str, data: str | None) -> list[str]:
    """The documents of a corpus: files of the standard library, or articles.

    Args:
        name: one of `CORPORA`.
        data: the folder of the evaluation sets, for those that come from there; None for LLM_ARCH_DATA.
    """
    if name == "wikitext2":
        articles: list[list[str]] = []
        for row in load(name, data_root(data))["train"]:
            if _HEADING.match(row["text"]):
                articles.append([])
            if articles:
                articles[-1].append(row["text"])
        return ["\n".join(lines) for lines in articles]
    from llm_arch.corpus.documents import documents

    return [document.text for document in documents([name])]


def parts_of(texts: Iterable[str], unit: Unit) -> list[str]:
    """The texts as they are, or what lies between their line breaks or their blank lines, but nothing blank."""
    if unit == "file":
        return list(texts)
    between = re.compile(r"\n" if unit == "line" else r"\n\s*\n")
    return [part.strip() for text in texts for part in between.split(text) if part.strip()]


def shuffled(texts: Sequence[str], seed: int = 0) -> list[str]:
    """The documents in an order that depends on the seed alone."""
    return random.Random(seed).sample(list(texts), len(texts))


def make_corpus(
    texts: Sequence[str], tokenizer_directory: Path, tokens: int, folder: Path, *, unit: Unit = "file"
) -> Corpus:
    """Write documents of about so many tokens to train on, and an eighth of that each to tune and report on.

    Args:
        texts: documents in the order they are taken.
        tokenizer_directory: counts the tokens.
        tokens: training tokens; the last document may exceed them, but for what is cut off it.
        folder: where the files go.
        unit: what of these texts is a document: all, a line, or a block between blank lines.
    """
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_directory)
    wanted = {"validation": tokens // 8, "test": tokens // 8, "train": tokens}
    rest, counts = _counted(texts, tokenizer), {}
    for name, least in wanted.items():
        taken: list[str] = []
        counts[name] = 0
        while counts[name] < least:
            text, count = next(rest, (None, 0))
            if text is None:
                raise SystemExit(f"the corpus has too few tokens for {tokens:,} to train on and a quarter held out")
            missing = least - counts[name]
            if count > missing:  # one large file must not decide how much it is
                text = text[: max(1, len(text) * missing // count)]
                count = len(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
            taken.append(text)
            counts[name] += max(1, count)
        write_jsonl(({"text": text} for text in parts_of(taken, unit)), folder / f"{name}.jsonl")
    files = [folder / f"{name}.jsonl" for name in ("train", "validation", "test")]
    return Corpus(*files, tokenizer_directory, counts["train"])


def _counted(texts: Sequence[str], tokenizer: Any) -> Iterator[tuple[str, int]]:
    """Documents with their numbers of tokens, tokenized some at a time."""
    for start in range(0, len(texts), _AT_ONCE):
        some = texts[start : start + _AT_ONCE]
        encoded = tokenizer(some, add_special_tokens=False, verbose=False)["input_ids"]
        yield from ((text, len(ids)) for text, ids in zip(some, encoded, strict=True))


def wordpiece_directory() -> Path:
    """The uncased WordPiece tokenizer of BERT, 30,522 tokens, from the MiniLM package."""
    return minilm_directory()


def train_byte_level(texts: Iterable[str], vocabulary: int, folder: Path) -> Path:
    """A byte-level BPE tokenizer of at most so many tokens, saved to a folder."""
    from llm_arch.corpus.tokenizer_training import train_tokenizer

    train_tokenizer(texts, "bpe", vocabulary).save_pretrained(folder)
    return folder


def character_tokenizer(text: str, folder: Path) -> Path:
    """One token a character that the text has, and none else but an unused one for the unknown, saved to a folder."""
    vocabulary = {character: number for number, character in enumerate(sorted(set(text)))}
    backend = Tokenizer(models.WordLevel({**vocabulary, "<unk>": len(vocabulary)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    backend.decoder = decoders.Fuse()
    PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>").save_pretrained(folder)
    return folder
