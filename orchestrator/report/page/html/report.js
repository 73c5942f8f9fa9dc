"use strict";
// cdsweepReport.mount(element, document) draws a report's document; update(document) draws a newer one and keeps what the reader chose.
(function (report) {
  const { el } = report;

  function fresh(data) {
    const [x, y] = report.firstAxes(data);
    return { x, y, hiddenMethods: new Set(), hiddenSeeds: new Set(), hiddenLayers: new Set(["attained"]), thresholds: { ...data.words.holds }, budget: data.words.budget ?? null, mix: true,
      selected: null, sort: ["kl", 1], rows: 50, pictures: 8 };
  }

  /** State as a string for the address, so that a reload or a link shows the same. */
  function written(state) {
    return encodeURIComponent(JSON.stringify({ ...state, hiddenMethods: [...state.hiddenMethods], hiddenSeeds: [...state.hiddenSeeds], hiddenLayers: [...state.hiddenLayers] }));
  }

  function read(hash, state) {
    const trial = /^#trial-([\w.-]+)$/.exec(hash);
    if (trial) return { ...state, selected: trial[1] };
    if (!hash.startsWith("#view=")) return state;
    try {
      const found = JSON.parse(decodeURIComponent(hash.slice(6)));
      for (const name of ["hiddenMethods", "hiddenSeeds", "hiddenLayers"]) found[name] = new Set(found[name]);
      return { ...state, ...found };
    } catch {
      return state; // a damaged link shows the report as it opens
    }
  }

  /**
   * Draw a report into an element.
   * @param {Element} element what it replaces the content of
   * @param {object} data the document of `orchestrator/report/page/document.py`
   * @param {{address?: boolean}} options address: keep the view in the page's address
   * @returns {{update(data: object): void, state: object, picked(): object}}
   */
  report.mount = function (element, data, options = {}) {
    const state = options.address ? read(location.hash, fresh(data)) : fresh(data);
    let page = null;
    let touched = false;

    function build(next) {
      const parts = {};
      page = {
        data: next, state, parts,
        byId: Object.fromEntries(next.trials.map((trial) => [trial.id, trial])),
        picker: next.pick ? report.picker(next.pick) : null,
        picked: () => page.picker.pick(state.thresholds, state.budget, state.mix),
        changed() {
          touched = true;
          if (options.address) history.replaceState(null, "", `#view=${written(state)}`);
        },
        redraw(name) {
          const made = report[`${name}Part`](page);
          parts[name].part.replaceWith(made.part);
          parts[name] = made;
          made.draw?.();
        },
        filtered() { for (const made of Object.values(parts)) made.draw?.(); },
        choose(id) {
          state.selected = id;
          page.changed();
          page.redraw("trial");
          parts.frontier?.draw();
          parts.training?.draw?.();
          const heading = parts.trial.part.querySelector("h2");
          heading.focus({ preventScroll: true });
          parts.trial.part.scrollIntoView({ behavior: matchMedia("(prefers-reduced-motion: reduce)").matches ? "auto" : "smooth", block: "start" });
        },
      };
      const names = report.order.filter((name) => report[`${name}Part`]);
      const main = el("main", { id: "main", tabindex: "-1" });
      const links = [];
      for (const name of names) {
        const made = report[`${name}Part`](page);
        if (!made) continue;
        parts[name] = made;
        main.append(made.part);
        if (made.title) links.push(el("li", {}, el("a", { href: `#${made.part.id}`, text: made.title,
          onclick: (event) => { event.preventDefault(); made.part.scrollIntoView({ block: "start" }); const heading = made.part.querySelector("h2"); heading?.setAttribute("tabindex", "-1"); heading?.focus({ preventScroll: true }); } })));
      }
      const focusedId = document.activeElement?.id;
      element.classList.add("cdsweep-report");
      element.replaceChildren(
        el("a", { class: "skip", href: "#main", text: "Skip to the report", onclick: (event) => { event.preventDefault(); main.focus(); } }),
        report.heading(page), el("nav", { "aria-label": "Sections" }, el("ul", {}, links)), main,
        el("footer", {}, el("p", { text: `cdsweep ${next.versions.cdsweep || ""} · written ${report.when(next.generated_at)}` })));
      for (const made of Object.values(parts)) made.draw?.();
      if (focusedId) element.querySelector(`#${CSS.escape(focusedId)}`)?.focus({ preventScroll: true });
    }

    build(data);
    const handle = {
      state,
      picked: () => page.picker?.pick(state.thresholds, state.budget, state.mix) ?? null,
      update(next) {
        // Until the reader has touched something, the report decides what is shown.
        if (!touched && !options.address) Object.assign(state, fresh(next), { selected: state.selected });
        build(next);
      },
    };
    report.mounted = handle;
    return handle;
  };

  /** Draw a newer document in the report that was mounted last. */
  report.update = (data) => report.mounted.update(data);
})(window.cdsweepReport);
