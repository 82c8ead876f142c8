"""The controls of one method: what is reused, how much, along which axes and at which steps."""

import gradio as gr

from timeripple.attention.config import DEFAULT_BUDGET
from timeripple.attention.method import ConfigError
from timeripple.attention.settings_text import number_text
from timeripple.baselines import STEP_CACHES
from timeripple.clips.methods import RUN, Method, calibrated_methods, parse_method, split_stack
from ui.form import QUIET

NAMES = {
    "dense": "Dense",
    "token": "Token reuse",
    "tile": "Tile reuse",
    "channel": "Channel (paper)",
    "skip": "Skip (SpargeAttn)",
    "svg": "Sparse VideoGen",
    "svg2": "Sparse VideoGen 2",
    "compact": "Compact Attention",
    "sliding-window": "3-D sliding window",
    "ditfastattn": "DiTFastAttn",
    "re-ttention": "Re-ttention",
    "token-merge": "Token merging",
    "output-cache": "Output cache (PAB)",
    "attention-forecast": "Attention forecast",
    "pab": "Pyramid Attention Broadcast",
    "faster-cache": "FasterCache",
    "first-block-cache": "First-block cache",
    "mag-cache": "MagCache",
    "taylorseer": "TaylorSeer",
    "delta-dit": "Δ-DiT",
    "forecast": "Block-stack forecast",
    "spectrum": "Spectrum",
    "easycache": "EasyCache",
    "teacache": "TeaCache",
    "cache-dit": "cache-dit",
    "hsa": "Heterogeneous steps (HSA)",
    "lightning-cp": "LightningCP",
}
STACKS = [
    ("Nothing", ""),
    ("TaylorSeer, every third step", "taylorseer:3"),
    ("First-block cache, 0.1", "first-block-cache:0.1"),
    ("MagCache, 0.06", "mag-cache:0.06"),
    ("Skip, 50 % (with channel)", "skip:0.5"),
]
OURS = ("token", "tile", "channel")
BUDGET, THETA, TARGET = "Budget", "Threshold θ", "Quality target"
MEASURES = {"token": [BUDGET, THETA, TARGET], "tile": [BUDGET, THETA], "channel": [BUDGET, THETA]}
"""How each may be asked for; the radio always has all three, as a value that is on its way may be any of them."""
AUTO = ("Automatic", "auto")
STEPS = [AUTO, *((f"{n} step{'s' * (n != 1)}", str(n)) for n in range(11))]
REFRESH = [AUTO, ("Off", "none"), *((f"Every {n} steps", str(n)) for n in range(2, 11))]
AXES = [("time", "t"), ("height", "y"), ("width", "x")]
SCHEDULE = ("dense_first", "dense_last", "ramp")  # in steps here, where the config has shares
CHOICES = {name: [value for _, value in STEPS] for name in SCHEDULE} | {"refresh": [value for _, value in REFRESH]}
BUDGETS = (0.3, 0.95)


STRENGTHS = ("Fast", "Balanced", "Faithful")


def strength_choices() -> list[tuple[str, str]]:
    """What the simple form offers: the settings found by `tune`, from the lowest quality target to the highest."""
    targets = sorted(calibrated_methods())
    names = dict(zip((targets[0], targets[len(targets) // 2], targets[-1]), STRENGTHS, strict=True))
    return [(f"{names[psnr]} · {psnr} dB" if psnr in names else f"{psnr} dB", str(psnr)) for psnr in targets]


def strength_values(target: str) -> list:
    """The controls of a method as a strength sets them."""
    values = dict(zip(VALUES, fill_method(parse_method("token"), 20), strict=True))
    return list((values | {"by": TARGET, "target": target}).values())


def strength_of(*values) -> str | None:
    """The strength that the controls of a method stand for, None where they ask for something else."""
    given = dict(zip(VALUES, values, strict=True))
    return given["target"] if (given["name"], given["by"]) == ("token", TARGET) else None


def method_form(side: str, name: str, target: str | None = None) -> list[gr.components.Component]:
    """Adds the controls of method `side` ("A", "B") to the column that is being built; their order is that of
    `read_method`, `fill_method` and `VALUES`. target: a quality target to begin with."""
    values = dict(zip(VALUES, fill_method(parse_method(name), 20), strict=True))
    values |= {"by": TARGET, "target": target} if target else {}
    with gr.Group():
        chosen = gr.Dropdown(
            [(label, key) for key, label in NAMES.items()], value=name, label=f"Method {side}", filterable=False
        )
        shown = visible(name, values["by"])
        by = gr.Radio(MEASURES["token"], value=values["by"], label=f"How much, {side}", visible=shown["by"])
        budget = gr.Slider(
            *BUDGETS, value=values["budget"], step=0.01, label=f"Budget {side}", visible=shown["budget"],
            info="Share of attention saved while reusing",
        )  # fmt: skip
        theta = gr.Number(
            values["theta"], label=f"θ of {side}", minimum=0, step=0.05, visible=False,
            info="0 is dense; channel: standard deviation, token: of the logits, tile: output error",
        )  # fmt: skip
        target = gr.Dropdown(
            [(f"{psnr} dB", str(psnr)) for psnr in calibrated_methods()], value=values["target"],
            label=f"Quality target {side}", filterable=False, visible=shown["target"],
            info="PSNR that settings found by tune kept on average; one prompt may lie some dB off",
        )  # fmt: skip
        with gr.Accordion(f"Axes and schedule of {side}", open=False, visible=shown["more"]) as more:
            axes = gr.CheckboxGroup(AXES, value=list("tyx"), label=f"Reuse along, {side}", visible=shown["axes"])
            with gr.Row(elem_classes="tr-tight", visible=shown["dense"]) as dense:
                first = gr.Dropdown(STEPS, value="auto", label=f"Dense at the start, {side}", filterable=False)
                last = gr.Dropdown(STEPS, value="auto", label=f"Dense at the end, {side}", filterable=False)
            with gr.Row(elem_classes="tr-tight", visible=shown["axes"]) as feedback:
                ramp = gr.Dropdown(STEPS, value="auto", label=f"Ramp, {side}", filterable=False)
                refresh = gr.Dropdown(REFRESH, value="auto", label=f"Feedback refresh, {side}", filterable=False)
            others = gr.Textbox(
                "", label=f"Other settings, {side}", max_lines=1, placeholder="steps=14:solver=euler",
                info="As on the command line, with colons between",
            )  # fmt: skip
            stack = gr.Dropdown(
                STACKS, value="", label=f"Stacked with, {side}", allow_custom_value=True, visible=shown["dense"],
                info="A step cache of a peer on top",
            )  # fmt: skip

    def change(name: str, by: str) -> list:
        measures = MEASURES.get(name, [BUDGET])
        by = by if by in measures else BUDGET
        shown = visible(name, by)
        return [
            gr.Radio(value=by, visible=shown["by"]),
            *(part(visible=shown[key]) for part, key in zip(parts, keys, strict=True)),
        ]

    keys = ("budget", "theta", "target", "more", "axes", "axes", "dense", "dense")
    parts = (gr.Slider, gr.Number, gr.Dropdown, gr.Accordion, gr.CheckboxGroup, gr.Row, gr.Row, gr.Dropdown)
    controls = [by, budget, theta, target, more, axes, feedback, dense, stack]
    gr.on([chosen.change, by.change], change, [chosen, by], controls, **QUIET)
    return [chosen, by, budget, theta, target, axes, first, last, ramp, refresh, others, stack]


VALUES = ("name", "by", "budget", "theta", "target", "axes", *SCHEDULE, "refresh", "others", "stack")


def visible(name: str, by: str) -> dict[str, bool]:
    """Which controls a method has; a quality target brings its whole schedule along."""
    reuses, free = name != "dense", by != TARGET
    return {
        "by": len(MEASURES.get(name, ())) > 1,
        "budget": reuses and by == BUDGET and name not in STEP_CACHES,
        "theta": reuses and by == THETA,
        "target": reuses and not free,
        "more": not reuses or free,
        "axes": name in OURS,
        "dense": reuses and name not in STEP_CACHES,
    }


def read_method(values: list, steps: int) -> Method:
    """The method the controls ask for, of a run of so many steps. Raises ConfigError, one sentence."""
    given = dict(zip(VALUES, values, strict=True))
    name, by = given["name"], given["by"]
    if by == TARGET and name == "token":
        return calibrated_methods()[int(given["target"])]
    others = [given["others"].strip(": ")] if given["others"].strip(": ") else []
    if name == "dense" or name in STEP_CACHES:
        return parse_method(":".join([name, *others]))
    # a peer's threshold, and a speed-up, is among the other settings
    has_amount = any(f"{setting}=" in given["others"] for setting in ("theta", "speedup"))
    parts = [name] if has_amount else [name, amount(given, by)]
    if name in OURS:
        chosen = "".join(axis for axis in "tyx" if axis in given["axes"])
        parts += [f"axes={chosen}"] if chosen != "tyx" else []
        parts += [f"refresh={given['refresh']}"] if given["refresh"] != "auto" else []
        parts += [f"ramp={number_text(int(given['ramp']) / steps)}"] if given["ramp"] != "auto" else []
    parts += [f"dense_first={number_text(int(given['dense_first']) / steps)}"] if given["dense_first"] != "auto" else []
    parts += [f"dense_last={given['dense_last']}"] if given["dense_last"] != "auto" else []
    stack = (given["stack"] or "").strip(" +")
    return parse_method("+".join([":".join(parts + others), *([stack] if stack else [])]))


def amount(given: dict, by: str) -> str:
    """Budget or threshold, as a method's text has it."""
    if by == THETA and given["name"] in OURS:
        return f"theta={number_text(given['theta'] or 0)}"
    return number_text(given["budget"])


def fill_method(method: Method, steps: int) -> list:
    """The values of the controls from which `read_method` makes this method again. Raises ConfigError, one sentence,
    for a budget that they do not reach."""
    text, *stack = split_stack(method.text)
    name, _, settings = text.partition(":")
    values = dict.fromkeys(VALUES, "auto") | {
        "name": name, "by": BUDGET, "budget": DEFAULT_BUDGET, "theta": 0.3, "target": str(min(calibrated_methods())),
        "axes": list("tyx"), "others": "", "stack": "+".join(stack),
    }  # fmt: skip
    if name == "dense" or name in STEP_CACHES:
        return list((values | {"others": settings}).values())
    config = getattr(method.config, "reuse", method.config)  # of a stack of two, the first
    others = []
    if config.budget is not None:
        if not BUDGETS[0] <= config.budget <= BUDGETS[1]:
            low, high = BUDGETS
            raise ConfigError(f"The budget is {config.budget:g}; the form holds {low:g} to {high:g}.")
        values["budget"] = config.budget
    elif name in OURS and config.theta is not None:
        values |= {"by": THETA, "theta": config.theta}
    else:
        setting = "speedup" if config.theta is None else "theta"
        others.append(f"{setting}={number_text(getattr(config, setting))}")
    for part in settings.split(":") if settings else []:
        setting, _, text = part.partition("=")
        is_share = setting in ("dense_first", "ramp") and text != "auto"
        choice = str(round(float(text) * steps)) if is_share else text
        if setting in CHOICES and choice in CHOICES[setting] and (name in OURS or setting.startswith("dense")):
            values[setting] = choice
        elif setting == "axes":
            values["axes"] = list(config.axes)
        elif text and setting not in ("theta", "budget", "speedup"):
            others.append(part)
    return list((values | {"others": ":".join(others)}).values())


def title(method: Method) -> str:
    """What the page calls a method, for example "Token reuse · 75%", or "Token reuse · for 36 dB"."""
    for psnr, calibrated in calibrated_methods().items():
        if (calibrated.config, None, None, None) == (method.config, method.cache, method.steps, method.solver):
            return f"{NAMES['token']} · for {psnr} dB"
    parts = []
    for text in split_stack(method.text):
        name, config = NAMES[text.split(":")[0]], parse_method(text)
        amount = config.cache and next(iter(vars(config.cache).values()))
        if config.config is not None:
            budget, theta = config.config.budget, config.config.theta
            speedup = getattr(config.config, "speedup", None)
            amount = f"{budget:.0%}" if budget is not None else f"θ {theta:g}" if speedup is None else f"{speedup:g}×"
        own = [f"{key} {value}" for key in RUN if (value := getattr(config, key)) is not None]
        parts.append(" · ".join([name, *([] if amount is None else [str(amount)]), *own]))
    return " + ".join(parts)
