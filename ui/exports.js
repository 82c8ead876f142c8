// Under every plot: what it shows, as PNG, CSV or JSON. Made in the browser from the plot itself, so that no plot is
// forgotten and nothing is sent twice.
() => {
  const listOf = values => Array.isArray(values) ? values : Array.from(values ?? []);

  // One row a point: trace, x, y and, for heat maps, z.
  const rowsOf = graph => graph._fullData.flatMap(trace => {
    const x = listOf(trace.x), y = listOf(trace.y), name = trace.name ?? '';
    if (!trace.z) return x.map((value, i) => [name, value, y[i], '']);
    return listOf(trace.z).flatMap((row, i) => listOf(row).map((z, j) => [name, x[j] ?? j, y[i] ?? i, z ?? '']));
  });

  const csvOf = rows => [['trace', 'x', 'y', 'z'], ...rows]
    .map(row => row.map(cell => /[",\n]/.test(cell) ? `"${String(cell).replaceAll('"', '""')}"` : cell).join(','))
    .join('\r\n');

  const jsonOf = graph => JSON.stringify({
    title: graph._fullLayout.title.text,
    x: graph._fullLayout.xaxis?.title.text,
    y: graph._fullLayout.yaxis?.title.text,
    points: rowsOf(graph).map(([trace, x, y, z]) => z === '' ? {trace, x, y} : {trace, x, y, z}),
  }, null, 2);

  const download = (name, type, text) => {
    const link = document.createElement('a');
    link.href = URL.createObjectURL(new Blob([text], {type}));
    link.download = name;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  };

  const exports = {
    PNG: graph => graph.querySelector('.modebar-btn[data-title*="png" i], .modebar-btn[data-attr="toImage"]')?.click(),
    CSV: (graph, name) => download(`${name}.csv`, 'text/csv', csvOf(rowsOf(graph))),
    JSON: (graph, name) => download(`${name}.json`, 'application/json', jsonOf(graph)),
  };

  const addTo = plot => {
    const bar = document.createElement('div');
    bar.className = 'tr-exports';
    for (const [format, save] of Object.entries(exports)) {
      const button = Object.assign(document.createElement('button'), {type: 'button', textContent: format});
      button.setAttribute('aria-label', `Download this plot as ${format}`);
      button.addEventListener('click', () => {
        const graph = plot.querySelector('.js-plotly-plot');
        const title = graph._fullLayout.title.text ?? 'plot';
        save(graph, title.replace(/<[^>]*>/g, ' ').replace(/[^\p{L}\p{N}]+/gu, '-').replace(/^-|-$/g, '').toLowerCase());
      });
      bar.append(button);
    }
    plot.append(bar);
  };

  const look = () => {
    for (const plot of document.querySelectorAll('.tr-plot'))
      if (plot.querySelector('.js-plotly-plot') && !plot.querySelector('.tr-exports')) addTo(plot);
  };
  let waiting = false;
  new MutationObserver(() => {
    if (waiting) return;
    waiting = true;
    setTimeout(() => { waiting = false; look(); }, 200);
  }).observe(document.body, {childList: true, subtree: true});
}
