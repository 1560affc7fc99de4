"use strict";
// Everything shown comes from the JSON beside this script. Text goes into the page by textContent, never as HTML.
const data = JSON.parse(document.getElementById("data").textContent);
const PALETTE = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7f3c8d", "#666666"]; // Okabe and Ito
const METHODS = [data.baseline, "goca"]; // the same colours on every page, whatever else is compared
const PAGE = 12; // images shown at a time
const $ = (id) => document.getElementById(id);
const colour = (index) => PALETTE[index % PALETTE.length];
// plotly reads a few HTML tags in text: escape what comes from runs.
const plain = (text) => String(text).replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
const state = { kind: 0, sort: null, ascending: true, shown: PAGE };

function element(name, attributes = {}, ...children) {
  const node = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key === "text") node.textContent = value;
    else if (key === "class") node.className = value;
    else if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
    else node.setAttribute(key, value);
  }
  node.append(...children);
  return node;
}

const DIGITS = { "mIoU": 2, "mean mIoU": 2, "deviation": 2, "lowest": 2, "highest": 2, "difference": 2, "low": 2, "high": 2, "pixel accuracy": 1, "mean accuracy": 1, "names precision": 1, "names recall": 1, "s / image": 3, "peak GiB": 2 };
function shown(value, column) {
  if (value === null || value === undefined) return "-";
  if (typeof value !== "number") return String(value);
  return column in DIGITS ? value.toFixed(DIGITS[column]) : Number.isInteger(value) ? String(value) : value.toFixed(2);
}

// ---------------------------------------------------------------------------------------------------------------- files
const FORMATS = { csv: ["CSV", "text/csv"], md: ["Markdown", "text/markdown"], tex: ["LaTeX", "application/x-tex"] };

// Buttons that save a table as it was written for files; nothing where the table has no rows.
function files(place, name) {
  const buttons = Object.entries(data.files[name] ?? {}).map(([ending, text]) => {
    const [title, type] = FORMATS[ending];
    return element("button", { type: "button", text: title, title: `save ${name}.${ending}`, onclick: () => save(`${name}.${ending}`, text, type) });
  });
  place.replaceChildren(...(buttons.length ? ["Save as ", ...buttons] : []));
}

function save(name, text, type) {
  const address = URL.createObjectURL(new Blob([text], { type: `${type};charset=utf-8` }));
  element("a", { href: address, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(address), 60_000); // when the browser has surely read it
}

const numbered = (name, place) => (data.kinds.length > 1 ? `${name}_${place + 1}` : name);

function refreshFiles() {
  for (const place of document.querySelectorAll(".files[data-table]")) files(place, place.dataset.table);
  for (const place of document.querySelectorAll(".files[data-kind]")) files(place, numbered(place.dataset.kind, state.kind));
  for (const place of document.querySelectorAll(".files[data-run]")) files(place, `${place.dataset.run}_${runA() + 1}`);
}

// ------------------------------------------------------------------------------------------------------------ benchmarks
function benchmarks() {
  const table = data.benchmarks;
  $("benchmarks").hidden = !table;
  if (!table) return;
  const source = table.columns.indexOf("source");
  const numeric = (place) => table.columns[place] in table.better;
  const cell = (value) => (value === null ? "-" : typeof value === "number" ? value.toFixed(table.digits) : String(value));
  const head = table.columns.map((name, place) => element("th", { scope: "col", class: numeric(place) ? "number" : "", text: name }));
  $("row").replaceChildren(element("thead", {}, element("tr", {}, ...head)));
  let first = 0;
  for (const [heading, count] of table.parts) {
    const rows = table.rows.slice(first, (first += count));
    const values = (place) => rows.map((row) => row[place]).filter((value) => typeof value === "number");
    const best = table.columns.map((_, place) => (numeric(place) && values(place).length > 1 ? cell(Math.max(...values(place))) : null));
    const title = element("th", { colspan: table.columns.length, scope: "rowgroup" }, element("span", { text: heading }));
    const body = rows.map((row) => element("tr", { class: source >= 0 && row[source] !== "measured" ? "quoted" : "" }, ...row.map((value, place) =>
      element("td", { class: (numeric(place) ? "number" : "text") + (cell(value) === best[place] ? " best" : ""), title: String(value ?? ""), text: cell(value) }))));
    $("row").append(element("tbody", {}, element("tr", {}, title), ...body));
  }
}

// Empty cells stay last whichever way a column is sorted.
function compare(a, b, ascending) {
  if (a === null || b === null) return (a === null) - (b === null);
  const order = typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b), "en", { numeric: true });
  return ascending ? order : -order;
}

// ---------------------------------------------------------------------------------------------------------- leaderboard
const FILTERED = ["dataset", "protocol", "model", "method"];
const columns = data.kinds[0].columns;

function filters() {
  for (const name of FILTERED) {
    const place = columns.indexOf(name);
    const values = [...new Set(data.kinds.flatMap((kind) => kind.rows.map((row) => row[place])))].sort();
    const select = element("select", { id: `filter-${name}`, onchange: board });
    select.append(new Option("all", ""), ...values.map((value) => new Option(value, value)));
    $("filters").append(element("label", { text: `${name} ` }, select));
  }
  $("filter").addEventListener("input", board);
  $("no-filter").addEventListener("click", () => {
    for (const field of $("filters").querySelectorAll("input, select")) field.value = "";
    board();
  });
}

function passes(row) {
  const text = $("filter").value.trim().toLowerCase();
  const chosen = FILTERED.every((name) => {
    const wanted = $(`filter-${name}`).value;
    return !wanted || String(row[columns.indexOf(name)]) === wanted;
  });
  return chosen && (!text || row.some((cell) => String(cell).toLowerCase().includes(text)));
}

function board() {
  const head = element("tr");
  columns.forEach((name, place) => {
    const order = state.sort === place ? (state.ascending ? "ascending" : "descending") : "none";
    const numeric = data.kinds.some((kind) => kind.rows.some((row) => typeof row[place] === "number"));
    const button = element("button", { type: "button", text: name, onclick: () => sortBy(place, numeric) });
    head.append(element("th", { scope: "col", "aria-sort": order, class: numeric ? "number" : "" }, button));
  });
  const table = $("board");
  table.replaceChildren(element("thead", {}, head));
  $("no-rows").hidden = data.kinds.some((kind) => kind.rows.some(passes));
  for (const kind of data.kinds) {
    const rows = kind.rows.filter(passes);
    if (!rows.length) continue;
    if (state.sort !== null) rows.sort((a, b) => compare(a[state.sort], b[state.sort], state.ascending));
    const title = element("th", { colspan: columns.length, scope: "rowgroup" }, element("span", { text: kind.title }));
    table.append(element("tbody", {}, element("tr", {}, title), ...rows.map((row) => boardRow(row))));
  }
}

function boardRow(row) {
  const cells = row.map((value, place) => {
    const kind = typeof value === "number" ? "number" : "text";
    const strong = columns[place] === "mIoU" ? " strong" : "";
    return element("td", { class: kind + strong, title: String(value ?? ""), text: shown(value, columns[place]) });
  });
  return element("tr", {}, ...cells);
}

function sortBy(place, numeric) {
  const first = !numeric || columns[place] === "rank"; // numbers begin with the largest, ranks and text with the first
  state.ascending = state.sort === place ? !state.ascending : first;
  state.sort = place;
  board();
}

// --------------------------------------------------------------------------------------------------------------- detail
const kind = () => data.kinds[state.kind];
const members = () => kind().runs.map((index) => ({ index, ...data.runs[index] }));
const runA = () => Number($("run-a").value);
const runB = () => Number($("run-b").value);
const title = (run) => `${run.model}, ${run.method}`;
// Methods are told apart by the run's folder where they are equal.
const label = (run) => (members().filter((other) => title(other) === title(run)).length > 1 ? `${title(run)} (${run.name})` : title(run));

function choices() {
  $("kind").replaceChildren(...data.kinds.map((entry, index) => new Option(entry.title, index)));
  $("kind").addEventListener("change", () => { state.kind = Number($("kind").value); chooseRuns(); chooseScale(); detail(); });
  for (const id of ["run-a", "run-b"]) $(id).addEventListener("change", detail);
  $("order").addEventListener("change", gallery);
  $("scale").addEventListener("change", scaling);
  $("all-runs").addEventListener("change", gallery);
  $("opacity").addEventListener("input", () => document.body.style.setProperty("--opacity", $("opacity").value / 100));
  $("more").addEventListener("click", () => { state.shown += PAGE; gallery(); });
}

function chooseRuns() {
  const runs = members();
  for (const id of ["run-a", "run-b"]) $(id).replaceChildren(...runs.map((run) => new Option(label(run), run.index)));
  const base = runs.find((run) => run.method === data.baseline) || runs[runs.length - 1];
  $("run-a").value = runs[0].index;
  $("run-b").value = base.index === runs[0].index && runs.length > 1 ? runs[1].index : base.index;
}

// One quantity at a time is on the axis; the one that is known for most runs comes first.
function chooseScale() {
  const known = (name) => members().filter((run) => name in run.power).length;
  const names = Object.keys(data.scales).filter(known).sort((a, b) => known(b) - known(a));
  $("scale").replaceChildren(...names.map((name) => new Option(data.scales[name].label, name)));
  $("scale-choice").hidden = names.length < 2;
}

function detail() {
  state.shown = PAGE;
  pair(); scaling(); repeats(); ablations(); classes(); confusion(); worst(); curves(); gallery(); refreshFiles();
}

function pairValue(table, a, b) {
  if (`${a},${b}` in table) return table[`${a},${b}`];
  const other = table[`${b},${a}`];
  return Array.isArray(other) ? [-other[0], -other[2], -other[1]] : other;
}

function pair() {
  const a = runA(), b = runB();
  const level = `${+(100 * data.level).toFixed(1)} % interval over images`;
  $("difference").hidden = a === b;
  if (a === b) {
    $("pair").textContent = members().length > 1 ? "A and B are the same run." : "There is one run in this group, and none to compare it with.";
    return;
  }
  const [change, low, high] = pairValue(kind().pairs, a, b);
  const sure = low > 0 || high < 0 ? "" : "; the interval includes no difference";
  $("pair").textContent = `A less B: ${signed(change)} mIoU, ${level} ${signed(low)} to ${signed(high)} (paired)${sure}.`;
}

const signed = (value) => (value > 0 ? "+" : "") + value.toFixed(2);

function draw(id, traces, layout) {
  const base = { font: { family: "system-ui, DejaVu Sans, sans-serif", size: 13 }, margin: { l: 55, r: 15, t: 10, b: 50 },
    hovermode: "closest", legend: { orientation: "h", y: -0.25 }, colorway: PALETTE };
  Plotly.react(id, traces, { ...base, ...layout }, { responsive: true, displaylogo: false });
}

function clear(id) {
  Plotly.purge(id);
  $(id).replaceChildren();
}

function scaling() {
  const name = $("scale").value, scale = data.scales[name];
  const runs = members().filter((run) => name in run.power);
  const missing = [...new Set(members().filter((run) => !(name in run.power)).map((run) => run.model))];
  const how = (quantity) => `set settings.generative_power.${quantity}.scores.<model>`;
  $("scaling-note").textContent = !missing.length ? "" : !scale
    ? `Nothing says how well ${missing.join(", ")} can generate: ${how(Object.keys(data.scales).at(-1))}.`
    : `Not shown, as their ${scale.label} is not known: ${missing.join(", ")} (${how(name)}).`;
  if (!runs.length) { clear("scaling"); return; }
  const methods = [...new Set([...METHODS, ...runs.map((run) => run.method)])];
  const highest = (run) => runs.every((other) => other.power[name] !== run.power[name] || other.miou <= run.miou);
  const traces = methods.map((method, index) => {
    // Of several runs of one model and method the best one is on the line.
    const best = new Map();
    for (const run of runs) if (run.method === method && !(best.get(run.model)?.miou >= run.miou)) best.set(run.model, run);
    const points = [...best.values()].sort((a, b) => a.power[name] - b.power[name]);
    return { name: plain(method), mode: "lines+markers+text", x: points.map((run) => run.power[name]), y: points.map((run) => run.miou),
      text: points.map((run) => (highest(run) ? plain(run.model) : "")), textposition: "top center", marker: { size: 9, color: colour(index) }, line: { color: colour(index) },
      error_y: { type: "data", symmetric: false, array: points.map((run) => run.high - run.miou), arrayminus: points.map((run) => run.miou - run.low) } };
  }).filter((trace) => trace.x.length);
  // Better models stand to the right.
  const axis = { title: { text: plain(`${scale.label} (${scale.better} is better)`) }, automargin: true, range: span(runs.map((run) => run.power[name]), scale.better === "lower") };
  draw("scaling", traces, { height: 380, xaxis: axis, yaxis: { title: { text: "mIoU" } } });
}

// Room on both sides of the points, one alone among them: a tenth of their spread, or of the value where there is none.
function span(values, reversed) {
  const low = Math.min(...values), high = Math.max(...values);
  const room = 0.1 * (high > low ? high - low : Math.abs(high) || 1);
  return reversed ? [high + room, low - room] : [low - room, high + room];
}

// Head and body of a table whose numbers stand to the right.
function parts(table) {
  const numeric = table.columns.map((_, place) => table.rows.every((row) => row[place] === null || typeof row[place] === "number"));
  const head = element("tr", {}, ...table.columns.map((name, place) => element("th", { scope: "col", class: numeric[place] ? "number" : "", text: name })));
  const rows = table.rows.map((row) => element("tr", {}, ...row.map((value, place) => {
    const strong = table.columns[place].endsWith("mIoU") ? " strong" : "";
    return element("td", { class: (numeric[place] ? "number" : "text") + strong, title: String(value ?? ""), text: shown(value, table.columns[place]) });
  })));
  return [element("thead", {}, head), element("tbody", {}, ...rows)];
}

function repeats() {
  $("seeds").replaceChildren(...parts(kind().repeats));
  $("repeats").hidden = !kind().repeats.rows.length;
}

function ablations() {
  $("ablations").replaceChildren();
  kind().ablations.forEach((table, place) => {
    const grid = element("table", {}, ...parts(table)), saved = element("p", { class: "files" });
    files(saved, `${numbered("ablation", state.kind)}_${place + 1}`);
    $("ablations").append(element("p", { class: "hint", text: table.model }), saved, element("div", { class: "scroll" }, grid));
  });
  $("ablation").hidden = !kind().ablations.length;
}

function classes() {
  const a = data.runs[runA()], b = data.runs[runB()];
  const names = Object.keys(a.classes).filter((name) => name in b.classes).sort((x, y) => b.classes[y] - b.classes[x]);
  const bar = (run, letter, index) => ({ type: "bar", name: plain(`${letter}: ${label(run)}`), x: names.map(plain), y: names.map((name) => run.classes[name]), marker: { color: colour(index) } });
  const axis = { tickangle: -45, automargin: true, type: "category" };
  const layout = { height: 400, barmode: "group", xaxis: axis, yaxis: { title: { text: "IoU" }, range: [0, 100] }, legend: { orientation: "h", y: 1.12 }, margin: { l: 55, r: 15, t: 30, b: 60 } };
  draw("classes", [bar(a, "A", 1), bar(b, "B", 0)], layout);
  const change = names.map((name) => [name, a.classes[name] - b.classes[name]]).sort((x, y) => y[1] - x[1]);
  const bars = { type: "bar", x: change.map(([name]) => plain(name)), y: change.map(([, value]) => value),
    marker: { color: change.map(([, value]) => (value < 0 ? colour(0) : colour(1))) } };
  draw("differences", [bars], { height: 340, xaxis: axis, yaxis: { title: { text: "IoU of A less IoU of B" } } });
}

function confusion() {
  const { names, shares } = data.runs[runA()].confusion;
  if (!names.length) { clear("confusion"); return; }
  const labels = names.map(plain);
  const map = { type: "heatmap", x: labels, y: labels, z: shares, zmin: 0, zmax: 100, colorscale: "Viridis", hovertemplate: "%{y} labelled as %{x}: %{z} %<extra></extra>",
    texttemplate: names.length < 16 ? "%{z:.0f}" : "", colorbar: { thickness: 12 } };
  const axis = { type: "category", automargin: true, title: { text: "prediction" }, tickangle: -45 };
  draw("confusion", [map], { height: Math.max(360, 120 + 22 * names.length), xaxis: axis, yaxis: { type: "category", automargin: true, autorange: "reversed", title: { text: "ground truth" } } });
}

function worst() {
  const table = data.worst[`worst_images_${runA() + 1}`];
  $("worst").hidden = !table;
  $("worst-images").replaceChildren(...(table ? parts(table) : []));
}

function curves() {
  const runs = members().filter((run) => Object.keys(run.thresholds).length > 1);
  $("curves-note").textContent = runs.length ? "" : "These runs compare no class with a background: there is no threshold.";
  if (!runs.length) { clear("curves"); return; }
  const traces = runs.map((run, index) => ({ name: plain(label(run)), mode: "lines+markers", x: Object.keys(run.thresholds).map(Number),
    y: Object.values(run.thresholds), marker: { color: colour(index) }, line: { color: colour(index), dash: index < PALETTE.length ? "solid" : "dot" } }));
  draw("curves", traces, { height: 400, xaxis: { title: { text: "threshold tau" } }, yaxis: { title: { text: "mIoU" } } });
}

// -------------------------------------------------------------------------------------------------------------- gallery
function tile(entry, picture, mask, caption) {
  const images = [picture, mask].filter(Boolean).map((source) => element("img", { src: source, alt: `${entry.image}: ${caption}` }));
  return element("figure", {}, element("div", { class: mask ? "stack masked" : "stack" }, ...images), element("figcaption", { text: caption }));
}

function gallery() {
  const a = runA(), b = runB();
  const runs = members().filter((run) => $("all-runs").checked || run.index === a || run.index === b);
  // Runs keep thumbnails of their own worst images too: run B may have none of them.
  const differs = (entry) => (a === b ? 0 : pairValue(entry.disagreement, a, b) ?? -1);
  const usable = kind().gallery.filter((entry) => a in entry.labels);
  const score = (entry) => data.runs[a].images[entry.image] ?? Infinity; // without a class to judge: behind all others
  const orders = { differs: (x, y) => differs(y) - differs(x), worst: (x, y) => score(x) - score(y),
    best: (x, y) => (score(y) === Infinity ? -1 : score(y)) - (score(x) === Infinity ? -1 : score(x)) };
  usable.sort((x, y) => orders[$("order").value](x, y) || x.image.localeCompare(y.image));
  const entries = usable.slice(0, state.shown).map((entry) => {
    const share = differs(entry) < 0 || a === b ? "" : ` ${(100 * differs(entry)).toFixed(1)} % of pixels differ`;
    const tiles = [tile(entry, entry.picture, null, "image"), tile(entry, entry.picture, entry.truth, "ground truth")];
    for (const run of runs) {
      if (!(run.index in entry.labels)) continue;
      const letter = run.index === a ? "A: " : run.index === b ? "B: " : "";
      tiles.push(tile(entry, entry.picture, entry.labels[run.index], `${letter}${label(run)}, mIoU ${run.images[entry.image]?.toFixed(1) ?? "-"}`));
    }
    return element("div", { class: "entry" }, element("h4", { text: entry.image }, element("small", { text: share })), element("div", { class: "tiles" }, ...tiles));
  });
  if (!entries.length) entries.push(element("p", { class: "hint", text: "The folder of run A holds no thumbnails (figures.gallery, figures.worst)." }));
  $("images").replaceChildren(...entries);
  const patches = Object.entries(kind().colours).map(([name, value]) => {
    const patch = element("i");
    patch.style.background = value;
    return element("li", {}, patch, name);
  });
  $("legend").replaceChildren(...(usable.length ? patches : []));
  $("more").hidden = usable.length <= state.shown;
}

const count = (number, what) => `${number} ${what}${number === 1 ? "" : "s"}`;
$("lead").textContent = `${count(data.runs.length, "run")} in ${count(data.kinds.length, "group")}${data.kinds.length === 1 ? "" : ", each ranked by itself"}.`;
$("notes").append(...data.notes.map((note) => element("li", { text: note })));
filters(); choices(); benchmarks(); board(); chooseRuns(); chooseScale(); detail();
