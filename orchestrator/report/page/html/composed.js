"use strict";
// A trial for all weights of a composition: a slider for each model's weight, and what was measured nearest to where they stand.
(function (report) {
  const { el, number, known } = report;
  const STEPS = 100; // of a slider

  /** Weights of a simplex after one is set: the others keep their proportions, or are equal where they were 0. */
  report.reweighted = function (weights, place, value) {
    const rest = weights.reduce((sum, weight, other) => sum + (other === place ? 0 : weight), 0);
    return weights.map((weight, other) => (other === place ? value : (1 - value) * (rest > 0 ? weight / rest : 1 / (weights.length - 1))));
  };

  /** The measured point nearest to weights; ties go to the first. */
  report.nearestWeights = function (box, weights) {
    const apart = (point) => point.weights.reduce((sum, weight, place) => sum + (weight - weights[place]) ** 2, 0);
    return box.points.reduce((best, point) => (apart(point) < apart(best) ? point : best));
  };

  report.composedPart = function (page) {
    const boxes = page.data.composed || [];
    if (!boxes.length) return null;
    page.state.composed ??= {};
    const made = boxes.map((box, place) => one(page, box, place));
    const part = el("section", { id: "composed", "aria-labelledby": "composed-title" },
      el("h2", { id: "composed-title", text: "All weights of the models" }),
      el("p", { class: "hint" }, "One adapter answers all weights of the models, which sum to 1: a slider that moves takes from the others. Figures and images are those that were measured nearest to where they stand, at the same noise and prompts for all; ", el("code", { text: "cdsweep pick --multiplier MODEL=WEIGHT" }), " measures others."),
      made.map(({ node }) => node));
    return { part, title: "Models", draw: () => made.forEach(({ draw }) => draw()) };
  };

  function one(page, box, place) {
    const kept = page.state.composed[box.id];
    const valid = Array.isArray(kept) && kept.length === box.models.length && kept.every((weight) => known(weight) && weight >= 0 && weight <= 1);
    if (!valid) page.state.composed[box.id] = [...box.points[0].weights];
    const sliders = [], outputs = [];
    const figures = el("div", { class: "measured", "aria-live": "polite" }), strip = el("div", { class: "strip" });

    function set(weights) { page.state.composed[box.id] = weights; page.changed(); draw(); }

    const rows = box.models.map((name, model) => {
      const id = `cdsweep-composed-${place}-${model}`;
      outputs.push(el("output", { for: id }));
      sliders.push(el("input", { type: "range", id, min: 0, max: STEPS, step: 1, "data-model": name,
        oninput: (event) => set(report.reweighted(page.state.composed[box.id], model, Number(event.target.value) / STEPS)) }));
      return el("div", { class: "slide" }, el("label", { for: id, text: `weight of ${name}` }), sliders[model], outputs[model],
        el("small", { "aria-hidden": "true" }, el("span", { text: "0" }), el("span", { text: "1" })));
    });

    function draw() {
      const weights = page.state.composed[box.id], point = report.nearestWeights(box, weights);
      box.models.forEach((name, model) => {
        sliders[model].value = String(Math.round(STEPS * weights[model]));
        outputs[model].textContent = weights[model].toFixed(2);
        sliders[model].setAttribute("aria-valuetext", `${name} ${weights[model].toFixed(2)}: KL to it ${number(point.kls[model]?.[0])} nats nearest to it`);
      });
      figures.replaceChildren(el("p", { class: "lead" }, "Largest KL ", el("strong", { class: "kl", text: report.measured(point.kl) }), ` nats, measured at ${said(point)}.`));
      strip.replaceChildren(...pictures(point));
      lines.forEach(({ row, button }, each) => {
        row.classList.toggle("selected", box.points[each] === point);
        button.setAttribute("aria-pressed", String(box.points[each] === point));
      });
    }

    const said = (point) => box.models.map((name, model) => `${name} ${number(point.weights[model])}`).join(", ");

    const share = (ends) => (ends ? `${(100 * ends[0]).toFixed(0)} %` : "–");
    const lines = box.points.map((point) => {
      const button = el("button", { type: "button", "aria-label": `Move the sliders to ${said(point)}`, text: point.weights.map((weight) => number(weight)).join(" · "), onclick: () => set([...point.weights]) });
      return { button, row: el("tr", {}, el("th", { scope: "row" }, button), [...point.kls.map(report.measured), ...point.retention.map(share)].map((text) => el("td", { class: "right", text }))) };
    });
    const heads = ["weights", ...box.models.map((name) => `KL to ${name}`), ...box.models.map((name) => `kept of ${name}`)];
    const all = el("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": `All that was measured of trial ${box.id}` }, el("table", { class: "plain" },
      el("caption", { text: "KL to each model, nats with 95 % interval, and the share of its improvement over the pretrained model that is kept" }),
      el("thead", {}, el("tr", {}, heads.map((name, column) => el("th", { scope: "col", class: column ? "right" : null, text: name })))),
      el("tbody", {}, lines.map(({ row }) => row))));

    function pictures(point) {
      if (!point.picture) return [];
      const before = page.data.images?.pretrained;
      const shot = (title, picture, alt) => el("figure", { class: "pictures" }, el("figcaption", { text: title }), el("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": title },
        el("img", { src: picture.source, width: picture.width, height: picture.height, alt })));
      return [before && shot("pretrained", before, "Images of the pretrained model at the same seeds"), shot("at these weights, same seeds and prompts", point.picture, `Images of trial ${box.id} at ${said(point)}`)].filter(Boolean);
    }

    const node = el("div", { class: "box", role: "group", "aria-label": `Trial ${box.id}` },
      el("h3", {}, report.key("frontier"), ` ${box.id} `, el("small", { text: box.label })), el("div", { class: "sliders" }, rows), figures, strip, all);
    return { node, draw };
  }
})(window.cdsweepReport);
