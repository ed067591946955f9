"""Loading a tokenizer, and what makes two of them different."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import transformers

from llm_arch.data.tokenizers import fingerprint, load_tokenizer, token_ids
from llm_arch.types import UserError


def test_long_texts_are_not_warned_about(
    make_words: Callable[..., str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    loaded = load_tokenizer(make_words(tmp_path, model_max_length=4))
    assert loaded.is_fast
    assert len(loaded("w1 " * 50)["input_ids"]) == 52
    assert caplog.text == ""


def test_from_an_installed_package(tokenizer: str) -> None:
    assert load_tokenizer(tokenizer).tokenize("light") == ["light"]


def test_fingerprint_is_that_of_the_tokenizer_and_not_of_its_use(words: str) -> None:
    loaded = load_tokenizer(words)
    first = fingerprint(loaded)
    loaded(["w1 w2 w3", "w4"], truncation=True, max_length=4, padding="max_length")
    assert fingerprint(loaded) == first == fingerprint(load_tokenizer(words))
    assert len(loaded("w1 w2 w3")["input_ids"]) == 5


def test_fingerprint_changes_with_what_changes_tokens(
    make_words: Callable[..., str], id_of: dict[str, int], words: str, tmp_path: Path
) -> None:
    swapped = (*tuple(id_of)[:-2], "w95", "w94")
    names = ["input_ids", "attention_mask"]
    others = [
        make_words(tmp_path / "swapped", swapped),
        make_words(tmp_path / "left", truncation_side="left"),
        make_words(tmp_path / "untyped", model_input_names=names),
        make_words(tmp_path / "unknown", unk_token="[PAD]"),
    ]
    assert len({fingerprint(load_tokenizer(name)) for name in [words, *others]}) == 5


def test_left_truncation_is_respected(make_words: Callable[..., str], id_of: dict[str, int], tmp_path: Path) -> None:
    loaded = load_tokenizer(make_words(tmp_path, truncation_side="left"))
    ids = loaded("w1 w2 w3 w4", truncation=True, max_length=4)["input_ids"]
    assert ids == [id_of[word] for word in ("[CLS]", "w3", "w4", "[SEP]")]


def test_directory_without_a_tokenizer(tmp_path: Path) -> None:
    wanted = (
        r"the directory holds no tokenizer \(tokenizer\.json\); "
        r"name a directory that has one with --data\.tokenizer$"
    )
    with pytest.raises(UserError, match=wanted):
        load_tokenizer(str(tmp_path))


def test_hub_without_a_network() -> None:
    wanted = (
        r"^nobody/nothing: no such directory, and the hub could not provide it \(OSError\); "
        r"name a directory that has one with --data\.tokenizer$"
    )
    with pytest.raises(UserError, match=wanted):
        load_tokenizer("nobody/nothing")


def test_missing_directory(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nothing: no such directory$"):
        load_tokenizer(str(tmp_path / "nothing"))


def test_slow_tokenizers_have_no_offsets(words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    slow = SimpleNamespace(is_fast=False)
    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", lambda *args, **options: slow)
    with pytest.raises(UserError, match=r"only fast tokenizers \(tokenizer\.json\) are supported$"):
        load_tokenizer(words)


@pytest.mark.parametrize("kind", ["bert", "gpt2"])
def test_a_folder_with_only_a_config_holds_no_tokenizer(kind: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(f'{{"model_type": "{kind}"}}', encoding="utf-8")
    with pytest.raises(UserError, match=r"the directory holds no tokenizer \(tokenizer.json\)"):
        load_tokenizer(str(tmp_path))


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("paired", [False, True])
def test_token_ids_are_those_of_transformers(tokenizer: str, side: str, paired: bool) -> None:
    loaded = load_tokenizer(tokenizer)
    loaded.truncation_side = side
    first = ["turn on the light", "", "what time is it in the kitchen, and is it warm?", "off"]
    second = ["now", "a second text that is by far the longer one", "", "😀"] if paired else None
    for longest in (6, 9, 50):
        wanted = loaded(first, second, truncation=True, max_length=longest)
        loaded(first, padding="max_length", max_length=30)  # what an earlier call asked for counts no longer
        ids, types, cut = token_ids(loaded, first, second, longest)
        assert ids == wanted["input_ids"]
        assert types == (wanted["token_type_ids"] if paired else None)
        whole = loaded(first, second)["input_ids"]
        assert cut == [len(one) > longest for one in whole]
        assert any(cut) == (longest < 50)
