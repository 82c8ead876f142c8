"""The app on the tiny pipeline, served on a free port for the tests of this folder."""

import pytest

from ui.build import LAUNCH, build_app
from ui.runs import Limits


@pytest.fixture(scope="session")
def url(tiny_pipeline):
    app = build_app(tiny_pipeline, Limits(max_tokens=10_000, max_steps=40))
    _, url, _ = app.launch(server_name="127.0.0.1", prevent_thread_lock=True, quiet=True, **LAUNCH)
    yield url
    app.close()
