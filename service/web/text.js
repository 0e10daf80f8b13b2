// The text that was read: a section for each page, a column for each model. Text is only ever set as text.

import { correctionForm } from "./correction.js";
import { diff } from "./diff.js";
import { render } from "./markdown.js";

const STATES = { waiting: "Waiting", reading: "Reading", ok: "Read", blank: "Blank", unreadable: "Unreadable", failed: "Failed", stopped: "Stopped", corrected: "Corrected" };
const EXPLAINED = {
  blank: "Nothing is printed on this page.",
  unreadable: "There is something on this page, but no text that could be trusted.",
  stopped: "Reading ended before this page was finished.",
};
const ALARMING = new Set(["low_accuracy", "partly_read", "damaged_image"]);
const MARKDOWN_TASKS = new Set(["markdown", "figure"]);

export const make = (name, className, ...children) => {
  const made = document.createElement(name);
  if (className) made.className = className;
  made.append(...children);
  return made;
};

// The model's own text as it arrives, without markers and boxes.
export function withoutMarkers(text, task) {
  const labels = task === "markdown" ? /<\|ref\|>[^]*?<\|\/ref\|>\s*(?=<\|det\|>)/g : /<\|\/?ref\|>/g;
  return text
    .replace(labels, "")
    .replace(/<\|det\|>[^]*?(?:<\|\/det\|>\n?|$)/g, "")
    .replace(/<\|ref\|>[^]*$/, (tail) => (task === "markdown" ? "" : tail))
    .replace(/<\|grounding\|>/g, "")
    .replace(/<(?:\|[/a-z]*\|?)?$/, "");
}

// The page's text cut into [text, indices of its regions]; compared without white space, which the answer has lost in part.
export function passages(page) {
  const places = [];
  for (let at = 0; at < page.text.length; at += 1) if (/\S/.test(page.text[at])) places.push(at);
  const solid = places.map((at) => page.text[at]).join("");
  places.push(page.text.length);
  const found = [];
  let at = 0;
  let last = null;
  page.regions.forEach((region, index) => {
    const key = region.text.replace(/\s+/g, "");
    if (!key) return;
    if (last && last.key === key && last.label === region.label) {
      // One text with several boxes.
      last.indices.push(index);
      return;
    }
    const start = solid.indexOf(key, at);
    if (start < 0) return;
    if (start > at) found.push({ text: page.text.slice(places[at], places[start]), indices: [] });
    const end = start + key.length;
    last = { text: page.text.slice(places[start], places[end]), indices: [index], key, label: region.label };
    found.push(last);
    at = end;
  });
  if (at < solid.length || !found.length) found.push({ text: page.text.slice(places[at] ?? 0), indices: [] });
  return found;
}

// Links to the figures of the answer as pictures; all others stay text, since nothing is loaded from elsewhere.
function withFigures(fragment, figures) {
  if (!figures.size) return fragment;
  const walker = document.createTreeWalker(fragment, NodeFilter.SHOW_TEXT);
  const nodes = [];
  while (walker.nextNode()) nodes.push(walker.currentNode);
  for (const node of nodes) {
    const parts = node.data.split(/(!\[[^\]\n]*\]\([^)\s]+\))/);
    node.replaceWith(...parts.map((part) => {
      const name = /^!\[[^\]\n]*\]\(([^)\s]+)\)$/.exec(part)?.[1];
      if (!figures.has(name)) return part;
      const image = make("img", "figure");
      Object.assign(image, { src: figures.get(name), alt: name });
      return image;
    }));
  }
  return fragment;
}

export class TextPane {
  // `onLight(page, indices, mark)` is told which regions' text is under the pointer or has the focus, [] for none; `mark` is
  // around the doubtful word that has the focus, if one has it.
  // `onShown(section, answer)` is told when a page was drawn; its answer is null unless it is one model's, and finished.
  // `onCorrect(page, text)` stores a correction, and may throw a Problem.
  constructor(root, { onLight, onShown, onCorrect }) {
    this.root = root;
    this.onLight = onLight;
    this.onShown = onShown;
    this.onCorrect = onCorrect;
    this.isCorrectable = false;
    this.sections = new Map();
    this.dirty = new Set();
    this.isRendered = true;
    this.clear();
  }

  clear(task = "free", models = [], isLong = false) {
    this.task = task;
    this.models = models;
    this.isLong = isLong;
    this.columns = models.map(() => new Map());
    for (const url of this.figures?.values() ?? []) URL.revokeObjectURL(url);
    this.figures = new Map();
    this.images = new Map();
    this.joins = [];
    this.joined = null;
    this.sections.clear();
    this.dirty.clear();
    if (models.length) this.root.replaceChildren();
  }

  entry(column, page) {
    const pages = this.columns[column];
    if (!pages.has(page)) pages.set(page, { state: "waiting", text: "", answer: null });
    return pages.get(page);
  }

  expect(pages) {
    for (const page of pages) this.columns.forEach((_, column) => this.entry(column, page));
    for (const page of pages) this.show(page);
  }

  delta(column, page, text) {
    const entry = this.entry(column, page);
    entry.state = "reading";
    entry.text += text;
    this.mark(page);
  }

  finish(column, answer) {
    Object.assign(this.entry(column, answer.page), { state: answer.status, answer, text: answer.text });
    this.mark(answer.page);
  }

  // What has not been finished will not be; where nothing came and an error says why, the pages say nothing.
  stop(column, isFailed) {
    if (isFailed && this.columns.length === 1 && ![...this.columns[0].values()].some((entry) => entry.answer || entry.text)) {
      this.clear(this.task, this.models, this.isLong);
      return;
    }
    for (const [page, entry] of this.columns[column]) {
      if (!entry.answer) entry.state = "stopped";
      this.mark(page);
    }
  }

  // Of the first column: pictures that its pages link, each with a JPEG file as a data URL.
  setFigures(column, figures) {
    if (column !== 0) return;
    for (const { name, image } of figures) {
      const bytes = Uint8Array.from(atob(image.slice(image.indexOf(",") + 1)), (each) => each.charCodeAt(0));
      // The policy lets no data URL be shown.
      this.figures.set(name, URL.createObjectURL(new Blob([bytes], { type: "image/jpeg" })));
      this.images.set(name, image);
    }
  }

  // Of the first column: what goes on from a page to the next.
  setJoins(column, { joins, text }) {
    if (column !== 0) return;
    this.joins = joins;
    this.joined = text;
  }

  numFinished(column) {
    return [...this.columns[column].values()].filter((entry) => entry.answer).length;
  }

  setRendered(isRendered) {
    this.isRendered = isRendered;
    for (const page of this.sections.keys()) this.mark(page);
  }

  // Whether pages that were read can be corrected.
  setCorrectable(isCorrectable) {
    if (isCorrectable === this.isCorrectable) return;
    this.isCorrectable = isCorrectable;
    for (const page of this.sections.keys()) this.mark(page);
  }

  // Whether a correction was begun that is not saved.
  get hasUnsaved() {
    return [...this.root.querySelectorAll(".correction textarea")].some((area) => area.value !== area.defaultValue);
  }

  edit(page) {
    const entry = this.entry(0, page);
    const finish = (corrected) => {
      entry.form = null;
      if (corrected !== null) Object.assign(entry, { text: corrected, state: "corrected", answer: { ...entry.answer, text: corrected } });
      this.show(page);
      this.sections.get(page)?.querySelector(".correct")?.focus();
    };
    const { form, focus } = correctionForm(page, entry.text, { onSave: (words) => this.onCorrect(page, words), onEnd: finish });
    this.show(page);
    entry.form = form;
    this.section(page).lastChild.replaceChildren(form);
    this.section(page).querySelector(".correct")?.remove();
    focus();
  }

  mark(page) {
    if (!this.dirty.size) {
      requestAnimationFrame(() => {
        for (const each of this.dirty) this.show(each);
        this.dirty.clear();
      });
    }
    this.dirty.add(page);
  }

  state(page) {
    return this.columns.map((pages) => pages.get(page)?.state).find(Boolean) ?? "";
  }

  // The page whose text is at this height of the pane, in pixels from its start.
  pageAt(top) {
    let found = Number(this.root.firstElementChild?.dataset.page) || null;
    for (const section of this.root.children) if (section.offsetTop <= top) found = Number(section.dataset.page) || found;
    return found;
  }

  answer(page) {
    return this.columns[0]?.get(page)?.answer ?? null;
  }

  section(page) {
    let section = this.sections.get(page);
    if (!section) {
      section = make("article", "page");
      section.dataset.page = page;
      this.sections.set(page, section);
      const after = [...this.root.children].find((each) => Number(each.dataset.page) > page);
      this.root.insertBefore(section, after ?? null);
    }
    return section;
  }

  show(page) {
    const section = this.section(page);
    const entries = this.columns.map((pages, column) => this.entry(column, page));
    // The form stays as it is while someone writes.
    if (entries[0]?.form) return;
    const parts = entries.map((entry) => this.parts(entry, page));
    let difference = null;
    if (entries.length === 2 && entries.every((entry) => entry.answer)) {
      difference = diff(entries[0].text, entries[1].text);
      [difference.before, difference.after].forEach((runs, column) => {
        const name = column ? "ins" : "del";
        const nodes = runs.map(([text, isChanged]) => (isChanged ? make(name, "", text) : text));
        if (entries[column].text) parts[column] = [make("div", "source", ...nodes)];
      });
    }
    const head = make("header", "page-head", make("h3", "", `Page ${page}`));
    if (difference) {
      const { changed } = difference;
      head.append(make("span", "quiet", changed ? `${changed} character${changed === 1 ? "" : "s"} differ` : "The same text"));
    }
    const isCompared = entries.length > 1;
    const columns = entries.map((entry, column) => {
      const state = make("span", `state ${entry.state}`, STATES[entry.state] ?? entry.state);
      const facts = make("p", "column-head quiet", ...(isCompared ? [make("strong", "", this.models[column])] : []), state, this.quality(entry));
      if (!isCompared) head.append(...facts.childNodes);
      return make("div", "column", ...(isCompared ? [facts] : []), ...parts[column]);
    });
    if (this.isCorrectable && !isCompared && entries[0].answer && !entries[0].answer.error) {
      const button = make("button", "correct", "Correct");
      button.type = "button";
      button.setAttribute("aria-label", `Correct the text of page ${page}`);
      button.addEventListener("click", () => this.edit(page));
      head.append(button);
    }
    section.replaceChildren(head, make("div", isCompared ? "columns" : "", ...columns));
    section.classList.toggle("alone", !this.isLong && !isCompared && ["ok", "corrected"].includes(entries[0].state));
    this.onShown(section, isCompared ? null : entries[0].answer);
  }

  quality({ answer, state }) {
    const notes = [];
    if (answer?.confidence != null && answer.status === "ok" && state !== "corrected") notes.push(`${Math.round(answer.confidence * 100)} % confidence`);
    if (answer?.turned_degrees) notes.push(`turned by ${answer.turned_degrees}\u00b0`);
    if (this.models[0] === "auto" && answer?.model_id) notes.push(`read by ${answer.model_id}`);
    const join = this.joins.find((each) => each.page === answer?.page);
    if (join) notes.push(`its last ${join.kind} goes on on page ${join.next_page}`);
    if (answer?.finish_reason === "length") notes.push("cut at the limit of tokens");
    if (answer?.finish_reason === "repetition") notes.push("ended because the text repeated itself");
    if (answer?.warnings?.includes("damaged_image")) notes.push("a part of the page is damaged");
    if (answer?.warnings?.includes("partly_read")) notes.push(`${Math.round(answer.coverage * 100)} % of the print read; the rest has dashed boxes`);
    if (answer?.warnings?.includes("second_reading_failed")) notes.push("the larger model could not read it");
    if (answer?.warnings?.includes("low_accuracy")) notes.push("many words are probably wrong: a tilted or dark photo, handwriting, or a script that the model does not read?");
    const isDoubtful = answer?.warnings?.some((each) => ALARMING.has(each));
    return make("span", isDoubtful ? "quiet alarm" : "quiet", notes.join(", "));
  }

  parts(entry, page) {
    if (entry.answer?.error) {
      const { title, code, advice } = entry.answer.error;
      return [make("p", "why", `${title}${advice ? ` ${advice}` : ""} (${code})`)];
    }
    const why = EXPLAINED[entry.state] ? [make("p", "why", EXPLAINED[entry.state])] : [];
    if (entry.state === "waiting") return [make("p", "lines", "")];
    const pieces = entry.answer ? passages(entry.answer) : [{ text: withoutMarkers(entry.text, this.task), indices: [] }];
    const hasSource = MARKDOWN_TASKS.has(this.task);
    const isMarkdown = this.isRendered && hasSource;
    const body = make("div", isMarkdown ? "rendered" : hasSource ? "source" : "plain");
    const rendered = (words) => withFigures(render(words), this.figures);
    for (const { text, indices } of pieces) {
      if (!indices.length) {
        body.append(isMarkdown ? rendered(text) : text);
        continue;
      }
      const passage = make(isMarkdown ? "div" : "span", "passage", isMarkdown ? rendered(text) : text);
      passage.dataset.regions = indices.join(" ");
      passage.tabIndex = 0;
      passage.addEventListener("pointerenter", () => this.onLight(page, indices));
      // A doubtful word in it may have the focus.
      passage.addEventListener("focusin", (event) => this.onLight(page, indices, event.target.closest("mark.doubtful")));
      for (const event of ["pointerleave", "focusout"]) passage.addEventListener(event, () => this.onLight(page, []));
      body.append(passage);
    }
    return [...why, ...(entry.text || !why.length ? [body] : [])];
  }

  // Light the text of a region, -1 for none.
  light(page, index, isScrolled = true) {
    for (const passage of this.sections.get(page)?.querySelectorAll(".passage") ?? []) {
      const isLit = passage.dataset.regions.split(" ").includes(String(index));
      passage.classList.toggle("lit", isLit);
      if (isLit && isScrolled) passage.scrollIntoView({ block: "nearest" });
    }
  }

  // The texts of a column's pages, as the answer joins them.
  plain(column = 0) {
    const entries = [...(this.columns[column]?.values() ?? [])];
    if (column === 0 && this.joined !== null && !entries.some((entry) => entry.state === "corrected")) return this.joined;
    const pages = [...(this.columns[column] ?? [])].sort(([a], [b]) => a - b);
    return pages.map(([, entry]) => (entry.answer ? entry.text : withoutMarkers(entry.text, this.task))).filter(Boolean).join("\n\n");
  }
  // The text of the first column as a file that needs no other.
  markdown() {
    let whole = this.plain();
    for (const [name, image] of this.images) whole = whole.replaceAll(`![${name}](${name})`, `![${name}](${image})`);
    return whole;
  }
}
