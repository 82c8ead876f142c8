"""Context parallelism of diffusers on two processes: Ulysses gives every rank all tokens of its heads."""

import os
import socket

import pytest
import torch
import torch.distributed as dist
from diffusers import ContextParallelConfig, ParallelConfig, WanTransformer3DModel
from diffusers.hooks.context_parallel import apply_context_parallel
from torch.distributed.device_mesh import init_device_mesh

from timeripple import ReuseConfig, disable, enable, summary

STEPS = 4
TOKEN = ReuseConfig("token", theta=1.0, refresh=2, dense_first=0.25, dense_last=1)


def make():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = WanTransformer3DModel(
            num_attention_heads=2, attention_head_dim=24, in_channels=4, out_channels=4, text_dim=16, freq_dim=32,
            ffn_dim=32, num_layers=2, rope_max_seq_len=32,
        )  # fmt: skip
        return model.eval().requires_grad_(False)


@torch.no_grad()
def denoise(model):
    outputs = []
    for step in range(STEPS):
        noise = [torch.randn(1, 4, 2, 8, 8, generator=torch.Generator().manual_seed(n)) for n in (0, 1)]
        text = torch.randn(1, 6, 16, generator=torch.Generator().manual_seed(2))
        with model.cache_context("cond", step_index=step, num_inference_steps=STEPS):
            outputs.append(
                model(noise[0] + 0.1 * step * noise[1], torch.tensor([900.0 - step]), text, return_dict=False)[0]
            )
    model._reset_stateful_cache()
    return torch.stack(outputs)


def parallel(model, rank, **degrees):
    """What `enable_parallelism` does, which itself needs an accelerator."""
    config = ContextParallelConfig(**degrees)
    shape = (config.ring_degree or 1, config.ulysses_degree or 1)
    mesh = init_device_mesh("cpu", shape, mesh_dim_names=("ring", "ulysses"))
    config.setup(rank, 2, torch.device("cpu"), mesh)
    whole = ParallelConfig(context_parallel_config=config)
    model._parallel_config = whole
    for module in model.modules():
        if hasattr(module, "processor") and hasattr(module.processor, "_parallel_config"):
            module.processor._parallel_config = whole
    apply_context_parallel(model, config, model._cp_plan)


def work(rank, port, degrees, results):
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=2)
    model = make()
    parallel(model, rank, **degrees)
    dense = denoise(model)
    enable(model, TOKEN)
    reused = denoise(model)
    heads = [len(record["saving"]) for record in summary(model)["records"]]
    disable(model)
    results.put((rank, dense.numpy(), reused.numpy(), denoise(model).numpy(), heads))
    dist.barrier()
    dist.destroy_process_group()


def on_two_processes(**degrees):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    context = torch.multiprocessing.get_context("spawn")
    results = context.Queue()
    processes = [context.Process(target=work, args=(rank, port, degrees, results), daemon=True) for rank in range(2)]
    for process in processes:
        process.start()
    found = sorted((results.get(timeout=300) for _ in processes), key=lambda result: result[0])
    for process in processes:
        process.join(300)
        assert process.exitcode == 0
    return found


def test_ulysses_reuses_as_one_process_does():
    model = make()
    dense = denoise(model)
    enable(model, TOKEN)
    reused = denoise(model)
    for _, there_dense, there_reused, again, heads in on_two_processes(ulysses_degree=2):
        torch.testing.assert_close(torch.from_numpy(there_dense), dense, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(torch.from_numpy(there_reused), reused, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(torch.from_numpy(again), dense, atol=1e-5, rtol=1e-5)
        assert {*heads} == {1} and len(heads) == STEPS * 2  # each rank has one of the two heads
    assert not torch.allclose(reused, dense, atol=1e-4)


def test_ring_attention_stays_dense_with_a_warning():
    """diffusers has no ring attention for the CPU, so the model is only told that its sequence is dealt out."""
    model = make()
    dense = denoise(model)
    model._parallel_config = ParallelConfig(context_parallel_config=ContextParallelConfig(ring_degree=2))
    enable(model, TOKEN)
    with pytest.warns(UserWarning, match="ring attention") as warned:
        assert torch.equal(denoise(model), dense)
    assert len([w for w in warned if "stays dense" in str(w.message)]) == 1 and summary(model)["records"] == []
