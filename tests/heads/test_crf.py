"""The CRF against brute force: every sequence of tags written out.

Legend: W words, C tags.
"""

from __future__ import annotations

from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import cross_entropy

from llm_arch.heads.crf import CRF, Scores, log_likelihood, marginals, viterbi


class Case:
    """Rows of some lengths with random emissions, tags and scores, in fp64; some scores forbidden if asked for."""

    def __init__(self, lengths: list[int], classes: int, seed: int, forbid: float = 0.0) -> None:
        generator = torch.Generator().manual_seed(seed)

        def random(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator, dtype=torch.float64)

        self.lengths, self.classes = lengths, classes
        # Rows need not be numbered without gaps: one may have no words.
        self.row = torch.repeat_interleave(torch.arange(len(lengths)) * 2, torch.tensor(lengths, dtype=torch.long))
        self.emissions = random(sum(lengths), classes)
        self.tags = torch.randint(classes, (sum(lengths),), generator=generator)
        self.scores = Scores(random(classes), random(classes), random(classes, classes))
        for values in self.scores:
            drop = torch.rand(values.shape, generator=generator) < forbid
            drop[..., 0] = False  # the first tag may stand anywhere
            if values.ndim == 1:
                values[drop] = float("-inf")
            else:
                values[drop & (torch.arange(classes)[:, None] > 0)] = float("-inf")

    def rows(self) -> list[tuple[Tensor, Tensor]]:
        """Emissions and tags of each row."""
        return list(zip(self.emissions.split(self.lengths), self.tags.split(self.lengths), strict=True))

    def all_scores(self, emissions_WC: Tensor) -> dict[tuple[int, ...], Tensor]:
        """The score of every sequence of tags of one row, added up one by one."""
        found = {}
        for tags in product(range(self.classes), repeat=len(emissions_WC)):
            score = self.scores.start_C[tags[0]] + self.scores.end_C[tags[-1]]
            for i, tag in enumerate(tags):
                score = score + emissions_WC[i, tag]
            for before, after in zip(tags, tags[1:], strict=False):
                score = score + self.scores.transition_CC[before, after]
            found[tags] = score
        return found

    def likelihood(self) -> Tensor:
        total = torch.zeros((), dtype=torch.float64)
        for emissions, tags in self.rows():
            scores = self.all_scores(emissions)
            total = total + scores[tuple(tags.tolist())] - torch.stack(list(scores.values())).logsumexp(0)
        return total


cases = st.builds(
    Case,
    lengths=st.lists(st.integers(1, 4), min_size=1, max_size=4),
    classes=st.integers(2, 4),
    seed=st.integers(0, 2**31),
)
constrained = st.builds(
    Case,
    lengths=st.lists(st.integers(1, 4), min_size=1, max_size=4),
    classes=st.integers(2, 4),
    seed=st.integers(0, 2**31),
    forbid=st.sampled_from([0.3, 0.8]),
)


@settings(max_examples=15, deadline=None)
@given(case=cases)
def test_likelihood_and_gradient(case: Case) -> None:
    inputs = [case.emissions, *case.scores]
    for value in inputs:
        value.requires_grad_()
    expected = case.likelihood()
    wanted = torch.autograd.grad(expected, inputs, allow_unused=True, materialize_grads=True)
    found = log_likelihood(case.emissions, case.tags, case.row, case.scores)
    torch.testing.assert_close(found, expected)
    for ours, theirs in zip(torch.autograd.grad(found, inputs), wanted, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-10)


@settings(max_examples=15, deadline=None)
@given(case=cases)
def test_probabilities_of_all_sequences_sum_to_one(case: Case) -> None:
    emissions, _ = case.rows()[0]
    row = torch.zeros(len(emissions), dtype=torch.long)
    total = sum(
        log_likelihood(emissions, torch.tensor(tags), row, case.scores).exp()
        for tags in product(range(case.classes), repeat=len(emissions))
    )
    assert float(total) == pytest.approx(1.0)


@settings(max_examples=60, deadline=None)
@given(case=cases | constrained)
def test_the_best_sequence(case: Case) -> None:
    found = viterbi(case.emissions, case.row, case.scores)
    for (emissions, _), tags in zip(case.rows(), found.split(case.lengths), strict=True):
        scores = case.all_scores(emissions)
        best = max(scores.values())
        assert best > float("-inf")
        assert float(scores[tuple(tags.tolist())]) == pytest.approx(float(best))


@settings(max_examples=60, deadline=None)
@given(case=cases | constrained)
def test_probability_of_each_tag(case: Case) -> None:
    found = marginals(case.emissions, case.row, case.scores)
    for (emissions, _), chances in zip(case.rows(), found.split(case.lengths), strict=True):
        scores = case.all_scores(emissions)
        weights = torch.stack(list(scores.values())).softmax(0)
        expected = torch.zeros_like(emissions)
        for tags, weight in zip(scores, weights, strict=True):
            for i, tag in enumerate(tags):
                expected[i, tag] += weight
        torch.testing.assert_close(chances, expected)


@settings(max_examples=20, deadline=None)
@given(case=cases)
def test_probabilities_are_the_gradient_of_the_normaliser(case: Case) -> None:
    emissions = case.emissions.requires_grad_()
    given_ = emissions.gather(1, case.tags[:, None]).sum()
    (gradient,) = torch.autograd.grad(given_ - log_likelihood(emissions, case.tags, case.row, case.scores), emissions)
    torch.testing.assert_close(marginals(emissions, case.row, case.scores), gradient)


def test_a_fresh_crf_is_a_softmax_a_word() -> None:
    case = Case([3, 1, 5], 4, 0)
    emissions, scores = case.emissions.float(), CRF(4)()
    expected = cross_entropy(emissions, case.tags, reduction="sum")
    torch.testing.assert_close(-log_likelihood(emissions, case.tags, case.row, scores), expected)
    assert viterbi(emissions, case.row, scores).equal(emissions.argmax(1))
    torch.testing.assert_close(marginals(emissions, case.row, scores), emissions.softmax(1))


def test_rows_together_are_rows_alone() -> None:
    case = Case([2, 40, 1, 7, 40, 3], 5, 1)
    tags, chances, likelihood = [], [], torch.zeros((), dtype=torch.float64)
    for emissions, truth in case.rows():
        row = torch.full((len(emissions),), 3)
        likelihood = likelihood + log_likelihood(emissions, truth, row, case.scores)
        tags.append(viterbi(emissions, row, case.scores))
        chances.append(marginals(emissions, row, case.scores))
    torch.testing.assert_close(log_likelihood(case.emissions, case.tags, case.row, case.scores), likelihood)
    assert viterbi(case.emissions, case.row, case.scores).equal(torch.cat(tags))
    torch.testing.assert_close(marginals(case.emissions, case.row, case.scores), torch.cat(chances))


def test_a_row_of_thousands_of_words_loses_little_to_fp32() -> None:
    case = Case([3000], 13, 2)
    emissions = case.emissions.log_softmax(1)
    scores = Scores(*(s.float() for s in case.scores))
    single = log_likelihood(emissions.float(), case.tags, case.row, scores)
    double = log_likelihood(emissions, case.tags, case.row, case.scores)
    torch.testing.assert_close(single.double(), double, rtol=1e-5, atol=0)
    wide, narrow = (viterbi(e, case.row, s) for e, s in ((emissions, case.scores), (emissions.float(), scores)))
    assert float((wide == narrow).double().mean()) > 0.999  # near ties may fall either way
    chances = marginals(emissions.float(), case.row, scores)
    torch.testing.assert_close(chances.double(), marginals(emissions, case.row, case.scores), rtol=1e-3, atol=1e-4)


def test_half_precision_is_left_before_anything_is_summed() -> None:
    case = Case([30, 12], 5, 3)
    half = case.emissions.bfloat16()
    crf = CRF(5).bfloat16()
    with torch.no_grad():
        for parameter, values in zip((crf.start_C, crf.end_C, crf.transition_CC), case.scores, strict=True):
            parameter.copy_(values)
            parameter.div_(100)  # kept in units of a hundred, so that an optimizer's small steps move them
    plain = Scores(*(100 * p.detach().float() for p in (crf.start_C, crf.end_C, crf.transition_CC)))
    expected = log_likelihood(half.float(), case.tags, case.row, plain)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = log_likelihood(half, case.tags, case.row, crf())
        chances = marginals(half, case.row, crf())
        tags = viterbi(half, case.row, crf())
    assert found.dtype == chances.dtype == torch.float32
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(chances, marginals(half.float(), case.row, plain))
    assert tags.equal(viterbi(half.float(), case.row, plain))


def test_inference_mode_decodes() -> None:
    case = Case([3, 2], 3, 4)
    crf = CRF(3)
    with torch.inference_mode():
        emissions = case.emissions.float() * 1
        assert viterbi(emissions, case.row, crf()).equal(emissions.argmax(1))
        torch.testing.assert_close(marginals(emissions, case.row, crf()), emissions.softmax(1))


def test_no_words_have_likelihood_one_and_a_gradient() -> None:
    crf = CRF(3)
    emissions = torch.zeros(0, 3, requires_grad=True)
    none = torch.zeros(0, dtype=torch.long)
    found = log_likelihood(emissions, none, none, crf())
    found.backward()
    assert float(found.detach()) == 0
    assert all(p.grad is not None and not p.grad.any() for p in crf.parameters())
    assert viterbi(emissions, none, crf()).shape == (0,)
    assert marginals(emissions, none, crf()).shape == (0, 3)
