// Draws the charts in the colours of the page: light, dark, or paper.
(() => {
  const figures = JSON.parse(document.getElementById("figures").textContent);
  const root = document.documentElement;
  const colour = (name) => getComputedStyle(root).getPropertyValue(name).trim();

  const themedTrace = (trace) => {
    const tone = colour(trace.meta === "accent" ? "--accent" : "--soft");
    const themed = { ...trace, line: { ...trace.line, color: tone }, marker: { ...trace.marker, color: tone } };
    if (trace.type === "violin") themed.fillcolor = colour(trace.meta === "accent" ? "--accent-wash" : "--hair");
    if (trace.error_y) themed.error_y = { ...trace.error_y, color: tone };
    return themed;
  };
  const themedLayout = (layout) => ({
    ...layout,
    font: { family: colour("--sans"), size: 12, color: colour("--soft") },
    hoverlabel: { bgcolor: colour("--card"), bordercolor: colour("--faint"), font: { color: colour("--ink") } },
    xaxis: { ...layout.xaxis, linecolor: colour("--faint"), showline: true },
    yaxis: { ...layout.yaxis, gridcolor: colour("--hair") },
    shapes: (layout.shapes ?? []).map((shape) => ({ ...shape, line: { ...shape.line, color: colour("--soft") } })),
  });
  const draw = () => {
    for (const [id, figure] of Object.entries(figures)) {
      Plotly.react(id, figure.data.map(themedTrace), themedLayout(figure.layout), { displayModeBar: false });
    }
  };
  const fit = (element) => Plotly.Plots.resize(element);
  const print = (printing) => {
    root.classList.toggle("printing", printing);
    draw();
    Object.keys(figures).forEach((id) => fit(id));
  };

  draw();
  const observer = new ResizeObserver((entries) => entries.forEach((entry) => fit(entry.target)));
  Object.keys(figures).forEach((id) => observer.observe(document.getElementById(id)));
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
  addEventListener("beforeprint", () => print(true));
  addEventListener("afterprint", () => print(false));
})();
