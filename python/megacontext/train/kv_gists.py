"""Trains KV gists through a frozen base, in slices that chain into one run.

    python -m megacontext.train.kv_gists --config configs/train/kv_gists_smollm2.yaml \
        --base DIR --shards DIR --out DIR --minutes 9

A step: read a batch of windows once with everything raw (teacher and cache), then for each of a
few row counts compute the span's rows, read the suffix through them, and distil.
"""

from __future__ import annotations

import argparse
import json
import math
import shlex
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from megacontext.eval.held_out import HeldOutSpan, held_out_spans
from megacontext.gists.adapter import GistAdapter
from megacontext.gists.base import FrozenBase, KeyValues, base_from_folder, choose_attention
from megacontext.gists.distill import Distilled, distill, slice_terms
from megacontext.gists.layout import K, SpanLayout
from megacontext.gists.rows import assemble, compute_rows
from megacontext.train.checkpoint import TrainingFailed, read_checkpoint, write_checkpoint
from megacontext.train.config import GistTraining, read_config
from megacontext.train.tokens import TokenWindows, open_windows

# ids [B, T] of windows -> normed hidden states [B, >= suffix, width].
Reader = Callable[[Tensor], Tensor]


def draw_layouts(config: GistTraining, step: int) -> list[SpanLayout]:
    """The step's students: one cut of the window, several row counts. Depends on seed, step."""
    rng = np.random.default_rng((config.seed, 1, step))
    weights = np.array([choice.weight for choice in config.layouts])
    cut = config.layouts[rng.choice(len(weights), p=weights / weights.sum())]
    students = []
    for rows in rng.permutation(config.rows)[: config.students]:
        raw: tuple[int, ...] = ()
        if cut.lod == 1 and rng.random() < config.raw_share:
            blocks = cut.span // K
            raw = tuple(
                sorted(rng.permutation(blocks)[: rng.integers(1, blocks // 2 + 1)].tolist())
            )
        lookback = None
        if cut.lod == 1 and rng.random() < config.lookback_share:
            lookback = int(rng.choice([0, 64, 256]))
        students.append(
            SpanLayout(cut.prefix, cut.span, cut.suffix, int(rows), cut.lod, raw, lookback)
        )
    return students


def read_suffix(
    base: FrozenBase, adapter: GistAdapter, layout: SpanLayout, ids: Tensor, cache: KeyValues
) -> Tensor:
    """Hidden states [B, suffix, width] of the suffix read through the layout's rows.

    ids: [B, >= layout.tokens]; cache: the rotated keys and values of at least prefix and span.
    """
    known = layout.prefix + layout.span
    tokens = cache.narrow(0, known)
    rows = compute_rows(base, adapter, layout.row_plan(), ids[:, :known], tokens).placed(base)
    past = assemble(tokens, rows, layout.pieces())
    suffix = ids[:, known : layout.tokens]
    return base.read(suffix, known, past, keep=False)[0]


def learning_rate(config: GistTraining, progress: float) -> float:
    """Linear warm-up, then cosine to final_lr; progress is the share of the budget used."""
    if progress < config.warmup:
        return config.lr * max(progress / config.warmup, 0.02)
    left = 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
    return config.lr * (config.final_lr + (1 - config.final_lr) * left)


class GistTrainer:
    """A run: adapter, optimizer, average, place in the data. One thread."""

    def __init__(
        self,
        config: GistTraining,
        base: FrozenBase,
        windows: TokenWindows,
        out: Path,
        validation: list[HeldOutSpan] | None = None,
    ) -> None:
        self.config, self.base, self.windows, self.out = config, base, windows, out
        self.device = base.device
        self.adapter = GistAdapter(base.shape, config.ranks, config.seed)
        self.adapter.to(self.device)
        self.average = {n: p.detach().clone() for n, p in self.adapter.named_parameters()}
        self.optimizer = torch.optim.AdamW(
            self.adapter.parameters(),
            lr=config.lr,
            betas=config.betas,
            weight_decay=config.weight_decay,
        )
        self.step, self.elapsed_s, self.data_index, self.batch = 0, 0.0, 0, config.batch
        self.terms = slice_terms
        self.tokens = torch.from_numpy(windows.tokens.astype(np.int32)).to(self.device)
        self.curve: list[dict[str, Any]] = []
        self.validation = ValidationSet(base, validation, self.device) if validation else None
        out.mkdir(parents=True, exist_ok=True)

    # --- state -----------------------------------------------------------------------------

    def save(self) -> None:
        state = {
            "adapter": {n: p.detach().cpu() for n, p in self.adapter.named_parameters()},
            "average": {n: p.cpu() for n, p in self.average.items()},
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
            "elapsed_s": self.elapsed_s,
            "data_index": self.data_index,
            "data_signature": self.windows.signature,
            "batch": self.batch,
            "base": self.base.fingerprint(),
            "curve": self.curve,
        }
        write_checkpoint(self.out / "checkpoint.pt", state)

    def resume(self) -> bool:
        """Continues from the out folder's checkpoint, if there is one.

        Raises:
            TrainingFailed: the checkpoint belongs to another base.
        """
        path = self.out / "checkpoint.pt"
        if not path.exists():
            return False
        state = read_checkpoint(path)
        if state["base"] != self.base.fingerprint():
            raise TrainingFailed(
                f"{path}: base: expected {self.base.fingerprint()}, got {state['base']}"
            )
        with torch.no_grad():
            for name, parameter in self.adapter.named_parameters():
                parameter.copy_(state["adapter"][name])
                self.average[name].copy_(state["average"][name])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.elapsed_s = state["step"], state["elapsed_s"]
        self.batch, self.curve = state["batch"], state["curve"]
        same = state["data_signature"] == self.windows.signature
        self.data_index = state["data_index"] if same else 0
        if not same:
            self.note({"note": "other shards than before: reading them from their beginning"})
        return True

    def start_from(self, adapter: GistAdapter) -> None:
        """Takes the parameters of a trained adapter; optimizer and schedule start afresh."""
        with torch.no_grad():
            for name, parameter in adapter.named_parameters():
                own = dict(self.adapter.named_parameters())[name]
                own.copy_(parameter)
                self.average[name].copy_(parameter)

    # --- one step --------------------------------------------------------------------------

    def ids_at(self, index: int, width: int) -> Tensor:
        starts = torch.from_numpy(self.windows.starts(index, self.batch)).to(self.device)
        return self.tokens[starts[:, None] + torch.arange(width, device=self.device)].long()

    def losses(self, ids: Tensor, layouts: list[SpanLayout]) -> list[tuple[SpanLayout, Distilled]]:
        """Each student's loss, its gradient already added to the adapter's."""
        tokens, suffix = layouts[0].tokens, layouts[0].suffix
        with torch.no_grad():
            teacher, cache = self.base.read(ids[:, :tokens])
        wanted = teacher[:, -suffix:].flatten(0, 1)
        targets = ids[:, tokens - suffix + 1 : tokens + 1].flatten()
        found = []
        for layout in layouts:
            hidden = read_suffix(self.base, self.adapter, layout, ids, cache)
            part = distill(
                hidden.flatten(0, 1),
                self.base.head,
                wanted,
                targets,
                self.config.hard_weight,
                self.terms,
            )
            (part.loss / len(layouts)).backward()
            found.append((layout, part))
        return found

    def train_step(self, progress: float) -> dict[str, Any]:
        """One update; returns what happened.

        Raises:
            TrainingFailed: ten steps in a row without a finite gradient.
        """
        layouts = draw_layouts(self.config, self.step)
        ids = self.ids_at(self.data_index, layouts[0].tokens + 1)
        self.optimizer.zero_grad(set_to_none=True)
        parts = self.losses(ids, layouts)
        norm = torch.nn.utils.clip_grad_norm_(self.adapter.parameters(), self.config.clip)
        rate = learning_rate(self.config, progress)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        finite = bool(torch.isfinite(norm))
        if finite:
            self.optimizer.step()
            self._update_average()
            self._bad_steps = 0
        else:
            self._bad_steps = getattr(self, "_bad_steps", 0) + 1
            if self._bad_steps >= 10:
                raise TrainingFailed(f"[train_step] gradient not finite 10 times, step {self.step}")
        self.step += 1
        self.data_index += self.batch
        return {
            "step": self.step,
            "lr": rate,
            "norm": float(norm),
            "skipped": not finite,
            "tokens": ids.numel(),
            "parts": [
                (f"lod{x.lod}x{x.rows}", x.prefix, x.span, float(p.divergence), float(p.surprise))
                for x, p in parts
            ],
        }

    @torch.no_grad()
    def _update_average(self) -> None:
        decay = min(self.config.ema, (1 + self.step) / (10 + self.step))
        parameters = [p.detach() for p in self.adapter.parameters()]
        torch._foreach_lerp_(list(self.average.values()), parameters, 1 - decay)

    # --- the run ---------------------------------------------------------------------------

    def note(self, record: dict[str, Any]) -> None:
        with (self.out / "curve.jsonl").open("a") as file:
            file.write(json.dumps(record) + "\n")

    def averaged(self) -> GistAdapter:
        """An adapter with the averaged parameters."""
        adapter = GistAdapter(self.base.shape, self.config.ranks)
        adapter.load_state_dict(self.average)
        return adapter.to(self.device)

    def validate(self) -> dict[str, float]:
        """Gap recovery by row count on the validation spans, averaged parameters."""
        if self.validation is None:
            return {}
        found = self.validation.recovery(self.averaged(), self.config.rows, self.batch)
        record = {"step": self.step, "elapsed_s": round(self.elapsed_s, 1), "recovery": found}
        self.curve.append(record)
        self.note(record)
        shown = "  ".join(f"{name} {value:+.3f}" for name, value in found.items())
        print(f"[validate] step {self.step}  {shown}", flush=True)
        return found

    def progress(self) -> float:
        if self.config.budget_minutes is not None:
            return self.elapsed_s / 60 / self.config.budget_minutes
        return self.step / (self.config.budget_steps or 1)

    def run(self, minutes: float | None = None, steps: int | None = None) -> None:
        """Trains until the slice (minutes or steps) or the whole budget is used, then saves."""
        began, before = time.monotonic(), self.elapsed_s
        first, shown_s, saved_s, seen = self.step, 0.0, 0.0, 0
        sums: dict[str, list[float]] = {}
        while self.progress() < 1.0 and (steps is None or self.step - first < steps):
            record = self._step_or_smaller_batch()
            used = time.monotonic() - began
            self.elapsed_s = before + used
            seen += record["tokens"]
            for name, _, _, divergence, _ in record["parts"]:
                sums.setdefault(name, []).append(divergence)
            if self.config.validate_every and self.step % self.config.validate_every == 0:
                self.validate()
            if used - shown_s > 5.0:
                shown_s = used
                means = {n: sum(v[-50:]) / len(v[-50:]) for n, v in sorted(sums.items())}
                self._show(record, means, seen / used)
            if used - saved_s > self.config.save_every_s:
                saved_s = used
                self.save()
                self.averaged().save(self.out / "adapter.safetensors")
            if minutes is not None and used > minutes * 60:
                break
        self.elapsed_s = before + time.monotonic() - began
        self.save()

    def _step_or_smaller_batch(self) -> dict[str, Any]:
        try:
            return self.train_step(self.progress())
        except torch.cuda.OutOfMemoryError:
            if self.batch <= 4:
                raise
        self.batch //= 2
        self.optimizer.zero_grad(set_to_none=True)
        torch.cuda.empty_cache()
        print(f"[train] out of memory: batch is now {self.batch}", flush=True)
        return self.train_step(self.progress())

    def _show(self, record: dict[str, Any], means: dict[str, float], rate: float) -> None:
        self.note(
            {
                "step": record["step"],
                "elapsed_s": round(self.elapsed_s, 1),
                "lr": record["lr"],
                "norm": round(record["norm"], 4),
                "kl": {n: round(v, 5) for n, v in means.items()},
                "tokens_s": round(rate),
            }
        )
        shown = " ".join(f"{n} {v:.4f}" for n, v in means.items())
        print(
            f"[train] {self.progress():6.1%} step {record['step']} lr {record['lr']:.1e} "
            f"norm {record['norm']:.2f} KL {shown}  {rate / 1e3:.1f} ktok/s",
            flush=True,
        )

    def export(self, folder: Path, provenance: dict[str, Any]) -> Path:
        """Writes adapter.safetensors and card.json: the averaged or the last parameters,

        whichever recovers more on the validation spans."""
        folder.mkdir(parents=True, exist_ok=True)
        chosen, kind, scores = self.averaged(), "average", {}
        if self.validation is not None:
            for name, adapter in (("average", chosen), ("last", self.adapter)):
                scores[name] = self.validation.recovery(adapter, self.config.rows, self.batch)
            if sum(scores["last"].values()) > sum(scores["average"].values()):
                chosen, kind = self.adapter, "last"
        chosen.save(folder / "adapter.safetensors")
        card = {
            "format": "megacontext.kv_gists.1",
            "base_fingerprint": self.base.fingerprint(),
            "steps": self.step,
            "elapsed_s": round(self.elapsed_s, 1),
            "batch": self.batch,
            "parameters": kind,
            "validation": scores,
            "config": asdict(self.config),
            "data_signature": self.windows.signature,
            **provenance,
        }
        (folder / "card.json").write_text(json.dumps(card, indent=1) + "\n")
        return folder / "adapter.safetensors"


class ValidationSet:
    """Fixed spans with their full and drop NLL computed once: 256 prefix, 512 span, 512 suffix."""

    layout = SpanLayout(256, 512, 512, 1)

    def __init__(self, base: FrozenBase, spans: list[HeldOutSpan], device: torch.device) -> None:
        stacked = np.stack([span.ids for span in spans]).astype(np.int64)
        self.base, self.ids = base, torch.from_numpy(stacked).to(device)
        self._gap: tuple[float, float] | None = None

    @torch.no_grad()
    def _nll(self, ids: Tensor, read: Reader) -> float:
        layout = self.layout
        hidden = read(ids)[:, -layout.suffix :].flatten(0, 1)
        targets = ids[:, -layout.suffix :].flatten()
        return float(distill(hidden, self.base.head, hidden, targets, 1.0).surprise) * len(ids)

    def _total(self, read: Reader, batch: int) -> float:
        return sum(self._nll(part, read) for part in self.ids.split(batch)) / len(self.ids)

    @torch.no_grad()
    def recovery(
        self, adapter: GistAdapter, row_counts: tuple[int, ...], batch: int
    ) -> dict[str, float]:
        """Gap recovery by row count: 1 - (NLL_rows - NLL_full) / (NLL_drop - NLL_full)."""
        layout, base = self.layout, self.base
        known = layout.prefix + layout.span

        def through(rows: int) -> Reader:
            def read(ids: Tensor) -> Tensor:
                cache = base.read(ids[:, :known])[1]
                return read_suffix(base, adapter, replace(layout, rows=rows), ids, cache)

            return read

        def dropped(ids: Tensor) -> Tensor:
            prefix = base.read(ids[:, : layout.prefix])[1]
            return base.read(ids[:, known : layout.tokens], known, prefix, keep=False)[0]

        if self._gap is None:
            full = self._total(lambda ids: base.read(ids[:, : layout.tokens], keep=False)[0], batch)
            self._gap = full, self._total(dropped, batch)
            print(f"[validate] {len(self.ids)} spans: full {full:.4f} drop {self._gap[1]:.4f}")
        full, drop = self._gap
        return {
            f"rows{rows}": 1 - (self._total(through(rows), batch) - full) / (drop - full)
            for rows in row_counts
        }


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--base", type=Path, required=True, help="folder of the frozen base")
    parser.add_argument("--shards", type=Path, required=True, help="folder of train-*.u16.xz")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--export", type=Path, help="folder for adapter.safetensors, card.json")
    parser.add_argument("--minutes", type=float, help="length of this slice")
    parser.add_argument("--steps", type=int, help="length of this slice")
    parser.add_argument("--budget-minutes", type=float, help="length of the whole run")
    parser.add_argument("--batch", type=int)
    parser.add_argument("--lr", type=float)
    parser.add_argument("--init", type=Path, help="adapter.safetensors to start from")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float32"))
    parser.add_argument("--compile", action="store_true", help="compile the loss")
    options = parser.parse_args(arguments)
    changes: dict[str, Any] = {
        name: value for name in ("batch", "lr") if (value := getattr(options, name)) is not None
    }
    if options.budget_minutes is not None:
        changes |= {"budget_minutes": options.budget_minutes, "budget_steps": None}
    config = read_config(options.config, **changes)
    device = torch.device(options.device)
    base = base_from_folder(options.base, getattr(torch, options.dtype), device)
    print(f"[train] attention: {choose_attention(device)}", flush=True)
    windows = open_windows(
        options.shards, config.window, config.seed, config.min_document, base.shape.vocab
    )
    print(f"[train] {len(windows.tokens):,} tokens", flush=True)
    validation = None
    if config.validation_spans and (options.shards / "val.json").exists():
        path = next(options.shards.glob("val.u16*"))
        validation = held_out_spans(path, 1281, config.validation_spans)
    trainer = GistTrainer(config, base, windows, options.out, validation)
    if trainer.resume():
        print(f"[train] resumed at step {trainer.step}, {trainer.elapsed_s:.0f} s", flush=True)
        trainer.batch = options.batch or trainer.batch
    elif options.init is not None:
        trainer.start_from(GistAdapter.load(options.init))
    if options.compile:
        trainer.terms = torch.compile(slice_terms)
    trainer.run(options.minutes, options.steps)
    trainer.validate()
    if options.export is not None:
        command = shlex.join(["python", "-m", "megacontext.train.kv_gists", *sys.argv[1:]])
        manifest = options.shards / "manifest.json"
        sources = json.loads(manifest.read_text())["sources"] if manifest.exists() else []
        trainer.export(options.export, {"command": command, "sources": sources})


if __name__ == "__main__":
    main()
