// The teacher's features in the plane: each point an image, hovered it is shown, clicked it is opened.

import { ask, frame, paint } from "./api.js";
import { chart, text } from "./charts.js";
import { colour, fill, h, number } from "./dom.js";
import { pickBank, usable } from "./pickers.js";
import { measuring } from "./side.js";
import { go } from "./state.js";

const SYMBOLS = ["circle", "diamond-open", "cross", "square-open", "triangle-up", "x", "star", "circle-open"];
const MARKS = ["●", "◇", "✚", "□", "▲", "✕", "★", "○"];

export default function scatter(main) {
  let asked = 0;
  let library = null;
  let drawn = ""; // what the plane shows
  let points = null;
  const tools = h("div", { class: "toolbar" });
  const plane = h("div", { class: "chart plane", role: "img", "aria-label": "Features of the images in the plane" });
  const canvas = h("canvas", { width: 1, height: 1, class: "large", "aria-hidden": "true" });
  const words = h("div", { class: "hint" }, "Point at a mark to see its image; a click opens it.");
  const note = h("div", { class: "over", role: "status" });
  const legend = h("p", { class: "hint" });
  main.append(h("div", { class: "heading" }, h("h1", {}, "Features in the plane")), tools,
    h("div", { class: "plane-and-image" }, h("div", { class: "framed" }, plane, note, legend), h("aside", { class: "side" }, canvas, words)));

  async function update(state) {
    const mine = ++asked;
    library ??= await ask("library");
    const banks = usable(library);
    const names = state.getAll("bank").length ? state.getAll("bank") : banks.slice(0, 1).map(bank => bank.name);
    if (!names.length) {
      fill(note, h("p", {}, "There is no bank below this folder."));
      return;
    }
    const method = state.get("method") === "tsne" ? "tsne" : "pca";
    const by = state.get("by") === "bank" ? "bank" : "class";
    drawTools(banks, names, method, by);
    const infos = await Promise.all(names.map(bank => ask("bank", { bank })));
    if (mine !== asked) return;
    const unmeasured = infos.find(info => !info.measured);
    if (unmeasured) {
      clearPlane();
      fill(note, h("h2", {}, `${unmeasured.name} has no features yet`), measuring(unmeasured, () => mine === asked && update(state)));
      return;
    }
    const wanted = JSON.stringify([infos.map(info => info.version), method, by]);
    if (wanted === drawn) return;
    const found = await computed(names, method, mine);
    if (!found || mine !== asked) return;
    points = found;
    await draw(by);
    drawn = wanted;
  }

  async function computed(names, method, mine) {
    for (let wait = 150; ; wait = Math.min(2 * wait, 1000)) {
      const job = await ask("scatter", { bank: names, method });
      if (mine !== asked) return null;
      if (job.state === "done") return job.result;
      if (job.state === "failed") throw new Error(job.error);
      const bar = h("progress", { "aria-label": "computed" });
      if (job.total > 1) [bar.max, bar.value] = [job.total, job.done];
      const what = method === "tsne" ? "t-SNE" : "PCA";
      fill(note, bar, h("p", {}, job.state === "waiting" ? `${what} waits for: another computation` : `${what} of the features …`));
      await new Promise(resolve => setTimeout(resolve, wait));
    }
  }

  function drawTools(banks, names, method, by) {
    const first = banks.find(bank => bank.name === names[0]);
    const others = banks.filter(bank => bank.name !== names[0] && bank.teacher_sha256 === first?.teacher_sha256);
    const choice = (name, value, now, text) => h("label", { class: "choice" },
      h("input", { type: "radio", name, value, checked: now === value, onchange: () => go({ [name]: value }) }), text);
    const toggled = name => (names.includes(name) ? names.filter(other => other !== name) : [...names, name]);
    const boxes = others.map(bank => h("label", { class: "choice" },
      h("input", { type: "checkbox", checked: names.includes(bank.name), onchange: () => go({ bank: toggled(bank.name) }) }),
      `${bank.name.split("/").slice(-2).join("/")} `, h("small", {}, number(bank.images))));
    const focused = document.activeElement?.closest("label")?.textContent;
    fill(tools,
      pickBank(library, names[0], name => go({ bank: name })),
      h("fieldset", {}, h("legend", {}, "Method"), choice("method", "pca", method, "PCA"), choice("method", "tsne", method, "t-SNE")),
      h("fieldset", {}, h("legend", {}, "Colour"), choice("by", "class", by, "class"), choice("by", "bank", by, "stage")),
      others.length ? h("details", { class: "field", open: names.length > 1 }, h("summary", {}, "Together with"), boxes) : null);
    if (focused) [...tools.querySelectorAll("label")].find(label => label.textContent === focused)?.querySelector("input, select")?.focus();
  }

  function clearPlane() {
    drawn = "";
    points = null;
    plane.classList.add("faded");
    fill(legend);
  }

  async function draw(by) {
    plane.classList.remove("faded");
    const groups = new Map();
    points.index.forEach((_, place) => {
      const key = by === "bank" ? points.bank[place] : points.label[place];
      if (!groups.has(key)) groups.set(key, []);
      groups.get(key).push(place);
    });
    const small = points.index.length > 2500;
    const traces = [...groups].sort(([a], [b]) => a - b).map(([key, places]) => ({
      type: "scatter", mode: "markers", hoverinfo: "none",
      name: text(by === "bank" ? points.banks[key].split("/").slice(-2).join("/") : points.classes[key]),
      x: places.map(place => points.x[place]), y: places.map(place => points.y[place]), customdata: places,
      marker: {
        size: small ? 5 : 7, opacity: 0.75, color: colour(key, by === "bank" ? points.banks.length : points.classes.length),
        symbol: places.map(place => SYMBOLS[points.bank[place] % SYMBOLS.length]),
      },
    }));
    const bare = { showticklabels: false, ticks: "", zeroline: false, title: { text: "" } };
    await chart(plane, traces, {
      xaxis: bare, yaxis: { ...bare, scaleanchor: "x" }, margin: { l: 10, r: 10, t: 8, b: 10 }, hovermode: "closest", dragmode: "pan",
    });
    plane.removeAllListeners("plotly_hover");
    plane.removeAllListeners("plotly_click");
    plane.on("plotly_hover", event => look(event.points[0].customdata));
    plane.on("plotly_click", event => {
      const place = event.points[0].customdata;
      go({ image: points.index[place], of: points.banks[points.bank[place]] });
    });
    const shown = points.index.length;
    const variance = points.explained === null ? "" : ` The plane holds ${(100 * points.explained).toFixed(0)} % of the variance.`;
    const marks = points.banks.map((name, place) => `${MARKS[place % MARKS.length]} ${name.split("/").slice(-2).join("/")}`);
    fill(note);
    fill(legend, (shown < points.of ? `${number(shown)} of ${number(points.of)} images, the same share of every class.`
      : `${number(shown)} images.`) + variance, marks.length > 1 ? ` ${marks.join("   ")}` : "");
  }

  let looked = 0;
  async function look(place) {
    const mine = ++looked;
    const bank = points.banks[points.bank[place]];
    const found = await frame("images", { bank, index: points.index[place] }).catch(() => null);
    if (!found || mine !== looked) return;
    paint(canvas, found, [0]);
    const facts = [bank, `image ${number(points.index[place])}`, `label ${points.classes[points.label[place]]}`,
      `prediction ${points.classes[points.prediction[place]]}`];
    fill(words, facts.map(fact => h("div", {}, fact)));
  }

  return { title: () => "Scatter", update, bank: () => null };
}
