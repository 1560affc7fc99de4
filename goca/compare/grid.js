// Methods against models: a heat map, and what accuracy costs. Uses the helpers of page.js.
function heatColour(share) {
  // From white to blue, so that dark text stays readable everywhere.
  const ends = [[255, 255, 255], [86, 160, 211]];
  return `rgb(${ends[0].map((low, place) => Math.round(low + (ends[1][place] - low) * share)).join(", ")})`;
}

function grid() {
  const chosen = data.grids[$("grid").value];
  const value = new Map(chosen.points.map((point) => [JSON.stringify([point.method, point.model]), point.miou]));
  const all = chosen.points.map((point) => point.miou), low = Math.min(...all), high = Math.max(...all);
  const head = ["method", ...chosen.models].map((name, place) => element("th", { scope: "col", class: place ? "number" : "", text: name }));
  const rows = chosen.methods.map((method) => element("tr", {}, element("td", { class: "text", title: method, text: method }), ...chosen.models.map((model) => {
    const found = value.get(JSON.stringify([method, model]));
    const node = element("td", { class: "number", title: `${method}, ${model}`, text: found === undefined ? "-" : found.toFixed(1) });
    if (found !== undefined) node.style.background = heatColour(high > low ? (found - low) / (high - low) : 1);
    return node;
  })));
  $("heat").replaceChildren(element("thead", {}, element("tr", {}, ...head)), element("tbody", {}, ...rows));
  files($("grid-files"), `methods_${Number($("grid").value) + 1}`);
  const traces = chosen.models.map((model, index) => {
    const points = chosen.points.filter((point) => point.model === model && point.seconds > 0);
    return { name: plain(model), mode: "markers+text", x: points.map((point) => point.seconds), y: points.map((point) => point.miou),
      text: points.map((point) => plain(point.method)), textposition: "top center", textfont: { size: 10 }, marker: { size: 9, color: colour(index) } };
  });
  draw("cost", traces, { height: 460, xaxis: { title: { text: "seconds per image" }, type: "log", automargin: true }, yaxis: { title: { text: "mIoU" } } });
}

function chooseGrid() {
  $("grids").hidden = !data.grids.length;
  if (!data.grids.length) return;
  $("grid").append(...data.grids.map((one, place) => new Option(one.title, place)));
  $("grid").addEventListener("change", grid);
  grid();
}
chooseGrid();
