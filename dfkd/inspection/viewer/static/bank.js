// A bank, page by page: condition, order, classes, size; its facts at the side.

import { ask, frame, renew } from "./api.js";
import { chip } from "./banks.js";
import { fill, h, repeat } from "./dom.js";
import { described, makeGrid } from "./grid.js";
import { makePager } from "./pager.js";
import { classesOf, conditionField, pickBank, sizeField, sizeOf, sortField } from "./pickers.js";
import { side } from "./side.js";
import { current, go } from "./state.js";

const PAGE = 200;
const idle = window.requestIdleCallback ?? (action => setTimeout(action, 50));

export default function bank(main) {
  let info = null;
  let library = null;
  let asked = 0; // the last question: answers to earlier ones come too late
  let beside = ""; // what the side shows
  let turned = null; // when the page was asked for, and where the focus goes
  const grid = makeGrid({
    label: "Images of the bank",
    onOpen: index => go({ image: index, of: null }),
    onEdge: (by, focus) => turnTo(pager.page + by, focus),
    onLook: (found, place) => fill(status, described(found, place, found.classes).map(part => h("span", {}, part))),
  });
  const pager = makePager(page => turnTo(page));
  const picker = h("div", { class: "field" });
  const condition = conditionField(where => go({ where, page: null, image: null }));
  const sort = sortField(value => go({ sort: value === "index" ? null : value, page: null, image: null }));
  const size = sizeField(zoom => go({ zoom }, { replace: true }));
  const status = h("div", { class: "status", "aria-hidden": "true" });
  const path = h("span", { class: "path" });
  const empty = h("p", { class: "empty", hidden: true });
  const aside = h("aside", { class: "side", "aria-label": "About this bank" });
  main.append(
    h("div", { class: "toolbar" }, picker, condition.element, sort.element, size.element),
    h("div", { class: "below" }, condition.fault, path, pager.element),
    h("div", { class: "columns" }, aside, h("section", { class: "images" }, grid.element, empty, status)));

  function turnTo(page, focus = "keep") {
    if (page < 0 || page > pager.last) return;
    turned = { at: performance.now(), focus: grid.element.contains(document.activeElement) ? focus : null };
    go({ page: page || null, image: null });
  }

  const question = (state, page) => ({
    bank: state.get("bank"), where: state.get("where"), class: state.get("class"), sort: state.get("sort"), page, size: PAGE,
  });

  async function about(name) {
    if (info?.name === name) return info;
    const found = await ask("bank", { bank: name });
    renew(name, found.version);
    return found;
  }

  async function update(state) {
    const name = state.get("bank") ?? "";
    const page = Math.max(0, Math.round(Number(state.get("page"))) || 0);
    const mine = ++asked;
    condition.input.value = state.get("where") ?? "";
    condition.fault.textContent = "";
    const before = info;
    const asking = about(name);
    asking.catch(() => {}); // it is awaited below, after the images
    const answer = await frame("page", question(state, page)).catch(error => ({ error }));
    if (mine !== asked) return;
    if (answer.error) {
      await asking; // what is wrong with the bank goes before what is wrong with the question
      condition.fault.textContent = answer.error.message;
      grid.element.classList.add("stale");
      if (!grid.shown) drawEmpty("No images are shown: the condition or the order cannot be read.");
    } else if (answer.start >= answer.total && page > 0) {
      go({ page: Math.max(0, Math.ceil(answer.total / PAGE) - 1) || null }, { replace: true });
      return;
    } else {
      draw(state, answer);
      const last = Math.ceil(answer.total / PAGE) - 1;
      if (page < last) idle(() => mine === asked && frame("page", question(state, page + 1)).catch(() => {}));
    }
    const next = await asking;
    if (mine !== asked) return;
    info = next;
    const edge = info.shape[1];
    condition.suggest(info);
    sort.show(info.columns, state.get("sort") ?? "index");
    size.show(edge, sizeOf(state, edge));
    fill(path, info.name, " ", chip(info.kind, info.kind), info.growing ? [" ", chip("growing", "live")] : null);
    drawSide(state);
    if (before?.name !== info.name || !library) drawPicker();
  }

  function draw(state, answer) {
    grid.element.classList.remove("stale");
    grid.show(answer, answer.classes, { size: sizeOf(state, answer.size), sort: state.get("sort") ?? "index", focus: turned?.focus ?? null });
    pager.show(answer.total, answer.start, PAGE, answer.of);
    drawEmpty(answer.total ? "" : answer.of ? "No image fulfils this condition." : "There are no images in this bank (yet).");
    if (turned) scrollTo({ top: Math.min(scrollY, main.offsetTop) });
    measured(turned ? "page turn" : "page", turned?.at ?? 0);
    turned = null;
  }

  // How long it took until the images were on the screen, for whoever wants to know.
  function measured(name, start) {
    requestAnimationFrame(() => setTimeout(() => performance.measure(name, { start, end: performance.now() })));
  }

  function drawEmpty(text) {
    empty.hidden = !text;
    empty.textContent = text;
    grid.element.hidden = Boolean(text);
    fill(status, text ? null : "Point at an image, or go to it with the keys, to read its scores here; red: the teacher sees another class.");
  }

  function drawSide(state) {
    const now = JSON.stringify([info.version, info.job?.state, state.get("class"), state.get("sort")]);
    if (now === beside) return;
    beside = now;
    fill(aside, side(info, {
      chosen: classesOf(state),
      sort: state.get("sort") ?? "index",
      onClasses: classes => go({ class: classes.join(","), page: null, image: null }),
      onSort: value => go({ sort: value, page: null, image: null }),
      onMeasured: reload,
    }));
  }

  async function drawPicker() {
    library = await ask("library");
    fill(picker, pickBank(library, info.name, name => go({ view: "bank", bank: name, zoom: current().get("zoom") }, { fresh: true })));
  }

  async function reload() {
    const name = current().get("bank");
    const next = await ask("bank", { bank: name });
    if (next.version === info?.version) return;
    renew(name, next.version);
    info = next;
    await update(current());
  }

  function key(event) {
    if (pager.key(event)) return;
    if (event.key === "/") {
      event.preventDefault();
      condition.input.focus();
      condition.input.select();
    } else if (["+", "=", "-"].includes(event.key)) {
      go({ zoom: size.next(event.key === "-" ? -1 : 1) }, { replace: true });
    }
  }

  // The image before or after one, for the enlarged view: over the edge of the page where there is a next one.
  async function step(index, by) {
    const shown = grid.shown?.columns.index ?? [];
    const place = shown.indexOf(index) + by;
    if (shown.includes(index) && shown[place] !== undefined) {
      go({ image: shown[place], of: null }, { replace: true });
      return;
    }
    const page = pager.page + by;
    if (!shown.includes(index) || page < 0 || page > pager.last) return;
    const next = await frame("page", question(current(), page));
    go({ page: page || null, image: next.columns.index.at(by < 0 ? -1 : 0) }, { replace: true });
  }

  const stop = repeat(() => info?.growing && reload().catch(error => console.info(error.message)), 4);
  const title = state => (state.get("bank") ?? "").split("/").at(-1);
  return { title, update, key, step, bank: state => state.get("bank"), closed: grid.focusOn, destroy: stop };
}
