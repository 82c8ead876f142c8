"""diffusers' way of testing caches, as one class that is run for every family."""

import pytest
import torch

from tests.hooks.tiny import STEPS, TINY, denoise, hooked, make
from timeripple import ReuseConfig, disable, enable, summary
from timeripple.attention.method import ConfigError


class CacheTester:
    """What holds for a cache of diffusers, of reuse in one family; name: of its transformer's class."""

    name: str
    config = ReuseConfig("token", theta=1.0, refresh=2, dense_first=0.25, dense_last=1)

    @pytest.fixture
    def model(self):
        return make(self.name)

    def enable(self, model):
        enable(model, self.config, num_inference_steps=STEPS)

    def test_enable_and_disable(self, model):
        dense = denoise(model)
        model.__dict__.pop("_diffusers_hook", None)  # cache_context made it
        self.enable(model)
        assert hooked(model) == [""]  # its registry, which cache_context talks to; nothing's forward is replaced
        reused = denoise(model)
        assert reused.isfinite().all() and summary(model)["saving"]["reuse_steps"] > 0
        disable(model)
        assert hooked(model) == [] and not model._forward_hooks and not model._forward_pre_hooks
        assert torch.equal(denoise(model), dense)

    def test_enable_twice_is_enable_once(self, model):
        self.enable(model)
        once = denoise(model)
        self.enable(model)
        self.enable(model)
        assert torch.equal(denoise(model), once)
        disable(model)
        with pytest.raises(ConfigError, match="Nothing is enabled"):
            summary(model)

    def test_disable_twice_and_without_enable(self, model):
        disable(model)
        self.enable(model)
        disable(model)
        disable(model)

    def test_the_output_differs_and_stays_near(self, model):
        dense = denoise(model)
        self.enable(model)
        reused = denoise(model)
        assert torch.equal(reused[0], dense[0]) and not torch.equal(reused, dense)
        assert (reused - dense).norm() < 0.3 * dense.norm()

    def test_contexts_are_isolated(self, model):
        self.enable(model)
        alone, both = denoise(model, ["cond"]), denoise(model, ["cond", "uncond"])
        assert torch.equal(both[:, 0], alone[:, 0])

    def test_reset_gives_tensors_back_and_starts_anew(self, model):
        self.enable(model)
        first = denoise(model)
        hook = model._diffusers_hook.get_hook("timeripple")
        assert hook.run is None and summary(model)["held_bytes"] > 0
        assert torch.equal(denoise(model), first)


for _name in TINY:
    _short = _name.removesuffix("Transformer3DModel")
    globals()[f"Test{_short}"] = type(f"Test{_short}", (CacheTester,), {"name": _name})
