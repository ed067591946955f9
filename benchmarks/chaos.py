"""What survives: random SIGKILLs, cut-off checkpoints, a full disk, SIGTERM, and what saving costs.

    python -m benchmarks.chaos                    # everything; 200 kills of ours, 30 of the peer's
    python -m benchmarks.chaos --only costs       # this part again; the others stay as they were measured
    python -m benchmarks.chaos --kills 6 --only kills --print

Everything is imported once; each attempt is a fork of this process, killed at a uniformly random moment of the CPU time
that a whole run takes, be it while it starts, trains, validates or saves. The next attempt goes on from the newest
whole checkpoint. When a chain of attempts has come to its end, its weights are compared with those of a run that nobody
disturbed, bit for bit.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

from benchmarks import chaos_attempt
from benchmarks.chaos_attempt import write_rows
from benchmarks.chaos_costs import costs
from benchmarks.chaos_faults import full_disk, terminations, truncations
from benchmarks.chaos_kills import kills
from benchmarks.chaos_restarts import restarts
from benchmarks.measure import RESULTS, write_results


def table(found: dict[str, Any]) -> str:
    """The results for readers."""
    rows: list[tuple[str, str]] = []
    parts = list(found.get("kills", {}).values())
    if parts:
        total = {name: sum(one[name] for one in parts) for name in ("kills", "finished", "identical", "steps_back")}
        errors = sum(len(one["errors"]) for one in parts)
        rows.append(
            (
                f"{total['kills']} SIGKILLs at random moments",
                f"{errors} attempts could not go on, {total['steps_back']} lost a step that was kept; "
                f"{total['identical']} of {total['finished']} runs ended with the bits of the undisturbed one",
            )
        )
    if peer := found.get("peer"):
        rows.append(
            (
                f"stock transformers Trainer, {peer['kills']} SIGKILLs by the same script",
                f"{len(peer['errors'])} attempts crashed on resume (its newest checkpoint was then removed by hand); "
                f"{peer['identical']} of {peer['finished']} finished runs have the weights of its undisturbed run",
            )
        )
    if cut := found.get("truncations"):
        rows.append(
            (
                f"newest checkpoint cut off at {cut['cuts']} random bytes",
                f"the one before was taken {cut['previous_loaded']} times; {cut['identical']} of "
                f"{cut['resumed_to_the_end']} that trained on ended with the same bits",
            )
        )
    if full := found.get("full_disk"):
        clear = "one clear error" if full["failed"] else "no clear error"
        bits = "the same bits" if full["identical"] else "other bits"
        rows.append(
            (
                f"full disk ({full['kind']})",
                f"{clear}, {full['damaged_files']} damaged files; step {full['resumes_from_step']} went on to {bits}",
            )
        )
    if term := found.get("terminations"):
        rows.append(
            (
                f"{term['sent']} SIGTERMs at random moments",
                f"{term['saved_and_exit_75']} saved and left with code 75, after {term['median_seconds']} s (median), "
                f"{term['most_seconds']} s (most); {term['identical']} of {term['runs_finished']} ended as undisturbed",
            )
        )
    if again := found.get("restarts"):
        rows.append(
            (
                "one of two processes under `torchrun --max-restarts 3` killed",
                f"exit code {again['codes'][0]}; "
                + ("the weights of a straight run" if again["identical"] else "not the weights of a straight run"),
            )
        )
    lines = ["| fault | what happened |", "|---|---|", *(f"| {fault} | {what} |" for fault, what in rows), ""]
    if cost := found.get("costs"):
        lines += [
            f"Saving {cost['model']} ({cost['checkpoint_mib']} MiB, with fsync and checksums) takes "
            f"{cost['seconds_a_save']} s, a step of 32 rows {cost['seconds_a_step']} s. The defaults save once an "
            f"epoch of {cost['steps_an_epoch']} steps (the last state, which is the best one too by another name): "
            f"{cost['share_with_the_defaults']:.1%} of the time of its steps. "
            f"`every_minutes` costs 2 % from {cost['minutes_between_saves_for_2_percent']} "
            "minutes on, and less above.",
            "",
        ]
    lines.append(
        "Our runs: dropout, gradient accumulation, packing, a loader worker, validations within epochs, a checkpoint "
        f"every {chaos_attempt.EVERY_SECONDS} s; tiny BERT, {chaos_attempt.ROWS} rows, {chaos_attempt.EPOCHS} epochs."
    )
    for name, one in found.get("kills", {}).items():
        lines.append(f"- {name}: {one['kills']} kills, {one['identical']} of {one['finished']} identical")
    return "\n".join(lines)


def main() -> None:
    """Run the parts and write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parts = ("kills", "truncations", "full_disk", "terminations", "costs", "peer", "restarts")
    parser.add_argument("--kills", type=int, default=201)
    parser.add_argument("--peer-kills", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="+", choices=parts, default=parts)
    parser.add_argument("--print", action="store_true", help="print JSON instead of writing the results")
    given = parser.parse_args()
    torch.set_num_threads(1)
    draw = random.Random(given.seed)
    kept = RESULTS / "chaos.json"
    some = len(given.only) < len(parts) and not given.print and kept.is_file()
    found: dict[str, Any] = json.loads(kept.read_text(encoding="utf-8"))["results"] if some else {}
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        os.environ.setdefault("LLM_ARCH_CACHE", str(home / "cache"))
        rows = write_rows(home / "rows.jsonl")
        run: dict[str, Callable[[], dict[str, Any]]] = {
            "kills": lambda: kills(home, rows, given.kills, draw),
            "truncations": lambda: truncations(home, rows, draw),
            "full_disk": lambda: full_disk(home, rows),
            "terminations": lambda: terminations(home, rows, draw),
            "costs": lambda: costs(home),
            "restarts": lambda: restarts(home, rows),
            "peer": lambda: peer_kills(home, rows, given.peer_kills, draw),
        }
        for part in given.only:
            found[part] = run[part]()
            print(f"{part}: {json.dumps(found[part])}", file=sys.stderr, flush=True)
            if not given.print:
                write_results("chaos", found, table(found))
    if given.print:
        print(json.dumps(found))


def peer_kills(home: Path, rows: str, count: int, draw: random.Random) -> dict[str, Any]:
    """The same with the stock Trainer of transformers."""
    from benchmarks.chaos_peer import run

    return run(home / "peer", rows, count, draw)


if __name__ == "__main__":
    main()
