import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from timeripple.pond import train
from timeripple.pond.autoencoder import LatentBasis, to_tensor
from timeripple.pond.model import build_transformer, with_coordinates
from timeripple.pond.pipeline import PondPipeline
from timeripple.pond.prompts import Description, is_held_out
from timeripple.pond.scenes import render
from timeripple.pond.train import RotaryOfFrames, Stage, around_subject, flow_matching_loss, training_clip

SCENE = Description("red", "ball", "large", "still", "snow", "day", "static")
TINY = (
    Stage("pairs", 4, 32, 3, seen=2, batch=2, iterations=2, lr=0.1, final_lr=0.1, subject_weight=2),
    Stage("clips", 4, 32, 3, seen=4, batch=1, iterations=1, lr=0.1, final_lr=0.0, subject_weight=1),
)


def test_frames_keep_the_rotary_of_their_clip():
    rope = build_transformer().rope
    whole = rope(torch.empty(1, 8, 6, 3, 2))
    some = RotaryOfFrames(rope, 6, 2)
    some.frames.copy_(torch.tensor([1, 4]))
    tokens = [frame * 6 + i for frame in (1, 4) for i in range(6)]
    for expected, found in zip(whole, some(torch.empty(1, 8, 2, 3, 2)), strict=True):
        assert torch.equal(found, expected[:, tokens])


def test_cells_around_the_subject():
    frames = render(SCENE, 3, 2, 128, 128)
    cells = around_subject(frames)
    assert cells.shape == (2, 16, 16) and cells.dtype == torch.bool
    assert cells[:, 7:10, 7:9].all()  # a still ball of radius 0.2 near the middle
    assert not cells[:, 0].any() and not cells[:, :, 0].any()
    assert 0.1 < cells.float().mean() < 0.4


def test_training_shows_no_held_out_combination_and_repeats_itself():
    for index in range(20):
        description, frames = training_clip(TINY[0], index)
        assert not is_held_out(description) and frames.shape == (4, 32, 32, 3)
    again, same = training_clip(TINY[0], 19)
    assert again == description and (same == frames).all()


def test_the_loss_is_the_weighted_error_of_the_frames_seen():
    """A denoiser that answers 0 leaves (noise - clean)²; cells of weight 3 count three times."""
    seen_inputs = []

    def nothing(seen, timestep, embeds, return_dict):
        seen_inputs.append(seen)
        return (torch.zeros_like(seen[:, :8]),)

    torch.manual_seed(0)
    clean = torch.randn(2, 8, 4, 2, 2)
    subjects = torch.zeros(2, 4, 2, 2, dtype=torch.bool)
    subjects[:, :, 0] = True
    batch = {"latents": clean.half(), "ids": torch.zeros(2, 7, dtype=torch.long), "subjects": subjects}
    denoiser = {"prompt_encoder": lambda ids: ids}
    frames, weight = torch.tensor([0, 3]), torch.rand(8) + 0.5
    torch.manual_seed(1)
    loss = flow_matching_loss(denoiser, nothing, batch, frames, weight, 3.0)
    torch.manual_seed(1)
    u = (torch.randperm(2) + torch.rand(2)) / 2
    sigma = (3 * u / (1 + 2 * u)).view(-1, 1, 1, 1, 1)
    noise = torch.randn(2, 8, 4, 2, 2)
    clean = clean.half().float()
    error = (noise - clean)[:, :, frames].pow(2) * weight.view(-1, 1, 1, 1)
    expected = (3 * error[..., 0, :].mean() + error[..., 1, :].mean()) / 4
    torch.testing.assert_close(loss, expected)
    whole = with_coordinates((1 - sigma) * clean + sigma * noise)
    torch.testing.assert_close(seen_inputs[0], whole[:, :, frames])


def test_training_resumes_logs_samples_and_exports(tmp_path, monkeypatch):
    monkeypatch.setattr(train, "STAGES", TINY)
    monkeypatch.setattr(torch, "compile", lambda model, **_: model)
    basis = LatentBasis.fit(to_tensor(render(SCENE, 0, 4, 64, 64)))
    out, pond = tmp_path / "run", Path(__file__).parents[2] / "assets" / "pond"
    out.mkdir()
    save_file(
        {"mean": basis.mean, "components": basis.components.contiguous(), "std": basis.std}, out / "basis.safetensors"
    )
    train.train(out, minutes=0, init=pond, start="pairs")  # out of time after one iteration, before a checkpoint
    assert not (out / "checkpoint.pt").exists()
    train.train(out, None, pond, "pairs")
    rows = [json.loads(line) for line in (out / "loss.jsonl").read_text().splitlines()]
    assert [(row["iteration"], row["stage"]) for row in rows] == [(2, "pairs"), (3, "clips")]
    assert all(0 < row["loss"] < 10 for row in rows)
    assert (out / "samples-000002.png").exists() and (out / "samples-000003.png").exists()
    train.train(out, None, None, "pairs")  # finished: nothing happens
    assert len((out / "loss.jsonl").read_text().splitlines()) == 2

    train.export(out, tmp_path / "exported")
    shipped = PondPipeline.from_pretrained(pond).transformer.state_dict()
    exported = PondPipeline.from_pretrained(tmp_path / "exported").transformer.state_dict()
    assert exported.keys() == shipped.keys()
    changed = [name for name in shipped if not torch.equal(shipped[name], exported[name])]
    assert changed and all(torch.allclose(shipped[n].float(), exported[n].float(), atol=0.2) for n in shipped)


def test_an_unknown_stage_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"stage 'epic'.*small, pairs, fours, clips"):
        train.train(tmp_path, None, None, "epic")
    assert not list(tmp_path.iterdir())
