"""A vocabulary without the tokens that one's own texts never use.

Of a small model most weights are embeddings: of MiniLM's 22.7 million 11.7. A task's texts use a few thousand tokens of
a general vocabulary, and tokenize to the same pieces when the others are gone. What other texts would have been one
token is then several, single characters or bytes at worst, which all stay.

Legend: V tokens, K of them kept.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoTokenizer, PreTrainedModel

from llm_arch.compression.surgery import Cut, cut_parameter
from llm_arch.types import UserError

_BYTES = {f"<0x{byte:02X}>" for byte in range(256)}  # what SentencePiece's models fall back to


def tokens_to_keep(tokenizer: Any, used: Iterable[int]) -> Tensor:
    """The tokens that a vocabulary needs so that the texts which use these are tokenized as before.

    They are those used, special and added ones, single characters and bytes, and what longer ones are merged from.

    Args:
        tokenizer: a fast tokenizer of transformers.
        used: the ids that the texts have.

    Returns:
        (K,) ids, in rising order.

    Raises:
        UserError: an id is no token's, or the tokenizer is of an unknown kind.
    """
    values = _read(tokenizer)
    model, ids = values["model"], _ids(values)
    token_of = {number: token for token, number in ids.items()}
    used = set(used)
    if unknown := sorted(used - token_of.keys()):
        raise UserError(f"{unknown[0]} is the id of no token: the tokenizer has {len(ids)}")
    kept = used | {entry["id"] for entry in values["added_tokens"]}
    before, after = model.get("continuing_subword_prefix") or "", model.get("end_of_word_suffix") or ""
    for token, number in ids.items():
        if len(token.removeprefix(before).removesuffix(after)) == 1 or token in _BYTES:
            kept.add(number)
    if model["type"] == "BPE":
        kept |= _merged_from(model, {token_of[number] for number in kept}, before)
    elif model["type"] == "Unigram":
        # What an unknown character costs hangs on the least probable piece.
        kept.add(min(range(len(model["vocab"])), key=lambda number: model["vocab"][number][1]))
        kept.add(model["unk_id"] if model["unk_id"] is not None else 0)
    elif "unk_token" in model and model["unk_token"] in ids:
        kept.add(ids[model["unk_token"]])
    return torch.tensor(sorted(kept))


def prune_tokenizer(tokenizer: Any, kept: Tensor) -> Any:
    """A tokenizer of the kept tokens, numbered anew in the order of `kept`.

    Args:
        tokenizer: a fast tokenizer of transformers.
        kept: (K,) ids in rising order, from `tokens_to_keep`.

    Raises:
        UserError: what is left is no tokenizer, since something that is needed was not kept.
    """
    values = _read(tokenizer)
    new = {number: i for i, number in enumerate(kept.tolist())}
    ids = _ids(values)
    wanted = {token: new[number] for token, number in ids.items() if number in new}
    try:
        changed = _renumbered(values, new)
    except KeyError as error:
        token = next((token for token, number in ids.items() if number == error.args[0]), error.args[0])
        raise UserError(f"the tokenizer can't do without {token!r}; keep what tokens_to_keep names") from error
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        path = Path(folder, "tokenizer.json")
        path.write_text(json.dumps(changed, ensure_ascii=False), encoding="utf-8")
        try:
            pruned = AutoTokenizer.from_pretrained(folder)
        except Exception as error:  # the Rust library raises nothing narrower
            raise UserError(f"the kept tokens make no tokenizer ({str(error).splitlines()[0]})") from error
    found = pruned.get_vocab()
    if found != wanted:
        wrong = sorted(found.items() ^ wanted.items())[0]
        raise UserError(f"the tokenizer can't be pruned: {wrong[0]!r} would not have the number that it needs")
    pruned.model_max_length = tokenizer.model_max_length
    return pruned


def prune_vocabulary(model: PreTrainedModel, kept: Tensor) -> list[Cut]:
    """Keep these tokens' embeddings, in place; the ids of special tokens in the configuration are numbered anew.

    Args:
        model: of transformers, without a head.
        kept: (K,) ids in rising order.

    Returns:
        What was kept of the embeddings.

    Raises:
        UserError: an id is out of range, out of order or there twice, or positions are counted from the id of the
            padding token (RoBERTa) and it would change.
    """
    table = model.get_input_embeddings()
    if not isinstance(table, nn.Embedding):
        raise UserError(f"{type(model).__name__} has no one table of token embeddings, so none of them can be left out")
    check_kept(kept, table.num_embeddings)
    new = {number: i for i, number in enumerate(kept.tolist())}
    for module in model.modules():
        if hasattr(module, "create_position_ids_from_input_ids") and new.get(module.padding_idx) != module.padding_idx:
            raise UserError(
                f"{model.config.model_type} counts positions from its padding token, which must keep the id "
                f"{module.padding_idx}; keep all tokens before it"
            )
    assert isinstance(table.weight, nn.Parameter)
    cut = cut_parameter(table.weight, 0, kept)
    table.num_embeddings = len(kept)
    if table.padding_idx is not None:
        table.padding_idx = new.get(table.padding_idx)
    config: Any = model.config
    for name, value in config.to_dict().items():
        if not name.endswith("_token_id") or value is None:
            continue
        many = [new[one] for one in value if one in new] if isinstance(value, list) else None
        setattr(config, name, (many or None) if isinstance(value, list) else new.get(value))
    config.vocab_size = len(kept)
    if hasattr(model, "vocab_size"):
        model.vocab_size = len(kept)
    return [cut]


def check_kept(kept: Tensor, vocabulary: int) -> None:
    """Raise UserError unless these are ids (K,) of a vocabulary of this size, in rising order, each once."""
    if kept.ndim != 1 or kept.dtype != torch.long or not len(kept):
        raise UserError(f"the tokens to keep must be a row of ids, got {kept.dtype} of shape {tuple(kept.shape)}")
    if int(kept.min()) < 0 or int(kept.max()) >= vocabulary or not (kept[1:] > kept[:-1]).all():
        raise UserError(
            f"the tokens to keep must be ids from 0 to {vocabulary - 1} in rising order, each once; they go from "
            f"{int(kept.min())} to {int(kept.max())}"
        )


def _read(tokenizer: Any) -> dict[str, Any]:
    if not getattr(tokenizer, "is_fast", False):
        raise UserError(f"{type(tokenizer).__name__} is no fast tokenizer (tokenizer.json), which alone can be pruned")
    values: dict[str, Any] = json.loads(tokenizer.backend_tokenizer.to_str())
    if (kind := values["model"]["type"]) not in ("WordPiece", "BPE", "Unigram", "WordLevel"):
        raise UserError(f"the tokenizer is of the kind {kind}, and WordPiece, BPE, Unigram and WordLevel can be pruned")
    return values


def _ids(values: Mapping[str, Any]) -> dict[str, int]:
    """Token → id, of the model and of what was added."""
    vocab = values["model"]["vocab"]
    ids = {piece: i for i, (piece, _) in enumerate(vocab)} if isinstance(vocab, list) else dict(vocab)
    return ids | {entry["content"]: entry["id"] for entry in values["added_tokens"]}


def _pairs(model: Mapping[str, Any]) -> list[tuple[str, str]]:
    pairs = (merge.split(" ") if isinstance(merge, str) else merge for merge in model["merges"])
    return [(first, second) for first, second in pairs]


def _merged_from(model: Mapping[str, Any], tokens: set[str], prefix: str) -> set[int]:
    """The ids of all that these tokens can be merged from, step by step."""
    parts: dict[str, list[str]] = {}
    for first, second in _pairs(model):
        parts.setdefault(first + second.removeprefix(prefix), []).extend((first, second))
    found, open_ = set(tokens), list(tokens)
    while open_:
        for part in parts.get(open_.pop(), ()):
            if part not in found:
                found.add(part)
                open_.append(part)
    return {model["vocab"][token] for token in found if token in model["vocab"]}


def _renumbered(values: Mapping[str, Any], new: Mapping[int, int]) -> dict[str, Any]:
    """A tokenizer.json with the kept tokens only."""
    model = dict(values["model"])
    if isinstance(model["vocab"], list):
        model["vocab"] = [model["vocab"][number] for number in new if number < len(model["vocab"])]
        if model.get("unk_id") is not None:
            model["unk_id"] = new[model["unk_id"]]
    else:
        model["vocab"] = {token: new[number] for token, number in model["vocab"].items() if number in new}
    if model["type"] == "BPE":
        prefix, vocab = model.get("continuing_subword_prefix") or "", model["vocab"]
        model["merges"] = [
            [first, second]
            for first, second in _pairs(model)
            if {first, second, first + second.removeprefix(prefix)} <= vocab.keys()
        ]
    padding = values["padding"] and {**values["padding"], "pad_id": new[values["padding"]["pad_id"]]}
    return {
        **values,
        "model": model,
        "padding": padding,
        "added_tokens": [{**entry, "id": new[entry["id"]]} for entry in values["added_tokens"]],
        "post_processor": _processor(values["post_processor"], new),
    }


def _processor(processor: Any, new: Mapping[int, int]) -> Any:
    """What adds special tokens, with their new ids."""
    if processor is None:
        return None
    changed = dict(processor)
    if "processors" in processor:
        changed["processors"] = [_processor(one, new) for one in processor["processors"]]
    if processor["type"] == "TemplateProcessing":
        changed["special_tokens"] = {
            name: {**entry, "ids": _each(entry["ids"], new)} for name, entry in processor["special_tokens"].items()
        }
    for end in ("sep", "cls"):  # of BERT's and RoBERTa's own kinds
        if end in processor:
            changed[end] = [processor[end][0], new[processor[end][1]]]
    return changed


def _each(ids: Sequence[int], new: Mapping[int, int]) -> list[int]:
    return [new[number] for number in ids]
