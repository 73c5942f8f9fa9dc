"use strict";
// The interactive frontier: points, lines, thresholds that can be dragged, and what `cdsweep pick` would take.
(function (report) {
  const { el, svg, number, known } = report;
  const NEAR = 28; // pixels within which the pointer means a point
  const BAND = 56; // places at which bounds are drawn
  const MANY = 300; // trials above which intervals only blur

  /** What can be an axis: `{key, label, of(trial) -> [mean, low, high], reward?, kl?}`. */
  report.quantities = function (data) {
    const composed = data.models.length > 0;
    const found = data.rewards.map(({ name }) => ({ key: `reward:${name}`, label: `${name} (reward units)`, short: name, reward: name, of: (trial) => trial.rewards?.[name] }));
    found.push({ key: "kl", label: composed ? "largest KL to a model (nats)" : "KL to the pretrained model (nats)", short: "KL", kl: true, of: (trial) => trial.kl });
    for (const name of data.models) found.push({ key: `kls:${name}`, label: `KL to ${name} (nats)`, short: `KL to ${name}`, of: (trial) => trial.kls?.[name] });
    const kept = new Set(data.trials.flatMap((trial) => Object.keys(trial.retention || {})));
    for (const name of kept) found.push({ key: `retention:${name}`, label: `share of ${name} kept`, short: `${name} kept`, of: (trial) => trial.retention?.[name] });
    return found;
  };

  report.firstAxes = function (data) {
    if (data.models.length) return data.models.length > 1 ? [`kls:${data.models[0]}`, `kls:${data.models[1]}`] : [`kls:${data.models[0]}`, "kl"];
    const first = data.rewards.find((reward) => reward.sought) || data.rewards[0];
    return first ? [`reward:${first.name}`, "kl"] : ["kl", "kl"];
  };

  const seedsOf = (data) => [...new Set(data.trials.map((trial) => trial.seed))].sort((a, b) => a - b);
  const methodsOf = (data) => data.methods.map(({ method }) => method).filter((method) => data.trials.some((trial) => trial.method === method));

  /**
   * Draw the section; returns `{draw}`, to be called when what it shows has changed.
   * @param {object} page the mounted report: data, state, picker, changed(), choose(id)
   */
  report.frontierPart = function (page) {
    const { data, state } = page;
    const quantities = report.quantities(data);
    const byKey = Object.fromEntries(quantities.map((quantity) => [quantity.key, quantity]));
    if (!byKey[state.x] || !byKey[state.y]) [state.x, state.y] = report.firstAxes(data);
    const figure = el("div", { class: "plot" });
    const tooltip = el("div", { class: "tooltip", role: "tooltip", id: "cdsweep-tip", hidden: true });
    const legend = el("ul", { class: "legend", "aria-label": "Legend" });
    const outcome = el("div", { class: "outcome", "aria-live": "polite", id: "cdsweep-picked" });
    const inputs = {}; // of limits, by reward and `kl`
    let points = [], focused = null;

    const select = (key, label) => el("label", {}, `${label} `, el("select", {
      id: `cdsweep-axis-${key}`,
      onchange: (event) => { state[key] = event.target.value; page.changed(); draw(); },
    }, quantities.map((quantity) => el("option", { value: quantity.key, selected: state[key] === quantity.key, text: quantity.label }))));
    const box = (label, on, turn, id) => el("label", { class: "check" }, el("input", {
      type: "checkbox", id, checked: on, onchange: (event) => { turn(event.target.checked); page.changed(); page.filtered(); },
    }), ` ${label}`);
    const hidden = (list, item) => (on) => { list.delete(item); if (!on) list.add(item); };
    const layers = layersOf(data);

    const controls = el("div", { class: "controls" },
      el("div", { class: "group" }, select("x", "Across"), select("y", "Up"),
        el("button", { type: "button", class: "quiet", text: "Swap axes", onclick: () => { [state.x, state.y] = [state.y, state.x]; page.changed(); page.redraw("frontier"); } }),
        report.saver(() => figure)),
      el("fieldset", {}, el("legend", { text: "Methods" }), methodsOf(data).map((name) => box(name, !state.hiddenMethods.has(name), hidden(state.hiddenMethods, name)))),
      seedsOf(data).length > 1 && seedsOf(data).length <= 12 && el("fieldset", {}, el("legend", { text: "Seeds" }),
        seedsOf(data).map((seed) => box(String(seed), !state.hiddenSeeds.has(seed), hidden(state.hiddenSeeds, seed)))),
      layers.length > 0 && el("fieldset", {}, el("legend", { text: "Show" }),
        layers.map(({ key, label }) => box(label, !state.hiddenLayers.has(key), hidden(state.hiddenLayers, key)))));

    const part = el("section", { id: "frontier", "aria-labelledby": "frontier-title" },
      el("h2", { id: "frontier-title", text: "The frontier" }),
      el("p", { class: "hint", text: page.picker
        ? "Point at a trial to see it, click it (or move with the arrow keys and press Enter) for its page. Drag a dashed line, or change a number, to see what to take for other thresholds."
        : "Point at a trial to see it, click it (or move with the arrow keys and press Enter) for its page." }),
      controls,
      el("div", { class: page.picker ? "split" : null }, el("div", { class: "stage" }, figure, tooltip, legend), page.picker && panel()));

    // Points ------------------------------------------------------------------------------------

    function visible(trial) {
      return !state.hiddenMethods.has(trial.method) && !state.hiddenSeeds.has(trial.seed);
    }

    function ranges(shownTrials, x, y) {
      const values = (quantity) => {
        const ends = shownTrials.length <= MANY && !state.hiddenLayers.has("intervals");
        const found = shownTrials.flatMap((trial) => (ends ? quantity.of(trial).filter(known) : [quantity.of(trial)[0]]));
        if (quantity.reward) {
          const reward = data.rewards.find(({ name }) => name === quantity.reward);
          if (known(reward.held_out_mean)) found.push(reward.held_out_mean);
          if (page.picker && known(state.thresholds[quantity.reward])) found.push(state.thresholds[quantity.reward]);
        }
        if (quantity.kl && page.picker && known(state.budget)) found.push(state.budget);
        let low = Math.min(...found), high = Math.max(...found);
        if (!found.length) [low, high] = [0, 1];
        const pad = 0.05 * (high - low || Math.abs(high) || 1);
        const positive = quantity.kl || quantity.key.startsWith("kls:");
        return [positive ? 0 : low - pad, high + (positive ? 0.08 * high || 1 : pad)];
      };
      return [values(x), values(y)];
    }

    function draw() {
      const x = byKey[state.x], y = byKey[state.y];
      const shownTrials = data.trials.filter((trial) => visible(trial) && x.of(trial) && y.of(trial));
      const width = Math.max(figure.clientWidth || 640, 280), height = Math.round(Math.min(Math.max(0.66 * width, 330), 560));
      const [across, up] = ranges(shownTrials, x, y);
      const top = report.scale(...up, height - 52, 34), right = report.scale(...across, report.margin(top, 6), width - 16);
      const narrow = width < 480;
      const chart = svg("svg", { class: "chart", viewBox: `0 0 ${width} ${height}`, width, height, role: "group",
        "aria-label": `${y.label} against ${x.label}: ${report.count(shownTrials.length, "trial")}` });
      chart.append(svg("defs", {}, svg("clipPath", { id: "cdsweep-clip" }, svg("rect", { x: right.from, y: top.to - 8, width: right.to - right.from + 8, height: top.from - top.to + 8 }))));
      chart.append(report.axes(right, top, { xLabel: x.label, yLabel: y.label, xTicks: narrow ? 4 : 7, yTicks: 6 }));
      const under = svg("g", { class: "layers", "clip-path": "url(#cdsweep-clip)", "aria-hidden": "true" });
      drawGuides(under, x, y, right, top);
      drawLines(under, x, y, right, top);
      chart.append(under);
      const picked = page.picker ? page.picked() : null;
      const members = new Set((picked?.mixture || []).map((member) => member.trial_id));
      if (page.picker) drawHandles(chart, x, y, right, top); // below the points, or a line would take their clicks
      drawPoints(chart, shownTrials, x, y, right, top, members);
      listen(chart);
      figure.replaceChildren(chart);
      showLegend(shownTrials, x, y);
      if (page.picker) showOutcome(picked);
    }

    function drawPoints(chart, shownTrials, x, y, right, top, members) {
      const size = shownTrials.length > MANY ? 3.4 : 5.5;
      const bars = !state.hiddenLayers.has("intervals") && shownTrials.length <= MANY;
      const group = svg("g", { class: "points" }), intervals = svg("g", { class: "intervals", "clip-path": "url(#cdsweep-clip)", "aria-hidden": "true" });
      points = shownTrials.map((trial) => ({ trial, at: [right(x.of(trial)[0]), top(y.of(trial)[0])] }));
      points.sort((a, b) => a.at[0] - b.at[0] || a.at[1] - b.at[1]);
      const tab = points.find((point) => point.trial.id === (focused || state.selected)) || points[0];
      // Hollow ones first, so that feasible trials are never covered.
      for (const point of [...points].sort((a, b) => rank(a.trial) - rank(b.trial))) {
        const { trial, at } = point;
        if (bars) {
          const [, left, far] = x.of(trial), [, low, high] = y.of(trial), kind = `interval ${report.kind(trial.method)}`;
          if (known(left) && known(far)) intervals.append(svg("line", { class: kind, x1: right(left), x2: right(far), y1: at[1], y2: at[1] }));
          if (known(low) && known(high)) intervals.append(svg("line", { class: kind, x1: at[0], x2: at[0], y1: top(low), y2: top(high) }));
        }
        point.node = report.marker(trial.method, trial.feasible, size, {
          transform: `translate(${at[0].toFixed(1)},${at[1].toFixed(1)})`, role: "button", tabindex: point === tab ? "0" : "-1",
          "data-trial": trial.id, "aria-label": spoken(trial, x, y, members),
        });
        if (members.has(trial.id)) point.node.prepend(svg("circle", { class: "ring", r: size + 5 }));
        if (trial.id === state.selected) point.node.prepend(svg("circle", { class: "chosen", r: size + 9 }));
        group.append(point.node);
      }
      const start = startOf(x, y);
      if (start) {
        const at = `translate(${right(start[0]).toFixed(1)},${top(start[1]).toFixed(1)})`;
        group.prepend(svg("g", { class: "marker pretrained", transform: at, role: "img", "aria-label": "the pretrained model" },
          members.has("pretrained") && svg("circle", { class: "ring", r: size + 6 }), svg("path", { d: star(7) })));
      }
      chart.append(intervals, group);
    }

    function startOf(x, y) {
      const of = (quantity) => (quantity.kl ? 0 : data.rewards.find(({ name }) => name === quantity.reward)?.held_out_mean);
      if (data.models.length) return null;
      const found = [of(x), of(y)];
      return found.every(known) ? found : null;
    }

    const rank = (trial) => (trial.id === state.selected ? 3 : 0) + (trial.feasible ? 2 : 0) + (trial.method === "constrained" ? 1 : 0);

    function spoken(trial, x, y, members) {
      const parts = [`${trial.label}, trial ${trial.id}`, `${x.short} ${number(x.of(trial)[0])}`, `${y.short} ${number(y.of(trial)[0])}`,
        trial.feasible ? "meets its thresholds" : "does not meet its thresholds"];
      if (members.has(trial.id)) parts.push("picked");
      return parts.join(", ");
    }

    // Lines -------------------------------------------------------------------------------------

    function drawGuides(under, x, y, right, top) {
      for (const [quantity, vertical] of [[x, true], [y, false]]) {
        const values = guides(data, quantity);
        for (const value of values) {
          under.append(vertical
            ? svg("line", { class: "threshold", x1: right(value), x2: right(value), y1: top.from, y2: top.to })
            : svg("line", { class: "threshold", x1: right.from, x2: right.to, y1: top(value), y2: top(value) }));
        }
      }
    }

    function drawLines(under, x, y, right, top) {
      const reward = x.reward && y.kl ? x.reward : y.reward && x.kl ? y.reward : null;
      if (!reward) return;
      const place = (value, kl) => (x.kl ? [right(kl), top(value)] : [right(value), top(kl)]);
      const on = (layer) => !state.hiddenLayers.has(layer);
      if (on("bounds") && page.picker && data.pick.ids.length > 1) {
        const scale = x.kl ? top : right, from = data.pick.rewards_measured[0][data.pick.rewards.indexOf(reward)];
        const lower = [], upper = [];
        for (let at = 0; at <= BAND; at += 1) {
          const value = from + (scale.high - from) * at / BAND;
          const [low, high] = page.picker.bounds({ ...state.thresholds, [reward]: value });
          lower.push([value, low]);
          if (high !== null) upper.push([value, high]);
        }
        const reached = lower.slice(0, upper.length);
        if (upper.length) under.append(
          svg("path", { class: "band bounds", d: `${report.path([...upper, ...reached.reverse()].map(([value, kl]) => place(value, kl)))}Z` }),
          svg("path", { class: "line upper", d: report.path(upper.map(([value, kl]) => place(value, kl))) }));
        under.append(svg("path", { class: "line lower", d: report.path(lower.map(([value, kl]) => place(value, kl))) }));
      }
      const mine = (line) => line.reward === reward;
      if (on("predicted")) {
        for (const { points: found } of data.predicted.filter(mine)) {
          if (found.length > 2) { // the chord of two points says nothing of a convex curve
            const ends = [...found.map((point) => [point[0], point[3]]), ...found.map((point) => [point[0], point[2]]).reverse()];
            under.append(svg("path", { class: "band predicted", d: `${report.path(ends.map(([value, kl]) => place(value, kl)))}Z` }),
              svg("path", { class: "line predicted", d: report.path(found.map((point) => place(point[0], point[1]))) }));
          }
          for (const point of found) {
            const [cx, cy] = place(point[0], point[1]), [x1, y1] = place(point[0], point[2]), [x2, y2] = place(point[0], point[3]);
            under.append(svg("line", { class: "interval predicted", x1, y1, x2, y2 }),
              svg("path", { class: "dot predicted", d: `M${cx},${cy - 4}l4,4l-4,4l-4,-4Z` }));
          }
        }
      }
      if (on("exact")) {
        for (const line of data.exact.filter(mine)) {
          under.append(svg("path", { class: "line exact", d: report.path(line.points.map(([value, kl]) => place(value, kl))) }));
          const held = Object.entries(line.held).map(([name, bound]) => `${name} ≥ ${number(bound)}`).join(", ");
          if (held && line.points.length && !x.kl && right.to - right.from > 420) {
            const [px, py] = place(...line.points[0]);
            if (py > top.to) under.append(svg("text", { class: "note", x: px + 4, y: py - 4, text: held }));
          }
        }
      }
      if (on("attained")) {
        for (const line of data.attained.filter((each) => mine(each) && !state.hiddenMethods.has(each.method))) {
          const steps = [];
          line.points.forEach(([value, kl], at) => {
            if (at > 0) steps.push([line.points[at - 1][0], kl]);
            steps.push([value, kl]);
          });
          under.append(svg("path", { class: `line attained ${report.kind(line.method)} ${line.level === line.of ? "all" : line.level === 1 ? "one" : "half"}`, d: report.path(steps.map(([value, kl]) => place(value, kl))) }));
        }
      }
    }

    // Thresholds --------------------------------------------------------------------------------

    function drawHandles(chart, x, y, right, top) {
      for (const [quantity, scale, vertical] of [[x, right, true], [y, top, false]]) {
        const name = quantity.reward, budget = quantity.kl;
        if (!name && !budget) continue;
        const value = budget ? state.budget : state.thresholds[name];
        if (!known(value)) continue;
        const at = scale(value), step = fine(scale);
        if (!budget) {
          chart.prepend(vertical
            ? svg("rect", { class: "veil", x: right.from, y: top.to, width: Math.max(at - right.from, 0), height: top.from - top.to })
            : svg("rect", { class: "veil", x: right.from, y: at, width: right.to - right.from, height: Math.max(top.from - at, 0) }));
        } else {
          chart.prepend(vertical
            ? svg("rect", { class: "veil", x: at, y: top.to, width: Math.max(right.to - at, 0), height: top.from - top.to })
            : svg("rect", { class: "veil", x: right.from, y: top.to, width: right.to - right.from, height: Math.max(at - top.to, 0) }));
        }
        const label = budget ? "KL budget, nats" : `threshold of ${name}`;
        const handle = svg("g", { class: `handle ${vertical ? "vertical" : "horizontal"}`, role: "slider", tabindex: "0", "aria-label": label,
          "aria-valuemin": scale.low, "aria-valuemax": scale.high, "aria-valuenow": value, "aria-valuetext": number(value, 4),
          "aria-orientation": vertical ? "horizontal" : "vertical", "data-handle": budget ? "kl" : name },
        vertical
          ? [svg("line", { class: "hit", x1: at, x2: at, y1: top.from, y2: top.to - 6 }), svg("line", { x1: at, x2: at, y1: top.from, y2: top.to - 6 }),
            svg("path", { class: "grip", d: `M${at - 7},${top.to - 16}h14v8l-7,7l-7,-7Z` })]
          : [svg("line", { class: "hit", y1: at, y2: at, x1: right.from, x2: right.to + 6 }), svg("line", { y1: at, y2: at, x1: right.from, x2: right.to + 6 }),
            svg("path", { class: "grip", d: `M${right.to + 14},${at - 7}v14h-8l-7,-7l7,-7Z` })]);
        handle.addEventListener("keydown", (event) => {
          const far = { PageUp: 10, PageDown: -10 }[event.key], near = { ArrowUp: 1, ArrowRight: 1, ArrowDown: -1, ArrowLeft: -1 }[event.key];
          if (!far && !near) return;
          event.preventDefault();
          event.stopPropagation();
          setLimit(budget ? "kl" : name, rounded(value + (far || near) * step, step));
          figure.querySelector(`[data-handle="${CSS.escape(budget ? "kl" : name)}"]`)?.focus();
        });
        handle.addEventListener("pointerdown", (event) => {
          event.preventDefault();
          hideTip();
          const bounds = figure.getBoundingClientRect();
          const move = (moved) => setLimit(budget ? "kl" : name,
            rounded(Math.min(Math.max(scale.invert(vertical ? moved.clientX - bounds.left : moved.clientY - bounds.top), scale.low), scale.high), step), scale);
          const end = () => { window.removeEventListener("pointermove", move); window.removeEventListener("pointerup", end); window.removeEventListener("pointercancel", end); };
          window.addEventListener("pointermove", move);
          window.addEventListener("pointerup", end);
          window.addEventListener("pointercancel", end);
        });
        chart.append(handle);
      }
    }

    const fine = (scale) => report.step(Math.abs(scale.high - scale.low), 200);
    const rounded = (value, step) => Number((Math.round(value / step) * step).toPrecision(9));

    function setLimit(name, value) {
      if (name === "kl") state.budget = known(value) ? Math.max(value, 0) : null;
      else if (known(value)) state.thresholds[name] = value;
      else delete state.thresholds[name];
      page.changed();
      draw();
      syncInputs(name);
    }

    function syncInputs(skip) {
      for (const [name, input] of Object.entries(inputs)) {
        const value = name === "kl" ? state.budget : state.thresholds[name];
        if (document.activeElement !== input || name !== skip) input.value = known(value) ? String(value) : "";
      }
    }

    function panel() {
      const limit = (name, label, hint) => {
        const value = name === "kl" ? state.budget : state.thresholds[name];
        inputs[name] = el("input", { type: "number", step: "any", id: `cdsweep-limit-${name}`, value: known(value) ? String(value) : "", placeholder: "any", inputmode: "decimal",
          "aria-describedby": hint ? `cdsweep-hint-${name}` : null,
          oninput: (event) => setLimit(name, event.target.value.trim() === "" ? NaN : Number(event.target.value)) });
        return el("div", { class: "limit" }, el("label", { for: `cdsweep-limit-${name}`, text: label }), inputs[name],
          hint && el("small", { id: `cdsweep-hint-${name}`, text: hint }));
      };
      const kind = (value, label) => el("label", { class: "check" }, el("input", { type: "radio", name: "cdsweep-mix", value: String(value), checked: state.mix === value,
        onchange: () => { state.mix = value; page.changed(); draw(); } }), ` ${label}`);
      return el("div", { class: "panel", role: "region", "aria-label": "What to take" },
        el("h3", { text: "What to take" }),
        data.rewards.map(({ name, held_out_mean: mean, std }) => limit(name, `${name} ≥`, known(mean) ? `pretrained ${number(mean)}, σ ${number(std)}` : null)),
        limit("kl", "KL ≤", `nats; improves ${data.pick.joined ? "the rewards together" : data.pick.sought[0]}`),
        el("div", { class: "kinds", role: "radiogroup", "aria-label": "Mixture or single trial" }, kind(true, "mixture of trials"), kind(false, "single trial")),
        data.boxes?.length > 0 && el("small", { text: "Of finished trials as they stand; what one for a box of thresholds answers in between: its sliders, or cdsweep pick." }),
        outcome);
    }

    function showOutcome(picked) {
      if (picked.refused) {
        outcome.replaceChildren(el("p", { class: "refused", text: picked.refused }));
        return;
      }
      const command = report.pickCommand(page);
      outcome.replaceChildren(
        el("ul", { class: "members" }, picked.mixture.map(({ trial_id: id, probability }) => el("li", {},
          el("span", { class: "share", text: `${(100 * probability).toFixed(probability > 0.9995 ? 0 : 1)} %` }), " ",
          id === "pretrained" ? el("span", { text: "the pretrained model" }) : el("a", { href: `#trial-${id}`, "data-trial": id, text: id, onclick: (event) => { event.preventDefault(); page.choose(id); } }),
          " ", el("small", { text: page.byId[id]?.label || "" })))),
        el("dl", { class: "figures" },
          el("div", {}, el("dt", { text: "KL" }), el("dd", { text: `${number(picked.kl)} nats, at most ${number(picked.kl_bound)}` })),
          Object.entries(picked.rewards).map(([name, value]) => el("div", {}, el("dt", { text: name }), el("dd", { text: `${number(value)}, at least ${number(picked.rewards_bound[name])}` }))),
          el("div", {}, el("dt", { text: "least KL by the trials' multipliers, an estimate" }), el("dd", { text: `${number(picked.tangent)} nats` }))),
        el("pre", { class: "command", tabindex: "0", "aria-label": "The same on the command line" }, el("code", { text: command })));
    }

    // Pointer and keyboard ----------------------------------------------------------------------

    function listen(chart) {
      const nearest = (event) => {
        const own = event.target.closest?.("[data-trial]");
        if (own) return points.find((point) => point.node === own);
        const bounds = figure.getBoundingClientRect();
        const x = event.clientX - bounds.left, y = event.clientY - bounds.top;
        let best = null, least = NEAR;
        for (const point of points) {
          const away = Math.hypot(point.at[0] - x, point.at[1] - y);
          if (away < least) { least = away; best = point; }
        }
        return best;
      };
      chart.addEventListener("pointermove", (event) => {
        if (event.buttons) return;
        const point = nearest(event);
        if (point) showTip(point); else hideTip();
      });
      chart.addEventListener("pointerleave", hideTip);
      chart.addEventListener("click", (event) => {
        if (event.target.closest(".handle")) return;
        const point = nearest(event);
        if (point) page.choose(point.trial.id);
      });
      chart.addEventListener("focusin", (event) => {
        const point = points.find((each) => each.node === event.target);
        if (point) { focused = point.trial.id; showTip(point); }
      });
      chart.addEventListener("focusout", hideTip);
      chart.addEventListener("keydown", (event) => {
        if (event.key === "Escape") { hideTip(); return; }
        const at = points.findIndex((point) => point.node === document.activeElement);
        if (at < 0) return;
        if (event.key === "Enter" || event.key === " ") { event.preventDefault(); page.choose(points[at].trial.id); return; }
        const to = { ArrowRight: at + 1, ArrowUp: at + 1, ArrowLeft: at - 1, ArrowDown: at - 1, Home: 0, End: points.length - 1 }[event.key];
        if (to === undefined || !points[to]) return;
        event.preventDefault();
        points[at].node.setAttribute("tabindex", "-1");
        points[to].node.setAttribute("tabindex", "0");
        points[to].node.focus();
      });
    }

    function showTip({ trial, at, node }) {
      figure.querySelector(".hovered")?.classList.remove("hovered");
      node.classList.add("hovered");
      const picture = data.images?.trials?.[trial.id];
      tooltip.replaceChildren(
        el("strong", { text: trial.label }), el("span", { class: "id", text: trial.id }),
        el("table", {}, el("tbody", {},
          tipRow("KL", report.measured(trial.kl), trial.kl_least !== undefined ? `least ${number(trial.kl_least)}` : ""),
          Object.entries(trial.rewards || {}).map(([name, interval]) => tipRow(name, report.measured(interval),
            known(trial.thresholds?.[name]) && trial.method !== "weighted" ? `≥ ${number(trial.thresholds[name])}` : "",
            known(trial.multipliers?.[name]) ? `λ ${number(trial.multipliers[name])}` : known(trial.weights?.[name]) ? `w ${number(trial.weights[name])}` : "")),
          Object.entries(trial.kls || {}).map(([name, interval]) => tipRow(`KL to ${name}`, report.measured(interval), "", known(trial.multipliers?.[name]) ? `λ ${number(trial.multipliers[name])}` : "")))),
        el("span", { class: trial.feasible ? "yes" : "no", text: trial.feasible ? "meets its thresholds" : "does not meet its thresholds" }),
        picture ? el("img", { src: picture.source, alt: "", width: picture.width, height: picture.height }) : "");
      tooltip.hidden = false;
      const room = figure.clientWidth, width = Math.min(tooltip.offsetWidth, room);
      tooltip.style.left = `${Math.min(Math.max(at[0] - width / 2, 0), Math.max(room - width, 0))}px`;
      const above = at[1] - tooltip.offsetHeight - 18;
      tooltip.style.top = `${above > -80 ? above : at[1] + 18}px`;
    }

    const tipRow = (...cells) => el("tr", {}, cells.map((cell, place) => el(place ? "td" : "th", place ? { text: cell } : { scope: "row", text: cell })));

    function hideTip() {
      tooltip.hidden = true;
      figure.querySelector(".hovered")?.classList.remove("hovered");
    }

    function showLegend(shownTrials, x, y) {
      const item = (content, text) => el("li", {}, el("span", { class: "key" }, content), text);
      const sample = (node) => svg("svg", { viewBox: "-9 -9 18 18", width: 18, height: 18, "aria-hidden": "true" }, node);
      const stroke = (kind) => svg("svg", { viewBox: "0 0 24 12", width: 24, height: 12, "aria-hidden": "true" }, svg("path", { class: kind, d: "M0,6H24" }));
      const found = [];
      for (const method of methodsOf(data).filter((name) => shownTrials.some((trial) => trial.method === name))) {
        found.push(item(sample(report.marker(method, true, 5.5)), method));
        if (shownTrials.some((trial) => trial.method === method && !trial.feasible)) found.push(item(sample(report.marker(method, false, 5.5)), `${method}, thresholds missed`));
      }
      if (startOf(x, y)) found.push(item(sample(svg("g", { class: "marker pretrained" }, svg("path", { d: star(7) }))), "pretrained"));
      if ((x.reward && y.kl) || (y.reward && x.kl)) {
        for (const layer of layers.filter(({ key, stroke: kind }) => kind && !state.hiddenLayers.has(key))) found.push(item(stroke(`line ${layer.stroke}`), layer.legend));
      }
      if (page.picker) found.push(item(sample(svg("circle", { class: "ring", r: 7 })), "taken"));
      legend.replaceChildren(...found);
    }

    syncInputs(null);
    new ResizeObserver(() => { if (figure.clientWidth && figure.firstChild?.getAttribute("width") !== String(figure.clientWidth)) draw(); }).observe(figure);
    return { part, draw, title: "Frontier" };
  };

  /** The command whose answer the panel shows. */
  report.pickCommand = function ({ data, state }) {
    const quoted = (text) => (/^[\w@%+=:,./-]+$/.test(text) ? text : `'${text.replace(/'/g, "'\\''")}'`);
    const limits = data.rewards.filter(({ name }) => known(state.thresholds[name])).map(({ name }) => `--at-least ${quoted(`${name}=${state.thresholds[name]}`)}`);
    if (known(state.budget)) limits.push(`--kl-at-most ${state.budget}`);
    return ["cdsweep pick", quoted(data.path), ...limits, ...(state.mix ? [] : ["--single"])].join(" ");
  };

  function layersOf(data) {
    const found = [{ key: "intervals", label: "95 % intervals" }];
    if (data.exact.length) found.push({ key: "exact", label: "least possible KL", legend: "least possible KL", stroke: "exact" });
    if (data.predicted.length) found.push({ key: "predicted", label: "prediction", legend: "predicted from samples, 95 %", stroke: "predicted" });
    if (data.pick && data.pick.ids.length > 1) found.push({ key: "bounds", label: "bounds at these thresholds", legend: "bounds at the chosen thresholds: mixtures above, tangents below", stroke: "upper" });
    if (data.attained.length) found.push({ key: "attained", label: "attained by seeds", legend: "attained by one seed, half (dotted), all (solid)", stroke: "attained all" });
    return found;
  }

  /** Thresholds that trials were given, on an axis; few, or they are no guides. */
  function guides(data, quantity) {
    const names = data.constraints.filter((constraint) => (constraint.kind === "reward" ? constraint.target === quantity.reward : quantity.kl)).map(({ name }) => name);
    const found = new Set(data.trials.filter((trial) => trial.method !== "weighted").flatMap((trial) => names.map((name) => trial.thresholds?.[name])));
    const values = [...found].filter(known);
    return values.length <= 16 ? values : [];
  }

  function star(size) {
    let path = "";
    for (let corner = 0; corner < 10; corner += 1) {
      const radius = corner % 2 ? 0.42 * size : size, angle = Math.PI * (corner / 5 - 0.5);
      path += `${corner ? "L" : "M"}${(radius * Math.cos(angle)).toFixed(2)},${(radius * Math.sin(angle)).toFixed(2)}`;
    }
    return `${path}Z`;
  }
})(window.cdsweepReport);
