"""GistNet: 32 embeddings of the base in, one vector that the base can read in their place out.

    gist = rms * unit(gate * unit(mean of inputs) + head(pooled rows of the encoder)) + centre

rms and centre are those of the base's own embeddings, so that the base meets a vector of the kind
it knows. At the start head is 0 and gate 1: training begins at the mean embedding. A node of a
higher LOD has the gists of its children for inputs.

Built on `ops.block_encoder`; without layers it is a trained mean-pool head, its own baseline.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from megacontext.gists.base import FrozenBase
from megacontext.gists.layout import K, SpanLayout
from megacontext_ext import ops
from megacontext_ext.errors import InvalidArgument
from megacontext_ext.ops.block_encoder import BlockEncoderLayer, BlockEncoderWeights

Pooling = Literal["mean", "query", "cls"]
FORMAT = "megacontext.gistnet.1"
_EXACT = ("rms", "centre")  # kept in float32 in a file


@dataclass(frozen=True)
class GistNetConfig:
    """Sizes. width: of the base's inputs, a multiple of 64."""

    width: int
    layers: int = 2  # 0: a trained mean-pool head
    # mean of the rows; attention of a learned query over them; or the first row, which is marked.
    pooling: Pooling = "mean"
    # LODs with weights of their own; the last one's serve all higher LODs, so 1 shares them.
    levels: int = 1

    def __post_init__(self) -> None:
        if self.width % 64 or self.width < 64:
            raise InvalidArgument(f"[gistnet] width must be a multiple of 64, got {self.width}")
        if self.pooling not in ("mean", "query", "cls"):
            raise InvalidArgument(
                f"[gistnet] pooling must be mean, query or cls, got {self.pooling!r}"
            )
        if self.layers < 0 or self.levels < 1:
            raise InvalidArgument(
                f"[gistnet] layers must be >= 0 and levels >= 1, got {self.layers}, {self.levels}"
            )


class WindowEncoder(nn.Module):
    """The weights of one LOD, float32; computed in the dtype of the inputs."""

    table: Tensor

    def __init__(self, config: GistNetConfig) -> None:
        super().__init__()
        self.config, width = config, config.width
        drawn = ops.init_block_encoder(width, config.layers)
        self.layers = nn.ModuleList(
            nn.ParameterList(nn.Parameter(t) for t in layer) for layer in drawn.layers
        )
        self.final_norm = nn.Parameter(drawn.final_norm)
        self.register_buffer("table", drawn.table, persistent=False)
        self.head = nn.Parameter(torch.zeros(width, width))
        self.gate = nn.Parameter(torch.ones(width))
        if config.pooling == "query":
            self.query = nn.Parameter(torch.zeros(width))
        if config.pooling == "cls":
            self.mark = nn.Parameter(torch.randn(width) * width**-0.5)

    def forward(self, x: Tensor) -> Tensor:
        """[N, 32, D] unit rows -> [N, D] before it is scaled."""
        dtype = x.dtype
        layers = tuple(
            BlockEncoderLayer(*(p.to(dtype) for p in each.parameters())) for each in self.layers
        )
        weights = BlockEncoderWeights(layers, self.final_norm.to(dtype), self.table)
        marked = x
        if self.config.pooling == "cls":
            marked = torch.cat([x[:, :1] + self.mark.to(dtype), x[:, 1:]], dim=1)
        rows, pooled = ops.block_encoder(marked, weights)
        if self.config.pooling == "query":
            flat = rows.reshape(-1, self.config.width)
            scale = self.config.width**-0.5
            pooled = ops.gist_pool(flat, K, query=self.query.to(dtype), scale=scale)
        if self.config.pooling == "cls":
            pooled = rows[:, 0]
        return self.gate.to(dtype) * unit(x.mean(1)) + F.linear(pooled, self.head.to(dtype))


class GistNet(nn.Module):
    """Gists of one base. `rms` [1] and `centre` [D] describe the base's embeddings."""

    rms: Tensor
    centre: Tensor

    def __init__(self, config: GistNetConfig, embeddings: Tensor | None = None, seed: int = 0):
        """embeddings: [V, D] of the base, to match; without them rms 1 and centre 0."""
        super().__init__()
        self.config = config
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.levels = nn.ModuleList(WindowEncoder(config) for _ in range(config.levels))
        rms, centre = torch.ones(1), torch.zeros(config.width)
        if embeddings is not None:
            if embeddings.shape[1] != config.width:
                raise InvalidArgument(
                    f"[gistnet] width must be the base's {embeddings.shape[1]}, got {config.width}"
                )
            rows = embeddings.detach().float()
            centre = rows.mean(0)
            rms = (rows - centre).square().mean(1).sqrt().median()[None]
        self.register_buffer("rms", rms)
        self.register_buffer("centre", centre)

    def forward(self, inputs: Tensor, lod: int = 1) -> Tensor:
        """Gists [N, D] of windows [N, 32, D]: embeddings at LOD 1, gists of LOD - 1 above.

        Raises: InvalidArgument for another shape or a LOD below 1. Cost: see `ops.block_encoder`.
        """
        if inputs.dim() != 3 or inputs.shape[1:] != (K, self.config.width):
            raise InvalidArgument(
                f"[gistnet] inputs must be [N, 32, {self.config.width}], got {list(inputs.shape)}"
            )
        if lod < 1:
            raise InvalidArgument(f"[gistnet] lod must be at least 1, got {lod}")
        encoder = self.levels[min(lod, self.config.levels) - 1]
        centre, rms = self.centre.to(inputs.dtype), self.rms.to(inputs.dtype)
        return rms * unit(encoder(unit(inputs - centre).contiguous())) + centre

    def tree(self, tokens: Tensor) -> list[Tensor]:
        """Gists of every LOD over embeddings [T, D], LOD 1 first; a last part that fills no node
        has none."""
        found: list[Tensor] = []
        below = tokens
        while (count := len(below) // K) > 0:
            below = self(below[: count * K].unflatten(0, (count, K)), len(found) + 1)
            found.append(below)
        return found

    def save(self, path: Path) -> None:
        """One safetensors file, parameters in bfloat16; its config travels as metadata."""
        from safetensors.torch import save_file

        state = {
            name: t.detach().to("cpu", torch.float32 if name in _EXACT else torch.bfloat16)
            for name, t in self.state_dict().items()
        }
        meta = {"format": FORMAT, "config": json.dumps(asdict(self.config))}
        part = path.with_suffix(".part")
        save_file({n: t.contiguous() for n, t in state.items()}, str(part), metadata=meta)
        part.replace(path)

    @classmethod
    def load(cls, path: Path) -> GistNet:
        """Reads what `save` wrote. Raises: InvalidArgument for a file of another format."""
        from safetensors import safe_open

        with safe_open(str(path), framework="pt") as file:
            meta = file.metadata() or {}
            if meta.get("format") != FORMAT:
                raise InvalidArgument(
                    f"{path}: format: expected {FORMAT}, got {meta.get('format')!r}"
                )
            net = cls(GistNetConfig(**json.loads(meta["config"])))
            names = list(file.keys())
            net.load_state_dict({name: file.get_tensor(name) for name in names})
        return net


def unit(x: Tensor) -> Tensor:
    """Rows of mean square 1."""
    return F.rms_norm(x, (x.shape[-1],), eps=1e-12 if x.dtype == torch.float64 else 1e-6)


def read_gists(base: FrozenBase, net: nn.Module, layout: SpanLayout, ids: Tensor) -> Tensor:
    """[B, blocks, width]: the gists of the span's blocks in windows [B, >= prefix + span]."""
    span = ids[:, layout.prefix : layout.prefix + layout.span]
    blocks = F.embedding(span, base.embed).unflatten(1, (-1, K))
    return net(blocks.flatten(0, 1)).unflatten(0, (len(ids), -1))


def suffix_through_gists(
    base: FrozenBase, net: nn.Module, layout: SpanLayout, ids: Tensor
) -> Tensor:
    """[B, suffix, width] states of the suffix behind prefix and gists, each gist at the centre of
    its block."""
    known = layout.prefix + layout.span
    with torch.no_grad():
        prefix = base.read(ids[:, : layout.prefix])[1] if layout.prefix else None
    gists = read_gists(base, net, layout, ids)
    suffix = F.embedding(ids[:, known : layout.tokens], base.embed)
    centres = layout.prefix + torch.arange(gists.shape[1]) * K + K // 2
    places = torch.cat([centres, torch.arange(known, layout.tokens)])
    hidden = base.read(torch.cat([gists, suffix], 1), places, prefix, keep=False)[0]
    return hidden[:, gists.shape[1] :]
