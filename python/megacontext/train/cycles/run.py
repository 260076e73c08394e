"""A run of cycles: turns, gates, adaptive lengths, an early end, a checkpoint after each turn."""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from megacontext.gists.base import FrozenBase
from megacontext.train.checkpoint import TrainingFailed, read_checkpoint, write_checkpoint
from megacontext.train.cycles import turns
from megacontext.train.cycles.block_lens import save_lens
from megacontext.train.cycles.config import MODULES, CycleTraining, Module
from megacontext.train.cycles.system import System, measure, shown_nats

SHORTEST = 4  # Steps of a turn that has been halved.


@dataclass(frozen=True)
class HeldOut:
    """Windows [N, window]: `gate` decides whether a turn is kept, `test` is only measured."""

    gate: Tensor
    test: Tensor


class CycleRun:
    """Modules take turns; a turn that makes the gate's windows worse is undone.

    The state after every turn is on disk: a run that was killed goes on with the turn it was in,
    and gives, on a CPU, the same bits as one that was not.
    """

    def __init__(
        self,
        config: CycleTraining,
        base: FrozenBase,
        windows: turns.Windows,
        held: HeldOut,
        out: Path,
        data: str = "",
    ) -> None:
        """data: what names the windows; a checkpoint of other data is refused."""
        self.config, self.windows, self.held, self.out = config, windows, held, out
        self.system = System(config, base)
        self.provenance = {
            "base": base.fingerprint(),
            "data": data,
            "config": json.dumps(asdict(config), sort_keys=True),
        }
        self.curve: list[dict[str, Any]] = []
        self.steps: dict[str, int] = {m: getattr(config, m).steps for m in MODULES}
        self.done, self.place = 0, 0  # Turns; windows read so far.

    # --- state ------------------------------------------------------------------------------

    @property
    def checkpoint(self) -> Path:
        return self.out / "checkpoint.pt"

    def save(self) -> None:
        write_checkpoint(
            self.checkpoint,
            {
                "system": self.system.state(),
                "curve": self.curve,
                "steps": self.steps,
                "done": self.done,
                "place": self.place,
                "provenance": self.provenance,
            },
        )
        lines = "".join(json.dumps(record) + "\n" for record in self.curve)
        (self.out / "curve.jsonl").write_text(lines)

    def resume(self) -> bool:
        """Goes on from the checkpoint of `out`, if there is one.

        Raises: TrainingFailed when it belongs to another base, data or config.
        """
        if not self.checkpoint.exists():
            return False
        state = read_checkpoint(self.checkpoint)
        for name, wanted in self.provenance.items():
            if (found := state["provenance"][name]) != wanted:
                raise TrainingFailed(f"{self.checkpoint}: {name}: expected {wanted}, got {found}")
        self.system.restore(state["system"])
        self.curve, self.steps = state["curve"], state["steps"]
        self.done, self.place = state["done"], state["place"]
        return True

    # --- the run ----------------------------------------------------------------------------

    def run(self, turns_at_most: int | None = None) -> None:
        """To the end, or for so many turns more."""
        self.out.mkdir(parents=True, exist_ok=True)
        if not self.curve:
            self._note("start", 0, {"gate": self._gate()})
            self.save()
        last = self.config.cycles * len(MODULES)
        if turns_at_most is not None:
            last = min(last, self.done + turns_at_most)
        while self.done < last and not self.ended:
            cycle, number = divmod(self.done, len(MODULES))
            self._turn(MODULES[number], cycle + 1)
            self.done += 1
            self.save()
        self.export()

    @property
    def ended(self) -> bool:
        """The last whole cycle gained too little to begin another."""
        count = len(MODULES)
        if self.done == 0 or self.done % count or len(self.curve) <= count:
            return False
        gates = [record["gate"] for record in self.curve]
        return bool(gates[-count - 1] - gates[-1] < self.config.little)

    def _turn(self, module: Module, cycle: int) -> None:
        if module in self.config.frozen:
            self._note(module, cycle, {"frozen": True})
            return
        before, gate = self.system.state(), self.curve[-1]["gate"]
        began = time.monotonic()
        losses = self._train(module)
        found = {"steps": len(losses), "losses": losses, "seconds": time.monotonic() - began}
        reached = self._gate()
        kept = reached <= gate
        if not kept:
            self.system.restore(before)
        if gate - reached < self.config.little:
            self.steps[module] = max(SHORTEST, self.steps[module] // 2)
        gate = min(gate, reached)
        self._note(module, cycle, {**found, "kept": kept, "reached": reached, "gate": gate})

    def _train(self, module: Module) -> list[float]:
        config, system, steps = self.config, self.system, self.steps[module]
        phase, seed = getattr(config, module), config.seed * 1000 + self.done
        start = self.place
        if module == "lens":
            self.place += config.label_windows
            labels = turns.relabel(system, self.windows, start, config.label_windows)
            return turns.train_lens(system, phase, steps, labels, seed)
        self.place += steps * phase.batch
        part = system.module(module)
        return turns.train_reader(system, module, part, phase, steps, self.windows, start, seed)

    def _gate(self) -> float:
        return shown_nats(self.system, self.held.gate)

    def _note(self, turn: str, cycle: int, found: dict[str, Any]) -> None:
        if "frozen" in found:
            same = ("gate", "places", "nats", "recovery", "windows")
            record = {"turn": turn, "cycle": cycle, **found}
            record |= {name: self.curve[-1][name] for name in same}
        else:
            measured = measure(self.system, self.held.test, oracle=turn in ("start", MODULES[-1]))
            record = {"turn": turn, "cycle": cycle, **found}
            record |= {"places": self.config.cut.places, **measured.record()}
            record["windows"] = {way: v.tolist() for way, v in measured.nats.items()}
        self.curve.append(record)
        shares = "  ".join(f"{way} {share:+.3f}" for way, share in record["recovery"].items())
        print(f"[cycle {cycle}] {turn:6} gate {record['gate']:.4f}  recovery {shares}", flush=True)

    def export(self) -> None:
        """The modules as they are: adapter.safetensors, lens.safetensors, lora/ (peft)."""
        self.system.gists.save(self.out / "adapter.safetensors")
        save_lens(self.system.lens, self.out / "lens.safetensors")
        self.system.lora.save(self.out / "lora", self.system.base.fingerprint()[:16])
