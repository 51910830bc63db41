// Where one is in the pages, and the buttons that turn them.

import { fill, h, number } from "./dom.js";

export function makePager(onTurn) {
  let page = 0;
  let last = 0;
  const button = (text, label, target) => h("button", {
    type: "button", class: "quiet", "aria-label": label, title: label, onclick: () => turn(target()),
  }, text);
  const first = button("«", "first page (Home)", () => 0);
  const back = button("‹", "previous page (Page Up)", () => page - 1);
  const on = button("›", "next page (Page Down)", () => page + 1);
  const end = button("»", "last page (End)", () => last);
  const input = h("input", { type: "number", min: 1, class: "page", "aria-label": "Page", onchange: () => turn(input.value - 1) });
  const of = h("span", {});
  const about = h("span", { class: "hint", role: "status" });
  const element = h("div", { class: "pager" }, first, back, h("span", {}, "page"), input, of, on, end, about);

  const turn = to => {
    const target = Math.max(0, Math.min(last, Math.round(Number(to)) || 0));
    if (target !== page) onTurn(target);
    else input.value = page + 1;
  };
  function show(total, start, size, all) {
    [page, last] = [Math.floor(start / size), Math.max(0, Math.ceil(total / size) - 1)];
    input.value = page + 1;
    input.max = last + 1;
    of.textContent = `of ${number(last + 1)}`;
    first.disabled = back.disabled = page === 0;
    on.disabled = end.disabled = page >= last;
    fill(about, total === all ? `${number(all)} images` : `${number(total)} of ${number(all)} images`);
  }
  // Keys that turn pages; true if this was one.
  function key(event) {
    const target = { PageDown: page + 1, PageUp: page - 1, Home: 0, End: last }[event.key];
    if (target === undefined) return false;
    event.preventDefault();
    turn(target);
    return true;
  }
  return { element, show, key, turn, get page() { return page; }, get last() { return last; } };
}
