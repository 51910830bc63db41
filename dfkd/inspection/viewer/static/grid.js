// A grid of images: cells are made once and filled anew. Arrow keys move, the edges turn the page, Enter opens.
// All images lie on one canvas behind the cells: a canvas each would be a layer each, which doubles the time of a page turn.

import { paint } from "./api.js";
import { h, number } from "./dom.js";

const ROW = 20; // images beside each other on the sprite

// Sizes on the screen that show each pixel equally large where the image is small enough.
export function sizes(edge) {
  const factors = edge >= 64 ? [0.25, 0.5, 1, 1.5, 2, 3, 4] : [1, 2, 3, 4, 5, 6, 8, 10, 12, 16];
  const found = factors.map(factor => Math.round(edge * factor)).filter(size => size >= 24 && size <= 256);
  return found.length ? found : [64];
}

export const usualSize = edge => sizes(edge).find(size => size >= 60) ?? sizes(edge).at(-1);

export function described(found, place, classes) {
  const value = name => found.columns[name]?.[place];
  const parts = [`image ${number(value("index"))}`, `label ${classes[value("label")] ?? value("label")}`];
  for (const name of Object.keys(found.columns)) {
    if (["index", "label"].includes(name) || (["parent", "duplicate_of"].includes(name) && value(name) < 0)) continue;
    parts.push(`${name} ${name === "prediction" ? classes[value(name)] ?? value(name) : number(value(name), 3)}`);
  }
  return parts;
}

export function makeGrid({ label, onOpen, onEdge = () => {}, onLook = () => {} }) {
  const cells = [];
  const sheet = h("canvas", { class: "sheet", "aria-hidden": "true" });
  const sprite = document.createElement("canvas");
  const element = h("div", { class: "grid", role: "group", "aria-label": label, "data-ready": "no" }, sheet);
  new ResizeObserver(() => shown && lay()).observe(element);
  let shown = null;
  let classes = [];
  let size = 64;

  function cell(place) {
    const picture = h("span", { class: "picture" });
    const caption = h("span", { class: "caption" });
    const button = h("button", { class: "cell", type: "button", tabindex: "-1" }, picture, caption);
    button.addEventListener("click", () => onOpen(shown.columns.index[place]));
    button.addEventListener("focus", () => { rove(place); onLook(shown, place); });
    button.addEventListener("pointerenter", () => onLook(shown, place));
    return { button, picture, caption };
  }

  function rove(place) {
    for (const other of element.querySelectorAll("[tabindex='0']")) other.tabIndex = -1;
    cells[place].button.tabIndex = 0;
  }

  // Draw each image where its cell is.
  function lay() {
    const [, height, width] = shown.shape;
    const places = cells.slice(0, shown.columns.index.length).map(({ picture }) => [picture.offsetLeft, picture.offsetTop]);
    [sheet.width, sheet.height] = [element.clientWidth, Math.max(1, (places.at(-1)?.[1] ?? 0) + size)];
    const pen = sheet.getContext("2d", { willReadFrequently: true });
    pen.imageSmoothingEnabled = size < Math.max(height, width);
    places.forEach(([x, y], place) => {
      pen.drawImage(sprite, (place % ROW) * width, Math.floor(place / ROW) * height, width, height, x, y, size, size);
    });
  }

  function show(found, names, { size: wanted, sort = "index", focus = null }) {
    [shown, classes, size] = [found, names, wanted];
    const count = found.columns.index.length;
    element.style.setProperty("--size", `${size}px`);
    element.classList.toggle("bare", size < 44);
    while (cells.length < count) {
      cells.push(cell(cells.length));
      element.append(cells.at(-1).button);
    }
    const column = sort.replace(/^-/, "");
    const { index, label, prediction } = found.columns;
    for (const [place, { button, caption }] of cells.entries()) {
      button.hidden = place >= count;
      if (button.hidden) continue;
      const name = classes[label[place]] ?? String(label[place]);
      const wrong = prediction !== undefined && prediction[place] !== label[place];
      const value = column !== "index" && column !== "label" ? found.columns[column]?.[place] : undefined;
      caption.textContent = value === undefined ? name : column === "prediction" ? classes[value] : number(value, 3);
      button.classList.toggle("wrong", wrong);
      button.dataset.index = index[place];
      button.setAttribute("aria-label", `image ${index[place]}, label ${name}${wrong ? `, prediction ${classes[prediction[place]]}` : ""}`);
    }
    if (count) paint(sprite, found, [...index.keys()], ROW);
    lay();
    if (count) rove(focus === "last" ? count - 1 : 0);
    if (count && focus !== null) cells[focus === "last" ? count - 1 : 0].button.focus({ preventScroll: focus === "keep" });
    element.dataset.ready = "yes";
  }

  function columns() {
    return getComputedStyle(element).gridTemplateColumns.split(" ").length;
  }

  element.addEventListener("keydown", event => {
    if (event.ctrlKey || event.metaKey || event.altKey || !shown) return;
    const count = shown.columns.index.length;
    const place = cells.findIndex(other => other.button === document.activeElement);
    const steps = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns(), ArrowDown: columns() };
    if (event.key in steps && place >= 0) {
      event.preventDefault();
      const next = place + steps[event.key];
      if (next < 0) onEdge(-1, "last");
      else if (next >= count && event.key === "ArrowDown" && Math.floor(place / columns()) < Math.floor((count - 1) / columns())) {
        cells[count - 1].button.focus();
      } else if (next >= count) onEdge(1, "first");
      else cells[next].button.focus();
    }
  });

  const focusOn = index => cells.find(({ button }) => !button.hidden && Number(button.dataset.index) === index)?.button.focus();
  return { element, show, focusOn, get shown() { return shown; } };
}

// A row of images with a line under each: relatives and neighbours.
export function strip(found, classes, { onOpen, lines, size = 64 }) {
  const buttons = found.columns.index.map((index, place) => {
    const canvas = h("canvas", { width: 1, height: 1, "aria-hidden": "true" });
    paint(canvas, found, [place]);
    const name = classes[found.columns.label[place]] ?? String(found.columns.label[place]);
    const under = lines?.(place) ?? name;
    const attributes = {
      class: "cell", type: "button", "data-index": index, title: described(found, place, classes).join("\n"),
      "aria-label": `image ${index}, label ${name}`, onclick: () => onOpen(index),
    };
    return h("button", attributes, canvas, h("span", { class: "caption" }, under));
  });
  return h("div", { class: "strip", style: { "--size": `${size}px` } }, buttons);
}
