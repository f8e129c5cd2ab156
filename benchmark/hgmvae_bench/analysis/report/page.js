"use strict";
(() => {
  const number = (text) => {
    const found = text.replace(/−/g, "-").replace(/,/g, "").match(/^\s*[-+]?\d+(\.\d+)?(e[-+]?\d+)?/i);
    return found ? parseFloat(found[0]) : NaN;
  };
  const status = document.getElementById("status");
  const dataRows = (body) => [...body.rows].filter((row) => !row.classList.contains("group"));

  // Blank the first label of a row if the row above shows the same one.
  const blankRepeatedLabels = (body) => {
    let previous = null;
    for (const row of dataRows(body).filter((each) => !each.hidden)) {
      const labels = [...row.cells].filter((cell) => cell.tagName === "TH");
      if (labels.length < 2) return;
      labels[0].classList.toggle("repeated", labels[0].textContent === previous);
      previous = labels[0].textContent;
    }
  };

  // Rows in the order of a column; those without a number come last in either order.
  const sorted = (rows, column, sign) => {
    const keyed = rows.map((row) => {
      const text = row.cells[column].textContent.trim();
      return { row, text, value: number(text) };
    });
    const numeric = keyed.some(({ value }) => !isNaN(value));
    keyed.sort((a, b) => {
      if (!numeric) return sign * a.text.localeCompare(b.text);
      if (isNaN(a.value) || isNaN(b.value)) return isNaN(a.value) - isNaN(b.value);
      return sign * (a.value - b.value);
    });
    return keyed.map(({ row }) => row);
  };

  // Headings sort the rows of each group: ascending, descending, original order.
  for (const table of document.querySelectorAll("table.sortable")) {
    const original = new Map([...table.tBodies].map((body) => [body, dataRows(body)]));
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
        if (order) head.setAttribute("aria-sort", order);
        for (const [body, rows] of original) {
          body.append(...(order ? sorted(rows, column, order === "ascending" ? 1 : -1) : rows));
          blankRepeatedLabels(body);
        }
        status.textContent = order
          ? `${table.caption.textContent.trim()} sorted by ${button.textContent.trim()}, ${order}`
          : "original order";
      });
    });
  }

  // The filter hides rows, columns, figures and cells of other datasets and models, and controls.
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
    for (const body of document.querySelectorAll("table.sortable tbody")) {
      body.hidden = dataRows(body).every((row) => row.hidden);
      blankRepeatedLabels(body);
    }
    status.textContent = `${shown} of ${rows} table rows shown`;
  };
  filter.addEventListener("change", apply);
  filter.addEventListener("reset", () => setTimeout(apply));
  filter.addEventListener("submit", (event) => event.preventDefault());
  filter.hidden = false;
  // A browser may restore the form's state when the page is reloaded.
  apply();
  status.textContent = "";

  // A link to a run opens the details around it. This happens on the click, because hashchange fires
  // some frames later, and not at all if the address stays the same.
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
