// Strips of frames on the token grid, one a panel, and the picked frame of each enlarged. A click or an arrow key (page
// keys: another frame) picks a token in all of them and tells Python; the pointer reads what lies under it in all.
const steps = {ArrowLeft: [0, 0, -1], ArrowRight: [0, 0, 1], ArrowUp: [0, -1, 0], ArrowDown: [0, 1, 0],
  PageUp: [-1, 0, 0], PageDown: [1, 0, 0]};
const sheet = () => element.querySelector('.tr-sheet');
const sizes = () => JSON.parse(sheet().dataset.sizes);
let place = null, asked = null, timer = null, shownFrame = 0;
const answered = () => sheet() ? JSON.parse(sheet().dataset.place) : null;

function mark() {
  const [T, Y, X] = sizes(), [t, y, x] = place, inside = t === shownFrame;
  for (const box of element.querySelectorAll('.tr-strip > i')) {
    const left = (t + x / X) / T;
    Object.assign(box.style, {left: `${100 * left}%`, top: `${100 * y / Y}%`, width: `${100 / T / X}%`, height: `${100 / Y}%`});
  }
  for (const box of element.querySelectorAll('.tr-large > i'))
    Object.assign(box.style, {display: inside ? '' : 'none', left: `${100 * x / X}%`, top: `${100 * y / Y}%`,
      width: `${100 / X}%`, height: `${100 / Y}%`});
}
function enlarge(frame) {
  const [T] = sizes();
  shownFrame = frame;
  const strips = element.querySelectorAll('.tr-strip img');
  for (const [number, large] of [...element.querySelectorAll('.tr-large')].entries()) {
    if (!large.style.backgroundImage) large.style.backgroundImage = `url(${strips[number].src})`;
    large.style.backgroundSize = `${100 * T}% 100%`;
    large.style.backgroundPosition = `${T > 1 ? 100 * frame / (T - 1) : 0}% 0`;
  }
  const range = element.querySelector('[data-frame]');
  range.value = frame + 1;
  element.querySelector('[data-at]').textContent = `frame ${frame + 1} of ${T}`;
  mark();
}
function pick(to, ask = true) {
  const last = sizes();
  place = to.map((at, axis) => Math.min(last[axis] - 1, Math.max(0, at)));
  enlarge(place[0]);
  if (ask && asked === null) send();
}
function send() {  // keys come faster than answers: one question at a time, then the latest
  asked = String(place);
  trigger('select', {t: place[0], y: place[1], x: place[2]});
}
function arrived() {
  if (!sheet()) return;
  if (asked !== null && String(place) !== asked) { enlarge(place[0]); send(); return; }
  asked = null;
  place = answered();
  enlarge(timer ? Math.min(shownFrame, sizes()[0] - 1) : place[0]);
}
watch('value', arrived);
arrived();

// The token under the pointer, in a strip or an enlarged frame.
function under(event) {
  const at = event.target.closest('.tr-strip, .tr-large');
  if (!at) return null;
  const [T, Y, X] = sizes(), box = at.getBoundingClientRect();
  const across = (event.clientX - box.left) / box.width, y = Math.floor((event.clientY - box.top) / box.height * Y);
  if (at.classList.contains('tr-large')) return [shownFrame, y, Math.floor(across * X)];
  const x = Math.floor(across * T * X);
  return [Math.floor(x / X), y, x % X];
}
const values = new WeakMap();
function read(panel, [t, y, x]) {
  if (!panel.dataset.values) return null;
  if (!values.has(panel)) values.set(panel, Uint8Array.from(atob(panel.dataset.values), c => c.charCodeAt(0)));
  const [T, Y, X] = sizes(), low = Number(panel.dataset.low), high = Number(panel.dataset.high);
  const value = low + (high - low) * values.get(panel)[(t * Y + y) * X + x] / 255;
  return `${panel.dataset.name} ${panel.dataset.unit === '%' ? `${(100 * value).toFixed(2)} %` : value.toFixed(2)}`;
}
element.addEventListener('pointermove', event => {
  const at = sheet() && under(event);
  if (!at || at.some((one, axis) => one < 0 || one >= sizes()[axis])) return;
  const read_all = [...element.querySelectorAll('[data-panel]')].map(panel => read(panel, at)).filter(Boolean);
  element.querySelector('[data-tip]').textContent =
    `Frame ${at[0] + 1}, row ${at[1] + 1}, column ${at[2] + 1}: ${read_all.join(' · ')}`;
});
element.addEventListener('click', event => {
  const at = sheet() && under(event);
  if (event.target.closest('[data-play]')) return play();
  if (!at) return;
  sheet().focus({preventScroll: true});
  pick(at);
});
element.addEventListener('keydown', event => {
  const by = steps[event.key];
  if (!sheet() || !by || !event.target.closest('.tr-sheet') || event.target.closest('input')) return;
  event.preventDefault();
  pick(place.map((at, axis) => at + by[axis]));
});
element.addEventListener('input', event => {
  if (event.target.closest('[data-frame]')) enlarge(Number(event.target.value) - 1);
});
function play() {
  const button = element.querySelector('[data-play]');
  if (timer) {
    clearInterval(timer);
    timer = null;
  } else {
    timer = setInterval(() => {
      if (!element.isConnected) return clearInterval(timer);
      if (sheet() && element.offsetParent) enlarge((shownFrame + 1) % sizes()[0]);
    }, 1000 / 8);
  }
  button.textContent = timer ? 'Pause' : 'Play';
}
