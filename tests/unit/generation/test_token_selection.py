"""Selection of tokens: against a sort of the whole vocabulary, with every option."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compressor.errors import NumericalError, UsageError
from compressor.generation.nucleus import sample
from compressor.generation.requests import SamplingOptions
from compressor.generation.token_selection import TokenSelector, Vocabulary
from compressor.models.checkpoint.generation_rules import GenerationRules

SIZE = 12
NOISE_V = np.random.default_rng(0).normal(size=SIZE).astype(np.float32)


def selector(prompt=(), *, rules=None, ends=(), grammar=None, size=SIZE, max_tokens=9, **options):
    vocabulary = Vocabulary(size, frozenset(ends), rules or GenerationRules())
    return TokenSelector(SamplingOptions(max_tokens, **options), vocabulary, prompt, grammar)


def reference_probabilities(logits_V, options):
    """Sort the vocabulary, and apply temperature, top_k, top_p and min_p as they are defined."""
    scaled_V = (logits_V - logits_V.max()) * np.float32(1 / options.temperature)
    weights_V = np.exp(scaled_V).astype(np.float64)
    order = np.argsort(-weights_V, kind="stable")
    if options.top_k:
        order = order[: options.top_k]
    sums = weights_V[order].cumsum()
    if options.top_p < 1:
        order = order[: int(np.searchsorted(sums, options.top_p * sums[-1])) + 1]
    if options.min_p:
        order = order[weights_V[order] >= np.float32(options.min_p)]
    probabilities_V = np.zeros(len(logits_V))
    probabilities_V[order] = weights_V[order]
    return probabilities_V / probabilities_V.sum()


def sampled_probabilities(logits_V, options, count=4000):
    """Return the share of each token among draws with evenly spaced numbers."""
    buffer_V = np.empty_like(logits_V)
    draws = [sample(logits_V, options, (i + 0.5) / count, buffer_V) for i in range(count)]
    return np.bincount(draws, minlength=len(logits_V)) / count


logits = st.integers(0, 2**32 - 1).flatmap(
    lambda seed: st.builds(
        lambda size, scale, ties: (
            np.random.default_rng(seed).normal(size=size).astype(np.float32) * np.float32(scale)
        ).round(0 if ties else 6),
        st.sampled_from([1, 2, 7, 255, 256, 700, 3000]),
        st.sampled_from([0.0, 0.1, 1.0, 4.0, 30.0]),
        st.booleans(),
    )
)
samplings = st.builds(
    SamplingOptions,
    max_tokens=st.just(1),
    temperature=st.sampled_from([0.05, 0.7, 1.0, 3.0]),
    top_p=st.sampled_from([1.0, 1e-9, 0.3, 0.9, 0.999]),
    top_k=st.sampled_from([0, 1, 3, 50, 5000]),
    min_p=st.sampled_from([0.0, 0.02, 0.5, 1.0]),
)


@settings(deadline=None, max_examples=60)
@given(logits, samplings)
def test_sampling_equals_a_sort_of_the_whole_vocabulary(logits_V, options):
    count = 2000
    expected_V = reference_probabilities(logits_V, options)
    shares_V = sampled_probabilities(logits_V, options, count)
    # Evenly spaced numbers give each token its share, up to one draw at either end of its range.
    assert np.abs(shares_V - expected_V).max() <= 2.5 / count
    assert ((shares_V > 0) & (expected_V == 0)).sum() <= 1  # where the sums are rounded


def test_a_nucleus_of_most_of_a_large_vocabulary_is_exact():
    logits_V = np.random.default_rng(1).normal(size=60_000).astype(np.float32) / 4
    options = SamplingOptions(1, temperature=1.0, top_p=0.95)
    expected = set(np.flatnonzero(reference_probabilities(logits_V, options)).tolist())
    assert len(expected) > 50_000
    buffer_V = np.empty_like(logits_V)
    draws = {sample(logits_V, options, (i + 0.5) / 2000, buffer_V) for i in range(2000)}
    assert draws <= expected
    assert max(draws) > 59_000 and min(draws) < 1_000
    assert sample(logits_V, options, 0.0, buffer_V) == min(expected)
    assert sample(logits_V, options, np.nextafter(1.0, 0.0), buffer_V) == max(expected)


@settings(deadline=None, max_examples=60)
@given(logits, samplings, st.floats(0, 1, exclude_max=True), st.data())
def test_an_excluded_token_is_never_drawn(logits_V, options, uniform, data):
    allowed = data.draw(st.sets(st.integers(0, len(logits_V) - 1), min_size=1, max_size=5))
    masked_V = np.full_like(logits_V, -np.inf)
    masked_V[list(allowed)] = logits_V[list(allowed)]
    assert sample(masked_V, options, uniform, np.empty_like(logits_V)) in allowed
    assert sample(masked_V, options, uniform, masked_V) in allowed  # in its own memory


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_logits_that_are_no_numbers_are_an_error(temperature, value):
    logits_V = NOISE_V.copy()
    logits_V[7] = value
    for penalty in (0.0, 0.5):
        with pytest.raises(NumericalError, match="NaN or infinity instead of logits"):
            selector(temperature=temperature, presence_penalty=penalty).choose(logits_V)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_rules_that_exclude_every_token_are_an_error(temperature):
    rules = GenerationRules(suppress_tokens=tuple(range(SIZE)))
    with pytest.raises(UsageError, match="no token may follow"):
        selector(rules=rules, temperature=temperature).choose(NOISE_V)


def test_the_logits_of_the_caller_are_not_changed():
    logits_V = NOISE_V.copy()
    logits_V.flags.writeable = False
    options = {"temperature": 0.9, "top_p": 0.9, "frequency_penalty": 1.0, "logit_bias": {3: 1.0}}
    answer = selector([1, 2], repetition_penalty=1.3, min_tokens=2, ends={4}, **options)
    for _ in range(5):
        answer.choose(logits_V)
    np.testing.assert_array_equal(logits_V, NOISE_V)


def test_penalties_count_the_tokens_of_the_answer_only():
    logits_V = np.zeros(SIZE, np.float32)
    logits_V[:3] = [1.0, 0.9, 0.8]
    answer = selector([0, 0, 1], frequency_penalty=0.15)
    assert [answer.choose(logits_V) for _ in range(6)] == [0, 1, 0, 2, 1, 0]
    answer = selector([0, 0, 1], presence_penalty=0.95)
    assert [answer.choose(logits_V) for _ in range(5)] == [0, 1, 2, 0, 0]


def test_a_repetition_penalty_counts_the_prompt_and_replaces_that_of_the_model():
    logits_V = np.array([4.0, 3.0, -1.0], np.float32)
    rules = GenerationRules(repetition_penalty=2.0)
    assert selector([0], size=3, rules=rules).choose(logits_V) == 1
    assert selector([0], size=3, rules=rules, repetition_penalty=1.0).choose(logits_V) == 0


def test_a_bias_is_added_and_one_of_an_unknown_token_ignored():
    assert selector(logit_bias={5: 100.0, 99: 100.0}).choose(NOISE_V) == 5
    best = int(NOISE_V.argmax())
    assert selector(logit_bias={best: -100.0}).choose(NOISE_V) != best


def test_an_answer_does_not_end_before_its_smallest_number_of_tokens():
    best = int(NOISE_V.argmax())
    other = int(np.argsort(NOISE_V)[-2])
    for end in ({"ends": {best}}, {"stop_tokens": frozenset({best})}):
        answer = selector(min_tokens=2, **end)
        assert [answer.choose(NOISE_V) for _ in range(3)] == [other, other, best]
        assert answer.ends(best) and not answer.ends(other)


def test_a_stop_token_ends_an_answer_that_ignores_the_models_end_tokens():
    answer = selector(ends={1}, stop_tokens=frozenset({2}), ignore_end=True)
    assert [answer.ends(token) for token in (1, 2, 3)] == [False, True, False]


class OnlyEven:
    """A grammar of two even tokens."""

    def __init__(self):
        self.tokens = []

    @property
    def is_finished(self):
        return len(self.tokens) == 2

    def mask(self, logits_V):
        logits_V[1::2] = -np.inf

    def commit(self, token):
        self.tokens.append(token)


@pytest.mark.parametrize("temperature", [0.0, 2.0])
def test_a_grammar_masks_the_tokens_and_follows_them(temperature):
    grammar = OnlyEven()
    answer = selector(grammar=grammar, temperature=temperature, seed=1)
    first = answer.choose(NOISE_V)
    assert not answer.is_finished
    second = answer.choose(NOISE_V)
    assert grammar.tokens == [first, second] and answer.is_finished
    assert first % 2 == second % 2 == 0


def test_equal_seeds_give_equal_tokens_whatever_other_answers_do():
    generator = np.random.default_rng(5)
    steps = generator.normal(size=(20, SIZE)).astype(np.float32)
    options = {"temperature": 1.5, "max_tokens": 20, "seed": 3}
    alone = selector(**options)
    expected = [alone.choose(logits_V) for logits_V in steps]
    first, second = selector(**options), selector(**(options | {"seed": 4}))
    together = [(first.choose(logits_V), second.choose(logits_V)) for logits_V in steps]
    assert [pair[0] for pair in together] == expected
    assert [pair[1] for pair in together] != expected
    unseeded = [selector(temperature=1.5, max_tokens=20) for _ in range(2)]
    assert len({tuple(answer.choose(logits_V) for logits_V in steps) for answer in unseeded}) == 2


@given(logits, st.integers(0, 20))
@settings(deadline=None, max_examples=40)
def test_log_probabilities_are_those_of_the_models_logits(logits_V, count):
    answer = selector(size=len(logits_V), top_logprobs=count, logit_bias={0: 50.0})
    token = answer.choose(logits_V)
    result = answer.logprobs(logits_V, token, 7)
    wide_V = logits_V.astype(np.float64)
    expected_V = wide_V - wide_V.max() - np.log(np.exp(wide_V - wide_V.max()).sum())
    assert result.token == token
    assert result.logprob == pytest.approx(expected_V[token], abs=1e-4)
    order = np.argsort(-expected_V, kind="stable")[:count].tolist()
    assert [other for other, _ in result.alternatives] == order
    assert [p for _, p in result.alternatives] == pytest.approx(expected_V[order], abs=1e-4)


def test_the_model_rules_of_the_largest_length_apply():
    rules = GenerationRules(forced_eos_token_id=(3,))
    answer = selector(rules=rules, max_tokens=3, temperature=1.0)
    assert [answer.choose(NOISE_V) for _ in range(3)][-1] == 3


def test_extreme_logits_and_temperatures_overflow_nothing():
    logits_V = np.array([3e38, -3e38, 3e38, -np.inf], np.float32)
    for temperature in (1e-9, 1e-5, 1.0, 1e9):
        options = {"size": 4, "temperature": temperature, "max_tokens": 50, "seed": 0}
        answer = selector(**options)
        assert {answer.choose(logits_V) for _ in range(50)} <= {0, 1, 2}
