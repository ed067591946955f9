"""How good generated texts are: overlap with a reference, variety, and whether they are code.

bleu and chrf are in [0, 100], all others in [0, 1], as their fields report them. Only distinct1, distinct2 and parses
can do without references that are right.
"""

from __future__ import annotations

import ast
import math
import re
import warnings
from collections.abc import Callable, Sequence
from typing import Any

from llm_arch.data.words import split
from llm_arch.data.written import HOLE
from llm_arch.heads.answers import agreement
from llm_arch.types import UserError

Texts = Sequence[str]
# What sacrebleu must cut into words itself, as there are no spaces or they do not part words; the others have 13a.
_BLEU_TOKENIZERS = {"zh": "zh", "ja": "ja-mecab", "ko": "ko-mecab"}


def text_metrics(
    names: Sequence[str], hypotheses: Texts, references: Texts, language: str = "en", prompts: Texts | None = None
) -> dict[str, float]:
    """The metrics of N generated texts.

    Args:
        names: which metrics.
            `bleu`, `chrf`: of the corpus, by sacrebleu (Papineni et al. 2002, Popović 2015, Post 2018), in [0, 100];
            see `signatures`.
            `rouge1`, `rouge2`, `rougeL`: mean F1 of words, pairs of words, and the longest common subsequence (Lin
            2004), without stemming. English is cut into words as by rouge-score, which knows no letters but a-z; other
            languages at word borders of Unicode, those without spaces into characters.
            `distinct1`, `distinct2`: share of the words, and pairs of words, of all texts together that are different
            (Li et al. 2016).
            `token_f1`: mean F1 of the bags of words, as for answers (Rajpurkar et al. 2016).
            `exact_match`: share of texts equal to their reference, but for white space around them.
            `edit_similarity`: mean of 1 - Levenshtein distance / length of the longer text.
            `parses`: share of texts that are Python, together with their prompt where prompt and reference are. It is
            parsed, never run; a text of white space is none. A prompt may hold a zero byte where the text goes.
        hypotheses: N generated texts.
        references: N right texts.
        language: the code of their language, such as en, or zh-TW.
        prompts: N texts that the hypotheses go on from, or None.

    Returns:
        Each metric by name; none where N is 0.

    Raises:
        UserError: an unknown metric, texts that do not match in number, or a package that is not installed.
    """
    check_names(names)
    prompts = [""] * len(hypotheses) if prompts is None else prompts
    if not len(hypotheses) == len(references) == len(prompts):
        raise UserError(
            f"there must be as many references and prompts as generated texts, got "
            f"{len(hypotheses)} texts, {len(references)} references and {len(prompts)} prompts"
        )
    if not hypotheses:
        return {}
    language = _base(language)
    return {name: METRICS[name](name, hypotheses, references, language, prompts) for name in names}


def check_names(names: Sequence[str]) -> None:
    """Raise a UserError that lists the known metrics where one is unknown."""
    for name in names:
        if name not in METRICS:
            raise UserError(f"unknown text metric {name!r}; there are: {', '.join(METRICS)}")


def signatures(names: Sequence[str], language: str = "en") -> dict[str, str]:
    """How `bleu` and `chrf`, as far as they are asked for, are computed: what sacrebleu wants reported with them."""
    check_names(names)
    found = {}
    for name in (name for name in names if name in ("bleu", "chrf")):
        metric = _sacrebleu(name, _base(language))
        metric.corpus_score(["a"], [["a"]])  # it knows the number of references only then
        found[name] = str(metric.get_signature())
    return found


def _base(language: str) -> str:
    return re.split("[-_]", language.lower())[0]


def _missing(name: str, error: ImportError) -> UserError:
    return UserError(f"the metric {name} needs {error.name}; run: pip install 'llm_arch[generation]'")


def _sacrebleu(name: str, language: str) -> Any:
    try:
        from sacrebleu.metrics import BLEU, CHRF
    except ImportError as error:
        raise _missing(name, error) from error
    if name == "chrf":
        return CHRF()
    try:
        return BLEU(tokenize=_BLEU_TOKENIZERS.get(language, "13a"), force=True)  # no word on texts that look tokenized
    except RuntimeError as error:
        raise UserError(
            f"bleu of language {language!r} needs a tokenizer; run: pip install 'sacrebleu[{language}]', or take chrf"
        ) from error


def _corpus(name: str, hypotheses: Texts, references: Texts, language: str, prompts: Texts) -> float:
    return float(_sacrebleu(name, language).corpus_score(list(hypotheses), [list(references)]).score)


def _rouge(name: str, hypotheses: Texts, references: Texts, language: str, prompts: Texts) -> float:
    try:
        from rouge_score.rouge_scorer import RougeScorer
        from rouge_score.tokenizers import DefaultTokenizer
    except ImportError as error:
        raise _missing(name, error) from error
    tokenizer = DefaultTokenizer(use_stemmer=False) if language == "en" else _Words()
    scorer = RougeScorer([name], tokenizer=tokenizer)
    return _mean(scorer.score(r, h)[name].fmeasure for h, r in zip(hypotheses, references, strict=True))


class _Words:
    """Words in lower case, without punctuation; characters in scripts without spaces."""

    def tokenize(self, text: str) -> list[str]:
        return [word for word in _words(text.lower()) if any(map(str.isalnum, word))]


def _distinct(name: str, hypotheses: Texts, references: Texts, language: str, prompts: Texts) -> float:
    n = int(name[-1])
    words = map(_words, hypotheses)
    grams = [tuple(row[i : i + n]) for row in words for i in range(len(row) - n + 1)]
    return len(set(grams)) / max(1, len(grams))


def _words(text: str) -> list[str]:
    return [text[start:end] for start, end in split(text)]


def _token_f1(name: str, hypotheses: Texts, references: Texts, language: str, prompts: Texts) -> float:
    return _mean(agreement(h, [r], language)[1] for h, r in zip(hypotheses, references, strict=True))


def _exact_match(name: str, hypotheses: Texts, references: Texts, language: str, prompts: Texts) -> float:
    return _mean(float(h.strip() == r.strip()) for h, r in zip(hypotheses, references, strict=True))


def _edit_similarity(name: str, hypotheses: Texts, references: Texts, language: str, prompts: Texts) -> float:
    try:
        from rapidfuzz.distance import Levenshtein
    except ImportError as error:
        raise _missing(name, error) from error
    pairs = zip(hypotheses, references, strict=True)
    return _mean(Levenshtein.normalized_similarity(h, r) for h, r in pairs)


def _parses(name: str, hypotheses: Texts, references: Texts, language: str, prompts: Texts) -> float:
    def one(hypothesis: str, reference: str, prompt: str) -> float:
        if HOLE in prompt:
            return float(bool(hypothesis.strip()) and is_python(prompt.replace(HOLE, hypothesis)))
        before = prompt if is_python(prompt + reference) else ""  # else the prompt says in words what to write
        return float(not hypothesis.isspace() and hypothesis != "" and is_python(before + hypothesis))

    return _mean(map(one, hypotheses, references, prompts))


def is_python(text: str) -> bool:
    """Whether a text is Python that this Python can parse; it is not compiled, and not run."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # escapes and the like that some release will refuse
        try:
            ast.parse(text)
        except (SyntaxError, ValueError, RecursionError, MemoryError):  # zero bytes; too deep for the parser
            return False
    return True


def _mean(values: Any) -> float:
    """Of at least one number; the same in any order."""
    values = list(values)
    return math.fsum(values) / len(values)


METRICS: dict[str, Callable[[str, Texts, Texts, str, Texts], float]] = {
    **dict.fromkeys(("bleu", "chrf"), _corpus),
    **dict.fromkeys(("rouge1", "rouge2", "rougeL"), _rouge),
    **dict.fromkeys(("distinct1", "distinct2"), _distinct),
    "token_f1": _token_f1,
    "exact_match": _exact_match,
    "edit_similarity": _edit_similarity,
    "parses": _parses,
}
