// Draws the chart whose JSON is the component's value, and reports a click on one of its marks.
const simple = (value) => ["string", "number", "boolean"].includes(typeof value);

async function library() {
  window.dialdownDrawing ??= server.drawing_library().then((code) => {
    const script = document.createElement("script");
    script.type = "module";
    const loaded = new Promise((done) =>
      window.addEventListener("dialdown-vega", done, { once: true }));
    script.textContent = `${code};\nwindow.dispatchEvent(new Event("dialdown-vega"));`;
    document.head.append(script);
    return loaded;
  });
  await window.dialdownDrawing;
  return window.dialdownVega;
}

async function draw() {
  const place = element.querySelector(".dd-chart");
  if (!place) return;
  if (!props.value) {
    place.replaceChildren();
    return;
  }
  place.setAttribute("aria-busy", "true");
  const embed = await library();
  const tooltip = { theme: "custom" };
  const options = { mode: "vega-lite", renderer: "svg", actions: false, tooltip };
  const { view } = await embed(place, JSON.parse(props.value), options);
  view.addEventListener("click", (event, item) => {
    if (!item?.datum) return;
    const facts = Object.entries(item.datum).filter(([, value]) => simple(value));
    if (facts.length) trigger("select", { datum: Object.fromEntries(facts) });
  });
  // A mark of which nothing is said is no picture of its own.
  for (const mark of place.querySelectorAll('[role="graphics-symbol"]:not([aria-label])'))
    mark.ariaHidden = "true";
  place.removeAttribute("aria-busy");
}

watch("value", draw);
draw();
