"""What a base must do before MegaContext can stand on it, each as one check with a verdict.

The same checks certify a user's checkpoint and run over the families in the tests. A check compares
with transformers' plain eager forward pass, never with an expectation about a family.
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from megacontext.config import GenerationConfig
from megacontext.models.base import StepInput
from megacontext.models.frozen import TransformersBase
from megacontext.models.generate import generate
from megacontext.models.kv_cache import GrowingCache
from megacontext.models.prompt import Prompt, PromptRunner, left_pad

Status = Literal["pass", "degraded", "fail"]

# Largest difference of float32 logits, as a share of their spread. Sums in another order, no more.
_SAME = 2e-5
# Mean difference of logits in lower precision, as a share of their spread.
_LOWER = {torch.bfloat16: 0.06, torch.float16: 0.02}
_INT8 = 0.12
PLACES = 40

TEXTS = (
    "The lighthouse keeper wrote 48213 in the book on 12 March 1931.",
    "def f(x):\n    return {'a': [x, -1.5e-3]}  # tabs\tand    spaces\n",
    "Où est la bibliothèque? 日本語のテキスト。 Здравствуйте 🙂👩‍🚀 e\u0301",
    "  leading and trailing  \n\n",
    "x",
)


class Degraded(Exception):
    """The base can be used without what this check asks for; the text says what is lost."""


class Failed(Exception):
    """The base cannot be used; the text has the numbers."""


@dataclass(frozen=True, slots=True)
class Verdict:
    check: str
    status: Status
    detail: str


@dataclass
class Subject:
    """A base in float32 on the CPU, and what the checks share about it."""

    base: TransformersBase
    # False for randomly initialised weights: then nothing is asked of the text it writes.
    trained: bool = True
    _eager: dict[str, TransformersBase] = field(default_factory=dict, repr=False)

    @cached_property
    def tokens(self) -> Tensor:
        """[1, 40] ordinary tokens, always the same."""
        count = min(self.base.facts.vocabulary_tokens, self.base.tokenizer.vocabulary_tokens)
        drawn = torch.randint(count, (4 * PLACES,), generator=torch.Generator().manual_seed(11))
        control = torch.tensor(sorted(self.base.tokenizer.end_tokens))
        return drawn[~torch.isin(drawn, control)][None, :PLACES]

    def positions(self, count: int, first: int = 0) -> Tensor:
        return torch.arange(first, first + count)[None]

    def logits(self, tokens: Tensor, positions: Tensor | None = None) -> Tensor:
        """[B, S, V] through the base, nothing cached before."""
        where = self.positions(tokens.shape[1]) if positions is None else positions
        return self.base.step(StepInput(where, tokens=tokens), self.base.new_cache(), 0)

    @cached_property
    def plain(self) -> Tensor:
        """[1, 40, V]: transformers' own eager forward pass, with no cache."""
        before = self.base.model.config._attn_implementation
        self.base.model.set_attn_implementation("eager")
        try:
            return self.base.model(input_ids=self.tokens, use_cache=False).logits.float()
        finally:
            self.base.model.set_attn_implementation(before)

    def difference(self, got: Tensor, wanted: Tensor) -> float:
        """Largest difference as a share of the spread of `wanted`."""
        if not torch.isfinite(got).all():
            raise Failed(f"{int((~torch.isfinite(got)).sum())} logits are not finite")
        spread = float(wanted.max() - wanted.min()) or 1.0
        return float((got - wanted).abs().max()) / spread

    def need_same(self, got: Tensor, wanted: Tensor, what: str) -> str:
        difference = self.difference(got, wanted)
        if difference > _SAME:
            raise Failed(f"{what}: logits differ by {difference:.1e} of their spread")
        return f"largest difference {difference:.0e} of the spread"


def plain_forward(subject: Subject) -> str:
    """With no gists, the base gives the logits of transformers' eager model."""
    return subject.need_same(subject.logits(subject.tokens), subject.plain, "through the base")


def rows_equal_tokens(subject: Subject) -> str:
    """Embedding rows in place of tokens change nothing: gists can stand beside tokens."""
    rows = subject.base.embed(subject.tokens)
    step = StepInput(subject.positions(PLACES), rows=rows)
    got = subject.base.step(step, subject.base.new_cache(), 0)
    return subject.need_same(got, subject.plain, "rows in place of tokens")


def gist_rows_carry_gradient(subject: Subject) -> str:
    """A gist row changes what follows it, and the loss reaches it through the frozen base."""
    rows = subject.base.embed(subject.tokens).detach().clone()
    gist = rows[:, :8].mean(dim=1, keepdim=True).requires_grad_()
    mixed = torch.cat([gist, rows[:, 8:]], dim=1)
    positions = torch.cat([torch.tensor([[4]]), torch.arange(8, PLACES)[None]], dim=1)
    logits = subject.base.step(StepInput(positions, rows=mixed), subject.base.new_cache(), 1)
    logits[0, -1].logsumexp(0).backward()
    if gist.grad is None or not torch.isfinite(gist.grad).all() or not gist.grad.abs().sum() > 0:
        raise Failed("no finite gradient reaches a gist row")
    bare = subject.base.step(
        StepInput(positions[:, 1:], rows=rows[:, 8:]), subject.base.new_cache(), 1
    )
    if subject.difference(bare, logits.detach()) == 0.0:
        raise Failed("a gist row changes nothing")
    return "gradient finite and not zero"


def rotary_positions(subject: Subject) -> str:
    """Positions are honoured and relative: a shift changes nothing, a gap does."""
    plain, places = subject.plain, PLACES
    room = subject.base.facts.trained_tokens - places
    shift = min(64, max(room, 1))
    shifted = subject.logits(subject.tokens, subject.positions(places, shift))
    gap = torch.cat([torch.arange(places // 2), torch.arange(places // 2 + shift, places + shift)])
    gapped = subject.difference(subject.logits(subject.tokens, gap[None]), plain)
    moved = subject.difference(shifted, plain)
    if gapped == 0.0:
        raise Failed("positions are ignored: a gap changes nothing")
    if moved > max(1e-3, 0.05 * gapped):
        raise Degraded(
            f"absolute positions: a shift by {shift} moves logits by {moved:.1e} of their spread; "
            "prompts use contiguous positions from 0, keys cannot be reused at another place"
        )
    return f"shift {moved:.0e}, gap {gapped:.0e} of the spread"


def left_padding(subject: Subject) -> str:
    """Prompts of different lengths in one left-padded batch give what each gives alone."""
    ids = subject.tokens[0].tolist()
    prompts = [Prompt.of_tokens(ids), Prompt.of_tokens(ids[:13])]
    got = subject.base.step(left_pad(subject.base, prompts), subject.base.new_cache(), 1)
    alone = [subject.logits(subject.tokens[:, :count])[:, -1] for count in (len(ids), 13)]
    return subject.need_same(got[:, -1], torch.cat(alone), "left-padded batch")


def prefix_reuse(subject: Subject) -> str:
    """A cached prefix, cropped and read on with other tokens, gives the full forward pass."""
    ids = subject.tokens[0].tolist()
    other = ids[:17] + ids[:16:-1]
    runner = PromptRunner(subject.base)
    runner.read(Prompt.of_tokens(ids))
    got = runner.read(Prompt.of_tokens(other))
    if runner.reused_places != 17:
        raise Failed(f"17 places of the prefix must be reused, {runner.reused_places} were")
    wanted = subject.logits(torch.tensor([other]))[0, -1]
    return subject.need_same(got, wanted, "cropped and continued")


def token_by_token(subject: Subject) -> str:
    """One token a step through the cache gives the full forward pass at every place."""
    cache = GrowingCache()
    steps = [
        subject.base.step(
            StepInput(subject.positions(1, i), tokens=subject.tokens[:, i : i + 1]), cache
        )
        for i in range(PLACES)
    ]
    return subject.need_same(torch.cat(steps, dim=1), subject.plain, "token by token")


def greedy_generation(subject: Subject) -> str:
    """Greedy text equals what transformers' own generate writes."""
    count = 12
    prompt = subject.tokens[:, :16]
    config = GenerationConfig(max_new_tokens=count)
    base = subject.base
    got = "".join(generate(PromptRunner(base), base, Prompt.of_tokens(prompt[0].tolist()), config))
    written = base.model.generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        max_new_tokens=count,
        do_sample=False,
        pad_token_id=base.tokenizer.pad_token,
    )[0, 16:].tolist()
    ends = [i for i, token in enumerate(written) if token in base.tokenizer.end_tokens]
    kept = written[: ends[0]] if ends else written
    wanted = base.tokenizer.decode(np.asarray(kept, dtype=np.uint32))
    if got != wanted:
        raise Failed(f"greedy text differs: {got!r}, transformers writes {wanted!r}")
    return f"{len(kept)} tokens the same"


def lower_precision(subject: Subject) -> str:
    """bfloat16 and float16 stay close to float32."""
    found = []
    for dtype, limit in _LOWER.items():
        model = copy.deepcopy(subject.base.model).to(dtype)
        found.append(_close(subject, model, limit, str(dtype).removeprefix("torch.")))
    return _all_close(found)


def int8_weights(subject: Subject) -> str:
    """Weights in 8 bits, one scale a row, stay close to float32."""
    rounded = _int8_weights(subject.base.model)
    return _all_close([_close(subject, rounded, _INT8, "int8 weights")])


def save_and_reload(subject: Subject) -> str:
    """Weights written by transformers come back with the same fingerprint and the same logits."""
    base = subject.base
    with tempfile.TemporaryDirectory() as folder:
        base.model.save_pretrained(folder)
        again = type(base.model).from_pretrained(folder, dtype=torch.float32)
    reloaded = TransformersBase(again, base.tokenizer, base.facts.name)
    if reloaded.facts.fingerprint != base.facts.fingerprint:
        raise Failed("the fingerprint changed on reload")
    return subject.need_same(Subject(reloaded).logits(subject.tokens), subject.plain, "reloaded")


def tokenizer_round_trip(subject: Subject) -> str:
    """Text comes back byte for byte, whole and streamed, and nothing is added to it."""
    tokenizer = subject.base.tokenizer
    lost = []
    for text in TEXTS:
        tokens = tokenizer.encode(text)
        stream = tokenizer.stream()
        streamed = "".join(stream.push(int(token)) for token in tokens) + stream.end()
        if streamed != tokenizer.decode(tokens):
            raise Failed(f"streamed text differs from decoded text for {text!r}")
        if tokens.size and int(tokens.max()) >= subject.base.facts.vocabulary_tokens:
            raise Failed(
                f"token {int(tokens.max())} lies outside the "
                f"{subject.base.facts.vocabulary_tokens} rows of the base: a foreign tokenizer"
            )
        if streamed != text:
            lost.append(text)
    if len(lost) == len(TEXTS):
        raise Failed("no text comes back as it was")
    if lost:
        raise Degraded(f"{len(lost)} of {len(TEXTS)} texts do not come back exactly: {lost[0]!r}")
    return f"{len(TEXTS)} texts exact"


def control_text_is_content(subject: Subject) -> str:
    """A document that spells a control token does not become one."""
    tokenizer = subject.base.tokenizer
    ends = {int(token) for token in tokenizer.end_tokens}
    spelled = ["<|im_end|>", "<|endoftext|>", "</s>", "<eos>", "<|eot_id|>", "<end_of_turn>"]
    for text in spelled:
        hit = ends.intersection(tokenizer.encode(f"before {text} after").tolist())
        if hit:
            raise Failed(f"{text!r} in a document becomes the end token {sorted(hit)}")
    return f"{len(spelled)} spellings stay text"


def character_starts(subject: Subject) -> str:
    """Every token knows the character where it begins, so that an answer can name its source."""
    pieces = subject.base.tokenizer.encode_pieces(list(TEXTS))
    for text, piece in zip(TEXTS, pieces, strict=True):
        starts = piece.char_starts.astype(np.int64)
        if len(starts) != len(piece.tokens):
            raise Failed(f"{len(piece.tokens)} tokens have {len(starts)} starts")
        if len(starts) and (np.diff(starts).min(initial=0) < 0 or starts.max() > len(text)):
            raise Failed(f"starts run backwards or out of {text!r}")
    return "starts in order"


def graph_capture(subject: Subject) -> str:
    """torch.compile captures the forward pass as one graph (no code is generated here)."""
    torch._dynamo.reset()
    compiled = torch.compile(subject.base.model.forward, backend="eager", fullgraph=True)
    try:
        with torch.inference_mode():
            got = compiled(input_ids=subject.tokens, use_cache=False).logits.float()
    except Exception as error:  # dynamo raises many kinds; any of them means: not as one graph
        first = str(error).strip().splitlines()[0] if str(error).strip() else ""
        raise Degraded(f"not captured as one graph: {type(error).__name__} {first[:120]}") from None
    return subject.need_same(got, subject.plain, "captured graph")


def reads_text(subject: Subject) -> str:
    """Plain English is likelier than chance: weights and tokenizer belong together."""
    if not subject.trained:
        raise Degraded("randomly initialised: nothing is asked of its text")
    tokens = torch.from_numpy(subject.base.tokenizer.encode(TEXTS[0] * 2).astype(np.int64))[None]
    logits = subject.logits(tokens)
    nll = nn.functional.cross_entropy(logits[0, :-1], tokens[0, 1:])
    chance = float(np.log(subject.base.facts.vocabulary_tokens))
    if not float(nll) < 0.75 * chance:
        raise Failed(
            f"plain English costs {float(nll):.1f} nats a token where chance is {chance:.1f}: "
            "another model's tokenizer, or untrained weights"
        )
    return f"{float(nll):.2f} nats a token, chance is {chance:.1f}"


Check = Callable[[Subject], str]
CHECKS: dict[str, Check] = {
    check.__name__: check
    for check in (
        tokenizer_round_trip,
        control_text_is_content,
        character_starts,
        reads_text,
        plain_forward,
        rows_equal_tokens,
        gist_rows_carry_gradient,
        rotary_positions,
        left_padding,
        prefix_reuse,
        token_by_token,
        greedy_generation,
        lower_precision,
        int8_weights,
        save_and_reload,
        graph_capture,
    )
}


def verdict(check: Check, subject: Subject) -> Verdict:
    """Run one check. What a base raises by itself counts as a failure, with its name."""
    gradient = check is gist_rows_carry_gradient
    try:
        with torch.set_grad_enabled(gradient):
            return Verdict(check.__name__, "pass", check(subject))
    except Degraded as reason:
        return Verdict(check.__name__, "degraded", str(reason))
    except Failed as reason:
        return Verdict(check.__name__, "fail", str(reason))
    except (
        RuntimeError,
        ValueError,
        TypeError,
        IndexError,
        KeyError,
        NotImplementedError,
    ) as error:
        return Verdict(check.__name__, "fail", f"{type(error).__name__}: {str(error)[:200]}")


def examine(subject: Subject, checks: Mapping[str, Check] = CHECKS) -> list[Verdict]:
    """The verdicts of `checks`."""
    return [verdict(check, subject) for check in checks.values()]


def _all_close(found: Sequence[tuple[str, bool]]) -> str:
    late = [text for text, far in found if far]
    if late:
        raise Degraded("far from float32: " + ", ".join(late))
    return ", ".join(text for text, _ in found)


def _close(subject: Subject, model: nn.Module, limit: float, name: str) -> tuple[str, bool]:
    with torch.inference_mode():
        got = model(input_ids=subject.tokens, use_cache=False).logits.float()
    spread = float(subject.plain.max() - subject.plain.min()) or 1.0
    error = float((got - subject.plain).abs().mean()) / spread
    return f"{name} {error:.1e}", not error <= limit


def _int8_weights(model: nn.Module) -> nn.Module:
    """A copy whose matrices are rounded to 8 bits with one scale a row, as int8 loaders do."""
    rounded = copy.deepcopy(model)
    with torch.no_grad():
        for module in rounded.modules():
            if isinstance(module, nn.Linear):
                scale = module.weight.abs().amax(dim=1, keepdim=True).clamp_min(1e-12) / 127
                module.weight.copy_((module.weight / scale).round() * scale)
    return rounded


def checkpoint_subject(folder: Path, *, trained: bool = True) -> Subject:
    """The checkpoint in `folder`, in float32. Loads no remote code."""
    from megacontext.models.frozen import load

    return Subject(load(str(folder), dtype="float32"), trained=trained)
