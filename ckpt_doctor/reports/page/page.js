"use strict";
// Sorting, filtering and plots. Without it the page still says everything but the plots.
(() => {
  const values = JSON.parse(document.getElementById("values").textContent);
  const make = (name, attributes = {}, text = "") => {
    const element = document.createElement(name);
    for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
    element.textContent = text;
    return element;
  };

  // The theme of the system, until the reader chooses.
  const theme = document.getElementById("theme");
  const dark = () => (document.documentElement.dataset.theme
    ?? (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light")) === "dark";
  const label = () => { theme.textContent = dark() ? "Light page" : "Dark page"; };
  theme.hidden = false;
  label();
  theme.addEventListener("click", () => {
    document.documentElement.dataset.theme = dark() ? "light" : "dark";
    label();
  });

  for (const box of document.querySelectorAll(".table")) arrange(box);

  function arrange(box) {
    const body = box.querySelector("tbody");
    const rows = [...body.rows];
    const plots = new Map();
    for (const row of rows) if (row.dataset.plot in values) plots.set(row, opener(row));
    const place = (ordered) => {
      for (const row of ordered) {
        body.append(row);
        const plot = plots.get(row)?.element;
        if (plot) body.append(plot);
      }
    };
    let ordered = rows;
    box.querySelectorAll("thead th").forEach((head, column) => {
      const button = make("button", { type: "button" }, head.textContent);
      head.replaceChildren(button);
      button.addEventListener("click", () => {
        const down = head.getAttribute("aria-sort") === "ascending";
        for (const other of box.querySelectorAll("thead th")) other.removeAttribute("aria-sort");
        head.setAttribute("aria-sort", down ? "descending" : "ascending");
        const numeric = head.classList.contains("n");
        const key = (row) => {
          const cell = row.cells[column];
          if (!numeric) return cell.textContent.trim();
          return cell.dataset.key === undefined ? NaN : Number(cell.dataset.key);
        };
        const compare = (a, b) => {
          const x = key(a), y = key(b);
          if (!numeric) return x.localeCompare(y, "en", { numeric: true }) * (down ? -1 : 1);
          // What has no number comes last, whichever way.
          if (Number.isNaN(x) || Number.isNaN(y)) return Number.isNaN(x) - Number.isNaN(y);
          return (x - y) * (down ? -1 : 1);
        };
        ordered = [...rows].sort(compare);
        place(ordered);
      });
    });
    const tools = box.querySelector(".tools");
    if (!tools) return;
    tools.hidden = false;
    const [search, select, output] = ["input", "select", "output"].map((name) => tools.querySelector(name));
    const filter = () => {
      const wanted = search.value.trim().toLowerCase();
      let shown = 0;
      for (const row of rows) {
        const fits = row.cells[0].textContent.toLowerCase().includes(wanted)
          && (!select.value || row.dataset.status === select.value);
        row.hidden = !fits;
        const plot = plots.get(row)?.element;
        if (plot) plot.hidden = !fits;
        shown += fits;
      }
      const all = shown === rows.length ? "" : ` of ${rows.length}`;
      output.textContent = `${shown}${all} ${box.dataset.noun}${rows.length === 1 ? "" : "s"}`;
    };
    search.addEventListener("input", filter);
    select.addEventListener("change", filter);
  }

  // A row whose name opens its plots below it; they are drawn when they are first wanted.
  function opener(row) {
    const state = { element: null };
    const cell = row.cells[0];
    const button = make("button", { type: "button", class: "open", "aria-expanded": "false" }, cell.textContent);
    cell.replaceChildren(button);
    button.addEventListener("click", () => {
      if (state.element) {
        state.element.remove();
        state.element = null;
      } else {
        state.element = make("tr");
        const wide = state.element.appendChild(make("td", { colspan: row.cells.length }));
        const grid = wide.appendChild(make("div", { class: "plots" }));
        const series = values[row.dataset.plot];
        for (const [kind, index] of [["mean", 1], ["variance", 2]]) {
          const lines = series.filter((one) => one[index] !== null).map((one) => ({ name: one[0], data: decode(one[index]) }));
          if (lines.length) grid.append(figure(kind, lines));
        }
        row.after(state.element);
      }
      button.setAttribute("aria-expanded", String(state.element !== null));
    });
    return state;
  }

  // Three bytes a value: the upper three of a float32, the most significant first.
  function decode(text) {
    const bytes = atob(text);
    const view = new DataView(new ArrayBuffer(4));
    const found = new Float32Array(bytes.length / 3);
    for (let i = 0; i < found.length; i++) {
      for (let j = 0; j < 3; j++) view.setUint8(j, bytes.charCodeAt(3 * i + j));
      found[i] = view.getFloat32(0);
    }
    return found;
  }

  function figure(kind, lines) {
    const [width, height, left, right, top, bottom] = [480, 210, 58, 8, 8, 24];
    const svgNS = "http://www.w3.org/2000/svg";
    const draw = (parent, name, attributes, text) => {
      const element = document.createElementNS(svgNS, name);
      for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
      if (text !== undefined) element.textContent = text;
      return parent.appendChild(element);
    };
    const channels = Math.max(...lines.map((line) => line.data.length));
    const finite = lines.flatMap((line) => [...line.data].filter(Number.isFinite));
    let [low, high] = [Infinity, -Infinity];
    for (const value of finite) { low = Math.min(low, value); high = Math.max(high, value); }
    if (!finite.length) [low, high] = [0, 1];
    const log = kind === "variance" && low > 0 && high / low > 50;
    const scale = log ? Math.log10 : (value) => value;
    let [from, to] = [scale(low), scale(high)];
    const margin = (to - from) * 0.06 || Math.abs(from) * 0.1 || 1;
    from -= margin;
    to += margin;
    const x = (channel) => left + (channels > 1 ? channel / (channels - 1) : 0.5) * (width - left - right);
    const y = (value) => top + (to - scale(value)) / (to - from) * (height - top - bottom);
    const short = (value) => Number.isFinite(value) ? String(Number(value.toPrecision(4))) : String(value);

    const found = make("figure");
    const caption = found.appendChild(make("figcaption"));
    caption.append(make("strong", {}, `${kind}${log ? ", logarithmic" : ""}`));
    lines.forEach((line, i) => caption.append(make("span", { class: `key s${i % 2}` }, line.name)));
    const said = lines.map((line) => `${line.name}: ${range(line.data, short)}`).join("; ");
    const svg = draw(found, "svg", {
      viewBox: `0 0 ${width} ${height}`, role: "img", tabindex: "0",
      "aria-label": `${kind} over ${channels} channels; ${said}. Left and right arrow keys read single channels.`,
    });
    for (const tick of ticks(from, to, log)) {
      const at = y(tick);
      draw(svg, "line", { class: "grid", x1: left, x2: width - right, y1: at, y2: at });
      draw(svg, "text", { x: left - 6, y: at + 4, "text-anchor": "end" }, short(tick));
    }
    draw(svg, "text", { x: left, y: height - 6 }, "channel 0");
    if (channels > 1) draw(svg, "text", { x: width - right, y: height - 6, "text-anchor": "end" }, String(channels - 1));
    lines.forEach((line, i) => {
      const points = [...line.data].map((value, channel) => [channel, value]);
      const drawn = points.filter(([, value]) => Number.isFinite(value));
      // Among many channels, which have no order, lines would only hide the points.
      if (channels > 1 && channels <= 128) {
        draw(svg, "path", { class: `s${i % 2}`, d: drawn.map(([c, v], n) => `${n ? "L" : "M"}${x(c).toFixed(1)} ${y(v).toFixed(1)}`).join("") });
      }
      const r = channels > 256 ? 1.2 : channels > 64 ? 1.8 : 2.6;
      for (const [c, v] of drawn) {
        if (i % 2) draw(svg, "rect", { class: "s1", x: (x(c) - r).toFixed(1), y: (y(v) - r).toFixed(1), width: 2 * r, height: 2 * r });
        else draw(svg, "circle", { class: "s0", cx: x(c).toFixed(1), cy: y(v).toFixed(1), r });
      }
      for (const [c, v] of points) {
        if (!Number.isFinite(v)) draw(svg, "line", { class: "bad", x1: x(c), x2: x(c), y1: top, y2: height - bottom });
      }
    });
    const cursor = draw(svg, "line", { class: "cursor", y1: top, y2: height - bottom, visibility: "hidden" });
    const output = found.appendChild(make("output", { "aria-live": "polite" }, said));
    let current = -1;
    const read = (channel) => {
      current = Math.min(Math.max(channel, 0), channels - 1);
      cursor.setAttribute("x1", x(current));
      cursor.setAttribute("x2", x(current));
      cursor.setAttribute("visibility", "visible");
      output.textContent = `channel ${current}: ${lines.map((line) => `${line.name} ${short(line.data[current])}`).join(", ")}`;
    };
    const rest = () => {
      current = -1;
      cursor.setAttribute("visibility", "hidden");
      output.textContent = said;
    };
    svg.addEventListener("pointermove", (event) => {
      const box = svg.getBoundingClientRect();
      const across = ((event.clientX - box.left) / box.width * width - left) / (width - left - right);
      read(Math.round(across * (channels - 1)));
    });
    svg.addEventListener("pointerleave", rest);
    svg.addEventListener("blur", rest);
    svg.addEventListener("keydown", (event) => {
      const steps = { ArrowLeft: current - 1, ArrowRight: current + 1, Home: 0, End: channels - 1 };
      if (!(event.key in steps)) return;
      event.preventDefault();
      read(steps[event.key]);
    });
    return found;
  }

  function range(data, short) {
    const finite = [...data].filter(Number.isFinite).sort((a, b) => a - b);
    const lost = data.length - finite.length;
    const bad = lost ? `, ${lost} not finite` : "";
    if (!finite.length) return `no finite value${bad}`;
    const middle = (finite[(finite.length - 1) >> 1] + finite[finite.length >> 1]) / 2;
    return `${short(finite[0])} to ${short(finite.at(-1))}, median ${short(middle)}${bad}`;
  }

  function ticks(from, to, log) {
    if (log) {
      const found = [];
      const step = Math.max(1, Math.round((to - from) / 5));
      for (let power = Math.ceil(from); power <= to; power += step) found.push(10 ** power);
      return found.length > 1 ? found : [10 ** from, 10 ** to];
    }
    const raw = (to - from) / 6;
    const base = 10 ** Math.floor(Math.log10(raw));
    const step = [1, 2, 5, 10].map((factor) => factor * base).find((one) => one >= raw);
    const found = [];
    for (let n = Math.ceil(from / step); n * step <= to; n++) found.push(n * step);
    return found;
  }
})();
