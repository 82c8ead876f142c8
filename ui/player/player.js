// One hidden video holds A, B and their difference next to each other; whatever it shows is drawn from there, so the
// two never drift apart.
const [A, B, DIFFERENCE] = [0, 1, 2];
const GAP = 8;                              // between the two sides, in pixels of the video
const LOUPE = {radius: .2, zoom: 4};        // of the width of a picture
const CHART = {width: 100, height: 40};
const METRICS = {
  psnr: {title: 'PSNR', unit: ' dB', digits: 1},
  ssim: {title: 'SSIM', unit: '', digits: 3},
  vmaf: {title: 'VMAF', unit: '', digits: 1},
};

const player = element.querySelector('.tr-player');
const [video, canvas, dialog] = ['video', 'canvas', 'dialog'].map(name => player.querySelector(name));
const show = name => player.querySelector(`[data-show="${name}"]`);
const input = name => player.querySelector(`[data-input="${name}"]`);
const button = name => player.querySelector(`[data-do="${name}"]`);
const pen = canvas.getContext('2d');

let data = null, frames = 0;                // what is played
let frame = 0, wanted = null;               // the frame drawn; the one asked for while the video still seeks
let mode = 'side', divider = .5, loupe = false;
let pointer = {x: .5, y: .5};               // where the loupe is, as shares of a picture
let charts = [], following = false;

// Geometry: the video is three pictures wide, each with a seam on both sides.
const pitch = () => video.videoWidth / 3;
const size = () => ({width: pitch() - 2 * data.seam, height: video.videoHeight});
const origins = () => mode === 'side' ? [0, size().width + GAP] : [0];

function copy(panel, x, from = 0, to = 1) {
  const {width, height} = size(), left = Math.round(from * width), wide = Math.round(to * width) - left;
  if (wide > 0) pen.drawImage(video, panel * pitch() + data.seam + left, 0, wide, height, x + left, 0, wide, height);
}

function paint() {
  if (mode === 'side') origins().forEach((x, panel) => copy(panel, x));
  if (mode === 'difference') copy(DIFFERENCE, 0);
  if (mode === 'wipe') {
    copy(A, 0, 0, divider);
    copy(B, 0, divider, 1);
  }
}

function paintDivider() {
  const {width, height} = size(), x = Math.round(divider * width);
  pen.fillStyle = '#fff';
  pen.fillRect(x - 1, 0, 2, height);
  pen.beginPath();
  pen.arc(x, height / 2, width / 40, 0, 2 * Math.PI);
  pen.fill();
}

function paintLoupe(origin) {
  const {width, height} = size(), x = origin + pointer.x * width, y = pointer.y * height;
  pen.save();
  pen.beginPath();
  pen.rect(origin, 0, width, height);
  pen.clip();
  pen.beginPath();
  pen.arc(x, y, LOUPE.radius * width, 0, 2 * Math.PI);
  pen.lineWidth = width / 100;
  pen.strokeStyle = '#fff';
  pen.stroke();
  pen.clip();
  pen.translate(x, y);
  pen.scale(LOUPE.zoom, LOUPE.zoom);
  pen.translate(-x, -y);
  paint();
  pen.restore();
}

function draw() {
  if (!data || video.readyState < 2) return;
  const {width, height} = size(), wide = origins().at(-1) + width;
  if (canvas.width !== wide || canvas.height !== height) {
    Object.assign(canvas, {width: wide, height});
    player.style.setProperty('--aspect', wide / height);
  }
  pen.clearRect(0, 0, wide, height);
  paint();
  if (mode === 'wipe') paintDivider();
  if (loupe) origins().forEach(paintLoupe);
}

// Drawn frame and everything that names it.
function arrive(seconds) {
  if (!data) return;
  frame = frameAt(seconds);
  draw();
  player.dataset.frame = frame + 1;
  show('place').textContent = `${frame + 1} of ${frames}`;
  if (wanted === null) input('frame').value = frame + 1;
  charts.forEach(chart => chart.mark(frame));
}

// A frame starts at frame / fps; its middle is far from both its ends, whatever the rounding.
const middle = index => (index + .5) / data.fps;
const within = index => Math.max(0, Math.min(frames - 1, index));
const frameAt = seconds => within(Math.floor(seconds * data.fps));

function seek(index) {
  if (!frames) return;
  wanted = within(index);
  if (!video.seeking) video.currentTime = middle(wanted);
}

function step(by) {
  video.pause();
  seek((wanted ?? frame) + by);
}

video.addEventListener('seeked', () => {
  if (wanted !== null && frameAt(video.currentTime) !== wanted) {
    video.currentTime = middle(wanted);
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

for (const event of ['play', 'pause'])
  video.addEventListener(event, () => {
    player.classList.toggle('playing', !video.paused);
    button('play').setAttribute('aria-label', video.paused ? 'Play' : 'Pause');
    if (!video.paused) follow();
  });
video.addEventListener('loadeddata', () => {
  if (matchMedia('(prefers-reduced-motion: reduce)').matches) seek(0);
  else video.play().catch(() => seek(0));
});
video.addEventListener('error', () => failed(true));

function failed(yes) {
  player.querySelector('.tr-player-failed').hidden = !yes;
  player.querySelector('.tr-player-body').hidden = yes;
}

// Views and buttons.
function setMode(chosen) {
  mode = chosen;
  for (const each of player.querySelectorAll('[data-mode]'))
    each.setAttribute('aria-pressed', each.dataset.mode === mode);
  show('divider').hidden = mode !== 'wipe';
  const caption = mode === 'difference'
    ? `|A − B| × ${data.amplification}, from the frames before coding; black: equal` : '';
  show('caption').textContent = caption;
  player.dataset.mode = mode;
  canvas.setAttribute('aria-label', caption || `${data.names.join(mode === 'wipe' ? ' left of the divider, ' : ' and ')}`);
  draw();
}

const toggle = chosen => setMode(mode === chosen ? 'side' : chosen);
const press = (name, yes) => button(name).setAttribute('aria-pressed', yes);
const actions = {
  play: () => video.paused ? video.play().catch(() => {}) : video.pause(),
  back: () => step(-1),
  forward: () => step(1),
  loop: () => press('loop', video.loop = !video.loop),
  loupe: () => { press('loupe', loupe = !loupe); draw(); },
  full: () => document.fullscreenElement ? document.exitFullscreen() : player.requestFullscreen(),
  help: () => dialog.open ? dialog.close() : dialog.showModal(),
  wipe: () => toggle('wipe'),
  difference: () => toggle('difference'),
};
const keys = {
  ' ': 'play', ArrowLeft: 'back', ArrowRight: 'forward', w: 'wipe', d: 'difference', f: 'full', l: 'loupe', '?': 'help',
};

player.addEventListener('click', event => {
  const pressed = event.target.closest('button');
  if (pressed?.dataset.do) actions[pressed.dataset.do]();
  if (pressed?.dataset.mode) setMode(pressed.dataset.mode);
});
player.addEventListener('keydown', event => {
  const action = keys[event.key.length === 1 ? event.key.toLowerCase() : event.key];
  const own = event.target.closest('select, [data-input="divider"]') || (event.key === ' ' && event.target.closest('button'));
  if (!action || own || event.ctrlKey || event.metaKey || event.altKey || (dialog.open && action !== 'help')) return;
  event.preventDefault();
  actions[action]();
});
input('frame').addEventListener('input', event => { video.pause(); seek(event.target.value - 1); });
input('divider').addEventListener('input', event => { divider = event.target.value / 1000; draw(); });
input('speed').addEventListener('change', event => { video.playbackRate = Number(event.target.value); });

function point(event) {
  if (!data || !canvas.width) return;
  const box = canvas.getBoundingClientRect(), {width, height} = size();
  const x = (event.clientX - box.left) / box.width * canvas.width, y = (event.clientY - box.top) / box.height;
  const origin = origins().findLast(left => left <= x) ?? 0;
  pointer = {x: Math.max(0, Math.min(1, (x - origin) / width)), y: Math.max(0, Math.min(1, y))};
  if (mode === 'wipe' && event.buttons) {
    divider = pointer.x;
    input('divider').value = Math.round(1000 * divider);
  }
  if (loupe || mode === 'wipe') draw();
}
canvas.addEventListener('pointerdown', event => { canvas.setPointerCapture(event.pointerId); point(event); });
canvas.addEventListener('pointermove', point);

// One chart a metric, one point a frame.
function chart(name, values, kind) {
  const {title, unit, digits} = METRICS[name], text = value => value.toFixed(digits) + unit;
  const low = Math.min(...values), high = Math.max(...values), last = Math.max(1, values.length - 1);
  const x = index => index / last * CHART.width;
  const y = value => high > low ? CHART.height * (.9 - .8 * (value - low) / (high - low)) : CHART.height / 2;
  const figure = document.createElement('figure');
  figure.innerHTML = `<figcaption><b>${title}</b> <output></output> <em class="tr-kind"></em></figcaption>
    <div><svg viewBox="0 0 ${CHART.width} ${CHART.height}" preserveAspectRatio="none" role="img">
      <polyline points="${values.map((value, i) => `${x(i)},${y(value)}`).join(' ')}"/>
      <line y1="0" y2="${CHART.height}"/></svg><i></i></div>
    <p><span></span><span></span></p>`;
  const [svg, line, dot, output] = ['svg', 'line', 'i', 'output'].map(tag => figure.querySelector(tag));
  figure.querySelector('em').textContent = kind;
  figure.querySelector('em').classList.add(`tr-${kind.split(' ')[0]}`);
  const [lowest, highest] = figure.querySelectorAll('span');
  lowest.textContent = `lowest ${text(low)}`;
  highest.textContent = `highest ${text(high)}`;
  svg.setAttribute('aria-label', `${title} of each frame, ${kind}: from ${text(low)} to ${text(high)}`);
  const pick = event => {
    const box = svg.getBoundingClientRect();
    video.pause();
    seek(Math.round((event.clientX - box.left) / box.width * last));
  };
  svg.addEventListener('pointerdown', event => { svg.setPointerCapture(event.pointerId); pick(event); });
  svg.addEventListener('pointermove', event => event.buttons && pick(event));
  const mark = index => {
    line.setAttribute('x1', x(index));
    line.setAttribute('x2', x(index));
    dot.style.left = `${100 * x(index) / CHART.width}%`;
    dot.style.top = `${100 * y(values[index]) / CHART.height}%`;
    output.textContent = text(values[index]);
  };
  return {figure, mark};
}

function load() {
  data = props.value || null;
  player.hidden = !data;
  if (!data) {
    video.pause();
    return;
  }
  frames = data.per_frame.psnr.length;
  frame = 0;
  wanted = null;
  failed(false);
  input('frame').max = frames;
  player.querySelectorAll('[data-name]').forEach(name => { name.textContent = data.names[name.dataset.name]; });
  charts = Object.entries(data.per_frame).map(([name, values]) => chart(name, values, data.kind));
  show('charts').replaceChildren(...charts.map(each => each.figure));
  charts.forEach(each => each.mark(0));
  setMode(mode);
  video.src = data.video.url;
}
watch('value', load);
load();
