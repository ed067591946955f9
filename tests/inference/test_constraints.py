"""Constraints on texts of tiny random models, against Python's `re`, jsonschema and plain searches."""

from __future__ import annotations

import json
import random
import re
import sys
from typing import Any

import jsonschema
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from llm_arch.inference.constraints import Constraints
from llm_arch.inference.expression import Automaton
from llm_arch.inference.token_bytes import token_bytes
from llm_arch.inference.whole_words import whole
from llm_arch.types import UserError

CORPUS = [
    "the cat sat on the mat and the catalogue of the cats was red",
    "dogs and cat food: warm light, New York, über Käse 我爱你 猫",
    '{"name": "light", "on": true, "level": 12, "tags": ["a", "b"]}',
    "2024-01-31 12:45 ok yes no maybe",
] * 3


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE: many words are single tokens, and every byte is one."""
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=420,
        special_tokens=["<end>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    raw.train_from_iterator(CORPUS, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="<end>", pad_token="<end>")


@pytest.fixture(scope="module")
def model(tokenizer: PreTrainedTokenizerFast) -> GPT2LMHeadModel:
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=len(tokenizer), n_positions=96, n_embd=16, n_layer=1, n_head=2)
    model = GPT2LMHeadModel(config).eval()
    torch.nn.init.normal_(model.transformer.wte.weight, 0, 0.6)
    model.generation_config.eos_token_id = model.generation_config.pad_token_id = 0
    return model


def generate(
    model: GPT2LMHeadModel, tokenizer: PreTrainedTokenizerFast, constraints: Constraints, room: int, **options: Any
) -> list[str]:
    """Texts after prompts of two lengths."""
    prompts = [tokenizer.encode(text) for text in ("the cat", "yes", "warm light and")]
    longest = max(map(len, prompts))
    ids = torch.tensor([[0] * (longest - len(row)) + row for row in prompts])
    mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in prompts])
    beams = options.get("num_beams", 1)
    chosen = constraints.processors(tokenizer, longest, room, num_beams=beams)
    out = model.generate(input_ids=ids, attention_mask=mask, max_new_tokens=room, logits_processor=chosen, **options)
    texts = list(tokenizer.batch_decode(out[:, longest:], skip_special_tokens=True))
    constraints.require(texts)
    assert all(constraints.check(text) is None for text in texts)
    return texts


WAYS: list[dict[str, Any]] = [{"do_sample": False}, *({"do_sample": True, "top_k": k} for k in (0, 5))]


@pytest.fixture(params=range(len(WAYS)), ids=["greedy", "sampled", "top_k"])
def way(request: pytest.FixtureRequest) -> dict[str, Any]:
    torch.manual_seed(7)
    return WAYS[request.param]


# A regular expression


@pytest.mark.parametrize(
    "regex",
    [
        r"(yes|no|maybe)",
        r"[0-9]{4}-[0-9]{2}-[0-9]{2}",
        r"[a-z ]+",
        r"(the |a )?(red |warm )*(cat|dog)s?\.",
        r"Käse|我爱你+|猫.",
        r"(ab|cd)*x",
        r"[^a]*",
        r"\d+(\.\d+)?",
    ],
)
def test_texts_match(model: Any, tokenizer: Any, way: dict[str, Any], regex: str) -> None:
    constraints = Constraints(regex=regex)
    _, automaton = constraints._of(tokenizer)
    assert automaton is not None
    assert automaton.start is not None
    shortest = automaton.distance[automaton.start]
    for room in (shortest, shortest + 1, 24):
        if room:
            found = generate(model, tokenizer, constraints, room, **way)
            assert all(re.fullmatch(regex, text) for text in found)
    if shortest > 1:
        wanted = (
            rf"^the shortest text that keeps to the constraint takes {shortest} tokens, and there is room for 1; raise"
        )
        with pytest.raises(UserError, match=wanted):
            constraints.processors(tokenizer, 3, 1)


def test_the_shortest_way_is_the_shortest() -> None:
    """Against all sequences of tokens up to a length."""
    pieces = [b"a", b"b", b"ab", b"aab", b"\xc3", b"\xa4", None]
    for regex in ("a*b", "(ab){2}a", "aab(ab)+", "ä", "aaa|bbbb"):
        automaton, pattern = Automaton(regex, pieces), re.compile(regex)
        level, found = [()], None
        for length in range(7):
            if any(
                pattern.fullmatch(b"".join(pieces[i] or b"" for i in row).decode(errors="replace")) for row in level
            ):
                found = length
                break
            level = [(*row, i) for row in level for i in range(6)] if length < 4 else []
        assert automaton.start is not None
        assert automaton.distance[automaton.start] == found


def test_expressions_that_can_not_hold(tokenizer: Any) -> None:
    with pytest.raises(UserError, match=r"^'\(a' is no regular expression: missing \), unterminated subpattern"):
        Constraints(regex="(a")
    for regex in ("a(?=b)", r"(a)\1"):
        with pytest.raises(UserError, match=r"^no text can be held to the regular expression '.*': "):
            Constraints(regex=regex).processors(tokenizer, 1, 9)
    with pytest.raises(UserError, match=r"^no text can be held to the regular expression 'b\+': "):
        Automaton("b+", [b"a"])
    with pytest.raises(UserError, match=r"^the tokenizer has no token to end a text with"):
        Constraints(regex="a").processors(tokenizer, 1, 9, end=())


def test_another_chooser_of_tokens_is_noticed(model: Any, tokenizer: Any) -> None:
    (matching,) = Constraints(regex="yes").processors(tokenizer, 1, 9)
    row = torch.tensor([[0, *tokenizer.encode("no")]])
    with pytest.raises(UserError, match=r"^a text has left its constraint: something else chose its tokens"):
        matching(row, torch.zeros(1, len(tokenizer)))


# A JSON schema

SCHEMAS: list[dict[str, Any]] = [
    {"type": "object", "properties": {"on": {"type": "boolean"}, "level": {"type": "integer"}}, "required": ["on"]},
    {
        "type": "object",
        "properties": {
            "name": {"type": "string", "maxLength": 6},
            "tags": {"type": "array", "items": {"enum": ["a", "b", None]}, "maxItems": 2},
        },
        "required": ["name", "tags"],
        "additionalProperties": False,
    },
    {"type": "array", "items": {"$ref": "#/$defs/day"}, "minItems": 1, "$defs": {"day": {"enum": ["Mo", "Tu"]}}},
    {"anyOf": [{"type": "null"}, {"type": "number"}], "title": "maybe a number"},
    {"type": "string", "minLength": 2},
]


@pytest.mark.parametrize("schema", SCHEMAS, ids=range(len(SCHEMAS)))
def test_texts_keep_to_the_schema(model: Any, tokenizer: Any, way: dict[str, Any], schema: dict[str, Any]) -> None:
    for given in (schema, json.dumps(schema)):
        for text in generate(model, tokenizer, Constraints(schema=given), 40, **way):
            jsonschema.validate(json.loads(text), schema)


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        ("{", r"^this JSON schema is no JSON: "),
        ({"type": {1, 2}}, r"^this JSON schema is no JSON: "),
        ({"type": "bogus"}, r"^this is no JSON schema: 'bogus' is not valid"),
        ({"type": "integer", "minimum": 3}, r"^texts can't be held to these parts of the JSON schema: minimum; leave"),
        ({"type": "array", "items": {"not": {}, "uniqueItems": True}}, r": not, uniqueItems; leave them out$"),
        ({"type": "object", "required": ["a"]}, r"^texts can't be held to these parts .*: required 'a'; "),
        ({"type": "object", "properties": {'a"': {"type": "null"}}}, r"^texts can't be held to .*: the name 'a\"'; "),
        ({"type": "object", "properties": {"minimum": True}}, r"^texts can't be held to these .* schema: true; "),
        ({"type": "string", "format": "ipv4"}, r"^no text can be held to this JSON schema: Format ipv4 is not"),
        ({"type": "string", "minLength": 3, "maxLength": 2}, r"^no text can be held to this JSON schema: maxLength"),
    ],
)
def test_schemas_that_can_not_hold(schema: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        Constraints(schema=schema)


def test_a_text_that_breaks_them_is_refused() -> None:
    schema = Constraints(schema={"oneOf": [{"type": "number"}, {"type": "integer"}]})
    assert schema.check("1.5") is None
    assert str(schema.check("1")).startswith("it does not keep to the JSON schema: 1 is valid under each of")
    assert str(schema.check("{")).startswith("it is no JSON (")
    assert Constraints(regex="a+").check("b") == "it does not match 'a+'"
    words = Constraints(include=["a b", "c"], ban=["d"])
    assert words.check("c") == "it lacks 'a b'"
    assert words.check("A  B, c; D!") == "it contains 'd'"
    assert words.check("a b. C") is None
    with pytest.raises(UserError, match=r"^text 2 breaks the constraints: it contains 'd' \('d a b c'\)$"):
        words.require(["a b c", "d a b c"])


# Words


def contains(text: str, word: str) -> bool:
    """Plainly: letters and digits on neither side."""
    text, word = " ".join(text.lower().split()), word.lower()
    spaced = [" ", *text, " "]
    for i in range(1, len(text) + 1):
        if text[i - 1 : i - 1 + len(word)] == word:
            before, after = spaced[i - 1], spaced[i + len(word)]
            letters = "我爱你猫"
            if (before in letters or not before.isalnum() or word[0] in letters) and (
                after in letters or not after.isalnum() or word[-1] in letters
            ):
                return True
    return False


@pytest.mark.parametrize(
    ("text", "word", "found"),
    [
        ("The Cat.", "cat", True),
        ("catalogue", "cat", False),
        ("écat", "cat", False),
        ("кот и который", "кот", True),
        ("который", "кот", False),
        ("小猫咪", "猫", True),
        ("このcatは", "cat", True),
        ("new \n york", "New York", True),
        ("newyork", "new york", False),
        ("c++!", "c++", True),
        ("3cat", "cat", False),
    ],
)
def test_what_counts_as_a_word(text: str, word: str, found: bool) -> None:
    assert bool(whole(word).search(text)) is found


@pytest.mark.parametrize(
    "ban",
    [["cat"], ["the", "and", "a", "e"], ["New York", "new"], ["Käse", "über"], ["我", "猫"], list("abcdefghijklm")],
)
@pytest.mark.parametrize("beams", [1, 3])
def test_banned_words_do_not_occur(model: Any, tokenizer: Any, way: dict[str, Any], ban: list[str], beams: int) -> None:
    for text in generate(model, tokenizer, Constraints(ban=ban), 24, num_beams=beams, **way):
        assert not any(contains(text, word) for word in ban)


def test_exactly_what_completes_a_word_is_banned(tokenizer: Any) -> None:
    """Against the text itself: for random beginnings, every token."""
    words = ["cat", "New York", "Käse", "猫", "the", "e"]
    (ban,) = Constraints(ban=words).processors(tokenizer, 0, 99)
    pieces, exact = token_bytes(tokenizer)
    assert exact
    choose = random.Random(0)
    parts = [
        tokenizer.encode(text) for text in ("ca", "cat", "New ", " york", "K", "ä", "se", "th", " ", "Ca", "x", "我")
    ]
    parts += [[i] for i in range(1, len(tokenizer), 7)]
    for _ in range(25):
        row = [token for part in choose.choices(parts, k=choose.randint(1, 4)) for token in part]
        scores = ban(torch.tensor([row]), torch.zeros(1, len(tokenizer) + 5))[0]
        before = b"".join(pieces[i] or b"" for i in row)
        for token in range(1, len(tokenizer)):
            after = (before + (pieces[token] or b"")).decode(errors="replace")
            newly = any(
                match.end() > len(before.decode(errors="ignore"))
                for word in words
                for match in whole(word).finditer(after)
            )
            assert (scores[token] == float("-inf")) == newly, (before, pieces[token])
        assert scores[0] == 0
        assert not scores[len(tokenizer) :].any()


@pytest.mark.parametrize(
    "include", [["cat"], ["New York", "light", "cat"], ["über", "猫"], ["cat", "catalogue", "cats"]]
)
def test_words_are_included(model: Any, tokenizer: Any, way: dict[str, Any], include: list[str]) -> None:
    needed = sum(len(tokenizer.encode(f" {word}")) for word in include)
    for room in (needed, needed + 1, needed + 2, 30):
        for text in generate(model, tokenizer, Constraints(include=include), room, **way):
            assert all(contains(text, word) for word in include)
    with pytest.raises(UserError, match=rf"^the words to include \(.*\) take {needed} tokens, and there is room for"):
        Constraints(include=include).processors(tokenizer, 1, needed - 1)


@pytest.mark.parametrize("seed", range(12))
def test_included_and_banned(model: Any, tokenizer: Any, seed: int) -> None:
    torch.manual_seed(seed)
    choose = random.Random(seed)
    include = choose.sample(["cat", "light", "dogs", "on the mat", "Käse"], 2)
    ban = choose.sample(["of", "and", "ca", "e", "catalogue", "warm"], 3)
    room = choose.randint(12, 24)
    for text in generate(model, tokenizer, Constraints(include=include, ban=ban), room, do_sample=True, top_k=0):
        assert all(contains(text, word) for word in include)
        assert not any(contains(text, word) for word in ban)


def test_a_word_that_goes_on_is_written_again(tokenizer: Any) -> None:
    """At its very end a text may have the word "cat", which one more token makes "cats"."""
    cat, s = tokenizer.encode(" cat"), tokenizer.encode("s")
    assert len(cat) == 1
    (include,) = Constraints(include=["cat"]).processors(tokenizer, 0, 3)
    free = include(torch.tensor([cat]), torch.zeros(1, len(tokenizer)))[0]
    assert not free.isinf().any()
    # It has its way even where everything is left out already.
    forced = include(torch.tensor([cat + s]), torch.full((1, len(tokenizer)), float("-inf")))[0]
    assert (~forced.isinf()).nonzero().flatten().tolist() == cat
    ended = include(torch.tensor([[*s, *cat]]), torch.zeros(1, len(tokenizer)))[0]
    assert (~ended.isinf()).nonzero().flatten().tolist() == [0]


def test_orders_that_make_a_banned_phrase_are_not_taken(model: Any, tokenizer: Any) -> None:
    needed = len(tokenizer.encode(" york cat"))
    constraints = Constraints(include=["york", "cat"], ban=["york cat"])
    for text in generate(model, tokenizer, constraints, needed):
        assert text == " cat york"
    with pytest.raises(UserError, match=r"^york, york cat can't be included here without a word that is banned"):
        Constraints(include=["york", "york cat"], ban=["york york", "cat york"]).processors(tokenizer, 1, 20)


# Arguments


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"include": "cat"}, r"^include must be a list of words, got 'cat'; write \['cat'\]$"),
        ({"ban": ["a", " "]}, r"^ban has an empty word: \['a', ' '\]$"),
        ({"include": ["the Cat"], "ban": ["cat"]}, r"^'the Cat' must be included, and 'cat' is banned; leave one"),
        ({"regex": "a", "ban": ["b"]}, r"^regex, schema and words exclude each other; "),
        ({"regex": "a", "schema": {"type": "null"}}, r"^regex, schema and words exclude each other; "),
    ],
)
def test_arguments_that_can_not_be(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Constraints(**arguments)


def test_beams(tokenizer: Any) -> None:
    for constraints in (Constraints(regex="a"), Constraints(include=["a"]), Constraints(schema={"type": "null"})):
        with pytest.raises(
            UserError, match=r"^include, regex and schema hold for one beam only, got num_beams=4; leave"
        ):
            constraints.processors(tokenizer, 1, 9, num_beams=4)


def test_no_constraints(tokenizer: Any) -> None:
    assert Constraints().processors(tokenizer, 1, 9) == []
    assert Constraints().check("anything") is None


# Tokenizers


def test_bytes_of_tokens_make_the_text(tokenizer: Any) -> None:
    pieces, exact = token_bytes(tokenizer)
    assert exact
    assert pieces[0] is None
    for text in [*CORPUS, "😀 \x00 ñ\n\t", "�"]:
        assert b"".join(pieces[i] or b"?" for i in tokenizer.encode(text)).decode() == text


def test_sentencepiece_with_bytes() -> None:
    vocabulary = {"<unk>": 0, "</s>": 1, "▁": 2, "a": 3, "b": 4, "▁a": 5} | {f"<0x{i:02X}>": 6 + i for i in range(256)}
    raw = Tokenizer(models.BPE(vocab=vocabulary, merges=[("▁", "a")], unk_token="<unk>", byte_fallback=True))
    raw.pre_tokenizer = pre_tokenizers.Metaspace()
    raw.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    made = PreTrainedTokenizerFast(tokenizer_object=raw, unk_token="<unk>", eos_token="</s>")
    pieces, exact = token_bytes(made)
    assert exact
    assert pieces[:2] == [None, None]
    assert b"".join(pieces[i] or b"?" for i in made.encode("ab äa a", add_special_tokens=False)) == " ab äa a".encode()


def test_word_pieces_take_words_but_no_expressions() -> None:
    vocabulary = {word: i for i, word in enumerate(["[UNK]", "[SEP]", "cat", "##s", "##alogue", "dog", "the", "."])}
    raw = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    raw.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    raw.decoder = decoders.WordPiece()
    made = PreTrainedTokenizerFast(tokenizer_object=raw, unk_token="[UNK]", sep_token="[SEP]")
    torch.manual_seed(1)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=8, n_positions=64, n_embd=8, n_layer=1, n_head=1)).eval()
    model.generation_config.eos_token_id = model.generation_config.pad_token_id = 1
    constraints = Constraints(include=["dog", "catalogue"], ban=["the", "cat"])
    for _ in range(10):
        chosen = constraints.processors(made, 1, 8)
        out = model.generate(torch.tensor([[6]]), max_new_tokens=8, logits_processor=chosen, do_sample=True)
        text = made.decode(out[0, 1:], skip_special_tokens=True)
        assert constraints.check(text) is None
    with pytest.raises(UserError, match=r"^regex and schema need a tokenizer that says where spaces stand"):
        Constraints(regex="cat").processors(made, 1, 8)
    with pytest.raises(UserError, match=r"^the tokenizer of this model can't write 'horse'; leave it out"):
        Constraints(include=["horse"]).processors(made, 1, 8)


@pytest.mark.parametrize(("package", "arguments"), [("outlines_core", {"regex": "a"}), ("jsonschema", {"schema": {}})])
def test_a_missing_package_is_named(
    monkeypatch: pytest.MonkeyPatch, tokenizer: Any, package: str, arguments: dict[str, Any]
) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    wanted = rf"^this constraint needs {package}; run: pip install 'llm_arch\[constraints\]'$"
    with pytest.raises(UserError, match=wanted):
        Constraints(**arguments).processors(tokenizer, 1, 9)
