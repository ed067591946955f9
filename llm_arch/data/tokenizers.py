"""Loading a fast tokenizer, and telling two of them apart."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llm_arch.locate import for_transformers, locate
from llm_arch.types import UserError
from llm_arch.untrusted import refuse_links_out


def load_tokenizer(name: str) -> Any:
    """The fast tokenizer of a directory, .gguf file, hub id or `package:NAME/FOLDER`.

    Raises:
        UserError: when there is none.
    """
    from transformers import AutoTokenizer

    place, more = for_transformers(locate(name))
    if Path(place).is_dir() and not more:
        refuse_links_out(Path(place))
    try:
        tokenizer = AutoTokenizer.from_pretrained(place, use_fast=True, trust_remote_code=False, **more)
    except Exception as error:  # the Rust library raises nothing narrower, and a damaged file can raise anything
        reason = str(error).splitlines()[0][:120] if str(error) else type(error).__name__
        if more:
            raise UserError(f"{name}: the file holds no tokenizer that can be read ({reason})") from error
        if "trust_remote_code" in str(error):
            reason = "the tokenizer brings Python code of its own, which is not run"
        elif (Path(place) / "tokenizer.json").is_file():
            reason = f"the tokenizer can't be read ({reason})"
        elif Path(place).is_dir():
            reason = "the directory holds no tokenizer (tokenizer.json)"
        else:
            reason = f"no such directory, and the hub could not provide it ({type(error).__name__})"
        raise UserError(f"{name}: {reason}; name a directory that has one with --data.tokenizer") from error
    if not tokenizer.is_fast:
        raise UserError(f"{name}: only fast tokenizers (tokenizer.json) are supported")
    if len(tokenizer) <= len(tokenizer.all_special_ids):
        # transformers makes one of special tokens alone for a folder that has only a config.json.
        raise UserError(
            f"{name}: the directory holds no tokenizer (tokenizer.json); "
            f"name a directory that has one with --data.tokenizer"
        )
    # Sequences are cut at max_length by us, with a count; the tokenizer's own warning would repeat it a row.
    tokenizer.model_max_length = int(1e30)
    return tokenizer


def token_ids(
    tokenizer: Any, texts: Sequence[str], seconds: Sequence[str] | None, max_length: int
) -> tuple[list[list[int]], list[list[int]] | None, list[bool]]:
    """Token ids of texts or of pairs, special tokens included.

    As calling the tokenizer does, on all cores, without what a call of transformers makes of it besides: a single
    short text takes half the time.

    Args:
        tokenizer: a fast tokenizer.
        texts: the texts.
        seconds: the second text of each pair, or None.
        max_length: tokens at most; of pairs the longer text is cut.

    Returns:
        Ids of each; token types of each, or None without pairs or where the tokenizer has none; whether each was cut.
    """
    backend = tokenizer.backend_tokenizer
    backend.enable_truncation(max_length, direction=tokenizer.truncation_side)
    backend.no_padding()
    found = backend.encode_batch_fast(list(texts) if seconds is None else list(zip(texts, seconds, strict=True)))
    typed = seconds is not None and "token_type_ids" in tokenizer.model_input_names
    types = [one.type_ids for one in found] if typed else None
    return [one.ids for one in found], types, [bool(one.overflowing) for one in found]


def fingerprint(tokenizer: Any) -> str:
    """Changes whenever the tokens of some text could; the same from run to run."""
    backend = tokenizer.backend_tokenizer
    backend.no_truncation()  # set by earlier calls, and no part of what the tokenizer is
    backend.no_padding()
    # What transformers keeps beside the backend: the end that is cut, which columns there are, what counts as unknown.
    beside = [tokenizer.truncation_side, tokenizer.model_input_names, tokenizer.unk_token]
    return hashlib.sha256(json.dumps([backend.to_str(), *beside]).encode()).hexdigest()
