"""A visitor of the demo without a browser: the same requests, over HTTP, that the page makes."""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx

SECONDS = 120  # that an answer may take
CONFIG = "window.gradio_config = "


class Said(Exception):
    """What the page would show as a message: one sentence."""


class Visitor:
    """An open page. `values` are those of its form, by component, as the page holds them; tests and benchmarks find
    components by label and type."""

    def __init__(self, url: str):
        self.session = secrets.token_hex(6)
        self.http = httpx.Client(base_url=url, timeout=SECONDS)
        page = self.http.get("/").raise_for_status().text
        self.config = json.JSONDecoder().raw_decode(page, page.index(CONFIG) + len(CONFIG))[0]
        self.components = {each["id"]: each for each in self.config["components"]}
        self.events = {each["id"]: each for each in self.config["dependencies"]}
        self.values = {number: each["props"].get("value") for number, each in self.components.items()}

    def close(self) -> None:
        self.http.close()

    def component(self, kind: str, **properties: Any) -> int:
        """The first component of a type with these properties, such as label="Seed"."""
        return next(
            number
            for number, each in self.components.items()
            if each["type"] == kind and properties.items() <= {**each["props"]}.items()
        )

    def event(self, component: int | None, name: str, after: int | None = None) -> int:
        """The event of a component; or the first that follows another event."""
        return next(
            number
            for number, each in self.events.items()
            if [component, name] in each["targets"] and (after is None or each.get("trigger_after") == after)
        )

    def fire(self, event: int, data: dict[str, Any] | None = None, **given: Any) -> list[Any]:
        """What an event answers, with the values of the form; they take on what comes back. Raises Said."""
        wanted = self.events[event]
        inputs = given.get("inputs") or [self.values.get(number) for number in wanted["inputs"]]
        body = {"data": inputs, "fn_index": event, "session_hash": self.session, "event_data": data, "trigger_id": None}
        outputs = self.streamed(body) if wanted["queue"] else self.answered(body)
        for number, value in zip(wanted["outputs"], outputs, strict=True):
            if isinstance(value, dict) and value.get("__type__") == "update":
                value = value.get("value", self.values.get(number))
            self.values[number] = value
        return outputs

    def answered(self, body: dict[str, Any]) -> list[Any]:
        response = self.http.post("/gradio_api/run/predict", json=body)
        return list(_content(response)["data"])

    def streamed(self, body: dict[str, Any]) -> list[Any]:
        *_, last = self.stream(body)
        return last

    def stream(self, body: dict[str, Any]) -> Iterator[list[Any]]:
        """What a queued event answers, one answer after the other."""
        number = _content(self.http.post("/gradio_api/queue/join", json=body))["event_id"]
        latest: list[Any] = []
        with self.http.stream("GET", "/gradio_api/queue/data", params={"session_hash": self.session}) as response:
            for line in response.iter_lines():
                message = json.loads(line.removeprefix("data:")) if line.startswith("data:") else {}
                if message.get("event_id") != number:
                    continue
                if message["msg"] == "process_completed":
                    if not message["success"]:
                        raise Said(message["output"].get("error") or "no reason")
                    latest = message["output"].get("data") or latest
                    yield latest
                    return
        raise Said("The stream ended early.")

    def upload(self, path: Path) -> dict[str, Any]:
        """A file as the form holds it."""
        with open(path, "rb") as file:
            response = self.http.post("/gradio_api/upload", files={"files": (path.name, file)})
        if response.status_code != 200:
            raise Said(response.text)
        return {"path": response.json()[0], "meta": {"_type": "gradio.FileData"}, "orig_name": path.name}

    def file(self, path: str) -> httpx.Response:
        return self.http.get(f"/gradio_api/file={path}")


def _content(response: httpx.Response) -> Any:
    """The answer's JSON. Raises Said, with the reason, for any answer that is no success."""
    try:
        content = response.json()
    except ValueError:
        content = response.text
    if response.status_code != 200:
        reason = content.get("error") or content.get("detail") if isinstance(content, dict) else content
        raise Said(str(reason) or f"status {response.status_code}")
    return content
