"""Questions of SQuAD's nested json, versions 1.1 and 2.0: articles of paragraphs of questions."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from llm_arch.data.answers import Names
from llm_arch.data.sources import Row
from llm_arch.types import UserError

_HALF = re.compile("[\ud800-\udfff]")


def read_squad(path: Path, names: Names) -> Iterator[Row]:
    """The questions of a file, each a row; its number in the file stands for the line.

    Args:
        path: the file.
        names: how to name the columns.

    Raises:
        UserError: when the file is not JSON, saying where, or not of this kind.
    """
    number = 0
    for i, article in enumerate(_listed(path, _read(path), "", "data")):
        where = f"data[{i}]"
        for j, paragraph in enumerate(_listed(path, article, where, "paragraphs")):
            for question in _listed(path, paragraph, f"{where}.paragraphs[{j}]", "qas"):
                number += 1
                yield _row(number, question, paragraph.get("context"), names)


def _row(number: int, question: Any, context: Any, names: Names) -> Row:
    if not isinstance(question, dict):
        return Row(number, {}, f"holds {type(question).__name__} instead of a question; fix the file")
    values = {names.question: question.get("question"), names.context: context}
    if "answers" in question:
        values[names.answers] = question["answers"]
    if names.id is not None:
        values[names.id] = question.get("id")
    fault = None
    if any(isinstance(text, str) and _HALF.search(text) for text in values.values()):
        fault = "holds half a character (a lone surrogate such as \\ud83d); fix the row"
    elif question.get("is_impossible") is True and question.get("answers"):
        fault = "has answers although is_impossible is true; fix the row"
    return Row(number, values if fault is None else {}, fault)


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not valid UTF-8; save the file as UTF-8") from error
    except json.JSONDecodeError as error:
        raise UserError(
            f"{path} is not valid JSON ({error.msg} at line {error.lineno}, column {error.colno}); "
            f"fix it, or let its name end in .jsonl if it has one object a line"
        ) from error
    except (RecursionError, ValueError) as error:  # nested deeply, or a number of thousands of digits
        raise UserError(f"{path} is not valid JSON ({type(error).__name__}); fix the file") from error


def _listed(path: Path, holder: Any, where: str, name: str) -> list[Any]:
    found = holder.get(name) if isinstance(holder, dict) else None
    if not isinstance(found, list):
        raise UserError(
            f"{path} is not in the format of SQuAD: {where or 'it'} has no list {name!r}; "
            f"write data[].paragraphs[] with a context and qas[], or one question a line as .jsonl"
        )
    return found
