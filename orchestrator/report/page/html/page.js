"use strict";
// The page on disk: draws its own document, and looks for a newer one while the sweep runs.
(function (report) {
  const RELOAD = 30; // seconds
  const data = JSON.parse(document.getElementById("document").textContent);
  report.mount(document.getElementById("report"), data, { address: true });
  if (data.status.state !== "running") return;
  const box = report.el("input", { type: "checkbox", id: "cdsweep-reload", checked: sessionStorageGet() !== "no", onchange: () => sessionStorageSet(box.checked ? "yes" : "no") });
  document.querySelector("header").append(report.el("p", {}, report.el("label", { class: "check" }, box, ` the sweep is running: load a newer report every ${RELOAD} s`)));
  window.setInterval(() => { if (box.checked && !document.hidden) location.reload(); }, 1000 * RELOAD);

  function sessionStorageGet() { try { return sessionStorage.getItem("cdsweep-reload"); } catch { return null; } }
  function sessionStorageSet(value) { try { sessionStorage.setItem("cdsweep-reload", value); } catch { /* files may have none */ } }
})(window.cdsweepReport);
