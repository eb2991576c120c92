"""Count the steps that guesses from the prompt save, by the lengths that are looked up.

    python benchmarks/prompt_lookup.py MODEL [--tokens 160] [--guesses 8]

A chat model answers six requests greedily, about this project's own files: to correct, summarize,
and rewrite a text, to continue a list of actions, to tell a story, and to quote. The answers are
then replayed: in every step up to ``--guesses`` tokens are guessed, and those in front of the first
wrong one are accepted, with one token of the model. Printed are tokens per step for each request,
and over all of them with the number of guessed tokens for each token of the answer.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from compressor.generation.chat_model import ChatModel, ChatOptions
from compressor.generation.conversation import Conversation
from compressor.generation.generate import model_at
from compressor.generation.prompt_lookup import PromptLookup
from compressor.generation.requests import SamplingOptions

ROOT = Path(__file__).parent.parent
LENGTHS = [(1, 2), (1, 3), (2, 3), (3, 3), (2, 4), (3, 5), (1, 5)]
"""Shortest and longest sequence that is looked up."""


def requests() -> list[str]:
    text = (ROOT / "docs/concepts.md").read_text()[500:2600]
    code = (ROOT / "compressor/generation/answer_text.py").read_text()[900:2600]
    steps = [f'step {i}: do(action="Tap", element=[{i * 37},{i * 91}])' for i in range(1, 9)]
    return [
        f"Repeat this text with all typos corrected:\n{text[:1200]}",
        f"Summarize in five sentences:\n{text}",
        f"Rewrite this Python code and rename `piece` to `chunk`:\n{code}",
        "History:\n" + "\n".join(steps) + "\nWrite the history again as JSON, "
        "and three more steps.",
        "Tell me a story about a robot who learns to paint.",
        f"Which terms does this text define? Quote each definition.\n{text}",
    ]


def answers(folder: Path, max_tokens: int) -> list[tuple[list[int], list[int]]]:
    """Return the tokens of each prompt and of its answer."""
    model = ChatModel(model_at(folder), ChatOptions(threads=2, rows=1))
    pairs = []
    for request in requests():
        prompt = model.encode_chat([{"role": "user", "content": request}])
        conversation = Conversation(model, SamplingOptions(max_tokens))
        reply = conversation.ask(request, lambda _: None)
        tokens = model.tokenizer(reply.text, add_special_tokens=False)["input_ids"]
        pairs.append((prompt.token_ids_T.tolist(), tokens))
    model.close()
    return pairs


def steps(lookup: PromptLookup, answer: list[int], guesses: int) -> tuple[int, int]:
    """Return the number of steps of an answer, and of the tokens that were guessed for it."""
    done = count = guessed = 0
    while done < len(answer):
        proposed = lookup.propose(guesses)
        accepted = 0
        for guess, token in zip(proposed, answer[done:-1], strict=False):
            if guess != token:
                break
            accepted += 1
        for token in answer[done : done + accepted + 1]:
            lookup.update(token)
        done, count, guessed = done + accepted + 1, count + 1, guessed + len(proposed)
    return count, guessed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("--tokens", type=int, default=160)
    parser.add_argument("--guesses", type=int, default=8)
    arguments = parser.parse_args()
    pairs = answers(arguments.model, arguments.tokens)
    total = sum(len(answer) for _, answer in pairs)
    for shortest, longest in LENGTHS:
        results = [
            steps(PromptLookup(p, longest=longest, shortest=shortest), a, arguments.guesses)
            for p, a in pairs
        ]
        each = " ".join(
            f"{len(a) / count:.2f}" for (_, a), (count, _) in zip(pairs, results, strict=True)
        )
        overall = total / sum(count for count, _ in results)
        guessed = sum(guessed for _, guessed in results) / total
        print(f"{longest}…{shortest}  {each}  all {overall:.2f}, guessed per token {guessed:.2f}")


if __name__ == "__main__":
    main()
