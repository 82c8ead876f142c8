"""Entry point: `python app.py`, locally, in a container or as a Space. Settings come from the environment: `ui.limits`
lists them, and the README shows the list. --model (pond), --device, --dtype, --offload and --compile say what is
generated with, see `timeripple.clips.models`.

SIGINT and SIGTERM end it: what runs is stopped after the step in progress; finished results stay for the next start.
"""

import argparse
import ctypes
import importlib.util
import os
import signal
import sys
import threading
from collections.abc import Sequence

if importlib.util.find_spec("spaces"):
    import spaces  # noqa: F401  on ZeroGPU it has to come before torch

from timeripple.clips.models import load_pipeline
from ui.limits import Limits, check_server

M_ARENA_MAX, ARENAS = -8, 2  # of malloc.h
LOADED = ("model", "device", "dtype", "offload")  # arguments of load_pipeline


def share_memory() -> None:
    """Has all threads share two pools of memory: glibc gives every thread one of its own, whose free pages no other can
    use, and 50 visitors are served by many threads."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt:
        mallopt(M_ARENA_MAX, ARENAS)


def main(arguments: Sequence[str] = ()) -> None:
    share_memory()
    parser = argparse.ArgumentParser(description="The TimeRipple demo.")
    for name in LOADED:
        parser.add_argument(f"--{name}", default=os.environ.get(f"TIMERIPPLE_{name.upper()}"))
    parser.add_argument("--compile", action="store_true", default=os.environ.get("TIMERIPPLE_COMPILE") == "yes")
    how = {name: value for name, value in vars(parser.parse_args(arguments)).items() if value}
    try:
        port = check_server(os.environ)
        limits = Limits.from_environment(os.environ)
        pipeline = load_pipeline(**how)
        from ui.build import build_app, launch_options  # only now: Gradio reads the port when it is imported

        server = {"server_name": os.environ.get("GRADIO_SERVER_NAME", "127.0.0.1"), "server_port": port}
        app, ended = build_app(pipeline, limits), threading.Event()
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: ended.set())
        app.launch(**server, **launch_options(app), prevent_thread_lock=True)
    except (ValueError, OSError) as error:
        raise SystemExit(f"TimeRipple cannot start: {error}") from None
    ended.wait()
    finished = app.runs.close()
    app.close()
    if not finished:  # a thread that is still computing would make the interpreter abort
        os._exit(0)


if __name__ == "__main__":
    main(sys.argv[1:])
