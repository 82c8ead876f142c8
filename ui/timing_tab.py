"""Timing: attention on this machine, what was recorded elsewhere, and what the compiler says of the Triton kernels.

Measured and recorded figures stay apart: a figure or table holds one kind.
"""

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlencode

import gradio as gr

from timeripple.bench import figures
from timeripple.bench.attention import PROMPT, request_for
from timeripple.bench.roofline import TOKENS
from timeripple.bench.work import family, is_ours
from timeripple.pond.pipeline import PondPipeline
from ui import markup
from ui.form import LATEST, POLL_SECONDS, QUEUED, QUIET, failure, one_sentence, queue_note
from ui.glossary import explained
from ui.gpu import Works
from ui.runs import Run, Runs

RECORDED = Path(__file__).parents[1] / "assets" / "benchmarks"
FIRST_NOTE = "Dense, token and tile attention of one layer, on Q, K and V of a real denoising step."
LENGTHS = (*TOKENS, 9216)
MOST_SAVED = 0.8
COLUMNS = {  # of a row of any benchmark: what it is called here, and how it is written
    "tokens": ("tokens", "{:,}"),
    "ms": ("ms", "{:.2f}"),
    "attention_ms": ("attention, ms", "{:.2f}"),
    "seconds": ("seconds", "{:.1f}"),
    "speedup": ("speed-up", "{:.2f}×"),
    "ideal_speedup": ("ideal (theoretical)", "{:.2f}×"),
    "amdahl_speedup": ("Amdahl (theoretical)", "{:.2f}×"),
    "saving": ("saving (realised)", "{:.0%}"),
    "relative_error": ("output error", "{:.3f}"),
    "psnr": ("PSNR dB", "{:.1f}"),
    "psnr_converged": ("PSNR to 100 steps, dB", "{:.1f}"),
    "planning_share": ("planning", "{:.0%}"),
    "attention_share": ("attention share", "{:.0%}"),
    "gflops": ("GFLOP/s", "{:,.0f}"),
}


def timing_tab(tab: gr.Tab, pipeline, works: Works, runs: Runs, run_id: gr.BrowserState) -> None:
    """Adds the content of the tab to what is being built; run_id remembers the measurement."""
    allowed = [count for count in LENGTHS if count <= runs.limits.max_tokens]
    recorded = recorded_files()
    gr.HTML(explained("realised", "theoretical", "Amdahl", "PSNR"))
    with gr.Row():
        for figure in recorded_figures(recorded):
            gr.Plot(figure, show_label=False, min_width=320, elem_classes="tr-plot")
    for result in (result for name, result in recorded.items() if name.startswith("work-")):
        for tokens in dict.fromkeys(row["tokens"] for row in result["rows"]):
            gr.HTML(work_and_precision(result, tokens))
    gr.HTML(markup.facts([gpu_note(recorded)]))
    with gr.Accordion("All recorded results as tables", open=False, visible=bool(recorded)):
        first = next(iter(recorded), None)
        chosen = gr.Dropdown(list(recorded), value=first, label="Recorded results", filterable=False)
        shown = gr.HTML(recorded_table(recorded[first]) if first else "")
        chosen.change(lambda name: recorded_table(recorded[name]), chosen, shown, **QUIET)
    # Of other models there are no clips of so many tokens.
    with gr.Accordion("Measure here", open=True, visible=isinstance(pipeline, PondPipeline)):
        with gr.Row(elem_classes="tr-tight"):
            tokens = gr.CheckboxGroup(
                [(f"{count:,}", count) for count in allowed], value=[t for t in allowed if t in TOKENS], label="Tokens",
                min_width=300, scale=2,
            )  # fmt: skip
            saving = gr.Slider(0.3, 0.8, value=0.7, step=0.05, label="Budget", info="Of token and tile reuse")
            with gr.Column(min_width=180):
                measure = gr.Button("Measure here", variant="primary")
                cancel = gr.Button("Cancel", variant="stop")
        note = gr.HTML(markup.facts([FIRST_NOTE]))
        with gr.Column(visible=False) as stage:
            with gr.Row():
                time = gr.Plot(show_label=False, min_width=320, elem_classes="tr-plot")
                roof = gr.Plot(show_label=False, min_width=320, elem_classes="tr-plot")
            table = gr.HTML()
            with gr.Row():
                csv_file = gr.DownloadButton("Download attention.csv", min_width=180)
                json_file = gr.DownloadButton("Download attention.json", min_width=180)
    if (RECORDED / "kernels.json").is_file():
        kernels = json.loads((RECORDED / "kernels.json").read_text(encoding="utf-8"))
        targets = list(dict.fromkeys(row["target"] for row in kernels["rows"]))
        with gr.Accordion("What the compiler says of the Triton kernels", open=False):
            with gr.Row(elem_classes="tr-tight"):
                target = gr.Dropdown(targets, value=targets[0], label="Compiled for", filterable=False)
                words = gr.Textbox("", label="Search", placeholder="token bf16 d128")
            report = gr.HTML(kernel_table(kernels, targets[0]))
            asked = [target, words]
            gr.on([target.change, words.change], lambda *asked: kernel_table(kernels, *asked), asked, report, **LATEST)

    def start(tokens, saving) -> str:
        """Queues the measurement the form asks for."""
        with one_sentence():
            return submit(pipeline, works, runs, sorted(tokens), saving).id

    def follow(id: str | None) -> Iterator[list]:
        """How far the measurement is; ends with what it gave."""
        run = runs.find(id)
        while run and not runs.wait(run, POLL_SECONDS):
            done, total = run.progress.get("step", (0, len(run.settings[0])))
            ahead = runs.ahead(run)
            line = f"{done} of {total} lengths measured." if not ahead else queue_note(ahead)
            yield [markup.facts([line]), *[gr.skip()] * 6]
        if run and run.state == "failed":
            raise failure(run.error)
        if run is None or run.state != "done":
            line = "The measurement has stopped." if run else FIRST_NOTE
            yield [markup.facts([line]), gr.Column(visible=False), *[gr.skip()] * 5]
            return
        yield [markup.facts([machine(run.result)]), gr.Column(visible=True), *present(run)]

    outcome = [note, stage, time, roof, table, csv_file, json_file]
    measure.click(start, [tokens, saving], run_id, **QUEUED).success(follow, run_id, outcome, **QUEUED)
    tab.select(follow, run_id, outcome, **QUEUED)
    cancel.click(runs.cancel, run_id, None, **QUIET)


def submit(pipeline, works: Works, runs: Runs, tokens: list[int], saving: float) -> Run:
    """Queues a measurement. Raises ValueError, one sentence, for what is out of bounds."""
    if not tokens:
        raise ValueError("There is no number of tokens to measure; choose at least one.")
    for count in tokens:
        if count > runs.limits.max_tokens:
            raise ValueError(f"These are {count:,} tokens; the limit here is {runs.limits.max_tokens:,}.")
        if tokens.count(count) > 1:
            raise ValueError(f"The number of tokens {count:,} is given twice; give it once.")
    if not 0 <= saving <= MOST_SAVED:
        raise ValueError(f"The saving is {saving:g}; give a share from 0 to {MOST_SAVED:g}, such as 0.7.")
    runs.limits.check_lengths(pipeline, [request_for(count) for count in tokens])

    def work(run: Run) -> dict:
        result = works.attention_scaling(run, tokens, saving)
        text = json.dumps(result, indent=2, allow_nan=False)
        (run.folder / "attention.json").write_text(text, encoding="utf-8")
        with open(run.folder / "attention.csv", "w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, list(result["rows"][0]))
            writer.writeheader()
            writer.writerows(result["rows"])
        return result

    return runs.submit(work, (tokens,))


def present(run: Run) -> list:
    """Figures, table and files of a measurement."""
    rows, kind = run.result["rows"], run.result["kind"]
    return [
        figures.time_over_tokens(rows, kind),
        figures.roofline(rows, run.result["roofs"], kind),
        rows_table(rows, f"Attention of one layer, one pass ({kind})"),
        gr.DownloadButton(value=run.folder / "attention.csv"),
        gr.DownloadButton(value=run.folder / "attention.json"),
    ]


def rows_table(rows: list[dict], caption: str) -> str:
    """The columns of COLUMNS that the rows have. Savings that are theoretical are left out of the realised ones."""
    rows = [row | ({"saving": None} if row.get("saving_kind") == "theoretical" else {}) for row in rows]
    names = [name for name in COLUMNS if any(row.get(name) is not None for row in rows)]
    cells = [
        [row["method"], *("–" if row.get(name) is None else COLUMNS[name][1].format(row[name]) for name in names)]
        for row in rows
    ]
    return markup.table(caption, ["method", *(COLUMNS[name][0] for name in names)], cells)


def recorded_files() -> dict[str, dict]:
    """Benchmarks of the repository whose rows are methods that were timed, by file name."""
    paths = [*RECORDED.glob("*.json"), *RECORDED.glob("gpu/*.json")]
    files = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(paths)}
    timed = {"ms", "attention_ms", "seconds"}
    rows = {name: next(iter(file.get("rows", [])), {}) for name, file in files.items()}
    return {name: files[name] for name, row in rows.items() if "method" in row and timed & row.keys()}


def recorded_figures(recorded: dict[str, dict]) -> list:
    """Time over tokens, one figure a machine: as recorded figures are of one device."""
    devices: dict[str, dict] = {}
    where = {}
    for name, result in recorded.items():
        if name.startswith("attention-") or name.endswith("-attention"):
            device = result["environment"]["device"]
            where[device] = machine(result)
            known = devices.setdefault(device, {})
            for row in result["rows"]:  # of two shapes with as many tokens the first
                if row["ms"] and drawn(row["method"]):
                    known.setdefault((row["method"], row["tokens"]), row)
    return [
        figures.time_over_tokens(sorted(rows.values(), key=lambda row: row["tokens"]), f"recorded on {where[device]}")
        for device, rows in devices.items()
    ]


def drawn(method: str) -> bool:
    """Dense attention, and reuse at two budgets: more lines could not be told apart."""
    return method in ("dense", "cudnn", "token:0.5", "token:0.7", "tile:0.7")


def work_and_precision(result: dict, tokens: int) -> str:
    """Seconds and PSNR of every method and number of steps, dense as a curve; a click fills the form with it."""
    rows = [row for row in result["rows"] if row["tokens"] == tokens]
    prompts = len({run["prompt"] for run in result["runs"] if run["tokens"] == tokens})
    places = [(row["method"], row["seconds"], row["psnr_converged"]) for row in rows]
    points = [(*place, is_ours(place[0]), link(row)) for place, row in zip(places, rows, strict=True)]
    curve = sorted(place[1:] for place in places if family(place[0]) == "dense")
    where = f"{prompts} prompt{'s'[: prompts > 1]}, {tokens:,} tokens, recorded on {machine(result)}"
    caption = f"Work and precision: {where}. The line is dense attention in more and more steps"
    return markup.scatter(points, curve, caption, "seconds of a whole generation", "PSNR to 100 steps, dB")


def link(row: dict) -> str:
    """Query of the page whose form asks for the method of a row against dense."""
    request = request_for(row["tokens"])
    size = {name: getattr(request, name) for name in ("num_frames", "height", "width", "steps")}
    return "?" + urlencode({"prompt": PROMPT, "seed": 0, "compared": f"dense,{row['method']}"} | size)


def recorded_table(result: dict) -> str:
    return rows_table(result["rows"], f"Recorded on {machine(result)}")


def machine(result: dict) -> str:
    """Where and when a result was made."""
    where = result["environment"]
    device = where["cpu"] if where["device"] == "cpu" else where["device"]
    dtype = f", {where['dtype']}" if where.get("dtype") else ""
    threads = "1 thread" if where["threads"] == 1 else f"{where['threads']} threads"
    return f"{device}, {threads}{dtype}, {where['date'][:10]}"


def gpu_note(recorded: dict[str, dict]) -> str:
    devices = {result["environment"]["device"] for result in recorded.values()} - {"cpu"}
    if devices:
        return f"Results of a GPU are among them: {', '.join(sorted(devices))}."
    return "No result of a GPU is recorded yet: the Triton kernels are checked in the interpreter and compiled only."


def kernel_table(kernels: dict, target: str, words: str = "") -> str:
    """What the compiler says of every kernel for a target whose name or settings hold all the words."""
    columns = ["kernel", "config", "registers", "spills", "shared_bytes", "occupancy"]
    rows = [[_cell(row[name]) for name in columns] for row in kernels["rows"] if row["target"] == target]
    rows = [row for row in rows if all(word in f"{row[0]} {row[1]}".lower() for word in words.lower().split())]
    caption = f"Compiled for {target}, not run ({kernels['environment']['date'][:10]}): {len(rows)} kernels"
    return markup.table(caption, [name.replace("_", " ") for name in columns], rows)


def _cell(value) -> str:
    return "–" if value is None else f"{value:.0%}" if isinstance(value, float) else str(value)
