// The probabilities of teacher and student beside each other, a row a class.

import { h } from "./dom.js";

const MOST = 12; // rows; of more classes the likeliest are shown

export function studentName(network) {
  const method = network.stage?.replace(/^distill /, "") ?? "student";
  const last = network.name.endsWith("best.safetensors") ? "best epoch" : "last epoch";
  const acc1 = network.metrics?.acc1;
  return `${method} → ${network.architecture}, seed ${network.seed}, ${last}${acc1 === undefined ? "" : `, ${acc1.toFixed(1)} %`}`;
}

export function answers(classes, label, { teacher, student }) {
  const places = [...classes.keys()];
  const strongest = place => Math.max(teacher[place], student?.[place] ?? 0) + (place === label ? 2 : 0);
  const shown = places.length <= MOST ? places : places.sort((a, b) => strongest(b) - strongest(a)).slice(0, MOST);
  const percent = value => `${(100 * value).toFixed(value >= 0.0995 ? 0 : 1)} %`;
  const bar = (kind, value) => h("div", { class: `answer ${kind}` },
    h("span", { class: "bar", "aria-hidden": "true" }, h("span", { style: { width: `${100 * value}%` } })),
    h("span", { class: "figure" }, percent(value)));
  const rows = shown.map(place => h("tr", { class: place === label ? "label" : null },
    h("th", { scope: "row" }, classes[place]),
    h("td", {}, bar("teacher", teacher[place]), student ? bar("student", student[place]) : null)));
  const best = of => of.indexOf(Math.max(...of));
  const words = [`Teacher: ${classes[best(teacher)]}`];
  if (student) words.push(`student: ${classes[best(student)]}`, best(teacher) === best(student) ? "they agree" : "they disagree");
  const more = classes.length > shown.length ? `, ${shown.length} of ${classes.length} classes shown` : "";
  return [h("table", {}, h("tbody", {}, rows)), h("p", { class: "hint" }, `${words.join(", ")}${more}.`)];
}
