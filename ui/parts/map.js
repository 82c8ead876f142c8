// A map of attention: the pointer reads frames and tokens, dragging zooms into a rectangle, a double click shows all.
let zoom = {x: 0, y: 0, w: 1, h: 1}, start = null;
const map = () => element.querySelector('.tr-map-view');
const at = event => {
  const box = map().getBoundingClientRect(), share = value => Math.max(0, Math.min(.9999, value));
  return [share((event.clientX - box.left) / box.width), share((event.clientY - box.top) / box.height)];
};
const whole = ([x, y]) => [zoom.x + x * zoom.w, zoom.y + y * zoom.h];
function show() {
  const inner = map()?.querySelector('.tr-map-inner');
  if (!inner) return;
  Object.assign(inner.style, {width: `${100 / zoom.w}%`, height: `${100 / zoom.h}%`, left: `${-100 * zoom.x / zoom.w}%`,
    top: `${-100 * zoom.y / zoom.h}%`});
  element.querySelector('[data-all]').hidden = zoom.w === 1;
}
watch('value', () => { zoom = {x: 0, y: 0, w: 1, h: 1}; show(); });
element.addEventListener('pointerdown', event => {
  if (!event.target.closest('.tr-map-view')) return;
  event.preventDefault();
  start = at(event);
});
element.addEventListener('pointermove', event => {
  if (!event.target.closest('.tr-map-view')) return;
  const facts = JSON.parse(map().dataset.facts), [x, y] = whole(at(event));
  const place = (share, frames, only) => {
    const frame = only ?? Math.floor(share * frames), inside = only === null ? share * frames % 1 : share;
    return {frame, token: Math.floor(inside * facts.tokens) + 1};
  };
  const query = place(y, facts.frames, facts.query), key = place(x, facts.frames, facts.key);
  const share = facts.shares[query.frame][key.frame];
  element.querySelector('[data-tip]').textContent = `Query: frame ${query.frame + 1}, token ${query.token}. `
    + `Key: frame ${key.frame + 1}, token ${key.token}. Frame ${query.frame + 1} gives frame ${key.frame + 1} `
    + `${(100 * share).toFixed(1)} % of its attention.`;
  if (!start || !event.buttons) return;
  const box = element.querySelector('.tr-map-box'), [a, b] = [start, at(event)];
  Object.assign(box.style, {display: 'block', left: `${100 * Math.min(a[0], b[0])}%`, top: `${100 * Math.min(a[1], b[1])}%`,
    width: `${100 * Math.abs(a[0] - b[0])}%`, height: `${100 * Math.abs(a[1] - b[1])}%`});
});
element.addEventListener('pointerup', event => {
  const from = start, box = element.querySelector('.tr-map-box');
  start = null;
  if (!from || !map()) return;
  box.style.display = 'none';
  const to = event.target.closest('.tr-map-view') ? at(event) : from;
  const [w, h] = [0, 1].map(axis => Math.abs(from[axis] - to[axis]));
  if (Math.min(w, h) < .03) return;
  const [x, y] = whole([Math.min(from[0], to[0]), Math.min(from[1], to[1])]);
  zoom = {x, y, w: w * zoom.w, h: h * zoom.h};
  show();
});
const all = event => {
  if (event.type === 'click' ? !event.target.closest('[data-all]') : !event.target.closest('.tr-map-view')) return;
  zoom = {x: 0, y: 0, w: 1, h: 1};
  show();
};
element.addEventListener('dblclick', all);
element.addEventListener('click', all);
