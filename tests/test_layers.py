"""Imports point one way. Read from the source, so that it holds for imports that only some run would do."""

import ast
import sys
from functools import cache
from pathlib import Path

import pytest
from torch import nn
from transformers import GenerationConfig, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerFast

import llm_arch
from llm_arch.cli.main import VERBS

PACKAGE = Path(llm_arch.__file__).parent

# A module may import from its own layer and those above it in this list; a folder stands for all modules in it.
LAYERS = (
    ("types", "seeding", "locate", "tags", "untrusted"),
    (
        "model_directory",
        "lineage",
        "compression",
        "corpus",
        "data",
        "optim",
        "adamw",
        "checkpoints",
        "resuming",
        "fit_loop",
        "shards",
        "fully_sharded",
        "muon",
        "schedules",
        "gradients",
        "precision",
        "fillers",
        "allocator",
    ),
    ("backbones", "heads", "losses", "fewer_layers", "freezing"),
    ("exact_steps", "measures"),
    ("task",),
    ("inference", "callbacks"),
    ("trainer", "interpret", "evaluation", "augmentation"),
    ("cli", ""),  # "": the package itself, which names what users import
)
LAYER_OF = {name: number for number, names in enumerate(LAYERS) for name in names}

# Files of these folders are alternatives to each other, and are composed from YAML: none may import another. What they
# share is listed here. (Verbs are known by name, and the rest of cli/ is what they share.)
SUPPORTING = {
    "augmentation": {"base", "filters", "passages", "pipeline", "rows", "sampling", "similarity"},
    "backbones": {
        "activations",
        "bare",
        "building",
        "checking",
        "configuration",
        "cross",
        "dropout",
        "generating",
        "grouped",
        "joined",
        "load",
        "loading",
        "model_vectors",
        "output_head",
        "packed",
        "padding",
        "presets",
        "probe",
        "scratch",
        "short_attention",
        "split_attention",
        "two_sided",
        "varlen",
        "vectors",
        "vocabulary",
    },
    "callbacks": {"checkpoint", "monitor", "pruning_in_structure", "pruning_prices"},
    "compression": {
        "anatomy",
        "fake_quantization",
        "gates",
        "importance",
        "input_norms",
        "int8",
        "latency",
        "linear_layers",
        "macs",
        "planning",
        "positions",
        "prices",
        "quantizable",
        "solver",
        "sparsity",
        "stacks",
        "structure",
        "surgery",
    },
    "data": {
        "answers",
        "batching",
        "catalogues",
        "cells",
        "chatterbot",
        "choices",
        "collate",
        "completion",
        "conll",
        "corpus",
        "embedded",
        "files",
        "format",
        "labels",
        "library",
        "loader",
        "masked_rows",
        "masks",
        "module",
        "origins",
        "progress",
        "reading",
        "samples",
        "semeval",
        "smart_home",
        "sources",
        "spans",
        "splits",
        "splitting",
        "squad",
        "store",
        "tagged",
        "time_limit",
        "tokenizers",
        "windows",
        "words",
        "written",
    },
    "heads": {
        "answers",
        "crf",
        "entities",
        "generated_texts",
        "labels",
        "language",
        "language_model",
        "metrics",
        "numbers",
        "relations",
        "text_metrics",
        "vocabulary",
        "vocabulary_divergence",
        "weights",
    },
    "interpret": {
        "asked",
        "attention",
        "baselines",
        "explained_rows",
        "explainer",
        "explanation",
        "faithfulness",
        "function",
        "head_importance",
        "inside",
        "inspector",
        "interval",
        "logit_lens",
        "method",
        "moved",
        "notebook",
        "page.document",
        "page.inside_data",
        "page.row",
        "page.safe",
        "pieces",
        "ranks",
        "render",
        "replacing",
        "rows",
        "token_sequences",
        "words",
    },
    "losses": set(),
}
# A bare name stands for a model of transformers.
EXCEPTIONS = {
    ("llm_arch.backbones.load", "llm_arch.backbones.encoder_decoder"),
    ("llm_arch.backbones.load", "llm_arch.backbones.pretrained"),
}

# The only modules that may use names of transformers that are not public.
TRANSFORMERS_INSIDE = {"llm_arch.backbones.building", "llm_arch.backbones.loading"}
_OPEN = {*dir(nn.Module), *dir(object)}
_CLASSES = (PreTrainedModel, PreTrainedConfig, PreTrainedTokenizerFast, GenerationConfig)
PRIVATE = {
    name
    for names in (*map(dir, _CLASSES), vars(PreTrainedConfig()), vars(GenerationConfig()))
    for name in names
    if name.startswith("_") and not name.startswith("__") and name not in _OPEN
}


def sources():
    """Every module of the package with its source."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path.read_text(encoding="utf-8")
    return found


MODULES = sources()


@cache
def parsed(source):
    return ast.parse(source)


@cache
def imports(module, source, *, runtime=False):
    """The modules that a module imports, wherever in it; `runtime` leaves out what only type checkers read."""
    return tuple(_imports(module, parsed(source), runtime))


def _imports(module, tree, runtime):
    skipped = set()
    if runtime:
        for node in ast.walk(tree):
            if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
                skipped |= {id(inner) for child in node.body for inner in ast.walk(child)}
    package = module if any(one.startswith(f"{module}.") for one in MODULES) else module.rpartition(".")[0]
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*above, *filter(None, [base])])
            for alias in node.names:
                whole = f"{base}.{alias.name}"
                yield whole if whole in MODULES else base


def part(module):
    """The file or folder right below the package: `llm_arch.data.sources` → `data`."""
    return module.split(".")[1] if "." in module else ""


def ours(names):
    return [name for name in names if name.split(".")[0] == "llm_arch"]


# The rules, each from a module's source to what is wrong with it


def points_down(module, source):
    for name in ours(imports(module, source)):
        for one in (module, name):
            if part(one) not in LAYER_OF:
                yield f"{one}: {part(one)!r} has no place in LAYERS"
                return
        if LAYER_OF[part(name)] > LAYER_OF[part(module)]:
            yield f"{module} imports {name}, which is above it"


def leaves_alternatives_alone(module, source):
    folder, _, own = module.removeprefix("llm_arch.").partition(".")
    if not own:
        return  # a file of no folder, or a folder's __init__, which may name all its files
    for name in ours(imports(module, source)):
        other_folder, _, other = name.removeprefix("llm_arch.").partition(".")
        if other_folder != folder or not other or other == own or (module, name) in EXCEPTIONS:
            continue
        if folder == "cli":
            alternative = other.replace("_", "-") in VERBS
        elif folder in SUPPORTING:
            alternative = other not in SUPPORTING[folder]
        else:
            continue
        if alternative:
            yield f"{module} imports {name}, an alternative; share a supporting module instead"


def stays_outside_of_transformers(module, source):
    if module in TRANSFORMERS_INSIDE:
        return
    for name in imports(module, source):
        if name.split(".")[0] == "transformers" and any(p.startswith("_") for p in name.split(".")):
            yield f"{module} imports {name}"
    for node in ast.walk(parsed(source)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "transformers":
            yield from (f"{module} imports {a.name} of transformers" for a in node.names if a.name.startswith("_"))
        elif isinstance(node, ast.Attribute) and node.attr in PRIVATE:
            if not (isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")):
                yield f"{module} uses {ast.unparse(node)}"
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("getattr", "setattr", "hasattr"):
            names = [a.value for a in node.args[1:2] if isinstance(a, ast.Constant)]
            yield from (f"{module} uses {name} of transformers" for name in names if name in PRIVATE)


def is_no_tool(module, source):
    for name in imports(module, source):
        if name.split(".")[0] in ("tests", "benchmarks", "conftest", "pytest", "hypothesis"):
            yield f"{module} imports {name}"


def types_import_torch_alone(module, source):
    if module != "llm_arch.types" and not module.startswith("llm_arch.types."):
        return
    for name in imports(module, source, runtime=True):
        if not name.startswith("llm_arch.types.") and name.split(".")[0] not in {"torch", *sys.stdlib_module_names}:
            yield f"{module} imports {name}"


RULES = (
    points_down,
    leaves_alternatives_alone,
    stays_outside_of_transformers,
    is_no_tool,
    types_import_torch_alone,
)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_rule(rule):
    assert [fault for module, source in MODULES.items() for fault in rule(module, source)] == []


def test_all_modules_are_read():
    assert len(MODULES) > 30
    assert {"llm_arch", "llm_arch.types", "llm_arch.data.sources", "llm_arch.cli.main"} <= MODULES.keys()
    # The imports that keep the package together are found, those within functions too.
    assert "llm_arch.optim" in set(imports("llm_arch.task", MODULES["llm_arch.task"]))
    assert "llm_arch.types" in set(imports("llm_arch.cli.main", MODULES["llm_arch.cli.main"]))


def test_lists_name_modules_that_exist():
    listed = {f"llm_arch.{f}.{name}" for f, names in SUPPORTING.items() for name in names if f"llm_arch.{f}" in MODULES}
    planned = {"llm_arch.interpret.faithfulness"}
    assert listed - planned - MODULES.keys() == set()
    assert MODULES.keys() >= TRANSFORMERS_INSIDE
    assert {module for pair in EXCEPTIONS for module in pair} <= MODULES.keys()


def test_there_are_private_names_to_look_for():
    assert {"_attn_implementation", "_no_split_modules", "_keys_to_ignore_on_load_missing"} <= PRIVATE
    assert not PRIVATE & {"_parameters", "_modules", "_apply"}


@pytest.mark.parametrize(
    ("rule", "module", "bad"),
    [
        (points_down, "llm_arch.types", "from llm_arch.data.module import DataModule"),
        (points_down, "llm_arch.types", "from typing import Any\ndef f():\n    import llm_arch.task"),
        (points_down, "llm_arch.data.module", "from llm_arch import task"),
        (points_down, "llm_arch.data.module", "from ..task import Task"),
        (points_down, "llm_arch.data.module", "from llm_arch import Task"),
        (points_down, "llm_arch.optim", "from llm_arch.heads.classification import SequenceClassification"),
        (points_down, "llm_arch.heads.classification", "from llm_arch.callbacks.monitor import monitor_of"),
        (points_down, "llm_arch.task", "from llm_arch.inference.directory import save"),
        (points_down, "llm_arch.inference.directory", "from llm_arch.trainer import Trainer"),
        (points_down, "llm_arch.callbacks.checkpoint", "from llm_arch.evaluation import verify"),
        (points_down, "llm_arch.trainer", "if True:\n    from llm_arch.cli import report"),
        (points_down, "llm_arch.novelty", "from llm_arch.types import Batch"),
        (leaves_alternatives_alone, "llm_arch.heads.tagging", "from llm_arch.heads.classification import x"),
        (leaves_alternatives_alone, "llm_arch.heads.tagging", "from llm_arch.heads import classification"),
        (leaves_alternatives_alone, "llm_arch.heads.tagging", "from .classification import x"),
        (points_down, "llm_arch.data", "from ..task import Task"),
        (leaves_alternatives_alone, "llm_arch.heads.metrics", "from llm_arch.heads.classification import x"),
        (leaves_alternatives_alone, "llm_arch.losses.rdrop", "from llm_arch.losses.distillation import x"),
        (leaves_alternatives_alone, "llm_arch.data.format", "from llm_arch.data.classification import x"),
        (leaves_alternatives_alone, "llm_arch.backbones.packed", "from llm_arch.backbones.pretrained import x"),
        (leaves_alternatives_alone, "llm_arch.callbacks.checkpoint", "from llm_arch.callbacks.early_stopping import x"),
        (leaves_alternatives_alone, "llm_arch.cli.test", "from llm_arch.cli.predict import parse"),
        (leaves_alternatives_alone, "llm_arch.cli.report", "def f():\n    from llm_arch.cli import fit"),
        (stays_outside_of_transformers, "llm_arch.heads.tagging", "from transformers.utils import _LazyModule"),
        (stays_outside_of_transformers, "llm_arch.heads.tagging", "import transformers._inside"),
        (stays_outside_of_transformers, "llm_arch.task", "backbone.config._attn_implementation = 'sdpa'"),
        (stays_outside_of_transformers, "llm_arch.task", "getattr(model, '_no_split_modules')"),
        (is_no_tool, "llm_arch.task", "from tests.conftest import make_rows"),
        (is_no_tool, "llm_arch.cli.main", "def f():\n    import benchmarks.speed"),
        (types_import_torch_alone, "llm_arch.types", "import numpy as np"),
        (types_import_torch_alone, "llm_arch.types.batch", "import numpy as np"),
        (types_import_torch_alone, "llm_arch.types", "from torchmetrics import Metric"),
        (types_import_torch_alone, "llm_arch.types", "from llm_arch.seeding import mix"),
    ],
)
def test_rule_finds(rule, module, bad):
    assert list(rule(module, bad))


@pytest.mark.parametrize(
    ("module", "good"),
    [
        ("llm_arch.task", "from llm_arch.heads import classification\nfrom llm_arch import optim"),
        ("llm_arch.cli.main", "from llm_arch import __version__\nfrom llm_arch.cli import configs"),
        ("llm_arch.heads.tagging", "from llm_arch.heads.metrics import ClassificationMetrics"),
        ("llm_arch.data.squad", "from llm_arch.data.module import DataModule\nfrom .sources import Source"),
        ("llm_arch.heads", "from llm_arch.heads.classification import x"),
        ("llm_arch.types.parts", "from llm_arch.types.batch import Batch"),
        ("llm_arch.types", "import json, torch.nn\nif TYPE_CHECKING:\n    from torchmetrics import Metric"),
        ("llm_arch.backbones.loading", "config._attn_implementation = 'sdpa'"),
        ("llm_arch.task", "self._mark = 1\nmodule._parameters"),
    ],
)
def test_rules_allow(module, good):
    assert [fault for rule in RULES for fault in rule(module, good)] == []
