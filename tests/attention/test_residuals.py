"""Errors of reuse kept within a limit of memory."""

import pytest
import torch

from timeripple.attention.config import ReuseConfig
from timeripple.attention.grid import TokenGrid
from timeripple.attention.residuals import Packed, Residuals, Storage

SHAPE = (1, 2, 64, 8)
BYTES = 64 * 2 * 8 * 4  # of one error, float32
LAYERS = 3
ALL = BYTES * 2 * 2 * LAYERS  # an error and its slope, two passes


def errors(seed=0):
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    ("limit", "dtype", "layers"),
    [
        (None, "float32", 3),
        (ALL, "float32", 3),
        (ALL - 1, "bfloat16", 3),
        (ALL // 2, "bfloat16", 3),
        (ALL // 2 - 1, "float8_e4m3fn", 3),
        (ALL // 4, "float8_e4m3fn", 3),
        (ALL // 4 - 1, "float8_e4m3fn", 2),
        (ALL // 12, "float8_e4m3fn", 1),
        (0, "float8_e4m3fn", 0),
    ],
)
def test_the_first_way_that_fits_is_chosen(limit, dtype, layers):
    storage = Storage(limit, LAYERS, tensors=2)
    passes = Residuals(storage), Residuals(storage)
    for step in (0, 2):
        for residuals in passes:
            for layer in range(LAYERS):
                residuals.keep(f"layer{layer}", step, errors(layer + step))
    assert storage.report() == {"dtype": dtype, "device": "cpu", "layers": layers}
    scales = 2 * 2 * layers * 2 * 4 if "8" in dtype else 0  # one float32 a head
    assert sum(residuals.nbytes for residuals in passes) <= (limit if limit is not None else ALL) + scales
    assert [passes[0].at(f"layer{layer}", 3) is not None for layer in range(3)] == [n < layers for n in range(3)]
    assert [storage.full(f"layer{layer}") for layer in range(3)] == [n >= layers for n in range(3)]


@pytest.mark.parametrize(
    ("dtype", "precision"), [(torch.float32, 0), (torch.bfloat16, 2**-8), (torch.float8_e4m3fn, 2**-4)]
)
def test_packing_rounds_as_the_format_does(dtype, precision):
    storage = Storage(None, 1, 1)
    storage.dtype, storage.device = dtype, torch.device("cpu")
    tensor = errors() * torch.tensor([1e-6, 1e4])[:, None, None]  # heads of very different sizes
    back = Packed.of(tensor, storage).tensor(tensor.device, tensor.dtype)
    smallest = tensor.abs().amax((2, 3), keepdim=True) * 2**-9 / 448 if dtype.itemsize == 1 else 0
    assert ((back - tensor).abs() <= tensor.abs() * precision + smallest).all()


def test_errors_go_on_changing_as_they_did():
    for tensors, expected in ((2, lambda a, b: b + 2 * (b - a) / 4), (1, lambda a, b: b)):
        residuals = Residuals(Storage(None, 1, tensors))
        first, second = errors(0), errors(1)
        assert residuals.at("layer", 1) is None
        residuals.keep("layer", 1, first)
        assert torch.equal(residuals.at("layer", 4), first)
        residuals.keep("layer", 5, second)
        torch.testing.assert_close(residuals.at("layer", 7), expected(first, second))


def test_there_is_no_slope_between_the_errors_of_two_plans():
    residuals, plans = Residuals(Storage(None, 1, 2)), [object(), object()]
    for time, plan in ((9, plans[0]), (7, plans[1]), (4, plans[1])):
        residuals.keep("layer", time, errors(time), plan)
        if time == 7:
            assert torch.equal(residuals.at("layer", 5), errors(7))
    torch.testing.assert_close(residuals.at("layer", 2), errors(4) + (-2) * (errors(4) - errors(7)) / (4 - 7))


def test_there_is_no_slope_over_no_steps_or_from_errors_of_another_size():
    residuals = Residuals(Storage(None, 1, 2))
    first, second = errors(0), errors(1)
    residuals.keep("layer", 1, first)
    residuals.keep("layer", 1, second)  # the same step again
    assert torch.equal(residuals.at("layer", 3), second)
    residuals.keep("layer", 2, second[:, :, :32])
    assert torch.equal(residuals.at("layer", 4), second[:, :, :32])
    assert residuals.at("layer", 4, like=second) is None
    assert residuals.at("layer", 4, like=second[:, :, :32].bfloat16()) is not None  # values under autocast


def test_layers_without_room_are_computed_densely():
    from timeripple.attention import AttentionCall, ReuseRun

    grid, steps = TokenGrid(4, 4, 4), 6
    run = ReuseRun(ReuseConfig(theta=1.0, refresh=3, ramp=0), steps)
    run.limit_memory(BYTES, LAYERS)  # in 8 bits there is room for one of the three
    for step in range(steps):
        run.begin_forward("cond", step)
        for layer in range(LAYERS):
            qkv = (errors(3 * layer + part) + 0.01 * step for part in range(3))
            query, key, value = qkv
            output = run.attention(f"layer{layer}", AttentionCall(query, key, value, grid))
            dense = torch.nn.functional.scaled_dot_product_attention(query, key, value)
            assert layer == 0 or torch.equal(output, dense)
        run.end_forward()
    assert run.storage.report() == {"dtype": "float8_e4m3fn", "device": "cpu", "layers": 1}
    savings = {layer: [max(r["saving"]) for r in run.records if r["layer"] == layer] for layer in ("layer0", "layer1")}
    assert max(savings["layer0"]) > 0.1 and max(savings["layer1"]) == 0
