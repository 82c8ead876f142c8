"""What hostile visitors upload: too much, in part, or what is no clip; each is answered in a sentence."""

import socket
import subprocess
import time
from urllib.parse import urlparse

import imageio_ffmpeg
import numpy as np
import pytest

from timeripple.bench.load import SIZE, generate, result_of
from timeripple.bench.visitor import Said, Visitor
from timeripple.clips.generate import Request
from timeripple.clips.video import FPS, write_mp4
from ui.gpu import works
from ui.guard import uploads_in
from ui.runs import Limits
from ui.source import submit_clip

LIMITS = Limits(max_upload_megabytes=1, max_visitor_megabytes=3, max_upload_wait=2)


def raw_upload(app, size: int, sent: int, wait: float = 0) -> bytes:
    """An upload that says it has `size` bytes and sends so many, over a bare connection; what came back."""
    host = urlparse(app.url)
    with socket.create_connection((host.hostname, host.port), timeout=10) as connection:
        head = f"POST /gradio_api/upload HTTP/1.1\r\nHost: {host.netloc}\r\nContent-Length: {size}\r\n"
        connection.sendall(f"{head}Content-Type: multipart/form-data; boundary=b\r\n\r\n".encode())
        part = b'--b\r\nContent-Disposition: form-data; name="files"; filename="a.mp4"\r\n\r\n'
        connection.sendall(part + b"x" * sent)
        time.sleep(wait)
        return connection.recv(1000) if wait else b""


def test_a_file_that_is_too_large_is_one_sentence(app, visitor, tmp_path):
    (tmp_path / "large.mp4").write_bytes(bytes(1_100_000))
    with pytest.raises(Said, match=r"This upload is larger than 1 MB, the limit here\."):
        visitor.upload(tmp_path / "large.mp4")
    assert b"413" in raw_upload(app, 10**12, 10, wait=0.2)


def test_many_files_in_one_request_are_bounded_together(visitor):
    files = [("files", (f"{n}.mp4", bytes([n]) * 400_000)) for n in range(4)]
    response = visitor.http.post("/gradio_api/upload", files=files)
    assert response.status_code == 413 and response.text == "This upload is larger than 1 MB, the limit here."


@pytest.mark.parametrize("how", ["broken off", "never ends"])
def test_nothing_stays_of_an_upload_that_does_not_end(app, how):
    before = uploads_in(app.runs._folder.parent)
    raw_upload(app, 900_000, 300_000, wait=0 if how == "broken off" else LIMITS.max_upload_wait + 1)
    deadline = time.monotonic() + 10
    while list(app.runs._folder.parent.glob("tmp*")) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not list(app.runs._folder.parent.glob("tmp*")) and uploads_in(app.runs._folder.parent) == before


def test_an_address_has_so_much_and_no_more(visitor, tmp_path):
    taken = []
    with pytest.raises(Said, match=r"You have \d MB of uploads here, which is the limit; please try again later\."):
        for number in range(6):
            path = tmp_path / f"{number}.mp4"
            path.write_bytes(bytes([number]) * 900_000)
            taken.append(visitor.upload(path))
    assert len(taken) == 4
    for file in taken:  # for the tests that follow
        assert visitor.file(file["path"]).status_code == 200


def made(path, *options):
    subprocess.run([imageio_ffmpeg.get_ffmpeg_exe(), "-loglevel", "error", "-y", *options, str(path)], check=True)
    return path


CLIPS = {
    "22000x2": (
        ["-f", "lavfi", "-i", "color=red:s=22000x2:d=1:r=8", "-c:v", "ffv1"],
        "mkv",
        "22000×2 pixels; give one of",
    ),
    "500 fps": (
        ["-f", "lavfi", "-i", "color=red:s=64x64:d=1:r=500"],
        "mp4",
        "500 frames a second; give one of at most 120",
    ),
    "one frame": (["-f", "lavfi", "-i", "testsrc=s=64x64", "-frames:v", "1"], "gif", "no moving picture but one frame"),
    "sound only": (["-f", "lavfi", "-i", "sine=d=2"], "mp4", "holds no picture"),
    "long": (["-f", "lavfi", "-i", "color=red:s=64x64:d=70:r=2"], "mp4", "70 seconds long; give one of at most 60"),
}


@pytest.mark.parametrize("name", [*CLIPS, "playlist", "text", "cut off"])
def test_clips(app, tiny_pipeline, tmp_path, name):
    if name in CLIPS:
        options, ending, sentence = CLIPS[name]
        path = made(tmp_path / f"own.{ending}", *options)
    else:
        path, sentence = tmp_path / "own.mp4", "no video that can be read" if name != "cut off" else "0 frames could"
        write_mp4(path, np.zeros((FPS, 64, 64, 3), np.uint8))
        texts = {
            "playlist": b"#EXTM3U\n#EXTINF:10,\n/etc/passwd\n",
            "text": b"x" * 500,
            "cut off": path.read_bytes()[:800],
        }
        path.write_bytes(texts[name])
    run = submit_clip(
        tiny_pipeline,
        works(tiny_pipeline),
        app.runs,
        str(path),
        Request("a clip", steps=4, num_frames=9, height=64, width=64),
    )
    assert app.runs.wait(run, 60) and run.state == "failed" and sentence in run.error and len(run.error) < 200


def test_after_the_files_it_still_generates(app):
    visitor = Visitor(app.url)
    generate(visitor, "a blue cube", 11, SIZE, 3)
    assert "a blue cube" in result_of(visitor)
    visitor.close()
