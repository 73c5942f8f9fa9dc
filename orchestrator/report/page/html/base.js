"use strict";
// What all parts of the report share: elements, numbers, scales. Text enters the page as text nodes only.
window.cdsweepReport = window.cdsweepReport || {};
(function (report) {
  const SVG = "http://www.w3.org/2000/svg";

  function fill(node, attributes, children) {
    for (const [name, value] of Object.entries(attributes || {})) {
      if (value === null || value === undefined || value === false) continue;
      if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
      else if (name === "text") node.textContent = value;
      else if (name === "checked" || name === "value" || name === "selected") node[name] = value;
      else node.setAttribute(name, value === true ? "" : value);
    }
    for (const child of children.flat(3)) {
      if (child !== null && child !== undefined && child !== false) node.append(child);
    }
    return node;
  }

  /** An HTML element; attributes beginning with "on" are listeners. */
  report.el = (tag, attributes, ...children) => fill(document.createElement(tag), attributes, children);
  /** The same in an SVG. */
  report.svg = (tag, attributes, ...children) => fill(document.createElementNS(SVG, tag), attributes, children);

  const known = (value) => typeof value === "number" && Number.isFinite(value);
  report.known = known;

  /** A number with some significant digits, and a true minus sign. */
  report.number = function (value, digits = 3) {
    if (!known(value)) return "–";
    if (value === 0) return "0";
    const size = Math.abs(value);
    if (size < 1e-4 || size >= 1e7) {
      const [front, power] = value.toExponential(digits - 1).split("e");
      return `${front} × 10${[...power.replace("+", "")].map((sign) => (sign === "-" ? "⁻" : "⁰¹²³⁴⁵⁶⁷⁸⁹"[Number(sign)])).join("")}`.replace(/^-/, "−");
    }
    const text = value.toPrecision(digits);
    return (text.includes("e") ? String(Number(text)) : text).replace(/-/g, "−");
  };

  /** A mean with the half width of its interval, both to the digit that the interval supports. */
  report.measured = function (interval) {
    if (!interval) return "–";
    const [mean, low, high] = interval;
    if (!known(low) || !known(high) || high <= low) return report.number(mean);
    const half = (high - low) / 2;
    const places = Math.min(Math.max(1 - Math.floor(Math.log10(half)), 0), 6);
    return `${mean.toFixed(places)} ± ${half.toFixed(places)}`.replace(/-/g, "−");
  };

  report.seconds = function (value) {
    if (!known(value)) return "–";
    if (value < 100) return `${value.toFixed(value < 10 ? 1 : 0)} s`;
    return value < 6000 ? `${Math.round(value / 60)} min` : `${(value / 3600).toFixed(1)} h`;
  };

  report.count = (number, noun) => `${number} ${noun}${number === 1 ? "" : "s"}`;

  /** Round steps that divide a range into about so many parts. */
  report.step = function (span, parts) {
    const rough = span / Math.max(parts, 1) || 1;
    const power = Math.pow(10, Math.floor(Math.log10(rough)));
    return power * [1, 2, 2.5, 5, 10].find((factor) => factor * power >= rough * 0.999);
  };

  report.ticks = function (low, high, parts) {
    const step = report.step(high - low, parts);
    const found = [];
    for (let at = Math.ceil(low / step - 1e-9); at * step <= high + 1e-9 * step; at += 1) found.push(at * step);
    let places = 0;
    while (places < 8 && Math.abs(step * 10 ** places - Math.round(step * 10 ** places)) > 1e-6) places += 1;
    return { values: found, places };
  };

  report.tick = (value, places) => (Math.abs(value) < 1e-12 ? 0 : value).toFixed(Math.min(places, 8)).replace("-", "−");

  /** Room that the labels of a vertical axis need, pixels. */
  report.margin = function (y, parts) {
    const { values, places } = report.ticks(y.low, y.high, parts);
    return 18 + 7.4 * Math.max(1, ...values.map((value) => report.tick(value, places).length));
  };

  /** A linear scale from a range of values to a range of pixels. */
  report.scale = function (low, high, from, to) {
    const ratio = (to - from) / (high - low || 1);
    const scale = (value) => from + (value - low) * ratio;
    scale.invert = (pixel) => low + (pixel - from) / ratio;
    return Object.assign(scale, { low, high, from, to });
  };

  report.path = function (points) {
    let pen = "M";
    return points.map(([x, y]) => {
      if (!known(x) || !known(y)) { pen = "M"; return ""; }
      const part = `${pen}${x.toFixed(1)},${y.toFixed(1)}`;
      pen = "L";
      return part;
    }).join("");
  };

  /** Frame, grid lines and labels of a chart, as one group that assistive technology skips. */
  report.axes = function (x, y, { xLabel, yLabel, xTicks, yTicks }) {
    const group = report.svg("g", { class: "axes", "aria-hidden": "true" });
    const across = report.ticks(x.low, x.high, xTicks), up = report.ticks(y.low, y.high, yTicks);
    for (const value of up.values) {
      group.append(report.svg("line", { class: "grid", x1: x.from, x2: x.to, y1: y(value), y2: y(value) }),
        report.svg("text", { x: x.from - 8, y: y(value) + 4, "text-anchor": "end", text: report.tick(value, up.places) }));
    }
    for (const value of across.values) {
      group.append(report.svg("text", { x: x(value), y: y.from + 18, "text-anchor": "middle", text: report.tick(value, across.places) }));
    }
    group.append(report.svg("line", { class: "frame", x1: x.from, x2: x.to, y1: y.from, y2: y.from }));
    if (xLabel) group.append(report.svg("text", { class: "label", x: (x.from + x.to) / 2, y: y.from + 38, "text-anchor": "middle", text: xLabel }));
    if (yLabel) group.append(report.svg("text", { class: "label", x: 2, y: y.to - 12, text: yLabel }));
    return group;
  };

  /** Marker of a method: a circle where constrained, a square where weighted, hollow where infeasible. */
  report.marker = function (method, feasible, size, attributes) {
    const classes = `marker ${report.kind(method)} ${feasible ? "feasible" : "infeasible"}`;
    const shapes = {
      constrained: () => report.svg("circle", { r: size }),
      weighted: () => report.svg("rect", { x: -0.9 * size, y: -0.9 * size, width: 1.8 * size, height: 1.8 * size }),
      other: () => report.svg("path", { d: `M0,${-1.25 * size}L${1.15 * size},${0.8 * size}H${-1.15 * size}Z` }),
    };
    return report.svg("g", { class: classes, ...attributes }, shapes[report.kind(method)]());
  };

  report.kind = (method) => (method === "constrained" || method === "weighted" ? method : "other");

  // What a saved chart takes along of the page's style.
  const DRAWN = ["fill", "fill-opacity", "stroke", "stroke-opacity", "stroke-width", "stroke-dasharray", "opacity", "paint-order", "font-size", "font-family", "font-weight", "visibility"];

  /** A button that saves the charts of a place as files for print, each as it is drawn at that moment. */
  report.saver = (place) => report.el("button", { type: "button", class: "quiet save", text: "Save as SVG", onclick: () => {
    for (const chart of place().querySelectorAll("svg.chart")) {
      const name = chart.getAttribute("aria-label").split(/[:;,]/)[0].toLowerCase().replace(/[^a-z0-9]+/g, "-");
      const link = report.el("a", { href: URL.createObjectURL(new Blob([report.standalone(chart)], { type: "image/svg+xml" })), download: `${name}.svg` });
      link.click();
      setTimeout(() => URL.revokeObjectURL(link.href), 60000);
    }
  } });

  /** The text of a chart as an SVG file of its own. */
  report.standalone = function (chart) {
    const copy = chart.cloneNode(true);
    const from = [chart, ...chart.querySelectorAll("*")], to = [copy, ...copy.querySelectorAll("*")];
    from.forEach((node, at) => {
      const style = getComputedStyle(node);
      for (const name of DRAWN) to[at].setAttribute(name, style.getPropertyValue(name));
    });
    const paper = getComputedStyle(chart.closest(".cdsweep-report")).getPropertyValue("--paper").trim();
    copy.prepend(report.svg("rect", { width: "100%", height: "100%", fill: paper || "white" }));
    return new XMLSerializer().serializeToString(copy);
  };

  /** Lines over steps, drawn once; a picture for assistive technology. */
  report.lineChart = function ({ series, guides = [], label, alt, width = 340, height = 190, zero = false, xLabel = "step" }) {
    const xs = series.flatMap((line) => line.x), ys = series.flatMap((line) => line.y).concat(guides.map((guide) => guide.y)).filter(known);
    if (!ys.length) return null;
    let low = Math.min(...ys), high = Math.max(...ys);
    if (zero) { low = Math.min(low, 0); high = Math.max(high, 0); }
    const pad = 0.06 * (high - low || Math.abs(high) || 1);
    const y = report.scale(zero && low === 0 ? 0 : low - pad, high + pad, height - 42, 26);
    const x = report.scale(Math.min(...xs), Math.max(...xs), report.margin(y, 4), width - 10);
    const chart = report.svg("svg", { class: "chart small", viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": alt || label });
    chart.style.maxWidth = `${1.25 * width}px`; // or the labels of a wide chart would shout
    chart.append(report.axes(x, y, { xLabel, yLabel: label, xTicks: 4, yTicks: 4 }));
    for (const guide of guides) {
      chart.append(report.svg("line", { class: `guide ${guide.kind || ""}`, x1: x.from, x2: x.to, y1: y(guide.y), y2: y(guide.y) }));
    }
    for (const line of series) {
      chart.append(report.svg("path", { class: `line ${line.kind || ""}`, d: report.path(line.x.map((at, place) => [x(at), known(line.y[place]) ? y(line.y[place]) : NaN])) }));
    }
    return chart;
  };
})(window.cdsweepReport);
