"""Second look at the best passages: how well does each one explain the question?

The frozen base itself reads every candidate and says how likely the question is after it (query
likelihood, Ponte & Croft 1998, with a language model as in Sachan et al. 2022). Passages that share
words with the question but not its subject fall back. Cost: the candidates' tokens in one batch,
less than one prompt of the usual budget.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from megacontext.models import FrozenBase, Prompt, TokenArray, left_pad

_LEAD = "Text: "
_ASK = "\n\nQuestion: "
# Of a long question, its beginning; the logits of every token take 200 KB a passage.
_QUESTION_TOKENS_MAX = 64


class QuestionReader:
    """Scores passages by the likelihood of a question behind them."""

    def __init__(self, base: FrozenBase) -> None:
        self._base = base
        tokenizer = base.tokenizer
        self._before = np.concatenate([tokenizer.chat_parts().before, tokenizer.encode(_LEAD)])
        self._ask = tokenizer.encode(_ASK)

    @torch.inference_mode()
    def log_likelihood(self, question: str, passages: Sequence[TokenArray]) -> NDArray[np.float32]:
        """ln p(token | passage, question before it) float32 [N, T], T tokens of the question."""
        asked = self._base.tokenizer.encode(question)[:_QUESTION_TOKENS_MAX]
        prompts = [
            Prompt.of_tokens(np.concatenate([self._before, passage, self._ask, asked]))
            for passage in passages
        ]
        keep = len(asked) + 1
        step_input = left_pad(self._base, prompts)
        logits = self._base.step(step_input, self._base.new_cache(), keep_logits=keep)
        chosen = torch.from_numpy(asked.astype(np.int64)).to(logits.device)
        likelihood = torch.log_softmax(logits[:, :-1], dim=-1)
        picked = likelihood.gather(-1, chosen.expand(len(passages), -1)[..., None])
        return picked.squeeze(-1).float().cpu().numpy()
