"""Entry point: `python app.py`, locally, in a container or as a Space. Settings come from the environment.

GRADIO_SERVER_NAME (127.0.0.1) and GRADIO_SERVER_PORT (7860) say where the page is served, TIMERIPPLE_MAX_TOKENS,
TIMERIPPLE_MAX_STEPS, TIMERIPPLE_MAX_QUEUE and the other fields of `ui.runs.Limits` what a visitor may ask for.
--model (pond), --device, --dtype and --offload, or TIMERIPPLE_MODEL and so on, say what is generated with, see
`timeripple.clips.models`.
"""

import argparse
import importlib.util
import os
import sys
from collections.abc import Sequence

if importlib.util.find_spec("spaces"):
    import spaces  # noqa: F401  on ZeroGPU it has to come before torch

from timeripple.clips.models import load_pipeline
from ui.runs import Limits

LOADED = ("model", "device", "dtype", "offload")  # arguments of load_pipeline


def port_from_environment() -> int:
    text = os.environ.get("GRADIO_SERVER_PORT", "7860")
    if not text.isdecimal() or not 0 < int(text) < 65536:
        raise ValueError(f"GRADIO_SERVER_PORT is {text!r}; give a port from 1 to 65535, such as 7860.")
    return int(text)


def main(arguments: Sequence[str] = ()) -> None:
    parser = argparse.ArgumentParser(description="The TimeRipple demo.")
    for name in LOADED:
        parser.add_argument(f"--{name}", default=os.environ.get(f"TIMERIPPLE_{name.upper()}"))
    how = {name: value for name, value in vars(parser.parse_args(arguments)).items() if value}
    try:
        port = port_from_environment()
        limits = Limits.from_environment(os.environ)
        pipeline = load_pipeline(**how)
        from ui.build import build_app, launch_options  # only now: Gradio reads the port when it is imported

        server = {"server_name": os.environ.get("GRADIO_SERVER_NAME", "127.0.0.1"), "server_port": port}
        build_app(pipeline, limits).launch(**server, **launch_options(limits))
    except (ValueError, OSError) as error:
        raise SystemExit(f"TimeRipple cannot start: {error}") from None


if __name__ == "__main__":
    main(sys.argv[1:])
