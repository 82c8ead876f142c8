// One hidden video holds every clip and its difference from the first, next to each other; whatever is shown is drawn
// from there, so the clips never drift apart.
const GAP = 8;                              // between the two sides, in pixels of the video
const LOUPE = {radius: .2, zoom: 4};        // of the width of a picture
const CHART = {width: 100, height: 40};
const MOST_ZOOM = 16, PIXELS_FROM = 3;      // from this zoom on, pixels are squares
const LUMA = [.2126, .7152, .0722];         // BT.709
const GAINS = [1, 2, 4, 8, 16, 32];
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
const scratch = document.createElement('canvas').getContext('2d', {willReadFrequently: true});
const subtracted = document.createElement('canvas').getContext('2d');

let data = null, frames = 0, frame = 0;     // frame: the one that is drawn
let wanted = null;                          // the one that is being sought
let mode = 'side', left = 0, right = 1, alone = null;  // alone: the side that is shown by itself
let kind = 'absolute', gain = 1, divider = .5, loupe = false, swinging = null;
let view = {zoom: 1, x: 0, y: 0};           // the corner of what is shown, as shares of a picture
let pointer = {x: .5, y: .5};               // where the pointer is, as shares of a side
let charts = [], following = false;

// Geometry: the video holds n clips and n - 1 differences, each with a seam on both sides.
const count = () => data.names.length;
const pitch = () => video.videoWidth / (2 * count() - 1);
const size = () => ({width: pitch() - 2 * data.seam, height: video.videoHeight});
const sides = () => alone ? [alone === 'left' ? left : right] : [left, right];
const origins = () => mode === 'side' ? sides().map((_, side) => side * (size().width + GAP)) : [0];

// A picture at x, moved and enlarged as the view is, between two shares of the side.
function place(draws, x, from = 0, to = 1) {
  const {width, height} = size();
  pen.save();
  pen.beginPath();
  pen.rect(x + Math.round(from * width), 0, Math.round(to * width) - Math.round(from * width), height);
  pen.clip();
  pen.translate(x, 0);
  pen.scale(view.zoom, view.zoom);
  pen.translate(-view.x * width, -view.y * height);
  pen.imageSmoothingEnabled = view.zoom * (loupe ? LOUPE.zoom : 1) < PIXELS_FROM;
  draws();
  pen.restore();
}
function copy(panel, x, from, to) {
  const {width, height} = size();
  place(() => pen.drawImage(video, panel * pitch() + data.seam, 0, width, height, 0, 0, width, height), x, from, to);
}

// Levels by which B lies above A, from the differences that were taken before coding.
function levels() {
  const {width, height} = size();
  Object.assign(scratch.canvas, {width, height});
  const of = clip => {
    if (!clip) return null;
    scratch.drawImage(video, (count() - 1 + clip) * pitch() + data.seam, 0, width, height, 0, 0, width, height);
    return scratch.getImageData(0, 0, width, height);
  };
  const [a, b] = [of(left), of(right)], all = a ?? b ?? scratch.createImageData(width, height);
  const seen = new Float32Array(all.data.length);
  for (let i = 0; i < seen.length; i++)
    seen[i] = ((b ? b.data[i] - 128 : 0) - (a ? a.data[i] - 128 : 0)) * 2 / data.amplification;
  return {seen, width, height};
}
function subtract() {
  const {seen, width, height} = levels(), image = subtracted.createImageData(width, height), out = image.data;
  for (let i = 0; i < seen.length; i += 4) {
    const luma = LUMA[0] * seen[i] + LUMA[1] * seen[i + 1] + LUMA[2] * seen[i + 2];
    for (let c = 0; c < 3; c++)
      out[i + c] = kind === 'signed' ? 128 + gain * seen[i + c] / 2 : gain * Math.abs(kind === 'luma' ? luma : seen[i + c]);
    out[i + 3] = 255;
  }
  Object.assign(subtracted.canvas, {width, height});
  subtracted.putImageData(image, 0, 0);
}

function paint() {
  if (mode === 'side') origins().forEach((x, side) => copy(sides()[side], x));
  if (mode === 'difference') place(() => pen.drawImage(subtracted.canvas, 0, 0), 0);
  if (mode === 'wipe') {
    copy(left, 0, 0, divider);
    copy(right, 0, divider, 1);
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
  if (mode === 'difference') subtract();
  paint();
  if (mode === 'wipe') paintDivider();
  if (loupe) origins().forEach(paintLoupe);
  say();
}

// What lies under the pointer, in pixels of the model and levels of both clips.
const pixel = clip => {
  const {width, height} = size(), [x, y] = under();
  Object.assign(scratch.canvas, {width: 1, height: 1});
  scratch.drawImage(video, clip * pitch() + data.seam + Math.floor(x * width), Math.floor(y * height), 1, 1, 0, 0, 1, 1);
  return [...scratch.getImageData(0, 0, 1, 1).data].slice(0, 3).join(' ');
};
const under = () => ['x', 'y'].map(axis => Math.min(.9999, view[axis] + pointer[axis] / view.zoom));
function say() {
  if (!player.matches(':hover, .tr-touched')) return;
  const [x, y] = under(), [width, height] = data.size;
  show('value').textContent = `x ${Math.floor(x * width)}, y ${Math.floor(y * height)} · `
    + `A ${pixel(left)} · B ${pixel(right)} (red green blue)`;
}
