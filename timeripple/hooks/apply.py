"""enable, disable and summary: attention with reuse inside a diffusers pipeline or transformer."""

from __future__ import annotations

from itertools import chain, zip_longest
from typing import Any

from diffusers.utils.torch_utils import unwrap_module
from torch import nn

from timeripple.attention.config import ReuseConfig
from timeripple.attention.method import AttentionMethod, ConfigError
from timeripple.hooks.account import Account, summarise
from timeripple.hooks.clock import StepClock
from timeripple.hooks.families import FAMILIES, GENERIC, Family, family_of
from timeripple.hooks.transformer import HOOK, TransformerHook


def enable(
    target: Any,
    config: AttentionMethod | None,
    *,
    num_inference_steps: int | None = None,
    memory_limit: int | None = None,
    warn_of_shortfall: bool = True,
) -> None:
    """Switch reuse on in a pipeline or transformer, in place of what was enabled before.

    target: a diffusers pipeline, of which every supported transformer is taken, or a transformer. config: also as text,
    such as "token:0.7"; None keeps attention dense and only measures its time; baselines bring configs of their own.
    num_inference_steps: for pipelines that tell neither this nor `num_timesteps`. memory_limit: bytes that feedback may
    hold; by default half of what is free on a GPU. To keep to it errors are kept more coarsely, in the host's memory or
    of fewer layers. warn_of_shortfall: whether a warning says, once, that a clip did not meet the budget.

    Attention stays dense, with one warning that names the reason, where gradients are recorded, the model is in
    training mode, the step is unknown, or the sequence or its mask is not what the token grid says. Raises ConfigError
    where nothing is supported and for what is no config or number, which leaves on what was; and at the first forward
    pass if the config does not fit the number of steps.
    """
    config = _method(config)
    _check("num_inference_steps", num_inference_steps, 1)
    _check("memory_limit", memory_limit, 0)
    disable(target)
    found = _transformers(target)
    clock, account = StepClock(target, num_inference_steps), Account(config, len(found), warn_of_shortfall)
    limit = None if memory_limit is None else memory_limit // len(found)
    for transformer, family in found:
        TransformerHook(transformer, family, config, clock, account, limit).attach()


def disable(target: Any) -> None:
    """Take out what `enable` put in; nothing happens if there is nothing. The last summary is lost."""
    for transformer, _ in _transformers(target):
        if hook := _hook(transformer):
            hook.detach()


def summary(target: Any) -> dict[str, Any]:
    """Numbers of the clip that is made or else was made last, in all transformers of a pipeline and in all sections.

    method: label of the config, or "dense"; granularity: None for dense; layers: self-attention layers; grid: tokens
    along t, y and x, None before attention saw any; seconds:
    {"attention", "plan"}, wall clock spent in self-attention between projections, planning included, and in planning
    alone, which is more than the records' by what chooses thresholds; saving: as `records.summarise_saving`, None
    for dense or before the first run; held_bytes: most memory held for later steps at a time; storage: how errors are
    kept, as `residuals.Storage.report`; chosen: for a speed-up, as `cost.SpeedupRun` has it, else None; records: as
    `Records.read`, their steps counted on from section to section.
    Raises ConfigError if nothing is enabled.
    """
    hooks = [hook for transformer in transformers(target) if (hook := _hook(transformer))]
    if not hooks:
        raise ConfigError(f"Nothing is enabled in this {type(target).__name__}; call enable first.")
    for hook in hooks:
        hook.note()
    accounts = {id(hook.account): hook.account for hook in hooks}.values()  # several, if enabled one by one
    together = zip_longest(*(account.sections for account in accounts), fillvalue=())
    sections = [list(chain(*parts)) for parts in together]
    return summarise(hooks[0].config, sum(len(hook.layers) for hook in hooks), sections)


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


def _check(name: str, value: Any, least: int) -> None:
    """Raises ConfigError for what is neither a number of at least so much nor None."""
    if value is not None and not (isinstance(value, int | float) and value >= least):
        raise ConfigError(f"{name} is {value!r}; give a number of at least {least}, or leave it out.")


def _hook(transformer: nn.Module) -> TransformerHook | None:
    registry = getattr(transformer, "_diffusers_hook", None)
    return registry and registry.get_hook(HOOK)
