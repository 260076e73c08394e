"""The emulation of CUDA: it computes what the device would, and finds planted faults."""

from __future__ import annotations

import pytest
import torch


@pytest.fixture
def emu(emulated_ops):
    """The operators of the twin, with threads in order; tests may choose another order."""
    emulated_ops.set_thread_order(0)
    yield emulated_ops
    emulated_ops.set_thread_order(0)
    emulated_ops.set_thread_count(1)


ORDERS = [0, 1, 7]


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("threads", [1, 2])
def test_a_reduction_is_right_in_every_order(emu, order, threads):
    emu.set_thread_order(order)
    emu.set_thread_count(threads)
    x, out = torch.arange(64.0 * 100).view(64, 100), torch.zeros(64)
    emu.sample_kernel("row_sum", x, out)
    assert torch.equal(out, x.sum(1))


@pytest.mark.parametrize("order", ORDERS)
def test_a_missing_barrier_shows(emu, order):
    emu.set_thread_order(order)
    x, out = torch.arange(64.0 * 100).view(64, 100), torch.zeros(64)
    emu.sample_kernel("row_sum_without_barrier", x, out)
    assert (out != x.sum(1)).sum() > 32


def test_asynchronous_copies_arrive_when_waited_for(emu):
    x, out = torch.randn(1, 256), torch.zeros(256)
    emu.sample_kernel("staged_copy", x, out)
    assert torch.equal(out, x[0])
    emu.sample_kernel("staged_copy_without_wait", x, out)
    assert out.isnan().all()


def test_shared_memory_that_nobody_wrote_is_nan(emu):
    out = torch.zeros(32)
    emu.sample_kernel("unwritten_smem", out, out)
    assert out.isnan().all()


@pytest.mark.parametrize("name", ["lonely_shuffle", "lonely_barrier"])
def test_threads_that_wait_for_ever_are_a_deadlock(emu, name):
    out = torch.zeros(32)
    with pytest.raises(RuntimeError, match=rf"{name}_kernel.*deadlock"):
        emu.sample_kernel(name, out, out)


def test_a_launch_that_no_device_takes_is_refused(emu):
    out = torch.zeros(32)
    with pytest.raises(RuntimeError, match=r"block 2048x1x1.*a block has 1 to 1024 threads"):
        emu.sample_kernel("too_many_threads", out, out)


def test_matrix_fragments_are_laid_out_as_on_the_device(emu):
    a, b = torch.randn(16, 16).bfloat16(), torch.randn(16, 8).bfloat16()
    out = torch.zeros(16, 8)
    emu.sample_kernel("product", torch.cat((a.flatten(), b.flatten())), out)
    torch.testing.assert_close(out, a.float() @ b.float(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("order", ORDERS)
def test_lanes_see_each_other(emu, order):
    emu.set_thread_order(order)
    out = torch.zeros(8, 64)
    emu.sample_kernel("lanes", out, out)
    t, lane = torch.arange(64), torch.arange(64) % 32
    assert torch.equal(out[0], torch.where(lane >= 3, t - 3, t).float())
    assert torch.equal(out[1], torch.where(t % 16 + 5 < 16, t + 5, t).float())
    assert (out[2] == 11).all()
    assert torch.equal(out[3], (t // 32 * 32 + 31).float())
    assert torch.equal(out[4], torch.where(t < 32, 0.0, 3.0))
    assert (out[5] == 32).all()
    assert (out[6] == 8).all()
    assert out[7, :3].tolist() == [32, 32, 0]
