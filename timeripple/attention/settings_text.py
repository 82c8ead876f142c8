"""Settings of reuse as text, as they stand in the name of a method."""

from typing import Any

EXAMPLES = {
    "budget": "0.75",
    "theta": "theta=0.3",
    "speedup": "speedup=1.5",
    "metric": "metric=logit",
    "axes": "axes=tyx",
    "window": "window=2",
    "refresh": "refresh=4, refresh=none or refresh=auto",
    "extrapolate": "extrapolate=yes or extrapolate=no",
    "dense_first": "dense_first=0.2 or dense_first=auto",
    "dense_last": "dense_last=1 or dense_last=auto",
    "ramp": "ramp=0.2 or ramp=auto",
    "theta_min": "theta_min=0.4",
    "query_tile": "query_tile=4x8x8",
}


def read_setting(name: str, text: str) -> Any:
    """The value of a setting of `ReuseConfig`. Raises ValueError where the text is none."""
    if name == "metric" or (text == "auto" and name in ("refresh", "ramp", "dense_first", "dense_last")):
        return text
    if name == "refresh" and text == "none":
        return None
    if name == "extrapolate":
        return ("no", "yes").index(text) == 1
    if name == "axes":
        return tuple(text)
    if name == "query_tile":
        return tuple(int(size) for size in text.split("x"))
    return int(text) if name in ("window", "refresh", "dense_last") else float(text)


def number_text(value: float) -> str:
    """A number as short as can be that is read back as it was, without the plus that stands between the parts of a
    stack: "0.75", "1000000", "1e16"."""
    return repr(float(value)).removesuffix(".0").replace("e+", "e")


def setting_text(name: str, value: Any) -> str:
    """Inverse of `read_setting`."""
    if name == "extrapolate":
        return "yes" if value else "no"
    if name == "axes":
        return "".join(value)
    if name == "query_tile":
        return "x".join(map(str, value))
    if isinstance(value, float):
        return number_text(value)
    return "none" if value is None else str(value)
