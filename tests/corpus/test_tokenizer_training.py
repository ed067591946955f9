"""Trained tokenizers: what they promise of text, that AutoTokenizer loads them, and that nothing is left to chance."""

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer, BertConfig, GPT2Config, LlamaConfig, ModernBertConfig

from llm_arch.corpus.tokenizer_training import check_free, save_tokenizer, train_tokenizer
from llm_arch.data.tokenizers import fingerprint, load_tokenizer
from llm_arch.types import UserError

KINDS = ("wordpiece", "bpe", "unigram")
ENGLISH = (
    "The lamp in the kitchen is warm, and the lamp in the hall is cold.",
    "Turn the lamp on; then turn it off again, and again!",
    "A lamp that is turned off twice is still off, isn't it?",
    "Kitchens have lamps. Halls have lamps. Gardens don't.",
) * 4
CHINESE = (
    "厨房的灯很暖和，走廊的灯很冷。",
    "请把灯打开，然后再把它关上。",
    "花园里没有灯，可是月亮很亮！",
    "你今天看见月亮了吗？我看见了。",
    "走廊和厨房都有灯。",
) * 4
SIZES = {"wordpiece": 300, "bpe": 500, "unigram": 300}


@pytest.fixture(scope="module", params=KINDS)
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def trained(kind):
    return train_tokenizer([*ENGLISH, *CHINESE], kind, SIZES[kind])


def ids(tokenizer, text, **options):
    return tokenizer(text, add_special_tokens=False, **options)["input_ids"]


# What they promise of text


def test_no_character_that_was_seen_is_unknown(trained):
    for text in (*ENGLISH, *CHINESE, "灯亮了，月亮冷了吗"):
        assert ids(trained, text)
        assert trained.unk_token_id is None or trained.unk_token_id not in ids(trained, text)


def test_frequent_words_are_whole(trained):
    tokens = [trained.decode([one]).strip() for one in ids(trained, "the lamp is warm and the lamp is off")]
    assert {"lamp", "the", "is"} <= set(tokens)
    assert len(trained) <= SIZES[trained_kind(trained)]


def trained_kind(tokenizer):
    return {"[CLS]": "wordpiece", "<|endoftext|>": "bpe", "<s>": "unigram"}[tokenizer.cls_token]


def test_wordpiece_takes_each_chinese_character_for_a_word():
    tokenizer = train_tokenizer([*ENGLISH, *CHINESE], "wordpiece", 300)
    assert tokenizer.convert_ids_to_tokens(ids(tokenizer, "月亮很亮lamp")) == ["月", "亮", "很", "亮", "lamp"]


def test_pieces_of_chinese_are_longer_than_a_character_where_nothing_parts_words():
    for kind in ("bpe", "unigram"):
        tokenizer = train_tokenizer(CHINESE, kind, SIZES[kind])
        assert len(ids(tokenizer, "走廊的灯很冷")) < 6, kind


BPE = train_tokenizer([*ENGLISH, *CHINESE], "bpe", 500)


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=60))
@settings(max_examples=150, deadline=None)
def test_bytes_come_back_as_they_were(text):
    assert BPE.decode(ids(BPE, text)) == text


@pytest.mark.parametrize(
    "text", ["  def f(x):\n\t return x  \n\n", "月亮 ，亮", "don 't . clean , me", "a\u00a0\u200bb\r\n"]
)
def test_white_space_comes_back_too(text):
    assert BPE.decode(ids(BPE, text)) == text


def test_what_was_not_seen_is_unknown_but_to_bytes(trained):
    found = ids(trained, "Ж")
    assert trained.unk_token_id in found if trained.unk_token_id is not None else len(found) == 2


def test_lowercase(kind):
    tokenizer = train_tokenizer(ENGLISH, kind, SIZES[kind], lowercase=True)
    assert ids(tokenizer, "The Lamp IS warm") == ids(tokenizer, "the lamp is warm")
    plain = train_tokenizer(ENGLISH, kind, SIZES[kind])
    assert ids(plain, "The") != ids(plain, "the")


def test_pairs_that_are_too_rare_are_not_joined():
    often = train_tokenizer(["lamp lamp lamp zebra"], "wordpiece", 100, min_frequency=3)
    assert often.convert_ids_to_tokens(ids(often, "lamp zebra")) == ["lamp", "z", "##e", "##b", "##r", "##a"]


# Special tokens


def test_texts_and_pairs_are_framed(trained):
    first, last = trained.cls_token_id, trained.sep_token_id
    assert (first, last) == (trained.bos_token_id, trained.eos_token_id)
    one, other = ids(trained, "the lamp"), ids(trained, "is warm")
    assert trained("the lamp")["input_ids"] == [first, *one, last]
    pair = trained("the lamp", "is warm", return_token_type_ids=True)
    assert pair["input_ids"] == [first, *one, last, *other, last]
    assert pair["token_type_ids"] == [0] * (len(one) + 2) + [1] * (len(other) + 1)
    assert ("token_type_ids" in trained("the lamp")) == (trained_kind(trained) == "wordpiece")


def test_there_are_tokens_for_padding_and_masking(trained):
    specials = {trained.pad_token_id, trained.mask_token_id, trained.cls_token_id}
    assert len(specials) == 3
    assert max(trained.all_special_ids) < 5
    assert trained.decode(trained("the lamp")["input_ids"], skip_special_tokens=True).strip() == "the lamp"
    masked = ids(trained, f"the {trained.mask_token} is warm")
    assert masked.count(trained.mask_token_id) == 1
    # A mask stands for a word with its space: what comes before and after is tokenized as ever.
    where = masked.index(trained.mask_token_id)
    assert masked[:where] == ids(trained, "the")
    assert masked[where + 1 :] == ids(trained, "the lamp is warm")[-len(masked[where + 1 :]) :]


def test_own_special_tokens_are_never_split(kind):
    tokenizer = train_tokenizer(ENGLISH, kind, SIZES[kind], special_tokens=["<room>", "[PAD]"])
    place = tokenizer.convert_tokens_to_ids("<room>")
    assert place in ids(tokenizer, "the lamp<room>is warm")
    assert place in tokenizer.all_special_ids
    assert len(tokenizer) <= SIZES[kind]


# Saved and loaded


@pytest.mark.parametrize("config", [None, BertConfig, GPT2Config, LlamaConfig, ModernBertConfig])
def test_auto_tokenizer_loads_it_beside_any_model(config, trained, tmp_path):
    save_tokenizer(trained, tmp_path / "tokenizer")
    if config is not None:  # a model directory: transformers asks its configuration which class to take
        config().save_pretrained(tmp_path / "tokenizer")
    for loaded in (AutoTokenizer.from_pretrained(tmp_path / "tokenizer"), load_tokenizer(str(tmp_path / "tokenizer"))):
        for text in (*ENGLISH[:4], *CHINESE[:5], "  two  spaces\n", f"a {trained.mask_token} b"):
            assert loaded(text)["input_ids"] == trained(text)["input_ids"]
            assert loaded.decode(ids(loaded, text)) == trained.decode(ids(trained, text))
        assert loaded.special_tokens_map == trained.special_tokens_map
        assert loaded.model_input_names == trained.model_input_names
        assert fingerprint(loaded) == fingerprint(trained)


def test_the_same_text_gives_the_same_tokenizer(kind, trained):
    """The library's hash maps have another order each time; with it ids, ties and the last digits would differ."""
    for _ in range(3):
        again = train_tokenizer([*ENGLISH, *CHINESE], kind, SIZES[kind])
        assert again.backend_tokenizer.to_str() == trained.backend_tokenizer.to_str()


def test_saving_is_all_or_nothing(trained, tmp_path, monkeypatch):
    def fails(directory):
        (Path(directory) / "tokenizer.json").write_text("half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(trained, "save_pretrained", fails)
    with pytest.raises(UserError, match=r"deep/new can't be written: No space left on device"):
        save_tokenizer(trained, tmp_path / "deep" / "new")
    assert [path.name for path in tmp_path.rglob("*")] == ["deep"]


def test_nothing_is_replaced(trained, tmp_path):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("mine")
    for name in ("file", "full"):
        with pytest.raises(UserError, match=f"{name} already exists; name another directory, or remove it"):
            save_tokenizer(trained, tmp_path / name)
        with pytest.raises(UserError, match="already exists"):
            check_free(tmp_path / name)
    (tmp_path / "empty").mkdir()
    save_tokenizer(trained, tmp_path / "empty")
    assert json.loads((tmp_path / "empty" / "tokenizer.json").read_text())["model"]


# What can't be done


@pytest.mark.parametrize("texts", [[], ["", " \n"]])
def test_no_text_is_refused(kind, texts):
    with pytest.raises(UserError, match="there is no text to train a tokenizer on; name files with text in them"):
        train_tokenizer(texts, kind, 1000)


@pytest.mark.parametrize(
    ("kind", "vocabulary", "message"),
    [
        ("bpe", 258, "a bpe vocabulary has at least 259 tokens, one for every byte, got 258"),
        ("wordpiece", 5, "a wordpiece vocabulary has at least 6 tokens, got 5"),
        ("unigram", 0, "a unigram vocabulary has at least 6 tokens, got 0"),
        (
            "wordpiece",
            40,
            "too many different characters for a vocabulary of 40 tokens; take a larger one, or kind bpe",
        ),
        ("unigram", 40, "too many different characters for a vocabulary of 40 tokens; take a larger one, or kind bpe"),
    ],
)
def test_a_vocabulary_smaller_than_the_alphabet_is_refused(kind, vocabulary, message):
    with pytest.raises(UserError, match=message):
        train_tokenizer([*ENGLISH, *CHINESE], kind, vocabulary)


def test_wrong_settings_are_refused():
    with pytest.raises(UserError, match="one of wordpiece, bpe, unigram, got 'words'"):
        train_tokenizer(ENGLISH, "words", 100)
    with pytest.raises(UserError, match="min_frequency is for wordpiece and bpe"):
        train_tokenizer(ENGLISH, "unigram", 100, min_frequency=3)
    with pytest.raises(UserError, match="min_frequency must be at least 1, got 0"):
        train_tokenizer(ENGLISH, "bpe", 500, min_frequency=0)


def test_an_error_of_the_reader_comes_through(kind):
    def reader():
        yield ENGLISH[0]
        raise UserError("nope.txt: no such file")

    with pytest.raises(UserError, match=r"nope\.txt: no such file"):
        train_tokenizer(reader(), kind, 500)


def test_small_text_gives_fewer_tokens_than_asked(kind):
    assert 10 < len(train_tokenizer(ENGLISH, kind, 5000)) < 1000
