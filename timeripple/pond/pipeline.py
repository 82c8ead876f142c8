"""PondPipeline: text to video with the bundled model, shaped like every diffusers video pipeline."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKLLTXVideo, DiffusionPipeline, SchedulerMixin, WanTransformer3DModel
from diffusers.pipelines.wan.pipeline_output import WanPipelineOutput
from diffusers.utils.torch_utils import randn_tensor

from timeripple.pond import autoencoder
from timeripple.pond.autoencoder import SPATIAL_FACTOR, TEMPORAL_FACTOR
from timeripple.pond.model import PondPromptEncoder, with_coordinates
from timeripple.pond.prompts import Description, parse_prompt

MAX_TOKENS = 65_536


def latent_frames(num_frames: int) -> int:
    """Latent frames of a clip: its first frame by itself, then four at a time."""
    return (num_frames - 1) // TEMPORAL_FACTOR + 1


class PondPipeline(DiffusionPipeline):
    """Generates short clips of coloured subjects from prompts of the grammar in `timeripple.pond.prompts`.

    Components: `prompt_encoder`, `transformer` (WanTransformer3DModel), `vae` (AutoencoderKLLTXVideo: the first frame
    by itself, then four to a latent frame, 8×8 pixels to a latent cell) and `scheduler` (flow matching).
    """

    model_cpu_offload_seq = "prompt_encoder->transformer->vae"

    def __init__(
        self,
        prompt_encoder: PondPromptEncoder,
        transformer: WanTransformer3DModel,
        vae: AutoencoderKLLTXVideo,
        scheduler: SchedulerMixin,
    ):
        super().__init__()
        self.register_modules(prompt_encoder=prompt_encoder, transformer=transformer, vae=vae, scheduler=scheduler)
        self.batched_guidance = False  # both guidance passes in one batch

    @property
    def current_timestep(self) -> torch.Tensor:
        """Of the denoising step in progress."""
        return self._current_timestep

    @property
    def num_timesteps(self) -> int:
        """Denoising steps of the run in progress or of the last one."""
        return self._num_timesteps

    @property
    def interrupt(self) -> bool:
        """Set `_interrupt = True` in a step callback to stop before the next step."""
        return self._interrupt

    def check_inputs(self, num_frames: int, height: int, width: int, num_inference_steps: int) -> None:
        """Raise ValueError, one sentence each, for sizes and step counts that cannot be generated."""
        for name, value in (("height", height), ("width", width)):
            if value < 32 or value % SPATIAL_FACTOR:
                raise ValueError(f"{name} is {value}; give a multiple of {SPATIAL_FACTOR} of at least 32, such as 128.")
        if num_frames < 1 or (num_frames - 1) % TEMPORAL_FACTOR:
            raise ValueError(f"num_frames is {num_frames}; give a multiple of {TEMPORAL_FACTOR} plus 1, such as 33.")
        if num_inference_steps < 1:
            raise ValueError(f"num_inference_steps is {num_inference_steps}; give at least 1, such as 20.")
        tokens = latent_frames(num_frames) * (height // SPATIAL_FACTOR) * (width // SPATIAL_FACTOR)
        if tokens > MAX_TOKENS:
            raise ValueError(f"{num_frames} frames of {width}x{height} are {tokens} tokens; stay below {MAX_TOKENS}.")

    def encode_prompt(
        self, prompt: str | list[str], negative_prompt: str | list[str] | None
    ) -> tuple[torch.Tensor, ...]:
        """Prompts to embeddings [B, slots, dim], and the same for the negative prompts (empty: nothing said)."""
        prompts = [prompt] if isinstance(prompt, str) else prompt
        negatives = [negative_prompt or ""] * len(prompts) if not isinstance(negative_prompt, list) else negative_prompt
        descriptions = [parse_prompt(text) for text in prompts]
        opposite = [parse_prompt(text) if text.strip() else Description() for text in negatives]
        return self.prompt_encoder.encode(descriptions), self.prompt_encoder.encode(opposite)

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | list[str],
        negative_prompt: str | list[str] | None = None,
        num_frames: int = 33,
        height: int = 192,
        width: int = 192,
        num_inference_steps: int = 20,
        guidance_scale: float = 3.0,
        generator: torch.Generator | None = None,
        latents: torch.Tensor | None = None,
        output_type: str = "np",
        return_dict: bool = True,
        callback_on_step_end: Callable[..., dict[str, Any] | None] | None = None,
        callback_on_step_end_tensor_inputs: tuple[str, ...] = ("latents",),
    ) -> Any:
        """Generate clips.

        Args:
            prompt: one prompt or a list of them.
            negative_prompt: what guidance steers away from; None or "" steers away from nothing in particular.
            num_frames: frames, a multiple of 4 plus 1.
            height, width: pixels, multiples of 8.
            num_inference_steps: denoising steps.
            guidance_scale: classifier-free guidance; 1 or less switches the second pass off.
            generator: source of the initial noise.
            latents: initial noise [B, channels, latent frames, height / 8, width / 8], instead of drawing it.
            output_type: "np" float [B, F, H, W, 3] in 0..1, "pt" float [B, F, 3, H, W], "pil" lists of images, or
                "latent" for the latents.
            callback_on_step_end: called as (pipeline, step, timestep, {"latents": ...}) after every step; may return
                replaced latents and may set `pipeline._interrupt = True` to stop.
            callback_on_step_end_tensor_inputs: what it is given, of latents, velocity (guided, as predicted at this
                step), prompt_embeds and negative_embeds.

        Returns: WanPipelineOutput, or with return_dict=False the clips in a tuple of one.

        Raises: PromptError for prompts, ValueError for sizes and step counts.
        """
        self.check_inputs(num_frames, height, width, num_inference_steps)
        prompt_embeds, negative_embeds = self.encode_prompt(prompt, negative_prompt)
        device, dtype = self._execution_device, self.transformer.dtype
        prompt_embeds, negative_embeds = prompt_embeds.to(device, dtype), negative_embeds.to(device, dtype)
        shape = (
            len(prompt_embeds),
            self.transformer.config.out_channels,
            latent_frames(num_frames),
            height // SPATIAL_FACTOR,
            width // SPATIAL_FACTOR,
        )
        if latents is None:
            latents = randn_tensor(shape, generator=generator, device=device, dtype=torch.float32)
        elif latents.shape != shape:
            raise ValueError(f"latents have shape {tuple(latents.shape)}; this size needs {shape}.")

        self._begin(num_inference_steps)
        with self.progress_bar(total=num_inference_steps) as progress_bar:
            for step, timestep in enumerate(self.scheduler.timesteps):
                if self.interrupt:
                    break
                self._current_timestep = timestep
                velocity = self._predict(latents, timestep, step, prompt_embeds, negative_embeds, guidance_scale)
                latents = self.scheduler.step(velocity, timestep, latents, return_dict=False)[0]
                if callback_on_step_end is not None:
                    available = {
                        "latents": latents,
                        "velocity": velocity,
                        "prompt_embeds": prompt_embeds,
                        "negative_embeds": negative_embeds,
                    }
                    tensors = {name: available[name] for name in callback_on_step_end_tensor_inputs}
                    latents = (callback_on_step_end(self, step, timestep, tensors) or tensors).get("latents", latents)
                progress_bar.update()

        video = latents if output_type == "latent" else self._format(self.decode(latents), output_type)
        self.maybe_free_model_hooks()
        return WanPipelineOutput(frames=video) if return_dict else (video,)

    def _begin(self, num_inference_steps: int) -> None:
        self.scheduler.set_timesteps(num_inference_steps, device=self._execution_device)
        self._num_timesteps = len(self.scheduler.timesteps)
        self._interrupt = False
        self._current_timestep = self.scheduler.timesteps[0]

    @torch.no_grad()
    def denoise_once(
        self, clean: torch.Tensor, noise: torch.Tensor, step: int, num_inference_steps: int
    ) -> torch.Tensor:
        """The velocity predicted at one step of a run, from latents [B, channels, f, h, w] noised as they are there,
        without a prompt and without guidance."""
        self._begin(num_inference_steps)
        embeds = self.prompt_encoder.encode([Description()] * len(clean))
        embeds = embeds.to(self._execution_device, self.transformer.dtype)
        noisy = torch.lerp(clean, noise, float(self.scheduler.sigmas[step]))
        return self._predict(noisy, self.scheduler.timesteps[step], step, embeds, embeds, guidance_scale=1)

    def _predict(
        self,
        latents: torch.Tensor,
        timestep: torch.Tensor,
        step: int,
        prompt_embeds: torch.Tensor,
        negative_embeds: torch.Tensor,
        guidance_scale: float,
    ) -> torch.Tensor:
        """The guided velocity; conditional and unconditional passes apart, as the Wan pipelines run them, or in one
        batch, the unconditional half first."""
        context = {
            "step_index": step,
            "sigma": float(self.scheduler.sigmas[step]),
            "num_inference_steps": self._num_timesteps,
        }

        noisy = with_coordinates(latents).to(self.transformer.dtype)

        def forward(name: str, embeds: torch.Tensor) -> torch.Tensor:
            with self.transformer.cache_context(name, **context):
                return self.transformer(
                    hidden_states=noisy.repeat(len(embeds) // len(latents), 1, 1, 1, 1),
                    timestep=timestep.expand(len(embeds)),
                    encoder_hidden_states=embeds,
                    return_dict=False,
                )[0].float()

        if self.batched_guidance and guidance_scale > 1:
            embeds = torch.cat([negative_embeds, prompt_embeds])
            unconditional, conditional = forward("batch", embeds).chunk(2)
            return unconditional + guidance_scale * (conditional - unconditional)
        conditional = forward("cond", prompt_embeds)
        if guidance_scale <= 1:
            return conditional
        unconditional = forward("uncond", negative_embeds)
        return unconditional + guidance_scale * (conditional - unconditional)

    @torch.no_grad()
    def encode(self, video: torch.Tensor) -> torch.Tensor:
        """Frames in [-1, 1], [B, 3, F, H, W], to latents [B, channels, latent frames, H/8, W/8]."""
        return autoencoder.encode(self.vae, video.to(self.vae.dtype))

    @torch.no_grad()
    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """Latents [B, channels, f, h, w] to frames in 0..1, [B, F, 3, 8h, 8w], float32."""
        video = autoencoder.decode(self.vae, latents.to(self.vae.dtype))
        return (video.transpose(1, 2).float() / 2 + 0.5).clamp(0, 1)

    def _format(self, video: torch.Tensor, output_type: str) -> torch.Tensor | np.ndarray | list[Any]:
        if output_type == "pt":
            return video
        array = video.permute(0, 1, 3, 4, 2).cpu().numpy()
        return [self.numpy_to_pil(clip) for clip in array] if output_type == "pil" else array
