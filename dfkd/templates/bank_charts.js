const GRID = {gridcolor: "#e6e6e6", linecolor: "#888", zerolinecolor: "#ccc", automargin: true};
const look = own => ({
  font: {family: "system-ui, sans-serif", size: 12, color: "#1a1a1a"}, margin: {l: 50, r: 15, t: 40, b: 40},
  paper_bgcolor: "#fff", plot_bgcolor: "#fff", hoverlabel: {bgcolor: "#fff"}, bargap: 0.05, ...own,
  xaxis: {...GRID, ...own.xaxis}, yaxis: {...GRID, ...own.yaxis}, title: {text: own.title, font: {size: 13.5}},
});
const OPTIONS = {responsive: true, displaylogo: false, modeBarButtonsToRemove: ["select2d", "lasso2d"], showSendToCloud: false, plotlyServerURL: ""};
// Names of classes and banks are text: plotly would read markup in them.
const plain = text => text.replaceAll("&", "&amp;").replaceAll("<", "&lt;");
const labels = classes.map(plain);
// A category axis joins classes of equal names, and sorts "10" before "2": places, with the names written at them.
const every = Math.ceil(classes.length / 25);
const classAxis = {tickvals: labels.map((_, place) => place).filter(place => place % every === 0), ticktext: labels.filter((_, place) => place % every === 0)};
const colourOf = Object.fromEntries(stages.map(stage => [stage.name, stage.colour]));
const drawn = new Set();

function drawStatistics() {
  if (drawn.has("statistics")) return;
  drawn.add("statistics");
  byId("stage-legend").append(...Object.keys(data.counts).map(name => element("span", {className: "key"}, element("i", {style: `--stage:${colourOf[name]}`}), name)));
  const bars = Object.entries(data.counts).map(([name, y]) => ({type: "bar", name, offsetgroup: name === "parent" ? "parents" : "made", x: y.map((_, place) => place), y, text: labels, marker: {color: colourOf[name]}, textposition: "none", hovertemplate: `%{text}: %{y:,} ${name}<extra></extra>`}));
  Plotly.newPlot("plot-counts", bars, look({title: "Images of each class", barmode: "stack", bargap: 0.15, showlegend: false, xaxis: {...classAxis, showgrid: false, zeroline: false}}), OPTIONS);
  const share = data.answers.map(row => { const all = row.reduce((a, b) => a + b, 0); return row.map(value => all ? value / all : 0); });
  const matrix = byId("plot-answers");
  Plotly.newPlot(matrix, [{type: "heatmap", z: share, customdata: data.answers, zmin: 0, colorscale: [[0, "#fff"], [1, "#0b5394"]], colorbar: {thickness: 10, tickformat: ".0%"},
    text: data.answers.map((row, label) => row.map((_, answer) => `label ${labels[label]}, answer ${labels[answer]}`)), hovertemplate: "%{text}: %{customdata:,} images, %{z:.1%} of the label<extra></extra>"}],
    look({title: `What the teacher takes the images of ${plain(banks[0].file)} for`, xaxis: {...classAxis, title: {text: "answer"}, showgrid: false}, yaxis: {...classAxis, title: {text: "label"}, autorange: "reversed", showgrid: false}}), OPTIONS);
  matrix.on("plotly_click", ({points: [point]}) => showWhere(`label == ${point.y} and prediction == ${point.x}`, [...new Set(images.stage.filter((_, row) => images.bank[row] === 0))].map(stage => stages[stage].name)));
  const places = Object.keys(data.histograms).map(() => element("div", {className: "plot"}));
  byId("plots-scores").append(...places);  // all before the first is drawn: they decide each other's width
  for (const [at, [name, {from, to, counts}]] of Object.entries(data.histograms).entries()) {
    const width = (to - from) / Object.values(counts)[0].length;
    const traces = Object.entries(counts).map(([stage, y]) => ({type: "bar", name: stage, x: y.map((_, bin) => from + (bin + .5) * width), y, width, opacity: .62, marker: {color: colourOf[stage]},
      customdata: y.map((_, bin) => `${shown(from + bin * width)} to ${shown(from + (bin + 1) * width)}`), hovertemplate: `%{customdata}: %{y:,} ${stage}<extra></extra>`}));
    Plotly.newPlot(places[at], traces, look({title: plain(name), barmode: "overlay", bargap: 0, showlegend: false, margin: {l: 50, r: 15, t: 34, b: 30}, xaxis: {range: [from, to]}}), {...OPTIONS, displayModeBar: false});
  }
}

function buildColours() {
  const kinds = ["class", ...(stagesHere.length > 1 ? ["stage"] : []), "teacher's answer", ...data.scores];
  byId("colour").append(...kinds.map(name => element("option", {value: name}, name)));
}

const hue = (place, of) => `hsl(${Math.round(360 * place / of)} ${place % 2 ? 75 : 60}% ${[45, 36, 55][place % 3]}%)`;
function drawFeatures() {
  const kind = byId("colour").value, plot = byId("plot-features");
  byId("features-status").textContent = view.length === rowCount ? "" : `${view.length.toLocaleString("en")} of ${rowCount.toLocaleString("en")} images`;
  const points = (rows, marker, name) => ({type: "scatter", mode: "markers", name, x: rows.map(row => images.x[row]), y: rows.map(row => images.y[row]), customdata: rows, hoverinfo: "none",
    marker: {size: 6, opacity: .75, symbol: rows.map(row => ({rejected: "x", parent: "circle-open"})[stageOf(row).name] ?? "circle"), ...marker}});
  const rows = [...view].sort((a, b) => images.stage[a] - images.stage[b]);
  let traces;
  if (kind in columns && data.scores.includes(kind)) {
    const having = rows.filter(row => columns[kind][row] !== null);
    traces = [points(having, {color: having.map(row => columns[kind][row]), colorscale: "Viridis", colorbar: {thickness: 12, title: {text: plain(kind)}}}, "")];
  } else {
    const key = kind === "stage" ? row => images.stage[row] : row => columns[kind === "class" ? "label" : "prediction"][row];
    const found = [...new Set(rows.map(key))].sort((a, b) => a - b);
    traces = found.map(value => points(rows.filter(row => key(row) === value), {color: kind === "stage" ? stages[value].colour : hue(value, classes.length)}, kind === "stage" ? stages[value].name : labels[value]));
  }
  const explained = place => data.explained ? `direction ${place + 1}, ${(100 * data.explained[place]).toFixed(1)} % of the variance` : "";
  Plotly.react(plot, traces, look({title: "", hovermode: "closest", showlegend: traces.length > 1, legend: {itemsizing: "constant"}, margin: {l: 55, r: 15, t: 10, b: 45}, xaxis: {title: {text: explained(0)}, zeroline: false}, yaxis: {title: {text: explained(1)}, zeroline: false}, uirevision: "kept"}), OPTIONS);
  if (drawn.has("features")) return;
  drawn.add("features");
  plot.on("plotly_click", ({points: [point]}) => open(point.customdata));
  plot.on("plotly_hover", ({points: [point], event}) => {
    const tip = byId("tip");
    tip.replaceChildren(element("div", {className: "cell", style: `${onSheet(point.customdata)};--px:${data.size * scaleNear(96, 192)}px`}), nameOf(point.customdata), element("br"), `label ${classes[columns.label[point.customdata]]}, answer ${classes[columns.prediction[point.customdata]]}`, element("br"), stageOf(point.customdata).name);
    tip.hidden = false;
    const box = tip.getBoundingClientRect();
    tip.style.left = `${Math.min(event.clientX + 14, innerWidth - box.width - 8)}px`;
    tip.style.top = `${Math.min(event.clientY + 14, innerHeight - box.height - 8)}px`;
  });
  plot.on("plotly_unhover", () => { byId("tip").hidden = true; });
}
