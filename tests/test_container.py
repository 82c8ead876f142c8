"""The Dockerfile, replayed without Docker: its steps in a folder that stands for the image, its user, its health check.

What this cannot see is the base image: the Python that runs the tests stands in for it. It also shows that
requirements.txt alone is all the app needs, and that it runs as a user who cannot write to its source.

Once the image has an environment, it gets what this one has of requirements.txt, and of what that asks for in turn, so
that pip has nothing to download but what is missing or of another version.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from tests.packages import packages

ROOT = Path(__file__).parents[1]
PORT = "7863"  # in place of the published one, which may be in use here
UID = 1000


def instructions() -> list[tuple[str, str]]:
    text = re.sub(r"\\\n", " ", (ROOT / "Dockerfile").read_text())
    return [tuple(line.split(None, 1)) for line in text.splitlines() if line.strip() and not line.startswith("#")]


def python_for(user: dict) -> str:
    """An interpreter that the user may run, to build the environment with."""
    check = "import ensurepip, sys; sys.exit(sys.version_info < (3, 11))"
    for python in (sys._base_executable, "/usr/bin/python3", "/usr/local/bin/python3"):
        try:
            if subprocess.run([python, "-c", check], cwd="/", capture_output=True, **user).returncode == 0:
                return python
        except OSError:
            continue
    pytest.fail(f"No Python 3.11 with venv that user {UID} may run: install python3 and python3-venv.")


def linked(source: str | Path, target: str | Path) -> None:
    """The file itself where it can be, else a copy, as on another disk."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


class Image:
    """A folder in place of the root of the file system; paths of the Dockerfile lie below it."""

    def __init__(self, root: Path):
        self.root, self.directory, self.user = root, "/", {}
        self.environment = dict(os.environ)
        self.other_user = {"user": UID, "group": UID, "extra_groups": []} if os.getuid() == 0 else {}
        self.python = python_for(self.other_user)

    def inside(self, text: str) -> str:
        text = re.sub(r"(?<![\w.:/])/(opt|app|tmp)\b", rf"{self.root}/\1", text)
        return text.replace("python -m venv", f"{self.python} -m venv").replace("7860", PORT)

    def folder(self, path: str) -> Path:
        return Path(self.inside(str(Path(self.directory) / path)))

    def run(self, command: str | list[str], **options):
        options |= {"shell": isinstance(command, str), "cwd": self.folder("."), "env": self.environment}
        return subprocess.Popen(command, **options, **self.user)

    def lend_packages(self) -> None:
        """Puts packages of this environment into that of the image, where both are of one Python."""
        site = self.root / f"opt/venv/lib/python{sys.version_info.major}.{sys.version_info.minor}/site-packages"
        if not site.exists():
            return
        lines = (ROOT / "requirements.txt").read_text().splitlines()
        for source in packages([line.split("#")[0] for line in lines if line.partition("#")[0].strip()]):
            if source.is_dir():
                shutil.copytree(source, site / source.name, copy_function=linked, dirs_exist_ok=True)
            else:
                linked(source, site / source.name)

    def follow(self, name: str, value: str) -> None:
        if name == "WORKDIR":
            self.directory = value
            self.folder(".").mkdir(parents=True, exist_ok=True)
        elif name == "COPY" and not value.startswith("--from"):  # stages share the folder
            source, target = value.split()
            copy = shutil.copytree if (ROOT / source).is_dir() else shutil.copy
            copy(ROOT / source, self.folder(target) / (source if target == "." else ""))
        elif name == "RUN" and not value.startswith("useradd"):
            assert self.run(self.inside(value)).wait() == 0
            if "-m venv" in value:
                self.lend_packages()
        elif name == "USER":
            self.user = self.other_user
            self.environment["HOME"] = str(self.root / "tmp")
        elif name == "ENV":
            self.environment |= dict(part.split("=") for part in self.inside(value).split())


@pytest.fixture
def image():
    root = Path(tempfile.mkdtemp(prefix="image-"))  # not tmp_path, where other users may not go
    root.chmod(0o755)
    (root / "tmp").mkdir()
    (root / "tmp").chmod(0o1777)
    yield Image(root)
    shutil.rmtree(root)


def test_the_image_is_built_and_serves_the_app_to_its_health_check(image):
    steps = instructions()
    for name, value in steps:
        image.follow(name, value)
    assert dict(steps)["USER"] == "user" and dict(steps)["EXPOSE"] == "7860"
    check = image.inside(dict(steps)["HEALTHCHECK"].partition("CMD ")[2])
    command = [image.inside(part) for part in json.loads(dict(steps)["CMD"])]
    server = image.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    try:
        deadline = time.monotonic() + 120
        while image.run(check, stderr=subprocess.DEVNULL).wait() != 0:
            assert server.poll() is None, server.stderr.read().decode()
            assert time.monotonic() < deadline, "the health check never passed"
            time.sleep(1)
        if os.getuid() == 0:
            assert image.run("touch app.py", stderr=subprocess.DEVNULL).wait() != 0
    finally:
        server.terminate()
        server.wait()


def test_a_space_finds_what_its_front_matter_names():
    front = re.match(r"---\n(.*?)\n---\n", (ROOT / "README.md").read_text(), re.DOTALL)[1]
    values = dict(line.split(": ", 1) for line in front.splitlines())
    gradio = re.search(r"^gradio==([\d.]+)", (ROOT / "requirements.txt").read_text(), re.MULTILINE)[1]
    assert values["sdk"] == "gradio" and values["sdk_version"] == gradio and (ROOT / values["app_file"]).is_file()
    assert len(values["short_description"]) <= 60 and values["suggested_hardware"] == "cpu-basic"
    assert values["license"] == "apache-2.0"
