"""What tiny pipelines begin with."""

import pytest

from timeripple.bench.tiny import example_files


@pytest.fixture(scope="session")
def files(tmp_path_factory):
    """Paths of a picture and a video, see `example_files`."""
    return example_files(tmp_path_factory.mktemp("inputs"))
