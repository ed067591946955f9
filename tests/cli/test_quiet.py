"""What libraries say to their own developers is hidden, and loading them takes no longer than it must."""

from __future__ import annotations

import gc
import logging
import sys
import warnings

import pytest

from llm_arch.cli.quiet import _nothing_collected, quiet


def test_warnings_about_the_run_stay() -> None:
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        quiet()
        warnings.warn("No seed found, seed set to 0", stacklevel=1)
        warnings.warn("the loss is no number", stacklevel=1)
    assert [str(one.message) for one in seen] == ["the loss is no number"]
    assert logging.getLogger("lightning.pytorch").level == logging.WARNING


@pytest.mark.parametrize("loaded", [False, True])
def test_garbage_is_collected_again_after_the_import(loaded: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    quiet()
    if not loaded:
        monkeypatch.delitem(sys.modules, "lightning.pytorch")
    before = gc.get_freeze_count()
    collects, kept = [gc.isenabled()], []

    def fails() -> None:
        with _nothing_collected():
            collects.append(gc.isenabled())
            kept.append([])
            raise ImportError

    with pytest.raises(ImportError):
        fails()
    collects.append(gc.isenabled())
    assert collects == [True, loaded, True]
    assert (gc.get_freeze_count() > before) != loaded  # of what was set apart before some may have gone meanwhile


def test_who_collects_no_garbage_keeps_it_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "lightning.pytorch")
    gc.disable()
    try:
        with _nothing_collected():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()
