"""Where the time of a prediction goes, in the dense model and the pruned ones: what can still be won, and what not.

    python -m benchmarks.pruning profile --data DIR --models FOLDER --sets wnut17

Test rows are predicted one by one, as `structure` times them, while a clock stands at the borders of the parts. Each
part is charged for itself alone: attention not for its projections, which are linear layers. The clock takes time too,
so shares are of what it measured, and the milliseconds beside them are of predictions without it.
"""

from __future__ import annotations

import argparse
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median
from typing import Any
from unittest.mock import patch

import torch
from torch import nn

from benchmarks.compressed import SETS, dense
from benchmarks.evaluation_data import Row, data_root, load
from benchmarks.measure import write_results
from llm_arch.cli.quiet import quiet
from llm_arch.compression.anatomy import anatomy
from llm_arch.inference import Predictor

TOKENS, EMBEDDINGS, LINEAR, ATTENTION = "tokenization", "embeddings", "linear layers", "attention"
NORMS, ENCODER, HEAD, REST = "norms and activations", "the encoder's rest", "head and decoding", "rest"
PARTS = (TOKENS, EMBEDDINGS, LINEAR, ATTENTION, NORMS, ENCODER, HEAD, REST)


class Clock:
    """CPU seconds by part; a part within another stops that one's time."""

    def __init__(self) -> None:
        self.seconds: Counter[str] = Counter()
        self._open: list[str] = []
        self._mark = 0.0

    def enter(self, part: str) -> None:
        """A part begins."""
        self._charge()
        self._open.append(part)

    def leave(self) -> None:
        """It ends."""
        self._charge()
        self._open.pop()

    def _charge(self) -> None:
        now = time.process_time()
        if self._open:
            self.seconds[self._open[-1]] += now - self._mark
        self._mark = time.process_time()

    def function(self, part: str, wrapped: Callable[..., Any]) -> Callable[..., Any]:
        """A function whose time goes to a part."""

        def timed(*args: Any, **kwargs: Any) -> Any:
            self.enter(part)
            try:
                return wrapped(*args, **kwargs)
            finally:
                self.leave()

        return timed

    def module(self, part: str, module: nn.Module) -> list[Any]:
        """Let a module's time go to a part.

        Returns:
            Hooks to remove.
        """
        return [
            module.register_forward_pre_hook(lambda *_: self.enter(part)),
            module.register_forward_hook(lambda *_: self.leave()),
        ]


@contextmanager
def clocked(predictor: Predictor) -> Iterator[Clock]:
    """A clock at the borders of the parts of a predictor of one BERT-shaped model."""
    model, clock = predictor.model, Clock()
    parts = {module: LINEAR for module in model.backbone.modules() if isinstance(module, nn.Linear)}
    parts |= {one.attention: ATTENTION for one in anatomy(model.backbone) if one.heads}
    small = (nn.LayerNorm, type(_activation(model.backbone)))
    parts |= {module: NORMS for module in model.backbone.modules() if isinstance(module, small)}
    parts |= dict.fromkeys((model.backbone.embeddings, model.backbone.model.embeddings), EMBEDDINGS)  # type: ignore[union-attr]
    parts |= {model.backbone.model.embeddings.LayerNorm: EMBEDDINGS}  # type: ignore[union-attr]
    parts |= {model.backbone: ENCODER, model.head: HEAD}
    hooks = [hook for module, part in parts.items() for hook in clock.module(part, module)]
    with ExitStack() as stack:
        for owner, name, part in ((model.data, "encode", TOKENS), (model.head, "decode", HEAD)):
            stack.enter_context(patch.object(owner, name, clock.function(part, getattr(owner, name))))
        try:
            yield clock
        finally:
            for hook in hooks:
                hook.remove()


def _activation(backbone: nn.Module) -> nn.Module:
    return next(m for name, m in backbone.named_modules() if name.endswith("intermediate_act_fn"))


def profile(models: Mapping[str, Path], rows: Sequence[Row], *, count: int, rounds: int) -> dict[str, dict[str, float]]:
    """Milliseconds a row by model and part, medians over rounds in which the models take turns.

    Args:
        models: by name.
        rows: of which some are taken, the same for all.
        count: how many.
        rounds: over all of them; a first one is not counted.

    Returns:
        For each model the parts', and under `total` those of a row without the clock.
    """
    predictors = {name: Predictor(place) for name, place in models.items()}
    chosen = random.Random(0).sample(list(rows), min(count, len(rows)))
    given = [{k: v for k, v in row.items() if k not in ("label", "tags")} for row in chosen]
    found: dict[str, list[Mapping[str, float]]] = {name: [] for name in models}
    for _ in range(rounds + 1):
        for name, predictor in predictors.items():
            start = time.process_time()
            for row in given:
                list(predictor.stream([row]))
            total = time.process_time() - start
            with clocked(predictor) as clock:
                for row in given:
                    clock.function(REST, list)(predictor.stream([row]))
            found[name].append({**clock.seconds, "total": total})
    return {
        name: {part: 1e3 / len(given) * median(one.get(part, 0.0) for one in of[1:]) for part in (*PARTS, "total")}
        for name, of in found.items()
    }


def main(arguments: list[str] | None = None) -> None:
    """Parse and run."""
    parser = argparse.ArgumentParser(
        "python -m benchmarks.pruning profile",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--data", help="folder of the evaluation sets (default: LLM_ARCH_DATA)")
    parser.add_argument("--models", required=True, help="the folder that `structure` kept its models in")
    parser.add_argument("--sets", nargs="+", choices=SETS, default=list(SETS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--targets", nargs="+", default=["2.25x", "4x"])
    parser.add_argument("--rows", type=int, default=100, help="test rows to time")
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args(arguments)
    root = data_root(options.data)
    options.data = str(root)
    quiet()
    torch.set_num_threads(1)
    folder, found = Path(options.models), {}
    lines = [f"| set | model | ms a row | {' | '.join(PARTS)} |", f"|---|---|---|{'---|' * len(PARTS)}"]
    for name in options.sets:
        models = {"dense": dense(name, root, options.seed, folder)}
        models |= {target: folder / name / f"{target}-{options.seed}" for target in options.targets}
        found[name] = profile(models, load(name, root)["test"], count=options.rows, rounds=options.rounds)
        for model, of in found[name].items():
            whole = sum(of[part] for part in PARTS)
            shares = " | ".join(f"{100 * of[part] / whole:.0f} %" for part in PARTS)
            lines.append(f"| {name} | {model} | {of['total']:.2f} | {shares} |")
            print(lines[-1], flush=True)
    lines += [
        "",
        f"{options.rows} test rows one by one, fp32, one thread, CPU time, medians of {options.rounds} rounds. Shares "
        "are of what a clock at the borders of the parts measured.",
    ]
    write_results("pruning_profile", found, "\n".join(lines), data_directory=options.data)


if __name__ == "__main__":
    main()
