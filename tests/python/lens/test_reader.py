"""The reader's numbers are the plain model's log likelihoods."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from megacontext.lens import QuestionReader


def test_likelihood_is_that_of_the_plain_model(tiny_base):
    reader, tokenizer = QuestionReader(tiny_base), tiny_base.tokenizer
    passages = [
        tokenizer.encode(text) for text in ("The keeper of Skagen.", "A log", "Numbers 48213")
    ]
    question = tokenizer.encode("Who is the keeper?")
    got = reader.log_likelihood("Who is the keeper?", passages)
    for line, passage in enumerate(passages):
        parts = [tokenizer.chat_parts().before, tokenizer.encode("Text: "), passage]
        lead = np.concatenate([*parts, tokenizer.encode("\n\nQuestion: ")]).astype(np.int64)
        whole = torch.from_numpy(np.concatenate([lead, question.astype(np.int64)]))
        with torch.inference_mode():
            logits = tiny_base.model(whole[None]).logits[0]
        chosen = torch.log_softmax(logits[len(lead) - 1 : -1].float(), -1)
        expected = chosen.gather(-1, whole[len(lead) :, None])[:, 0]
        assert got[line] == pytest.approx(expected.numpy(), abs=2e-3)
