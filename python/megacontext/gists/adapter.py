"""The learned part: row inputs and low-rank changes to a base's projections on gist rows only.

Token positions never pass through it, so the base's own behaviour cannot change.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from megacontext.gists.base import PROJECTIONS, BaseShape
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

    A row's input is `row_inputs[:, 0] + last_gate * embedding of its share's last token +
    mean_gate * mean embedding of its share`, gates [R, width]; `row_inputs[:, n]` [R, layers,
    width] is added to the residual stream before layer n. into_NAME: [layers, rank, inputs],
    out_NAME: [layers, outputs, rank]. At the start out_*, row_inputs and mean_gate are 0 and
    last_gate is 1: a row begins as "the base reads the share's last token once more".
    """

    def __init__(self, shape: BaseShape, ranks: AdapterRanks, seed: int = 0) -> None:
        super().__init__()
        self.shape, self.ranks = shape, ranks
        generator = torch.Generator().manual_seed(seed)
        self.row_inputs = nn.Parameter(torch.zeros(LEARNED_ROWS, shape.layers, shape.width))
        self.last_gate = nn.Parameter(torch.ones(LEARNED_ROWS, shape.width))
        self.mean_gate = nn.Parameter(torch.zeros(LEARNED_ROWS, shape.width))
        for name in PROJECTIONS:
            rank = getattr(ranks, name)
            inputs, outputs = shape.projection(name)
            into = torch.randn(shape.layers, rank, inputs, generator=generator) / inputs**0.5
            self.register_parameter(f"into_{name}", nn.Parameter(into))
            out = nn.Parameter(torch.zeros(shape.layers, outputs, rank))
            self.register_parameter(f"out_{name}", out)

    def cast(self, dtype: torch.dtype) -> dict[str, tuple[Tensor, ...]]:
        """Per projection "into_*"/"out_*": one tensor a layer in the working dtype."""
        named = {n: p for n, p in self.named_parameters() if n.startswith(("into_", "out_"))}
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
