"""Defaults of the trainer, and the choice of precision."""

from pathlib import Path

import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping as LightningEarlyStopping
from lightning.pytorch.callbacks import ModelCheckpoint, ModelSummary, ProgressBar, RichProgressBar, TQDMProgressBar
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.loggers.logger import DummyLogger
from lightning.pytorch.plugins import MixedPrecision

from llm_arch import precision
from llm_arch.callbacks.checkpoint import Checkpoint
from llm_arch.callbacks.early_stopping import EarlyStopping
from llm_arch.precision import choose_precision, cpu_has_bf16, use_fast_fp32
from llm_arch.trainer import Trainer


@pytest.fixture(autouse=True)
def _fp32_as_it_was():
    before = torch.get_float32_matmul_precision()
    yield
    torch.set_float32_matmul_precision(before)


@pytest.fixture
def make(tmp_path):
    return lambda **options: Trainer(accelerator="cpu", default_root_dir=str(tmp_path), **options)


def kinds(trainer):
    """Our callbacks and their kind, those of Lightning's own housekeeping left out."""
    return {type(c) for c in trainer.callbacks if isinstance(c, ModelCheckpoint | LightningEarlyStopping | ProgressBar)}


# Defaults


def test_defaults(make, tmp_path):
    trainer = make()
    assert kinds(trainer) == {Checkpoint, EarlyStopping, RichProgressBar}
    assert trainer.max_epochs == 3
    assert trainer.gradient_clip_val == 1.0
    assert trainer.default_root_dir == str(tmp_path)
    assert not any(isinstance(c, ModelSummary) for c in trainer.callbacks)
    (logger,) = trainer.loggers
    assert isinstance(logger, CSVLogger)
    assert Path(logger.log_dir) == tmp_path / "logs"


@pytest.mark.parametrize(
    ("options", "epochs"),
    [({"max_epochs": 7}, 7), ({"max_steps": 5}, -1), ({"max_time": "00:00:01:00"}, -1), ({"max_steps": -1}, 3)],
)
def test_three_epochs_only_where_nothing_else_ends_the_run(options, epochs, make):
    trainer = make(**options)
    assert (-1 if trainer.max_epochs is None else trainer.max_epochs) == epochs


def test_clipping_can_be_switched_off(make):
    assert make(gradient_clip_val=None).gradient_clip_val is None


# Loggers


class Other(DummyLogger):
    pass


@pytest.mark.parametrize("shape", [lambda logger: logger, lambda logger: [logger]])
def test_csv_is_written_beside_other_loggers(shape, make):
    assert [type(logger) for logger in make(logger=shape(Other())).loggers] == [CSVLogger, Other]


@pytest.mark.parametrize("logger", [None, True, []])
def test_csv_is_written_always(logger, make):
    assert [type(one) for one in make(logger=logger).loggers] == [CSVLogger]


def test_own_csv_logger_is_kept(make, tmp_path):
    own = CSVLogger(tmp_path, name="mine")
    assert make(logger=[Other(), own]).loggers[1] is own
    assert len(make(logger=own).loggers) == 1


def test_no_logger_when_asked(make):
    assert make(logger=False).loggers == []


# Callbacks


@pytest.mark.parametrize(
    ("own", "replaced"),
    [
        (ModelCheckpoint(), Checkpoint),
        (Checkpoint("val/loss"), None),
        (LightningEarlyStopping("val/loss"), EarlyStopping),
        (EarlyStopping(patience=9), None),
        (TQDMProgressBar(), RichProgressBar),
    ],
)
@pytest.mark.parametrize("shape", [lambda callback: callback, lambda callback: [callback]])
def test_callbacks_are_added_only_where_none_of_the_kind_is_given(own, replaced, shape, make):
    trainer = make(callbacks=shape(own))
    assert own in trainer.callbacks
    assert kinds(trainer) == {Checkpoint, EarlyStopping, RichProgressBar} - {replaced} | {type(own)}
    assert sum(isinstance(c, type(own)) for c in trainer.callbacks) == 1


def test_the_given_list_is_not_changed(make):
    given = []
    make(callbacks=given)
    assert given == []


def test_parts_can_be_switched_off(make):
    assert kinds(make(enable_checkpointing=False)) == {EarlyStopping, RichProgressBar}
    assert kinds(make(enable_progress_bar=False)) == {Checkpoint, EarlyStopping}


def test_fast_dev_run_needs_no_callbacks(make):
    assert kinds(make(fast_dev_run=True)) & {Checkpoint, EarlyStopping} == set()


def test_barebones(make):
    trainer = make(barebones=True)
    assert kinds(trainer) == set()
    assert trainer.loggers == []


# Precision


@pytest.mark.parametrize(("native", "chosen"), [(True, "bf16-mixed"), (False, "16-mixed")])
def test_precision_on_cuda(native, chosen, monkeypatch):
    # Emulated bf16 is reported as supported unless one asks for the real one.
    monkeypatch.setattr(
        torch.cuda, "is_bf16_supported", lambda including_emulation=True: True if including_emulation else native
    )
    assert choose_precision("cuda")[0] == chosen


@pytest.mark.parametrize(
    ("avx512", "amx", "chosen"),
    [(True, False, "bf16-mixed"), (False, True, "bf16-mixed"), (False, False, "32-true")],
)
def test_precision_on_cpu(avx512, amx, chosen, monkeypatch):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512, raising=False)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx, raising=False)
    assert cpu_has_bf16() is (chosen == "bf16-mixed")
    assert choose_precision("cpu")[0] == chosen


def test_precision_where_torch_cannot_tell(monkeypatch):
    for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        monkeypatch.delattr(torch.cpu, name, raising=False)
    assert choose_precision("cpu")[0] == "32-true"


@pytest.mark.parametrize("accelerator", ["mps", "tpu"])
def test_precision_elsewhere_is_safe(accelerator):
    chosen, why = choose_precision(accelerator)
    assert chosen == "32-true"
    assert accelerator in why


@pytest.mark.parametrize(("bf16", "chosen"), [(True, "bf16-mixed"), (False, "32-true")])
@pytest.mark.parametrize("accelerator", ["cpu", "auto"])
def test_trainer_takes_the_chosen_precision(accelerator, bf16, chosen, monkeypatch, tmp_path):
    monkeypatch.setattr(precision, "cpu_has_bf16", lambda: bf16)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    trainer = Trainer(accelerator=accelerator, default_root_dir=str(tmp_path))
    assert trainer.precision == chosen
    assert trainer.precision_reason == ("the CPU has bf16" if bf16 else "the CPU has no native bf16")


@pytest.mark.parametrize("asked", ["32-true", "bf16-mixed", "64-true", 32])
def test_trainer_takes_the_asked_precision(asked, make):
    trainer = make(precision=asked)
    assert trainer.precision == {32: "32-true"}.get(asked, asked)
    assert trainer.precision_reason == "as asked"


def test_a_precision_plugin_decides(make):
    plugin = MixedPrecision("bf16-mixed", "cpu")
    trainer = make(plugins=[plugin])
    assert trainer.strategy.precision_plugin is plugin
    assert trainer.precision_reason == "as asked"


@pytest.mark.parametrize(("bf16", "mode"), [(False, "medium"), (True, "highest")])
def test_fast_fp32_only_where_it_is_exact(bf16, mode, monkeypatch):
    """With native bf16, `medium` would compute fp32 products in bf16."""
    monkeypatch.setattr(precision, "cpu_has_bf16", lambda: bf16)
    torch.set_float32_matmul_precision("highest")
    use_fast_fp32()
    assert torch.get_float32_matmul_precision() == mode
