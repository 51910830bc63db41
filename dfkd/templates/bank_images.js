const data = JSON.parse(document.getElementById("data").textContent);
const {images, classes, stages, banks} = data;
const columns = {...images.columns, index: images.index};
const rowCount = images.index.length;
const byId = id => document.getElementById(id);

function element(tag, properties = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name === "style") made.style.cssText = value;
    else if (name in made) made[name] = value;
    else made.setAttribute(name, value);
  }
  made.append(...children);
  return made;
}

function shown(value) {
  if (value === null || value === undefined) return "–";
  if (Number.isInteger(value)) return String(value);
  return Math.abs(value) < 1e-3 ? value.toExponential(1) : String(Number(value.toPrecision(Math.abs(value) < 1 ? 3 : 4)));
}

const stageOf = row => stages[images.stage[row]];
const nameOf = row => `${banks[images.bank[row]].name} ${images.index[row]}`;
const rowNamed = new Map(images.index.map((_, row) => [nameOf(row), row]));
const rootOf = row => images.family[row] < 0 ? row : images.family[row];
const children = new Map();
images.family.forEach((parent, row) => parent < 0 || (children.get(parent) ?? children.set(parent, []).get(parent)).push(row));
const stagesHere = [...new Set(images.stage)].sort((a, b) => a - b);

function describe(row) {
  const of = name => columns[name]?.[row];
  const scores = ["confidence", "cosine"].filter(name => (of(name) ?? null) !== null).map(name => `, ${name} ${shown(of(name))}`).join("");
  return `${nameOf(row)}, ${stageOf(row).name}: label ${classes[of("label")]}, answer ${classes[of("prediction")]}${scores}`;
}

const onSheet = row => `--x:${images.cell[row] % data.sheet[0]};--y:${Math.floor(images.cell[row] / data.sheet[0])};--stage:${stageOf(row).colour}`;
const thumb = row => element("button", {type: "button", className: "cell thumb", style: onSheet(row), "data-row": row, "aria-label": describe(row)});
document.documentElement.style.setProperty("--columns", data.sheet[0]);
document.documentElement.style.setProperty("--rows", data.sheet[1]);

// Whole multiples of the pixels, so that none is wider than its neighbour; large images also smaller than they are.
const scales = [1 / 8, 1 / 4, 1 / 2, 1, 2, 3, 4, 5, 6, 8].filter(scale => data.size * scale >= 16 && data.size * scale <= Math.max(192, data.size));
const scaleNear = (pixels, most = Infinity) => {
  const enough = scales.filter(scale => data.size * scale <= most);
  return enough.find(scale => data.size * scale >= pixels) ?? enough.at(-1) ?? 1;
};

const START = {tab: "images", where: "", classes: [], stages: [], ranges: {}, sort: "", falling: false, group: "class", scale: scaleNear(40), image: null};
let state = structuredClone(START);
let view = [];  // the rows that the filter leaves, in the order in which they stand on the page
let current = null;  // the row that has the grid's tab stop
const thumbs = Array.from({length: rowCount}, (_, row) => thumb(row));
thumbs.forEach(button => { button.tabIndex = -1; });

const GROUPS = {
  class: row => [columns.label[row], classes[columns.label[row]]],
  stage: row => [images.stage[row], stageOf(row).name],
  "class and stage": row => [columns.label[row] * stages.length + images.stage[row], `${classes[columns.label[row]]}, ${stageOf(row).name}`],
  "teacher's answer": row => [columns.prediction[row], `taken for ${classes[columns.prediction[row]]}`],
  nothing: () => [0, ""],
};

function filtered() {
  const fits = readCondition(state.where, columns, classes);
  const ranges = Object.entries(state.ranges).filter(([name]) => name in columns);
  return images.index.map((_, row) => row).filter(row =>
    (!state.classes.length || state.classes.includes(classes[columns.label[row]]))
    && (!state.stages.length || state.stages.includes(stageOf(row).name))
    && ranges.every(([name, [low, high]]) => {
      const value = columns[name][row];
      return value !== null && (low === null || value >= low) && (high === null || value <= high);
    })
    && fits(row));
}

function sorted(rows) {
  const turn = state.falling ? -1 : 1, column = columns[state.sort];
  // A parent, then its variations; in the order in which they lie in their banks.
  const places = (a, b) => images.index[rootOf(a)] - images.index[rootOf(b)] || rootOf(a) - rootOf(b)
    || (b === rootOf(b)) - (a === rootOf(a)) || (columns.variation?.[a] ?? 0) - (columns.variation?.[b] ?? 0) || a - b;
  if (!column) return rows.sort((a, b) => turn * places(a, b));
  return rows.sort((a, b) => {
    const [left, right] = [column[a], column[b]];
    if (left === null || right === null) return (left === null) - (right === null) || places(a, b);
    return turn * (left - right) || places(a, b);
  });
}

function drawGrid() {
  let rows = [];
  try {
    rows = filtered();
    byId("fault").textContent = "";
  } catch (error) {
    byId("fault").textContent = error.message;
    rows = null;
  }
  byId("where").setAttribute("aria-invalid", rows === null);
  if (rows === null) return;  // what was there stays until the condition is whole
  const groups = new Map();
  for (const row of sorted(rows)) {
    const [key, name] = GROUPS[state.group](row);
    (groups.get(key) ?? groups.set(key, {name, rows: []}).get(key)).rows.push(row);
  }
  const parts = [...groups].sort(([a], [b]) => a - b).map(([, group]) => group);
  view = parts.flatMap(group => group.rows);
  const column = columns[state.sort];
  if (column) view.forEach(row => { thumbs[row].dataset.value = shown(column[row]); });
  byId("grid").classList.toggle("valued", Boolean(column));
  byId("grid").replaceChildren(...parts.map(({name, rows}) => {
    const head = name === "" ? [] : [element("h3", {}, `${name} `, element("small", {}, rows.length.toLocaleString("en")))];
    return element("section", {className: "group", "aria-label": name || "images"}, ...head,
                   element("div", {className: "thumbs"}, ...rows.map(row => thumbs[row])));
  }));
  byId("status").textContent = view.length === rowCount ? `${rowCount.toLocaleString("en")} images`
    : view.length ? `${view.length.toLocaleString("en")} of ${rowCount.toLocaleString("en")} images` : "No image fits this filter";
  stopAt(view.includes(current) ? current : view[0] ?? null);
}

function stopAt(row) {
  if (current !== null) thumbs[current].tabIndex = -1;
  current = row;
  if (row !== null) thumbs[row].tabIndex = 0;
}

// The image that an arrow leads to: beside this one, or nearest to it in the line above or below.
function neighbour(row, key) {
  const at = view.indexOf(row), step = key === "ArrowLeft" || key === "ArrowUp" ? -1 : 1;
  if (key === "ArrowLeft" || key === "ArrowRight") return view[at + step] ?? row;
  const from = thumbs[row].getBoundingClientRect();
  let best = row, line = null, away = Infinity;
  for (let place = at + step; view[place] !== undefined; place += step) {
    const box = thumbs[view[place]].getBoundingClientRect();
    if (Math.abs(box.top - from.top) < 2) continue;
    if (line !== null && Math.abs(box.top - line) > 2) break;
    line = box.top;
    if (Math.abs(box.left - from.left) < away) [best, away] = [view[place], Math.abs(box.left - from.left)];
  }
  return best;
}

function buildFilter() {
  const options = (kind, names, count, colour, about) => names.map(name => element("label", {className: "option", title: about?.(name) ?? ""},
    element("input", {type: "checkbox", name: kind, value: name}),
    ...(colour ? [element("i", {style: `--stage:${colour(name)}`})] : []), element("span", {}, name),
    element("small", {}, count(name).toLocaleString("en"))));
  const stageNamed = Object.fromEntries(stages.map(stage => [stage.name, stage]));
  const tally = (values, names) => { const found = new Map(names.map(name => [name, 0])); values.forEach(value => found.set(names[value], found.get(names[value]) + 1)); return name => found.get(name); };
  byId("stages").append(...options("stages", stagesHere.map(stage => stages[stage].name), tally(images.stage, stages.map(stage => stage.name)),
                                   name => stageNamed[name].colour, name => stageNamed[name].about));
  byId("stages").hidden = stagesHere.length < 2;
  byId("grid").classList.toggle("staged", stagesHere.length > 1);
  byId("classes").lastElementChild.append(...options("classes", classes, tally(columns.label, classes)));
  byId("ranges").append(...data.scores.filter(name => data.histograms[name]).map(rangeOf));
  byId("sort").append(element("option", {value: ""}, "place in the bank"), ...[...data.scores, "index"].map(name => element("option", {value: name}, name)));
  byId("group").append(...Object.keys(GROUPS).filter(name => stagesHere.length > 1 || !name.includes("stage")).map(name => element("option", {value: name}, name)));
  byId("scale").max = scales.length - 1;
  byId("columns").append(...Object.keys(columns).flatMap(name => [element("dt", {}, name),
    element("dd", {}, data.about[name] ?? {label: "the class it was made for", index: "place in its bank", parent: "index of its parent; -1: none", variation: "number of the variation; -1: the parent itself"}[name] ?? "a score of the stage that made the bank")]));
}

const STEPS = 200;
function rangeOf(name) {
  const {from, to, counts} = data.histograms[name];
  const bins = Object.values(counts).reduce((sum, one) => sum.map((value, bin) => value + one[bin]));
  const most = Math.max(...bins), wide = 100 / bins.length;
  const bars = bins.map((value, bin) => value ? `M${bin * wide} 20v${-Math.max(1, 20 * value / most)}h${wide * .85}V20z` : "").join("");
  const picture = element("div", {innerHTML: `<svg viewBox="0 0 100 20" preserveAspectRatio="none" aria-hidden="true"><path d="${bars}"/></svg>`}).firstChild;
  const slider = side => element("input", {type: "range", min: 0, max: STEPS, value: side ? STEPS : 0, "data-range": name, "data-side": side, "aria-label": `${side ? "largest" : "smallest"} ${name}`});
  const own = element("div", {className: "range", title: data.about[name] ?? ""}, element("div", {}, element("span", {}, name), element("output", {})),
                      picture, element("div", {className: "dual"}, slider(0), slider(1)));
  own.dataset.name = name;
  own.valueAt = step => Number((from + (to - from) * step / STEPS).toPrecision(6));
  own.show = range => {
    const [low, high] = range ?? [null, null];
    const steps = [low === null ? 0 : (low - from) / (to - from) * STEPS, high === null ? STEPS : (high - from) / (to - from) * STEPS];
    own.querySelectorAll("input").forEach((input, side) => { input.value = Math.round(steps[side]); });
    own.querySelector("output").textContent = `${shown(low ?? from)} … ${shown(high ?? to)}`;
    own.classList.toggle("narrowed", range !== undefined);
  };
  own.show();
  return own;
}
