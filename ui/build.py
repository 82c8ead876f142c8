"""The app: its tabs in order, and how it is launched."""

import os
from pathlib import Path

import gradio as gr
from gradio.utils import get_upload_folder
from starlette.middleware import Middleware
from starlette.middleware.gzip import GZipMiddleware

from ui import index, markup
from ui.api import add_endpoints
from ui.attention_tab import attention_tab
from ui.compare_tab import compare_tab
from ui.correlation_tab import correlation_tab
from ui.form import LATEST
from ui.gpu import works
from ui.guard import Guard, remove_uploads
from ui.limits import Limits
from ui.method_tab import method_tab
from ui.poster import Poster, poster
from ui.reuse_tab import reuse_tab
from ui.runs import Runs
from ui.sessions import lean_sessions
from ui.source import source_bar
from ui.timing_tab import timing_tab

HERE = Path(__file__).parent
PAPER = "https://arxiv.org/abs/2511.12035"
FONT = gr.themes.LocalFont("IBM Plex Sans", weights=(400, 700))
LAUNCH = {
    "theme": gr.themes.Base(
        primary_hue="sky",
        neutral_hue="slate",
        radius_size="lg",
        font=[FONT, "system-ui", "sans-serif"],
        font_mono=[gr.themes.LocalFont("IBM Plex Mono"), "monospace"],
    ).set(
        body_text_color_subdued="*neutral_500",
        body_text_color_subdued_dark="*neutral_400",
        block_info_text_color="*neutral_500",
        button_primary_background_fill="#0072b2",
        button_primary_background_fill_dark="#0072b2",
        button_primary_background_fill_hover="#005f96",
        button_primary_background_fill_hover_dark="#0078bb",
        slider_color="#0072b2",
        slider_color_dark="#56b4e9",
    ),
    "css_paths": HERE / "style.css",
    "js": (HERE / "exports.js").read_text(encoding="utf-8"),
    "favicon_path": str(HERE / "favicon.svg"),
    "allowed_paths": [],
    "footer_links": ["api", "settings"],
    "ssr_mode": False,
    "enable_monitoring": False,
    "_frontend": False,  # no look at its own page, after which Gradio gives up where that takes three seconds
    "max_threads": 200,  # a page or program that waits for a run has one
}


def launch_options(app: gr.Blocks) -> dict:
    """Keyword arguments for `app.launch()`, where `app` is from `build_app`."""
    limits = app.runs.limits
    packed = Middleware(GZipMiddleware, minimum_size=10_000, compresslevel=5)  # the page is most of a megabyte
    guard = Middleware(Guard, limits=limits, folder=get_upload_folder())
    first = Middleware(Poster, html=app.poster)
    return LAUNCH | {
        "blocked_paths": [str(Path(get_upload_folder(), index.FOLDER))],
        "max_file_size": f"{limits.max_upload_megabytes}mb",
        "state_session_capacity": limits.max_sessions,
        "app_kwargs": {"middleware": [packed, guard, first], "lifespan": lean_sessions},
    }


def links() -> list[tuple[str, str]]:
    """Where the method and, on a Space, the code are from."""
    space = os.environ.get("SPACE_ID")
    code = [("Code", f"https://huggingface.co/spaces/{space}/tree/main")] if space else []
    return [("Paper", PAPER), *code]


def build_app(pipeline, limits: Limits | None = None) -> gr.Blocks:
    """The app on a loaded pipeline. Results lie in Gradio's upload folder, from where they are served as they are.
    `.runs` is the registry, to be closed with the app; `.poster` what is seen before it is drawn."""
    runs, work = Runs(limits or Limits(), get_upload_folder()), works(pipeline)
    if runs.alone:
        remove_uploads(get_upload_folder())
    age = runs.limits.max_age  # in seconds, of uploads too

    def leave(page: gr.Request) -> None:
        runs.leave(page.session_hash)

    with gr.Blocks(
        title="TimeRipple", analytics_enabled=False, fill_width=True, delete_cache=(min(age, 600), age)
    ) as app:
        header = markup.header(links())
        gr.HTML(header)
        # Outside the tabs: what is inside one is not read before the tab is opened.
        looked_into = gr.BrowserState(None, storage_key="timeripple-source", secret="timeripple")
        paired = gr.BrowserState(None, storage_key="timeripple-pairings", secret="timeripple")
        measured = gr.BrowserState(None, storage_key="timeripple-timing", secret="timeripple")
        with gr.Tabs():
            with gr.Tab("Compare"):
                size, first, headline = compare_tab(app, pipeline, work, runs)
            with gr.Tab("Method"):
                method_tab()
            with gr.Tab("Look inside") as opened:
                source = source_bar(app, opened, pipeline, work, runs, looked_into)
                with gr.Tabs():
                    with gr.Tab("Correlations") as tab:
                        views = [correlation_tab(tab, runs, source)]
                    with gr.Tab("Attention") as tab:
                        views.append(attention_tab(tab, runs, source))
                    with gr.Tab("Laboratory") as tab:
                        views.append(reuse_tab(tab, pipeline, work, runs, source, paired))
                source.wire(views)
            with gr.Tab("Timing") as tab:
                timing_tab(tab, pipeline, work, runs, measured)
        for one, other in ((size, source.size), (source.size, size)):  # one size in all of the app
            one.input(lambda chosen: chosen, one, other, **LATEST)
        add_endpoints(pipeline, work, runs)
        app.unload(leave)
    app.queue(max_size=runs.limits.max_calls, api_open=False)
    app.runs, app.poster = runs, poster(header, headline, first.folder / "side_by_side.mp4")
    return app
