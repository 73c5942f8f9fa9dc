"use strict";
// The cdsweep page of Ray's dashboard: the cluster's sweeps, and the report of one of them, drawn anew as it grows.
(function (report) {
  const POLL = 3000; // ms between two looks at a running sweep
  const REST = 15000; // at one that does not run, and after trouble
  const chosen = document.getElementById("sweep");
  const news = document.getElementById("news");
  const empty = document.getElementById("empty");
  const place = document.getElementById("report");
  let sweeps = [];
  let shown = null; // {id, tag} of what is drawn
  let handle = null;
  let timer = 0;
  let looks = 0; // the last look counts, if two overlap

  async function ask(path, tag) {
    const answer = await fetch(path, { cache: "no-store", credentials: "same-origin", headers: tag ? { "If-None-Match": tag } : {} });
    if (answer.status === 401 || answer.status === 403) throw new Error("the dashboard asks for its token: open the Ray dashboard once, then come back");
    if (answer.status === 304) return null;
    if (!answer.ok) throw new Error((await answer.text()).slice(0, 300) || `the dashboard answers ${answer.status}`);
    return { data: await answer.json(), tag: answer.headers.get("ETag") };
  }

  function label(sweep) {
    const trials = sweep.trials ? `, ${sweep.trials.ended} of ${sweep.trials.planned} trials` : "";
    return `${sweep.name} (${sweep.state}${trials})`;
  }

  function list(found) {
    sweeps = found;
    const before = chosen.value || decodeURIComponent(location.hash.slice(1));
    chosen.replaceChildren(...sweeps.map((sweep) => {
      const option = document.createElement("option");
      option.value = sweep.id;
      option.textContent = label(sweep);
      return option;
    }));
    chosen.disabled = !sweeps.length;
    if (sweeps.some((sweep) => sweep.id === before)) chosen.value = before;
    empty.hidden = sweeps.length > 0;
    empty.textContent = "No sweep has run on this cluster since it started, and none is in the storages of CDSWEEP_DASHBOARD_STORAGES.";
  }

  async function look() {
    window.clearTimeout(timer);
    const mine = ++looks;
    let wait = REST;
    try {
      if (!document.hidden || !shown) {
        const found = await ask("/api/cdsweep/sweeps");
        if (mine !== looks) return;
        list(found.data.sweeps);
        const sweep = sweeps.find((one) => one.id === chosen.value);
        if (sweep) {
          const known = shown && shown.id === sweep.id ? shown.tag : null;
          const got = await ask(`/api/cdsweep/sweeps/${sweep.id}`, known);
          if (mine !== looks) return;
          if (got) draw(sweep.id, got);
          if (sweep.state === "running") wait = POLL;
        }
        news.textContent = sweep?.state === "running" ? "live" : "";
      }
    } catch (error) {
      if (mine !== looks) return;
      news.textContent = error instanceof TypeError ? "the dashboard does not answer; trying again" : error.message;
      if (!shown) empty.textContent = news.textContent;
    }
    timer = window.setTimeout(look, wait);
  }

  function draw(id, got) {
    if (shown && shown.id === id) handle.update(got.data);
    else handle = report.mount(place, got.data);
    shown = { id, tag: got.tag };
    document.title = `${got.data.sweep} · cdsweep`;
  }

  chosen.addEventListener("change", () => {
    history.replaceState(null, "", `#${encodeURIComponent(chosen.value)}`);
    look();
  });
  document.addEventListener("visibilitychange", () => { if (!document.hidden) look(); });
  look();
})(window.cdsweepReport);
