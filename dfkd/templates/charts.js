// plotly.js lies compressed in the page; once it is unpacked, every chart is drawn from the JSON within it.
const plotlyReady = (async () => {
  const packed = Uint8Array.from(atob(document.getElementById("plotly").textContent), letter => letter.charCodeAt(0));
  const unpacked = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
  const script = document.createElement("script");
  script.textContent = await new Response(unpacked).text();
  document.head.append(script);
  const options = {responsive: true, displaylogo: false, displayModeBar: "hover", modeBarButtons: [["toImage", "zoom2d", "resetScale2d"]]};
  await Promise.all([...document.querySelectorAll(".chart > script")].map(own => {
    const place = own.parentElement, figure = JSON.parse(own.textContent);
    delete figure.layout.width;
    return Plotly.newPlot(place, figure.data, {...figure.layout, height: place.clientHeight}, options);
  }));
  document.documentElement.dataset.charts = "drawn";
})();
