// The playground: a document on the left, what POST /ocr reads from it on the right.

import { drawBoxes, light } from "./boxes.js";
import { hideCloseUp, showCloseUp } from "./closeup.js";
import { Problem, abilities, address, correct, models, read, readAs, resultAs, storing } from "./client.js";
import { onFiles } from "./incoming.js";
import { follow, storedJob, submit } from "./jobs.js";
import { Options } from "./options.js";
import { Pages } from "./pages.js";
import { Review } from "./review.js";
import { copy, save } from "./saving.js";
import { curl, program } from "./snippets.js";
import { TextPane, make } from "./text.js";

const byId = (id) => document.getElementById(id);
const MODELS_EVERY_MS = 15000;
const LOADING_EVERY_MS = 1500;
const MOST_PAGES_AHEAD = 40;
const KEEP = "deepsynth-keep";
const SCROLL_KEYS = new Set(["ArrowUp", "ArrowDown", "PageUp", "PageDown", "Home", "End", " "]);
const STATE_WORDS = { ok: "read", blank: "blank", unreadable: "unreadable", failed: "failed", reading: "being read", waiting: "waiting", stopped: "stopped", corrected: "corrected" };
const RENDERED_TASKS = new Set(["markdown", "figure"]);
const CORRECTED_TASKS = new Set(["free", "markdown", "ocr"]);
// What no reading can help; of other files a page may still be read.
const HOPELESS = new Set(["unsupported_format", "empty_file"]);
const KEPT = {
  off: ["", "Documents are read by this service alone and not stored."],
  full: ["Keep for training", "This service keeps pages and their text to learn from, unless you untick that above."],
  thumbnail: ["Keep the text", "This service keeps the text and a thumbnail of each page, unless you untick that above."],
};

const review = new Review(byId("review"), () => [...byId("text").querySelectorAll(".page")]);
const text = new TextPane(byId("text"), {
  onLight: (page, indices, mark) => lightBoxes(page, indices, mark),
  onShown: (section, answer) => review.show(section, answer),
  onCorrect: (page, words) => saveCorrection(page, words),
});
const options = new Options(byId("options"), byId("more"));
const TASKS = [...byId("task").options].map((option) => [option.value, option.text]);
let served = [];
let samples = "off";
let hasJobs = false;
let pages = null;
let current = 1;
let running = null;
let shown = null;
let lit = null;
let isHopeless = false;
let isFormatChosen = false;
let isScrolledByHand = false;
let clock = null;

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
      const found = await Promise.all([models(), abilities()]);
      served = found[0];
      ({ samples, jobs: hasJobs } = found[1]);
      byId("keep-label").hidden = samples === "off";
      [byId("keep-words").textContent, byId("privacy").textContent] = KEPT[samples] ?? ["Keep pages", ""];
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
  byId("task-label").hidden = model.tasks.length < 2;
  const others = served.filter((each) => each !== model && each.tasks.includes(byId("task").value));
  byId("other-label").hidden = !others.length;
  fill(byId("other"), [["", "nothing"], ...others.map((each) => [each.id, nameOf(each)])]);
  options.show(situation(model));
  fill(byId("mode"), [["", `default (${model.default_mode})`], ...model.modes.map((mode) => [mode, mode])]);
}

const situation = (model) => ({ model, task: byId("task").value, numPages: pages?.count ?? 1, hasJobs });

/* Document */

// Asks, where a correction would be lost, or what a job has read.
function mayLose() {
  if (text.hasUnsaved && !confirm("A correction is not saved. Go on without it?")) return false;
  return !running || !shown?.isJob || confirm("A document is being read in the background. Stop that, and erase what was read?");
}

// False if the file is not taken.
async function choose(files) {
  const file = files?.[0];
  if (!file || !mayLose()) return false;
  stop();
  pages?.close();
  const opened = (pages = new Pages(file));
  current = 1;
  shown = null;
  isHopeless = false;
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
    isHopeless = HOPELESS.has(error.body?.code);
    showPicture(null, isHopeless ? "This file cannot be read." : "This file cannot be shown.", true);
    if (error instanceof Problem) showProblem(error);
    byId("text").replaceChildren();
    update();
    return;
  }
  if (opened !== pages) return;
  showThumbs();
  showChoices();
  update();
  goTo(1);
  if (!opened.isSmall) return;
  for (let page = 2; page <= Math.min(opened.count, MOST_PAGES_AHEAD) && opened === pages; page += 1) {
    try {
      // Reading goes first: pictures would take the processor from it. Pages that were read show theirs.
      await idle();
      await opened.picture(page);
    } catch {
      continue;
    }
    if (opened === pages) showThumb(page);
  }
}

async function idle() {
  while (running) await new Promise((done) => setTimeout(done, 200));
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
  if (isTextScrolled) isScrolledByHand = false;
  if (section && isTextScrolled && pages.count > 1) byId("text").scrollTop = section.offsetTop;
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
  const left = child.offsetLeft;
  if (left < list.scrollLeft) list.scrollLeft = left;
  else if (left + child.offsetWidth > list.scrollLeft + list.clientWidth) list.scrollLeft = left + child.offsetWidth - list.clientWidth;
}

function showPicture(picture, instead = "", isOver = false) {
  byId("no-picture").hidden = Boolean(picture);
  byId("no-picture").querySelector("p").textContent = instead;
  byId("another").hidden = !isOver;
  byId("sheet").hidden = byId("zoom").hidden = !picture;
  byId("boxes").replaceChildren();
  if (!picture) return;
  byId("image").src = picture.url;
  byId("image").alt = `Page ${current} of ${byId("name").textContent}`;
  byId("sheet").style.setProperty("--ratio", String(picture.width / picture.height));
  showBoxes();
}

// To and fro, with the place at this share of the page's width and height in the middle.
function zoom(x, y) {
  const stage = byId("stage");
  const isLarge = stage.classList.toggle("large");
  byId("zoom").setAttribute("aria-pressed", String(isLarge));
  const sheet = byId("sheet");
  stage.scrollTo(
    sheet.offsetLeft + x * sheet.offsetWidth - stage.clientWidth / 2,
    sheet.offsetTop + y * sheet.offsetHeight - stage.clientHeight / 2,
  );
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
  if (!pages) return;
  const button = byId("thumbs").children[page - 1]?.firstChild;
  if (!button) return;
  const picture = pages.pictures.get(page);
  if (picture) {
    const image = button.querySelector("img") ?? make("img");
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
  byId("boxes").replaceChildren();
  const answer = text.answer(current);
  if (answer?.width_px == null || byId("sheet").hidden) return;
  drawBoxes(byId("boxes"), answer, (index) => {
    lightBoxes(current, index < 0 ? [] : [index]);
    isScrolledByHand = false;
    text.light(current, index);
  });
}

// `mark` is around the doubtful word that has the focus, if one has it.
async function lightBoxes(page, indices, mark = null) {
  lit = { page, indices };
  if (mark) isScrolledByHand = false;
  if (!indices.length) hideCloseUp();
  const wanted = lit;
  // The text stays where it is: it is under the pointer.
  if (indices.length && page !== current) await goTo(page, false);
  if (page !== current || wanted !== lit) return;
  light(byId("boxes"), indices);
  if (mark) showCloseUp(mark, byId("image"), text.answer(page), indices);
  for (const index of indices) text.light(page, index, false);
  if (!indices.length) text.light(page, -1);
}

/* Reading */

function fields(model = byId("model").value) {
  const found = served.find((each) => each.id === model);
  const values = {
    model_id: model, task: byId("task").value, mode: byId("mode").value, pages: byId("pages").value.trim(),
    ...(found ? options.values(situation(found)) : {}),
  };
  if (served.length < 2) values.model_id = "";
  if (values.task === "free") values.task = "";
  if (values.task === "locate") values.query = byId("query").value;
  return values;
}

function stop() {
  running?.abort();
  running = null;
  stopClock();
}

// Seconds that pass, so that a long wait is seen to go on; not read aloud.
function startClock(started_ms) {
  stopClock();
  const tick = () => { byId("clock").textContent = `${Math.floor((performance.now() - started_ms) / 1000)} s`; };
  tick();
  clock = setInterval(tick, 1000);
}

function stopClock() {
  clearInterval(clock);
  byId("clock").textContent = "";
}

function expected() {
  const given = byId("pages").value.trim();
  return given || !pages?.pictures.size ? [] : Array.from({ length: pages.count }, (_, index) => index + 1);
}

async function start() {
  if (running) {
    stop();
    return;
  }
  if (!mayLose()) return;
  const chosen = [byId("model").value, byId("other").value].filter((name, index) => index === 0 || name);
  running = new AbortController();
  const { signal } = running;
  const { isJob } = options;
  const isKept = !isJob && samples !== "off" && byId("keep").checked;
  const threshold = fields().review_threshold;
  if (threshold) byId("threshold").value = threshold;
  await readAll({
    file: pages.file, isKept, isJob, headers: headers(), task: byId("task").value,
    columns: chosen.map((name) => ({ name, fields: fields(name), answer: null, jobId: null })),
  }, signal);
}

// Where the text is below the page, as on a phone, it would be read out of sight.
function showTextPane() {
  if (!matchMedia("(max-width: 60rem)").matches) return;
  const behavior = matchMedia("(prefers-reduced-motion: reduce)").matches ? "auto" : "smooth";
  byId("text").closest(".pane").scrollIntoView({ block: "start", behavior });
}

async function readAll(reading, signal) {
  shown = reading;
  showProblem(null);
  note("");
  review.clear();
  const names = reading.columns.map(({ name }) => name);
  text.clear(reading.task, names, (pages?.count ?? 2) > 1);
  if (pages) {
    pages.orientation = reading.columns[0].fields.orientation ?? "";
    if (!reading.isJob) text.expect(expected());
  }
  showBoxes();
  byId("text").setAttribute("aria-busy", "true");
  byId("facts").textContent = "Reading";
  const started_ms = performance.now();
  startClock(started_ms);
  update();
  showTextPane();
  const outcomes = await Promise.all(reading.columns.map((_, column) => readColumn(column, reading, signal)));
  if (reading !== shown) return;
  running = null;
  stopClock();
  byId("text").setAttribute("aria-busy", "false");
  showFacts(outcomes, (performance.now() - started_ms) / 1000);
  for (let page = 1; page <= (pages?.count ?? 0); page += 1) showThumb(page);
  update();
}

async function readColumn(column, reading, signal) {
  const { fields: chosen } = reading.columns[column];
  let outcome = "done";
  try {
    for await (const [name, data] of events(reading, column, { ...chosen, confidence: chosen.confidence || "word" }, signal)) {
      if (reading !== shown) return "stopped";
      if (name === "delta") text.delta(column, data.page, data.text);
      else if (name === "job") showProgress(reading, column, data);
      else if (name === "page") finishPage(column, data);
      else if (name === "answer") {
        reading.columns[column].answer = data;
        text.setFigures(column, data.figures ?? []);
        if (data.joins) text.setJoins(column, data);
        for (const page of data.pages) finishPage(column, page);
      } else if (name === "error") throw new Problem(data);
      if (column === 0 && data.page) showThumb(data.page);
    }
  } catch (error) {
    outcome = error.name === "AbortError" ? "stopped" : "failed";
    if (reading !== shown) return outcome;
    text.stop(column, outcome === "failed");
    if (outcome === "failed") showProblem(error instanceof Problem ? error : new Problem({ title: String(error.message), code: "page_script" }));
  }
  return outcome;
}

async function* events(reading, column, chosen, signal) {
  const entry = reading.columns[column];
  if (!reading.isJob) yield* read(reading.file, chosen, signal, reading.headers);
  else {
    entry.jobId ??= (await submit(reading.file, chosen, signal)).id;
    yield* follow(entry.jobId, signal);
  }
}

// The job that this tab left behind when it was closed or loaded again; the service does not show its pages.
async function resume() {
  const job = storedJob();
  if (!job || running || pages) return;
  running = new AbortController();
  byId("name").textContent = job.name;
  byId("empty").hidden = true;
  byId("replace").hidden = false;
  showPicture(null, "This document is read in the background. Its pages can be seen once the file is opened again.");
  const column = { name: job.model_id, fields: {}, answer: null, jobId: job.id };
  await readAll({ file: { name: job.name }, isKept: false, isJob: true, headers: {}, task: job.task, columns: [column] }, running.signal);
}

// Said where nothing seems to be kept as well: the service may have been restarted with other settings.
const headers = () => storing(samples !== "off" && byId("keep").checked);

// Once the answer is there, since a correction names it.
function canCorrect() {
  return Boolean(!running && shown?.isKept && !shown.isJob && shown.columns.length === 1 && shown.columns[0].answer && CORRECTED_TASKS.has(shown.task));
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
  showPagesRead(column);
  if (column !== 0) return;
  const isWrong = pages && page.width_px != null && !pages.isAsRead(page);
  if (isWrong || (pages?.count > 1 && pages.isSmall && page.page <= MOST_PAGES_AHEAD)) {
    pages.picture(page.page).then(() => showThumb(page.page), () => {});
  }
  if (page.page !== current) return;
  if (isWrong) goTo(current, false);
  else showBoxes();
}

function showProgress(reading, column, job) {
  if (column !== 0) return;
  if (!text.columns[column].size) text.expect(job.pages.map(({ page }) => page));
  reading.numPages = job.num_pages;
  if (job.state === "waiting") byId("facts").textContent = "Waiting for its turn";
  else showPagesRead(column);
}

function showPagesRead(column) {
  const total = shown.numPages ?? expected().length;
  if (column !== 0 || total < 2 || !running) return;
  const num = text.numFinished(column);
  byId("facts").textContent = `${num} of ${total} pages`;
  Object.assign(byId("progress"), { max: total, value: num });
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
  byId("problem").replaceChildren(...(problem ? [problem.text, " ", make("code", "", problem.body.code)] : []));
  if (!problem?.body.advice?.startsWith("POST /jobs") || !hasJobs || !pages) return;
  const button = make("button", "", "Read it in the background");
  button.type = "button";
  button.addEventListener("click", () => { options.isJob = true; showChoices(); start(); });
  byId("problem").append(button);
}

function note(words) {
  byId("note").textContent = words;
}

/* Taking it along */

const copied = async (words) => note((await copy(words)) ? "Copied" : "The browser did not allow copying.");

async function download() {
  const { file, isJob, columns: [{ answer, fields: chosen, jobId }] } = shown;
  const format = byId("format").value;
  const stem = (file.name || "page").replace(/\.[^.]*$/, "") || "page";
  if (format === "json") save(new Blob([JSON.stringify(answer, null, 2), "\n"], { type: "application/json" }), `${stem}.json`);
  else if (format === "markdown") save(new Blob([text.markdown(), "\n"], { type: "text/markdown" }), `${stem}.md`);
  else {
    byId("download").disabled = true;
    note("Preparing the file");
    try {
      // What was drawn at a temperature is drawn once more.
      const seed = answer.seed == null ? {} : { seed: answer.seed };
      const { blob, name } = await (isJob ? resultAs(jobId, format) : readAs(file, { ...chosen, ...seed }, format));
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
  const { isJob } = options;
  const url = address(isJob ? "jobs" : "ocr");
  const isPython = document.querySelector("input[name=language]:checked").value === "python";
  byId("snippet").textContent = (isPython ? program : curl)(url, name, given, isJob || samples === "off" ? {} : headers(), isJob);
}

/* What can be done now */

function update() {
  const isFinding = byId("task").value === "locate";
  byId("query-label").hidden = !isFinding;
  byId("query").required = isFinding;
  byId("go").textContent = running ? "Stop" : "Read";
  byId("go").classList.toggle("stop", Boolean(running));
  byId("go").disabled = !running && (!pages || isHopeless || !served.length);
  byId("pages-label").hidden = !pages || isHopeless || (pages.isOpen && pages.count < 2);
  byId("views").hidden = !RENDERED_TASKS.has(shown?.task ?? byId("task").value) || shown?.columns.length > 1;
  if (Boolean(running) === byId("progress").hidden) {
    byId("progress").hidden = !running;
    byId("progress").removeAttribute("value");
  }
  document.title = running ? "Reading \u00b7 DeepSynth OCR" : "DeepSynth OCR";
  const hasText = Boolean(shown && text.plain());
  byId("copy").disabled = !hasText || Boolean(running);
  // Of two models, the first one's text is taken along.
  byId("copy").title = byId("download").title = shown?.columns.length > 1 ? `The text of ${shown.columns[0].name}` : "";
  text.setCorrectable(canCorrect());
  byId("download").disabled = !shown?.columns[0].answer || Boolean(running);
  showSnippet();
}

byId("form").addEventListener("submit", (event) => { event.preventDefault(); start(); });
byId("task").addEventListener("change", () => {
  if (!isFormatChosen) byId("format").value = RENDERED_TASKS.has(byId("task").value) ? "markdown" : "text";
});
byId("format").addEventListener("change", () => { isFormatChosen = true; });
// As this tab said last, also after it was loaded again.
byId("keep").checked = sessionStorage.getItem(KEEP) !== "no";
byId("keep").addEventListener("change", () => sessionStorage.setItem(KEEP, byId("keep").checked ? "yes" : "no"));
byId("form").addEventListener("input", () => { showChoices(); update(); });
byId("choose").addEventListener("click", () => byId("file").click());
for (const id of ["replace", "another"]) byId(id).addEventListener("click", () => byId("file").click());
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
  const taken = await choose([new File([await response.blob()], "sample-invoice.png", { type: "image/png" })]);
  if (taken !== false && !byId("go").disabled && !running) start();
});
byId("previous").addEventListener("click", () => goTo(current - 1));
byId("next").addEventListener("click", () => goTo(current + 1));
byId("zoom").addEventListener("click", () => {
  zoom(0.5, 0);
});
byId("sheet").addEventListener("dblclick", (event) => {
  const { left, top, width, height } = byId("sheet").getBoundingClientRect();
  zoom((event.clientX - left) / width, (event.clientY - top) / height);
});
byId("views").addEventListener("change", (event) => text.setRendered(event.target.value === "rendered"));
byId("copy").addEventListener("click", () => copied(text.plain()));
byId("download").addEventListener("click", download);
byId("copy-code").addEventListener("click", () => copied(byId("snippet").textContent));
byId("code").addEventListener("change", showSnippet);

document.addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || !(event.ctrlKey || event.metaKey) || event.target.closest("textarea, dialog") || running) return;
  event.preventDefault();
  if (!byId("go").disabled) byId("form").requestSubmit();
});
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
onFiles(choose);
addEventListener("beforeunload", (event) => { if (text.hasUnsaved) event.preventDefault(); });
// The page follows a person who scrolls through the text, and no other scrolling.
for (const kind of ["wheel", "touchmove", "keydown", "pointerdown"]) {
  byId("text").addEventListener(kind, ({ key }) => { isScrolledByHand ||= !key || SCROLL_KEYS.has(key); }, { passive: true });
}
byId("text").addEventListener("scroll", () => {
  if (!pages || pages.count < 2 || !isScrolledByHand) return;
  // Looked for at the top of the pane at the start of the text, at its bottom at the end.
  const { scrollTop, scrollHeight, clientHeight } = byId("text");
  const page = text.pageAt(scrollTop * (1 + clientHeight / Math.max(scrollHeight - clientHeight, 1)));
  if (page && page !== current) goTo(page, false);
});

showSnippet();
showModels().then(resume);
