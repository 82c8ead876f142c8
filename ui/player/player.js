// Playing, controls and keys; picture.js comes before it, charts.js too.

let inView = true, goesOn = false;  // goesOn: plays again once it is in view

// Drawn frame and everything that names it.
function arrive(seconds) {
  if (!data) return;
  frame = frameAt(seconds);
  draw();
  player.dataset.frame = frame + 1;
  show('place').textContent = `${frame + 1} of ${frames}`;
  if (wanted === null) input('frame').value = frame + 1;
  charts.forEach(chart => chart.mark(frame));
  window.dispatchEvent(new CustomEvent('tr-frame', {detail: {frame, frames}}));
}

// A frame starts at frame / fps; its middle is far from both its ends, whatever the rounding.
const middle = index => (index + .5) / data.fps;
const within = index => Math.max(0, Math.min(frames - 1, index));
const frameAt = seconds => within(Math.floor(seconds * data.fps));

function seek(index) {
  if (!frames) return;
  wanted = within(index);
  if (!video.seeking) go();
}
function go() {
  follow();  // a busy browser may say "seeked" before it has the frame to draw
  video.currentTime = middle(wanted);
}

function step(by) {
  rest();
  seek((wanted ?? frame) + by);
}

video.addEventListener('seeked', () => {
  if (wanted !== null && frameAt(video.currentTime) !== wanted) {
    go();
  } else {
    wanted = null;
    arrive(video.currentTime);
  }
});

const onFrame = video.requestVideoFrameCallback
  ? callback => video.requestVideoFrameCallback((now, {mediaTime}) => callback(mediaTime + .5 / data.fps))
  : callback => requestAnimationFrame(() => callback(video.currentTime));
function follow() {
  if (following) return;
  following = true;
  onFrame(seconds => {
    following = false;
    if (!video.seeking) arrive(seconds);
    if (!video.paused) follow();
  });
}

// Ping-pong: forward as the video plays, backward frame by frame.
function swing() {
  swinging = setInterval(() => {
    if (frame > 0) return seek((wanted ?? frame) - 1);
    clearInterval(swinging);
    swinging = null;
    video.play().catch(() => {});
  }, 1000 / data.fps / video.playbackRate);
  playing();
}
function rest() {
  clearInterval(swinging);
  swinging = null;
  goesOn = false;
  video.pause();
  playing();
}
const moving = () => !video.paused || swinging !== null;
function playing() {
  player.classList.toggle('playing', moving());
  button('play').setAttribute('aria-label', moving() ? 'Pause' : 'Play');
}
video.addEventListener('ended', () => {
  arrive(middle(frames - 1));  // a busy browser may have left out the last frame
  if (input('end').value === 'swing') swing();
});

for (const event of ['play', 'pause'])
  video.addEventListener(event, () => {
    playing();
    if (!video.paused) follow();
  });
video.addEventListener('loadeddata', () => {
  const still = matchMedia('(prefers-reduced-motion: reduce)').matches;
  goesOn = !still && !inView;
  if (still || goesOn) seek(0);
  else video.play().catch(() => seek(0));
});

// Out of view, as in a tab that is not open, nothing plays.
new IntersectionObserver(entries => {
  inView = entries.at(-1).isIntersecting;
  if (!inView && moving()) {
    rest();
    goesOn = true;
  } else if (inView && goesOn) {
    goesOn = false;
    video.play().catch(() => {});
  }
}).observe(player);
video.addEventListener('error', () => failed(true));

function failed(yes) {
  player.querySelector('.tr-player-failed').hidden = !yes;
  player.querySelector('.tr-player-body').hidden = yes;
}

// Views and buttons.
function setMode(chosen) {
  mode = chosen;
  refresh();
}
function refresh() {
  for (const each of player.querySelectorAll('[data-mode]'))
    each.setAttribute('aria-pressed', each.dataset.mode === mode);
  show('divider').hidden = mode !== 'wipe';
  show('difference').hidden = mode !== 'difference';
  show('zoom').textContent = `${view.zoom < 2 ? view.zoom.toFixed(1).replace('.0', '') : Math.round(view.zoom)}×`;
  input('left').value = left;
  input('right').value = right;
  input('kind').value = kind;
  input('gain').value = gain;
  for (const side of ['left', 'right'])
    player.querySelector(`[data-side="${side}"]`).classList.toggle('tr-away', alone !== null && mode === 'side' && alone !== side);
  const words = {absolute: `|A − B| × ${gain}; black: equal`, signed: `(B − A) × ${gain}; grey: equal`,
    luma: `brightness of A − B × ${gain}; black: equal`};
  const caption = mode === 'difference' ? `${words[kind]}, from the frames before coding` : '';
  show('caption').textContent = caption;
  player.dataset.mode = mode;
  canvas.setAttribute('aria-label',
    caption || sides().map(clip => data.names[clip]).join(mode === 'wipe' ? ' left of the divider, ' : ' and '));
  draw();
}

const toggle = chosen => setMode(mode === chosen ? 'side' : chosen);
const after = (list, value) => list[(list.indexOf(value) + 1) % list.length];
const pick = clip => {
  if (clip >= count()) return;
  if (clip === left) left = right;
  right = clip;
  recharted();
};
function zoomTo(zoom, at = {x: .5, y: .5}) {
  zoom = Math.max(1, Math.min(MOST_ZOOM, zoom));
  const held = {x: view.x + at.x / view.zoom, y: view.y + at.y / view.zoom};
  move({zoom, x: held.x - at.x / zoom, y: held.y - at.y / zoom});
}
function move(to) {
  const most = 1 - 1 / to.zoom, kept = at => Math.max(0, Math.min(most, at));
  view = {zoom: to.zoom, x: kept(to.x), y: kept(to.y)};
  refresh();
}
const save = () => canvas.toBlob(blob => {
  const link = document.createElement('a');
  link.href = URL.createObjectURL(blob);
  link.download = `${mode}-frame-${frame + 1}${view.zoom > 1 ? `-${view.zoom.toFixed(1)}x` : ''}.png`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
});
const full = () => {  // an iPhone has fullscreen for its own player alone
  if (document.fullscreenElement) return document.exitFullscreen();
  if (player.requestFullscreen && !player.classList.contains('tr-player-full')) return player.requestFullscreen();
  player.classList.toggle('tr-player-full');
};
const actions = {
  play: () => moving() ? rest() : video.play().catch(() => {}),
  back: () => step(-1),
  forward: () => step(1),
  swing: () => { input('end').value = input('end').value === 'swing' ? 'loop' : 'swing'; ends(); },
  loupe: () => { loupe = !loupe; button('loupe').setAttribute('aria-pressed', loupe); draw(); },
  full,
  help: () => dialog.open ? dialog.close() : dialog.showModal(),
  wipe: () => toggle('wipe'),
  difference: () => toggle('difference'),
  kind: () => { kind = after(['absolute', 'signed', 'luma'], kind); refresh(); },
  gain: () => { gain = after(GAINS, gain); refresh(); },
  swap: () => { [left, right] = [right, left]; recharted(); },
  hide: () => { alone = after([null, 'left', 'right'], alone); setMode('side'); },
  in: () => zoomTo(view.zoom * 2, pointer),
  out: () => zoomTo(view.zoom / 2, pointer),
  whole: () => zoomTo(1),
  save,
};
const keys = {
  ' ': 'play', ArrowLeft: 'back', ArrowRight: 'forward', w: 'wipe', d: 'difference', f: 'full', l: 'loupe', '?': 'help',
  p: 'swing', m: 'kind', g: 'gain', s: 'swap', h: 'hide', '+': 'in', '=': 'in', '-': 'out', 0: 'whole', x: 'save',
};
function ends() {
  video.loop = input('end').value === 'loop';
}

player.addEventListener('click', event => {
  const pressed = event.target.closest('button');
  if (pressed?.dataset.do) actions[pressed.dataset.do]();
  if (pressed?.dataset.mode) setMode(pressed.dataset.mode);
});
// Keys work without a click first, as long as nothing else on the page has the focus.
const heard = event => player.contains(event.target)
  || (event.target === document.body && element.offsetParent !== null && data);
document.addEventListener('keydown', event => {
  if (!element.isConnected || !heard(event)) return;
  if (event.key === 'Escape') player.classList.remove('tr-player-full');
  const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
  const action = keys[key], clip = '1234'.indexOf(key);
  const own = event.target.closest('select, [data-input="divider"]')
    || (event.key === ' ' && event.target.closest('button, summary'));
  if ((!action && (clip < 0 || key === '')) || own || event.ctrlKey || event.metaKey || event.altKey
    || (dialog.open && action !== 'help')) return;
  event.preventDefault();
  if (action) actions[action]();
  else pick(clip);
});
input('frame').addEventListener('input', event => { rest(); seek(event.target.value - 1); });
input('divider').addEventListener('input', event => { divider = event.target.value / 1000; draw(); });
input('speed').addEventListener('change', event => { video.playbackRate = Number(event.target.value); });
input('end').addEventListener('change', ends);
input('kind').addEventListener('change', event => { kind = event.target.value; refresh(); });
input('gain').addEventListener('change', event => { gain = Number(event.target.value); refresh(); });
input('left').addEventListener('change', event => {
  const clip = Number(event.target.value);
  if (clip === right) right = left;
  left = clip;
  recharted();
});
input('right').addEventListener('change', event => pick(Number(event.target.value)));

function point(event) {
  if (!data || !canvas.width) return;
  const box = canvas.getBoundingClientRect(), {width, height} = size();
  const x = (event.clientX - box.left) / box.width * canvas.width, y = (event.clientY - box.top) / box.height;
  const origin = origins().findLast(left => left <= x) ?? 0;
  const before = pointer;
  pointer = {x: Math.max(0, Math.min(1, (x - origin) / width)), y: Math.max(0, Math.min(1, y))};
  if (mode === 'wipe' && event.buttons) {
    divider = pointer.x;
    input('divider').value = Math.round(1000 * divider);
  } else if (event.buttons && event.type === 'pointermove' && view.zoom > 1) {
    move({zoom: view.zoom, x: view.x - (pointer.x - before.x) / view.zoom, y: view.y - (pointer.y - before.y) / view.zoom});
  }
  if (loupe || mode === 'wipe') draw();
  else say();
}
canvas.addEventListener('pointerdown', event => {
  player.classList.toggle('tr-touched', event.pointerType === 'touch');
  canvas.setPointerCapture(event.pointerId);
  point(event);
});
canvas.addEventListener('pointermove', point);
canvas.addEventListener('wheel', event => {  // zooms once the player has the focus: before that the page scrolls
  if (!player.contains(document.activeElement) && !event.ctrlKey) return;
  event.preventDefault();
  point(event);
  zoomTo(view.zoom * 2 ** (-event.deltaY / 300), pointer);
}, {passive: false});

// The charts are of B, or of A where B is the clip that the others are compared with.
function recharted() {
  const per_frame = data.per_frame[right] ?? data.per_frame[left] ?? {};
  charts = Object.entries(per_frame).map(([name, values]) => chart(name, values, data.kind));
  show('charts').replaceChildren(...charts.map(each => each.figure));
  charts.forEach(each => each.mark(frame));
  refresh();
}

function load() {
  rest();
  data = props.value || null;
  player.hidden = !data;
  if (!data) return;
  frames = data.frames;
  frame = 0;
  wanted = null;
  [left, right] = data.shown;
  [alone, gain, view] = [null, data.amplification, {zoom: 1, x: 0, y: 0}];
  failed(false);
  input('frame').max = frames;
  for (const side of ['left', 'right'])
    input(side).replaceChildren(...data.names.map((name, clip) => new Option(name, clip)));
  recharted();
  video.src = data.video.url;
}
watch('value', load);
load();
