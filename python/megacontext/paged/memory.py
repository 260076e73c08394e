"""The memory of one attached model: its streams, their pages, and what each step reads."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from megacontext.config import K
from megacontext.models.kv_cache import CACHE_ARGUMENT
from megacontext.paged.aside import Before
from megacontext.paged.cache import PagedCache
from megacontext.paged.config import PagedConfig
from megacontext.paged.focus import ActionKind, FocusAction, FocusLog, StepFocus
from megacontext.paged.gist_pages import gist_pages
from megacontext.paged.page_store import PageLayout, PageStore
from megacontext.paged.pool import PagePool
from megacontext.paged.residents import LostPages, PageKey, PageTraffic, Residents, log
from megacontext.paged.rotary import RotaryTakeover
from megacontext.paged.step import Focus, Step, make_step
from megacontext.paged.stream import Stream
from megacontext.paged.text_focus import TextFocus
from megacontext.paged.tiling import GistPage
from megacontext_ext.errors import Corruption, InvalidArgument
from megacontext_ext.ops.focused_attention import AttentionRules, focused_attention, merge_attention


@dataclass(frozen=True)
class ReadProgress:
    """Told after every step of `read`: tokens done and to do in this call."""

    done: int
    total: int


class PagedMemory:
    """Memories of one attached model: one stream for each sequence of the batch.

    Not thread-safe: it belongs to the thread that runs the model.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        config: PagedConfig,
        layout: PageLayout,
        store: PageStore | None = None,
        text: TextFocus | None = None,
    ) -> None:
        shape = model.config.get_text_config()
        self.layer_count: int = layout.layers
        self._text = text
        self.config = config
        self.cache = PagedCache(self.layer_count)
        self.streams: list[Stream] = []
        self._model = model
        self._body: nn.Module = model.base_model  # without the output layer
        self._layout = layout
        self._store = store
        self._trained_tokens: int = shape.max_position_embeddings
        self._residents: Residents | None = None
        self._step: Step | None = None
        self._new_tokens: list[int] = []
        self._real: Tensor | None = None
        self._ids: Tensor | None = None
        self._before: Before | None = None  # an aside, while one is open
        kinds = getattr(shape, "layer_types", None) or ["full_attention"] * self.layer_count
        self._rotary = RotaryTakeover(model, kinds)
        self._gists = gist_pages(model, config, layout, self._rotary.layers, kinds, store)
        self._log = FocusLog()
        self._chooser: StepFocus | None = None
        if config.focus == "step":
            folder = None if store is None else Path(store.store.path)
            self._chooser = StepFocus(layout, config, self._rotary.layers, kinds, folder)
            if store is not None:
                store.use_keys(self._chooser.layers)
        self._watch = model.get_input_embeddings().register_forward_pre_hook(self._note_ids)

    @property
    def token_count(self) -> int:
        """Tokens of the first stream."""
        return self.streams[0].token_count if self.streams else 0

    @property
    def resident_bytes(self) -> int:
        """Bytes of the pages in use."""
        return 0 if self._residents is None else self.pool.page_count * self.pool.page_bytes

    @property
    def traffic(self) -> PageTraffic:
        """Pages brought in from the store and evicted, since the memory was attached."""
        return PageTraffic() if self._residents is None else self._residents.traffic

    @property
    def pool(self) -> PagePool:
        return self._the_residents().pool

    @torch.inference_mode()
    def read(
        self,
        tokens: Tensor,
        mask: Tensor | None = None,
        *,
        progress: Callable[[ReadProgress], None] | None = None,
        resume: bool = False,
    ) -> None:
        """Reads tokens [B, T] or [T] into the memory, in steps; computes no logits.

        An interruption between two steps loses nothing: what was read is part of the memory.

        Args:
            mask: [B, T] 0 at left padding.
            progress: told after every step.
            resume: `tokens` [T] begin with those that the memory has; only the rest is read.

        Raises:
            InvalidArgument: resume, and the memory's tokens are not the beginning of `tokens`.

        Cost: one pass of the model over T tokens; each attends to at most the budget.
        """
        tokens = tokens.reshape(1, -1) if tokens.dim() == 1 else tokens
        if resume:
            tokens = tokens[:, self._known_tokens(tokens) :]
        total = tokens.shape[1]
        for start in range(0, total, self.config.read_tokens):
            end = min(start + self.config.read_tokens, total)
            self.cache.begin_call()
            self._body(
                tokens[:, start:end],
                attention_mask=None if mask is None else mask[:, start:end],
                **{CACHE_ARGUMENT: self.cache},
                use_cache=True,
            )
            if progress is not None:
                progress(ReadProgress(end, total))
        self.cache.begin_call()

    def forget(self, count: int, stream: int = 0) -> None:
        """Takes back the newest `count` tokens of a stream, as if they had not been read.

        Raises:
            InvalidArgument: some of them are in a complete block, which may be written already, or
                were there before the aside that is open.
        """
        chosen = self.streams[stream]
        least = max(chosen.stored_blocks, chosen.gisted_blocks) * K
        if self._before is not None:
            least = max(least, self._before.tokens(stream))
        most = chosen.token_count - least
        if not 0 <= count <= most:
            raise InvalidArgument(f"[paged] forget takes 0 to {most} tokens here, got {count}")
        chosen.token_count -= count
        del chosen.tokens[chosen.token_count :]

    @contextmanager
    def aside(self) -> Iterator[None]:
        """What is read and generated inside is taken back at the end, and so are focus, pins and
        exclusions: many questions can be asked of one history, and none becomes part of it.

        Nothing of it is written. Its blocks stay in memory until the end, beside the budget.

        Raises:
            InvalidArgument: inside another aside, or for `commit` inside.

        Cost: no model step.
        """
        if self._before is not None:
            raise InvalidArgument("[paged] an aside is open already")
        self._before = before = Before.of(self.streams, self._chooser, self._gists)
        try:
            yield
        finally:
            self._before = self._step = None
            before.restore(self.streams, self._residents, self._chooser)
            self._gists = before.gists
            self.cache.begin_call()

    def focus(self, blocks: list[int], stream: int = 0) -> None:
        """Sets which blocks are wanted, best first. Costs no model step: only plans change.

        Raises:
            InvalidArgument: a block that the stream does not have.
        """
        self._check_blocks(blocks, stream)
        chosen = self.streams[stream]
        before, chosen.wanted = chosen.wanted, list(blocks)
        self._log.changes(stream, chosen, (before, chosen.wanted), {}, "caller")

    def pin(self, blocks: list[int], stream: int = 0) -> None:
        """Keeps blocks in focus whatever else is wanted."""
        self._check_blocks(blocks, stream)
        self.streams[stream].pinned |= set(blocks)
        self._note("pin", blocks, stream, "caller")

    def exclude(self, blocks: list[int], stream: int = 0) -> None:
        """Keeps blocks out of focus. They stay in memory."""
        self._check_blocks(blocks, stream)
        self.streams[stream].excluded |= set(blocks)
        self._note("exclude", blocks, stream, "caller")

    def focus_on(self, question: str, stream: int = 0) -> list[int]:
        """Wants the blocks that a lens finds for `question` in the stream's text, best first.

        Returns:
            The wanted blocks.

        Raises:
            InvalidArgument: the memory has no store or no tokenizer.

        Cost: no model step; a search a word over the store's index.
        """
        if self._store is None or self._text is None:
            raise InvalidArgument(
                "[paged] focus_on needs attach(model, store=PATH, tokenizer=TOKENIZER)"
            )
        self._store.drain()
        chosen = self.streams[stream]
        count = self.config.limits.budget_places // K
        scores = self._text.score(question, self._store.partition(stream), count)
        before, chosen.wanted = chosen.wanted, list(scores)
        why = f"question: {question}"
        self._log.changes(stream, chosen, (before, chosen.wanted), scores, why)
        return chosen.wanted

    @property
    def actions(self) -> list[FocusAction]:
        """What came into focus and left it, and why: the newest 4,096, oldest first."""
        return list(self._log.actions)

    def in_focus(self, stream: int = 0) -> list[int]:
        """Blocks that the next single token will read."""
        return self.streams[stream].in_focus(self.config.shares, 1)

    def commit(self) -> None:
        """Everything read so far is in the store, durable, on return.

        Raises:
            InvalidArgument: the memory has no store, or an aside is open.
            StoreFailed: the store takes no more.
        """
        if self._before is not None:
            raise InvalidArgument("[paged] an aside is open, of which nothing is kept")
        if self._store is None:
            raise InvalidArgument("[paged] commit needs a store: attach(model, store=PATH)")
        for number, stream in enumerate(self.streams):
            if self._gists is not None:
                self._write_gists(number, 0)
            start = stream.token_count // K * K
            page = None
            if start < stream.token_count:
                page = self.pool.read_pages([stream.pages[start // K]])[0]
            tail = np.array(stream.tokens[start : stream.token_count], np.uint32)
            self._store.write_tail(number, tail, stream.token_count, page)
            if self._gists is not None:
                self._gists.save(number, stream)
        self._store.commit()

    def begin_step(self, real: Tensor | None, shape: tuple[int, int]) -> None:
        """Called by the first layer: pages and a plan for the step's tokens."""
        counts = [shape[1]] * shape[0] if real is None else real.sum(1).tolist()
        self._require_streams(len(counts))
        if self._store is not None and self._ids is None:
            raise InvalidArgument("[paged] a memory with a store must be given token ids")
        for stream, count in zip(self.streams, counts, strict=True):
            if count:
                stream.required(self.config.shares, count)  # refuses before anything is taken
        if self._gists is not None and self._before is None:
            own = sum(len(s.own_blocks(n)) for s, n in zip(self.streams, counts, strict=True))
            for number in range(len(self.streams)):
                self._write_gists(number, own)
        focuses = self._bring_in(counts)
        self._new_tokens, self._real = counts, real
        device, gists = self.pool.keys[0].device, self._gists
        shown = focuses if gists is None else gists.with_blocks(focuses)
        self._step = make_step(self.streams, counts, shown, self._trained_tokens, device)
        if gists is not None:
            gists.prepare(self.streams, counts, focuses, self.pool, self._step)

    def attend(
        self, layer: int, qkv: tuple[Tensor, Tensor, Tensor], rules: dict[str, Any]
    ) -> Tensor:
        """Attention of one layer; q [T, Hq, E], k, v [T, Hkv, E] un-rotated. Returns [T, Hq, E]."""
        step, pool = self._step, self.pool
        assert step is not None, "begin_step runs in layer 0"
        q, k, v = qkv
        if self._chooser is not None:
            self._chooser.hear(layer, q, self._new_tokens)
        pool.write(layer, step.rows, k.transpose(0, 1), v.transpose(0, 1))
        out, lse = focused_attention(
            q,
            pool.keys[layer],
            pool.values[layer],
            step.table,
            step.plan(rules["window"]),
            AttentionRules(
                scale=rules["scale"],
                softcap=rules["softcap"],
                sink=None if rules["sink"] is None else rules["sink"].float(),
                rope=step.rope(self._rotary.layers[layer]),
            ),
        )
        if self._gists is None:
            return out
        self._gists.hear(layer, q, self.streams, self._new_tokens)
        beyond = self._gists.attend(layer, q, rules)
        if beyond is None:
            return out
        merged, _ = merge_attention(torch.stack((out, beyond[0])), torch.stack((lse, beyond[1])))
        return merged

    def end_step(self) -> None:
        """Called by the last layer: from here on the tokens are part of the memory."""
        for stream, count in zip(self.streams, self._new_tokens, strict=True):
            stream.token_count += count
        self._keep_tokens()
        self._step = None
        for number in range(len(self.streams)):
            self._complete_blocks(number)
        if self._chooser is not None:
            self._refocus(self._chooser)

    def load(self) -> None:
        """Goes on where the store's streams end; called by `attach`.

        Tokens whose keys and values a crash took are read again.
        """
        assert self._store is not None
        count = self._store.stream_count
        if not count:
            return
        self.streams = [Stream() for _ in range(count)]
        overhang = []
        for number, stream in enumerate(self.streams):
            held = self._store.load_stream(number)
            tokens = array("I", held.tokens.tobytes())
            stream.stored_blocks, stream.gisted_blocks = held.blocks, held.gisted_blocks
            stream.token_count = len(tokens) if held.tail is not None else held.blocks * K
            stream.tokens = tokens[: stream.token_count]
            if self._gists is not None and not self._gists.continues(stream):
                log.warning("[paged] stream %d was read without these gists: none are made", number)
                self._gists = None
            if self._gists is not None and not self._gists.load(number, stream):
                # Their keys are there, the queries that choose kept rows are not.
                stream.stored_blocks = stream.gisted_blocks
                stream.token_count = stream.gisted_blocks * K
                stream.tokens = tokens[: stream.token_count]
            elif held.tail is not None:
                self._the_residents().put(PageKey(number, held.blocks), held.tail)
            if self._chooser is not None:
                self._load_keys(self._chooser, number)
            overhang.append(tokens[stream.token_count :])
        longest = max(map(len, overhang))
        if longest:
            log.warning("[paged] reading %d tokens again that were not committed", longest)
            ids = torch.zeros(count, longest, dtype=torch.long, device=self._model.device)
            mask = torch.zeros_like(ids)
            for number, rest in enumerate(overhang):
                if rest:
                    ids[number, -len(rest) :] = torch.tensor(rest.tolist())
                    mask[number, -len(rest) :] = 1
            self.read(ids, mask)

    def _load_keys(self, chooser: StepFocus, number: int) -> None:
        """Mean keys of a stream's blocks; where the store has none, from the pages once."""
        store, stream = self._store, self.streams[number]
        assert store is not None
        assert store.keys is not None
        for means in store.load_keys(number, stream.stored_blocks):
            chooser.take(number, means)
        for block in range(chooser.block_count(number), stream.stored_blocks):
            means = chooser.add(number, store.read_block(number, block)[None])
            store.write_side(store.keys, number, block, means)

    def detach(self) -> None:
        """Gives the model its own rotary positions back. Called by `attach`."""
        if self._residents is not None:
            self._residents.close()
        self._watch.remove()
        self._rotary.restore()

    def _require_streams(self, count: int) -> None:
        if not self.streams:
            self.streams = [Stream() for _ in range(count)]
            if self._store is not None:
                for number in range(count):
                    self._store.add_stream(number)
        if count != len(self.streams):
            raise InvalidArgument(
                f"[paged] the memory has {len(self.streams)} streams, the batch has {count}"
            )

    def _bring_in(self, counts: list[int]) -> list[Focus]:
        """What each stream reads in a step of `counts` new tokens; all of it resident."""
        residents, limits = self._the_residents(), self.config.shares
        while True:
            focuses: list[Focus] = []
            needed: list[PageKey] = []
            fresh: list[PageKey] = []
            for number, (stream, count) in enumerate(zip(self.streams, counts, strict=True)):
                focus = Focus(*stream.focus(limits, count)) if count else Focus([], [])
                focuses.append(focus)
                for block in focus.blocks:
                    is_new = block * K >= stream.token_count
                    (fresh if is_new else needed).append(PageKey(number, block))
                needed += [PageKey(number, page) for page in focus.gists]
            try:
                residents.bring(needed, fresh)
            except LostPages as lost:
                self._lose(lost)
                continue
            return focuses

    def _lose(self, lost: LostPages) -> None:
        """Takes damaged pages out of focus for good, or stops, as `on_corrupt` says."""
        for key, error in lost.errors.items():
            stream, what = self.streams[key.stream], key.what
            if isinstance(what, GistPage):
                blocks = stream.gist_blocks(what)
                name = f"gist page {what.number} of LOD {what.lod}"
            else:
                blocks, name = range(what, what + 1), f"tokens page {what}"
            span = f"tokens [{blocks[0] * K}, {(blocks[-1] + 1) * K})"
            told = f"[paged] {name} of stream {key.stream}, {span}"
            if self.config.on_corrupt == "raise":
                raise Corruption(
                    f"{told}, cannot be read back (on_corrupt='skip' goes on without it): {error}"
                ) from error
            log.warning("%s, is damaged and left out: %s", told, error)
            if isinstance(what, GistPage):
                stream.lost_gists.add(what)
                continue
            stream.lost.add(what)
            stream.excluded.add(what)
            stream.pinned.discard(what)
            self._note("lose", [what], key.stream, str(error))

    def _write_gists(self, number: int, own: int) -> None:
        """Gist pages of what became complete; `own` pages stay free for the step's own tokens."""
        assert self._gists is not None
        stream, residents = self.streams[number], self._the_residents()
        if not self._gists.write(number, stream, residents, own):
            self._gists = None
            return
        while True:
            try:
                self._gists.condense(number, stream, residents, own)
                return
            except LostPages as lost:
                self._lose(lost)

    def _complete_blocks(self, number: int) -> None:
        """Queues the blocks that became complete, rounded first where the store rounds, and keeps
        their mean keys."""
        store, stream = self._store, self.streams[number]
        first, end = stream.stored_blocks, stream.token_count // K
        if self._before is not None or first == end or (store is None and self._chooser is None):
            return
        pages = [stream.pages[block] for block in range(first, end)]
        content = self.pool.read_pages(pages)
        if store is not None:
            codec = store.pages.codec
            rows = codec.encode(content)
            if not codec.exact_for(self._layout.dtype):
                self.pool.write_pages(pages, codec.decode(rows, self._layout.dtype))
            tokens = np.array(stream.tokens[first * K : end * K], np.uint32)
            store.write_blocks(number, first, tokens, rows)
        if self._chooser is not None:
            means = self._chooser.add(number, content)
            if store is not None and store.keys is not None:
                store.write_side(store.keys, number, first, means)
        stream.stored_blocks = end

    def _refocus(self, chooser: StepFocus) -> None:
        """Lets the queries of the step just read choose, where it is time."""
        for number, stream in enumerate(self.streams):
            scores = chooser.choose(number, stream)
            if scores is None:
                continue
            room = self.config.choice_blocks
            before, stream.wanted = stream.wanted[:room], list(scores)
            self._log.changes(number, stream, (before, stream.wanted[:room]), scores, "step")
            ahead = [PageKey(number, block) for block in stream.wanted]
            self._the_residents().read_ahead(ahead)

    def _note(self, kind: ActionKind, blocks: list[int], stream: int, reason: str) -> None:
        for block in blocks:
            self._log.note(stream, self.streams[stream], kind, block, reason)

    def _note_ids(self, module: nn.Module, inputs: tuple[Any, ...]) -> None:
        self._ids = inputs[0].detach() if inputs else None

    def _keep_tokens(self) -> None:
        """Remembers which tokens were read. Rows given as embeddings end that, and gists."""
        if self._ids is None:
            self._gists = None
            return
        for number, stream in enumerate(self.streams):
            ids = self._ids[number]
            stream.tokens.extend((ids if self._real is None else ids[self._real[number]]).tolist())
        self._ids = None

    def _known_tokens(self, tokens: Tensor) -> int:
        """How many of `tokens` [1, T] the memory has already; they must be the same."""
        known = self.streams[0].tokens if self.streams else array("I")
        given = np.asarray(tokens[0].cpu(), np.uint32)
        least = min(len(known), len(given))
        same = np.frombuffer(known, np.uint32)[:least] == given[:least] if least else np.ones(0)
        if len(tokens) != 1 or len(known) > len(given) or not same.all():
            raise InvalidArgument(
                f"[paged] tokens must begin with the {len(known)} that the memory has, "
                f"got {len(given)} of which the first {int(np.argmin(same)) if least else 0} agree"
            )
        return len(known)

    def _the_residents(self) -> Residents:
        if self._residents is None:
            parameter = next(self._model.parameters())
            shape = (self._layout.kv_heads, self._layout.head_width)
            limit = self.config.pages_max
            if self._store is not None and not limit:
                budget = self.config.limits.budget_places // K
                limit = 4 * budget * max(1, len(self.streams))
            pool = PagePool(self.layer_count, shape, parameter.detach(), limit)
            self._residents = Residents(self.streams, pool, self._store)
        return self._residents

    def _check_blocks(self, blocks: list[int], stream: int) -> None:
        if not 0 <= stream < len(self.streams):
            raise InvalidArgument(f"[paged] stream must be below {len(self.streams)}, got {stream}")
        count = -(-self.streams[stream].token_count // K)
        wrong = [b for b in blocks if not 0 <= b < count]
        if wrong:
            raise InvalidArgument(f"[paged] blocks must be in [0, {count}), got {wrong[0]}")
