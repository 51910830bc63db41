// Elements, numbers and times as text. Text goes in as text: nothing here parses HTML.

export function h(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "style") for (const [key, part] of Object.entries(value)) element.style.setProperty(key, part);
    else if (name === "value") element.value = value;
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat(2).filter(child => child !== null && child !== undefined && child !== false));
  return element;
}

export function fill(element, ...children) {
  element.replaceChildren(...children.flat(2).filter(child => child !== null && child !== undefined && child !== false));
  return element;
}

export function number(value, digits = 4) {
  if (value === null || value === undefined) return "–";
  if (Number.isInteger(value)) return value.toLocaleString("en");
  const size = Math.abs(value);
  return size !== 0 && (size < 1e-3 || size >= 1e6) ? value.toExponential(2) : String(Number(value.toPrecision(digits)));
}

export function bytes(count) {
  const units = ["B", "kB", "MB", "GB", "TB"];
  const power = Math.min(units.length - 1, Math.floor(Math.log10(Math.max(count, 1)) / 3));
  return `${Number((count / 1000 ** power).toPrecision(3))} ${units[power]}`;
}

export function ago(seconds) {
  const past = Math.max(0, Date.now() / 1000 - seconds);
  for (const [size, name] of [[86400, "d"], [3600, "h"], [60, "min"]]) {
    if (past >= size) return `${Math.floor(past / size)} ${name} ago`;
  }
  return past < 10 ? "just now" : `${Math.floor(past)} s ago`;
}

export function debounced(action, wait) {
  let timer;
  return (...values) => {
    clearTimeout(timer);
    timer = setTimeout(() => action(...values), wait);
  };
}

// Colours of classes: the pages' own for the first ones, then evenly around the circle.
const DARK = matchMedia("(prefers-color-scheme: dark)").matches;
const COLOURS = DARK
  ? ["#6ea8e0", "#f0894b", "#81c784", "#c792ea", "#e6c34d", "#4dd0e1", "#f48fb1", "#bcaaa4", "#9fa8da", "#c5e1a5"]
  : ["#0b5394", "#cc4c02", "#3a7d44", "#7b3294", "#b58900", "#00838f", "#ad1457", "#6d4c41", "#5c6bc0", "#7cb342"];
export function colour(number, count = 10) {
  return count <= COLOURS.length ? COLOURS[number % COLOURS.length] : `hsl(${(number * 137.5) % 360} 60% ${40 + 15 * (number % 3)}%)`;
}

export function repeat(action, seconds) {
  const timer = setInterval(() => document.visibilityState === "visible" && action(), seconds * 1000);
  return () => clearInterval(timer);
}
