// One image, enlarged: its scores, what teacher and student say, its family, its nearest neighbours.

import { ask, frame } from "./api.js";
import { fill, h, number } from "./dom.js";
import { strip } from "./grid.js";
import { answers, studentName } from "./answers.js";
import { pickBank } from "./pickers.js";
import { current, go, link } from "./state.js";

const dialog = document.getElementById("image");
let view = null; // the one behind the dialog
let asked = 0;
let place = null; // [bank, index] that is shown
const parts = {};

function build() {
  parts.title = h("h2", { id: "image-title" });
  parts.back = h("button", { type: "button", class: "quiet", title: "previous (←)", "aria-label": "previous image", onclick: () => step(-1) }, "‹");
  parts.on = h("button", { type: "button", class: "quiet", title: "next (→)", "aria-label": "next image", onclick: () => step(1) }, "›");
  const close = h("button", { type: "button", class: "quiet", title: "close (Esc)", "aria-label": "close", onclick: () => dialog.close() }, "✕");
  parts.picture = h("img", { class: "large", width: 320, height: 320 });
  parts.facts = h("div", { class: "values" });
  parts.answers = h("section", { class: "answers", "aria-label": "Probabilities" });
  parts.family = h("section", { class: "family", "aria-label": "Family" });
  parts.neighbours = h("section", { class: "neighbours", "aria-label": "Nearest neighbours" });
  dialog.setAttribute("aria-labelledby", "image-title");
  dialog.tabIndex = -1;
  fill(dialog,
    h("header", {}, parts.back, parts.on, parts.title, close),
    h("div", { class: "one" }, h("div", {}, parts.picture, parts.facts), parts.answers,
      h("div", { class: "relatives" }, parts.family, parts.neighbours)));
  dialog.addEventListener("close", () => {
    if (!current().has("image")) return;
    const index = Number(current().get("image"));
    go({ image: null, of: null, student: null, within: null });
    view?.closed?.(index);
  });
  dialog.addEventListener("click", event => event.target === dialog && dialog.close());
  dialog.addEventListener("keydown", event => {
    if (event.target.matches("select, input") || event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key === "ArrowLeft" || event.key === "ArrowRight") {
      event.preventDefault();
      step(event.key === "ArrowLeft" ? -1 : 1);
    }
  });
}

const canStep = () => Boolean(view?.step) && place?.[0] === view.bank(current());
const step = by => canStep() && view.step(place[1], by);
const open = bank => index => {
  const own = view?.bank?.(current()) === bank;
  go({ image: index, of: own ? null : bank });
};

export async function showImage(state, behind) {
  view = behind;
  if (!state.has("image")) {
    place = null;
    asked++;
    if (dialog.open) dialog.close();
    return;
  }
  if (!parts.title) build();
  const bank = state.get("of") ?? view.bank?.(state) ?? state.get("bank");
  const index = Number(state.get("image"));
  if (!dialog.open) {
    dialog.showModal();
    dialog.focus(); // not on the first button, so that the arrow keys are seen to work
  }
  if (place?.[0] === bank && place[1] === index && place[2] === state.get("student") && place[3] === state.get("within")) return;
  const same = place?.[0] === bank && place[1] === index;
  place = [bank, index, state.get("student"), state.get("within")];
  const mine = ++asked;
  const late = () => mine !== asked;
  if (!same) {
    parts.title.textContent = `image ${number(index)}`;
    parts.picture.src = `api/png?${new URLSearchParams({ bank, index })}`;
    parts.picture.alt = "";
    for (const part of [parts.facts, parts.family]) part.classList.add("stale");
  }
  try {
    const [info, image] = await Promise.all([ask("bank", { bank }), ask("image", { bank, index })]);
    if (late()) return;
    [parts.back.disabled, parts.on.disabled] = [!canStep(), !canStep()];
    drawFacts(info, image);
    drawAnswers(info, image, state, late);
    await Promise.all([drawFamily(info, image, late), drawNeighbours(info, state, index, late)]);
  } catch (error) {
    if (late()) return;
    parts.title.textContent = "image";
    fill(parts.facts, h("p", { class: "fault", role: "alert" }, error.message));
    for (const part of [parts.answers, parts.family, parts.neighbours]) fill(part);
  }
}

function drawFacts(info, image) {
  const { index, label, ...rest } = image.values;
  const name = info.classes[label];
  parts.picture.alt = `image ${index}, label ${name}`;
  fill(parts.title, `image ${number(index)}`, h("span", { class: "of" }, " of "),
    h("a", { href: link({ view: "bank", bank: info.name }) }, info.name));
  const hidden = (key, value) => ["parent", "duplicate_of"].includes(key) && value < 0;
  const show = (key, value) => (key === "prediction" ? info.classes[value] : number(value));
  fill(parts.facts,
    h("p", { class: "label" }, h("small", {}, "label"), name),
    h("table", { class: "scores" }, h("tbody", {}, Object.entries(rest).filter(([key, value]) => !hidden(key, value)).map(
      ([key, value]) => h("tr", {}, h("th", { scope: "row", title: info.meanings[key] }, key),
        h("td", { class: `figure${key === "prediction" && value !== label ? " bad" : ""}` }, show(key, value)))))));
  parts.facts.classList.remove("stale");
}

async function drawAnswers(info, image, state, late) {
  const heading = h("h3", {}, "What the networks say");
  if (!info.teacher) {
    fill(parts.answers, heading, h("p", { class: "hint" }, "The bank's teacher is not below this folder."));
    return;
  }
  const own = info.students.find(network => info.run && network.name.startsWith(`${info.run}/student`));
  const student = state.get("student") ?? (own ?? info.students.find(network => network.name.endsWith("student.safetensors")))?.name ?? null;
  const picker = info.students.length
    ? h("select", { "aria-label": "Student", onchange: event => go({ student: event.target.value }, { replace: true }) },
      info.students.map(network => h("option", { value: network.name, selected: network.name === student }, studentName(network))))
    : h("span", { class: "hint" }, "no student of this teacher below this folder");
  const body = h("div", { class: "bars" }, h("p", { class: "hint", role: "status" }, "Asking the networks, the first time for some seconds …"));
  const former = parts.answers.querySelector(".bars table");
  if (former) fill(body, former); // the figures of the image before stay until the new ones are there
  body.classList.toggle("stale", Boolean(former));
  fill(parts.answers, heading, h("p", { class: "who" }, h("span", { class: "key teacher" }, `teacher ${info.teacher.architecture}`),
    h("span", { class: "key student" }, "student ", picker)), body);
  try {
    const found = await ask("answers", { bank: info.name, index: image.values.index, student });
    if (!late()) fill(body, answers(info.classes, image.values.label, found));
  } catch (error) {
    if (!late()) fill(body, h("p", { class: "fault" }, error.message));
  }
  body.classList.remove("stale");
}

async function drawFamily(info, image, late) {
  const groups = await Promise.all(image.relatives.filter(group => group.index.length).map(async group => [
    group, await frame("images", { bank: group.bank, index: group.index.join(",") }),
  ]));
  if (late()) return;
  const line = found => at => {
    const cosine = found.columns.cosine?.[at];
    return cosine === undefined ? info.classes[found.columns.label[at]] : `cosine ${cosine.toFixed(2)}`;
  };
  const empty = ["variations", "rejected", "init"].includes(info.kind)
    ? "Neither a parent nor variations of this image are in the banks beside this one."
    : "Images of a run have no parents and no variations.";
  fill(parts.family, groups.length ? groups.map(([group, found]) => [
    h("h3", {}, group.title, group.total > 1 ? h("small", {}, ` ${group.total}`) : ""),
    strip(found, info.classes, { onOpen: open(group.bank), lines: line(found) }),
  ]) : [h("h3", {}, "Family"), h("p", { class: "hint" }, empty)]);
  parts.family.classList.remove("stale");
}

async function drawNeighbours(info, state, index, late) {
  const heading = h("h3", {}, "Nearest in the teacher's features");
  if (!info.measured) {
    fill(parts.neighbours, heading, h("p", { class: "hint" }, info.teacher
      ? "The features of this bank are not measured yet: close this and press “Measure with the teacher”."
      : "The features of this bank cannot be measured without its teacher."));
    return;
  }
  const within = state.get("within") ?? info.name;
  const library = await ask("library");
  const only = bank => bank.teacher_sha256 === info.teacher_sha256;
  const picker = pickBank(library, within, name => go({ within: name === info.name ? null : name }, { replace: true }), { label: "Look in", only });
  try {
    const found = await frame("neighbours", { bank: info.name, index, within, count: 12 });
    if (late()) return;
    fill(parts.neighbours, heading, picker,
      strip(found, info.classes, { onOpen: open(within), lines: at => found.cosines[at].toFixed(3) }));
  } catch (error) {
    if (!late()) fill(parts.neighbours, heading, picker, h("p", { class: "fault" }, error.message));
  }
}
