"""Generation from a prompt: one by one with streaming, or several at once.

`PromptRunner` gives logits; here tokens are drawn, turned into text, and stopped.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from megacontext.config import GenerationConfig
from megacontext.models.base import FrozenBase, StepInput
from megacontext.models.prompt import Prompt, PromptRunner, left_pad
from megacontext.models.sampling import Sampler
from megacontext.models.token_bytes import TextStream


class StopText:
    """Streams text and withholds what may turn out to be the beginning of a stop text."""

    def __init__(self, stream: TextStream, stops: Sequence[str]) -> None:
        self._stream = stream
        self._stops = tuple(stops)
        self._held = ""
        self.stopped = False

    def push(self, token: int) -> str:
        return self._release(self._stream.push(token), final=False)

    def end(self) -> str:
        return "" if self.stopped else self._release(self._stream.end(), final=True)

    def _release(self, piece: str, *, final: bool) -> str:
        text = self._held + piece
        found = [text.find(stop) for stop in self._stops if stop in text]
        if found:
            self.stopped, self._held = True, ""
            return text[: min(found)]
        hold = 0 if final else self._overlap(text)
        self._held = text[len(text) - hold :]
        return text[: len(text) - hold]

    def _overlap(self, text: str) -> int:
        """Characters at the end of `text` that begin some stop text."""
        longest = 0
        for stop in self._stops:
            for count in range(1, min(len(stop), len(text) + 1)):
                if text.endswith(stop[:count]):
                    longest = max(longest, count)
        return longest


def generate(
    runner: PromptRunner, base: FrozenBase, prompt: Prompt, config: GenerationConfig
) -> Iterator[str]:
    """Text of the answer to one prompt, piece by piece. An end token or a stop text ends it."""
    sampler = Sampler(config)
    text = StopText(base.tokenizer.stream(), config.stop)
    for _ in range(config.max_new_tokens):
        token = int(sampler.pick(runner.read(prompt)[None])[0])
        if token in base.tokenizer.end_tokens:
            break
        yield text.push(token)
        if text.stopped:
            return
        prompt = prompt.then(token)
    yield text.end()


@torch.inference_mode()
def generate_batch(
    base: FrozenBase, prompts: Sequence[Prompt], config: GenerationConfig
) -> list[str]:
    """Answers to several prompts in one left-padded batch."""
    sampler = Sampler(config)
    texts = [StopText(base.tokenizer.stream(), config.stop) for _ in prompts]
    answers = ["" for _ in prompts]
    open_lines = set(range(len(prompts)))
    cache = base.new_cache()
    step_input = left_pad(base, prompts)
    attend = step_input.attend
    positions = torch.tensor([[int(prompt.positions[-1])] for prompt in prompts])
    for _ in range(config.max_new_tokens):
        tokens = sampler.pick(base.step(step_input, cache)[:, -1])
        for line in sorted(open_lines):
            token = int(tokens[line])
            if token not in base.tokenizer.end_tokens:
                answers[line] += texts[line].push(token)
            if token in base.tokenizer.end_tokens or texts[line].stopped:
                answers[line] += texts[line].end()
                open_lines.discard(line)
        if not open_lines:
            break
        positions = positions + 1
        if attend is not None:
            attend = torch.cat([attend, torch.ones(len(prompts), 1, dtype=torch.bool)], dim=1)
        step_input = StepInput(positions, tokens=tokens[:, None], attend=attend)
    for line in open_lines:
        answers[line] += texts[line].end()
    return answers
