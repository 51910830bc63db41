// plotly.js, which is large, is loaded where the first chart is shown.

import { h } from "./dom.js";

let loading = null;
function plotly() {
  loading ??= new Promise((resolve, reject) => {
    const script = h("script", { src: "plotly.js", onload: () => resolve(window.Plotly), onerror: () => reject(new Error("plotly.js could not be loaded.")) });
    document.head.append(script);
  });
  return loading;
}

const style = name => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

function look(layout) {
  const axis = { gridcolor: style("--line"), linecolor: style("--line"), zerolinecolor: style("--line"), automargin: true };
  const axes = Object.fromEntries(["xaxis", "yaxis"].map(name => [name, { ...axis, ...layout[name] }]));
  return {
    font: { family: "system-ui, sans-serif", size: 12, color: style("--text") },
    paper_bgcolor: "transparent", plot_bgcolor: "transparent",
    margin: { l: 46, r: 12, t: 8, b: 40 }, modebar: { bgcolor: "transparent", color: style("--soft"), activecolor: style("--accent") }, hoverlabel: { bgcolor: style("--raised"), font: { color: style("--text") } },
    legend: { orientation: "h", y: 1.02, yanchor: "bottom", x: 0 }, ...layout, ...axes,
  };
}

// plotly takes some HTML in its texts; names of classes, banks and scores are none.
export const text = value => String(value).replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");

// Draw into an element that has its height already, so that nothing jumps.
export async function chart(element, traces, layout = {}) {
  const library = await plotly();
  if (!element.isConnected) return element;
  element.classList.add("drawn");
  await library.react(element, traces, look(layout), {
    displaylogo: false, responsive: true, showSendToCloud: false, plotlyServerURL: "", // nothing is sent anywhere
    modeBarButtons: [["toImage", "zoom2d", "pan2d", "zoomIn2d", "zoomOut2d", "resetScale2d"]],
  });
  element.dataset.ready = "yes";
  return element;
}
