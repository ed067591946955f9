"""Draws the pictures of README, of models that the shipped configs have trained.

llm-arch fit -c task/ner --output runs/ner
llm-arch fit -c task/relation_extraction --output runs/relation_extraction
llm-arch fit -c task/question_answering --output runs/question_answering
python notebooks/pictures/draw.py runs
"""

import sys
from pathlib import Path
from typing import Any

from llm_arch.data.samples import sample_rows
from llm_arch.interpret import explain
from llm_arch.interpret.figure import png_of

COMMAND = {"text": "set the bedroom light to 40 percent"}
RELATIONS = [row for _, row in sample_rows("sample:relations:test")]
QUESTIONS = [row for _, row in sample_rows("sample:question_answering:test")]
# Rows, and what is asked about them; what the model predicts without.
PICTURES: dict[str, list[tuple[dict[str, Any], dict[str, str]]]] = {
    "ner": [
        (COMMAND, {"target": "25-27:brightness"}),
        (COMMAND, {"target": "25-27:brightness", "against": "25-27:volume_level"}),
    ],
    "relation_extraction": [(RELATIONS[2], {}), (RELATIONS[13], {})],
    "question_answering": [(QUESTIONS[5], {})],
}

for task, rows in PICTURES.items():
    found = [one for row, asked in rows for one in explain(Path(sys.argv[1]) / task, row, **asked)]
    Path(__file__).with_name(f"{task}.png").write_bytes(png_of(found))
