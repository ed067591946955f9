"""`llm-arch VERB …`: finds the verb, runs it, and turns what went wrong into one sentence and an exit code."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from difflib import get_close_matches
from importlib import import_module

VERBS = {
    "tokenizer": "train a tokenizer on text of your own",
    "prepare": "encode text once into a corpus store for pretraining",
    "augment": "make more training rows of those there are",
    "fit": "train a model on your data, measure it before and after, and save it",
    "compress": "make a trained model smaller by a recipe, measure it before and after, and save it",
    "verify": "check that a config, its model and its data keep the contract",
    "test": "measure a saved model on a file with labels",
    "benchmark": "compare saved models in size, speed, memory and metric",
    "export": "write a saved model for ONNX Runtime, OpenVINO or torch.export",
    "predict": "predict with a saved model, one JSON object a line",
    "explain": "say which words a saved model's predictions come from",
    "perplexity": "how far texts are from what a saved language model was pretrained on",
    "zero-shot": "multiple choice by a saved causal language model that was not trained on it",
    "generate": "go on with texts, by a saved causal language model",
    "runs": "list local runs with their metrics and the models they went on from",
}

DONE, FAILED, WRONG_INPUT = 0, 1, 2


def usage() -> str:
    """What `llm-arch --help` prints."""
    width = max(map(len, VERBS))
    verbs = "\n".join(f"  {verb:<{width}}  {what}" for verb, what in VERBS.items())
    return (
        "usage: llm-arch VERB [options]\n\n"
        "From text to a fine-tuned, reusable model.\n\n"
        f"verbs:\n{verbs}\n\n"
        "`llm-arch VERB --help` tells more. A first try, on embedded data:\n"
        "  llm-arch fit -c task/text_classification --output runs/first\n"
        "  llm-arch predict --model runs/first/model --text 'turn on the kitchen light'\n\n"
        "exit codes: 0 done, 1 the run failed, 2 the input was wrong, 75 preempted and resumable"
    )


def main(arguments: list[str] | None = None) -> int:
    """Run one verb.

    Args:
        arguments: the command line without the program's name; None for the process's own.

    Returns:
        The exit code: 0 done, 1 the run failed, 2 the input was wrong.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    if not arguments or arguments[0] in ("-h", "--help"):
        print(usage(), file=sys.stdout if arguments else sys.stderr)
        return DONE if arguments else WRONG_INPUT
    if arguments[0] in ("-V", "--version"):
        from llm_arch import __version__

        print(f"llm-arch {__version__}")
        return DONE
    verb, *rest = arguments
    if verb not in VERBS:
        near = get_close_matches(verb, VERBS, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        return _complain(f"unknown verb {verb!r}; {hint}The verbs are: {', '.join(VERBS)}")
    from llm_arch.types import UserError

    try:
        import_module(f"llm_arch.cli.{verb.replace('-', '_')}").run(rest)
    except UserError as error:
        return _complain(str(error))
    except BrokenPipeError:  # `llm-arch predict … | head`
        with suppress(OSError, ValueError):  # what is still buffered has nobody to read it
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return DONE
    except KeyboardInterrupt:
        print("llm-arch: interrupted", file=sys.stderr)
        return 130
    except SystemExit as stop:  # `--help` and `--print_config` of the parsers
        return stop.code if isinstance(stop.code, int) else FAILED if stop.code else DONE
    return DONE


def _complain(message: str) -> int:
    print(f"llm-arch: error: {message}", file=sys.stderr)
    return WRONG_INPUT


if __name__ == "__main__":
    sys.exit(main())
