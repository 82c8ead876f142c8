"""What stands before the app: how large a request may be, how many uploads an address and all together have on disk,
and that nothing stays of an upload that broke off."""

import asyncio
import shutil
import time
from contextlib import suppress
from pathlib import Path

from starlette.responses import PlainTextResponse

from ui.limits import Limits

MESSAGE_BYTES = 1_000_000
"""Of any request but an upload: forms and calls are texts."""
HEARD_OUT = 10
"""Times the limit that is read of what is refused, so that the sentence arrives."""
OVERHEAD_BYTES = 10_000
"""What a form adds to the file in it."""


def refusal(sentence: str, status: int = 413) -> PlainTextResponse:
    """Also the end of the connection, in which the rest of what is refused may still lie."""
    return PlainTextResponse(sentence, status, {"connection": "close"})


class Refused(Exception):
    """Status and sentence of the answer."""


def remove_broken(folder: Path) -> None:
    """Removes files that arrived in part only."""
    for path in folder.glob("tmp*"):
        if path.is_file():
            path.unlink(missing_ok=True)


def uploads_in(folder: Path) -> set[Path]:
    """Folders of uploads, named by the SHA-256 of what is in them."""
    return {path for path in folder.glob("*") if len(path.name) == 64 and path.is_dir()}


def remove_uploads(folder: str | Path) -> None:
    """Removes all that an earlier process was sent."""
    remove_broken(Path(folder))
    for path in uploads_in(Path(folder)):
        shutil.rmtree(path, ignore_errors=True)


class Guard:
    """ASGI middleware; `folder` is where Gradio keeps uploads, each in a folder of its own named by its content, and,
    while they arrive, files named tmp...."""

    def __init__(self, app, limits: Limits, folder: str | Path):
        self.app, self.limits, self.folder = app, limits, Path(folder)
        self.arriving = 0
        self.owners: dict[Path, str] = {}  # who uploaded what is on disk

    async def __call__(self, scope, receive, send) -> None:
        if scope["type"] != "http" or scope["method"] not in ("POST", "PUT", "PATCH"):
            return await self.app(scope, receive, send)
        if scope["path"].rstrip("/").endswith("/upload"):
            return await self.upload(scope, receive, send)
        await self.bounded(scope, receive, send, MESSAGE_BYTES, "message")

    async def upload(self, scope, receive, send) -> None:
        """An upload, if there is room for it; what lies in the folder afterwards and was not there before is its."""
        address = (scope.get("client") or ("",))[0]
        if sentence := self.full(address):
            return await refusal(sentence)(scope, receive, send)
        before = uploads_in(self.folder)
        self.arriving += 1
        try:
            await self.bounded(scope, receive, send, self.limits.max_upload_megabytes * 1_000_000, "upload")
        finally:
            self.arriving -= 1
            for path in uploads_in(self.folder) - before:
                self.owners.setdefault(path, address)
            if not self.arriving:
                remove_broken(self.folder)

    def full(self, address: str) -> str | None:
        """Why nothing more may be uploaded. Uploads that are too old are removed first."""
        oldest_allowed, sizes = time.time() - self.limits.max_age, {}
        for path in uploads_in(self.folder):
            with suppress(OSError):
                if path.stat().st_mtime < oldest_allowed:
                    shutil.rmtree(path)
                else:
                    sizes[path] = sum(file.stat().st_size for file in path.iterdir())
        self.owners = {path: owner for path, owner in self.owners.items() if path in sizes}
        own = sum(size for path, size in sizes.items() if self.owners.get(path) == address)
        if own >= self.limits.max_visitor_megabytes * 1_000_000:
            return f"You have {own // 1_000_000} MB of uploads here, which is the limit; please try again later."
        if sum(sizes.values()) >= self.limits.max_uploads_megabytes * 1_000_000:
            return "The server holds as many uploads as it may; please try again later."
        return None

    async def bounded(self, scope, receive, send, most: int, what: str) -> None:
        """The app's answer to a request that is small and quick enough, else a sentence."""
        claimed = int(dict(scope["headers"]).get(b"content-length", b"0"))  # the server lets nothing else through
        sentence = f"This {what} is larger than {most / 1_000_000:g} MB, the limit here."
        size, answered = 0, False
        deadline = time.monotonic() + self.limits.max_upload_wait

        async def receive_in_time() -> dict:
            try:
                return await asyncio.wait_for(receive(), max(0.01, deadline - time.monotonic()))
            except TimeoutError:
                raise Refused(408, f"This {what} took more than {self.limits.max_upload_wait} seconds.") from None

        async def receive_some() -> dict:
            nonlocal size
            if answered:
                return await receive()  # a disconnection
            message = await receive_in_time()
            size += len(message.get("body", b""))
            if size > most + OVERHEAD_BYTES:
                raise Refused(413, sentence)
            return message

        async def send_some(message: dict) -> None:
            nonlocal answered
            answered = True
            await send(message)

        try:
            if claimed > most + OVERHEAD_BYTES:
                if claimed <= HEARD_OUT * most:  # who is still sending does not listen
                    while (await receive_in_time()).get("more_body"):
                        pass
                raise Refused(413, sentence)
            await self.app(scope, receive_some, send_some)
        except Refused as error:
            if not answered:
                await refusal(error.args[1], error.args[0])(scope, receive, send)
