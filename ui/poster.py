"""What is seen while the page loads: the first recorded comparison, in the page as it is sent.

Gradio's page is empty until its parts, a hundred files, are loaded and have drawn it; the poster lies over it until the
player has its first frame.
"""

from pathlib import Path
from urllib.parse import quote

HERE = Path(__file__).parent
PLACE = b"<gradio-app"
LOOK = """
:host { position: fixed; inset: 0; z-index: 9; overflow: hidden; padding: 20px 32px; background: var(--bg);
  font: 16px/1.5 "IBM Plex Sans", system-ui, sans-serif;
  --body-text-color: #1f2937; --body-text-color-subdued: #64748b; }
:host(.dark) { background: var(--bg-dark); --body-text-color: #f3f4f6; --body-text-color-subdued: #94a3b8; }
.tr-header nav, .tr-jump, .tr-detail a { display: none; }
::slotted(video) { display: block; width: min(75%, 690px); margin-top: 16px; border-radius: 12px; }
.stage { max-width: 1416px; margin: 0 auto; padding: 66px 0 0 min(458px, (100% - 28px) * 2 / 7 + 28px); }
.tr-header { max-width: 1416px; margin: 0 auto; }
@media (max-width: 768px) {
  :host { padding: 16px; }
  .stage { padding: 60px 0 0; }
  ::slotted(video) { width: 100%; }
}
"""
SCRIPT = """(() => {
  const poster = document.currentScript.parentElement, asked = new URLSearchParams(location.search);
  const other = ['run', 'prompt', 'view'].some(name => asked.has(name));
  if (other || !('shadowRootMode' in HTMLTemplateElement.prototype)) return poster.remove();
  const theme = asked.get('__theme') ?? 'system';
  const dark = theme === 'dark' || (theme === 'system' && matchMedia('(prefers-color-scheme: dark)').matches);
  poster.classList.toggle('dark', dark);
  const video = poster.querySelector('video');
  video.autoplay = !matchMedia('(prefers-reduced-motion: reduce)').matches;
  const seen = () => poster.dataset.frame = 1;
  if (video.readyState >= 2) seen(); else video.onloadeddata = seen;
  const leave = () => { drawn.disconnect(); poster.remove(); };
  const there = ['.tr-player[data-frame]', '.tr-player-failed:not([hidden])', '#stage :is(.tr-run, .tr-notice)'];
  const drawn = new MutationObserver(() => document.querySelector(there.join()) && leave());
  drawn.observe(document.documentElement, {subtree: true, childList: true, attributeFilter: ['data-frame', 'hidden']});
  setTimeout(leave, 30000);
})()"""


def poster(header: str, headline: str, video: Path) -> str:
    """The page's header, the headline of a comparison and a video of it, as one element. The words are in a tree of
    their own, so that nothing which looks for those of the page finds them twice."""
    style = (HERE / "style.css").read_text(encoding="utf-8").replace(":root", ":host").replace(".dark", ":host(.dark)")
    return f"""<div class="tr-poster" aria-hidden="true" inert><template shadowrootmode="closed">
      <style>{style}{LOOK}</style>{header}<div class="stage">{headline}<slot></slot></div></template>
      <video muted autoplay loop playsinline src="gradio_api/file={quote(str(video))}"></video>
      <script>{SCRIPT}</script></div>"""


class Poster:
    """ASGI middleware that adds `html` to the page."""

    def __init__(self, app, html: str):
        self.app, self.html = app, html.encode()

    async def __call__(self, scope, receive, send) -> None:
        path = scope.get("path", "").removeprefix(scope.get("root_path", ""))
        if scope["type"] != "http" or scope["method"] != "GET" or path != "/":
            return await self.app(scope, receive, send)
        start, body = {}, b""

        async def send_with_poster(message: dict) -> None:
            nonlocal start, body
            if message["type"] == "http.response.start":
                start = message
                return
            body += message.get("body", b"")
            if message.get("more_body"):
                return
            page = body.replace(PLACE, self.html + PLACE, 1)
            kept = [(name, value) for name, value in start["headers"] if name.lower() != b"content-length"]
            await send(start | {"headers": [*kept, (b"content-length", str(len(page)).encode())]})
            await send(message | {"body": page})

        await self.app(scope, receive, send_with_poster)
