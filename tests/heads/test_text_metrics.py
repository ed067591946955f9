"""Text metrics against torchmetrics' BLEU, plain loops and counts by hand."""

from __future__ import annotations

import sys
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torchmetrics.functional.text import sacre_bleu_score

from llm_arch.heads.text_metrics import METRICS, is_python, signatures, text_metrics
from llm_arch.types import UserError

WORDS = st.lists(st.sampled_from("the cat sat on a mat . dog ran".split()), min_size=1, max_size=9).map(" ".join)  # noqa: SIM905
PAIRS = st.lists(st.tuples(WORDS, WORDS), min_size=1, max_size=5)
LETTERS = st.text("abä我😀 ", max_size=8)


def score(name: str, hypotheses: list[str], references: list[str], **options: object) -> float:
    return text_metrics([name], hypotheses, references, **options)[name]  # type: ignore[arg-type]


def chrf(ours: list[str], right: list[str]) -> float:
    """F2 of the mean precision and the mean recall over the lengths of character n-grams that both sides have."""
    ratios = []
    for n in range(1, 7):
        found, wanted, common = 0, 0, 0
        for texts in zip(ours, right, strict=True):
            chars = [text.replace(" ", "") for text in texts]
            one, other = (Counter(text[i : i + n] for i in range(len(text) - n + 1)) for text in chars)
            found += one.total() if other else 0  # a text is not to blame for a reference that is too short
            wanted, common = wanted + other.total(), common + (one & other).total()
        if found and wanted:
            ratios.append((common / found, common / wanted))
    precision, recall = (sum(side) / len(ratios) for side in zip(*ratios, strict=True))
    return 5 * precision * recall / (4 * precision + recall) if precision + recall else 0.0


@settings(max_examples=40, deadline=None)
@given(PAIRS)
def test_bleu_and_chrf(pairs: list[tuple[str, str]]) -> None:
    ours, right = ([pair[i] for pair in pairs] for i in range(2))
    assert score("chrf", ours, right) == pytest.approx(100 * chrf(ours, right))
    wanted = 100 * float(sacre_bleu_score(ours, [[one] for one in right], tokenize="13a"))
    if wanted:  # sacrebleu smooths what would be 0
        assert score("bleu", ours, right) == pytest.approx(wanted, abs=1e-3)


@pytest.mark.parametrize(("language", "tokenizer"), [("en", "13a"), ("de-AT", "13a"), ("zh_TW", "zh")])
def test_bleu_by_language(language: str, tokenizer: str) -> None:
    ours, right = ["我爱你们大家, gut."], ["我爱你们大家吗, gut."]
    wanted = float(sacre_bleu_score(ours, [right], tokenize=tokenizer))
    if wanted:
        assert score("bleu", ours, right, language=language) == pytest.approx(100 * wanted, abs=1e-3)
    assert f"|tok:{tokenizer}|" in signatures(["bleu", "rouge1"], language)["bleu"]
    assert list(signatures(["chrf", "parses"])) == ["chrf"]


def test_bleu_says_which_tokenizer_it_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    def lacking(**options: object) -> None:
        raise RuntimeError("not installed")

    monkeypatch.setattr("sacrebleu.metrics.BLEU", lacking)
    for language in ("ja", "ko"):
        wanted = (
            rf"^bleu of language '{language}' needs a tokenizer; run: pip install 'sacrebleu\[{language}\]', or take"
        )
        with pytest.raises(UserError, match=wanted):
            score("bleu", ["a"], ["a"], language=language)


def f1(ours: list[object], right: list[object], common: int) -> float:
    return 2 * common / (len(ours) + len(right)) if common else 0.0


def longest_common(one: list[str], other: list[str]) -> int:
    if not one or not other:
        return 0
    if one[-1] == other[-1]:
        return 1 + longest_common(one[:-1], other[:-1])
    return max(longest_common(one[:-1], other), longest_common(one, other[:-1]))


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.sampled_from(["cat", "sat", "mat"]), max_size=6),
    st.lists(st.sampled_from(["cat", "sat", "mat"]), max_size=6),
)
def test_rouge(ours: list[str], right: list[str]) -> None:
    texts = " ".join(ours), " ".join(right)
    for n in (1, 2):
        grams = [[tuple(words[i : i + n]) for i in range(len(words) - n + 1)] for words in (ours, right)]
        common = (Counter(grams[0]) & Counter(grams[1])).total()
        assert score(f"rouge{n}", [texts[0]], [texts[1]]) == pytest.approx(f1(*grams, common))  # type: ignore[arg-type]
    wanted = f1(ours, right, longest_common(ours, right))  # type: ignore[arg-type]
    for language in ("en", "de"):
        assert score("rougeL", [texts[0]], [texts[1]], language=language) == pytest.approx(wanted)


def test_rouge_of_other_scripts() -> None:
    assert score("rouge1", ["我爱你"], ["我爱你"], language="zh") == 1
    assert score("rouge1", ["我爱你"], ["我恨你"], language="zh") == pytest.approx(2 / 3)
    assert score("rouge2", ["Привет, мир!"], ["привет мир"], language="ru") == 1
    # Cut at its umlauts, "Häuser" would share a word with "h".
    assert score("rouge1", ["Häuser"], ["h user"], language="de") == 0


def test_distinct_is_of_all_texts_together() -> None:
    assert score("distinct1", ["a b a", "b c"], ["", ""]) == 3 / 5
    assert score("distinct2", ["a b a", "b a"], ["", ""]) == 2 / 3
    assert score("distinct2", ["我我我"], [""]) == 1 / 2
    assert score("distinct2", ["a", ""], ["", ""]) == 0


def test_matches() -> None:
    assert score("exact_match", [" a b\n", "a B"], ["a b", "a b"]) == 0.5
    assert score("token_f1", ["The cat", "one two"], ["a cat!", "two three"]) == pytest.approx(0.75)


def distance(one: str, other: str) -> int:
    row = list(range(len(other) + 1))
    for i, a in enumerate(one, start=1):
        before, row = row, [i]
        for j, b in enumerate(other, start=1):
            row.append(min(before[j] + 1, row[-1] + 1, before[j - 1] + (a != b)))
    return row[-1]


@settings(max_examples=60, deadline=None)
@given(LETTERS, LETTERS)
def test_edit_similarity(one: str, other: str) -> None:
    longest = max(len(one), len(other))
    wanted = 1 - distance(one, other) / longest if longest else 1.0
    assert score("edit_similarity", [one], [other]) == pytest.approx(wanted)


def test_parses() -> None:
    prompt, right = 'def f(x):\n    """Add one."""\n', "    return x + 1"
    ours = ["    return x", "    return (x", "", " \n", "  pass\n x", "    import os; os._exit(1)"]
    n = len(ours)
    assert score("parses", ours, [right] * n, prompts=[prompt] * n) == pytest.approx(2 / 6)
    # A prompt in words is no part of the program.
    assert score("parses", ["x = 1", "x ="], ["y = 1"] * 2, prompts=["Set it to one: 1 2"] * 2) == 0.5
    assert score("parses", ["x = '\\d'"], [""]) == 1  # without a warning


@pytest.mark.parametrize(
    "text",
    [
        "(" * 5000,
        "(" * 150 + ")" * 150 + "\0",
        "-" * 100_000 + "1",
        "x" + ".a" * 50_000 + "(",
        "[" * 90 + "lambda:" * 2000,
        "if x:\n" + "".join(" " * i + "if x:\n" for i in range(1, 150)),
        "\ud800",
        "def",
    ],
)
def test_nothing_breaks_the_parser(text: str) -> None:
    assert is_python(text) is False


def test_what_can_not_be_measured() -> None:
    with pytest.raises(UserError, match=r"^unknown text metric 'blue'; there are: bleu, chrf, rouge1, .*, parses$"):
        score("blue", ["a"], ["a"])
    with pytest.raises(UserError, match=r"got 2 texts, 1 references and 2 prompts$"):
        score("bleu", ["a", "b"], ["a"])
    assert text_metrics(tuple(METRICS), [], []) == {}


@pytest.mark.parametrize(
    ("metric", "package"), [("bleu", "sacrebleu"), ("rouge1", "rouge_score"), ("edit_similarity", "rapidfuzz")]
)
def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch, metric: str, package: str) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(
        UserError, match=rf"^the metric {metric} needs {package}[\w.]*; run: pip install 'llm_arch\[gen"
    ):
        score(metric, ["a"], ["a"])


def test_nothing_is_said(capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture) -> None:
    """Where texts look tokenized, libraries talk."""
    text_metrics(tuple(METRICS), ["a b c ."] * 200, ["a b c ."] * 200)
    assert tuple(capfd.readouterr()) == ("", "")
    assert caplog.messages == []
