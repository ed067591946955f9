"""A teacher from a model directory, which reads each row once and keeps what it says."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from lightning.fabric.utilities.distributed import _InfiniteBarrier
from lightning.pytorch.utilities import rank_zero_only

from llm_arch import model_directory
from llm_arch.compression.attention_relations import with_relations
from llm_arch.data.loader import Columns, RowNumbers
from llm_arch.data.module import DataModule
from llm_arch.data.progress import progress
from llm_arch.data.store import key_of
from llm_arch.data.tokenizers import fingerprint
from llm_arch.heads.language import VocabularyHead
from llm_arch.inference.directory import load
from llm_arch.inference.kept_answers import Answer, KeptAnswers, kept, row_hashes, row_of_token
from llm_arch.types import Asked, Backbone, Batch, Head, Taught, Teaches, UserError

_VERSION = 1  # of what is kept; raise where its meaning changes
_TRIED = 64  # rows that are read in two epochs, to see whether they change


class Teacher(Teaches):
    """A model directory that teaches, by `llm_arch.losses.distillation.Distillation`.

    It reads the student's rows. What it says of each is kept in the data's cache, where a later run finds it, unless
    the rows change from epoch to epoch, or its head has logits over a vocabulary, or it is more than `limit`: then it
    runs along in training. With another tokenizer than the student's it reads the rows by its own, and teaches logits
    alone, of heads that have one for each sequence.

    Args:
        directory: what `llm-arch fit` or `save` wrote.
        limit: GiB of disk at most for what it says of all rows; states take two bytes a number, logits four.
        trust: as for `load`.

    Raises:
        UserError: as `load`.
    """

    def __init__(self, directory: str, *, limit: float = 2.0, trust: tuple[str, ...] = ()) -> None:
        if not limit >= 0:
            raise UserError(f"limit is in GiB and at least 0, got {limit}")
        self.model = load(directory, trust=trust)
        self.limit = limit
        self.backbone: Backbone = self.model.backbone.requires_grad_(False)
        self.head: Head = self.model.head.requires_grad_(False)
        self.kept: KeptAnswers | None = None
        self._own: DataModule | None = None  # reads the rows, where the student's tokens say nothing to this model

    def __repr__(self) -> str:
        return f"the teacher {self.model.directory}"

    def begin(self, backbone: Backbone, head: Head, logits: bool) -> None:
        """Check that both say the same things of the same inputs, as far as the models know."""
        self.kept = self._own = self.order = None
        if self.backbone.encoder_decoder != backbone.encoder_decoder:
            kinds = ["is an encoder–decoder" if one.encoder_decoder else "is none" for one in (self.backbone, backbone)]
            raise UserError(f"{self} {kinds[0]}, and the student {kinds[1]}; take a teacher of the student's kind")
        if not logits:
            return
        kinds = [type(one).__name__ for one in (self.head, head)]
        if not (isinstance(head, type(self.head)) or isinstance(self.head, type(head))):
            raise UserError(
                f"{self} has the head {kinds[0]}, and the student {kinds[1]}; take a teacher of the same task, or set "
                "the weight of logits to 0, so that states alone are distilled"
            )
        order = head.label_space.places_in(self.head.label_space, repr(self))
        self.order = None if order == tuple(range(len(order))) else order

    def shares_tokens(self, data: DataModule) -> bool:
        """Whether its tokenizer has the vocabulary of this data's."""
        return bool(self.model.data.tokenizer.get_vocab() == data.tokenizer.get_vocab())

    def prepare(self, trainer: Any, asked: Asked) -> None:
        """Find out how it reads the rows; then read them all, where what it says of them can be kept."""
        data: DataModule | None = getattr(trainer, "datamodule", None)
        if data is None:  # batches of unknown origin are read as they come
            return
        if self.shares_tokens(data):
            longest = self.backbone.max_length
            if longest is not None and data.max_length > longest:
                raise UserError(
                    f"data.max_length is {data.max_length}, but {self} has {longest} positions; "
                    f"set --data.max_length {longest} or less"
                )
        else:
            self._own = self._reader(data, asked)
        manifest = self.model.directory / model_directory.MANIFEST
        if not asked.keep or isinstance(self.head, VocabularyHead) or not manifest.is_file() or _changes(data):
            return
        reads = self._own or data
        digest = hashlib.sha256(manifest.read_bytes()).hexdigest()
        folder = data.cache / "teachers" / key_of({"teacher": digest, **self._parts(reads, trainer, asked)})
        with _InfiniteBarrier():  # it may take hours, and the others must not give up
            if trainer.local_rank == 0:
                self._keep(folder, reads, trainer, asked)
        if trainer.local_rank != 0 and folder.is_dir():
            self.kept = KeptAnswers(folder)
        if self.kept is not None:
            self.backbone.to("cpu")  # leaves the room to the student

    def _reader(self, data: DataModule, asked: Asked) -> DataModule:
        """A data module that reads the same rows with this model's tokenizer."""
        whose = f"{self} has another tokenizer than the student"
        if asked.layers or asked.relations is not None:
            raise UserError(
                f"{whose}, so their states are of other tokens; set the weights of states and relations to 0"
            )
        if type(self.head).logit_rows is not Head.logit_rows or isinstance(self.head, VocabularyHead):
            raise UserError(
                f"{whose}, and the logits of {type(self.head).__name__} are of tokens; take a teacher with the same one"
            )
        own = data.read_by(str(self.model.directory), self.model.record["data"]["init_args"].get("max_length"))
        ours, theirs = (np.asarray(one.split("train").column("line")) for one in (data, own))
        if not np.array_equal(ours, theirs):
            raise UserError(
                f"{self} reads {len(theirs):,} training rows with its tokenizer, and the student {len(ours):,}, or "
                "others; leave out those that one of the two can't use"
            )
        return own

    def _parts(self, reads: DataModule, trainer: Any, asked: Asked) -> dict[str, Any]:
        """All that what it says depends on, but its weights."""
        split = reads.split("train")
        chosen = b"" if split.chosen is None else np.ascontiguousarray(split.chosen).tobytes()
        return {
            "version": _VERSION,
            "rows": [split.facts.get("fingerprint"), len(split), hashlib.sha256(chosen).hexdigest()],
            "format": [reads.class_path, reads.record(), fingerprint(reads.tokenizer)],
            "asked": [asked.logits, list(asked.layers), asked.relations],
            "order": self.order,
            "precision": str(trainer.precision),
        }

    def _keep(self, folder: Any, reads: DataModule, trainer: Any, asked: Asked) -> None:
        split, began = reads.split("train"), time.perf_counter()
        made = 0

        def answers() -> Iterator[tuple[Batch, Mapping[str, Answer]]]:
            nonlocal made
            with progress(f"{self.model.directory} reads the training rows", len(split), rate=True) as advance:
                for batch in reads.evaluation_loader("train", alone=True):
                    with trainer.precision_plugin.forward_context():
                        found = self._answers(batch.to(trainer.strategy.root_device), asked)
                    made += batch.rows
                    advance(batch.rows)
                    yield batch, found

        tokens = int(split.lengths.sum())
        try:
            self.kept = kept(folder, len(split), answers, tokens, int(self.limit * 2**30))
        except OSError as error:
            raise UserError(
                f"what {self} says can't be kept in {folder.parent} ({error.strerror or error}); make room there, set "
                "data.cache_dir, or set cache to false"
            ) from error
        say = rank_zero_only(print)
        if self.kept is None:
            say(f"{self} runs along: what it says of the rows takes more than {self.limit:g} GiB")
        elif made:
            seconds = time.perf_counter() - began
            say(f"{self} read {made:,} rows in {seconds:.1f} s ({made / seconds:,.0f} rows/s)")

    def _answers(self, batch: Batch, asked: Asked) -> dict[str, Answer]:
        taught, found = self._computed(batch, asked), {}
        if asked.logits:
            found["logits"] = Answer(taught.logits.float(), self.head.logit_rows(batch))
        for layer in asked.layers:
            states_TD = taught.states[layer] if batch.valid is None else taught.states[layer][batch.valid]
            found[f"states_{layer}"] = Answer(states_TD.to(torch.bfloat16), row_of_token(batch))
        for name, columns_TQ in zip(_relations(asked), taught.relations or (), strict=True):
            found[name] = Answer(columns_TQ.to(torch.bfloat16), row_of_token(batch))
        return found

    def _computed(self, batch: Batch, asked: Asked) -> Taught:
        run = partial(super().__call__, batch, asked)
        taught, relations = with_relations(self.backbone, asked.relations, batch, run)
        return replace(taught, relations=relations)

    def __call__(self, batch: Batch, asked: Asked) -> Taught:
        """What it says of a batch: what it has kept where these rows are as they were, else what it computes."""
        wanted = {f"states_{layer}" for layer in asked.layers} | {*_relations(asked)}
        wanted |= {"logits"} if asked.logits else set()
        answers = self.kept
        if answers is None or not wanted <= answers.kinds.keys() or not (self._own or answers.of_these(batch)):
            return self._computed(batch if self._own is None else self._read(batch), asked)
        self.head.to(batch.starts.device)  # some are asked for more than logits
        logits = answers.get("logits", batch, self.head.logit_rows(batch)) if asked.logits else None
        row_T, states = row_of_token(batch), {}
        for layer in asked.layers:
            states_TD = answers.get(f"states_{layer}", batch, row_T)
            if batch.valid is not None:
                whole_TD = states_TD.new_zeros(len(batch.valid), states_TD.shape[1])
                states_TD = whole_TD.masked_scatter_(batch.valid[:, None], states_TD)
            states[layer] = states_TD
        relations = [answers.get(name, batch, row_T) for name in _relations(asked)]
        return Taught(batch, self.head, len(self.backbone.layers), kept=logits, states=states, relations=relations)

    def _read(self, batch: Batch) -> Batch:
        """The same rows in this model's tokens."""
        assert self._own is not None
        split = self._own.split("train")
        columns = Columns(split.rows, split.chosen).__getitems__(RowNumbers(batch.row_index.tolist()))
        return self._own.collate(columns).to(batch.starts.device)


def _relations(asked: Asked) -> list[str]:
    """What queries, keys and values of a layer are called where they are kept."""
    kinds = () if asked.relations is None else ("queries", "keys", "values")
    return [f"{kind}_{asked.relations}" for kind in kinds]


def _changes(data: DataModule) -> bool:
    """Whether rows are others in another epoch, by the first ones."""
    split = data.split("train")
    columns, numbers = Columns(split.rows, split.chosen), range(min(_TRIED, len(split)))
    first, second = (
        row_hashes(data.training_batch(columns.__getitems__(RowNumbers(numbers, epoch)))) for epoch in (0, 1)
    )
    return not torch.equal(first, second)
