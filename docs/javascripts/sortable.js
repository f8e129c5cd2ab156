// Sorts a table by the column whose heading is clicked; a second click reverses the order. Missing
// values stay at the end.
document.addEventListener("click", (event) => {
  const heading = event.target.closest(".sortable th");
  if (!heading) return;
  const column = [...heading.parentNode.children].indexOf(heading);
  const body = heading.closest("table").tBodies[0];
  const sign = heading.ariaSort === "descending" ? 1 : -1;
  for (const other of heading.parentNode.children) other.ariaSort = null;
  heading.ariaSort = sign < 0 ? "descending" : "ascending";
  const text = (row) => row.cells[column].textContent.trim();
  const number = (row) => parseFloat(text(row).replace("−", "-").replaceAll(",", ""));
  const compare = (a, b) => {
    if (text(a) === "–" || text(b) === "–") return (text(a) === "–") - (text(b) === "–");
    const difference = number(a) - number(b);
    return sign * (Number.isNaN(difference) ? text(a).localeCompare(text(b)) : difference);
  };
  body.append(...[...body.rows].sort(compare));
});
