"""A light LoRA (Hu et al. 2021) on a base's queries and values, removable, in peft's format.

The base's weights are never changed: `applied` gives a base whose projections are sums. Training
moves what the suffix does with a mixed context; the same weights then read the past too.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import Tensor, nn

from megacontext.gists.base import BaseShape, FrozenBase

NAMES = ("q", "v")


class Lora(nn.Module):
    """into_NAME [layers, rank, inputs], out_NAME [layers, outputs, rank], which begins at 0."""

    def __init__(self, shape: BaseShape, rank: int = 8, seed: int = 0) -> None:
        super().__init__()
        self.rank = rank
        generator = torch.Generator().manual_seed(seed)
        for name in NAMES:
            inputs, outputs = shape.projection(name)
            into = torch.randn(shape.layers, rank, inputs, generator=generator) / inputs**0.5
            self.register_parameter(f"into_{name}", nn.Parameter(into))
            out = torch.zeros(shape.layers, outputs, rank)
            self.register_parameter(f"out_{name}", nn.Parameter(out))

    def change(self, name: str, layer: int) -> Tensor:
        """[outputs, inputs] that is added to a projection."""
        return getattr(self, f"out_{name}")[layer] @ getattr(self, f"into_{name}")[layer]

    def applied(self, base: FrozenBase) -> FrozenBase:
        """The base with the changes added; gradients flow to them where enabled.

        Cost: one more copy of the changed projections.
        """
        layers = [
            weights._replace(
                **{n: getattr(weights, n) + self.change(n, i).to(base.dtype) for n in NAMES}
            )
            for i, weights in enumerate(base.layers)
        ]
        return FrozenBase(base.shape, base.embed, layers, base.norm, base.head)

    def save(self, folder: Path, base_name: str) -> None:
        """A folder for `peft.PeftModel.from_pretrained(model, folder)`."""
        from safetensors.torch import save_file

        folder.mkdir(parents=True, exist_ok=True)
        state = {}
        for name in NAMES:
            for part, letter in (("into", "A"), ("out", "B")):
                for i, tensor in enumerate(getattr(self, f"{part}_{name}").detach()):
                    key = f"base_model.model.model.layers.{i}.self_attn.{name}_proj.lora_{letter}"
                    state[f"{key}.weight"] = tensor.contiguous()
        save_file(state, str(folder / "adapter_model.safetensors"))
        config = {
            "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": base_name,
            "r": self.rank, "lora_alpha": self.rank, "lora_dropout": 0.0, "bias": "none",
            "target_modules": [f"{name}_proj" for name in NAMES], "inference_mode": True,
        }  # fmt: skip
        (folder / "adapter_config.json").write_text(json.dumps(config, indent=1) + "\n")
