// What is shown stands in the address alone: reload and Back restore it.

let render = () => {};

export const current = () => new URLSearchParams(location.search);
export const onChange = action => { render = action; };

// A change is a new value of a parameter; null or "" takes it away; an array repeats it.
export function address(changes, from = current()) {
  const next = new URLSearchParams(from);
  for (const [name, value] of Object.entries(changes)) {
    next.delete(name);
    for (const part of [value].flat()) if (part !== null && part !== undefined && part !== "") next.append(name, part);
  }
  return `?${next}`;
}

export const link = changes => address(changes, new URLSearchParams());

export function go(changes, { replace = false, fresh = false } = {}) {
  const target = fresh ? link(changes) : address(changes);
  if (target === (location.search || "?")) return;
  history[replace ? "replaceState" : "pushState"](null, "", target);
  render();
}

window.addEventListener("popstate", () => render());

document.addEventListener("click", event => {
  const anchor = event.target.closest("a[href^='?']");
  if (!anchor || event.defaultPrevented || event.button || event.ctrlKey || event.metaKey || event.shiftKey) return;
  event.preventDefault();
  if (anchor.getAttribute("href") !== location.search) history.pushState(null, "", anchor.getAttribute("href"));
  render();
});
