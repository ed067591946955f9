"""Tiny randomly initialised models of each kind, for tests, dry runs and first steps without a download."""

from __future__ import annotations

from typing import Any

_SMALL: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "vocab_size": 30522,
    "max_position_embeddings": 128,
}
_GPT: dict[str, Any] = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128, "vocab_size": 30522}

# The vocabulary is that of the uncased BERT tokenizer, so that one tokenizer serves every preset.
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
}
