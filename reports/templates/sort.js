for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells];
  const key = (body, place) => {
    const text = body.rows[0].cells[place].textContent.trim(), number = parseFloat(text.replace(/^K = /, ""));
    return [Number.isNaN(number) ? null : number, text];
  };
  heads.forEach((head, place) => {
    if (head.dataset.fixed !== undefined) return;
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = head.textContent;
    head.replaceChildren(button);
    button.addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") === "ascending" ? -1 : 1;
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", down > 0 ? "ascending" : "descending");
      const cases = [...table.tBodies].map((body) => [key(body, place), body]);
      cases.sort(([[a, s]], [[b, t]]) => a === null || b === null ? (a === null) - (b === null) || down * s.localeCompare(t) : down * (a - b));
      table.append(...cases.map(([, body]) => body));
    });
  });
  const label = document.createElement("label"), input = document.createElement("input"), count = document.createElement("output");
  label.className = "filter";
  input.type = "search";
  input.placeholder = "such as bitnet 2:4";
  label.append("Show only cases with ", input, " ", count);
  table.parentElement.before(label);
  input.addEventListener("input", () => {
    const words = input.value.toLowerCase().split(/\s+/);
    for (const body of table.tBodies) body.hidden = !words.every((word) => body.rows[0].textContent.toLowerCase().includes(word));
    count.textContent = input.value.trim() ? `${[...table.tBodies].filter((body) => !body.hidden).length} of ${table.tBodies.length}` : "";
  });
}
