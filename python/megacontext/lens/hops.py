"""Passages that a shown one leads to: the second hop of a question, and those after it.

"In which city was the founder of Moribe Instruments born?" rests on two texts, and the question
shares words with one of them only. What that one says is looked up in turn: the rare words of its
statement that the question does not have. Many sentences hold one of them by chance; a next step is
one that the base finds far likelier behind the statement than by itself (pointwise mutual
information), and than behind the statement without its names, since sentences of one form foretell
each other too. A next step is a statement as well, and leads on.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from megacontext.config import HopConfig
from megacontext.lens.base import History, Passage
from megacontext.lens.block_axis import BlockAxis
from megacontext.lens.counterfactual import AnswerCost, AskedTokens
from megacontext.lens.sentences import Sentence, words_of
from megacontext.lens.statements import Statements
from megacontext.models import FrozenBase, TokenArray

# Tokens of a statement, and of a sentence that is compared; of longer ones, the beginning.
_STATEMENT_TOKENS = 64
_SENTENCE_TOKENS = 32
_LEAD = "Text: "
_WORD = re.compile(r"\w+")


class Hops:
    """Follows names from shown passages to others."""

    def __init__(self, base: FrozenBase, config: HopConfig) -> None:
        self.config = config
        self._tokenizer = base.tokenizer
        before = base.tokenizer.chat_parts().before
        if len(before) < 2:  # no chat template, perhaps no beginning of text either
            before = np.concatenate([before, base.tokenizer.encode(_LEAD)])
        self._before = before
        self._cost = AnswerCost(base, before[:1])

    def statements(self, history: History, axis: BlockAxis) -> Statements:
        """What there is to look up in a history."""
        return Statements(history, axis, self._tokenizer, self.config.postings_max)

    def follow(self, statements: Statements, asked: str, shown: Sequence[Passage]) -> list[Passage]:
        """Passages that `shown`, best first, lead to; nearest first, none of them shown already.

        Cost: for each of at most `looks` statements a search a word, and two or three passes of
        the base over at most `candidates` sentences; nothing where no word leads anywhere.
        """
        question = words_of(asked)
        known = set(question)
        for passage in shown:
            statements.show(passage)
        left = deque((_text(statements.of(passage, question)), passage.score) for passage in shown)
        found: list[Passage] = []
        for _ in range(self.config.looks):
            if not left:
                break
            statement, score = left.popleft()
            names = words_of(statement) - known
            # What is named once is looked up once, so that a chain leads on and never back.
            known |= names
            near = statements.holding(names, question, self.config.candidates)
            score *= self.config.score_share
            for step in self._steps(statement, statements.leading(names), near):
                found.append(statements.around(step, score))
                statements.show(found[-1])
                left.append((step.text, score))
        return found

    def _steps(self, statement: str, names: set[str], near: Sequence[Sentence]) -> list[Sentence]:
        """Those of `near` that the statement, and its names, make far likelier."""
        config, encode = self.config, self._tokenizer.encode
        texts = [encode(f"\n{sentence.text}")[:_SENTENCE_TOKENS] for sentence in near]
        if not texts:
            return []
        behind = self._surprise(statement, texts)
        told = behind <= (1.0 - config.share) * self._surprise("", texts)
        if not told.any():
            return []
        bare = _WORD.sub(lambda word: "" if words_of(word[0]) & names else word[0], statement)
        without = self._surprise(bare, texts)
        told &= behind <= (1.0 - config.names_share) * without
        told &= behind <= without - config.names_nats
        return [sentence for sentence, taken in zip(near, told, strict=True) if taken]

    def _surprise(self, before: str, texts: Sequence[TokenArray]) -> NDArray[np.float64]:
        """-ln p(text | before) of each text, nats, float64 [N]. Reads `before` once."""
        said = self._tokenizer.encode(before)[:_STATEMENT_TOKENS]
        lead = np.concatenate([self._before, said])
        # The lead's last token foretells a text's first one, so it is read with the texts.
        return self._cost.nats(lead[1:-1], [AskedTokens(lead[-1:], text) for text in texts])


def _text(found: Sequence[Sentence]) -> str:
    return "\n".join(sentence.text for sentence in found)
