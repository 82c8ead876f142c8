// Error over saving of one head, with a star that can be dragged along it, or moved by the arrow keys.
let dragging = false, asked = null, latest = null;
const box = () => element.querySelector('.tr-curve');
const told = () => JSON.parse(box().dataset.curve);
function lie(saving) {
  const {points, x, y} = told(), last = points.at(-1), kept = Math.max(points[0][0], Math.min(last[0], saving));
  const right = Math.max(1, points.findIndex(point => point[0] >= kept)), [a, b] = [points[right - 1], points[right]];
  const error = a[1] + (b[0] > a[0] ? (kept - a[0]) / (b[0] - a[0]) : 0) * (b[1] - a[1]);
  const star = box().querySelector('.tr-star');
  star.setAttribute('transform', `translate(${x[0] + x[1] * kept} ${y[0] + y[1] * error})`);
  star.setAttribute('aria-valuenow', Math.round(100 * kept));
  star.setAttribute('aria-valuetext', `${(100 * kept).toFixed(0)} % saved, error ${error.toFixed(3)}`);
  box().querySelector('output').textContent = `${(100 * kept).toFixed(0)} % saved, error about ${error.toFixed(3)}`;
  return kept;
}
function move(saving) {
  latest = Math.round(100 * lie(saving)) / 100;
  if (asked === null) ask();
}
function ask() {
  asked = latest;
  trigger('select', {saving: latest});
}
watch('value', () => {
  if (!box()) return;
  if (asked !== null && latest !== asked) { lie(latest); ask(); return; }
  asked = null;
  if (dragging) lie(latest);
});
const from = event => {
  const {x, size} = told(), svg = box().querySelector('svg').getBoundingClientRect();
  return ((event.clientX - svg.left) / svg.width * size[0] - x[0]) / x[1];
};
element.addEventListener('pointerdown', event => {
  if (!event.target.closest('svg')) return;
  event.preventDefault();
  dragging = true;
  move(from(event));
  element.setPointerCapture(event.pointerId);
});
element.addEventListener('pointermove', event => dragging && move(from(event)));
element.addEventListener('pointerup', () => { dragging = false; });
element.addEventListener('keydown', event => {
  const by = {ArrowLeft: -.05, ArrowDown: -.05, ArrowRight: .05, ArrowUp: .05}[event.key];
  if (!by || !event.target.closest('.tr-star')) return;
  event.preventDefault();
  move(Number(box().querySelector('.tr-star').getAttribute('aria-valuenow')) / 100 + by);
});
