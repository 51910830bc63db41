// The runs to choose from, those that go on first.

import { chip } from "./banks.js";
import { ago, colour, h } from "./dom.js";
import { go } from "./state.js";

const SILENT = 600; // seconds without a word after which a run may have been stopped

export function chips(run) {
  if (!run.running) return chip("finished", "", `last change ${ago(run.modified)}`);
  const quiet = Date.now() / 1000 - run.modified > SILENT;
  return chip(`${quiet ? "not finished" : "running"}, ${ago(run.modified)}`, quiet ? "" : "live",
    quiet ? "nothing has been written for some time: it may have been stopped" : "time of the last change");
}

export function runTable(runs, chosen) {
  const toggled = name => (chosen.includes(name) ? chosen.filter(other => other !== name) : [...chosen, name]);
  const ordered = [...runs].sort((a, b) => b.running - a.running || a.name.localeCompare(b.name));
  const rows = ordered.map(run => {
    const place = chosen.indexOf(run.name);
    const [stage, ...rest] = run.name.split("/");
    const title = stage === "runs" ? rest : [stage, ...rest];
    return h("tr", { class: place >= 0 ? "chosen" : null, style: place >= 0 ? { "--tone": colour(place) } : undefined },
      h("td", {}, h("input", {
        type: "checkbox", checked: place >= 0, "aria-label": `show ${run.name}`, "data-run": run.name,
        onchange: () => go({ run: toggled(run.name) }),
      })),
      h("th", { scope: "row" }, h("button", { type: "button", class: "link", onclick: () => go({ run: run.name }) },
        h("b", {}, title[0]), h("span", {}, title.slice(1).join(" / ")))),
      h("td", { class: "figure" }, run.last.acc1 === undefined ? "" : `${run.last.acc1.toFixed(2)} %`),
      h("td", {}, run.running ? chips(run) : ""));
  });
  return h("table", { class: "banks runs" },
    h("thead", {}, h("tr", {}, ["", "run", "Acc@1", ""].map((name, place) =>
      h("th", { scope: "col", class: place === 2 ? "figure" : null }, name)))),
    h("tbody", {}, rows));
}
