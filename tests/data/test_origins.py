"""Which characters each token of a row shows: as many places as tokens, and the tokens of these characters."""

from __future__ import annotations

from typing import Any

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from llm_arch.data.classification import TextClassificationData
from llm_arch.data.code_generation import CodeGenerationData
from llm_arch.data.completion import CompletionData
from llm_arch.data.dialogue import DialogueData
from llm_arch.data.masked_tokens import MaskedTokenData
from llm_arch.data.module import DataModule
from llm_arch.data.multiple_choice import MultipleChoiceData
from llm_arch.data.next_tokens import NextTokenData
from llm_arch.data.origins import NOWHERE
from llm_arch.data.question_answering import QuestionAnsweringData
from llm_arch.data.relations import RelationExtractionData
from llm_arch.data.tokens import TokenClassificationData
from llm_arch.interpret.words import words_of

LONG = "Ada Lovelace met Charles Babbage in unbelievably foggy London, 1833. "
CASES: dict[str, tuple[type[DataModule], dict[str, Any], dict[str, Any]]] = {
    "text": (TextClassificationData, {}, {"text": "Unbelievably, it worked!"}),
    "cut": (TextClassificationData, {}, {"text": LONG * 3}),
    "pair": (TextClassificationData, {"text_pair_column": "other"}, {"text": LONG, "other": "too foggy?"}),
    "words": (TokenClassificationData, {"labels": ["PER"]}, {"text": "He saw unbelievably much"}),
    "windows": (TokenClassificationData, {"labels": ["PER"]}, {"text": LONG * 3}),
    "tokens": (TokenClassificationData, {"labels": ["PER"]}, {"tokens": ["Ada", "can't", "go"], "tags": None}),
    "question": (QuestionAnsweringData, {}, {"question": "Who met Ada?", "context": "Babbage did."}),
    "contexts": (QuestionAnsweringData, {}, {"question": "Who met Ada?", "context": LONG * 3}),
    "choices": (MultipleChoiceData, {}, {"question": "What is cold?", "choices": ["ice", "unbelievably hot fire"]}),
    "labels": (
        MultipleChoiceData,
        {"context_column": "story"},
        {"story": LONG, "question": "Who?", "choices": {"label": ["A", "B"], "text": ["Ada", "a dog"]}},
    ),
    "relation": (
        RelationExtractionData,
        {"labels": ["a", "b"]},
        {"text": "Ada met Babbage", "head": {"start": 8, "end": 15}, "tail": {"start": 0, "end": 3}},
    ),
    "far": (
        RelationExtractionData,
        {"labels": ["a", "b"]},
        {"text": LONG * 3, "head": {"start": 0, "end": 12}, "tail": {"start": 100, "end": 108}},
    ),
    "next": (NextTokenData, {}, {"text": LONG * 3}),
    "masks": (MaskedTokenData, {}, {"text": "He is [MASK] foggy"}),
    "prompt": (CompletionData, {}, {"prompt": "Write unbelievably much"}),
    "codes": (CompletionData, {"control_columns": ["mood"]}, {"prompt": LONG * 3, "mood": "grim"}),
    "code": (CodeGenerationData, {}, {"source": "def add(a, b):\n    return"}),
    "dialogue": (
        DialogueData,
        {},
        {
            "messages": [
                {"role": "user", "content": "Hello there"},
                {"role": "assistant", "content": "Good day"},
                {"role": "user", "content": "Is it foggy?"},
            ]
        },
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_places_show_the_tokens(tokenizer: str, case: str) -> None:
    kind, options, row = CASES[case]
    data = kind(tokenizer=tokenizer, max_length=24, **options)
    if hasattr(data, "encoder_decoder"):
        data.encoder_decoder = False
    assert data.fault(row, False) is None
    columns, _ = data.encode([row])
    ids = data.collate(columns | {"index": [0]}, labelled=False).input_ids.tolist()
    origins = data.origins(row)
    assert len(origins.places) == len(ids)
    texts = [*origins.texts.values()]
    shown = 0
    for (text, start, end), token in zip(origins.places, data.tokenizer.convert_ids_to_tokens(ids), strict=True):
        if text < 0:
            assert token in data.tokenizer.all_special_tokens or token in data.added_tokens
        else:
            assert texts[text][start:end].lower() == token.removeprefix("##").lower()
            shown += 1
    assert shown >= 4 or case in ("tokens", "code")
    for name, text in origins.texts.items():
        assert name in row or name.startswith(("choice ", "prompt", "part "))
        assert text


def test_bytes_and_spaces_of_a_byte_level_tokenizer(tokenizer: str) -> None:
    """Tokens hold the space before a word, and a character may be several of them."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.post_processor = processors.ByteLevel(trim_offsets=False)
    bpe.train_from_iterator(
        ["the cold light of the cold door"] * 4,
        trainers.BpeTrainer(vocab_size=300, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False),
    )
    data = CompletionData(tokenizer=tokenizer, max_length=64)
    data.encoder_decoder = False
    data.use_tokenizer(PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="<end>", bos_token="<begin>"))
    text = "the cold 🙂 light"
    origins = data.origins({"prompt": text})
    assert origins.places[0] == NOWHERE  # the beginning
    shown = [text[start:end] for place, start, end in origins.places if place == 0]
    assert shown[:2] == ["the", " cold"]
    assert shown.count("🙂") + shown.count(" 🙂") >= 2
    words = {text[start:end]: len(tokens) for (_, start, end), tokens in words_of(origins)}
    assert [*words] == ["the", "cold", "🙂", "light"]
    assert words["🙂"] > 1
