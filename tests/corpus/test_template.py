"""Special tokens around whole batches, as the tokenizer itself puts them around single texts."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, processors
from transformers import PreTrainedTokenizerFast

from llm_arch.corpus.template import Part, Template

WORDS = ["[UNK]", "[CLS]", "[SEP]", "<s>", "</s>", *(f"w{i}" for i in range(20))]
ID = {word: i for i, word in enumerate(WORDS)}


def tokenizer(processor: Any, types: bool = True) -> Any:
    backend = Tokenizer(models.WordLevel(ID, unk_token="[UNK]"))
    if processor is not None:
        backend.post_processor = processor
    inputs = ["input_ids", *(["token_type_ids"] if types else []), "attention_mask"]
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[UNK]", model_input_names=inputs)


SPECIALS = [(name, ID[name]) for name in ("[CLS]", "[SEP]", "<s>", "</s>")]
KINDS = {
    "bert": tokenizer(processors.BertProcessing(("[SEP]", 2), ("[CLS]", 1))),
    "roberta": tokenizer(processors.RobertaProcessing(("</s>", 4), ("<s>", 3)), types=False),
    "t5": tokenizer(
        processors.TemplateProcessing(single="$A </s>", pair="$A </s> $B </s>", special_tokens=SPECIALS), types=False
    ),
    "none": tokenizer(None, types=False),
    "odd": tokenizer(
        processors.TemplateProcessing(
            single="<s> [CLS] $A", pair="<s> $A [SEP] [SEP] $B:1 </s>:1 </s>:1", special_tokens=SPECIALS
        )
    ),
}
ROWS = st.lists(
    st.tuples(st.lists(st.integers(5, 24), max_size=6), st.lists(st.integers(5, 24), max_size=6)),
    min_size=1,
    max_size=5,
)


def part(rows: list[list[int]]) -> Part:
    return Part(np.array([i for row in rows for i in row], dtype=np.int64), np.array([len(row) for row in rows]))


def built(kind: Any, ids: list[int], pair: list[int] | None) -> tuple[list[int], list[int] | None]:
    """What the tokenizer's own post-processor does with two encodings of single words."""
    backend = kind.backend_tokenizer
    encode = backend.encode
    first = encode([WORDS[i] for i in ids], is_pretokenized=True, add_special_tokens=False)
    second = None if pair is None else encode([WORDS[i] for i in pair], is_pretokenized=True, add_special_tokens=False)
    whole = backend.post_process(first, second, True)
    types = "token_type_ids" in kind.model_input_names and pair is not None
    return whole.ids, whole.type_ids if types else None


@settings(max_examples=60, deadline=None)
@given(ROWS, st.sampled_from(sorted(KINDS)), st.booleans())
def test_as_the_tokenizer_does(rows: Any, name: str, paired: bool) -> None:
    kind = KINDS[name]
    template = Template.of(kind, 2 if paired else 1)
    firsts, seconds = [a for a, _ in rows], [b for _, b in rows]
    ids, types, lengths = template.lay([part(firsts), part(seconds)] if paired else [part(firsts)])
    expected = [built(kind, a, b if paired else None) for a, b in rows]
    assert ids.tolist() == [i for row, _ in expected for i in row]
    assert lengths.tolist() == [len(row) for row, _ in expected]
    assert template.size == kind.num_special_tokens_to_add(pair=paired)
    if expected[0][1] is None:
        assert types is None
    else:
        assert types is not None
        assert types.tolist() == [t for _, row in expected for t in row or []]


def test_examples() -> None:
    assert Template.of(KINDS["bert"], 2) == Template(((1,), (2,), (2,)), ((0,), (0,), (1,)), (0, 1))
    assert Template.of(KINDS["odd"], 2) == Template(((3,), (2, 2), (4, 4)), ((0,), (0, 0), (1, 1)), (0, 1))
    assert Template.of(KINDS["none"], 1).size == 0
