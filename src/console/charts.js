// Charts, drawn by Chart.js, each with the same figures in a table: for screen readers at once, for
// everybody at the press of a button.

import { el, table } from "./dom.js";

// The colours are those of style.css: told apart in both themes, and with any eyesight.
const COLOURS = 7;
// Beside the colour, what tells lines apart.
const DASHES = [[], [6, 4], [2, 3], [10, 3, 2, 3]];
const POINTS = ["circle", "rect", "triangle", "rectRot"];

const NAME_MAX = 30;

const live = new Set();

// Takes down what was drawn, before another view is shown.
export function clear() {
  for (const one of live) one.destroy();
  live.clear();
}

// Draws again in the colours of the theme that is on now.
export function restyle() {
  for (const one of live) {
    style(one);
    one.update("none");
  }
}

// A figure. Series are {name, values, texts}: numbers for the drawing (null: none), and what is
// written. `unit` names the axis.
export function chart({ id, title, kind, unit, stacked = false, labels, series }) {
  const canvas = el("canvas", {
    role: "img",
    "aria-label": `${title}. The figures are in the table that follows.`,
  });
  const columns = [{ name: "Day (UTC)" }, ...series.map(({ name }) => ({ name, number: true }))];
  const rows = labels.map((label, at) => [label, ...series.map(({ texts }) => texts[at])]);
  const figures = el("div", { class: "visually-hidden" }, table(title, columns, rows));
  const scroll = figures.firstChild;
  // What cannot be seen is not to be stopped at.
  scroll.removeAttribute("tabindex");
  const toggle = el("button", {
    type: "button",
    class: "quiet",
    "aria-expanded": "false",
    click: () => {
      const isShown = !figures.classList.toggle("visually-hidden");
      toggle.setAttribute("aria-expanded", String(isShown));
      toggle.textContent = isShown ? "Hide the table" : "Show the table";
      if (isShown) scroll.setAttribute("tabindex", "0");
      else scroll.removeAttribute("tabindex");
    },
  }, "Show the table");
  const figure = el("figure", { id },
    el("figcaption", {}, el("span", {}, title), toggle),
    el("div", { class: "plot" }, canvas), figures);
  // Its size is known once it is in the page.
  requestAnimationFrame(() => {
    if (canvas.isConnected) live.add(draw(canvas, { kind, unit, stacked, labels, series }));
  });
  return figure;
}

function draw(canvas, { kind, unit, stacked, labels, series }) {
  const config = {
    type: kind,
    data: {
      labels,
      datasets: series.map(({ name, values, texts }, at) => ({
        label: short(name),
        data: values,
        texts,
        borderDash: kind === "line" ? DASHES[at % DASHES.length] : [],
        pointStyle: POINTS[at % POINTS.length],
        pointRadius: 4,
        borderWidth: kind === "line" ? 2 : 1,
        maxBarThickness: 40,
        tension: 0,
      })),
    },
    options: {
      // Nothing moves, for those who do not want it and for those who wait.
      animation: false,
      maintainAspectRatio: false,
      interaction: { mode: "index", intersect: false },
      scales: {
        x: {
          stacked,
          offset: true,
          ticks: { maxRotation: 0, autoSkipPadding: 12 },
          grid: { display: false },
        },
        y: { stacked, beginAtZero: true, ticks: {}, title: { display: true, text: unit } },
      },
      plugins: {
        legend: {
          position: "bottom",
          labels: { usePointStyle: kind === "line", boxWidth: 14, boxHeight: 8 },
        },
        tooltip: {
          filter: ({ raw }) => raw !== null && (raw !== 0 || !stacked),
          callbacks: {
            label: ({ dataset, dataIndex }) => `${dataset.label}: ${dataset.texts[dataIndex]}`,
          },
        },
      },
    },
  };
  style(config);
  return new window.Chart(canvas, config);
}

// A name as it fits under a narrow chart; the table has the whole.
const short = (name) => (name.length > NAME_MAX ? `${name.slice(0, NAME_MAX - 1)}…` : name);

// Puts the theme's colours into a chart, or into what one is made of.
function style({ data, options: { scales, plugins } }) {
  const ink = colour("--ink-quiet");
  for (const scale of Object.values(scales)) {
    scale.ticks.color = ink;
    scale.border = { color: ink };
  }
  scales.y.title.color = ink;
  scales.y.grid = { color: colour("--line") };
  plugins.legend.labels.color = colour("--ink");
  data.datasets.forEach((set, at) => {
    const own = colour(`--series-${(at % COLOURS) + 1}`);
    set.backgroundColor = own;
    // A gap between the parts of a bar.
    set.borderColor = set.borderWidth === 1 ? colour("--surface") : own;
  });
}

// What a variable of the style sheet comes to in the theme that is on.
function colour(name) {
  const probe = el("span", { class: `colour${name}` });
  document.body.append(probe);
  const { color } = getComputedStyle(probe);
  probe.remove();
  return color;
}
