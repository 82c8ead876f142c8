"""The wheel, installed alone into a clean environment and used from another folder.

Nothing is downloaded: the environment links to the distributions of this one, but only to those that the wheel's
own metadata asks for, and what they ask for in turn. So what it misses to declare is missing there too.
"""

import re
import subprocess
import sys
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.packages import packages

ROOT = Path(__file__).parents[1]
CLEAN = {"PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"}  # above all without PYTHONPATH
EXTRAS = {"app": "", "models": "-models", "ray": "-ray", "dev": "-dev"}  # and the file that pins each


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", folder, ROOT]
    subprocess.run(command, check=True)
    (path,) = folder.glob("timeripple-*.whl")
    return path


def wheel_requirements(wheel: Path) -> list[str]:
    with zipfile.ZipFile(wheel) as archive:
        (metadata,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        return re.findall(r"^Requires-Dist: (.+)$", archive.read(metadata).decode(), re.MULTILINE)


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory) -> Path:
    """The folder of a clean environment that has the wheel and what it declares, without any extra."""
    folder = tmp_path_factory.mktemp("clean")
    venv.create(folder, with_pip=False)
    (site,) = folder.glob("lib/python*/site-packages")
    for source in packages(wheel_requirements(wheel)):
        (site / source.name).symlink_to(source)
    pip = [sys.executable, "-m", "pip", "--python", folder / "bin" / "python"]
    subprocess.run([*pip, "install", "--quiet", "--no-deps", "--no-index", wheel], check=True)
    return folder


def test_the_wheel_holds_the_library_and_pond_and_nothing_else(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    rooms = {name.split("/")[0] for name in names}
    assert rooms == {"timeripple", next(room for room in rooms if room.endswith(".dist-info"))}
    assert {"timeripple/py.typed", "timeripple/assets/pond/model_index.json"} <= set(names)
    modules = {str(path.relative_to(ROOT)) for path in (ROOT / "timeripple").rglob("*.py")}
    assert {name for name in names if name.endswith(".py")} == modules


def test_it_compares_from_another_folder(installed, tmp_path):
    size = ["--size", "32", "--frames", "4", "--steps", "3"]
    command = [installed / "bin" / "timeripple", "compare", "--prompt", "a red ball", *size, "--out", "run"]
    result = subprocess.run(command, cwd=tmp_path, env=CLEAN, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert {path.name for path in (tmp_path / "run").iterdir()} >= {"dense.mp4", "token-0.75.mp4", "report.json"}
    assert "pip install 'timeripple[app]'" in result.stdout and not (tmp_path / "run" / "report.html").exists()


@pytest.mark.parametrize("name", ["gradio", "plotly", "transformers", "ray", "ui"])
def test_it_comes_without_the_extras_and_the_demo(installed, tmp_path, name):
    code = f"import importlib.util, sys; sys.exit(importlib.util.find_spec({name!r}) is not None)"
    assert subprocess.run([installed / "bin" / "python", "-c", code], cwd=tmp_path, env=CLEAN).returncode == 0


def test_settings_come_along(installed, tmp_path):
    code = (
        "from timeripple.clips.methods import calibrated_methods, parse_method\n"
        "from timeripple.clips.models import load_pipeline\n"
        "assert calibrated_methods()\n"
        "with parse_method('mag-cache').applied(load_pipeline('pond'), 4): pass\n"
    )
    subprocess.run([installed / "bin" / "python", "-c", code], cwd=tmp_path, env=CLEAN, check=True)


def test_benchmarks_that_need_more_say_so(installed, tmp_path):
    result = subprocess.run(
        [installed / "bin" / "timeripple", "bench", "work"], cwd=tmp_path, env=CLEAN, capture_output=True, text=True
    )
    assert result.returncode == 2 and "plotly" in result.stderr and result.stderr.count("\n") == 1


def pinned(suffix: str) -> dict[str, str]:
    """Names and versions of a requirements file."""
    lines = (ROOT / f"requirements{suffix}.txt").read_text().splitlines()
    parts = (Requirement(line.split("#")[0]) for line in lines if line.strip() and not line.startswith(("#", "-r")))
    return {canonicalize_name(part.name): str(part.specifier).removeprefix("==") for part in parts}


def test_every_pin_lies_in_a_range_and_every_range_is_pinned():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for extra, suffix in EXTRAS.items():
        ranges = project["optional-dependencies"][extra] + (project["dependencies"] if extra == "app" else [])
        parts = {canonicalize_name(part.name): part for part in map(Requirement, ranges) if part.name != "timeripple"}
        pins = pinned(suffix)
        assert pins.keys() == parts.keys()
        assert all(parts[name].specifier.contains(version) for name, version in pins.items()), extra
    pins = pinned("-peers") | {"diffusers": pinned("")["diffusers"]}
    peers = {canonicalize_name(part.name): part for part in map(Requirement, project["optional-dependencies"]["peers"])}
    assert pins.keys() == peers.keys() and all(peers[name].specifier.contains(pins[name]) for name in pins)
