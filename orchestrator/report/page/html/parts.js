"use strict";
// The sections beside the frontier. Each `NAMEPart(page)` returns `{part, title, draw?}`, or null where there is nothing to show.
(function (report) {
  const { el, number, known } = report;
  report.order = ["summary", "frontier", "box", "composed", "trial", "trials", "weights", "training", "bounds", "images", "reproduce"];

  report.when = function (written) {
    const date = new Date(written);
    return Number.isNaN(date.getTime()) ? "" : `${date.toISOString().slice(0, 16).replace("T", " ")} UTC`;
  };

  const section = (id, title, ...children) => el("section", { id, "aria-labelledby": `${id}-title` }, el("h2", { id: `${id}-title`, text: title }), children);
  const figures = (rows) => el("dl", { class: "figures" }, rows.filter(Boolean).map(([name, value]) => el("div", {}, el("dt", { text: name }), el("dd", {}, value))));

  report.heading = function ({ data }) {
    const { status } = data, { planned, succeeded, failed, infeasible, running } = status.trials;
    const ended = succeeded + failed + infeasible;
    const facts = [`${ended} of ${report.count(planned, "trial")} ended`, running && `${running} running`, failed && `${failed} failed`, infeasible && `${infeasible} infeasible`, status.state, `written ${report.when(data.generated_at)}`];
    return el("header", {}, el("p", { class: "eyebrow", text: "cdsweep report" }), el("h1", { text: data.sweep }), el("p", { class: "facts" }, facts.filter(Boolean).join(" · ")));
  };

  // Summary -------------------------------------------------------------------------------------

  report.summaryPart = function (page) {
    const { words, problems, methods, status } = page.data;
    const card = (title, ...children) => el("div", { class: "card" }, el("h3", { text: title }), children);
    const taken = words.taken && page.byId[words.taken];
    const part = section("summary", "Summary",
      problems.length > 0 && el("div", { class: "problems", role: "note" }, el("h3", { text: "What could not be read" }), el("ul", {}, problems.map((line) => el("li", { text: line })))),
      el("div", { class: "cards" },
        card("What constraints bought", el("p", { class: "lead", text: words.bought })),
        card("Which trial to take", el("p", { text: words.take }), taken && el("button", { type: "button", text: "Show this trial", onclick: () => page.choose(words.taken) })),
        card("What remains uncertain", words.uncertain.length ? el("ul", {}, words.uncertain.map((line) => el("li", { text: line }))) : el("p", { text: "Nothing beyond the intervals shown." }))),
      methods.length > 0 && el("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Methods" }, el("table", { class: "plain" },
        el("caption", { text: "Methods" }),
        el("thead", {}, el("tr", {}, ["method", "planned", "succeeded", "feasible", "on the front", "hypervolume"].map((name, place) => el("th", { scope: "col", class: place ? "right" : null, text: name })))),
        el("tbody", {}, methods.map((method) => el("tr", {}, el("th", { scope: "row" }, report.key(method.method), method.method),
          [method.planned ?? "–", method.succeeded, method.feasible, method.front, number(method.hypervolume)].map((value) => el("td", { class: "right", text: String(value) }))))))),
      status.running.length > 0 && el("div", {}, el("h3", { text: "Running now" }), el("ul", { class: "running" }, status.running.map((trial) => el("li", {},
        el("code", { text: trial.trial_id }), ` ${trial.label}`, known(trial.step) ? `, step ${trial.step}` : "", known(trial.kl) ? `, KL ${number(trial.kl)}` : "")))));
    return { part, title: "Summary" };
  };

  report.key = (method, feasible = true) => report.svg("svg", { class: "key", viewBox: "-8 -8 16 16", width: 16, height: 16, "aria-hidden": "true" }, report.marker(method, feasible, 5.5));

  // One trial -----------------------------------------------------------------------------------

  report.trialPart = function (page) {
    const { data, state } = page;
    if (!data.trials.length) return null;
    const trial = page.byId[state.selected] || page.byId[data.words.taken] || data.trials.find((each) => each.front) || data.trials[0];
    state.selected = trial.id;
    const part = el("section", { id: "trial", "aria-labelledby": "trial-title" },
      el("h2", { id: "trial-title", tabindex: "-1" }, report.key(trial.method, trial.feasible), `Trial ${trial.id}`),
      el("p", { class: "facts", text: trial.label }),
      trial.error && el("p", { class: "problems", text: trial.error }), trial.notes && el("p", { class: "hint", text: trial.notes }),
      el("div", { class: "split even" }, el("div", {}, outcome(trial), rewardTable(data, trial)), pictures(data, trial)),
      curves(data, trial), prompts(data, trial),
      trial.adapter && el("pre", { class: "command", tabindex: "0", "aria-label": "Command that exports the adapter" }, el("code", { text: `cdsweep export ${data.path} ${trial.id} adapter` })));
    return { part, title: "Trial" };
  };

  function outcome(trial) {
    const verdict = trial.status !== "succeeded" ? trial.status : trial.feasible ? "meets its thresholds" : "does not meet its thresholds";
    return figures([
      ["outcome", el("span", { class: trial.feasible ? "yes" : "no", text: verdict })],
      trial.kl && ["KL, nats", report.measured(trial.kl)],
      known(trial.kl_least) && ["least possible KL", number(trial.kl_least)],
      known(trial.kl_ratio) && ["times the least", number(trial.kl_ratio)],
      known(trial.diversity) && ["diversity", number(trial.diversity)],
      known(trial.steps) && ["steps", String(trial.steps)],
      known(trial.wall_seconds) && ["time", report.seconds(trial.wall_seconds)],
      trial.base_trial && ["started from", el("code", { text: trial.base_trial })],
    ]);
  }

  function rewardTable(data, trial) {
    const known_ = (values, name) => (known(values?.[name]) ? number(values[name]) : "–");
    const weighted = trial.method === "weighted" && !data.models.length;
    const price = (name) => known_(weighted ? trial.weights : trial.multipliers, name);
    const rows = [
      // A reward that judges a model is called like it, and has no price of its own.
      ...data.rewards.map(({ name }) => [name, report.measured(trial.rewards?.[name]), data.models.includes(name) ? null : constraintOf(data, name)]),
      ...data.constraints.filter(({ kind }) => kind === "kl").map(({ name }) => [name, report.measured(trial.kl), name]),
      ...data.models.map((name) => [`KL to ${name}`, report.measured(trial.kls?.[name]), name]),
      ...Object.entries(trial.measured || {}).map(([name, interval]) => [`${name} (measured only)`, report.measured(interval), null]),
      ...Object.entries(trial.deployed || {}).map(([name, interval]) => [`${name} as deployed${known(data.deployed?.[name]) ? ` (pretrained ${number(data.deployed[name])})` : ""}`, report.measured(interval), null]),
      ...Object.entries(trial.retention || {}).map(([name, interval]) => [`${name} kept`, report.measured(interval), null]),
    ];
    if (!rows.length) return null;
    return el("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Figures of this trial" }, el("table", { class: "plain" },
      el("caption", { text: data.models.length ? "Figures; in the last column the weights of the models on the simplex" : weighted ? "Figures; in the last column the fixed weights (nats per reward unit)" : "Thresholds and multipliers (nats per reward unit)" }),
      el("thead", {}, el("tr", {}, ["", "reached", "threshold", "violation", weighted || data.models.length ? "weight" : "multiplier"].map((name, place) => el(name ? "th" : "td", { scope: name ? "col" : null, class: place ? "right" : null, text: name })))),
      el("tbody", {}, rows.map(([label, reached, name]) => {
        const violation = trial.violations?.[name];
        return el("tr", {}, el("th", { scope: "row", text: label }), el("td", { class: "right", text: reached }), el("td", { class: "right", text: known_(trial.thresholds, name) }),
          el("td", { class: `right ${verdictOf(data, name, violation, trial.thresholds?.[name])}`, text: known(violation) ? number(violation, 2) : "–" }),
          el("td", { class: "right", text: price(weighted ? label : name) }));
      }))));
  }

  /** Whether a violation is none, one within tolerance (of a KL a share of the budget), or one. */
  function verdictOf(data, name, violation, threshold) {
    if (!known(violation)) return "";
    const constraint = data.constraints.find((each) => each.name === name);
    const allowed = (constraint?.tolerance ?? 0) * (constraint?.kind === "kl" ? threshold : 1);
    return violation <= 0 ? "yes" : violation <= allowed ? "" : "no";
  }

  const constraintOf = (data, reward) => data.constraints.find(({ kind, target }) => kind === "reward" && target === reward)?.name ?? reward;

  function pictures(data, trial) {
    const tuned = data.images?.trials?.[trial.id];
    if (!tuned) return data.images ? el("p", { class: "hint", text: "No images of this trial are in the report." }) : null;
    return el("div", { class: "pictures" }, strip(data.images.pretrained, "Pretrained", `Images of the pretrained model${spoken(data)}`),
      strip(tuned, `Trial ${trial.id}`, `Images of trial ${trial.id} at the same seeds${spoken(data)}`),
      data.images.prompts?.length > 0 && el("details", {}, el("summary", { text: "Prompts, row by row" }), el("ol", {}, data.images.prompts.map((prompt) => el("li", { text: prompt })))));
  }

  const spoken = (data) => (data.images.prompts?.length ? `; prompts row by row: ${data.images.prompts.join("; ")}` : "");

  function strip(picture, caption, alt) {
    if (!picture) return null;
    return el("figure", {}, el("figcaption", { text: caption }), el("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": `Images: ${caption}` },
      el("img", { src: picture.source, alt, width: picture.width, height: picture.height, decoding: "async" })));
  }

  function curves(data, trial) {
    const curve = data.curves[trial.id];
    if (!curve) return null;
    const line = (values, kind) => ({ x: curve.step, y: values, kind });
    const last = (values) => number([...values].reverse().find(known));
    const charts = [curve.kl && report.lineChart({ series: [line(curve.kl, "kl")], label: "KL, nats", alt: `KL over steps, at the end ${last(curve.kl)} nats`, zero: true })];
    for (const [name, values] of Object.entries(curve.multiplier || {})) {
      charts.push(report.lineChart({ series: [line(values, "multiplier")], zero: true, label: data.models.includes(name) ? `weight of ${name}` : `multiplier of ${name}`, alt: `Multiplier of ${name} over steps, at the end ${last(values)}` }));
    }
    for (const [name, values] of Object.entries(curve.violation || {})) {
      charts.push(report.lineChart({ series: [line(values, "violation")], guides: [{ y: 0, kind: "zero" }], label: `violation of ${name}`, alt: `Violation of ${name} over steps, at the end ${last(values)}; met at or below 0` }));
    }
    for (const [name, values] of Object.entries(curve.kls || {})) {
      charts.push(report.lineChart({ series: [line(values, "kl")], label: `KL to ${name}, nats`, alt: `KL to ${name} over steps, at the end ${last(values)} nats`, zero: true }));
    }
    const drawn = charts.filter(Boolean);
    const shown = el("div", { class: "charts" }, drawn);
    return drawn.length > 0 && el("div", {}, el("h3", { text: "Training" }), report.saver(() => shown), shown);
  }

  function prompts(data, trial) {
    const changes = data.prompts?.changes[trial.id];
    if (!changes) return null;
    const shown = el("div", { class: "charts wide" }, Object.entries(changes).map(([name, intervals]) => promptChart(name, data.prompts.prompts, intervals)));
    return el("details", { class: "prompts" }, el("summary", {}, el("h3", { text: "Change of each prompt" })),
      el("p", { class: "hint", text: "Reward minus that of the pretrained model on the same noise, with 95 % intervals over the samples of a prompt." }), report.saver(() => shown), shown);
  }

  function promptChart(name, labels, intervals) {
    const rows = labels.map((label, at) => ({ label, interval: intervals[at] })).filter(({ interval }) => known(interval[0])).sort((a, b) => b.interval[0] - a.interval[0]);
    const values = rows.flatMap(({ interval }) => interval).filter(known).concat([0]);
    const width = 460, left = 190, height = 58 + 16 * rows.length;
    const x = report.scale(Math.min(...values), Math.max(...values), left, width - 12), y = report.scale(0, rows.length, 34, height - 24);
    const worse = rows.filter(({ interval }) => interval[0] < 0).length;
    const chart = report.svg("svg", { class: "chart small", viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": `Change of ${name} for ${report.count(rows.length, "prompt")}; ${worse} are lower than before` });
    chart.append(report.svg("text", { class: "label", x: 2, y: 14, text: `change of ${name}` }));
    const ticks = report.ticks(x.low, x.high, 4);
    for (const value of ticks.values) {
      chart.append(report.svg("line", { class: "grid", x1: x(value), x2: x(value), y1: 28, y2: height - 24 }), report.svg("text", { x: x(value), y: height - 8, "text-anchor": "middle", text: report.tick(value, ticks.places) }));
    }
    chart.append(report.svg("line", { class: "guide zero", x1: x(0), x2: x(0), y1: 28, y2: height - 24 }));
    rows.forEach(({ label, interval: [mean, low, high] }, at) => {
      const line = y(at + 0.5);
      chart.append(report.svg("text", { x: left - 8, y: line + 4, "text-anchor": "end", text: label.length > 28 ? `${label.slice(0, 27)}…` : label }, report.svg("title", { text: label })));
      if (known(low) && known(high)) chart.append(report.svg("line", { class: "interval constrained", x1: x(low), x2: x(high), y1: line, y2: line }));
      chart.append(report.svg("circle", { class: "dot", cx: x(mean), cy: line, r: 3 }));
    });
    return chart;
  }

  // All trials ----------------------------------------------------------------------------------

  report.trialsPart = function (page) {
    const { data, state } = page;
    if (!data.trials.length) return { part: section("trials", "Trials", el("p", { text: "No trial has finished yet." })), title: "Trials" };
    const columns = [
      { key: "id", label: "trial", of: (trial) => trial.id },
      { key: "label", label: "what", of: (trial) => trial.label },
      { key: "status", label: "outcome", of: verdict },
      { key: "kl", label: data.models.length ? "largest KL" : "KL", of: (trial) => trial.kl?.[0], text: (trial) => report.measured(trial.kl) },
      ...data.rewards.map(({ name }) => ({ key: `reward:${name}`, label: name, of: (trial) => trial.rewards?.[name]?.[0], text: (trial) => report.measured(trial.rewards?.[name]) })),
      ...data.models.map((name) => ({ key: `kls:${name}`, label: `KL to ${name}`, of: (trial) => trial.kls?.[name]?.[0], text: (trial) => report.measured(trial.kls?.[name]) })),
      ...(data.trials.some((trial) => known(trial.kl_ratio)) ? [{ key: "ratio", label: "× least", of: (trial) => trial.kl_ratio, text: (trial) => number(trial.kl_ratio) }] : []),
      { key: "seconds", label: "time", of: (trial) => trial.wall_seconds, text: (trial) => report.seconds(trial.wall_seconds) },
    ];
    const body = el("tbody", {}), more = el("p", {});
    const heads = columns.map((column) => el("th", { scope: "col", class: column.text ? "right" : null }, el("button", { type: "button", class: "sort", id: `cdsweep-sort-${column.key}`, text: column.label, onclick: () => {
      state.sort = state.sort[0] === column.key ? [column.key, -state.sort[1]] : [column.key, 1];
      page.changed();
      draw();
    } })));

    function draw() {
      const [key, direction] = state.sort, column = columns.find((each) => each.key === key) || columns[3];
      const rows = data.trials.filter((trial) => !state.hiddenMethods.has(trial.method) && !state.hiddenSeeds.has(trial.seed));
      rows.sort((a, b) => {
        const [left, right] = [column.of(a), column.of(b)];
        if (left === undefined || right === undefined) return (left === undefined) - (right === undefined); // what is missing comes last
        return direction * (typeof left === "number" ? left - right : String(left).localeCompare(String(right)));
      });
      heads.forEach((head, at) => head.setAttribute("aria-sort", columns[at] === column ? (direction > 0 ? "ascending" : "descending") : "none"));
      body.replaceChildren(...rows.slice(0, state.rows).map((trial) => el("tr", { class: trial.id === state.selected ? "selected" : null }, columns.map((each, place) => {
        if (!place) return el("th", { scope: "row" }, report.key(trial.method, trial.feasible), el("a", { href: `#trial-${trial.id}`, text: trial.id, onclick: (event) => { event.preventDefault(); page.choose(trial.id); } }));
        const text = each.text ? each.text(trial) : each.of(trial);
        return el("td", { class: [each.text && "right", each.key === "status" && (trial.feasible ? "yes" : "no")].filter(Boolean).join(" ") || null, title: each.key === "status" ? trial.error : null, text });
      }))));
      more.replaceChildren(`${Math.min(state.rows, rows.length)} of ${report.count(rows.length, "trial")}. `,
        ...(rows.length > state.rows ? [el("button", { type: "button", class: "quiet", text: "Show all", onclick: () => { state.rows = Infinity; draw(); } })] : []));
    }

    const failed = data.trials.filter((trial) => trial.status !== "succeeded");
    const part = section("trials", "Trials",
      el("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Table of trials" }, el("table", { class: "trials" }, el("caption", { class: "hidden", text: "Trials, sortable by each column" }), el("thead", {}, el("tr", {}, heads)), body)), more,
      failed.length > 0 && el("div", {}, el("h3", { text: "Failed or infeasible" }), el("ul", { class: "failed" }, failed.slice(0, 50).map((trial) => el("li", {}, el("code", { text: trial.id }), ` ${trial.label}: `, el("span", { text: trial.error || trial.status }))))));
    return { part, title: "Trials", draw };
  };

  function verdict(trial) {
    if (trial.status !== "succeeded") return trial.status;
    return trial.feasible ? "met" : "missed";
  }

  // Weights of a composition ----------------------------------------------------------------------

  report.weightsPart = function ({ data }) {
    if (data.models.length < 2) return null;
    const shares = (trial) => data.models.map((name) => trial.multipliers?.[name] ?? trial.weights?.[name] ?? null);
    const rows = data.trials.filter((trial) => shares(trial).every(known));
    if (!rows.length) return null;
    const shown = el("div", { class: "split even" }, data.models.length === 3 && triangle(data, rows, shares), el("div", { class: "bars" }, rows.slice(0, 24).map((trial) => el("div", { class: "bar" }, el("span", { text: trial.label }), bar(data, shares(trial))))));
    return { title: "Weights", part: section("weights", "Weights on the simplex",
      el("p", { class: "hint", text: "What each model counts for: found by training where constrained, fixed where weighted." }), report.saver(() => shown), shown) };
  };

  function bar(data, values) {
    const total = values.reduce((sum, value) => sum + value, 0) || 1;
    let left = 0;
    const chart = report.svg("svg", { class: "chart", viewBox: "0 0 300 18", role: "img", "aria-label": data.models.map((name, at) => `${name} ${number(values[at], 2)}`).join(", ") });
    chart.style.width = "360px";
    values.forEach((value, at) => {
      const width = 300 * value / total;
      chart.append(report.svg("rect", { class: `share part${at % 6}`, x: left, y: 0, width, height: 18 }));
      if (width > 56) chart.append(report.svg("text", { class: "inside", x: left + 5, y: 13, text: `${data.models[at].slice(0, Math.floor(width / 9))} ${value.toFixed(2)}` }));
      left += width;
    });
    return chart;
  }

  function triangle(data, rows, shares) {
    const width = 380, height = 350, corners = [[190, 36], [30, 310], [350, 310]];
    const at = (values) => {
      const total = values.reduce((sum, value) => sum + value, 0) || 1;
      return [0, 1].map((axis) => values.reduce((sum, value, place) => sum + value / total * corners[place][axis], 0));
    };
    const chart = report.svg("svg", { class: "chart small", viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": `Weights of ${data.models.join(", ")} for ${report.count(rows.length, "trial")}` });
    chart.style.maxWidth = `${1.25 * width}px`;
    for (const share of [0.25, 0.5, 0.75]) {
      for (let place = 0; place < 3; place += 1) {
        const ends = [0, 1].map((side) => at([0, 1, 2].map((each) => (each === place ? share : each === (place + 1 + side) % 3 ? 1 - share : 0))));
        chart.append(report.svg("line", { class: "grid", x1: ends[0][0], y1: ends[0][1], x2: ends[1][0], y2: ends[1][1] }));
      }
    }
    chart.append(report.svg("path", { class: "frame", d: `${report.path(corners)}Z` }));
    data.models.forEach((name, place) => chart.append(report.svg("text", { class: "label", x: [190, 4, width - 4][place], y: corners[place][1] + (place ? 22 : -12), "text-anchor": ["middle", "start", "end"][place], text: name })));
    for (const trial of rows) {
      const [x, y] = at(shares(trial));
      chart.append(report.marker(trial.method, trial.feasible, 6, { transform: `translate(${x.toFixed(1)},${y.toFixed(1)})` }));
    }
    return chart;
  }

  // Training of all trials ------------------------------------------------------------------------

  report.trainingPart = function (page) {
    const { data, state } = page;
    const ids = Object.keys(data.curves);
    if (!ids.length) return null;
    const charts = el("div", { class: "charts" });
    const most = 60;

    function draw() {
      const trials = data.trials.filter((trial) => data.curves[trial.id] && !state.hiddenMethods.has(trial.method) && !state.hiddenSeeds.has(trial.seed));
      const kept = trials.length <= most ? trials : trials.filter((trial, at) => trial.id === state.selected || at % Math.ceil(trials.length / most) === 0);
      kept.sort((a, b) => (a.id === state.selected) - (b.id === state.selected));
      const lines = (of) => kept.map((trial) => ({ x: data.curves[trial.id].step, y: of(data.curves[trial.id]), kind: `${report.kind(trial.method)} ${trial.id === state.selected ? "selected" : "faint"}` })).filter(({ y }) => y);
      const names = (kind) => [...new Set(kept.flatMap((trial) => Object.keys(data.curves[trial.id][kind] || {})))];
      const made = [report.lineChart({ series: lines((curve) => curve.kl), label: "KL, nats", zero: true, alt: `KL over steps of ${report.count(kept.length, "trial")}` })];
      for (const name of names("multiplier")) made.push(report.lineChart({ series: lines((curve) => curve.multiplier?.[name]), label: data.models.includes(name) ? `weight of ${name}` : `multiplier of ${name}`, zero: true, alt: `Multiplier of ${name} over steps` }));
      for (const name of names("violation")) made.push(report.lineChart({ series: lines((curve) => curve.violation?.[name]), label: `violation of ${name}`, guides: [{ y: 0, kind: "zero" }], alt: `Violation of ${name} over steps; met at or below 0` }));
      charts.replaceChildren(...made.filter(Boolean));
    }

    return { title: "Training", draw, part: section("training", "Training of all trials", el("p", { class: "hint", text: `One line per trial, in the colour of its method; the chosen trial is drawn strongly.${ids.length > most ? ` Of ${ids.length} trials about ${most} are drawn.` : ""}` }), report.saver(() => charts), charts) };
  };

  // The gap of a certified search -----------------------------------------------------------------

  report.boundsPart = function ({ data }) {
    if (!data.bounds.length && !data.certificates.length) return null;
    const part = section("bounds", "How well the frontier is known", certificates(data.certificates), searched(data.bounds));
    return { title: "Bounds", part };
  };

  function certificates(rows) {
    if (!rows.length) return false;
    const columns = [["lower", "lower"], ["upper", "upper"], ["gap", "gap"], ["few_trials", "few trials"], ["training", "training"], ["rest", "confidence"]];
    return el("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Bounds that hold at 95 %" }, el("table", { class: "plain" },
      el("caption", { text: "Bounds of the least KL, each holds at 95 %, nats, and what their distance is made of" }),
      el("thead", {}, el("tr", {}, ["thresholds", ...columns.map(([, title]) => title)].map((name, place) => el("th", { scope: "col", class: place ? "right" : null, text: name })))),
      el("tbody", {}, rows.map((row) => el("tr", {}, el("th", { scope: "row", text: Object.entries(row.thresholds).map(([name, value]) => `${name} ${number(value)}`).join(", ") }),
        columns.map(([name]) => el("td", { class: "right", text: known(row[name]) ? number(row[name]) : "–" })))))));
  }

  function searched(bounds) {
    if (!bounds.length) return false;
    const rows = bounds.map((row, at) => ({ ...row, place: row.trials ?? at + 1 }));
    const last = rows[rows.length - 1];
    const series = (name, kind) => ({ x: rows.map((row) => row.place), y: rows.map((row) => row[name]), kind });
    const chart = report.lineChart({ series: [series("gap", "kl")], label: `${last.kind} gap, nats`, xLabel: "settings that have ended", zero: true, width: 620, height: 260, alt: `Gap between the bounds of the frontier, at the end ${number(last.gap)} nats` });
    const shown = el("div", {}, chart || el("p", { text: "Not known yet." }));
    return el("div", {}, el("p", { class: "hint", text: "The largest distance between the search's bounds on the least KL over the thresholds in question, after every setting." }), chart && report.saver(() => shown), shown);
  }

  // Images ----------------------------------------------------------------------------------------

  report.imagesPart = function (page) {
    const { data, state } = page;
    if (!data.images) return data.trials.length && !data.models.length ? null : null;
    const trials = data.trials.filter((trial) => data.images.trials[trial.id]);
    trials.sort((a, b) => b.front - a.front || (b.feasible === true) - (a.feasible === true) || (a.kl?.[0] ?? Infinity) - (b.kl?.[0] ?? Infinity));
    const grid = el("div", { class: "gallery" }), more = el("p", {});

    function draw() {
      const rows = trials.filter((trial) => !state.hiddenMethods.has(trial.method) && !state.hiddenSeeds.has(trial.seed));
      grid.replaceChildren(...rows.slice(0, state.pictures).map((trial) => el("figure", {},
        el("figcaption", {}, report.key(trial.method, trial.feasible), el("a", { href: `#trial-${trial.id}`, text: trial.id, onclick: (event) => { event.preventDefault(); page.choose(trial.id); } }), ` ${trial.label}${trial.kl ? `, KL ${number(trial.kl[0])}` : ""}`),
        el("img", { src: data.images.trials[trial.id].source, width: data.images.trials[trial.id].width, height: data.images.trials[trial.id].height, decoding: "async", alt: `Images of trial ${trial.id}, ${trial.label}, at the same seeds as those of the pretrained model` }))));
      more.replaceChildren(...(rows.length > state.pictures ? [el("button", { type: "button", class: "quiet", text: `Show all ${rows.length}`, onclick: () => { state.pictures = Infinity; draw(); } })] : []));
    }

    const part = section("images", "Images at the same seeds",
      el("div", { class: "gallery" }, data.images.pretrained && el("figure", { class: "first" }, el("figcaption", { text: "pretrained" }),
        el("img", { src: data.images.pretrained.source, width: data.images.pretrained.width, height: data.images.pretrained.height, alt: `Images of the pretrained model${spoken(data)}` }))), grid, more);
    return { part, title: "Images", draw };
  };

  // How it was made -------------------------------------------------------------------------------

  report.reproducePart = function ({ data }) {
    const part = section("reproduce", "How it was made",
      figures([
        data.seeds.length > 0 && ["seeds", data.seeds.join(", ")], ["directory", el("code", { text: data.path })],
        data.kl_floor != null && ["floor of the KL", `${data.kl_floor.toPrecision(2)} nats: what rounding alone makes of it`],
        ...Object.entries(data.made || {}),
      ]),
      el("h3", { text: "Again" }), el("pre", { class: "command", tabindex: "0", "aria-label": "Commands" }, el("code", { text: data.reproduce.join("\n") })),
      el("details", {}, el("summary", {}, el("h3", { text: "The spec" })), el("pre", { tabindex: "0", "aria-label": "The spec" }, el("code", { text: data.spec }))));
    return { part, title: "How it was made" };
  };
})(window.cdsweepReport);
