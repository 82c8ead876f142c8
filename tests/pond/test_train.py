import json
import random

import pytest
import torch
from diffusers import AutoencoderKLLTXVideo

from timeripple.pond import autoencoder, clips, train, train_autoencoder
from timeripple.pond.model import with_coordinates
from timeripple.pond.pipeline import PondPipeline
from timeripple.pond.prompts import is_held_out
from timeripple.pond.train import LatentClips, Stage, around_subject, flow_matching_loss, stage_at


def test_cells_around_the_subject():
    """A pixel in frame 6 marks its cell and the eight around it, in the latent frame of frames 5 to 8."""
    covers = torch.zeros(1, 9, 40, 48, dtype=torch.bool)
    covers[0, 6, 20, 25] = True
    cells = around_subject(covers)
    expected = torch.zeros(1, 3, 5, 6, dtype=torch.bool)
    expected[0, 2, 1:4, 2:5] = True
    assert torch.equal(cells, expected)


def test_a_run_goes_through_its_stages_by_their_shares(monkeypatch):
    monkeypatch.setattr(train, "STAGES", (Stage("a", 1, ()), Stage("b", 2, ()), Stage("c", 1, ())))
    assert [stage_at(p, 0) for p in (0, 0.2, 0.3, 0.7, 0.8, 1)] == [0, 0, 1, 1, 2, 2]
    assert [stage_at(p, 1) for p in (0, 0.6, 0.7, 1)] == [1, 1, 2, 2]
    assert stage_at(0.5, 2) == 2


def test_training_shows_no_held_out_combination_and_repeats_itself():
    one, other = (clips.random_clips(12, 5, 32, random.Random(3), "cpu") for _ in range(2))
    assert not any(is_held_out(description) for description in one[0])
    assert one[0] == other[0] and torch.equal(one[1], other[1])


def test_the_newest_examples_are_kept():
    kept = clips.Newest(capacity=5)
    for start in (0, 3, 6):
        kept.add(torch.arange(start, start + 3), torch.arange(start, start + 3) * 10)
    assert len(kept) == 5 and kept.seen == 9
    numbers, tens = kept.draw(200)
    assert set(numbers.tolist()) == {4, 5, 6, 7, 8} and torch.equal(tens, numbers * 10)


def test_the_loss_is_the_weighted_error_of_the_velocity():
    """A denoiser that answers 0 leaves (noise - clean)²; cells around the subject count three times."""
    inputs = []

    def nothing(seen, timestep, embeds, return_dict):
        inputs.append((seen, timestep))
        return (torch.zeros_like(seen[:, :16]),)

    torch.manual_seed(0)
    clean, cells = torch.randn(2, 16, 3, 2, 2), torch.zeros(2, 3, 2, 2, dtype=torch.bool)
    cells[:, :, 0] = True
    denoiser = {"prompt_encoder": lambda ids: ids, "transformer": nothing}
    torch.manual_seed(1)
    loss = flow_matching_loss(denoiser, clean.half(), torch.zeros(2, 7, dtype=torch.long), cells)
    torch.manual_seed(1)
    u = (torch.randperm(2) + torch.rand(2)) / 2
    sigma = 3 * u / (1 + 2 * u)
    noise, clean = torch.randn(2, 16, 3, 2, 2), clean.half().float()
    error = (noise - clean).pow(2)
    torch.testing.assert_close(loss, (3 * error[..., 0, :].mean() + error[..., 1, :].mean()) / 4)
    at = sigma.view(-1, 1, 1, 1, 1)
    torch.testing.assert_close(inputs[0][0], with_coordinates((1 - at) * clean + at * noise))
    torch.testing.assert_close(inputs[0][1], sigma * 1000)


@pytest.fixture
def tiny(monkeypatch):
    """Training in seconds: tiny clips, windows, batches and models."""
    sizes = ((5, 32), (9, 32), (9, 48))
    for module in (clips, train_autoencoder, train):
        monkeypatch.setattr(module, "SIZES", sizes)
    for module in (clips, train_autoencoder):
        monkeypatch.setattr(module, "WINDOWS", ((9, 32), (5, 48)))
    for name, value in {"FIRST": 16, "BATCH": 32, "CAPACITY": 600}.items():
        monkeypatch.setattr(train_autoencoder, name, {"cpu": value})
    monkeypatch.setattr(train_autoencoder, "LOG_SECONDS", 0)
    monkeypatch.setattr(train, "TOKENS", {"cpu": 100})
    monkeypatch.setattr(train, "CAPACITY", {"cpu": (8, 8, 8)})
    monkeypatch.setattr(train, "LOG_SECONDS", 0)
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self, **_: None)
    return sizes


def test_clips_become_latents_and_are_drawn_several_times(tiny, monkeypatch):
    torch.manual_seed(0)
    latents = LatentClips(autoencoder.build_autoencoder(), random.Random(0), "cpu")
    monkeypatch.setattr(train, "AT_ONCE", 4)
    batches = [latents.draw(Stage("small", 1, (1.0, 0.0, 0.0))) for _ in range(12)]
    for drawn, ids, cells in batches:
        assert drawn.shape == (3, 16, 2, 4, 4) and ids.shape == (3, 7) and cells.shape == (3, 2, 4, 4)
    assert latents.kept[tiny[0]].seen == 8  # made four at a time: 36 draws, eight of each at most


def test_a_run_trains_both_parts_goes_on_and_leaves_a_pipeline(tiny, tmp_path):
    out = tmp_path / "run"
    train.train(out, 0, "cpu")
    assert json.loads((out / "vae.jsonl").read_text().splitlines()[-1])["held_out_psnr"] > 0
    first = [json.loads(line) for line in (out / "loss.jsonl").read_text().splitlines()]
    assert first and all(0 < row["loss"] < 20 for row in first)
    train.train(out, 0, "cpu", start="all", rate=0.1)
    rows = [json.loads(line) for line in (out / "loss.jsonl").read_text().splitlines()]
    assert rows[-1]["stage"] == "all" and rows[-1]["iteration"] > first[-1]["iteration"]

    pipeline = PondPipeline.from_pretrained(out / "pipeline", torch_dtype=torch.float32)
    frames = pipeline("a red ball spinning", None, 5, 32, 32, 2).frames
    assert frames.shape == (1, 5, 32, 32, 3)
    averaged = torch.load(out / "checkpoint.pt", weights_only=True)["ema"]["prompt_encoder.embedding.weight"]
    torch.testing.assert_close(pipeline.prompt_encoder.embedding.weight, averaged.half().float())


def test_the_autoencoder_goes_on_and_a_finished_one_is_taken(tiny, tmp_path):
    train_autoencoder.train(tmp_path / "one", 0, "cpu")
    train_autoencoder.train(tmp_path / "one", 0, "cpu")
    rows = [json.loads(line) for line in (tmp_path / "one" / "vae.jsonl").read_text().splitlines()]
    assert [row["iteration"] for row in rows] == [1, 1, 2, 2]
    train.train(tmp_path / "two", 0, "cpu", finished=tmp_path / "one" / "vae")
    assert not (tmp_path / "two" / "vae.jsonl").exists()
    given, taken = (
        AutoencoderKLLTXVideo.from_pretrained(path / "vae") for path in (tmp_path / "one", tmp_path / "two")
    )
    torch.testing.assert_close(taken.state_dict(), given.state_dict())
    assert (tmp_path / "two" / "pipeline" / "model_index.json").exists()


def test_another_run_keeps_the_latents_of_the_autoencoder_it_starts_from(tiny, tmp_path):
    train_autoencoder.train(tmp_path / "one", 0, "cpu")
    train_autoencoder.train(tmp_path / "two", 0, "cpu", init=tmp_path / "one" / "vae")
    video = torch.rand(1, 3, 9, 32, 32) * 2 - 1
    one, two = (AutoencoderKLLTXVideo.from_pretrained(tmp_path / name / "vae").float() for name in ("one", "two"))
    with torch.no_grad():
        latents = autoencoder.encode(one, video)
        torch.testing.assert_close(autoencoder.encode(two, video), latents)
        assert (autoencoder.decode(two, latents) - autoencoder.decode(one, latents)).abs().max() > 1e-4


def test_windows_follow_the_subject():
    """It lies in the window at half time where it is followed: render_clips says where subjects are."""
    descriptions, seen = [], []
    original = clips.render_clips

    def spy(*args, **kwargs):
        video, covers = original(*args, **kwargs)
        descriptions.extend(args[0])
        seen.extend(covers[:, covers.shape[1] // 2].flatten(1).any(1).tolist())
        return video, covers

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(clips, "render_clips", spy)
        clips.random_windows(24, 5, 64, random.Random(0), "cpu", follow=1.0)
    assert len(seen) == 24 and sum(seen) >= 23
    assert not any(is_held_out(description) for description in descriptions)


def test_an_unknown_stage_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"stage 'epic'.*small, whole, all"):
        train.train(tmp_path / "new", 1, "cpu", start="epic")
    assert not (tmp_path / "new").exists()
