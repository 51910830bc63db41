// What is chosen stands in the address behind `#`, so that a copied address shows the same.
function keepState() {
  const words = new URLSearchParams();
  for (const key of ["tab", "where", "sort", "group", "image"]) if (state[key] !== START[key]) words.set(key, state[key]);
  if (state.falling) words.set("falling", "1");
  if (state.scale !== START.scale) words.set("scale", state.scale);
  state.classes.forEach(name => words.append("class", name));
  state.stages.forEach(name => words.append("stage", name));
  Object.entries(state.ranges).forEach(([name, [low, high]]) => words.append("range", `${name}:${low ?? ""}~${high ?? ""}`));
  const hash = words.toString();
  history.replaceState(null, "", hash ? `#${hash}` : location.pathname + location.search);
}

function readState(hash = location.hash) {
  const words = new URLSearchParams(hash.slice(1)), next = structuredClone(START);
  const one = (key, known) => known.includes(words.get(key)) ? words.get(key) : START[key];
  next.tab = one("tab", tabs.map(tab => tab.getAttribute("aria-controls")));
  next.sort = one("sort", ["", ...data.scores, "index"]);
  next.group = one("group", Object.keys(GROUPS));
  next.where = words.get("where") ?? "";
  next.falling = words.get("falling") === "1";
  next.scale = scales.find(scale => scale === Number(words.get("scale"))) ?? START.scale;
  next.classes = words.getAll("class").filter(name => classes.includes(name));
  next.stages = words.getAll("stage").filter(name => stagesHere.some(stage => stages[stage].name === name));
  const number = text => text === "" || Number.isNaN(Number(text)) ? null : Number(text);
  for (const [, name, low, high] of words.getAll("range").map(text => text.match(/^(.*):(.*)~(.*)$/) ?? [])) if (data.scores.includes(name)) next.ranges[name] = [number(low), number(high)];
  next.image = rowNamed.has(words.get("image")) ? words.get("image") : null;
  state = next;
}

function showState() {
  byId("where").value = state.where;
  for (const kind of ["classes", "stages"]) byId("filter").querySelectorAll(`input[name=${kind}]`).forEach(box => { box.checked = state[kind].includes(box.value); });
  byId("ranges").querySelectorAll(".range").forEach(range => range.show(state.ranges[range.dataset.name]));
  byId("sort").value = state.sort;
  byId("falling").checked = state.falling;
  byId("group").value = state.group;
  byId("scale").value = scales.indexOf(state.scale);
  resize();
  drawGrid();
  showTab();
  if (state.image !== null) open(rowNamed.get(state.image));
  else if (dialog.open) dialog.close();
}

function resize() {
  document.documentElement.style.setProperty("--px", `${data.size * state.scale}px`);
  document.documentElement.classList.toggle("smooth", state.scale < 1);
}

function showTab() {
  for (const tab of tabs) {
    const chosen = tab.getAttribute("aria-controls") === state.tab;
    tab.setAttribute("aria-selected", chosen);
    tab.tabIndex = chosen ? 0 : -1;
    byId(tab.getAttribute("aria-controls")).hidden = !chosen;
  }
  const charts = {statistics: drawStatistics, features: drawFeatures}[state.tab];
  if (charts) plotlyReady.then(() => { if (state.tab === "statistics" || state.tab === "features") charts(); });
}

function showWhere(condition, ofStages) {
  state = {...structuredClone(START), where: condition, stages: ofStages, scale: state.scale};
  keepState();
  showState();
}

const tabs = [...document.querySelectorAll("[role=tab]")];
tabs.forEach((tab, place) => {
  tab.addEventListener("click", () => { state.tab = tab.getAttribute("aria-controls"); showTab(); keepState(); });
  tab.addEventListener("keydown", event => {
    const next = tabs[place + {ArrowLeft: -1, ArrowRight: 1}[event.key]];
    if (next) { next.focus(); next.click(); }
  });
});

// An empty bank has its provenance alone.
if (byId("grid")) {
  buildFilter();
  buildColours();
  if (!matchMedia("(min-width: 1001px)").matches) byId("filters").open = false;
  let waiting = 0;
  const redraw = () => { cancelAnimationFrame(waiting); waiting = requestAnimationFrame(() => { drawGrid(); keepState(); }); };

  byId("filter").addEventListener("submit", event => event.preventDefault());
  byId("filter").addEventListener("input", ({target}) => {
    if (target.id === "where") state.where = target.value;
    else if (target.type === "checkbox") state[target.name] = [...byId("filter").querySelectorAll(`input[name=${target.name}]:checked`)].map(box => box.value);
    else if (target.dataset.range) {
      const own = target.closest(".range"), [low, high] = own.querySelectorAll("input");
      if (Number(low.value) > Number(high.value)) (target === low ? low : high).value = (target === low ? high : low).value;
      const range = [Number(low.value) > 0 ? own.valueAt(Number(low.value)) : null, Number(high.value) < STEPS ? own.valueAt(Number(high.value)) : null];
      if (range[0] === null && range[1] === null) delete state.ranges[own.dataset.name];
      else state.ranges[own.dataset.name] = range;
      own.show(state.ranges[own.dataset.name]);
    }
    redraw();
  });
  byId("filter").addEventListener("reset", event => {
    event.preventDefault();
    Object.assign(state, {where: "", classes: [], stages: [], ranges: {}});
    keepState();
    showState();
  });
  byId("sort").addEventListener("change", event => { state.sort = event.target.value; redraw(); });
  byId("falling").addEventListener("change", event => { state.falling = event.target.checked; redraw(); });
  byId("group").addEventListener("change", event => { state.group = event.target.value; redraw(); });
  byId("scale").addEventListener("input", event => { state.scale = scales[event.target.value]; resize(); keepState(); });
  byId("colour").addEventListener("change", drawFeatures);
  document.querySelectorAll("[data-where]").forEach(button => button.addEventListener("click", () => showWhere(button.dataset.where, JSON.parse(button.dataset.stages))));

  byId("grid").addEventListener("click", ({target}) => { if (target.dataset.row) { stopAt(Number(target.dataset.row)); open(Number(target.dataset.row)); } });
  byId("grid").addEventListener("mouseover", ({target}) => { if (target.dataset.row && !target.title) target.title = target.getAttribute("aria-label"); });
  document.addEventListener("keydown", event => {
    if (event.altKey || event.ctrlKey || event.metaKey || dialog.open) return;
    const typing = event.target.matches("input, select, textarea");
    if (event.key === "Escape" && typing) event.target.blur();
    if (typing || event.target.matches("[role=tab]")) return;
    if (event.key === "/") {
      event.preventDefault();
      state.tab = "images";
      showTab();
      byId("filters").open = true;
      byId("where").focus();
    } else if (event.key.startsWith("Arrow") && current !== null && state.tab === "images" && (event.target.matches(".thumb") || (event.target === document.body && event.key !== "ArrowUp" && event.key !== "ArrowDown"))) {
      event.preventDefault();
      stopAt(event.target.matches(".thumb") ? neighbour(current, event.key) : current);
      thumbs[current].focus();
    }
  });
  // The close of a dialog may have written its own address meanwhile: what was asked for counts.
  addEventListener("hashchange", event => {
    if (location.href !== event.newURL) history.replaceState(null, "", event.newURL);
    readState(new URL(event.newURL).hash);
    showState();
  });
  document.documentElement.classList.add("ready");
  readState();
  showState();
}
