"""GistNet begins at the mean embedding, learns in every part, and stays itself in a file."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from megacontext.eval.gist_methods import Window, embedding_gists, mean_embedding
from megacontext.gists.base import BaseShape, FrozenBase, random_base
from megacontext.gists.layout import SpanLayout
from megacontext.gists.net import GistNet, GistNetConfig, suffix_through_gists, unit
from megacontext.train.embedding_gists import (
    EmbeddingTraining,
    make_loop,
    window_loss,
)
from megacontext.train.loop import LoopConfig, TrainingFailed
from megacontext.train.tokens import TokenWindows
from megacontext.train.values import from_values
from megacontext_ext.errors import InvalidArgument

WIDTH = 64
SHAPE = BaseShape(2, WIDTH, 4, 2, 16, 96, 61, 1e4, 1e-5)
LAYOUT = SpanLayout(16, 64, 24, 1)


@pytest.fixture
def base() -> FrozenBase:
    return random_base(SHAPE, seed=2)


def tokens(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(1, 61, shape, generator=torch.Generator().manual_seed(seed))


def small(**changes: object) -> GistNetConfig:
    return GistNetConfig(**{"width": WIDTH, "layers": 1, **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize("pooling", ["mean", "query", "cls"])
@pytest.mark.parametrize("layers", [0, 2])
def test_it_begins_at_the_mean_embedding_in_the_base_statistics(
    base: FrozenBase, pooling: str, layers: int
) -> None:
    net = GistNet(small(pooling=pooling, layers=layers), base.embed)
    blocks = F.embedding(tokens(5, 32), base.embed)
    found = net(blocks)
    assert found.shape == (5, WIDTH)
    wanted = unit(unit(blocks - net.centre).mean(1))
    torch.testing.assert_close(unit(found - net.centre), wanted, atol=1e-4, rtol=1e-4)
    size = (found - net.centre).square().mean(1).sqrt()
    torch.testing.assert_close(size, net.rms.expand(5), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("pooling", ["mean", "query", "cls"])
def test_every_parameter_learns_and_the_base_stays(base: FrozenBase, pooling: str) -> None:
    net = GistNet(small(pooling=pooling), base.embed)
    optimizer = torch.optim.Adam(net.parameters(), 1e-2)
    before = {n: p.detach().clone() for n, p in net.named_parameters()}
    config = EmbeddingTraining(prefix=16, span=64, suffix=24)
    weights = [t.clone() for layer in base.layers for t in layer]
    ids = tokens(1, LAYOUT.tokens + 1)
    losses = []
    for _ in range(12):
        loss, _ = window_loss(base, net, config, ids)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]
    still = [n for n, p in net.named_parameters() if torch.equal(p, before[n])]
    assert still == []
    now = [t for layer in base.layers for t in layer]
    assert all(torch.equal(a, b) for a, b in zip(now, weights, strict=True))


def test_a_block_does_not_see_its_neighbours(base: FrozenBase) -> None:
    net = GistNet(small(), base.embed)
    torch.nn.init.normal_(net.levels[0].head, std=0.1)  # type: ignore[arg-type]
    blocks = F.embedding(tokens(6, 32), base.embed)
    torch.testing.assert_close(net(blocks)[2:4], net(blocks[2:4]))


def test_a_tree_has_every_lod_by_its_own_weights_or_shared(base: FrozenBase) -> None:
    rows = F.embedding(tokens(32 * 33 + 5), base.embed)
    for levels in (1, 2):
        net = GistNet(small(levels=levels), base.embed)
        for level in net.levels:
            torch.nn.init.normal_(level.head, std=0.1)  # type: ignore[arg-type]
        found = net.tree(rows)
        assert [len(lod) for lod in found] == [33, 1]
        torch.testing.assert_close(found[0], net(rows[: 32 * 33].unflatten(0, (33, 32))))
        above = net(found[0][:32][None], lod=2)
        torch.testing.assert_close(found[1], above)
        same = torch.allclose(above, net(found[0][:32][None], lod=1))
        assert same == (levels == 1)


def test_a_file_gives_the_same_gists(base: FrozenBase, tmp_path: Path) -> None:
    net = GistNet(small(pooling="query", levels=2), base.embed)
    for parameter in net.parameters():
        parameter.data = parameter.data.bfloat16().float()
    net.save(tmp_path / "net.safetensors")
    again = GistNet.load(tmp_path / "net.safetensors")
    blocks = F.embedding(tokens(3, 32), base.embed)
    assert torch.equal(net(blocks), again(blocks))
    assert again.config == net.config
    from safetensors.torch import save_file

    save_file({"x": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(InvalidArgument, match=r"format: expected megacontext.*, got None"):
        GistNet.load(tmp_path / "other.safetensors")


def test_the_method_is_the_mean_embedding_before_training(base: FrozenBase) -> None:
    """Up to scale: the base's first norm takes scale off, and the centre is zero."""
    net = GistNet(small(), base.embed)
    net.centre.zero_()
    rows = base.embed / base.embed.square().mean(1, keepdim=True).sqrt()
    equal = FrozenBase(base.shape, rows, base.layers, base.norm, base.head)
    window = Window(equal, tokens(2, LAYOUT.tokens + 1), LAYOUT)
    ours = embedding_gists(net)(window, 2)
    means = F.embedding(window.ids[:, 16:80], rows).unflatten(1, (2, 32)).mean(2)
    net.rms.fill_(float(means.square().mean(-1).sqrt().mean()))
    close = embedding_gists(net)(window, 2)
    theirs = mean_embedding(window, 2)
    assert F.cosine_similarity(close, theirs, dim=-1).min() > 0.99
    assert ours.shape == theirs.shape
    with pytest.raises(InvalidArgument, match="one a block, 2, got 4"):
        embedding_gists(net)(window, 4)


def test_the_suffix_sees_gists_and_no_raw_span(base: FrozenBase) -> None:
    net = GistNet(small(), base.embed)
    ids = tokens(1, LAYOUT.tokens + 1)
    before = suffix_through_gists(base, net, LAYOUT, ids)
    # Another order of a block's tokens: the same mean, the same answer.
    mixed = ids.clone()
    mixed[0, 16:48] = ids[0, 16:48].flip(0)
    torch.testing.assert_close(suffix_through_gists(base, net, LAYOUT, mixed), before)
    other = ids.clone()
    other[0, 16:48] = 7
    assert not torch.allclose(suffix_through_gists(base, net, LAYOUT, other), before, atol=1e-3)


def test_a_stopped_run_equals_one_that_was_not(base: FrozenBase, tmp_path: Path) -> None:
    ids = np.random.default_rng(0).integers(1, 61, 8000).astype("<u2")
    ids[::2000] = 0
    (tmp_path / "train-00.u16").write_bytes(ids.tobytes())
    config = EmbeddingTraining(
        layers=1, loop=LoopConfig(steps=4, accumulate=2, save_every=2), prefix=16, span=64,
        suffix=24,
    )  # fmt: skip
    windows = TokenWindows([tmp_path / "train-00.u16"], config.layout.tokens + 1, 0, 50)
    whole = make_loop(config, base, windows, tmp_path / "whole")
    whole.run()
    for _ in range(2):
        part = make_loop(config, base, windows, tmp_path / "part")
        part.resume()
        part.run(2)
    for (name, a), b in zip(whole.model.named_parameters(), part.model.parameters(), strict=True):
        assert torch.equal(a, b), name
    with pytest.raises(TrainingFailed, match=r"net: expected .*, got"):
        make_loop(replace(config, layers=2), base, windows, tmp_path / "part").resume()
    with pytest.raises(TrainingFailed, match="base: expected"):
        make_loop(config, random_base(SHAPE, seed=3), windows, tmp_path / "part").resume()


def test_bad_input_is_refused_with_its_numbers(base: FrozenBase) -> None:
    for changes, said in (
        ({"width": 60}, "width must be a multiple of 64, got 60"),
        ({"pooling": "max"}, "pooling must be mean, query or cls, got 'max'"),
        ({"levels": 0}, "levels >= 1, got 1, 0"),
    ):
        with pytest.raises(InvalidArgument, match=said):
            small(**changes)
    with pytest.raises(InvalidArgument, match="width must be the base's 64, got 128"):
        GistNet(GistNetConfig(128), base.embed)
    net = GistNet(small(), base.embed)
    assert net(torch.zeros(0, 32, WIDTH)).shape == (0, WIDTH)
    assert net.tree(torch.zeros(31, WIDTH)) == []
    with pytest.raises(InvalidArgument, match=r"inputs must be \[N, 32, 64\], got \[2, 31, 64\]"):
        net(torch.zeros(2, 31, 64))
    with pytest.raises(InvalidArgument, match="lod must be at least 1, got 0"):
        net(torch.zeros(2, 32, 64), lod=0)
    with pytest.raises(InvalidArgument, match="keys must be of"):
        from_values(EmbeddingTraining, {"layer": 1})
