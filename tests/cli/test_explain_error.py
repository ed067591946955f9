"""jsonargparse's messages, as it writes them, and the sentence made of each."""

from __future__ import annotations

import pytest
from torch.optim import Optimizer

from llm_arch.cli.explain_error import constructor_error, explain, parameters, parameters_of
from llm_arch.data.classification import TextClassificationData
from llm_arch.types import UserError

KNOWN = [
    "output",
    "trainer.max_epochs",
    "trainer.max_steps",
    "model.freeze",
    "model.head",
    "data.train",
    "data.batch_size",
]

MESSAGES = {
    "unrecognized arguments: --trainer.max_epoch 3": (
        "unknown option --trainer.max_epoch; did you mean --trainer.max_epochs?"
    ),
    "unrecognized arguments: --trainer.max_epoch=3": (
        "unknown option --trainer.max_epoch=3; did you mean --trainer.max_epochs?"
    ),
    "unrecognized arguments: --max_epochs 3": "unknown option --max_epochs; did you mean --trainer.max_epochs?",
    "unrecognized arguments: --batchsize 3": "unknown option --batchsize; did you mean --data.batch_size?",
    "unrecognized arguments: --modle.freeze x": "unknown option --modle.freeze; did you mean --model.freeze?",
    "unrecognized arguments: --xyzzy 3": "unknown option --xyzzy",
    "unrecognized arguments: stray": "unexpected argument 'stray'; every value follows an option, such as --output DIR",
    "argument --output: expected one argument": "--output needs a value; see llm-arch fit --help",
    "argument -c/--config: expected one argument": "--config needs a value; see llm-arch fit --help",
    "the following arguments are required: model.backbone, data": (
        "model.backbone, data must be given; start from a config, such as -c task/text_classification"
    ),
    "Option 'modle.freeze' is not accepted": "unknown key modle.freeze; did you mean model.freeze?",
    "Group 'model' does not accept option 'heat'": "unknown key model.heat; did you mean model.head?",
    """Parser key "data":
  Does not validate against any of the Union subtypes
  Subtypes: [<class 'llm_arch.data.module.DataModule'>, <class 'NoneType'>]
  Errors:
    - Problem with given class_path 'llm_arch.data.classification.TextClassificationData':
        Option 'tran' is not accepted
    - Expected a <class 'NoneType'>
  Given value type: <class 'dict'>
  Given value: {'init_args': {'tran': 'a.jsonl'}}""": "unknown key data.tran; did you mean data.train?",
    """Parser key "data":
  Does not validate against any of the Union subtypes
  Subtypes: [<class 'llm_arch.data.module.DataModule'>, <class 'NoneType'>]
  Errors:
    - Problem with given class_path 'llm_arch.data.classification.TextClassificationData':
        Parser key "batch_size":
          Does not validate against any of the Union subtypes
          Subtypes: [<class 'int'>, <class 'NoneType'>]
          Errors:
            - Expected a <class 'int'>
            - Expected a <class 'NoneType'>
          Given value type: <class 'str'>
          Given value: x
    - Expected a <class 'NoneType'>
  Given value type: <class 'jsonargparse._util.NestedArg'>
  Given value: NestedArg(key='batch_size', val='x')""": "data.batch_size: expected a whole number, got 'x'",
    """Parser key "model.head":
  Type collections.abc.Callable[[int, llm_arch.types.LabelSpace], llm_arch.types.Head] expects a function or a \
callable class: Option 'treshold' is not accepted. Got value: Namespace(init_args=Namespace(treshold=0.4), \
class_path='llm_arch.heads.classification.SequenceClassification')""": (
        "unknown key model.head.treshold; did you mean model.head.threshold?"
    ),
    """Parser key "model.head":
  Type collections.abc.Callable[[int, llm_arch.types.LabelSpace], llm_arch.types.Head] expects a function or a \
callable class: Option 'xyzzy' is not accepted. Got value: Namespace(init_args=Namespace(xyzzy=0.4), \
class_path='llm_arch.heads.classification.SequenceClassification')""": (
        "unknown key model.head.xyzzy; llm_arch.heads.classification.SequenceClassification takes hidden_size, "
        "label_space, binary, pooling, dropout, class_weights, label_smoothing, threshold"
    ),
    """Parser key "model.freeze":
  Does not validate against any of the Union subtypes
  Subtypes: [typing.Literal['none', 'backbone', 'embeddings'], <class 'int'>]
  Errors:
    - Expected a typing.Literal['none', 'backbone', 'embeddings']
    - Expected a <class 'int'>
  Given value type: <class 'str'>
  Given value: all""": "model.freeze: expected none, backbone, embeddings or a whole number, got 'all'",
    """Parser key "model.pooling":
  Does not validate against any of the Union subtypes
  Subtypes: [typing.Literal['first', 'last'], <class 'NoneType'>]
  Errors:
    - Expected a typing.Literal['first', 'last']
    - Expected a <class 'NoneType'>
  Given value type: <class 'str'>
  Given value: lst""": "model.pooling: 'lst' is none of first, last; did you mean last?",
    """Parser key "model.optimizer":

  - Expected a path but Adamm either not accessible or invalid
  - Does not validate against any of the Union subtypes
  Subtypes: [typing.Callable[[collections.abc.Iterable], torch.optim.optimizer.Optimizer], <class 'NoneType'>]
  Errors:
    - Expected a dot import path string: Adamm
    - Expected a <class 'NoneType'>
  Given value type: <class 'str'>
  Given value: Adamm""": "model.optimizer: found no class Adamm; did you mean Adam?",
    """Parser key "model.optimizer":

  - Expected a path but Muon either not accessible or invalid
  - Does not validate against any of the Union subtypes
  Subtypes: [typing.Callable[[collections.abc.Iterable], torch.optim.optimizer.Optimizer], <class 'NoneType'>]
  Errors:
    - Multiple subclasses with name Muon. Give the full class path to avoid ambiguity: torch.optim.Muon, \
llm_arch.muon.Muon.
    - Expected a <class 'NoneType'>
  Given value type: <class 'str'>
  Given value: Muon""": (
        "model.optimizer: several classes are called Muon; give the whole path: torch.optim.Muon or llm_arch.muon.Muon"
    ),
    'Parser key "x.y":\n  Something else\n  entirely': 'Parser key "x.y": Something else entirely',
}


@pytest.mark.parametrize("message", MESSAGES, ids=range(len(MESSAGES)))
def test_sentence(message: str) -> None:
    assert explain(message, KNOWN, {}, {"model.optimizer": Optimizer}) == MESSAGES[message]


def test_place_of_the_key_comes_first() -> None:
    message = "Group 'model' does not accept option 'heat'"
    assert explain(message, KNOWN, {"model.heat": "mine.yaml, line 3"}).startswith("mine.yaml, line 3: unknown key")
    assert explain(message, KNOWN, {"model.head": "mine.yaml, line 3"}).startswith("unknown key model.heat")


def test_truth_where_text_is_wanted() -> None:
    message = "Parser key \"data.label\":\n  Expected a <class 'str'>. Got value: False"
    assert explain(message, KNOWN) == (
        "data.label: expected text, got 'False'; quote it, since YAML reads yes, no, on and off so"
    )


class Base:
    def __init__(self, first: int, *, second: str = "") -> None: ...


class Passing(Base):
    def __init__(self, third: float, **options: object) -> None: ...


class Closed(Base):
    def __init__(self, *positional: int, only: int) -> None: ...


def test_parameters() -> None:
    assert parameters_of(Passing) == ["third", "first", "second"]
    assert parameters_of(Closed) == ["only"]
    assert parameters_of(type("Plain", (), {})) == []
    found = parameters("llm_arch.data.classification.TextClassificationData")
    assert found == parameters_of(TextClassificationData)
    assert {"train", "text_column", "max_length", "cache_dir"} <= set(found)
    assert "options" not in found


def wrapped(inner: Exception) -> Exception:
    """As jsonargparse does it."""
    try:
        try:
            raise inner
        except ValueError as error:
            raise ValueError(f"Does not validate against any of the Union subtypes\n  - {error}") from error
    except ValueError as outer:
        return outer


def test_constructor_error() -> None:
    assert constructor_error(wrapped(UserError("share must be\n  in [0, 1)"))) == "share must be in [0, 1)"
    assert constructor_error(wrapped(ValueError("got 3"))) == "got 3"
    assert constructor_error(ValueError("plain")) == "plain"


def test_constructor_error_keeps_its_own_sentence() -> None:
    """What a sentence was made from is not what it says."""
    error = UserError("no such label")
    error.__cause__ = ValueError("tuple.index(x): x not in tuple")
    assert constructor_error(wrapped(error)) == "no such label"
