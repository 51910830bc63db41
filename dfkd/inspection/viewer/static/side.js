// What stands beside the images of a bank: classes, scores, the teacher, where the bank comes from.

import { ask, begin } from "./api.js";
import { fill, h, number } from "./dom.js";
import { link } from "./state.js";

const short = name => name.split("/").at(-1);

export function side(info, { chosen, sort, onClasses, onSort, onMeasured }) {
  return [
    h("details", { open: true }, h("summary", {}, "Classes"), classList(info, chosen, onClasses)),
    h("details", { open: true }, h("summary", {}, "Scores"), scoreTable(info, sort, onSort), measuring(info, onMeasured)),
    h("details", { open: true }, h("summary", {}, "This bank"), facts(info)),
  ];
}

function classList(info, chosen, onClasses) {
  const most = Math.max(...info.counts, 1);
  const rows = info.classes.map((name, label) => {
    const on = chosen.includes(label);
    const next = on ? chosen.filter(other => other !== label) : [...chosen, label].sort((a, b) => a - b);
    return h("button", { type: "button", class: "class", "aria-pressed": String(on), onclick: () => onClasses(next) },
      h("span", { class: "name" }, name),
      h("span", { class: "bar", "aria-hidden": "true" }, h("span", { style: { width: `${(100 * info.counts[label]) / most}%` } })),
      h("span", { class: "figure" }, number(info.counts[label])));
  });
  const all = h("button", { type: "button", class: "quiet small", onclick: () => onClasses([]) }, "all classes");
  all.disabled = !chosen.length;
  return [h("div", { class: "classes", role: "group", "aria-label": "Classes" }, rows), all];
}

function scoreTable(info, sort, onSort) {
  const names = Object.keys(info.ranges);
  if (!names.length) return h("p", { class: "hint" }, "This bank has no scores of its own.");
  const rows = names.map(name => {
    const now = sort.replace(/^-/, "") === name;
    const range = info.ranges[name];
    const next = sort === name ? `-${name}` : name;
    return h("tr", {},
      h("th", { scope: "row" }, h("button", {
        type: "button", class: "link", "aria-pressed": String(now), onclick: () => onSort(next),
        title: `${info.meanings[name] ? `${info.meanings[name]}; ` : ""}sort by it`,
      }, name, now ? (sort.startsWith("-") ? " ↓" : " ↑") : "")),
      ["min", "mean", "max"].map(key => h("td", { class: "figure" }, number(range[key], 3))));
  });
  return h("table", { class: "scores" },
    h("thead", {}, h("tr", {}, ["score", "min", "mean", "max"].map((name, place) =>
      h("th", { scope: "col", class: place ? "figure" : null }, name)))),
    h("tbody", {}, rows));
}

// Ask for the teacher's scores; the bar goes on until they are there.
export function measuring(info, onMeasured) {
  if (info.measured) return info.note ? h("p", { class: "fault" }, info.note) : null;
  const place = h("div", { class: "measure" });
  const note = info.note ? h("p", { class: "fault" }, info.note) : null;
  if (!info.teacher) {
    const sha = info.teacher_sha256.slice(0, 12);
    return [note, h("p", { class: "hint" }, `Its teacher (SHA-256 ${sha}…) is not below this folder, so nothing can be measured.`)];
  }
  const button = h("button", { type: "button", onclick: start }, "Measure with the teacher");
  const text = h("p", { class: "hint" },
    `The scores of ${info.teacher.architecture} for each image, and its features, are not there yet. Measured here they are kept `
    + "in memory; `dfkd bank score` keeps them beside the bank.");

  async function start() {
    button.disabled = true;
    try {
      await follow(await begin("measure", { bank: info.name }));
    } catch (error) {
      fill(place, h("p", { class: "fault", role: "alert" }, error.message), text, button);
      button.disabled = false;
    }
  }

  async function follow(job) {
    const bar = h("progress", { "aria-label": "measured" });
    const words = h("span", { class: "hint", role: "status" });
    fill(place, bar, words);
    while (job.state === "waiting" || job.state === "running") {
      if (job.total) [bar.max, bar.value] = [job.total, job.done];
      words.textContent = job.total ? `${job.done} of ${job.total} blocks` : "loading the teacher …";
      await new Promise(resolve => setTimeout(resolve, 500));
      if (!place.isConnected) return;
      job = (await ask("bank", { bank: info.name })).job ?? { state: "done" };
    }
    if (job.state === "failed") throw new Error(job.error);
    onMeasured();
  }

  fill(place, note, text, button);
  if (["waiting", "running"].includes(info.job?.state)) follow(info.job).catch(error => fill(place, h("p", { class: "fault" }, error.message)));
  return place;
}

function facts(info) {
  const made = info.made_by;
  const to = name => h("a", { href: link({ view: "bank", bank: name }) }, short(name));
  const beside = h("a", { href: link({ view: "compare", a: info.name, b: info.parent ?? info.children[0]?.name }) }, "compare it");
  const plane = h("a", { href: link({ view: "scatter", bank: info.name }) }, "its features in the plane");
  const rows = [
    ["kind", info.kind + (info.growing ? ", growing" : "")],
    ["images", `${number(info.images)} of ${info.shape.join("×")}`],
    ["data set", info.dataset],
    ["teacher", info.teacher ? info.teacher.architecture : `${info.teacher_sha256.slice(0, 12)}…`],
    info.parent && ["made from", to(info.parent)],
    info.children.length && ["varied in", info.children.map((child, place) => [place ? ", " : "", to(child.name)])],
    info.run && ["run", h("a", { href: link({ view: "runs", run: info.run }) }, info.run)],
    ["made by", `${made.stage} (version ${made.version}), seed ${made.seed}`],
    ...Object.entries(made.extra).filter(([, value]) => typeof value !== "object").map(([key, value]) => [key, text(value)]),
  ].filter(Boolean);
  const settings = Object.entries(made.settings).map(([key, value]) => [key, text(value)]);
  return [
    list(rows),
    h("p", {}, beside, " · ", plane),
    settings.length ? h("details", {}, h("summary", {}, "Settings"), list(settings)) : null,
  ];
}

const text = value => (typeof value === "number" ? number(value) : typeof value === "string" ? value : JSON.stringify(value));

export const list = rows => h("dl", { class: "facts" }, rows.map(([name, value]) => [h("dt", {}, name), h("dd", {}, value)]));
