"""A tag for every word, and the entities that the tags spell: named entities, slots.

Legend: T tokens, W words, D hidden size, C classes (tags).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torchmetrics import Metric

from llm_arch.heads.crf import CRF, Scores, log_likelihood, log_partition, marginals, viterbi
from llm_arch.heads.entities import EntityMetrics
from llm_arch.heads.weights import ClassWeights, weights_of
from llm_arch.tags import OUTSIDE, Allowed, Entity, allowed, entities, scheme_of, split_tag, tags_of
from llm_arch.types import Batch, Head, Hidden, LabelSpace, Loss, Prediction, Reading, Target, UserError, Words
from llm_arch.types.explaining import weighted_sums

Decoding = Literal["valid", "greedy"]

_FAR = -1e4  # added to the emissions of tags that are left out; gradients through -inf would be NaN
_NO_ENTITY = "no entity"


@dataclass(frozen=True)
class EntitySpan:
    """Some characters of a row's text that are one thing.

    Attributes:
        start: the first character.
        end: the character after the last.
        label: what it is.
        score: mean probability of the tags of its words, in [0, 1].
        text: the characters, where the text is known.
    """

    start: int
    end: int
    label: str
    score: float
    text: str = ""


@dataclass(frozen=True)
class EntityPrediction(Prediction):
    """The entities of a row.

    Attributes:
        entities: in reading order, none within another; may be empty.
    """

    entities: list[EntitySpan]


class TokenClassification(Head):
    """Linear classifier on the state of each word's first subword, with a CRF on top if asked for.

    `valid` decoding finds the most probable of the tag sequences that keep the rules of the scheme (Viterbi), so that
    no entity is ill-spelled. `greedy` takes the most probable tag of each word by itself and then repairs as conlleval
    does: an I (or E) that can't go on an entity begins one, and an entity that nothing ends lasts as long as its tags
    do. The metric `f1` counts an entity that had to be repaired as none, `f1_default` counts it repaired.

    Args:
        hidden_size: D.
        label_space: the tags, O among them; they tell the scheme (bio, bioes or io).
        crf: learn scores of transitions between tags: the loss is that of whole rows.
        decoding: valid, or greedy, which a CRF excludes.
        dropout: probability on the states.
        class_weights: `balanced` weights each word by N / (C · count of its tag); a mapping weights tags by name. Not
            with a CRF.
        label_smoothing: share of the target spread over all tags, in [0, 1). Not with a CRF.
    """

    major = "f1"
    mode = "max"
    rate_factor = 2.0  # validation rows of WNUT17 after 3 epochs: F1 0.51 at 1, 0.57 at 2

    def __init__(
        self,
        hidden_size: int,
        label_space: LabelSpace,
        *,
        crf: bool = False,
        decoding: Decoding = "valid",
        dropout: float = 0.1,
        class_weights: ClassWeights | None = None,
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__()
        _check(label_space, crf, decoding, class_weights, label_smoothing)
        self.label_space = label_space
        self.scheme = scheme_of(label_space.names)
        self.decoding = decoding
        self.label_smoothing = label_smoothing
        self.dropout = nn.Dropout(dropout)
        self.classify = nn.Linear(hidden_size, len(label_space))
        nn.init.normal_(self.classify.weight, std=0.02)
        nn.init.zeros_(self.classify.bias)
        self.crf = CRF(len(label_space)) if crf else None
        self.weights_C: Tensor | None
        self.register_buffer("weights_C", weights_of(class_weights, label_space), persistent=False)
        self.rules: Tensor
        self.register_buffer("rules", _penalties(allowed(label_space.names, self.scheme)), persistent=False)

    def forward(self, hidden: Hidden, batch: Batch) -> Tensor:
        """(W, C) logits."""
        logits: Tensor = self.classify(self.dropout(hidden.last_TD[_words(batch).token]))
        return logits

    def loss(self, hidden: Hidden, batch: Batch) -> Loss:
        """Cross-entropy summed over words, or the negative log-likelihood of the rows, over the number of words."""
        logits_WC, truth_W = self(hidden, batch), batch.labels["tag"]
        count, weights_C = float(len(truth_W)), self.weights_C
        if self.crf is not None:
            return Loss(-log_likelihood(_emissions(logits_WC), truth_W, _words(batch).row, self.crf()), count)
        sum_ = cross_entropy(
            logits_WC.float(), truth_W, weight=weights_C, label_smoothing=self.label_smoothing, reduction="sum"
        )
        return Loss(sum_, count if weights_C is None else weights_C[truth_W].sum())

    def logit_rows(self, batch: Batch) -> Tensor:
        """(W,): the rows of the words."""
        return _words(batch).row

    def metrics(self) -> Metric:
        """Precision, recall and F1 of entities, and accuracy of tags."""
        return EntityMetrics(self.label_space.names)

    def metric_inputs(self, logits: Tensor, batch: Batch) -> tuple[Tensor, ...]:
        """Predicted and true tags, and the row of each word."""
        return self.tags(logits, batch), batch.labels["tag"], _words(batch).row

    def tags(self, logits_WC: Tensor, batch: Batch) -> Tensor:
        """(W,) classes, by the head's decoding."""
        if self.decoding == "greedy":
            return logits_WC.argmax(1)
        row_W, best_W = _words(batch).row, logits_WC.argmax(1)
        if self.crf is not None:
            return viterbi(_emissions(logits_WC), row_W, self._scores())
        # Where the best tag of each word by itself keeps the rules, there is no better sequence.
        broken_W = self._broken(best_W, row_W)
        if not broken_W.any():
            return best_W
        tags_W = viterbi(_emissions(logits_WC[broken_W]), row_W[broken_W], self._scores())
        return best_W.masked_scatter(broken_W, tags_W)

    def _broken(self, tags_W: Tensor, row_W: Tensor) -> Tensor:
        """(W,) whether the row of a word has tags that break a rule."""
        start_C, end_C, follow_CC = self.rules[0], self.rules[1], self.rules[2:]
        new_W = torch.ones_like(row_W, dtype=torch.bool)
        new_W[1:] = row_W[1:] != row_W[:-1]
        before_W = tags_W.roll(1)
        rule_W = torch.where(new_W, start_C[tags_W] + end_C[before_W], follow_CC[before_W, tags_W])
        # What is wrong at a row's end is found at the next one's first word; the first word of all sees the last one's.
        wrong_W = rule_W == float("-inf")
        wrong_W = wrong_W | (new_W & wrong_W).roll(-1)
        return torch.isin(row_W, row_W[wrong_W])

    def decode(self, logits: Tensor, batch: Batch) -> list[Prediction]:
        """The entities of each row, none where there are none."""
        words, names = _words(batch), self.label_space.names
        tags_W = self.tags(logits, batch)
        emissions_WC = _emissions(logits)
        chance_WC = emissions_WC.exp() if self.crf is None else marginals(emissions_WC, words.row, self._scores())
        tags = [names[i] for i in tags_W.tolist()]
        chances = chance_WC.gather(1, tags_W[:, None])[:, 0].tolist()
        starts, ends = words.start.tolist(), words.end.tolist()
        counts = torch.bincount(words.row, minlength=batch.rows).tolist()
        found: list[Prediction] = []
        first = 0
        for index, count in zip(batch.row_index.tolist(), counts, strict=True):
            spans = []
            for start, end, label in entities(tags[first : first + count], self.scheme):
                start, end = start + first, end + first
                score = sum(chances[start:end]) / (end - start)
                spans.append(EntitySpan(starts[start], ends[end - 1], label, score))
            found.append(EntityPrediction(index, spans))
            first += count
        return found

    def target(self, prediction: Prediction, reading: Reading, wanted: str | None = None) -> Target:
        """The tags of an entity's words: of the most probable that was found, or of "no entity", unless told.

        Args:
            prediction: the entities that were found.
            reading: the row.
            wanted: characters and label of a span (`0-5:PER`); characters alone, as what was found there; a label
                alone, of the most probable entity that has it; or `no entity`: all words are outside of one.
        """
        found: list[EntitySpan] = prediction.entities  # type: ignore[attr-defined]
        count, text = len(reading.words), [*reading.texts.values()][0]
        parts = re.fullmatch(r"(\d+)-(\d+)(?::(.+))?", wanted or "")
        if wanted == _NO_ENTITY or (wanted is None and not found):
            if not count:
                raise UserError("the model has read no word of this text; name another")
            outside = self.label_space.index(OUTSIDE)
            return Target(_NO_ENTITY, tuple((word, outside, 1 / count) for word in range(count)), wanted=_NO_ENTITY)
        if parts:
            start, end = int(parts[1]), int(parts[2])
            label = parts[3] or next((e.label for e in found if (e.start, e.end) == (start, end)), None)
            if label is None:
                raise UserError(
                    f"nothing was found at {start}-{end}; say as what to explain it, such as {wanted}:LABEL"
                )
        else:
            same = [entity for entity in found if wanted in (None, entity.label)]
            if wanted is not None:
                self._check_label(wanted)
            if not same:
                raise UserError(f"no entity {wanted} was found; name the characters of one, such as 0-5:{wanted}")
            best = max(same, key=lambda entity: entity.score)
            start, end, label = best.start, best.end, best.label
        self._check_label(label)
        first, stop = reading.words_of(start, end, text)
        tags = tags_of([Entity(0, stop - first, label)], stop - first, self.scheme)
        columns = [self.label_space.index(tag) for tag in tags]
        cells = tuple((first + i, column, 1 / (stop - first)) for i, column in enumerate(columns))
        return Target(f"entity {start}-{end} as {label}", cells, wanted=f"{start}-{end}:{label}")

    def _check_label(self, label: str) -> None:
        known = sorted({split_tag(name)[1] for name in self.label_space.names} - {""})
        if label not in known:
            raise UserError(f"unknown label {label!r}; the labels are: {', '.join(known)}")

    def explained(self, logits: Tensor, batch: Batch, targets: Sequence[Target]) -> Tensor:
        """(R,) the mean logit of a target's tags; with a CRF the log-probability that its words have these tags."""
        if self.crf is None:
            return super().explained(logits, batch, targets)
        row_W, emissions_WC, scores = _words(batch).row, _emissions(logits), self._scores()
        first_R = torch.bincount(row_W, minlength=batch.rows).cumsum(0)
        first_R = first_R - torch.bincount(row_W, minlength=batch.rows)
        starts = first_R.tolist()

        def summed(sign: float) -> Tensor:
            """Over the tag sequences that have the tags whose weight has this sign."""
            cells = [(starts[r] + w, c) for r, t in enumerate(targets) for w, c, weight in t.cells if weight * sign > 0]
            kept_WC = torch.zeros_like(emissions_WC)
            if cells:
                word, column = torch.tensor(cells, device=row_W.device).T
                kept_WC[word] = _FAR
                kept_WC[word, column] = 0.0
            return log_partition(emissions_WC + kept_WC, row_W, batch.rows, scores)

        return summed(1.0) - summed(-1.0)  # where nothing is set against it, the second is the sum over all

    def probability(self, logits: Tensor, batch: Batch, targets: Sequence[Target]) -> Tensor:
        """(R,) the mean probability of a target's tags; with a CRF that its words have them."""
        if self.crf is not None:
            for_R, against_R = (
                self.explained(logits, batch, [_part(target, sign) for target in targets]).exp() for sign in (1, -1)
            )
            contrast_R = torch.tensor([any(w < 0 for *_, w in t.cells) for t in targets], device=for_R.device)
            return for_R - against_R * contrast_R
        return weighted_sums(_emissions(logits).softmax(1), self.logit_rows(batch), targets)

    def _scores(self) -> Scores:
        """The scores of transitions for decoding: the CRF's or zeros, with -inf where the rules forbid."""
        rules = Scores(self.rules[0], self.rules[1], self.rules[2:])
        return rules if self.crf is None else Scores(*(a + b for a, b in zip(rules, self.crf(), strict=True)))


def _part(target: Target, sign: int) -> Target:
    """What speaks for a target, or what it is set against, by itself."""
    return replace(target, cells=tuple((w, c, abs(x)) for w, c, x in target.cells if x * sign > 0))


def _words(batch: Batch) -> Words:
    if batch.words is None:
        raise UserError(
            "token classification needs words, which the data module doesn't give; take one that tags words"
        )
    return batch.words


def _emissions(logits_WC: Tensor) -> Tensor:
    """Log-probabilities: what is added to all tags of a word changes nothing, and sums over long rows stay small."""
    return logits_WC.float().log_softmax(1)


def _penalties(rules: Allowed) -> Tensor:
    """(2 + C, C) zeros where a tag may stand and -inf elsewhere: at the start, at the end, after each tag."""
    return torch.where(torch.tensor([rules.start, rules.end, *rules.transition]), 0.0, float("-inf"))


def _check(
    labels: LabelSpace, crf: bool, decoding: Decoding, weights: ClassWeights | None, label_smoothing: float
) -> None:
    if labels.multi:
        raise UserError("token classification gives each word one tag; the data has sets of labels")
    if OUTSIDE not in labels.names or len(labels) < 2:
        raise UserError(f"the tags must be O and at least one more, the data has {list(labels.names)}")
    if decoding not in ("valid", "greedy"):
        raise UserError(f"decoding must be valid or greedy, got {decoding!r}")
    if crf and decoding == "greedy":
        raise UserError("decoding: greedy would ignore what crf: true learns; leave one of them out")
    if not 0 <= label_smoothing < 1:
        raise UserError(f"label_smoothing must be in [0, 1), got {label_smoothing}")
    if crf and (weights is not None or label_smoothing):
        raise UserError(
            "class_weights and label_smoothing are of single words, crf: true of whole rows; leave them out"
        )
