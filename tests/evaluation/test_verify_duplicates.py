"""Duplicates between splits: of rows, of pairs, of documents; the nearest one is that of brute force."""

from hypothesis import given
from hypothesis import strategies as st

from llm_arch.augmentation.similarity import TextIndex, jaccard, normalized, shingles
from llm_arch.data.classification import TextClassificationData
from llm_arch.data.next_tokens import NextTokenData
from llm_arch.evaluation.verification.duplicates import NEAR, Duplicates
from llm_arch.evaluation.verification.subject import Subject
from llm_arch.heads.classification import SequenceClassification
from llm_arch.heads.language_model import LanguageModel
from llm_arch.task import Task

TEXTS = st.lists(st.lists(st.sampled_from("abcd"), min_size=1, max_size=7).map(" ".join), min_size=1, max_size=12)


def checked(folder, data, head=SequenceClassification, backbone="tiny:bert", **options):
    def build():
        return Task(backbone, head, data.label_space, vocabulary=data.vocabulary), data

    return Duplicates().run(Subject(build, folder, **options))


@given(texts=TEXTS, asked=TEXTS)
def test_nearest_is_that_of_brute_force(texts, asked):
    index = TextIndex([[text] for text in texts], NEAR)
    for text in asked:
        shares = [jaccard(shingles(normalized([text])), shingles(normalized([other]))) for other in texts]
        equal = normalized([text]) in {normalized([other]) for other in texts}
        best = 1.0 if equal else max(shares)
        found = index.nearest([text])
        assert (found is None) == (best < NEAR)
        if found is not None:
            assert found[1] == best
            assert jaccard(shingles(normalized([text])), shingles(found[0])) == best


def test_pairs_are_compared_as_pairs(write_rows, tokenizer, tmp_path):
    train = [{"text": f"one {i}", "text_pair": f"two {i}", "label": "ab"[i % 2]} for i in range(6)]
    crossed = [{"text": "one 1", "text_pair": "two 2", "label": "a"}, {"text": "x", "text_pair": "y", "label": "b"}]
    files = write_rows(train, "train.jsonl"), write_rows(crossed, "validation.jsonl")
    options = {"text_pair_column": "text_pair", "tokenizer": tokenizer}
    assert checked(tmp_path, TextClassificationData(*files, **options)).status == "pass"
    twin = write_rows([*crossed, train[3]], "leaking.jsonl")
    found = checked(tmp_path, TextClassificationData(files[0], twin, **options))
    assert (found.status, found.measured) == ("fail", 1.0)
    assert found.reason.endswith("validation line 3 'one 3 | two 3' = train line 4")


def test_near_pairs(write_rows, tokenizer, tmp_path):
    words = "the quick brown fox jumps over the lazy dog again"
    train = [{"text": words, "text_pair": "two", "label": "a"}, {"text": "x", "text_pair": "z", "label": "b"}]
    other = [{"text": words.title(), "text_pair": "Two.", "label": "a"}]
    files = write_rows(train, "train.jsonl"), write_rows(other, "validation.jsonl")
    found = checked(tmp_path, TextClassificationData(*files, text_pair_column="text_pair", tokenizer=tokenizer))
    assert (found.status, found.measured) == ("warn", 1.0)
    assert "1 near ones (0.8 of two-word runs) among 1 of 1 validation rows against 2; nearest (1.00)" in found.reason


def test_documents(tokenizer, tmp_path):
    train, validation = tmp_path / "train.txt", tmp_path / "validation.txt"
    train.write_text("".join(f"document number {i} has some words\n" for i in range(9)))
    validation.write_text("nothing like it\ndocument number 4 has some words\n")

    def data(*files):
        return NextTokenData(*map(str, files), tokenizer=tokenizer, max_length=16, max_tokens=64)

    found = checked(tmp_path, data(train, validation), LanguageModel, "tiny:gpt2")
    assert (found.status, found.measured) == ("fail", 1.0)
    assert found.reason.endswith("validation document 2 'document number 4 has some words' = train document 5")
    validation.write_text("nothing like it\n")
    assert checked(tmp_path, data(train, validation), LanguageModel, "tiny:gpt2").status == "pass"


def test_a_single_split(write_rows, rows, tokenizer, tmp_path):
    found = checked(tmp_path, TextClassificationData(write_rows(rows(9)), tokenizer=tokenizer, validation_fraction=0))
    assert (found.status, found.reason) == ("skip", "there is a single split, train")
