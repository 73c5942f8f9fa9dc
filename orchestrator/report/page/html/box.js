"use strict";
// A trial for a box of thresholds: a slider for each threshold that moves, and what was measured nearest to where they stand.
(function (report) {
  const { el, svg, number, known } = report;
  const STEPS = 100; // of a slider
  const BAND = 48; // places at which bounds are drawn
  const NEAR = 0.15; // share of the box within which a point belongs to a curve
  const LIMIT = 3; // curves side by side
  const CELLS = 6; // of a surface, each way, and one

  const moving = (box) => box.constraints.filter(({ low, high }) => low !== high);

  /** The measured point nearest to thresholds, in shares of the box; ties go to the first. */
  report.nearestPoint = function (box, thresholds) {
    const apart = (point) => moving(box).reduce((sum, { name, low, high }) => sum + ((point.thresholds[name] - thresholds[name]) / (high - low)) ** 2, 0);
    return box.points.reduce((best, point) => (apart(point) < apart(best) ? point : best));
  };

  /** What is certified of the least KL at thresholds by target: the highest tangent; null where there is none. */
  report.certified = function (box, asked) {
    const tangents = box.points.filter(({ least }) => least).map(({ least, thresholds }) => box.constraints.reduce(
      (sum, { name, target }) => sum + (least.slopes[target] ?? 0) * (asked[target] - thresholds[name]), least.kl));
    return tangents.length ? Math.max(0, ...tangents) : null;
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

    /** Where the slider of a threshold stands, in its own steps. */
    const standing = ({ name, low, high }) => String(Math.round(STEPS * (at[name] - Math.min(low, high)) / Math.abs(high - low)));

    function slider({ name, low, high, kind }, order) {
      const [least, most] = [Math.min(low, high), Math.max(low, high)], id = `cdsweep-box-${place}-${order}`;
      const told = (value) => `${name} ${kind === "kl" ? "≤" : "≥"} ${number(value, 4)}`;
      outputs[name] = el("output", { for: id });
      sliders[name] = el("input", { type: "range", id, min: 0, max: STEPS, step: 1, "data-threshold": name,
        oninput: (event) => { at[name] = least + (most - least) * Number(event.target.value) / STEPS; page.changed(); draw(); } });
      sliders[name].value = standing({ name, low, high });
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
      const drawn = axes.slice(0, LIMIT);
      const pairs = drawn.flatMap((first, each) => drawn.slice(each + 1).map((second) => [first, second]));
      curves.replaceChildren(...[...drawn.map((axis) => curve(axis, point)), ...pairs.map((pair) => surface(...pair))].filter(Boolean));
    }

    function table(point) {
      const bounds = picker && picker.bounds(asking());
      const needed = point.least && point.least.kl > 0 ? `, where at least ${number(point.least.kl)} are needed (${point.least.kind === "proven" ? "exact" : `at ${point.least.kind.replace("%", " %")}`})` : "";
      const there = axes.every(({ name, low, high }) => Math.abs(point.thresholds[name] - at[name]) <= 1e-6 * Math.abs(high - low));
      const between = !there && bounds && known(bounds[1]) ? ` Where the sliders stand, mixtures of what was measured and their tangents put it between ${number(bounds[0])} and ${number(bounds[1])}.` : "";
      return el("div", {},
        el("p", { class: "lead" }, "KL ", el("strong", { class: "kl", text: report.measured(point.kl) }), ` nats, measured at ${axes.map(({ name }) => `${name} ${number(point.thresholds[name], 4)}`).join(", ")}${needed}. `,
          el("span", { class: point.feasible ? "yes" : "no", text: point.feasible ? "Meets the thresholds there." : "Does not meet the thresholds there." }), between),
        el("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": `What was measured of trial ${box.id}` }, el("table", { class: "plain" },
          el("caption", { text: "Threshold, reward with 95 % interval, and price at the measured point" }),
          el("thead", {}, el("tr", {}, ["", "threshold", "measured", "multiplier, nats per unit"].map((name, column) => el(column ? "th" : "td", { scope: column ? "col" : null, class: column ? "right" : null, text: name })))),
          el("tbody", {}, box.constraints.map(({ name, target, kind }) => el("tr", {}, el("th", { scope: "row", text: name }),
            [number(point.thresholds[name], 4), report.measured(kind === "kl" ? point.kl : point.rewards[target]), number(point.multipliers[name])].map((text) => el("td", { class: "right", text }))))))));
    }

    /** Thresholds by target, where the sliders stand but for some. */
    const asking = (others = {}) => Object.fromEntries(box.constraints.map(({ name, target }) => [target, others[name] ?? at[name]]));

    /** KL over two thresholds, the others as they stand: in each cell the cheapest mix of what was measured, and what is certified. */
    function surface(first, second) {
      if (!picker || first.kind === "kl" || second.kind === "kl") return null;
      const width = 420, height = 300, cells = [];
      const value = ({ low, high }, step) => low + (high - low) * step / CELLS;
      for (let row = 0; row <= CELLS; row += 1) for (let column = 0; column <= CELLS; column += 1) {
        const there = { [first.name]: value(first, column), [second.name]: value(second, row) };
        cells.push({ row, column, there, most: picker.bounds(asking(there))[1], least: report.certified(box, asking(there)) });
      }
      const top = Math.max(...cells.map(({ most }) => most).filter(known), 1e-6);
      const half = ({ low, high }) => (high - low) / CELLS / 2;
      const y = report.scale(second.low - half(second), second.high + half(second), height - 44, 26);
      const x = report.scale(first.low - half(first), first.high + half(first), report.margin(y, 4), width - 14);
      const chart = svg("svg", { class: "chart small surface", viewBox: `0 0 ${width} ${height}`, role: "img",
        "aria-label": `KL over the thresholds of ${first.name} and ${second.name}, at most ${number(top)} nats` });
      chart.style.maxWidth = `${1.25 * width}px`;
      chart.append(report.axes(x, y, { xLabel: `threshold of ${first.name}`, yLabel: `threshold of ${second.name}; KL (nats)`, xTicks: 4, yTicks: 4 }));
      const [wide, tall] = [Math.abs(x(value(first, 1)) - x(first.low)), Math.abs(y(value(second, 1)) - y(second.low))];
      const near = (axis) => Math.round(CELLS * (at[axis.name] - axis.low) / (axis.high - axis.low));
      let outline = null; // above all cells
      for (const { row, column, there, most, least } of cells) {
        const [cx, cy] = [x(there[first.name]), y(there[second.name])], here = column === near(first) && row === near(second);
        const said = known(most) ? `${number(most, 2)} nats or less` : "not reached by what was measured";
        chart.append(svg("g", { class: here ? "cell here" : "cell", onclick: () => { for (const axis of [first, second]) { at[axis.name] = there[axis.name]; sliders[axis.name].value = standing(axis); } page.changed(); draw(); } },
          svg("title", { text: `${first.name} ≥ ${number(there[first.name])}, ${second.name} ≥ ${number(there[second.name])}: ${said}${known(least) ? `, at least ${number(least, 2)}` : ""}` }),
          svg("rect", { x: cx - wide / 2, y: cy - tall / 2, width: wide, height: tall, "fill-opacity": known(most) ? (0.06 + 0.5 * most / top).toFixed(3) : 0 }),
          svg("text", { x: cx, y: cy + (known(least) ? -1 : 4), "text-anchor": "middle", text: known(most) ? number(most, 2) : "–" }),
          known(least) && svg("text", { class: "least", x: cx, y: cy + 12, "text-anchor": "middle", text: `≥ ${number(least, 2)}` })));
        if (here) outline = svg("rect", { class: "outline", x: cx - wide / 2, y: cy - tall / 2, width: wide, height: tall });
      }
      if (outline) chart.append(outline);
      return chart;
    }

    /** KL over one threshold, the others as they stand: the cheapest mix of what was measured above, tangents below. */
    function curve({ name, low, high, kind }, point) {
      if (!picker || kind === "kl") return null;
      const width = 420, height = 240, lower = [], upper = [], sure = [];
      for (let step = 0; step <= BAND; step += 1) {
        const value = low + (high - low) * step / BAND;
        const asked = asking({ [name]: value }), [least, most] = picker.bounds(asked);
        lower.push([value, least]);
        sure.push([value, report.certified(box, asked)]);
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
      if (sure.some(([, kl]) => kl > 0)) chart.append(svg("path", { class: "line certified", d: report.path(sure.map(on)) }));
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
      el("p", { class: "hint", text: "Circled: what the figures are of; faint: measured at other thresholds than the other sliders say. The band lies between the cheapest mix of measured points and their tangents; a tangent is as right as the optimum that training found. Dashed: what is certified, which no policy can be below." + (axes.length > 1 ? " Cells over two thresholds have the cheapest mix, and under it what is certified; a click moves the sliders there." : "") }));
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
