"""Train a tokenizer on text: WordPiece, byte-level BPE or Unigram, saved as any fast tokenizer of transformers."""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

from llm_arch.types import UserError

Kind = Literal["wordpiece", "bpe", "unigram"]

# What a tokenizer's directory may hold; a tokenizer never takes the place of anything else.
_TOKENIZER_FILES = {"tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"}
_AT_ONCE = 256  # texts handed over together
# What BERT takes for a word by itself, by blocks of Unicode.
_CHINESE = re.compile(
    "[\u4e00-\u9fff\u3400-\u4dbf\uf900-\ufaff\U00020000-\U0002a6df\U0002a700-\U0002ceaf\U0002f800-\U0002fa1f]"
)


class _Specials(NamedTuple):
    """The tokens of a kind that are no text, in the order of their ids, and where the first and last of a text go."""

    names: tuple[str, ...]
    first: str
    last: str
    pad: str
    mask: str
    unknown: str | None


_SPECIALS: dict[str, _Specials] = {
    "wordpiece": _Specials(
        ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"), "[CLS]", "[SEP]", "[PAD]", "[MASK]", "[UNK]"
    ),
    # One token stands between documents, and so both before and behind each.
    "bpe": _Specials(
        ("<|endoftext|>", "<|pad|>", "<|mask|>"), "<|endoftext|>", "<|endoftext|>", "<|pad|>", "<|mask|>", None
    ),
    "unigram": _Specials(("<s>", "<pad>", "</s>", "<unk>", "<mask>"), "<s>", "</s>", "<pad>", "<mask>", "<unk>"),
}


def train_tokenizer(
    texts: Iterable[str],
    kind: Kind,
    vocabulary: int,
    *,
    lowercase: bool = False,
    min_frequency: int | None = None,
    special_tokens: Sequence[str] = (),
    progress: bool = True,
) -> Any:
    """A `PreTrainedTokenizerFast`; the same texts give the same one.

    Every kind serves masked and causal language models and what is fine-tuned from them: it has tokens for padding and
    for masking, one that begins a text (`bos_token`, `cls_token`) and one that ends it (`eos_token`, `sep_token`).

    - `wordpiece`: that of BERT (Schuster & Nakajima 2012; Devlin et al. 2019), which takes each Chinese character for a
      word. Two texts have token types. Characters that were not in the texts are unknown, and so is spacing.
    - `bpe`: byte-pair encoding (Sennrich et al. 2016) of the bytes, as GPT-2's. Nothing is unknown, and what is decoded
      is what was encoded, to the last space. `<|endoftext|>` both begins and ends a text.
    - `unigram`: a language model of pieces (Kudo 2018), on text normalised as SentencePiece does by default (NFKC, runs
      of white space to one space). Characters that were not in the texts are unknown. Where no spaces are between
      words, all of the text is held in memory; with the others only its different words are.

    Args:
        texts: documents, read once.
        kind: wordpiece, bpe or unigram.
        vocabulary: tokens at most, special ones included; small corpora give fewer.
        lowercase: read capitals as small letters; wordpiece then drops accents too, as BERT's does.
        min_frequency: how often a pair must occur to be joined, 2 by default; not for unigram.
        special_tokens: more tokens that are never split, behind those of the kind.
        progress: show bars, where somebody is watching.

    Raises:
        UserError: when there is no text, or the vocabulary can't hold every character.
    """
    if kind not in get_args(Kind):
        raise UserError(f"the kind of tokenizer must be one of {', '.join(get_args(Kind))}, got {kind!r}")
    if min_frequency is not None and kind == "unigram":
        raise UserError("min_frequency is for wordpiece and bpe; unigram chooses its pieces otherwise, leave it out")
    if min_frequency is not None and min_frequency < 1:
        raise UserError(f"min_frequency must be at least 1, got {min_frequency}")
    specials = _SPECIALS[kind]
    names = list(dict.fromkeys([*specials.names, *special_tokens]))
    least = len(names) + (256 if kind == "bpe" else 1)
    if vocabulary < least:
        bytes_ = ", one for every byte" if kind == "bpe" else ""
        raise UserError(f"a {kind} vocabulary has at least {least} tokens{bytes_}, got {vocabulary}; take a larger one")
    common: dict[str, Any] = {"vocab_size": vocabulary, "show_progress": progress and sys.stderr.isatty()}
    if kind != "unigram":
        common["min_frequency"] = 2 if min_frequency is None else min_frequency
    counted = _Counted(texts)
    model = _TRAIN[kind](_untrained(kind, lowercase), counted, names, common)
    tokenizer = _untrained(kind, lowercase)  # anew: training may have added tokens that are not to be kept
    tokenizer.model = model
    if not counted.any:
        raise UserError("there is no text to train a tokenizer on; name files with text in them")
    if tokenizer.get_vocab_size() > vocabulary:
        raise _too_many_characters(vocabulary)
    # Where a word's token has its space in front, a masked word takes the space with it.
    mask = AddedToken(specials.mask, lstrip=kind != "wordpiece", normalized=False, special=True)
    tokenizer.add_special_tokens([mask if name == specials.mask else name for name in names])
    tokenizer.post_processor = _template(tokenizer, specials)
    return _wrapped(tokenizer, kind, specials, special_tokens)


def _wordpiece(tokenizer: Tokenizer, texts: _Counted, names: list[str], options: dict[str, Any]) -> models.Model:
    """Characters within words get their ids from a hash map, unless they have them before: ids decide between pairs."""
    within = _within_words()
    options = options | {"vocab_size": options["vocab_size"] + len(within)}
    tokenizer.train_from_iterator(texts, trainers.WordPieceTrainer(**options, special_tokens=[*names, *within]))
    ids = tokenizer.get_vocab()
    unseen = {token for token in within if token.removeprefix("##") not in ids}
    ordered = [token for token in sorted(ids, key=ids.__getitem__) if token not in unseen]
    least = len(names) + len(within) - len(unseen) + sum(len(token) == 1 for token in ordered)
    size = max(least, options["vocab_size"] - len(within))
    return models.WordPiece({token: i for i, token in enumerate(ordered[:size])}, unk_token="[UNK]")


@cache
def _within_words() -> list[str]:
    """Whatever BERT's words may have within them: letters, marks, numbers and symbols, Chinese characters excepted."""
    chars = (chr(point) for point in range(0x21, sys.maxunicode + 1))
    return [f"##{char}" for char in chars if unicodedata.category(char)[0] in "LMNS" and not _CHINESE.match(char)]


def _bpe(tokenizer: Tokenizer, texts: _Counted, names: list[str], options: dict[str, Any]) -> models.Model:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(**options, special_tokens=names, initial_alphabet=alphabet)
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer.model


def _unigram(tokenizer: Tokenizer, texts: _Counted, names: list[str], options: dict[str, Any]) -> models.Model:
    """Sums run in the order of a hash map, so that scores differ in their last digits: three decimals are kept."""
    try:
        trainer = trainers.UnigramTrainer(**options, special_tokens=names, unk_token="<unk>")
        tokenizer.train_from_iterator(texts, trainer)
    except Exception as error:  # `tokenizers` raises no other kind
        if "not large enough" in str(error):
            raise _too_many_characters(options["vocab_size"]) from error
        raise
    found: list[tuple[str, float]] = [
        (piece, score) for piece, score in json.loads(tokenizer.to_str())["model"]["vocab"] if piece not in names
    ]
    # Characters that no text needs by themselves lie 0.0001 above each other, in that order too.
    lowest = min((score for _, score in found), default=0.0)
    edge = lowest + 1e-4 * sum(len(piece) == 1 for piece, _ in found)
    found = [(piece, round(lowest if len(piece) == 1 and score <= edge else score, 3)) for piece, score in found]
    found.sort(key=lambda one: (-one[1], one[0]))
    return models.Unigram([*((name, 0.0) for name in names), *found], unk_id=names.index("<unk>"))


_TRAIN = {"wordpiece": _wordpiece, "bpe": _bpe, "unigram": _unigram}


def _too_many_characters(vocabulary: int) -> UserError:
    return UserError(
        f"the text has too many different characters for a vocabulary of {vocabulary:,} tokens; take a larger one, or "
        "kind bpe, which needs 256 for any text"
    )


def _untrained(kind: Kind, lowercase: bool) -> Tokenizer:
    """How text is cut into words, and put together again."""
    if kind == "wordpiece":
        tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
        tokenizer.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
        tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        tokenizer.decoder = decoders.WordPiece(prefix="##")
    elif kind == "bpe":
        tokenizer = Tokenizer(models.BPE())
        if lowercase:
            tokenizer.normalizer = normalizers.Lowercase()
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
    else:
        tokenizer = Tokenizer(models.Unigram())
        steps = [normalizers.Nmt(), normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")]
        tokenizer.normalizer = normalizers.Sequence([*steps, *([normalizers.Lowercase()] if lowercase else [])])
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
        tokenizer.decoder = decoders.Metaspace()
    return tokenizer


class _Counted:
    """The texts in lists, and whether any held something."""

    def __init__(self, texts: Iterable[str]) -> None:
        self.texts = iter(texts)
        self.any = False

    def __iter__(self) -> Iterator[list[str]]:
        while batch := list(islice(self.texts, _AT_ONCE)):
            self.any = self.any or any(text.strip() for text in batch)
            yield batch


def _template(tokenizer: Tokenizer, specials: _Specials) -> processors.PostProcessor:
    first, last = specials.first, specials.last
    ids = [(name, tokenizer.token_to_id(name)) for name in dict.fromkeys((first, last))]
    return processors.TemplateProcessing(
        single=f"{first} $A {last}", pair=f"{first} $A {last} $B:1 {last}:1", special_tokens=ids
    )


def _wrapped(tokenizer: Tokenizer, kind: Kind, specials: _Specials, more: Sequence[str]) -> Any:
    from transformers import PreTrainedTokenizerFast

    columns = ["input_ids", *(["token_type_ids"] if kind == "wordpiece" else []), "attention_mask"]
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=specials.first,
        cls_token=specials.first,
        eos_token=specials.last,
        sep_token=specials.last,
        pad_token=specials.pad,
        mask_token=specials.mask,
        unk_token=specials.unknown,
        additional_special_tokens=list(more),
        model_input_names=columns,
        clean_up_tokenization_spaces=False,
    )


def save_tokenizer(tokenizer: Any, directory: Path, *, overwrite: bool = False) -> None:
    """Write a tokenizer's directory all or nothing.

    Args:
        tokenizer: what `train_tokenizer` made.
        directory: where it goes.
        overwrite: replace a tokenizer that lies there.

    Raises:
        UserError: when something is there already, or it can't be written.
    """
    check_free(directory, overwrite=overwrite)
    temporary = directory.with_name(f".{directory.name}.{os.getpid()}")
    try:
        temporary.mkdir(parents=True)
        tokenizer.save_pretrained(temporary)
        if overwrite:
            shutil.rmtree(directory, ignore_errors=True)
        temporary.rename(directory)  # takes the place of an empty folder
    except OSError as error:
        raise UserError(f"{directory} can't be written: {error.strerror or error}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def check_free(directory: Path, *, overwrite: bool = False) -> None:
    """Raise UserError when something is there that writing would replace; with `overwrite`, more than a tokenizer."""
    names = {path.name for path in directory.iterdir()} if directory.is_dir() else set()
    if overwrite and names and (others := names - _TOKENIZER_FILES):
        raise UserError(
            f"{directory} holds more than a tokenizer ({min(others)}), which --overwrite does not remove; "
            "name another directory"
        )
    if directory.is_file() or (names and not overwrite):
        raise UserError(f"{directory} already exists; name another directory, or remove it first")
