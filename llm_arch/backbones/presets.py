"""Randomly initialised models by name: tiny ones for tests and dry runs, others to train from scratch."""

from __future__ import annotations

from typing import Any

from llm_arch.types import UserError

_SMALL: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "vocab_size": 30522,
    "max_position_embeddings": 128,
}
_GPT: dict[str, Any] = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128, "vocab_size": 30522}

# Tiny ones have the vocabulary of the uncased BERT tokenizer, so that one tokenizer serves them all. The others take
# that of the data's tokenizer (`Backbone.grow`).
PRESETS: dict[str, dict[str, Any]] = {
    "tiny:bert": {"model_type": "bert", **_SMALL},
    "tiny:roberta": {"model_type": "roberta", **_SMALL, "max_position_embeddings": 130, "pad_token_id": 1},
    "tiny:distilbert": {
        "model_type": "distilbert",
        "dim": 32,
        "n_layers": 2,
        "n_heads": 4,
        "hidden_dim": 64,
        "vocab_size": 30522,
        "max_position_embeddings": 128,
    },
    "tiny:gpt2": {"model_type": "gpt2", **_GPT, "bos_token_id": 101, "eos_token_id": 102},
    "tiny:modernbert": {
        "model_type": "modernbert",
        **_SMALL,
        "num_hidden_layers": 3,
        "local_attention": 16,
        "global_attn_every_n_layers": 3,
        "pad_token_id": 0,
        "bos_token_id": 101,
        "eos_token_id": 102,
        "cls_token_id": 101,
        "sep_token_id": 102,
    },
    "tiny:llama": {
        "model_type": "llama",
        **_SMALL,
        "num_key_value_heads": 2,
        "bos_token_id": 101,
        "eos_token_id": 102,
    },
    # As deep and wide as BERT-mini (Turc et al. 2019); ModernBERT's feed-forward layers are narrower and gated.
    "mini:bert": {
        "model_type": "bert",
        "hidden_size": 256,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "intermediate_size": 1024,
    },
    "mini:gpt2": {"model_type": "gpt2", "n_embd": 256, "n_layer": 4, "n_head": 4},
    "mini:modernbert": {
        "model_type": "modernbert",
        "hidden_size": 256,
        "num_hidden_layers": 6,
        "num_attention_heads": 4,
        "intermediate_size": 384,
    },
    "mini:llama": {
        "model_type": "llama",
        "hidden_size": 256,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "intermediate_size": 688,
        "tie_word_embeddings": True,
    },
    # The sizes that transformers gives a model unless told otherwise: BERT-base, and GPT-2 with 124M parameters.
    "base:bert": {"model_type": "bert"},
    "base:gpt2": {"model_type": "gpt2"},
}
_KINDS = {name.partition(":")[0] for name in PRESETS}


def is_preset(name: str) -> bool:
    """Whether this names a preset, or would if there were one: no directory or hub id looks like it."""
    return ":" in name and name.partition(":")[0] in _KINDS


def preset(name: str) -> dict[str, Any]:
    """The configuration of a preset; without `vocab_size` where the tokenizer of the data says it.

    Raises:
        UserError: there is none of that name.
    """
    if name not in PRESETS:
        raise UserError(f"there is no preset {name!r}; there are: {', '.join(PRESETS)}")
    return PRESETS[name]
