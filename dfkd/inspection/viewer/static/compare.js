// Two banks beside each other: images per class, histograms of the scores that both have, pages in step.

import { ask, frame } from "./api.js";
import { chart, text } from "./charts.js";
import { colour, fill, h, number } from "./dom.js";
import { described, makeGrid } from "./grid.js";
import { makePager } from "./pager.js";
import { classesOf, conditionField, pickBank, sizeField, sizeOf, sortField, usable } from "./pickers.js";
import { current, go } from "./state.js";

const PAGE = 100;
const TONES = [colour(0), colour(1)];

export default function compare(main) {
  let asked = 0;
  let library = null;
  let pair = null; // [name, name] that the charts are of
  let figures = null;
  const infos = [null, null];
  const open = side => index => go({ image: index, of: infos[side].name });
  const sides = [0, 1].map(side => {
    const look = h("div", { class: "status", "aria-hidden": "true" });
    const grid = makeGrid({
      label: `Images of the ${side ? "second" : "first"} bank`,
      onOpen: open(side),
      onEdge: by => turnTo(pager.page + by),
      onLook: (found, place) => fill(look, described(found, place, infos[side].classes).map(part => h("span", {}, part))),
    });
    const title = h("h2", {});
    const fault = h("p", { class: "fault", role: "alert" });
    const element = h("section", { class: "half", style: { "--tone": TONES[side] } }, title, fault, grid.element, look);
    return { grid, title, fault, element };
  });
  const pickers = h("div", { class: "toolbar" });
  const pager = makePager(page => turnTo(page));
  const condition = conditionField(where => go({ where, page: null }));
  const sort = sortField(value => go({ sort: value === "index" ? null : value, page: null }));
  const size = sizeField(zoom => go({ zoom }, { replace: true }));
  const counts = h("div", { class: "chart", role: "img", "aria-label": "Images of each class in both banks" });
  const score = h("select", { "aria-label": "Score", onchange: () => go({ score: score.value }, { replace: true }) });
  const histogram = h("div", { class: "chart", role: "img", "aria-label": "Histogram of a score in both banks" });
  const words = h("p", { class: "hint" });
  const content = h("div", {},
    h("div", { class: "charts" },
      h("section", {}, h("h2", {}, "Images of each class"), counts),
      h("section", {}, h("h2", {}, "Distribution of ", score), histogram, words)),
    h("div", { class: "toolbar" }, condition.element, sort.element, size.element),
    h("div", { class: "below" }, condition.fault, pager.element),
    h("div", { class: "halves" }, sides.map(side => side.element)));
  const hint = h("p", { class: "empty", hidden: true });
  main.append(h("div", { class: "heading" }, h("h1", {}, "Compare two banks")), pickers, hint, content);

  const turnTo = page => page >= 0 && page <= pager.last && go({ page: page || null });

  async function update(state) {
    const mine = ++asked;
    library ??= await ask("library");
    const names = chosen(state);
    fill(pickers, ["a", "b"].map((key, side) => h("div", { class: `side-${key}`, style: { "--tone": TONES[side] } },
      pickBank(library, names[side], name => go({ [key]: name, page: null }), { label: side ? "Second bank" : "First bank" }))),
    h("button", { type: "button", class: "quiet", onclick: () => go({ a: names[1], b: names[0] }) }, "swap"));
    hint.hidden = names.every(Boolean);
    content.hidden = !hint.hidden;
    hint.textContent = usable(library).length ? "Choose two banks." : "There is no bank below this folder.";
    if (!hint.hidden) return;
    if (pair?.join() !== names.join()) {
      const found = await Promise.all([...names.map(bank => ask("bank", { bank })), ask("compare", { a: names[0], b: names[1] })]);
      if (mine !== asked) return;
      [infos[0], infos[1], figures] = found;
      pair = names;
      drawCounts();
    }
    drawHistogram(state);
    const edge = Math.max(infos[0].shape[1], infos[1].shape[1]);
    condition.suggest(infos[0]);
    sort.show(infos[0].columns.filter(name => infos[1].columns.includes(name)), state.get("sort") ?? "index");
    size.show(edge, sizeOf(state, edge));
    condition.input.value = state.get("where") ?? "";
    await Promise.all(names.map((name, side) => drawSide(state, name, side, mine)));
    if (mine !== asked) return;
    const longest = sides.map(side => side.total ?? 0);
    pager.show(Math.max(...longest), Math.max(0, Number(state.get("page")) || 0) * PAGE, PAGE, Math.max(infos[0].images, infos[1].images));
  }

  function chosen(state) {
    const banks = usable(library);
    const a = state.get("a") ?? banks[0]?.name ?? "";
    const folder = name => name.split("/").slice(0, -1).join("/");
    const others = banks.filter(bank => bank.name !== a);
    const beside = others.filter(bank => folder(bank.name) === folder(a));
    const best = beside.find(bank => bank.kind === "variations") ?? beside[0] ?? others[0];
    return [a, state.get("b") ?? best?.name ?? ""];
  }

  async function drawSide(state, name, place, mine) {
    const { grid, title, fault } = sides[place];
    const parameters = {
      bank: name, where: state.get("where"), class: classesOf(state).join(","), sort: state.get("sort"), page: state.get("page") ?? 0, size: PAGE,
    };
    try {
      const answer = await frame("page", parameters);
      if (mine !== asked) return;
      sides[place].total = answer.total;
      grid.show(answer, infos[place].classes, { size: sizeOf(state, infos[place].shape[1]), sort: state.get("sort") ?? "index" });
      fault.textContent = answer.columns.index.length ? "" : answer.total ? "No images on this page." : "No image fulfils this condition.";
      fill(title, name, h("small", {}, ` ${number(answer.total)} of ${number(infos[place].images)} images`));
      grid.element.hidden = !answer.columns.index.length;
    } catch (error) {
      if (mine !== asked) return;
      sides[place].total = 0;
      fault.textContent = error.message;
      grid.element.hidden = true;
      fill(title, name);
    }
  }

  function drawCounts() {
    const names = pair.map(name => text(name.split("/").slice(-2).join("/")));
    const traces = figures.counts.map((values, side) => ({
      type: "bar", name: names[side], x: figures.classes.map(text), y: values, marker: { color: TONES[side] },
    }));
    return chart(counts, traces, { barmode: "group", xaxis: { type: "category" }, yaxis: { title: { text: "images" } } });
  }

  function drawHistogram(state) {
    const names = Object.keys(figures.histograms);
    const name = names.includes(state.get("score")) ? state.get("score") : names[0];
    fill(score, names.map(other => h("option", { value: other, selected: other === name }, other)));
    const missing = figures.only.map((list, side) => list.length && `only in ${pair[side]}: ${list.join(", ")}`).filter(Boolean);
    words.textContent = missing.join("; ");
    histogram.hidden = score.hidden = !name;
    if (!name) {
      words.textContent = `They have no score in common (${missing.join("; ") || "neither has any"}): measure both with the teacher.`;
      return null;
    }
    const { low, high, shares } = figures.histograms[name];
    const width = (high - low) / shares[0].length;
    const traces = shares.map((values, side) => ({
      type: "scatter", mode: "lines", fill: "tozeroy", line: { shape: "hvh", color: TONES[side], width: 1.5 }, fillcolor: `${TONES[side]}33`,
      name: `${text(pair[side].split("/").slice(-2).join("/"))}, mean ${number(figures.means[side][name], 3)}`,
      x: values.map((_, bin) => low + (bin + 0.5) * width), y: values.map(value => 100 * value),
    }));
    return chart(histogram, traces, { xaxis: { title: { text: text(name) } }, yaxis: { title: { text: "% of the images" }, rangemode: "tozero" } });
  }

  function key(event) {
    if (pager.key(event)) return;
    if (event.key === "/") {
      event.preventDefault();
      condition.input.focus();
    } else if (["+", "=", "-"].includes(event.key)) {
      go({ zoom: size.next(event.key === "-" ? -1 : 1) }, { replace: true });
    }
  }

  const closed = index => sides.find(side => side.grid.shown?.columns.index.includes(index))?.grid.focusOn(index);
  return { title: () => "Compare", update, key, closed, bank: () => null };
}
