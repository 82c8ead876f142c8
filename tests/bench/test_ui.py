"""What the page benchmark refuses, and that its server is the real app, which it stops again."""

import shutil
from urllib.error import URLError
from urllib.request import urlopen

import pytest

from timeripple.bench import ui


def test_without_a_browser_it_says_so(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(ValueError, match="install the package 'chromium' first"):
        ui.page_speed(1)


@pytest.mark.browser
def test_the_server_is_the_app_and_ends_with_the_block():
    with ui.server() as (url, _):
        assert b"TimeRipple" in urlopen(url).read()
    with pytest.raises(URLError):
        urlopen(url)
