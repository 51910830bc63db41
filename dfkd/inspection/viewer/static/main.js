// Which view the address names, and the keys that work everywhere.

import banks from "./banks.js";
import bank from "./bank.js";
import compare from "./compare.js";
import { fill, h } from "./dom.js";
import { showImage } from "./image.js";
import runs from "./runs.js";
import scatter from "./scatter.js";
import { current, onChange } from "./state.js";

const views = { banks, bank, compare, scatter, runs };
const main = document.getElementById("main");
const folder = document.querySelector(".folder").textContent;
let shown = null;

async function render() {
  const state = current();
  const name = state.get("view") in views ? state.get("view") : "banks";
  for (const anchor of document.querySelectorAll("nav a")) {
    const here = anchor.dataset.view === (name === "bank" ? "banks" : name);
    if (here) anchor.setAttribute("aria-current", "page");
    else anchor.removeAttribute("aria-current");
  }
  if (shown?.name !== name) {
    shown?.view.destroy?.();
    fill(main);
    scrollTo(0, 0);
    shown = { name, view: views[name](main) };
  }
  const { view } = shown;
  document.title = `${view.title?.(state) ?? name} – ${folder} – dfkd`;
  showImage(state, view);
  try {
    await view.update(state);
  } catch (error) {
    console.info(error.message);
    if (shown?.view === view) fill(main, h("p", { class: "empty fault", role: "alert" }, error.message));
    shown = null;
  }
}

const keys = document.getElementById("keys");
document.getElementById("help").addEventListener("click", () => keys.showModal());
document.addEventListener("keydown", event => {
  const typing = event.target.matches("input, textarea, select, [contenteditable]");
  if (typing || event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.key === "?" && !document.querySelector("dialog[open]")) keys.showModal();
  if (!document.querySelector("dialog[open]")) shown?.view.key?.(event);
});

onChange(render);
render();
