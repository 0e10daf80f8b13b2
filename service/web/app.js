// The playground: sends a page to POST /ocr as a stream and shows image, boxes and text. Text is only ever set as text.
"use strict";

const byId = (id) => document.getElementById(id);
const form = byId("form");
const MARKER = /<\|\/?(?:ref|det|grounding)\|>/g;
let chosen = null;
let running = null;

async function showModel() {
  try {
    const response = await fetch("/v1/models");
    if (!response.ok) throw new Error(response.status);
    const model = (await response.json()).data[0];
    byId("model").textContent = model.id;
    for (const mode of model.modes) {
      const label = mode === model.default_mode ? `${mode} (default)` : mode;
      byId("mode").append(new Option(label, mode));
    }
  } catch {
    byId("model").textContent = "the model is loading";
    setTimeout(showModel, 1500);
  }
}

function choose(file) {
  if (!file) return;
  chosen = file;
  byId("go").disabled = false;
  byId("drop").querySelector("strong").textContent = file.name || "pasted image";
  const image = byId("image");
  URL.revokeObjectURL(image.src);
  byId("boxes").replaceChildren();
  // A browser shows no TIFF and, within an image, no PDF; then only the text is shown.
  image.hidden = true;
  image.onload = () => { image.hidden = false; };
  image.src = URL.createObjectURL(file);
}

function showProblem(problem) {
  const facts = [].concat(problem.expected || []).join(", ");
  const found = problem.found ? ` It is ${problem.found}. ${problem.advice}` : "";
  byId("problem").textContent = `${problem.title}${facts ? ` Expected: ${facts}.` : ""}${found} (${problem.code})`;
  byId("problem").hidden = false;
}

function showAnswer(answer) {
  byId("text").textContent = answer.text;
  byId("copy").disabled = !answer.text;
  const confidence = answer.confidence === null ? "" : `, confidence ${Math.round(answer.confidence * 100)} %`;
  const unusual = answer.pages.filter((page) => page.status !== "ok").map((page) =>
    `page ${page.page} ${page.status}${page.error ? `: ${page.error.title}` : ""}`);
  byId("facts").textContent =
    `${(answer.latency_ms / 1000).toFixed(2)} s, ${answer.usage.completion_tokens} tokens${confidence}` +
    `${answer.finish_reason === "stop" ? "" : `, ended by ${answer.finish_reason}`}` +
    unusual.map((each) => `; ${each}`).join("");
  const page = answer.pages[0];
  const boxes = byId("boxes");
  boxes.setAttribute("viewBox", `0 0 ${page.width_px} ${page.height_px}`);
  boxes.setAttribute("preserveAspectRatio", "none");
  if (byId("image").hidden) return;
  for (const region of page.regions) {
    const [left, top, right, bottom] = region.box_px;
    const box = document.createElementNS("http://www.w3.org/2000/svg", "rect");
    box.setAttribute("x", left);
    box.setAttribute("y", top);
    box.setAttribute("width", Math.max(right - left, 1));
    box.setAttribute("height", Math.max(bottom - top, 1));
    boxes.append(box);
  }
}

async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let buffer = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    buffer += value;
    let end;
    while ((end = buffer.indexOf("\n\n")) >= 0) {
      const [name, data] = buffer.slice(0, end).split("\n");
      buffer = buffer.slice(end + 2);
      yield [name.slice("event: ".length), JSON.parse(data.slice("data: ".length))];
    }
  }
}

async function read() {
  running?.abort();
  running = new AbortController();
  byId("problem").hidden = true;
  byId("boxes").replaceChildren();
  byId("facts").textContent = "reading";
  byId("text").textContent = "";
  const body = new FormData();
  body.append("file", chosen, "page");
  body.append("stream", "true");
  for (const name of ["task", "mode", "pages"]) if (form.elements[name].value) body.append(name, form.elements[name].value);
  if (byId("task").value === "locate") body.append("query", byId("query").value);
  try {
    const response = await fetch("/ocr", { method: "POST", body, signal: running.signal });
    if (!response.ok) {
      byId("facts").textContent = "";
      showProblem(await response.json());
      return;
    }
    const pages = new Map();
    const showPages = () => {
      const inOrder = [...pages.keys()].sort((a, b) => a - b).map((page) => pages.get(page)).filter(Boolean);
      byId("text").textContent = inOrder.join("\n\n").replace(MARKER, "");
    };
    for await (const [name, data] of events(response)) {
      if (name === "delta") {
        pages.set(data.page, (pages.get(data.page) || "") + data.text);
        showPages();
      } else if (name === "page") {
        pages.set(data.page, data.text);
        showPages();
      } else if (name === "answer") showAnswer(data);
      else if (name === "error") showProblem(data);
    }
  } catch (error) {
    if (error.name === "AbortError") return;
    byId("facts").textContent = "";
    showProblem({ title: "The service could not be reached.", code: "network" });
  }
}

form.addEventListener("submit", (event) => { event.preventDefault(); read(); });
byId("file").addEventListener("change", (event) => choose(event.target.files[0]));
byId("task").addEventListener("change", (event) => { byId("query-label").hidden = event.target.value !== "locate"; });
byId("copy").addEventListener("click", () => navigator.clipboard.writeText(byId("text").textContent));
document.addEventListener("paste", (event) => choose(event.clipboardData.files[0]));
for (const name of ["dragenter", "dragover"]) document.addEventListener(name, (event) => { event.preventDefault(); byId("drop").classList.add("over"); });
for (const name of ["dragleave", "drop"]) document.addEventListener(name, (event) => { event.preventDefault(); byId("drop").classList.remove("over"); });
document.addEventListener("drop", (event) => choose(event.dataTransfer.files[0]));
showModel();
