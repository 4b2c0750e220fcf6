// Click a column's head to sort by it; again for the other direction.
document.querySelectorAll("table.sortable").forEach((table) => {
  const heads = table.querySelectorAll("th");
  heads.forEach((head, column) => {
    head.tabIndex = 0;
    const sort = () => {
      const up = head.dataset.order !== "up";
      const key = (row) => {
        const cell = row.cells[column];
        const value = cell.dataset.value ?? cell.textContent;
        return value === "" ? null : isNaN(value) ? value : Number(value);
      };
      const rows = Array.from(table.tBodies[0].rows);
      rows.sort((first, second) => {
        const a = key(first), b = key(second);
        if (a === null || b === null) return (a === null) - (b === null);
        const order = typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b));
        return up ? order : -order;
      });
      table.tBodies[0].append(...rows);
      heads.forEach((other) => delete other.dataset.order);
      head.dataset.order = up ? "up" : "down";
    };
    head.addEventListener("click", sort);
    head.addEventListener("keydown", (event) => { if (event.key === "Enter") sort(); });
  });
});
