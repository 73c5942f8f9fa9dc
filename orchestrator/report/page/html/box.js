"use strict";
// A trial for a box of thresholds: a slider for each threshold that moves, and what was measured nearest to where they stand.
(function (report) {
  const { el, svg, number, known } = report;
  const STEPS = 100; // of a slider
  const BAND = 48; // places at which bounds are drawn
  const NEAR = 0.15; // share of the box within which a point belongs to a curve
  const LIMIT = 3; // curves side by side

  const moving = (box) => box.constraints.filter(({ low, high }) => low !== high);

  /** The measured point nearest to thresholds, in shares of the box; ties go to the first. */
  report.nearestPoint = function (box, thresholds) {
    const apart = (point) => moving(box).reduce((sum, { name, low, high }) => sum + ((point.thresholds[name] - thresholds[name]) / (high - low)) ** 2, 0);
    return box.points.reduce((best, point) => (apart(point) < apart(best) ? point : best));
  };

  report.boxPart = function (page) {
    const boxes = page.data.boxes || [];
    if (!boxes.length) return null;
    page.state.boxes ??= {};
    const made = boxes.map((box, place) => one(page, box, place));
    const part = el("section", { id: "box", "aria-labelledby": "box-title" },
      el("h2", { id: "box-title", text: "Every threshold of a box" }),
      el("p", { class: "hint", }, "One trial answers all thresholds between the ends of the sliders. Figures and images are those that were measured nearest to where they stand, at the same noise and prompts for all; ", el("code", { text: "cdsweep pick" }), " measures any other threshold before it is given."),
      made.map(({ node }) => node));
    return { part, title: "Box", draw: () => made.forEach(({ draw }) => draw()) };
  };

  function one(page, box, place) {
    const { state } = page, axes = moving(box), picker = box.pick && report.picker(box.pick);
    const first = box.points.find((point) => point.feasible) || box.points[0];
    const at = (state.boxes[box.id] ??= { ...first.thresholds });
    for (const { name, low, high } of box.constraints) if (!known(at[name]) || at[name] < Math.min(low, high) || at[name] > Math.max(low, high)) at[name] = low;
    const sliders = {}, outputs = {};
    const figures = el("div", { class: "measured", "aria-live": "polite" }), strip = el("div", { class: "strip" }), curves = el("div", { class: "charts wide" });

    function slider({ name, low, high, kind }) {
      const [least, most] = [Math.min(low, high), Math.max(low, high)], id = `cdsweep-box-${place}-${name.replace(/[^\w-]/g, "_")}`;
      const told = (value) => `${name} ${kind === "kl" ? "≤" : "≥"} ${number(value, 4)}`;
      outputs[name] = el("output", { for: id });
      sliders[name] = el("input", { type: "range", id, min: 0, max: STEPS, step: 1, "data-threshold": name,
        oninput: (event) => { at[name] = least + (most - least) * Number(event.target.value) / STEPS; page.changed(); draw(); } });
      sliders[name].value = String(Math.round(STEPS * (at[name] - least) / (most - least)));
      return { told, node: el("div", { class: "slide" }, el("label", { for: id, text: `threshold of ${name}` }), sliders[name], outputs[name],
        el("small", { "aria-hidden": "true" }, el("span", { text: number(least) }), el("span", { text: number(most) }))) };
    }
    const rows = axes.map(slider);

    function draw() {
      const point = report.nearestPoint(box, at);
      axes.forEach(({ name }, each) => {
        outputs[name].textContent = rows[each].told(at[name]);
        sliders[name].setAttribute("aria-valuetext", `${rows[each].told(at[name])}: KL ${number(point.kl[0])} nats nearest to it`);
      });
      figures.replaceChildren(table(point));
      strip.replaceChildren(...pictures(page.data, box, point));
      curves.replaceChildren(...axes.slice(0, LIMIT).map((axis) => curve(axis, point)).filter(Boolean));
    }

    function table(point) {
      const bounds = picker && picker.bounds(Object.fromEntries(box.constraints.map(({ name, target }) => [target, at[name]])));
      const between = bounds && known(bounds[1]) ? `, between ${number(bounds[0])} and ${number(bounds[1])} nats where the sliders stand` : "";
      return el("div", {},
        el("p", { class: "lead" }, "KL ", el("strong", { class: "kl", text: report.measured(point.kl) }), ` nats, measured at ${axes.map(({ name }) => `${name} ${number(point.thresholds[name], 4)}`).join(", ")}${between}. `,
          el("span", { class: point.feasible ? "yes" : "no", text: point.feasible ? "Meets these thresholds." : "Does not meet these thresholds." })),
        el("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": `What was measured of trial ${box.id}` }, el("table", { class: "plain" },
          el("caption", { text: "Threshold, reward with 95 % interval, and price at the measured point" }),
          el("thead", {}, el("tr", {}, ["", "threshold", "measured", "multiplier, nats per unit"].map((name, column) => el(column ? "th" : "td", { scope: column ? "col" : null, class: column ? "right" : null, text: name })))),
          el("tbody", {}, box.constraints.map(({ name, target, kind }) => el("tr", {}, el("th", { scope: "row", text: name }),
            [number(point.thresholds[name], 4), report.measured(kind === "kl" ? point.kl : point.rewards[target]), number(point.multipliers[name])].map((text) => el("td", { class: "right", text }))))))));
    }

    /** KL over one threshold, the others as they stand: the cheapest mix of what was measured above, tangents below. */
    function curve({ name, low, high, kind }, point) {
      if (!picker || kind === "kl") return null;
      const width = 420, height = 240, lower = [], upper = [];
      for (let step = 0; step <= BAND; step += 1) {
        const value = low + (high - low) * step / BAND;
        const asked = Object.fromEntries(box.constraints.map(({ name: other, target }) => [target, other === name ? value : at[other]]));
        const [least, most] = picker.bounds(asked);
        lower.push([value, least]);
        if (known(most)) upper.push([value, most]);
      }
      const tops = [...upper.map(([, kl]) => kl), ...box.points.map(({ kl }) => kl[2] ?? kl[0])].filter(known);
      const y = report.scale(0, 1.06 * Math.max(...tops, 1e-6), height - 44, 26), x = report.scale(low, high, report.margin(y, 4), width - 14);
      const on = ([value, kl]) => [x(value), y(Math.max(kl, 0))];
      const chart = svg("svg", { class: "chart small", viewBox: `0 0 ${width} ${height}`, role: "img",
        "aria-label": `KL over the threshold of ${name}: ${number(box.points[0].kl[0])} nats at the loosest, ${number(box.points[Math.min(1, box.points.length - 1)].kl[0])} at the tightest thresholds` });
      chart.style.maxWidth = `${1.25 * width}px`;
      chart.append(report.axes(x, y, { xLabel: `threshold of ${name}`, yLabel: "KL (nats)", xTicks: 4, yTicks: 4 }));
      const reached = lower.slice(0, upper.length);
      if (upper.length) chart.append(svg("path", { class: "band bounds", d: `${report.path([...upper, ...reached.slice().reverse()].map(on))}Z` }), svg("path", { class: "line upper", d: report.path(upper.map(on)) }));
      chart.append(svg("path", { class: "line lower", d: report.path(lower.map(on)) }));
      chart.append(svg("line", { class: "threshold here", x1: x(at[name]), x2: x(at[name]), y1: y.from, y2: y.to }));
      for (const each of box.points) {
        const [cx, cy] = on([each.thresholds[name], each.kl[0]]);
        const far = axes.some((axis) => axis.name !== name && Math.abs(each.thresholds[axis.name] - at[axis.name]) > NEAR * Math.abs(axis.high - axis.low));
        const mark = report.marker("frontier", each.feasible, each === point ? 6 : 3.6, { transform: `translate(${cx.toFixed(1)},${cy.toFixed(1)})`, opacity: far && each !== point ? 0.3 : null });
        if (known(each.kl[1]) && !far) chart.append(svg("line", { class: "interval other", x1: cx, x2: cx, y1: y(Math.max(each.kl[1], 0)), y2: y(each.kl[2]) }));
        if (each === point) mark.prepend(svg("circle", { class: "ring", r: 10 }));
        chart.append(mark);
      }
      return chart;
    }

    const node = el("div", { class: "box", role: "group", "aria-label": `Trial ${box.id}` },
      boxes_heading(box), el("div", { class: "sliders" }, rows.map(({ node: row }) => row)), figures, strip, curves,
      axes.length > LIMIT && el("p", { class: "hint", text: `The first ${LIMIT} of ${axes.length} thresholds are drawn.` }),
      el("p", { class: "hint", text: "Circled: what the figures are of; faint: measured at other thresholds than the other sliders say. The band lies between the cheapest mix of measured points and their tangents; a tangent is as right as the optimum that training found." }));
    return { node, draw };
  }

  const boxes_heading = (box) => el("h3", {}, report.key("frontier"), ` ${box.id} `, el("small", { text: box.label }));

  function pictures(data, box, point) {
    if (!point.picture) return [];
    const shot = (title, picture, alt) => el("figure", { class: "pictures" }, el("figcaption", { text: title }), el("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": title },
      el("img", { src: picture.source, width: picture.width, height: picture.height, alt })));
    return [
      data.images?.pretrained && shot("pretrained", data.images.pretrained, "Images of the pretrained model at the same seeds"),
      shot("at these thresholds, same seeds and prompts", point.picture, `Images of trial ${box.id} at ${Object.entries(point.thresholds).map(([name, value]) => `${name} ${number(value)}`).join(", ")}`),
    ].filter(Boolean);
  }
})(window.cdsweepReport);
