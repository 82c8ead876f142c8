"""enable, disable and summary: attention with reuse inside a diffusers pipeline or transformer."""

from __future__ import annotations

from typing import Any

from diffusers.utils.torch_utils import unwrap_module
from torch import nn

from timeripple.attention.config import ReuseConfig
from timeripple.attention.method import AttentionMethod, ConfigError
from timeripple.hooks.clock import StepClock
from timeripple.hooks.families import FAMILIES, GENERIC, Family, family_of
from timeripple.hooks.transformer import HOOK, TransformerHook


def enable(
    target: Any,
    config: AttentionMethod | None,
    *,
    num_inference_steps: int | None = None,
    memory_limit: int | None = None,
) -> None:
    """Switch reuse on in a pipeline or transformer, in place of what was enabled before.

    target: a diffusers pipeline, of which every supported transformer is taken, or a transformer. config: also as text,
    such as "token:0.7"; None keeps attention dense and only measures its time; baselines bring configs of their own.
    num_inference_steps: for pipelines that tell neither this nor `num_timesteps`. memory_limit: bytes that feedback may
    hold; by default half of what is free on a GPU. To keep to it errors are kept more coarsely, in the host's memory or
    of fewer layers.

    Attention stays dense, with one warning that names the reason, where gradients are recorded, the model is in
    training mode, the step is unknown, or the sequence or its mask is not what the token grid says. Raises ConfigError
    where nothing is supported and for what is no config, and at the first forward pass if the config does not fit the
    number of steps.
    """
    config = _method(config)
    disable(target)
    clock = StepClock(target, num_inference_steps)
    for transformer, family in _transformers(target):
        TransformerHook(transformer, family, config, clock, memory_limit).attach()


def disable(target: Any) -> None:
    """Take out what `enable` put in; nothing happens if there is nothing. The last summary is lost."""
    for transformer, _ in _transformers(target):
        if hook := _hook(transformer):
            hook.detach()


def summary(target: Any) -> dict[str, Any]:
    """Numbers of the run in progress or else of the last one.

    method: label of the config, or "dense"; granularity: None for dense; layers: self-attention layers; grid: tokens
    along t, y and x, None before attention saw any; seconds:
    {"attention", "plan"}, wall clock spent in self-attention between projections, planning included, and in planning
    alone, which is more than the records' by what chooses thresholds; saving: as `ReuseRun.saving`, None
    for dense or before the first run; held_bytes: most memory held for later steps at a time; storage: how errors are
    kept, as `residuals.Storage.report`; records: as `ReuseRun.records`. The transformers of a pipeline are added up.
    Raises ConfigError if nothing is enabled.
    """
    hooks = [hook for transformer in transformers(target) if (hook := _hook(transformer))]
    if not hooks:
        raise ConfigError(f"Nothing is enabled in this {type(target).__name__}; call enable first.")
    total, *others = (hook.summary() for hook in hooks)
    for other in others:
        total = _add(total, other)
    return total


def transformers(target: Any) -> list[nn.Module]:
    """The supported transformers of a pipeline, or the transformer itself. Raises ConfigError if there are none."""
    return [transformer for transformer, _ in _transformers(target)]


def _transformers(target: Any) -> list[tuple[nn.Module, Family]]:
    parts = getattr(target, "components", {"": target}).values()
    components = {id(part): part for part in map(unwrap_module, parts)}.values()  # one may have two roles
    found = [(part, family) for part in components if isinstance(part, nn.Module) and (family := family_of(part))]
    if not found:
        raise ConfigError(f"{type(target).__name__} has no supported transformer; supported: {', '.join(FAMILIES)}.")
    known = [(part, family) for part, family in found if family is not GENERIC]
    return known or found  # text encoders may have layers of usual names too


def _method(config: Any) -> AttentionMethod | None:
    """Raises ConfigError, one sentence, for what is no config."""
    if isinstance(config, str):
        return ReuseConfig.parse(config)
    if config is not None and (isinstance(config, type) or not hasattr(config, "start")):
        raise ConfigError(
            f"{config!r} is no way to compute attention; give a ReuseConfig, a text like 'token:0.7' or None."
        )
    return config


def _hook(transformer: nn.Module) -> TransformerHook | None:
    registry = getattr(transformer, "_diffusers_hook", None)
    return registry and registry.get_hook(HOOK)


def _add(first: dict[str, Any], second: dict[str, Any]) -> dict[str, Any]:
    """Summaries of two transformers that share the denoising steps of one run; each counts 0 at the other's steps."""
    savings = [part["saving"] for part in (first, second) if part["saving"]]
    saving: dict[str, Any] = {**savings[0]} if savings else {}
    for other in savings[1:]:
        saving |= {name: saving[name] + other[name] for name in ("reuse_steps", "all_steps")}
        saving["per_step"] = [a + b for a, b in zip(saving["per_step"], other["per_step"], strict=True)]
    return first | {
        "seconds": {name: first["seconds"][name] + second["seconds"][name] for name in first["seconds"]},
        "saving": saving or None,
        **{name: first[name] + second[name] for name in ("layers", "held_bytes", "records")},
    }
