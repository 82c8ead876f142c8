"""What is put into a transformer: hooks of PyTorch at its forward pass, and processors around its self-attention.

Neither replaces a `forward`, as offloading and caches do, so all of them may come and go in any order; and all of it is
copied and pickled with the model, without the state of a run.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable
from typing import Any

import torch
from diffusers.hooks import ModelHook
from diffusers.hooks.hooks import BaseState, CacheContext, StateManager, _set_cache_context
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from timeripple.attention.call import AttentionCall
from timeripple.attention.config import ReuseConfig
from timeripple.attention.grid import TokenGrid
from timeripple.attention.method import AttentionMethod
from timeripple.attention.timing import now
from timeripple.hooks.account import Account, Part
from timeripple.hooks.clock import Moment, StepClock
from timeripple.hooks.compiled import handle, traced_begin
from timeripple.hooks.families import GENERIC, Family
from timeripple.hooks.masks import MaskReader
from timeripple.hooks.processor import ReuseProcessor
from timeripple.hooks.registry import forget_run, listen, listen_no_more

HOOK = "timeripple"


class TransformerHook(ModelHook):
    """Opens and closes the forward passes of a run; starts a new run when the clock says so.

    It stands in the registry of diffusers' hooks only to be told what `cache_context` says, and when a run is over.
    """

    _is_stateful = True

    def __init__(
        self,
        transformer: nn.Module,
        family: Family,
        config: AttentionMethod | None,
        clock: StepClock,
        account: Account,
        memory_limit: int | None,
    ):
        super().__init__()
        self.transformer, self.family, self.config = transformer, family, config
        self.clock, self.account, self.memory_limit = clock, account, memory_limit
        self.layers = list(family.attention_modules(transformer))
        self.states = StateManager(BaseState)  # `cache_context` puts its information into every StateManager
        self.warned: set[str] = set()
        self._parameters = list(inspect.signature(type(transformer).forward).parameters)[1:]
        self._clear()

    def _clear(self) -> None:
        """Nothing has run."""
        self.run: Any = None
        self.active, self.names_pass = False, False
        self.clip = self.number = 0  # of the run
        self.grid: list[int] | None = None
        self.heads: dict[str, int] = {}  # of the layers, once seen
        self.arguments: dict[str, Any] = {}
        self.grids: dict[int, TokenGrid] = {}  # by the number of tokens
        self.masks = MaskReader()
        self.handle, self.token = handle(self), torch.zeros((), dtype=torch.int64)  # see `compiled`

    # --- In and out ---------------------------------------------------------------------------------------------------

    def attach(self) -> None:
        self._hooks = [
            self.transformer.register_forward_pre_hook(self.before, with_kwargs=True),
            self.transformer.register_forward_hook(self.after, with_kwargs=True, always_call=True),
        ]
        listen(self.transformer, self, HOOK)
        self._wrap()

    def detach(self) -> None:
        for hook in self._hooks:
            hook.remove()
        listen_no_more(self.transformer, HOOK)
        for module in self.family.attention_modules(self.transformer).values():
            if isinstance(module.processor, ReuseProcessor):
                module.processor = module.processor.processor
        self.active, self.run = False, None  # for processors that somebody has kept

    def _wrap(self) -> None:
        """Every self-attention module has a processor of ours around its own, also if it was given another since, or an
        old one of ours, which diffusers keeps while projections are fused."""
        for name, module in self.family.attention_modules(self.transformer).items():
            processor = module.processor
            while isinstance(processor, ReuseProcessor) and processor.root is not self:
                processor = processor.processor
            if not isinstance(processor, ReuseProcessor):
                processor = ReuseProcessor.around(processor, self, name)
            if processor is not module.processor:
                module.processor = processor

    def __getstate__(self) -> dict[str, Any]:
        """Of a run, nothing is copied or pickled."""
        left_out = ("run", "arguments", "grids", "masks", "states", "heads", "handle", "token")
        return {name: value for name, value in vars(self).items() if name not in left_out}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.states = StateManager(BaseState)
        self._clear()

    # --- A forward pass -----------------------------------------------------------------------------------------------

    def before(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Opens a forward pass of the run, or leaves attention dense."""
        arguments = dict(zip(self._parameters, args, strict=False)) | kwargs
        if torch.compiler.is_compiling():
            if not torch.is_grad_enabled():
                traced_begin(self, arguments)
            return
        self._wrap()
        self.names_pass = self.states._context is None
        self.begin(arguments)
        if self.names_pass:  # for caches, which want to know it, too
            name = self.passes[-1] if self.active else "outside"
            _set_cache_context(module, CacheContext(name))

    def after(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        """Closes it. output: None after an exception. A compiled pass is closed when the next one is opened."""
        if torch.compiler.is_compiling():
            return
        if self.names_pass:
            _set_cache_context(module, None)
        if self.active and output is None:
            self.active = False
            self.reset_state(module)
        self._close()

    def begin(self, arguments: dict[str, Any]) -> None:
        """arguments: of the forward pass, by name."""
        self._close()
        try:
            self.active = self._begin(arguments)
        except BaseException:
            self.active = False
            raise

    def _begin(self, arguments: dict[str, Any]) -> bool:
        if torch.is_grad_enabled():
            return self._warn("gradients are recorded; generate under torch.no_grad()")
        if self.transformer.training:
            return self._warn("the model is in training mode; call eval() on it")
        if _splits_the_sequence(self.transformer):
            return self._warn("ring attention gives every rank a part of the grid; use ulysses_degree instead")
        try:
            moment = self.clock.moment(self.transformer, self.states._context, arguments.get("timestep"))
        except ValueError as error:
            return self._warn(str(error))
        self.arguments = arguments
        if self.run is None or moment.run != self.number:
            self._start(moment)
            self.step = moment.step
            self.passes: list[str] = []  # of this step
        self.passes = [*(self.passes if moment.step == self.step else []), moment.name]
        self.step = moment.step
        self.calls: dict[str, int] = {}  # of attention, by layer
        start = now()
        self.run.begin_forward(moment.name, moment.step)
        self.choosing_seconds += now() - start
        return True

    def _start(self, moment: Moment) -> None:
        self.note()
        forget_run(self.transformer, but=HOOK)
        if self.states._context is not None:  # which they forget too
            _set_cache_context(self.transformer, self.states._context)
        self.held_bytes, self.choosing_seconds = 0, 0.0
        config = ReuseConfig(budget=0) if self.config is None else self.config
        self.run, self.clip, self.number = config.start(moment.total), moment.clip, moment.run
        self.account.begin(moment.clip)
        if hasattr(self.run, "limit_memory"):
            samples = len(self.arguments["hidden_states"]) if self.family.per_sample else 1
            self.run.limit_memory(self.memory_limit, samples * len(self.layers))
        if hasattr(self.run, "set_times") and (times := self.clock.times(moment.total)):
            self.run.set_times(times)
        self.computed: set[tuple[str, str]] = set()  # (pass, layer)

    def _close(self) -> None:
        """Ends the forward pass that is open, if one is."""
        if self.active:
            self._end()
        self.active, self.arguments, self.grids = False, {}, {}  # and with them the tensors of this pass
        self.masks.forget()

    def _end(self) -> None:
        start, name = now(), self.passes[-1]
        for layer in self.layers:
            if self.calls.get(layer):
                self.computed.add((name, layer))
            elif (name, layer) in self.computed:  # a cache stood in for it; what guidance leaves out is never computed
                self.run.skipped(layer, self.heads.get(layer, 1))
        if not self.computed:
            self._warn("no call of attention was seen in the self-attention modules")
        self.run.end_forward()
        self.choosing_seconds += now() - start
        self.held_bytes = max(self.held_bytes, self.run.held_bytes)

    def reset_state(self, module: nn.Module) -> nn.Module:
        """Ends the run: its numbers stay, its tensors go. Pipelines call this through maybe_free_model_hooks."""
        self._close()
        self.note()
        self.run = None
        self.clock.reset()
        self.account.close(id(self), len(self.layers))
        return module

    # --- Attention ----------------------------------------------------------------------------------------------------

    def module(self, layer: str, shape: torch.Size, forward: Callable[[], Any]) -> Any:
        """Runs the processor of a self-attention module. shape: of its hidden states."""
        stand_in = getattr(self.run, "module", None)  # a run may stand in for the whole, as caches of its output do
        return stand_in(layer, shape, forward) if stand_in else forward()

    def check_calls(self, layer: str) -> None:
        """Raises RuntimeError where attention was not intercepted exactly once for what it had to compute."""
        calls = self.calls.get(layer, 0)
        samples = len(self.arguments["hidden_states"]) if self.family.per_sample else 1
        if 1 <= calls <= samples:  # fewer where a cache leaves samples of the batch out
            return
        remedy = 'call set_attention_backend("native") on the transformer'
        if self.family is GENERIC:
            self._warn(f"{layer} calls scaled_dot_product_attention {calls} times; {remedy}")
            return
        raise RuntimeError(f"{layer} called scaled_dot_product_attention {calls} times instead of once; {remedy}.")

    def attention(
        self,
        layer: str,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        *,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Tensor:
        """In place of scaled_dot_product_attention, with its signature."""
        call = self.calls[layer] = self.calls.get(layer, 0) + 1
        device = query.device.type
        if torch.is_autocast_enabled(device):  # what it does to scaled_dot_product_attention
            dtype = torch.get_autocast_dtype(device)
            query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
        try:
            if query.shape[2] != key.shape[2] or dropout_p or is_causal or enable_gqa:
                raise ValueError("attention is causal, grouped, across sequences or with dropout")
            grid = self._grid(query.shape[2])
            mask = self.masks.read(attn_mask, len(query), grid)
            asked = AttentionCall(query, key, value, grid, scale, mask, mask_is_known=True)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            self._warn(str(error))
            return scaled_dot_product_attention(
                query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
            )
        self.grid, self.heads[layer] = list(grid.shape), query.shape[1]
        name = layer if call == 1 else f"{layer}[{call - 1}]"  # samples computed apart keep their errors apart
        with torch.autocast(device, enabled=False):  # planning has a precision of its own
            output: Tensor = self.run.attention(name, asked)
        return output

    def _grid(self, tokens: int) -> TokenGrid:
        """Looked for once in a forward pass: to read it off a tensor makes the host wait for the device."""
        if tokens not in self.grids:
            self.grids[tokens] = self.family.grid(self.transformer, self.arguments, tokens)
        return self.grids[tokens]

    # --- Numbers ------------------------------------------------------------------------------------------------------

    def note(self) -> None:
        """Enters the run in progress into the account."""
        if self.run is not None:
            storage = self.run.storage.report() if hasattr(self.run, "storage") else None
            records, steps = list(self.run.records), self.run.steps
            chosen = getattr(self.run, "chosen", None)
            part = Part(records, steps, self.grid, self.held_bytes, self.choosing_seconds, storage, chosen)
            self.account.note(self.clip, self.number, id(self), part)

    def _warn(self, reason: str) -> bool:
        if reason not in self.warned:
            warnings.warn(f"Attention stays dense: {reason}.", stacklevel=2)
        self.warned.add(reason)
        return False


def _splits_the_sequence(transformer: nn.Module) -> bool:
    """Whether context parallelism leaves a rank less than the whole sequence (`enable_parallelism` of diffusers)."""
    parallel = getattr(getattr(transformer, "_parallel_config", None), "context_parallel_config", None)
    return parallel is not None and (parallel.ring_degree or 1) > 1
