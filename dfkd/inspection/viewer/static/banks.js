// The list of all banks below the folder, broken ones with what is wrong with them.

import { ask, frame, paint } from "./api.js";
import { ago, bytes, fill, h, number, repeat } from "./dom.js";
import { link } from "./state.js";

const KINDS = {
  init: "images that the inversion of the teacher made",
  variations: "diffusion variations that the filter kept",
  rejected: "variations that the filter dropped",
  run: "images that were made against a student",
};

export const chip = (text, kind, title) => h("span", { class: `chip ${kind}`, title }, text);

export default function banks(main) {
  const search = h("input", {
    type: "search", placeholder: "find by name, kind, data set, teacher", "aria-label": "Find a bank", oninput: () => draw(),
  });
  const count = h("span", { class: "hint", role: "status" });
  const body = h("div", { class: "lists" }, h("p", { class: "empty" }, "Reading the folder …"));
  main.append(h("div", { class: "heading" }, h("h1", {}, "Banks"), search, count), body);
  let found = null;
  let before = "";
  const watcher = new IntersectionObserver(entries => {
    for (const entry of entries) {
      if (!entry.isIntersecting) continue;
      watcher.unobserve(entry.target);
      thumbs(entry.target);
    }
  });

  async function thumbs(place) {
    try {
      const pictures = await frame("thumbs", { bank: place.dataset.bank });
      fill(place, pictures.columns.index.map((_, number) => {
        const canvas = h("canvas", { width: 1, height: 1 });
        paint(canvas, pictures, [number]);
        return canvas;
      }));
    } catch (error) {
      console.info(error.message); // the bank's own row says what is wrong
    }
  }

  function row(bank) {
    const name = bank.name.split("/").at(-1);
    if (bank.state === "broken") {
      return h("tr", { class: "broken" },
        h("td", { class: "thumbs" }), h("th", { scope: "row" }, name), h("td", {}, chip("broken", "bad")),
        h("td", { colspan: 5 }, bank.fault));
    }
    const [channels, height, width] = bank.shape;
    const place = h("td", { class: "thumbs", "data-bank": bank.name, "aria-hidden": "true" });
    watcher.observe(place);
    return h("tr", {},
      place,
      h("th", { scope: "row" }, h("a", { href: link({ view: "bank", bank: bank.name }) }, name)),
      h("td", {}, chip(bank.kind, bank.kind, KINDS[bank.kind]), bank.method ? ` ${bank.method}` : ""),
      h("td", { class: "figure" }, number(bank.images)),
      h("td", {}, `${bank.dataset}, ${channels}×${height}×${width}`),
      h("td", {}, bank.teacher || h("code", {}, bank.teacher_sha256.slice(0, 8))),
      h("td", {}, bank.state === "growing" ? chip("growing", "live", "still being written, or its stage was stopped") : "complete",
        bank.measured ? h("small", {}, " scored") : ""),
      h("td", { class: "figure" }, bytes(bank.bytes), h("small", {}, ` ${ago(bank.modified)}`)));
  }

  function draw() {
    const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    const matching = found.banks.filter(bank => {
      const text = [bank.name, bank.kind, bank.dataset, bank.teacher, bank.state].join(" ").toLowerCase();
      return words.every(word => text.includes(word));
    });
    const broken = found.banks.filter(bank => bank.state === "broken").length;
    count.textContent = `${matching.length} of ${found.banks.length} banks${broken ? `, ${broken} broken` : ""}`;
    const folders = Map.groupBy(matching, bank => bank.name.split("/").slice(0, -1).join("/"));
    if (!found.banks.length) {
      fill(body, h("p", { class: "empty" }, "There is no bank below this folder. A bank is a .lmdb file that `dfkd init-bank`, "
        + "`dfkd augment`, `dfkd distill` or `dfkd bank import` wrote."));
    } else if (!matching.length) {
      fill(body, h("p", { class: "empty" }, "No bank fits these words."));
    } else {
      fill(body, [...folders].map(([folder, members]) => h("section", {},
        h("h2", {}, folder || "."),
        h("div", { class: "wide" }, h("table", { class: "banks" },
          h("thead", {}, h("tr", {}, ["", "bank", "kind", "images", "data set", "teacher", "state", "size"].map(
            name => h("th", { scope: "col", class: ["images", "size"].includes(name) ? "figure" : null }, name)))),
          h("tbody", {}, members.map(row)))))));
    }
  }

  async function load() {
    const next = await ask("library");
    const text = JSON.stringify(next.banks);
    if (text === before) return;
    before = text;
    found = next;
    draw();
  }

  const stop = repeat(() => load().catch(error => console.info(error.message)), 5);
  return { title: () => "Banks", update: () => found ?? load(), destroy: () => { stop(); watcher.disconnect(); } };
}
