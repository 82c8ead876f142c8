"""Pipelines that begin with pictures and videos: threshold 0 is exact, reuse is near and repeatable, off is dense."""

import diffusers
import pytest
import torch
from PIL import Image

from timeripple import ReuseConfig, disable, enable, summary
from timeripple.bench import tiny as made
from timeripple.bench.tiny import tiny

TOKEN = ReuseConfig("token", theta=1.0, refresh=2, dense_first=0.25, dense_last=1)
WIDTH, HEIGHT, FRAMES, STEPS = 96, 64, 9, 4


def pictures(number):
    """Of noise, each another."""
    noise = (255 * torch.rand(number, HEIGHT, WIDTH, 3, generator=torch.Generator().manual_seed(0))).byte().numpy()
    return [Image.fromarray(frame) for frame in noise]


def wan_5b(kind, **more):
    """Wan 2.2's of 5 B, which is told a time for every token."""
    return lambda: made.wan(getattr(diffusers, kind), expand_timesteps=True, **more)


def wan_animate():
    transformer = made.model(
        "WanAnimateTransformer3DModel", **made.HEADS | {"num_layers": 5}, in_channels=12, latent_channels=4,
        out_channels=4, text_dim=made.TEXT_DIM, freq_dim=32, ffn_dim=32, image_dim=8, rope_max_seq_len=32,
        motion_encoder_channel_sizes={"4": 8, "8": 8, "16": 8}, motion_encoder_size=16, motion_style_dim=8,
        motion_dim=4, motion_encoder_dim=8, face_encoder_hidden_dim=16, face_encoder_num_heads=2,
    )  # fmt: skip
    parts = {"transformer": transformer, "image_encoder": None, "image_processor": None}
    return made.with_encoders(made.wan(diffusers.WanAnimatePipeline, **parts), made.pair, made.seen(4, 8))


def ltx_condition():
    return tiny("LTXConditionPipeline")


PICTURE, CLIP = {"image": pictures(1)[0]}, {"video": pictures(FRAMES)}
CASES = {
    "framepack": (lambda: tiny("HunyuanVideoFramepackPipeline"), PICTURE),
    "hunyuan-i2v": (lambda: tiny("HunyuanVideoImageToVideoPipeline"), PICTURE),
    "hunyuan15-i2v": (lambda: tiny("HunyuanVideo15ImageToVideoPipeline"), PICTURE | {"height": None, "width": None}),
    "cogvideox-i2v": (lambda: tiny("CogVideoXImageToVideoPipeline"), PICTURE),
    "cogvideox-v2v": (lambda: tiny("CogVideoXVideoToVideoPipeline"), CLIP | {"num_frames": None}),
    "cogvideox-fun": (
        lambda: tiny("CogVideoXFunControlPipeline"), {"control_video": CLIP["video"], "num_frames": None},
    ),
    "skyreels-i2v": (lambda: tiny("SkyReelsV2ImageToVideoPipeline"), PICTURE),
    "skyreels-forcing-i2v": (lambda: tiny("SkyReelsV2DiffusionForcingImageToVideoPipeline"), PICTURE | {"ar_step": 2}),
    "skyreels-forcing-v2v": (
        lambda: made.skyreels(diffusers.SkyReelsV2DiffusionForcingVideoToVideoPipeline),
        CLIP | {"num_frames": 17, "base_num_frames": 9, "overlap_history": 5, "height": HEIGHT, "width": WIDTH},
    ),
    "vace-video": (
        lambda: tiny("WanVACEPipeline"),
        CLIP | {"mask": [Image.new("L", (WIDTH, HEIGHT), 255)] * FRAMES, "reference_images": pictures(1)},
    ),
    "wan-5b": (wan_5b("WanPipeline"), {}),
    "wan-5b-i2v": (wan_5b("WanImageToVideoPipeline", image_encoder=None, image_processor=None), PICTURE),
    "wan-animate": (
        wan_animate,
        PICTURE | {"pose_video": pictures(9), "face_video": [p.resize((16, 16)) for p in pictures(9)],
                   "segment_frame_length": 5, "num_frames": None, "guidance_scale": 3.0},
    ),
    "ltx-image": (ltx_condition, PICTURE | {"num_frames": 17}),
    "ltx-image-later": (ltx_condition, PICTURE | {"num_frames": 17, "frame_index": 8}),
    "ltx-video-later": (ltx_condition, CLIP | {"num_frames": 25, "frame_index": 8, "strength": 0.7}),
}  # fmt: skip


@pytest.mark.filterwarnings("error:Attention stays dense")
@pytest.mark.parametrize("name", CASES)
def test_what_begins_with_pictures(name):
    build, inputs = CASES[name]
    pipe = build()
    sizes = {"num_frames": FRAMES, "height": HEIGHT, "width": WIDTH, "num_inference_steps": STEPS}
    arguments = {k: v for k, v in (sizes | inputs).items() if v is not None}
    forwards = []

    def run():
        generator = torch.Generator().manual_seed(0)
        latents = pipe(prompt=made.PROMPT, **arguments, generator=generator, output_type="latent").frames
        return torch.cat(latents, dim=2) if isinstance(latents, list) else latents  # of FramePack's sections

    dense = run()
    enable(pipe, ReuseConfig("token", theta=0))
    assert torch.equal(run(), dense)
    enable(pipe, TOKEN)
    handle = pipe.transformer.register_forward_pre_hook(lambda *_: forwards.append(1))
    reused = run()
    handle.remove()
    numbers = summary(pipe)
    assert reused.isfinite().all() and not torch.equal(reused, dense)
    assert (reused - dense).norm() < 0.6 * dense.norm() and max(numbers["saving"]["per_step"]) > 0.1
    assert len(numbers["records"]) == len(forwards) * numbers["layers"]
    assert torch.equal(run(), reused) and len(summary(pipe)["records"]) == len(numbers["records"])
    disable(pipe)
    assert torch.equal(run(), dense)
