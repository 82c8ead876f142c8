"""A tiny random transformer of Wan, and runs of it as pipelines make them."""

import torch
from diffusers import WanTransformer3DModel

STEPS = 4
SHAPE = (1, 4, 3, 8, 12)  # 3 x 4 x 6 tokens
LAYERS = ["blocks.0.attn1", "blocks.1.attn1"]


def make_transformer(seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return (
            WanTransformer3DModel(
                patch_size=(1, 2, 2),
                num_attention_heads=2,
                attention_head_dim=24,
                in_channels=4,
                out_channels=4,
                text_dim=16,
                freq_dim=32,
                ffn_dim=32,
                num_layers=2,
                rope_max_seq_len=32,
            )
            .eval()
            .requires_grad_(False)
        )


def inputs(name, step, shape=SHAPE):
    """Latents that change slowly from step to step, and the pass's own text."""
    noise = [torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1)]
    text = torch.randn(shape[0], 5, 16, generator=torch.Generator().manual_seed(len(name)))
    return {
        "hidden_states": noise[0] + 0.1 * step * noise[1],
        "timestep": torch.full((shape[0],), 1000.0 - 100 * step),
        "encoder_hidden_states": text,
        "return_dict": False,
    }


@torch.no_grad()
def denoise(transformer, passes=("cond", "uncond"), steps=STEPS, shape=SHAPE, told=True, named=True, stop=None):
    """One run as pipelines make it; the outputs [steps, passes, ...]. stop: abandon the run before this step."""
    outputs = []
    for step in range(steps if stop is None else stop):
        for name in passes:
            context = {"step_index": step, "num_inference_steps": steps} if told else {}
            if named:
                with transformer.cache_context(name, **context):
                    outputs.append(transformer(**inputs(name, step, shape))[0])
            else:
                outputs.append(transformer(**inputs(name, step, shape))[0])
    if stop is None:
        transformer._reset_stateful_cache()
    return torch.stack(outputs).unflatten(0, (-1, len(passes)))
