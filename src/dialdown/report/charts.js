// Draw each chart of the page from the JSON beside it. `ast` interprets Vega's expressions, which
// the page's policy would not let it compile.
for (const place of document.querySelectorAll("[data-chart]")) {
  const spec = JSON.parse(place.querySelector("script").textContent);
  const options = { mode: "vega-lite", renderer: "svg", actions: false, ast: true };
  vegaEmbed(place.querySelector("div"), spec, options).catch((error) => {
    place.querySelector("div").textContent = `This figure cannot be drawn: ${error}`;
  });
}
