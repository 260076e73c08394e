"""The learned part: row inputs and low-rank changes to a base's projections on gist rows only.

Token positions never pass through it, so the base's own behaviour cannot change.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from megacontext.gists.base import PROJECTIONS, BaseShape, FrozenBase
from megacontext.gists.layout import LEARNED_ROWS, ROW_SETS


@dataclass(frozen=True)
class AdapterRanks:
    """Rank of the change to each projection of every layer."""

    q: int = 24
    k: int = 48
    v: int = 48
    o: int = 24
    gate: int = 16
    up: int = 16
    down: int = 16


class GistAdapter(nn.Module):
    """Parameters of the KV gists of one base, fp32.

    row_inputs: [R, layers, width]; entry 0 is a learned row's input, entry n is added to its
    residual stream before layer n. into_NAME: [layers, rank, inputs], out_NAME: [layers, outputs,
    rank] with out_* zero at the start: rows then begin as "the base reading one extra token".
    """

    def __init__(self, shape: BaseShape, ranks: AdapterRanks, seed: int = 0) -> None:
        super().__init__()
        self.shape, self.ranks = shape, ranks
        generator = torch.Generator().manual_seed(seed)
        self.row_inputs = nn.Parameter(torch.zeros(LEARNED_ROWS, shape.layers, shape.width))
        for name in PROJECTIONS:
            rank = getattr(ranks, name)
            inputs, outputs = shape.projection(name)
            into = torch.randn(shape.layers, rank, inputs, generator=generator) / inputs**0.5
            self.register_parameter(f"into_{name}", nn.Parameter(into))
            out = nn.Parameter(torch.zeros(shape.layers, outputs, rank))
            self.register_parameter(f"out_{name}", out)

    @torch.no_grad()
    def start_from(self, base: FrozenBase, seed: int = 0) -> None:
        """Row inputs start at the mean token embedding plus noise of a third of its spread."""
        table = base.embed.detach().float().cpu()
        generator = torch.Generator().manual_seed(seed + 1)
        noise = torch.randn(LEARNED_ROWS, table.shape[1], generator=generator)
        start = table.mean(0) + noise * table.std(0) / 3
        self.row_inputs[:, 0].copy_(start)

    def cast(self, dtype: torch.dtype) -> dict[str, tuple[Tensor, ...]]:
        """Per projection "into_*"/"out_*": one tensor a layer in the working dtype."""
        named = {n: p for n, p in self.named_parameters() if n != "row_inputs"}
        return {name: parameter.to(dtype).unbind(0) for name, parameter in named.items()}

    def save(self, path: Path, dtype: torch.dtype = torch.bfloat16) -> None:
        """Writes the parameters as safetensors; the shape and ranks travel as metadata."""
        from safetensors.torch import save_file

        meta = {
            "format": "megacontext.kv_gists.1",
            "shape": json.dumps(asdict(self.shape)),
            "ranks": json.dumps(asdict(self.ranks)),
            "row_sets": json.dumps(ROW_SETS),
        }
        state = {n: p.detach().cpu().to(dtype).contiguous() for n, p in self.named_parameters()}
        part = path.with_suffix(".part")
        save_file(state, str(part), metadata=meta)
        part.replace(path)

    @classmethod
    def load(cls, path: Path) -> GistAdapter:
        """Reads what `save` wrote.

        Raises:
            ValueError: another format, or rows of other sets than this build knows.
        """
        from safetensors import safe_open

        with safe_open(str(path), framework="pt") as file:
            meta = file.metadata() or {}
            if meta.get("format") != "megacontext.kv_gists.1":
                raise ValueError(
                    f"{path}: format: expected megacontext.kv_gists.1, got {meta.get('format')!r}"
                )
            if json.loads(meta["row_sets"]) != [list(x) for x in ROW_SETS]:
                raise ValueError(f"{path}: row_sets: expected {ROW_SETS}, got {meta['row_sets']}")
            shape = BaseShape(**json.loads(meta["shape"]))
            adapter = cls(shape, AdapterRanks(**json.loads(meta["ranks"])))
            with torch.no_grad():
                for name, parameter in adapter.named_parameters():
                    parameter.copy_(file.get_tensor(name))
        return adapter
