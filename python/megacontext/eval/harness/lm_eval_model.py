"""`--model megacontext` for lm-evaluation-harness. Importing this file registers the name.

Arguments: model (a name of `megacontext.models.load`), budget_places, dtype, threads.
"""

from __future__ import annotations

from typing import Any

import torch
from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from lm_eval.api.registry import register_model

from megacontext.eval.harness.bounded import BoundedBase
from megacontext.models import load

_DEFAULT_NEW_TOKENS = 64


@register_model("megacontext")
class MegaContextLM(LM):
    """A frozen base that reads contexts of any length within `budget_places`.

    Greedy only: temperature and sampling arguments of a task are not followed. Chat templates are
    applied by the base's own question frame, not by the harness.
    """

    def __init__(
        self,
        model: str = "smollm2",
        budget_places: int = 2048,
        dtype: str = "auto",
        threads: int = 1,
        **_harness: Any,
    ) -> None:
        super().__init__()
        torch.set_num_threads(int(threads))
        base = load(str(model), dtype=dtype)  # type: ignore[arg-type]
        self.bounded = BoundedBase(base, int(budget_places))
        # Requests that went through a memory, of all.
        self.memory_requests = 0
        self.requests = 0

    @property
    def tokenizer_name(self) -> str:
        return self.bounded.base.tokenizer.hash

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        written = []
        for request in requests:
            text, settings = request.args
            until = settings.get("until") or []
            stops = [until] if isinstance(until, str) else list(until)
            count = int(settings.get("max_gen_toks", _DEFAULT_NEW_TOKENS))
            written.append(self.bounded.generate(text, count, stops))
            self._count()
        return written

    def loglikelihood(
        self, requests: list[Instance], disable_tqdm: bool = False
    ) -> list[tuple[float, bool]]:
        found = []
        for request in requests:
            likelihood = self.bounded.likelihood(*request.args)
            found.append((likelihood.log_probability, likelihood.is_greedy))
            self._count()
        return found

    def loglikelihood_rolling(
        self, requests: list[Instance], disable_tqdm: bool = False
    ) -> list[float]:
        return [self.bounded.rolling(request.args[0]) for request in requests]

    def _count(self) -> None:
        self.requests += 1
        self.memory_requests += self.bounded.used_memory
