"""`llm-arch compress`: make a trained model smaller by a recipe, measure it before and after, save it."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llm_arch import model_directory
from llm_arch.cli import configs, fit_command, output
from llm_arch.types import UserError

if TYPE_CHECKING:
    from llm_arch.inference.directory import Model

HELP = """usage: llm-arch compress --model DIR --recipe RECIPE --data FILE [--KEY VALUE …]

Make a trained model smaller, measure it before and after on the test split, and save it.

  llm-arch compress --model runs/mine --recipe compress/structured --data A.csv --output runs/small

  --model DIR                    the trained model; its head, labels, tokenizer and columns are kept
  --recipe RECIPE                a YAML file or a shipped config; several stack, later ones win
  --data FILE                    rows with labels, as `llm-arch fit` takes them (--data.train)
  --validation FILE              otherwise cut off those rows
  --test FILE                    otherwise the validation rows are measured
  --output DIR                   where everything goes (default: runs/<recipe>/<time>); the model lies in
                                 DIR/model, and --model DIR finds it there
  --overwrite                    replace an earlier run in DIR
  --resume auto|PATH             go on from DIR's last checkpoint (or start fresh), or from PATH
  --trust MODULE                 allow a module of your own that the model was trained with
  --check                        compare every file of the model with its manifest.json first

Everything that `llm-arch fit --help` lists can be set too, such as --trainer.max_epochs 2, --model.learning_rate 1e-4
or -c hardware/gpu. A recipe works as an overlay of `llm-arch fit` as well: -c task/… -c compress/….
Shipped recipes:
{recipes}
"""


def run(arguments: list[str]) -> None:
    """Run `llm-arch compress`."""
    if "-h" in arguments or "--help" in arguments:
        shipped = (name for name in configs.names() if name.startswith("compress/"))
        print(HELP.format(recipes="\n".join(f"  --recipe {name}" for name in shipped)))
        return
    options, rest = _read(arguments)
    recipes = [str(configs.find(name)) for name in options.recipe]
    from llm_arch.cli.quiet import quiet

    quiet()
    base = _base(options)
    stacked = [part for name in recipes for part in ("-c", name)]
    cli, _ = fit_command.read([*stacked, *rest], json.dumps(base))
    given = cli.config
    _check(options, base, given)
    from llm_arch.cli.fit_run import FitRun

    FitRun(
        cli,
        output.choose(given.output, options.recipe[0]),
        overwrite=given.overwrite,
        resume=given.resume,
        before=given.before,
        recipe=options.recipe,
        compresses=True,
    ).run()


def _read(arguments: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """The options of this verb alone, and the rest, which are those of `fit`."""
    parser = argparse.ArgumentParser("llm-arch compress", add_help=False, allow_abbrev=False)
    parser.add_argument("--model", required=True)
    parser.add_argument("--recipe", action="append", required=True)
    for name in ("--data", "--validation", "--test"):
        parser.add_argument(name, required=name == "--data")
    parser.add_argument("--trust", action="append", default=[])
    parser.add_argument("--check", action="store_true")

    def complain(message: str) -> None:
        raise UserError(f"{message}; see llm-arch compress --help")

    parser.error = complain  # type: ignore[method-assign, assignment]
    own = [name for name in parser._option_string_actions if name.startswith("--")]
    for name in (a.partition("=")[0] for a in arguments if a.startswith("--") and "." not in a.partition("=")[0]):
        near = get_close_matches(name, own, n=1, cutoff=0.75)
        if near and name not in own:
            complain(f"unknown option {name}; did you mean {near[0]}?")
    return parser.parse_known_args(arguments)


def _base(options: argparse.Namespace) -> dict[str, Any]:
    """The config that the recipe is put over: the whole model, and rows read as its training rows were."""
    place = model_directory.home(Path(options.model))
    if options.check:
        model_directory.read(place)  # says better what a folder is that is none
        model_directory.check_manifest(place)
    fit_command.trust(options.trust)
    from llm_arch.inference.directory import load

    model = load(place, trust=tuple(options.trust))
    record = model.record
    head, data = (_part(model, name) for name in ("head", "data"))
    rows = {"train": options.data, "validation": options.validation, "test": options.test}
    data["init_args"] |= {name: source for name, source in rows.items() if source is not None}
    pooling = record["backbone"].get("pooling")
    backbone = {"backbone": str(place), **({"pooling": pooling} if pooling else {})}
    return {"start": str(place), "model": {**backbone, "head": head}, "data": data}


def _part(model: Model, name: str) -> dict[str, Any]:
    """Head or data as a config names it. A config may build any object, which a model directory must not."""
    part = model.record[name]
    if _names_class(part["init_args"]):
        raise UserError(
            f"{model.directory}: an argument of its {name} names a class, as in no saved model; fetch the model again"
        )
    return {"class_path": part["class_path"], "init_args": dict(part["init_args"])}


def _names_class(value: Any) -> bool:
    if isinstance(value, Mapping):
        return "class_path" in value or any(map(_names_class, value.values()))
    return isinstance(value, list) and any(map(_names_class, value))


def _check(options: argparse.Namespace, base: dict[str, Any], config: Any) -> None:
    """Raise UserError where recipe or options replace the model, or the output would."""
    for key, given, own in (
        ("start", config.start, base["start"]),
        ("model.backbone", config.model.backbone, base["model"]["backbone"]),
    ):
        if given != own:
            raise UserError(
                f"{', '.join(options.recipe)} or an option sets {key}, but it is --model that is compressed; "
                "leave that out, or use `llm-arch fit`"
            )
    place = Path(base["start"]).resolve()
    if config.output and Path(config.output).resolve() in (place, *place.parents[:1]):
        raise UserError(f"--output {config.output} is where --model lies; name another directory")
