from __future__ import annotations

import os
import resource
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from warm import python

from llm_arch.cli import main as main_module
from llm_arch.cli.main import VERBS, main, usage
from llm_arch.types import UserError

COMMAND = Path(sys.executable).parent / "llm-arch"


def process(*arguments: str) -> tuple[subprocess.CompletedProcess[str], float]:
    """Run a program; also the CPU seconds it took, which a busy machine does not change."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=120, env={**os.environ}, check=False)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return done, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


@pytest.fixture
def verb(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[list[str]], None]], str]:
    """A verb that does what the test says."""

    def add(do: Callable[[list[str]], None]) -> str:
        module: Any = types.ModuleType("llm_arch.cli.trial")
        module.run = do
        monkeypatch.setitem(sys.modules, "llm_arch.cli.trial", module)
        monkeypatch.setitem(VERBS, "trial", "for a test")
        return "trial"

    return add


@pytest.mark.parametrize("arguments", [["--help"], ["-h"]])
def test_help(run: Any, arguments: list[str]) -> None:
    done = run(*arguments)
    assert done.code == 0
    assert done.err == ""
    assert all(f"\n  {verb} " in done.out for verb in VERBS)
    assert "0 done, 1 the run failed, 2 the input was wrong, 75 preempted" in done.out
    assert max(map(len, usage().splitlines())) <= 100


def test_no_verb_prints_the_usage_as_an_error(run: Any) -> None:
    done = run()
    assert done.code == 2
    assert done.out == ""
    assert done.err.startswith("usage: llm-arch VERB")


@pytest.mark.parametrize("arguments", [["--version"], ["-V"]])
def test_version(run: Any, arguments: list[str]) -> None:
    from llm_arch import __version__

    assert run(*arguments).out == f"llm-arch {__version__}\n"


@pytest.mark.parametrize(("wrong", "right"), [("fitt", "fit"), ("predcit", "predict"), ("tets", "test")])
def test_unknown_verb_suggests_the_nearest(run: Any, wrong: str, right: str) -> None:
    assert run(wrong, "-c", "x").sentence == (
        f"unknown verb {wrong!r}; did you mean {right!r}? The verbs are: {', '.join(VERBS)}"
    )


def test_unknown_verb_without_a_neighbour(run: Any) -> None:
    assert run("xyzzy").sentence == f"unknown verb 'xyzzy'; The verbs are: {', '.join(VERBS)}"


def test_the_verb_gets_the_rest_of_the_line(verb: Any) -> None:
    got: list[str] = []
    assert main([verb(got.extend), "--a", "b"]) == 0
    assert got == ["--a", "b"]


def test_own_command_line_by_default(verb: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    got: list[str] = []
    monkeypatch.setattr(sys, "argv", ["llm-arch", verb(got.extend), "x"])
    assert main() == 0
    assert got == ["x"]


def raises(error: BaseException) -> Callable[[list[str]], None]:
    def do(arguments: list[str]) -> None:
        raise error

    return do


def test_user_error_is_one_sentence_and_2(run: Any, verb: Any) -> None:
    assert run(verb(raises(UserError("the file is empty; add rows")))).sentence == "the file is empty; add rows"


def test_other_errors_keep_their_traceback(verb: Any) -> None:
    name = verb(raises(ValueError("a fault of the program")))
    with pytest.raises(ValueError, match="a fault of the program"):
        main([name])


@pytest.mark.parametrize(("code", "expected"), [(0, 0), (None, 0), (1, 1), (75, 75), ("failed", 1)])
def test_exit_codes_of_parsers(verb: Any, code: Any, expected: int) -> None:
    assert main([verb(raises(SystemExit(code)))]) == expected


def test_interrupted(run: Any, verb: Any) -> None:
    done = run(verb(raises(KeyboardInterrupt())))
    assert (done.code, done.err) == (130, "llm-arch: interrupted\n")


def test_a_closed_pipe_is_no_failure(run: Any, verb: Any) -> None:
    assert run(verb(raises(BrokenPipeError()))).code == 0


@pytest.mark.parametrize("verb_", VERBS)
def test_help_of_every_verb(run: Any, verb_: str) -> None:
    done = run(verb_, "--help")
    assert done.code == 0
    assert done.err == ""
    assert f"llm-arch {verb_}" in done.out


def test_help_imports_next_to_nothing() -> None:
    """As installed: the console script answers in well under a second."""
    done, seconds = process(str(COMMAND), "--help")
    assert done.returncode == 0
    assert done.stderr == ""
    assert done.stdout == usage() + "\n"
    assert seconds < 1


def test_help_of_fit_does_not_import_the_libraries_of_a_run() -> None:
    program = (
        "import sys; from llm_arch.cli.main import main; code = main(['fit', '--help'])\n"
        "sys.exit(code or sorted({'lightning', 'transformers', 'datasets', 'wandb'} & set(sys.modules)) or 0)"
    )
    done, _ = process(sys.executable, "-c", program)
    assert (done.returncode, done.stderr) == (0, "")


def test_exit_codes_of_a_process(tmp_path: Path) -> None:
    done, _ = process(str(COMMAND), "fit", "-c", "nope.yaml")
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("llm-arch: error: nope.yaml: no such config file; shipped are: ")
    assert "Traceback" not in done.stderr
    program = (
        "import sys, types; from llm_arch.cli import main as m; trial = types.ModuleType('trial')\n"
        "def run(arguments): raise RuntimeError('it broke')\n"
        "trial.run = run; sys.modules['llm_arch.cli.trial'] = trial; m.VERBS['trial'] = ''\n"
        "sys.exit(m.main(['trial']))"
    )
    done = python("-c", program, cwd=tmp_path, env=os.environ, timeout=120)
    assert done.returncode == 1
    assert "Traceback (most recent call last)" in done.stderr
    assert done.stderr.endswith("RuntimeError: it broke\n")


def test_every_verb_has_a_module_with_run() -> None:
    folder = Path(str(main_module.__file__)).parent
    assert all((folder / f"{name.replace('-', '_')}.py").is_file() for name in VERBS)
