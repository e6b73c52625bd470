"use strict";
// Draws the charts, and the attention map of the window and head that are picked.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const at = (id) => document.getElementById(id);
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const views = new Map(); // element -> what vegaEmbed gave

  // The page's colours, as Vega's configuration; read anew where the scheme changes.
  function theme() {
    const style = getComputedStyle(document.documentElement);
    const get = (name) => style.getPropertyValue(name).trim();
    const [soft, line, accent] = ["--soft", "--line", "--accent"].map(get);
    const words = { labelColor: soft, titleColor: soft, labelFontSize: 12, titleFontSize: 12, titleFontWeight: 500 };
    return {
      background: null,
      font: get("--font"),
      view: { stroke: null },
      axis: { ...words, gridColor: line, domainColor: line, tickColor: line, titlePadding: 8, labelPadding: 4 },
      axisBand: { grid: false },
      legend: words,
      mark: { color: accent },
      bar: { color: accent },
      rule: { color: accent, strokeWidth: 1.5 },
      line: { color: accent, strokeWidth: 1.5 },
      point: { color: accent, filled: true, size: 14 },
      style: { median: { color: get("--page") } },
      range: { heatmap: get("--ramp").split(" "), ramp: get("--ramp").split(" "), diverging: get("--diverging").split(" ") },
    };
  }

  // One chart is drawn after the other; what is not wanted any more when its turn comes is left out.
  let turn = Promise.resolve();
  function draw(element, specOf) {
    turn = turn.then(() => drawNow(element, specOf())).catch((error) => {
      console.error(error);
      element.textContent = `This could not be drawn: ${error.message}`;
    });
    return turn;
  }

  async function drawNow(element, spec) {
    if (!spec) return;
    const place = document.createElement("div");
    place.style.width = "100%";
    const before = views.get(element);
    element.append(place); // below what is there, which goes only when this is drawn
    const made = await vegaEmbed(place, spec, {
      actions: false, ast: true, config: theme(), defaultStyle: false, renderer: "svg",
      tooltip: { disableDefaultStyle: true },
    });
    views.set(element, made);
    before?.finalize();
    while (element.firstChild !== place) element.firstChild.remove();
    made.view.addEventListener("click", (_, item) => clicked(item?.datum));
  }

  const numbers = (text, Type) => new Type(Uint8Array.from(atob(text), (c) => c.charCodeAt(0)).buffer);
  const percent = (share) => (100 * share).toFixed(1) + "%";
  const grouped = (count) => count.toLocaleString("en-US");

  function option(select, value, text) {
    const made = document.createElement("option");
    made.value = value;
    made.textContent = text;
    select.append(made);
  }

  // The weights [places, places] of a window's head, computed from q and k in float64.
  function weights(shown, head, causal) {
    const { headDim, keyHeads, scale } = data.attention;
    const places = shown.places;
    const q = shown.numbers.q.subarray(head * places * headDim);
    const k = shown.numbers.k.subarray(keyHeads[head] * places * headDim);
    const sums = shown.numbers.sums.subarray(head * places);
    return Array.from({ length: places }, (_, row) => {
      const keys = causal ? row + 1 : places;
      const scores = Float64Array.from({ length: keys }, (_, key) => {
        let sum = 0;
        for (let i = 0; i < headDim; i++) sum += q[row * headDim + i] * k[key * headDim + i];
        return sum * scale;
      });
      // Before a place stand only places that are shown; after it, also others, which sums count.
      let total = sums[row];
      if (causal) {
        const most = Math.max(...scores);
        total = most + Math.log(scores.reduce((sum, score) => sum + Math.exp(score - most), 0));
      }
      return Array.from(scores, (score) => Math.exp(score - total));
    });
  }

  const state = { window: 0, head: 0, place: 0, causal: true, matrix: [] };

  function pick() {
    const { windows, heads } = data.attention;
    Object.assign(state, { window: Number(at("window").value), head: Number(at("head").value), causal: at("causal").checked });
    const shown = windows[state.window];
    const places = at("place");
    if (Number(places.dataset.window) !== state.window || !places.length) {
      places.replaceChildren();
      shown.labels.forEach((label, i) => option(places, i, `${i}  ${label}`));
      places.dataset.window = state.window;
      places.value = Math.min(shown.places - 1, 12);
    }
    state.matrix = weights(shown, state.head, state.causal);
    const beyond = state.matrix.reduce((sum, row) => sum + 1 - row.reduce((a, b) => a + b, 0), 0) / shown.places;
    const rest = shown.real - shown.places;
    let said = `Window ${grouped(shown.index)}, head ${heads[state.head]}${state.causal ? ", causal" : ", both ways"}: `;
    said += rest ? `the first ${shown.places} of its ${grouped(shown.real)} places. ` : `all ${shown.places} places. `;
    if (rest && state.causal) said += "Rows are whole, since no place looks beyond itself.";
    else if (rest) said += `Rows are shares over all ${grouped(shown.real)} places; ${percent(beyond)} of the weight lies beyond those shown.`;
    at("said").textContent = said;
    look();
    const matrix = state.matrix;
    return draw(at("map"), () => (matrix === state.matrix ? mapOf(shown, matrix, said) : null));
  }

  function mapOf(shown, matrix, said) {
    const cells = matrix.flatMap((row, query) =>
      row.map((weight, key) => ({ query, key, weight, from: shown.labels[query], to: shown.labels[key] })));
    const spec = structuredClone(data.attention.spec);
    spec.description = `Attention map. ${said}`;
    spec.datasets = { ...spec.datasets, cells };
    // Up to the largest weight, but even rows are no darker than need be.
    const most = Math.max(3 / shown.real, ...cells.map((cell) => cell.weight));
    spec.encoding.color.scale.domain = [0, most];
    spec.encoding.color.legend.values = [0, 0.01, 0.1, 0.3, 1].map((share) => share * most);
    spec.params.find((param) => param.name === "labels").value = shown.labels;
    return spec;
  }

  function clicked(datum) {
    if (datum?.query === undefined) return;
    at("place").value = datum.query;
    look();
  }

  // The places that one looks at most, as a table.
  function look() {
    state.place = Number(at("place").value);
    const labels = data.attention.windows[state.window].labels;
    const row = state.matrix[state.place];
    const most = [...row.keys()].sort((a, b) => row[b] - row[a]).slice(0, 8);
    at("looks").replaceChildren(...most.map((key) => {
      const line = document.createElement("tr");
      const cell = (kind, name, text) => {
        const made = document.createElement(kind);
        made.className = name;
        made.textContent = text;
        line.append(made);
        return made;
      };
      cell("td", "n", key);
      const token = document.createElement("bdi");
      token.className = "token";
      token.textContent = labels[key];
      const head = cell("th", "", "");
      head.scope = "row";
      head.append(token);
      cell("td", "n", percent(row[key]));
      const bar = document.createElement("span");
      bar.className = "bar";
      bar.style.width = `${100 * row[key] / row[most[0]]}%`;
      cell("td", "wide", "").append(bar);
      return line;
    }));
  }

  function prepare() {
    const { windows, heads, group } = data.attention;
    for (const shown of windows) {
      shown.numbers = { q: numbers(shown.q, Float32Array), k: numbers(shown.k, Float32Array), sums: numbers(shown.sums, Float64Array) };
    }
    windows.forEach((shown, i) => option(at("window"), i, grouped(shown.index)));
    heads.forEach((head, i) => option(at("head"), i, group > 1 ? `${head} (key head ${Math.floor(head / group)})` : head));
    for (const id of ["window", "head", "causal"]) at(id).addEventListener("change", pick);
    at("place").addEventListener("change", look);
    at("pick").addEventListener("submit", (event) => event.preventDefault());
  }

  async function drawAll() {
    for (const element of document.querySelectorAll("[data-chart]")) {
      draw(element, () => data.charts[element.dataset.chart]);
    }
    await (data.attention ? pick() : turn);
    document.documentElement.dataset.drawn = dark.matches ? "dark" : "light";
  }

  at("ids").addEventListener("change", (event) => document.body.classList.toggle("ids", event.target.checked));
  if (data.attention) prepare();
  window.qkvmillReport = state;
  dark.addEventListener("change", drawAll);
  drawAll();
})();
