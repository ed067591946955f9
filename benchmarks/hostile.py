"""Hostile files, each read by the verb that would read it: what it says, and whether anything of the file ran.

    python -m benchmarks.hostile [--only TEXT] [--dry]

Every case has a process of its own, whose standard input says yes to whatever it is asked. A case is passed when the
exit code is 2, standard error is one sentence, no code of the file ran, and nothing outside its folder was touched; or,
of the few whose hostile part is passed over, when the run ends well without having touched anything.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.hostile_files import CANARY, CASES, IGNORED, OUTSIDE, make_base
from benchmarks.measure import REPOSITORY, write_results

_MEMORY = 16 * 2**30  # of address space, of which torch maps several gigabytes for nothing
_SECONDS = 180


@dataclass(frozen=True)
class Outcome:
    """What became of one hostile file.

    Args:
        case: what the file is.
        verb: of the command that read it.
        code: its exit code; -1 where it had to be stopped.
        message: what it said on standard error.
        executed: whether code of the file ran.
        touched: whether a file outside its folder was changed.
        seconds: that it took.
    """

    case: str
    verb: str
    code: int
    message: str
    executed: bool
    touched: bool
    seconds: float

    @property
    def passed(self) -> bool:
        """Whether it was refused in one sentence, or passed over, and did no harm."""
        one = self.message.startswith("llm-arch: error: ") and "\n" not in self.message
        ended = self.code == 0 if self.case in IGNORED else self.code == 2 and one
        return ended and not self.executed and not self.touched


def lay_out(name: str, home: Path, base: Path) -> tuple[Path, list[str]]:
    """Make a case in a folder of its own; returns the folder, and the command line to run in it."""
    folder = home / f"{list(CASES).index(name):02d}"
    (folder / OUTSIDE).mkdir(parents=True)
    (folder / OUTSIDE / "secret.json").write_text('{"secret": 1}', encoding="utf-8")
    for shared in ("train.jsonl", "words"):
        (folder / shared).symlink_to(base / shared)
    return folder, CASES[name](folder, base)


def harm(folder: Path, before: dict[str, bytes]) -> tuple[bool, bool]:
    """Whether code of the file ran, and whether what lies outside was changed."""
    return any(folder.rglob(CANARY)), outside(folder) != before


def outside(folder: Path) -> dict[str, bytes]:
    """What lies outside, by name."""
    return {p.name: p.read_bytes() for p in sorted((folder / OUTSIDE).rglob("*")) if p.is_file()}


def _environment(home: Path) -> dict[str, str]:
    own = {
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "LLM_ARCH_CACHE": str(home / "cache"),
        "WANDB_MODE": "offline",
    }
    own["PYTHONPATH"] = str(REPOSITORY)
    return os.environ | own


def _limit() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))


def run(arguments: list[str], folder: Path, home: Path, limit: bool = True) -> tuple[int, str]:
    """A command line in a process of its own; returns its exit code and standard error."""
    command = [sys.executable, "-m", "llm_arch.cli.main", *arguments]
    process: dict[str, Any] = {"cwd": folder, "env": _environment(home), "text": True, "capture_output": True}
    try:
        done = subprocess.run(
            command, input="y\n" * 9, timeout=_SECONDS, preexec_fn=_limit if limit else None, check=False, **process
        )
    except subprocess.TimeoutExpired:
        return -1, f"still running after {_SECONDS} s"
    return done.returncode, done.stderr.strip()


def attempt(name: str, home: Path, base: Path) -> Outcome:
    """Try one case."""
    folder, arguments = lay_out(name, home, base)
    before, start = outside(folder), time.perf_counter()
    code, said = run(arguments, folder, home)
    seconds = round(time.perf_counter() - start, 1)
    executed, touched = harm(folder, before)
    return Outcome(name, arguments[0], code, said.replace(str(folder) + "/", ""), executed, touched, seconds)


def main() -> None:
    """Try all, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="cases with this text in their name")
    parser.add_argument("--dry", action="store_true", help="print, and write no results")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        home = Path(name).resolve()
        base = home / "base"
        base.mkdir()
        make_base(base, lambda arguments, folder: run(arguments, folder, home, limit=False)[0])
        outcomes = []
        for case in CASES:
            if options.only in case:
                outcomes.append(attempt(case, home, base))
                print(outcomes[-1], flush=True)
    passed, executed = sum(o.passed for o in outcomes), sum(o.executed for o in outcomes)
    print(f"{passed} of {len(outcomes)} as they should be, {executed} executed")
    if not (options.dry or options.only):
        refused = sum(o.passed for o in outcomes if o.case not in IGNORED)
        lines = [
            f"{len(outcomes)} hostile files: {refused} refused in one sentence with exit code 2, {passed - refused} "
            f"passed over without harm, {len(outcomes) - passed} otherwise; code of {executed} was executed.",
            "",
        ]
        lines += ["| file | verb | exit code | message | executed | touched outside |", "|---|---|---|---|---|---|"]
        for o in outcomes:
            said = o.message.removeprefix("llm-arch: error: ").replace("|", "\\|").replace("\n", " ")
            said = said if o.code else "(none: what it names is passed over)"
            flags = f"{'yes' if o.executed else 'no'} | {'yes' if o.touched else 'no'}"
            lines.append(f"| {o.case} | `{o.verb}` | {o.code} | {said} | {flags} |")
        write_results("hostile", {"cases": [asdict(o) | {"passed": o.passed} for o in outcomes]}, "\n".join(lines))


if __name__ == "__main__":
    main()
