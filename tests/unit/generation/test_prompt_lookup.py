"""Guesses of tokens from what occurred before."""

from hypothesis import given
from hypothesis import strategies as st

from compressor.generation.prompt_lookup import PromptLookup


def naive(tokens, limit, longest, shortest):
    """Search all earlier positions for the longest sequence, the last occurrence first."""
    for size in range(longest, shortest - 1, -1):
        last = tokens[len(tokens) - size :]
        for start in range(len(tokens) - size - 1, -1, -1):
            if size <= len(tokens) and tokens[start : start + size] == last:
                continued = tokens[start + size :]
                while len(continued) < limit:
                    continued = continued + continued
                return continued[:limit]
    return []


@given(
    st.lists(st.integers(0, 3), max_size=40),
    st.lists(st.integers(0, 3), max_size=10),
    st.integers(1, 12),
    st.sampled_from([(3, 1), (3, 2), (4, 2), (2, 2)]),
)
def test_guesses_equal_a_search_of_all_earlier_tokens(prompt, answer, limit, sizes):
    longest, shortest = sizes
    lookup = PromptLookup(prompt, longest=longest, shortest=shortest)
    for token in answer:
        lookup.update(token)
    assert lookup.propose(limit) == naive(prompt + answer, limit, longest, shortest)


def test_an_answer_that_repeats_its_prompt_is_guessed():
    lookup = PromptLookup([5, 6, 7, 8, 9, 1, 2])
    for token in (6, 7):
        lookup.update(token)
    assert lookup.propose(2) == [8, 9]
    lookup.update(8)
    assert lookup.propose(3) == [9, 1, 2]
    lookup.update(3)
    assert lookup.propose(3) == []
    assert lookup.propose(0) == []
