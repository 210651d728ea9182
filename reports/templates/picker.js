{
  const form = document.getElementById("picker"), note = document.getElementById("picker-note");
  const cards = form ? [...document.querySelectorAll("article.answer")] : [];
  const distance = (card, tokens) => Math.abs(Math.log(card.dataset.tokens / tokens));
  const show = () => {
    const wanted = {model: form.model.value, work: form.work.value, weights: form.weights.value}, tokens = Math.max(1, form.tokens.valueAsNumber || 1);
    const able = cards.filter((card) => Object.entries(wanted).every(([name, value]) => card.dataset[name] === value));
    const best = able.sort((a, b) => distance(a, tokens) - distance(b, tokens) || a.dataset.tokens - b.dataset.tokens)[0];
    cards.forEach((card) => { card.hidden = card !== best; });
    document.getElementById("picker-tokens").replaceChildren(...able.map((card) => new Option(card.dataset.tokens)).sort((a, b) => a.value - b.value));
    note.textContent = !best ? `Not measured: ${wanted.model}, ${form.work.selectedOptions[0].text}, ${wanted.weights}. Measured for this model: ` +
      [...form.work.options].map((work) => [work.text, [...new Set(cards.filter((card) => card.dataset.model === wanted.model && card.dataset.work === work.value)
        .map((card) => card.dataset.weights))].join(", ")]).filter(([, weights]) => weights).map((entry) => entry.join(" ")).join("; ") + "."
      : best.dataset.tokens != tokens ? `${tokens} tokens were not measured; the nearest count is ${best.dataset.tokens}.` : "";
    note.hidden = !note.textContent;
    return best;
  };
  if (form) {
    const first = document.querySelector("article.answer[data-first]").dataset;
    for (const name of ["model", "work", "weights", "tokens"]) form[name].value = first[name];
    form.hidden = false;
    form.addEventListener("input", () => {
      const best = show();
      document.getElementById("picker-said").textContent = best ? [".where", ".verdict"].map((part) => best.querySelector(part).textContent).join(": ") : "";
    });
    form.addEventListener("submit", (event) => event.preventDefault());
    show();
  }
}
