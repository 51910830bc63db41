// Fields that several views share: a bank, a condition, an order, a size.

import { debounced, h, number } from "./dom.js";
import { sizes, usualSize } from "./grid.js";

export const usable = library => library.banks.filter(bank => bank.state !== "broken");

export function pickBank(library, chosen, onPick, { label = "Bank", only = () => true } = {}) {
  const groups = Map.groupBy(usable(library).filter(only), bank => bank.name.split("/").slice(0, -1).join("/") || ".");
  const options = [...groups].map(([folder, banks]) => h("optgroup", { label: folder },
    banks.map(bank => h("option", { value: bank.name, selected: bank.name === chosen },
      `${bank.name.split("/").at(-1)} (${bank.images.toLocaleString("en")})`))));
  const known = usable(library).some(bank => bank.name === chosen && only(bank));
  const none = known ? [] : [h("option", { value: "", selected: true }, "choose …")];
  return h("label", { class: "field" }, h("span", {}, label),
    h("select", { "aria-label": label, onchange: event => onPick(event.target.value) }, none, options));
}

// A condition is applied with Enter or when the field is left; what is wrong with it stands below.
export function conditionField(onApply) {
  const input = h("input", {
    type: "text", spellcheck: "false", autocomplete: "off", "aria-label": "Condition on images", "aria-describedby": "condition-fault",
  });
  const fault = h("span", { class: "fault", id: "condition-fault", role: "alert" });
  const clear = h("button", { type: "button", class: "quiet", title: "all images", "aria-label": "Clear the condition" }, "✕");
  clear.addEventListener("click", () => { input.value = ""; onApply(""); });
  input.addEventListener("change", () => onApply(input.value.trim()));
  input.addEventListener("keydown", event => {
    if (event.key === "Enter") onApply(input.value.trim());
    if (event.key === "Escape") { input.blur(); }
  });
  const element = h("div", { class: "field condition" }, h("span", {}, "Images where ", h("kbd", {}, "/")),
    h("span", { class: "joined" }, input, clear));
  // An example that can be typed as it stands.
  function suggest(info) {
    const name = /^[A-Za-z_]\w*$|^\d+$/.test(info.classes[0]) ? info.classes[0] : `'${info.classes[0]}'`;
    const score = Object.keys(info.ranges)[0];
    input.placeholder = `label == ${name}${score ? ` and ${score} < ${number(info.ranges[score].mean, 2)}` : ""}`;
  }
  return { element, input, fault, suggest };
}

export function sortField(onPick) {
  const select = h("select", { "aria-label": "Sort by", onchange: () => onPick(value()) });
  const button = h("button", { type: "button", class: "quiet direction", onclick: () => { turn(); onPick(value()); } });
  let falling = false;
  const value = () => (falling ? "-" : "") + select.value;
  const turn = (to = !falling) => {
    falling = to;
    button.textContent = falling ? "↓" : "↑";
    button.setAttribute("aria-label", falling ? "falling; turn to rising" : "rising; turn to falling");
    button.title = falling ? "largest first" : "smallest first";
  };
  function show(columns, sort) {
    const names = ["index", ...columns];
    if (select.options.length !== names.length || names.some((name, place) => select.options[place].value !== name)) {
      select.replaceChildren(...names.map(name => h("option", { value: name }, name === "index" ? "place in the bank" : name)));
    }
    select.value = sort.replace(/^-/, "");
    turn(sort.startsWith("-"));
  }
  turn(false);
  const element = h("div", { class: "field" }, h("span", {}, "Sort by"), h("span", { class: "joined" }, select, button));
  return { element, show };
}

export function sizeField(onPick) {
  let steps = [64];
  const input = h("input", { type: "range", min: 0, max: 0, step: 1, "aria-label": "Size of the images" });
  const later = debounced(() => onPick(steps[input.value]), 120);
  input.addEventListener("input", () => { input.title = `${steps[input.value]} pixels`; later(); });
  function show(edge, size) {
    steps = sizes(edge);
    input.max = steps.length - 1;
    input.value = steps.indexOf(steps.reduce((best, step) => (Math.abs(step - size) < Math.abs(best - size) ? step : best)));
    input.title = `${steps[input.value]} pixels`;
    input.setAttribute("aria-valuetext", input.title);
  }
  const next = by => steps[Math.max(0, Math.min(steps.length - 1, Number(input.value) + by))];
  return { element: h("label", { class: "field" }, h("span", {}, "Size"), input), show, next };
}

export const sizeOf = (state, edge) => Number(state.get("zoom")) || usualSize(edge);

export const classesOf = state => (state.get("class") ?? "").split(",").filter(part => /^\d+$/.test(part)).map(Number);
