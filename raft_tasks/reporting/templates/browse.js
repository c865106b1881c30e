"use strict";
// Search within lists of flips and anchors; without a script they are simply whole.
for (const part of document.querySelectorAll("[data-browse]")) {
  const finder = part.querySelector(".finder");
  const items = [...part.querySelectorAll("li")];
  const texts = items.map((item) => item.textContent.toLowerCase());
  const words = finder.querySelector("[data-words]");
  const fields = [...finder.querySelectorAll("select")];
  const show = () => {
    const asked = words.value.toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    items.forEach((item, place) => {
      const fits =
        asked.every((word) => texts[place].includes(word)) &&
        fields.every((field) => !field.value || item.dataset[field.dataset.field] === field.value);
      item.hidden = !fits;
      shown += fits;
    });
    finder.querySelector("output").textContent = `${shown} of ${items.length} shown`;
  };
  finder.hidden = false;
  finder.addEventListener("input", show);
  show();
}
