// The playground: a document on the left, what POST /ocr reads from it on the right.

import { Problem, address, correct, kept, models, read, readAs, storing } from "./client.js";
import { Pages } from "./pages.js";
import { Review } from "./review.js";
import { curl, program } from "./snippets.js";
import { TextPane, make } from "./text.js";

const byId = (id) => document.getElementById(id);
const MODELS_EVERY_MS = 15000;
const LOADING_EVERY_MS = 1500;
const STATE_WORDS = { ok: "read", blank: "blank", unreadable: "unreadable", failed: "failed", reading: "being read", waiting: "waiting", stopped: "stopped", corrected: "corrected" };
const CORRECTED_TASKS = new Set(["free", "markdown", "ocr"]);

const review = new Review(byId("review"), () => [...byId("text").querySelectorAll(".page")]);
const text = new TextPane(byId("text"), {
  onLight: (page, indices) => lightBoxes(page, indices),
  onShown: (section, answer) => review.show(section, answer),
  onCorrect: (page, words) => saveCorrection(page, words),
});
const TASKS = [...byId("task").options].map((option) => [option.value, option.text]);
let served = [];
let samples = "off";
let pages = null;
let current = 1;
let running = null;
let shown = null;
let lit = null;

/* Models */

function fill(select, entries) {
  const chosen = select.value;
  const labels = entries.map(([value, label]) => `${value}\n${label}`).join("\n");
  // Untouched where nothing has changed, since a list that is open would close.
  if (select.dataset.labels === labels) return;
  select.dataset.labels = labels;
  select.replaceChildren(...entries.map(([value, label]) => new Option(label, value)));
  if (entries.some(([value]) => value === chosen)) select.value = chosen;
}

const nameOf = (model) => (model.root === model.id ? model.id : `${model.id} (${model.root})`);

async function showModels() {
  let delay_ms = MODELS_EVERY_MS;
  try {
    if (document.visibilityState === "visible" || !served.length) {
      [served, samples] = await Promise.all([models(), kept()]);
      byId("keep-label").hidden = samples === "off";
      const names = served.map((model) => [model.id, nameOf(model)]);
      fill(byId("model"), names);
      byId("model").disabled = false;
      byId("service").textContent = `${served.length} model${served.length === 1 ? "" : "s"} ready`;
      byId("service").className = "ready";
      showChoices();
      update();
    }
  } catch (error) {
    byId("service").textContent = error.body?.code === "not_ready" ? "The model is loading" : "Not connected";
    byId("service").className = "";
    delay_ms = LOADING_EVERY_MS;
  }
  setTimeout(showModels, delay_ms);
}

// What the chosen model can do, its modes, and what it can be compared with.
function showChoices() {
  const model = served.find((each) => each.id === byId("model").value);
  if (!model) return;
  fill(byId("task"), TASKS.filter(([task]) => model.tasks.includes(task)));
  const others = served.filter((each) => each !== model && each.tasks.includes(byId("task").value));
  byId("other-label").hidden = !others.length;
  fill(byId("other"), [["", "nothing"], ...others.map((each) => [each.id, nameOf(each)])]);
  fill(byId("mode"), [["", `default (${model.default_mode})`], ...model.modes.map((mode) => [mode, mode])]);
}

/* Document */

async function choose(files) {
  const file = files?.[0];
  if (!file) return;
  stop();
  pages?.close();
  const opened = (pages = new Pages(file));
  current = 1;
  shown = null;
  showProblem(null);
  review.clear();
  text.clear();
  const name = file.name || "pasted image";
  byId("name").textContent = name;
  byId("name").title = name;
  byId("facts").textContent = "";
  note(files.length > 1 ? `Only the first of ${files.length} files was opened.` : "");
  byId("text").replaceChildren(make("p", "quiet", "The text appears here while it is read."));
  byId("empty").hidden = byId("sheet").hidden = true;
  byId("replace").hidden = false;
  byId("pages").value = "";
  showPicture(null, "Opening");
  showThumbs();
  update();
  try {
    await opened.open();
  } catch (error) {
    if (opened !== pages) return;
    showPicture(null, "This file cannot be shown.");
    if (error instanceof Problem) showProblem(error);
    return;
  }
  if (opened !== pages) return;
  showThumbs();
  goTo(1);
  if (!opened.isSmall) return;
  for (let page = 2; page <= opened.count && opened === pages; page += 1) {
    try {
      await opened.picture(page);
    } catch {
      continue;
    }
    if (opened === pages) showThumb(page);
  }
}

async function goTo(page, isTextScrolled = true) {
  if (!pages || page < 1 || page > pages.count) return;
  current = page;
  byId("position").textContent = `${page} / ${pages.count}`;
  byId("previous").disabled = page === 1;
  byId("next").disabled = page === pages.count;
  for (const thumb of byId("thumbs").children) {
    const button = thumb.firstChild;
    const isCurrent = Number(button.dataset.page) === page;
    button.tabIndex = isCurrent ? 0 : -1;
    button.setAttribute("aria-current", isCurrent ? "page" : "false");
    if (isCurrent) scrollInto(byId("thumbs"), thumb);
  }
  const section = text.sections.get(page);
  if (section && isTextScrolled && pages.count > 1) byId("text").scrollTop = section.offsetTop - byId("text").offsetTop;
  const opened = pages;
  if (!opened.pictures.has(page)) showPicture(null, "Opening");
  try {
    const picture = await opened.picture(page);
    if (opened !== pages || current !== page) return;
    showPicture(picture);
    showThumb(page);
  } catch (error) {
    if (opened === pages && current === page) showPicture(null, error.text ?? "This page cannot be shown.");
  }
}

// Without moving the window, which `scrollIntoView` would.
function scrollInto(list, child) {
  const left = child.offsetLeft - list.offsetLeft;
  if (left < list.scrollLeft) list.scrollLeft = left;
  else if (left + child.offsetWidth > list.scrollLeft + list.clientWidth) list.scrollLeft = left + child.offsetWidth - list.clientWidth;
}

function showPicture(picture, instead = "") {
  byId("no-picture").hidden = Boolean(picture);
  byId("no-picture").textContent = instead;
  byId("sheet").hidden = byId("zoom").hidden = !picture;
  byId("boxes").replaceChildren();
  if (!picture) return;
  byId("image").src = picture.url;
  byId("image").alt = `Page ${current} of ${byId("name").textContent}`;
  byId("sheet").style.setProperty("--ratio", String(picture.width / picture.height));
  showBoxes();
}

function showThumbs() {
  const isLong = pages.count > 1;
  byId("pager").hidden = byId("thumbs").hidden = !isLong;
  const thumbs = [];
  for (let page = 1; isLong && page <= pages.count; page += 1) {
    const button = make("button", "", make("span", "number", String(page)));
    button.type = "button";
    button.dataset.page = page;
    button.addEventListener("click", () => goTo(page));
    thumbs.push(make("li", "", button));
  }
  byId("thumbs").replaceChildren(...thumbs);
  for (let page = 1; page <= thumbs.length; page += 1) showThumb(page);
}

function showThumb(page) {
  const button = byId("thumbs").children[page - 1]?.firstChild;
  if (!button) return;
  const picture = pages.pictures.get(page);
  if (picture && !button.querySelector("img")) {
    const image = make("img");
    image.src = picture.url;
    image.alt = "";
    button.prepend(image);
  }
  const state = text.state(page);
  button.dataset.state = state;
  button.setAttribute("aria-label", `Page ${page}${state ? `, ${STATE_WORDS[state]}` : ""}`);
}

/* Boxes */

function showBoxes() {
  const boxes = byId("boxes");
  boxes.replaceChildren();
  const answer = text.answer(current);
  if (!answer?.regions.length || byId("sheet").hidden) return;
  boxes.setAttribute("viewBox", `0 0 ${answer.width_px} ${answer.height_px}`);
  // The largest first, so that a box within another can be reached.
  const area = ([left, top, right, bottom]) => (right - left) * (bottom - top);
  const order = answer.regions.map((region, index) => ({ region, index })).sort((a, b) => area(b.region.box_px) - area(a.region.box_px));
  for (const { region, index } of order) {
    const [left, top, right, bottom] = region.box_px;
    const box = document.createElementNS("http://www.w3.org/2000/svg", "rect");
    const sides = { x: left, y: top, width: Math.max(right - left, 1), height: Math.max(bottom - top, 1) };
    for (const [name, value] of Object.entries(sides)) box.setAttribute(name, value);
    box.dataset.region = index;
    const title = document.createElementNS("http://www.w3.org/2000/svg", "title");
    title.textContent = region.label;
    box.append(title);
    box.addEventListener("pointerenter", () => { lightBoxes(current, [index]); text.light(current, index); });
    box.addEventListener("pointerleave", () => { lightBoxes(current, []); text.light(current, -1); });
    boxes.append(box);
  }
}

async function lightBoxes(page, indices) {
  lit = { page, indices };
  const wanted = lit;
  // The text stays where it is: it is under the pointer.
  if (indices.length && page !== current) await goTo(page, false);
  if (page !== current || wanted !== lit) return;
  for (const box of byId("boxes").children) box.classList.toggle("lit", indices.includes(Number(box.dataset.region)));
  for (const index of indices) text.light(page, index, false);
  if (!indices.length) text.light(page, -1);
}

/* Reading */

function fields(model = byId("model").value) {
  const values = { model_id: model, task: byId("task").value, mode: byId("mode").value, pages: byId("pages").value.trim() };
  if (served.length < 2) values.model_id = "";
  if (values.task === "free") values.task = "";
  if (values.task === "locate") values.query = byId("query").value;
  return values;
}

function stop() {
  running?.abort();
  running = null;
}

function expected() {
  const given = byId("pages").value.trim();
  return given || !pages.pictures.size ? [] : Array.from({ length: pages.count }, (_, index) => index + 1);
}

async function start() {
  if (running) {
    stop();
    return;
  }
  const chosen = [byId("model").value, byId("other").value].filter((name, index) => index === 0 || name);
  running = new AbortController();
  const { signal } = running;
  const isKept = samples !== "off" && byId("keep").checked;
  const reading = { file: pages.file, isKept, headers: headers(), task: byId("task").value, columns: chosen.map((name) => ({ name, fields: fields(name), answer: null })) };
  shown = reading;
  showProblem(null);
  note("");
  review.clear();
  text.clear(byId("task").value, chosen, pages.count > 1);
  text.expect(expected());
  showBoxes();
  byId("text").setAttribute("aria-busy", "true");
  byId("facts").textContent = "Reading";
  update();
  const started_ms = performance.now();
  const outcomes = await Promise.all(reading.columns.map((_, column) => readColumn(column, reading, signal)));
  if (reading !== shown) return;
  running = null;
  byId("text").setAttribute("aria-busy", "false");
  showFacts(outcomes, (performance.now() - started_ms) / 1000);
  for (let page = 1; page <= pages.count; page += 1) showThumb(page);
  update();
}

async function readColumn(column, reading, signal) {
  const { fields: chosen } = reading.columns[column];
  let outcome = "done";
  try {
    for await (const [name, data] of read(reading.file, { ...chosen, confidence: "word" }, signal, reading.headers)) {
      if (reading !== shown) return "stopped";
      if (name === "delta") text.delta(column, data.page, data.text);
      else if (name === "page") finishPage(column, data);
      else if (name === "answer") {
        reading.columns[column].answer = data;
        for (const page of data.pages) finishPage(column, page);
      } else if (name === "error") throw new Problem(data);
      if (column === 0 && data.page) showThumb(data.page);
    }
  } catch (error) {
    outcome = error.name === "AbortError" ? "stopped" : "failed";
    if (reading !== shown) return outcome;
    text.stop(column);
    if (outcome === "failed") showProblem(error instanceof Problem ? error : new Problem({ title: String(error.message), code: "page_script" }));
  }
  return outcome;
}

function headers() {
  return samples === "off" ? {} : storing(byId("keep").checked);
}

// Once the answer is there, since a correction names it.
function canCorrect() {
  return Boolean(!running && shown?.isKept && shown.columns.length === 1 && shown.columns[0].answer && CORRECTED_TASKS.has(shown.task));
}

async function saveCorrection(page, words) {
  const reading = shown;
  await correct(reading.columns[0].answer.id, page, words);
  if (reading !== shown) return;
  note(`The correction of page ${page} is saved.`);
  // The pane shows it only after this.
  setTimeout(() => { showThumb(page); update(); });
}

function finishPage(column, page) {
  text.finish(column, page);
  if (column === 0 && page.page === current) showBoxes();
}

function showFacts(outcomes, seconds) {
  const answers = shown.columns.map((column) => column.answer).filter(Boolean);
  if (outcomes.includes("failed")) byId("facts").textContent = "Failed";
  else if (outcomes.includes("stopped")) byId("facts").textContent = "Stopped";
  else {
    const tokens = answers.reduce((sum, answer) => sum + answer.usage.completion_tokens, 0);
    const numPages = answers[0].pages.length;
    const parts = [`${seconds.toFixed(1)} s`, `${tokens} tokens`, shown.columns.length > 1 ? "" : answers[0].model_id];
    if (numPages > 1) parts.unshift(`${numPages} pages`);
    byId("facts").textContent = parts.filter(Boolean).join(" \u00b7 ");
  }
}

function showProblem(problem) {
  byId("problem").hidden = !problem;
  byId("problem").textContent = problem ? problem.text : "";
}

function note(words) {
  byId("note").textContent = words;
}

/* Taking it along */

async function copy(words) {
  try {
    // Only in a secure context, which plain HTTP on another host is not.
    await navigator.clipboard.writeText(words);
    return true;
  } catch {
    const area = make("textarea", "aside", words);
    document.body.append(area);
    const { activeElement } = document;
    area.select();
    const isCopied = document.execCommand("copy");
    area.remove();
    activeElement?.focus();
    return isCopied;
  }
}

const copied = async (words) => note((await copy(words)) ? "Copied" : "The browser did not allow copying.");

function save(blob, name) {
  const link = make("a", "aside");
  link.href = URL.createObjectURL(blob);
  link.download = name;
  document.body.append(link);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(link.href), 60000);
}

async function download() {
  const { file, columns: [{ answer, fields: chosen }] } = shown;
  const format = byId("format").value;
  const stem = (file.name || "page").replace(/\.[^.]*$/, "") || "page";
  if (format === "json") save(new Blob([JSON.stringify(answer, null, 2), "\n"], { type: "application/json" }), `${stem}.json`);
  else if (format === "markdown") save(new Blob([text.plain(), "\n"], { type: "text/markdown" }), `${stem}.md`);
  else {
    byId("download").disabled = true;
    note("Preparing the file");
    try {
      const { blob, name } = await readAs(file, chosen, format);
      save(blob, name);
      note("");
    } catch (error) {
      note(error.text ?? String(error));
    }
    update();
  }
}

function showSnippet() {
  const given = Object.entries(fields()).filter(([, value]) => value);
  const name = pages?.file.name || "page.png";
  const url = address("ocr");
  const isPython = document.querySelector("input[name=language]:checked").value === "python";
  byId("snippet").textContent = isPython ? program(url, name, given, headers()) : curl(url, name, given, headers());
}

/* What can be done now */

function update() {
  const isFinding = byId("task").value === "locate";
  byId("query-label").hidden = !isFinding;
  byId("query").required = isFinding;
  byId("go").textContent = running ? "Stop" : "Read";
  byId("go").classList.toggle("stop", Boolean(running));
  byId("go").disabled = !running && (!pages || !served.length);
  const hasText = Boolean(shown && text.plain());
  byId("copy").disabled = !hasText || Boolean(running);
  // Of two models, the first one's text is taken along.
  byId("copy").title = byId("download").title = shown?.columns.length > 1 ? `The text of ${shown.columns[0].name}` : "";
  text.setCorrectable(canCorrect());
  byId("download").disabled = !shown?.columns[0].answer || Boolean(running);
  showSnippet();
}

byId("form").addEventListener("submit", (event) => { event.preventDefault(); start(); });
byId("form").addEventListener("input", () => { showChoices(); update(); });
byId("choose").addEventListener("click", () => byId("file").click());
byId("replace").addEventListener("click", () => byId("file").click());
byId("photograph").addEventListener("click", () => byId("camera").click());
for (const id of ["file", "camera"]) {
  byId(id).addEventListener("change", (event) => {
    choose([...event.target.files]);
    // So that the same file can be chosen again.
    event.target.value = "";
  });
}
byId("sample").addEventListener("click", async () => {
  const response = await fetch(address("web/sample-invoice.png"));
  choose([new File([await response.blob()], "sample-invoice.png", { type: "image/png" })]);
});
byId("previous").addEventListener("click", () => goTo(current - 1));
byId("next").addEventListener("click", () => goTo(current + 1));
byId("zoom").addEventListener("click", () => {
  const isLarge = byId("stage").classList.toggle("large");
  byId("zoom").setAttribute("aria-pressed", String(isLarge));
});
byId("views").addEventListener("change", (event) => text.setRendered(event.target.value === "rendered"));
byId("copy").addEventListener("click", () => copied(text.plain()));
byId("download").addEventListener("click", download);
byId("copy-code").addEventListener("click", () => copied(byId("snippet").textContent));
byId("code").addEventListener("change", showSnippet);

document.addEventListener("keydown", (event) => {
  if (!pages || pages.count < 2 || event.altKey || event.ctrlKey || event.metaKey || event.shiftKey) return;
  if (event.target.closest("input, select, textarea")) return;
  const page = { ArrowLeft: current - 1, ArrowRight: current + 1, Home: 1, End: pages.count }[event.key];
  const isInStrip = event.key === "Home" || event.key === "End";
  if (page === undefined || (isInStrip && !event.target.closest("#thumbs"))) return;
  event.preventDefault();
  goTo(page);
  if (event.target.closest("#thumbs")) byId("thumbs").children[current - 1].firstChild.focus();
});
document.addEventListener("paste", (event) => choose([...event.clipboardData.files]));
let depth = 0;
const over = (change) => {
  depth = Math.max(depth + change, 0);
  document.body.classList.toggle("over", depth > 0);
};
document.addEventListener("dragenter", (event) => { event.preventDefault(); over(1); });
document.addEventListener("dragleave", () => over(-1));
document.addEventListener("dragover", (event) => event.preventDefault());
document.addEventListener("drop", (event) => {
  event.preventDefault();
  over(-depth);
  choose([...event.dataTransfer.files]);
});

showSnippet();
showModels();
