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
    rest();
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
