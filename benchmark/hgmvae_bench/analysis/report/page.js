"use strict";
(() => {
  const number = (text) => {
    const found = text.replace(/−/g, "-").replace(/,/g, "").match(/^\s*[-+]?\d+(\.\d+)?(e[-+]?\d+)?/i);
    return found ? parseFloat(found[0]) : NaN;
  };
  const status = document.getElementById("status");

  // Sorting: ascending, descending, as printed. What has no number goes last in either order.
  for (const table of document.querySelectorAll("table.sortable")) {
    const body = table.tBodies[0];
    const printed = [...body.rows];
    const heads = [...table.tHead.rows[0].cells];
    heads.forEach((head, column) => {
      const button = document.createElement("button");
      button.type = "button";
      button.append(...head.childNodes);
      head.append(button);
      button.addEventListener("click", () => {
        const orders = { null: "ascending", ascending: "descending", descending: null };
        const order = orders[head.getAttribute("aria-sort")];
        heads.forEach((other) => other.removeAttribute("aria-sort"));
        let rows = printed;
        if (order) {
          head.setAttribute("aria-sort", order);
          const sign = order === "ascending" ? 1 : -1;
          const keyed = printed.map((row) => {
            const text = row.cells[column].textContent.trim();
            return { row, text, value: number(text) };
          });
          const numeric = keyed.some(({ value }) => !isNaN(value));
          keyed.sort((a, b) => {
            if (!numeric) return sign * a.text.localeCompare(b.text);
            if (isNaN(a.value) || isNaN(b.value)) return isNaN(a.value) - isNaN(b.value);
            return sign * (a.value - b.value);
          });
          rows = keyed.map(({ row }) => row);
        }
        body.append(...rows);
        status.textContent = order
          ? `${table.caption.textContent.trim()} sorted by ${button.textContent.trim()}, ${order}`
          : "in the order as printed";
      });
    });
  }

  // The filter: hides rows, columns, figures and cells of other datasets and models, and controls.
  const filter = document.getElementById("filter");
  const apply = () => {
    const { dataset, model, controls } = filter.elements;
    const wanted = { dataset: dataset.value, model: model.value };
    let shown = 0;
    let rows = 0;
    for (const place of document.querySelectorAll("[data-dataset], [data-model], [data-control]")) {
      const other = Object.entries(wanted).some(
        ([axis, value]) => value && axis in place.dataset && place.dataset[axis] !== value
      );
      place.hidden = other || ("control" in place.dataset && !controls.checked);
      const row = place.tagName === "TR";
      rows += row;
      shown += row && !place.hidden;
    }
    status.textContent = `${shown} of ${rows} table rows shown`;
  };
  filter.addEventListener("change", apply);
  filter.addEventListener("reset", () => setTimeout(apply));
  filter.addEventListener("submit", (event) => event.preventDefault());
  filter.hidden = false;
  // A browser may keep the choice when the page is loaded again.
  apply();
  status.textContent = "";

  // A link to a run opens what it is folded into. Already at the click: the hashchange comes some
  // frames later, and never if the address stays as it is.
  const reveal = (hash) => {
    const target = hash && document.getElementById(decodeURIComponent(hash.slice(1)));
    for (let place = target; place; place = place.parentElement) {
      if (place.tagName === "DETAILS") place.open = true;
    }
    if (target) target.scrollIntoView();
  };
  document.addEventListener("click", (event) => {
    const link = event.target.closest("a");
    if (link) reveal(link.hash);
  });
  window.addEventListener("hashchange", () => reveal(location.hash));
  reveal(location.hash);
})();
