// Sorts a table by the column whose heading is clicked; a second click reverses the order.
document.addEventListener("click", (event) => {
  const heading = event.target.closest(".sortable th");
  if (!heading) return;
  const column = [...heading.parentNode.children].indexOf(heading);
  const body = heading.closest("table").tBodies[0];
  const descending = heading.dataset.order !== "descending";
  for (const other of heading.parentNode.children) delete other.dataset.order;
  heading.dataset.order = descending ? "descending" : "ascending";
  const key = (row) => {
    const text = row.cells[column].textContent.replace("−", "-");
    const number = parseFloat(text);
    return Number.isNaN(number) ? text : number;
  };
  const sign = descending ? -1 : 1;
  const compare = (a, b) => (key(a) > key(b) ? sign : key(a) < key(b) ? -sign : 0);
  body.append(...[...body.rows].sort(compare));
});
