const dialog = byId("detail");
let opened = null;  // the row that is enlarged

const twins = row => {
  const own = columns.duplicate_of, bank = images.bank[row];
  const first = own[row] >= 0 ? own[row] : images.index[row];
  return images.index.flatMap((index, other) => other !== row && images.bank[other] === bank && (index === first || own[other] === first) ? [other] : []);
};

function relative(row, caption) {
  const button = thumb(row);
  if (row === opened) button.classList.add("here");
  return element("figure", {}, button, element("figcaption", {}, caption));
}

function relatives() {
  const root = rootOf(opened), made = children.get(root) ?? [];
  const parts = [];
  if (root !== opened || made.length) {
    const caption = row => `${stageOf(row).name}${columns.cosine?.[row] == null ? "" : ` ${shown(columns.cosine[row])}`}`;
    parts.push(element("h3", {}, root === opened ? `${made.length === 1 ? "Its variation" : `Its ${made.length} variations`} on this page` : "Its parent, and what was made of it"),
               element("div", {className: "relatives"}, relative(root, "parent"), ...made.map(row => relative(row, caption(row)))));
  }
  const equal = twins(opened);
  if (equal.length) parts.push(element("h3", {}, "Equal images in this bank"), element("div", {className: "relatives"}, ...equal.slice(0, 24).map(row => relative(row, nameOf(row)))));
  return parts;
}

function answersOf(row) {
  return element("div", {className: "tops"}, ...images.top[row].map((answer, place) => {
    const p = images.top_probability[row][place];
    return element("div", {className: answer === columns.label[row] ? "is-label" : ""}, element("span", {title: classes[answer]}, classes[answer]),
                   element("b", {style: `width:${100 * p}%`}), element("small", {}, p < 1e-4 ? p.toExponential(1) : p.toFixed(4)));
  }));
}

function scoresOf(row) {
  const names = Object.keys(images.columns).filter(name => columns[name][row] !== null && !["label", "prediction", "parent", "variation", "duplicate_of", "constant"].includes(name));
  return element("dl", {className: "scores"}, ...names.flatMap(name => [element("dt", {title: data.about[name] ?? ""}, name), element("dd", {}, shown(columns[name][row]))]));
}

function drawDetail() {
  const row = opened, place = view.indexOf(row), label = columns.label[row], answer = columns.prediction[row];
  const pixels = data.size * Math.max(1, Math.floor(352 / data.size));
  const button = (text, name, action, disabled = false) => element("button", {type: "button", "aria-label": name, title: name, onclick: action, disabled}, text);
  const badge = element("span", {className: "badge stage", style: `--stage:${stageOf(row).colour}`, title: stageOf(row).about}, stageOf(row).name);
  const picture = element("div", {className: "cell big", role: "img", "aria-label": describe(row), style: `${onSheet(row)};--px:${Math.min(pixels, 448)}px`});
  if (pixels > 448) picture.style.imageRendering = "auto";
  const facts = element("dl", {}, element("dt", {}, "label"), element("dd", {}, classes[label]),
    element("dt", {}, "teacher's answer"), element("dd", {}, `${classes[answer]}${answer === label ? "" : ", not the label"}`));
  const flags = [columns.constant[row] ? "all pixels have one value" : "", columns.duplicate_of[row] >= 0 ? `same pixels as image ${columns.duplicate_of[row]}` : ""].filter(Boolean);
  if (flags.length) facts.append(element("dt", {}, "note"), element("dd", {}, flags.join("; ")));
  const hadFocus = dialog.contains(document.activeElement) ? document.activeElement.getAttribute("aria-label") : null;
  dialog.firstElementChild.replaceChildren(
    element("div", {className: "detail-head"}, element("h2", {id: "detail-title"}, nameOf(row), badge),
      button("←", "previous image", () => step(-1), place <= 0), button("→", "next image", () => step(1), place < 0 || place === view.length - 1),
      button("✕", "close", () => dialog.close())),
    element("div", {className: "detail-body"},
      element("div", {}, picture, element("p", {className: "hint"}, place < 0 ? "not among the images that the filter leaves" : `${(place + 1).toLocaleString("en")} of ${view.length.toLocaleString("en")} in this view`)),
      element("div", {}, facts, element("h3", {}, "The teacher's likeliest classes"), answersOf(row), element("h3", {}, "Scores"), scoresOf(row), ...relatives())));
  dialog.style.setProperty("--px", `${data.size * scaleNear(44, 96)}px`);
  ([...dialog.querySelectorAll("button")].find(other => other.getAttribute("aria-label") === hadFocus && !other.disabled) ?? dialog).focus();
}

function step(by) {
  const at = view.indexOf(opened);
  if (view[at + by] !== undefined && at >= 0) open(view[at + by]);
}

function open(row) {
  opened = row;
  state.image = nameOf(row);
  if (!dialog.open) dialog.showModal();
  drawDetail();
  keepState();
}

dialog.addEventListener("close", () => {
  const row = opened;
  opened = null;
  state.image = null;
  keepState();
  if (row !== null && view.includes(row) && state.tab === "images") { stopAt(row); thumbs[row].focus({preventScroll: false}); }
});
dialog.addEventListener("click", event => {
  if (event.target === dialog) dialog.close();  // beside it
  const chosen = event.target.closest(".thumb");
  if (chosen) open(Number(chosen.dataset.row));
});
dialog.addEventListener("keydown", event => {
  if (event.altKey || event.ctrlKey || event.metaKey) return;
  const root = rootOf(opened);
  if (event.key === "ArrowLeft") step(-1);
  else if (event.key === "ArrowRight") step(1);
  else if (event.key === "ArrowUp" && root !== opened) open(root);
  else if (event.key === "ArrowDown" && children.has(opened)) open(children.get(opened)[0]);
  else return;
  event.preventDefault();
});
