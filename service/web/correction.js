// A page's text as a form: what is printed there, to be saved with the page.

import { Problem } from "./client.js";

const make = (name, attributes, ...children) => {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
};

// `onSave(text)` stores the text and may throw a Problem; `onEnd(text)` gets it once it is stored, null if it was not changed.
export function correctionForm(page, text, { onSave, onEnd }) {
  const id = `correction-${page}`;
  const area = make("textarea", { id, dir: "auto", spellcheck: "true", "aria-describedby": `${id}-how` });
  const save = make("button", { type: "submit", class: "main" }, "Save");
  const cancel = make("button", { type: "button" }, "Cancel");
  const problem = make("p", { role: "alert", class: "wrong", hidden: "" });
  const form = make(
    "form",
    { class: "correction", "aria-label": `Correct page ${page}` },
    make("label", { for: id }, `What is printed on page ${page}`),
    area,
    make("p", { id: `${id}-how`, class: "quiet" }, "The whole page, line by line. It is saved with the page, for models to learn from. Ctrl+Enter saves, Escape cancels."),
    problem,
    make("div", { class: "group" }, save, cancel),
  );
  area.defaultValue = text;
  area.rows = Math.min(Math.max(text.split("\n").length + 1, 4), 24);
  const hold = (isHeld) => { for (const each of [area, save, cancel]) each.disabled = isHeld; };
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    if (save.disabled) return;
    const words = area.value;
    problem.hidden = true;
    hold(true);
    try {
      await onSave(words);
    } catch (error) {
      problem.textContent = error instanceof Problem ? `${error.text} (${error.body.code})` : String(error.message);
      problem.hidden = false;
      hold(false);
      area.focus();
      return;
    }
    onEnd(words);
  });
  cancel.addEventListener("click", () => onEnd(null));
  area.addEventListener("keydown", (event) => {
    // Keys that choose among an input method's words are its own.
    if (event.isComposing) return;
    if (event.key === "Escape") onEnd(null);
    else if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) form.requestSubmit();
    else return;
    event.preventDefault();
  });
  return { form, focus: () => area.focus() };
}
