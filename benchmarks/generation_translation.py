"""Multi30k, English to German, from scratch in so many CPU minutes: ours beside a stock Seq2SeqTrainer.

    python -m benchmarks.generation translation --data DIR [--minutes 20] [--seeds 0] [--who ours stock]

Both train the same BERT2BERT (an encoder and a decoder of BERT's architecture, one table of embeddings) with the same
tokenizer, batch size, peak learning rate and linear schedule. Each first measures how long its steps take, then takes
as many as the minutes hold, so that the schedule ends with them; CPU time of one thread, training alone. BLEU and chrF
by sacrebleu on the 2016 test set, greedily, each side with its own `generate`.
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import Any

import lightning as L
import torch
from datasets import Dataset
from transformers import (
    AutoTokenizer,
    BertConfig,
    DataCollatorForSeq2Seq,
    EncoderDecoderConfig,
    EncoderDecoderModel,
    PrinterCallback,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    set_seed,
)

from benchmarks.evaluation_data import Row, data_root, load, write_jsonl
from benchmarks.measure import fresh, interleaved, native_bf16, precision_note, write_results
from benchmarks.peer_trainer import TrainerClock, quiet_transformers, tuned_arguments
from llm_arch import Task, Trainer
from llm_arch.backbones.encoder_decoder import EncoderDecoder
from llm_arch.cli.quiet import quiet
from llm_arch.corpus.tokenizer_training import train_tokenizer
from llm_arch.data.translation import TranslationData
from llm_arch.heads.text_generation import TextGeneration

VOCABULARY, BATCH, RATE, MAX_LENGTH, MAX_NEW = 8000, 64, 1e-3, 160, 60
CALIBRATION = 60  # steps, of which the first third is not timed
SHAPE = {"hidden_size": 256, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 1024}


class Clock(L.Callback):
    """CPU seconds of the steps after the first `skip`."""

    def __init__(self, skip: int) -> None:
        self.skip, self.seconds, self.steps = skip, 0.0, 0
        self._start = 0.0

    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        """Start behind the skipped steps, and note each one after."""
        if trainer.global_step <= self.skip:
            self._start = time.process_time()
        else:
            self.steps, self.seconds = trainer.global_step - self.skip, time.process_time() - self._start


def scores(written: Sequence[str], rows: Sequence[Row]) -> dict[str, float]:
    """BLEU and chrF."""
    import sacrebleu

    references = [[row["target"] for row in rows]]
    return {
        "bleu": sacrebleu.corpus_bleu(list(written), references).score,
        "chrf": sacrebleu.corpus_chrf(list(written), references).score,
    }


def ours(root: str, tokenizer: str, minutes: float, seed: int) -> dict[str, Any]:
    """Train with the package, and translate the test rows."""
    quiet()
    torch.set_num_threads(1)
    rows = load("multi30k", Path(root))
    with tempfile.TemporaryDirectory() as scratch:
        files = {name: str(write_jsonl(some, Path(scratch) / f"{name}.jsonl")) for name, some in rows.items()}

        def run(steps: int, skip: int) -> tuple[Task, Trainer, TranslationData, Clock]:
            L.seed_everything(seed, verbose=False)
            data = TranslationData(
                files["train"],
                test=files["test"],
                tokenizer=tokenizer,
                validation_fraction=0.0,
                max_length=MAX_LENGTH,
                max_completion=MAX_LENGTH // 2 - 4,
                batch_size=BATCH,
                group_by_length=True,
                language="de",
                cache_dir=scratch,
            )
            shape = Path(scratch) / "shape"
            BertConfig(**SHAPE, vocab_size=data.vocabulary).save_pretrained(shape)
            backbone = EncoderDecoder(encoder=str(shape), random_init=True)
            task = Task(
                backbone,
                lambda size, labels: TextGeneration(size, labels, metrics=("bleu", "chrf"), max_new_tokens=MAX_NEW),
                data.label_space,
                learning_rate=RATE,
                vocabulary=data.vocabulary,
            )
            clock = Clock(skip)
            trainer = Trainer(
                max_epochs=-1,
                max_steps=steps,
                callbacks=[clock],
                default_root_dir=scratch,
                logger=False,
                enable_checkpointing=False,
                enable_progress_bar=False,
            )
            trainer.fit(task, datamodule=data)
            return task, trainer, data, clock

        tried = run(CALIBRATION, CALIBRATION // 3)[-1]
        steps = round(minutes * 60 * tried.steps / tried.seconds)
        gc.collect()
        task, trainer, data, clock = run(steps, 0)
        before = time.process_time()
        found = trainer.test(task, datamodule=data, verbose=False)[0]
        predicting = time.process_time() - before
    return {
        "bleu": float(found["test/bleu"]),
        "chrf": float(found["test/chrf"]),
        "perplexity": float(found["test/perplexity"]),
        "steps": steps,
        "epochs": steps * BATCH / len(rows["train"]),
        "cpu_minutes": clock.seconds / 60,
        "test_cpu_seconds": predicting,
    }


def peer_model(tokenizer: Any) -> EncoderDecoderModel:
    """A BERT2BERT with one table of embeddings."""
    shape = {**SHAPE, "vocab_size": len(tokenizer)}
    config = EncoderDecoderConfig.from_encoder_decoder_configs(BertConfig(**shape), BertConfig(**shape))
    model = EncoderDecoderModel(config=config)
    model.decoder.set_input_embeddings(model.encoder.get_input_embeddings())
    model.decoder.tie_weights()
    model.config.decoder_start_token_id = tokenizer.cls_token_id
    model.config.pad_token_id = tokenizer.pad_token_id
    model.config.eos_token_id = tokenizer.sep_token_id
    model.generation_config.decoder_start_token_id = tokenizer.cls_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.generation_config.eos_token_id = tokenizer.sep_token_id
    return model


def stock(root: str, tokenizer_directory: str, minutes: float, seed: int) -> dict[str, Any]:
    """Train with the Seq2SeqTrainer at its best on a CPU, and translate the test rows."""
    torch.set_num_threads(1)
    rows = load("multi30k", Path(root))
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_directory)

    def encode(some: Sequence[Row]) -> Dataset:
        sources = tokenizer([row["source"] for row in some], truncation=True, max_length=MAX_LENGTH // 2)["input_ids"]
        targets = tokenizer(
            [row["target"] for row in some], add_special_tokens=False, truncation=True, max_length=MAX_LENGTH // 2 - 1
        )["input_ids"]
        labels = [[*ids, tokenizer.sep_token_id] for ids in targets]
        length = [len(a) + len(b) for a, b in zip(sources, labels, strict=True)]
        return Dataset.from_dict({"input_ids": sources, "labels": labels, "length": length})

    data = encode(rows["train"])
    with quiet_transformers(), tempfile.TemporaryDirectory() as scratch:

        def run(steps: int, skip: int) -> tuple[Seq2SeqTrainer, TrainerClock]:
            set_seed(seed)
            model = peer_model(tokenizer)
            arguments = Seq2SeqTrainingArguments(
                output_dir=scratch,
                max_steps=steps,
                per_device_train_batch_size=BATCH,
                learning_rate=RATE,
                weight_decay=0.01,
                warmup_steps=round(0.1 * steps),
                seed=seed,
                use_cpu=True,
                save_strategy="no",
                report_to="none",
                disable_tqdm=True,
                **tuned_arguments(native_bf16()),
            )
            clock = TrainerClock(skip)
            trainer = Seq2SeqTrainer(
                model=model,
                args=arguments,
                train_dataset=data,
                data_collator=DataCollatorForSeq2Seq(tokenizer, model=model),
                callbacks=[clock],
            )
            trainer.remove_callback(PrinterCallback)
            trainer.train()
            return trainer, clock

        skip = CALIBRATION // 3
        tried = run(CALIBRATION, skip)[1]
        steps = round(minutes * 60 * (CALIBRATION - skip) / tried.cpu_seconds)
        gc.collect()
        trainer, clock = run(steps, 0)
        model = trainer.model.eval()
    written: list[str] = []
    before = time.process_time()
    with torch.inference_mode():
        for start in range(0, len(rows["test"]), BATCH):
            texts = [row["source"] for row in rows["test"][start : start + BATCH]]
            encoded = tokenizer(texts, padding=True, return_tensors="pt", return_token_type_ids=False)
            out = model.generate(**encoded, max_new_tokens=MAX_NEW, num_beams=1, do_sample=False)
            written += tokenizer.batch_decode(out, skip_special_tokens=True)
    predicting = time.process_time() - before
    return {
        **scores([text.strip() for text in written], rows["test"]),
        "steps": steps,
        "epochs": steps * BATCH / len(rows["train"]),
        "cpu_minutes": clock.cpu_seconds / 60,
        "test_cpu_seconds": predicting,
    }


def write(runs: list[dict[str, Any]], options: argparse.Namespace) -> None:
    """Results so far as json and table."""
    lines = [
        "| | BLEU by seed | BLEU | chrF | CPU minutes | steps | epochs | translating 1,000 |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for who, name in (("ours", "ours"), ("stock", "stock Seq2SeqTrainer")):
        here = [run for run in runs if run["who"] == who]
        if here:
            numbers = [", ".join(f"{run['bleu']:.1f}" for run in here)]
            numbers += [f"{mean(run[key] for run in here):.1f}" for key in ("bleu", "chrf", "cpu_minutes")]
            numbers += [f"{mean(run['steps'] for run in here):,.0f}", f"{mean(run['epochs'] for run in here):.1f}"]
            numbers += [f"{mean(run['test_cpu_seconds'] for run in here):.0f} s"]
            lines.append(f"| {name} | {' | '.join(numbers)} |")
    lines += [
        "",
        f"Multi30k, English to German, 29,000 pairs, test 2016. BERT2BERT, {SHAPE['num_hidden_layers']} + "
        f"{SHAPE['num_hidden_layers']} layers, width {SHAPE['hidden_size']}, {VOCABULARY:,} pieces of a joint unigram "
        f"tokenizer, batches of {BATCH} rows of like length, peak learning rate {RATE:g}, linear decay after 10 % of "
        f"warm-up, last state, greedy. {options.minutes:g} CPU minutes of training each on one thread, "
        f"{precision_note()}. "
        "sacrebleu's defaults (13a, cased).",
    ]
    write_results("generation_translation", {"runs": runs}, "\n".join(lines), data_directory=options.data)
    print("\n".join(lines), flush=True)


def main(arguments: list[str] | None = None) -> None:
    """Parse and run."""
    parser = argparse.ArgumentParser(
        "python -m benchmarks.generation translation",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--data", help="folder of the evaluation sets (default: LLM_ARCH_DATA)")
    parser.add_argument("--minutes", type=float, default=20.0, help="CPU minutes of training")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--who", nargs="+", choices=("ours", "stock"), default=["ours", "stock"])
    options = parser.parse_args(arguments)
    root = data_root(options.data)
    options.data = str(root)
    quiet()
    runs: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        rows = load("multi30k", root)["train"]
        texts = [text for row in rows for text in (row["source"], row["target"])]
        train_tokenizer(texts, "unigram", VOCABULARY, progress=False).save_pretrained(folder)
        for who, seed in interleaved(options.who, options.seeds):
            found = fresh({"ours": ours, "stock": stock}[who], str(root), folder, options.minutes, seed)
            runs.append({"who": who, "seed": seed, **found})
            print(json.dumps(runs[-1]), flush=True)
            write(runs, options)


if __name__ == "__main__":
    sys.exit(main())
