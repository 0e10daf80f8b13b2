// Requests to the service. Addresses are relative to the page, so that it also works below a proxy's path.

import { askForKey, keyHeaders } from "./key.js";

export const address = (path) => new URL(path, document.baseURI).href;

export class Problem extends Error {
  constructor(body, retryAfter = 0) {
    super(body.title);
    this.body = body;
    this.retryAfter_s = retryAfter;
  }

  // One sentence or two for a person, what to do last; every member comes from the service and is shown as text.
  get text() {
    const { code, field, expected, found, advice, limit, pages, limit_bytes: bytes } = this.body;
    const title = code === "invalid_field" && field ? `The value of ${field.replaceAll("_", " ")} is not valid.` : this.body.title;
    const facts = [
      expected && `Expected: ${[].concat(expected).join(", ")}.`,
      found && `It is ${found}.`,
      limit !== undefined && `The limit is ${limit}.`,
      bytes !== undefined && `The limit is ${Math.floor(bytes / 2 ** 20)} MiB.`,
      pages !== undefined && `It has ${pages} page${pages === 1 ? "" : "s"}.`,
      advice && `${advice.replace(/[.]$/, "")}.`,
    ].filter(Boolean);
    return [title, ...facts].join(" ");
  }
}

export async function send(path, options) {
  let response;
  try {
    response = await fetch(address(path), { ...options, headers: { ...options?.headers, ...keyHeaders() } });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Problem({ title: "The service could not be reached.", code: "network" });
  }
  if (response.ok) return response;
  let body;
  try {
    body = await response.json();
  } catch {
    body = { title: `The answer was ${response.status} ${response.statusText}.`, code: "unexpected_answer", status: response.status };
  }
  if (["key_required", "key_invalid"].includes(body.code) && (await askForKey(body.title))) return send(path, options);
  throw new Problem(body, Number(response.headers.get("retry-after")) || 0);
}

export function form(file, fields) {
  const body = new FormData();
  body.append("file", file, file.name || "page");
  for (const [name, value] of Object.entries(fields)) if (value) body.append(name, value);
  return body;
}

const NO_STORE = { "X-Deepsynth-No-Store": "1" };

// The headers of a reading: whether the service may keep its pages, where it keeps any.
export const storing = (isKept) => (isKept ? {} : NO_STORE);

export const json = async (path, options) => (await send(path, { cache: "no-store", ...options })).json();

export const erase = (path) => send(path, { method: "DELETE" });

// What the service has: `samples`, what it keeps of pages ("off", "full" or "thumbnail"), and `jobs`. A proxy may not tell.
export async function abilities() {
  try {
    return { samples: "off", jobs: false, ...(await json("readyz")) };
  } catch {
    return { samples: "off", jobs: false };
  }
}

// Say what is printed on a page of an answer.
export async function correct(id, page, text) {
  const body = JSON.stringify({ id, page, text });
  await send("feedback", { method: "POST", headers: { "content-type": "application/json" }, body });
}

export async function models() {
  return (await json("v1/models")).data;
}

export async function preview(file, page, orientation, signal) {
  for (let attempt = 0; ; attempt += 1) {
    try {
      const response = await send("preview", { method: "POST", body: form(file, { pages: String(page), orientation }), signal });
      const [width, height] = response.headers.get("x-page-size").split("x").map(Number);
      const [numPages, turned] = ["x-page-count", "x-page-turn"].map((name) => Number(response.headers.get(name)));
      return { blob: await response.blob(), width, height, turned, numPages };
    } catch (error) {
      if (!(error instanceof Problem) || !error.retryAfter_s || attempt === 5) throw error;
      await new Promise((done) => setTimeout(done, error.retryAfter_s * 1000));
      signal.throwIfAborted();
    }
  }
}

// Events of a stream: [name, data]. A stream that ends without `answer` or `error` was cut off.
export async function* read(file, fields, signal, headers = {}) {
  const response = await send("ocr", { method: "POST", body: form(file, { ...fields, stream: "true" }), headers, signal });
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let buffer = "";
  let isComplete = false;
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) break;
      buffer += value;
      let end;
      while ((end = buffer.indexOf("\n\n")) >= 0) {
        const [name, data] = buffer.slice(0, end).split("\n");
        buffer = buffer.slice(end + 2);
        const event = name.slice("event: ".length);
        isComplete ||= event === "answer" || event === "error";
        yield [event, JSON.parse(data.slice("data: ".length))];
      }
    }
  } catch (error) {
    if (error.name === "AbortError") throw error;
  }
  if (!isComplete) throw new Problem({ title: "The connection ended before the answer was complete.", code: "stream_cut" });
}

// What a format has no place for, or needs no saying.
const ONLY_JSON = ["review_threshold", "confidence"];
const WITHOUT = { "searchable-pdf": ["join_pages"], hocr: ["join_pages"], alto: ["join_pages"] };

// The document in another format. Its pages were offered when they were read.
export function readAs(file, fields, format) {
  const left = new Set([...ONLY_JSON, ...(format === "markdown" ? [] : ["figures"]), ...(WITHOUT[format] ?? [])]);
  const given = Object.fromEntries(Object.entries(fields).filter(([name]) => !left.has(name)));
  return named(send("ocr", { method: "POST", body: form(file, { ...given, format }), headers: NO_STORE }));
}

// What a job has read, in another format.
export const resultAs = (id, format) => named(send(`jobs/${id}/result?format=${format}`));

// A file, and the name that the service gives it.
async function named(sent) {
  const response = await sent;
  const header = response.headers.get("content-disposition") || "";
  const extended = /filename\*=UTF-8''([^;]+)/.exec(header);
  const plain = /filename="([^"]*)"/.exec(header);
  return { blob: await response.blob(), name: extended ? decodeURIComponent(extended[1]) : plain ? plain[1] : "text" };
}
