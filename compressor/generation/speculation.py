"""Number of guessed tokens that are checked in one step, from what guesses cost and win here.

One call that checks k guesses takes longer than one for a single token, and yields the accepted
guesses and one token more. Leviathan et al. 2023 give the expected number for an acceptance rate a:
(1 - a^(k+1)) / (1 - a). Both the times and the rate are measured while the model runs.
"""

from __future__ import annotations

_SMOOTHING = 0.2
"""Share of the newest measurement in a running mean."""
_FIRST_RATE = 0.7
"""Acceptance rate before anything was measured."""
_RETRY_TOKENS = 64
"""Tokens without guesses before one more is tried."""


class Speculation:
    """Acceptance rate of one answer's guesses, and the size of the next guess."""

    def __init__(self, times: StepTimes, max_guesses: int) -> None:
        """Start with no measurement of this answer.

        Args:
            times: the times of calls, shared by all answers.
            max_guesses: largest number of guesses.
        """
        self._times, self._max = times, max_guesses
        self._rate = _FIRST_RATE
        self._without = 0

    def size(self) -> int:
        """Return the number of guesses with the most tokens per second; 0 for none."""
        best, best_rate = 0, 1 / self._times.seconds(1)
        for guesses in _sizes(self._max):
            tokens = sum(self._rate**power for power in range(guesses + 1))
            if (rate := tokens / self._times.seconds(guesses + 1)) > best_rate:
                best, best_rate = guesses, rate
        if best == 0 and self._max:
            self._without += 1
            if self._without >= _RETRY_TOKENS:
                self._without = 0
                return 1
        return best

    def note(self, proposed: int, accepted: int) -> None:
        """Note how many of the proposed tokens were accepted."""
        # Guesses behind the first wrong one were not tried.
        tried = min(accepted + 1, proposed)
        share = accepted / tried
        self._rate += _SMOOTHING * (share - self._rate)


class StepTimes:
    """Running mean of the seconds of a call for one row, by its number of tokens."""

    def __init__(self) -> None:
        self._seconds: dict[int, float] = {}

    def note(self, tokens: int, seconds: float) -> None:
        """Note the time of a call."""
        mean = self._seconds.get(tokens, seconds)
        self._seconds[tokens] = mean + _SMOOTHING * (seconds - mean)

    def seconds(self, tokens: int) -> float:
        """Return the measured time, or an estimate from the nearest smaller number of tokens.

        Unmeasured calls are taken to cost no more than that, so that each is tried once.
        """
        smaller = [size for size in self._seconds if size <= tokens]
        return self._seconds[max(smaller)] if smaller else 1.0


def _sizes(largest: int) -> list[int]:
    """Return numbers of guesses: few, so that each is measured often."""
    return [size for size in (1, 2, 3, 5, 8, 12, 16) if size <= largest]
