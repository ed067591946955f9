"""The project's own small sets: every row is one that its format can read, and no split sees another's."""

from __future__ import annotations

from collections import Counter

import pytest

from llm_arch.data.samples import names, sample_file, sample_rows
from llm_arch.data.sources import Source, with_splits
from llm_arch.types import UserError

SPLITS = ("train", "validation", "test")


@pytest.mark.parametrize("name", names())
def test_every_row_is_in_one_split(name: str) -> None:
    found = [list(sample_rows(f"sample:{name}:{split}")) for split in SPLITS]
    assert all(found)
    lines = sorted(line for rows in found for line, _ in rows)
    assert lines == list(range(1, len(sample_file(f"sample:{name}").read_text(encoding="utf-8").splitlines()) + 1))
    assert list(sample_rows(f"sample:{name}")) == found[0]
    assert not any("split" in values for rows in found for _, values in rows)


@pytest.mark.parametrize("name", names())
def test_splits_are_sources_of_their_own(name: str) -> None:
    sources = [Source(f"sample:{name}:{split}") for split in SPLITS]
    assert len({source.fingerprint() for source in sources}) == 3
    for source in sources:
        assert not source.is_file
        assert [(row.line, row.values) for row in source.rows()] == list(sample_rows(source.name))


def test_relations() -> None:
    rows = {split: [values for _, values in sample_rows(f"sample:relations:{split}")] for split in SPLITS}
    texts = [row["text"] for split in rows.values() for row in split]
    assert len(texts) == len(set(texts)) >= 150
    counts = {split: Counter(row["label"] for row in found) for split, found in rows.items()}
    assert len(counts["train"]) == 7
    assert set(counts["validation"]) == set(counts["test"]) == set(counts["train"])
    for row in (row for split in rows.values() for row in split):
        words = [row["text"][row[name]["start"] : row[name]["end"]] for name in ("head", "tail")]
        assert all(word and word == word.strip() for word in words), row
        assert row["head"]["end"] < row["tail"]["start"]


def test_names_of_none() -> None:
    known = ", ".join(names())
    for wrong in ("sample:nothing", "sample:nothing:test", "sample:", "sample:../relations"):
        with pytest.raises(UserError, match=rf"^{wrong}: there is no sample of this name; there are: {known}$"):
            list(Source(wrong).rows())
    with pytest.raises(UserError, match=r"^sample:relations:dev: a sample has the splits train, validation, test$"):
        list(Source("sample:relations:dev").rows())


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (("sample:a", None, None), ("sample:a:train", "sample:a:validation", "sample:a:test")),
        (("sample:a", "v.jsonl", None), ("sample:a:train", "v.jsonl", "sample:a:test")),
        (("sample:a:train", None, None), ("sample:a:train", None, None)),
        (("t.jsonl", None, "sample:a:test"), ("t.jsonl", None, "sample:a:test")),
    ],
)
def test_a_sample_brings_its_splits(given: tuple[str | None, ...], expected: tuple[str | None, ...]) -> None:
    assert with_splits(*given) == {split: name for split, name in zip(SPLITS, expected, strict=True) if name}
