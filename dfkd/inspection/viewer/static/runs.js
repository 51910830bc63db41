// Runs: curves of those that are chosen, renewed every few seconds while one goes on, and the newest images of its bank.

import { ask, frame } from "./api.js";
import { chips, runTable } from "./runtable.js";
import { chart, text } from "./charts.js";
import { colour, fill, h, number, repeat } from "./dom.js";
import { strip } from "./grid.js";
import { go, link } from "./state.js";

const NEWEST = 60;
const ON_TEST = ["acc1", "agree1"];
const COUNTERS = ["epoch", "batch", "step"];

export default function runs(main) {
  let library = null;
  let asked = 0;
  let drawn = "";
  let state = new URLSearchParams();
  const list = h("div", { class: "wide" });
  const hint = h("p", { class: "empty", hidden: true });
  const heading = h("div", { class: "current" });
  const quality = h("div", { class: "chart", role: "img", "aria-label": "Acc@1 and Agree@1 by epoch" });
  const column = h("select", { "aria-label": "Column of the history", onchange: () => go({ column: column.value }, { replace: true }) });
  const losses = h("div", { class: "chart", role: "img", "aria-label": "A column of the history by epoch" });
  const newest = h("section", { "aria-label": "Newest images" });
  const details = h("div", {}, heading,
    h("div", { class: "charts" },
      h("section", {}, h("h2", {}, "On the test split, %"), quality),
      h("section", {}, h("h2", {}, "By epoch: ", column), losses)),
    newest);
  main.append(h("div", { class: "heading" }, h("h1", {}, "Runs")), h("div", { class: "columns runs" }, list, h("div", {}, hint, details)));

  async function update(next) {
    state = next;
    if (!library) await load();
    await show();
  }

  async function load() {
    library = await ask("library");
  }

  function chosen() {
    const names = state.getAll("run");
    if (names.length) return names;
    const first = library.runs.find(run => run.running) ?? library.runs.find(run => run.last.agree1 !== undefined) ?? library.runs[0];
    return first ? [first.name] : [];
  }

  async function show() {
    const mine = ++asked;
    const names = chosen();
    const focused = list.contains(document.activeElement) ? document.activeElement.dataset.run : null;
    fill(list, runTable(library.runs, names));
    if (focused) list.querySelector(`[data-run="${CSS.escape(focused)}"]`)?.focus();
    hint.hidden = Boolean(names.length);
    details.hidden = !names.length;
    if (!names.length) {
      hint.textContent = "There is no run below this folder: neither a history.csv nor a checkpoint of one that goes on.";
      return;
    }
    const found = await Promise.all(names.map(run => ask("run", { run })));
    if (mine !== asked) return;
    const now = JSON.stringify([found, state.get("column")]);
    if (now === drawn) return;
    drawn = now;
    fill(heading, found.map((run, place) => described(run, place)));
    await Promise.all([drawNewest(found[0], mine), drawQuality(found), drawColumn(found)]);
  }

  function described(run, place) {
    const figures = [["epoch", run.last.epoch], ["Acc@1", run.last.acc1], ["Agree@1", run.last.agree1]]
      .filter(([, value]) => value !== undefined)
      .map(([name, value]) => h("span", { class: "big" }, h("small", {}, name), name === "epoch" ? number(value) : `${value.toFixed(2)} %`));
    return h("div", { class: "followed", style: { "--tone": colour(place) } },
      h("h2", {}, run.name, " ", chips(run)), h("div", { class: "figures" }, figures),
      run.note ? h("p", { class: "fault" }, run.note) : null,
      !figures.length && !run.note ? h("p", { class: "hint" }, "No epoch has ended yet.") : null);
  }

  const counter = run => COUNTERS.find(name => run.rows[name]) ?? "epoch";

  function line(run, place, name, more = {}) {
    const rows = run.rows[name] ?? [];
    return {
      type: "scatter", mode: rows.length < 40 ? "lines+markers" : "lines", x: run.rows[counter(run)] ?? [], y: rows,
      marker: { size: 5 }, line: { color: colour(place), width: 2 }, ...more,
    };
  }

  function drawQuality(found) {
    const many = found.length > 1;
    const traces = found.flatMap((run, place) => ON_TEST.filter(name => run.rows[name]).map(name => line(run, place, name, {
      name: `${name === "acc1" ? "Acc@1" : "Agree@1"}${many ? ` ${text(run.name.split("/").slice(-3).join("/"))}` : ""}`,
      line: { color: many ? colour(place) : colour(ON_TEST.indexOf(name)), width: 2, dash: many && name === "agree1" ? "dot" : "solid" },
    })));
    return chart(quality, traces, {
      xaxis: { title: { text: many ? `${counter(found[0])} (Acc@1 drawn through, Agree@1 dotted)` : counter(found[0]) } }, showlegend: !many,
    });
  }

  function drawColumn(found) {
    const names = [...new Set(found.flatMap(run => Object.keys(run.rows)))].filter(name => ![...COUNTERS, ...ON_TEST].includes(name));
    const name = names.includes(state.get("column")) ? state.get("column") : names.includes("loss") ? "loss" : names[0];
    fill(column, names.map(other => h("option", { value: other, selected: other === name }, other)));
    column.hidden = !name;
    const traces = name ? found.filter(run => run.rows[name]).map((run, place) => line(run, place, name, { name: text(run.name.split("/").slice(-3).join("/")) })) : [];
    return chart(losses, traces, { xaxis: { title: { text: counter(found[0]) } }, showlegend: false });
  }

  async function drawNewest(run, mine) {
    if (!run.bank) {
      fill(newest, h("h2", {}, "Newest images"), h("p", { class: "hint" }, "This run keeps no images."));
      return;
    }
    try {
      const [found, info] = await Promise.all([
        frame("page", { bank: run.bank, sort: "-index", page: 0, size: NEWEST, v: run.modified }), ask("bank", { bank: run.bank }),
      ]);
      if (mine !== asked) return;
      const all = h("a", { href: link({ view: "bank", bank: run.bank, sort: "-index" }) }, `all ${number(found.total)}`);
      const open = index => go({ image: index, of: run.bank });
      fill(newest, h("h2", {}, "Newest images ", h("small", {}, all)), found.columns.index.length
        ? strip(found, info.classes, { onOpen: open, size: 64 }) : h("p", { class: "hint" }, "No image has been made yet."));
    } catch (error) {
      if (mine === asked) fill(newest, h("h2", {}, "Newest images"), h("p", { class: "fault" }, error.message));
    }
  }

  async function poll() {
    if (document.querySelector("dialog[open]")) return;
    await load();
    if (chosen().some(name => library.runs.find(run => run.name === name))) await show();
    else fill(list, runTable(library.runs, chosen()));
  }

  const stop = repeat(() => poll().catch(error => console.info(error.message)), 3);
  return { title: () => "Runs", update, bank: () => null, destroy: stop };
}
