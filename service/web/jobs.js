// A document that the service reads in the background, followed page by page.

import { Problem, erase, form, json, send } from "./client.js";

const STORE = "deepsynth-job";
const LOOK_EVERY_MS = 1000;
const LONGEST_WAIT_MS = 10000;
// Some ten minutes: a large model takes minutes to load when the service starts again.
const MOST_FAILURES = 65;
const AWAY = new Set(["network", "not_ready", "draining"]);
// As a proxy tells it.
const AWAY_STATUS = new Set([502, 503, 504]);
const ANSWER_WITHIN_MS = 300;
const isOver = ({ state }) => state === "done" || state === "failed";

// The job of this tab that may still be read: { id, name, task, model_id }, or null.
export function storedJob() {
  try {
    return JSON.parse(sessionStorage.getItem(STORE));
  } catch {
    return null;
  }
}

const store = (job) => (job ? sessionStorage.setItem(STORE, JSON.stringify(job)) : sessionStorage.removeItem(STORE));

function pause(ms, signal) {
  return new Promise((done, failed) => {
    const stop = () => { clearTimeout(timer); failed(signal.reason); };
    const timer = setTimeout(() => { signal.removeEventListener("abort", stop); done(); }, ms);
    signal.addEventListener("abort", stop, { once: true });
  });
}

export async function submit(file, fields, signal) {
  const job = await (await send("jobs", { method: "POST", body: form(file, fields), signal })).json();
  const { id, name, task, model_id } = job;
  store({ id, name, task, model_id });
  return job;
}

const isAway = ({ body }) => AWAY.has(body?.code) || (body?.code === "unexpected_answer" && AWAY_STATUS.has(body.status));

// A look at the service while it may be away: the job goes on without this page.
async function look(path, signal) {
  for (let failures = 1; ; failures += 1) {
    try {
      return await json(path, { signal });
    } catch (error) {
      if (!isAway(error) || failures === MOST_FAILURES) throw error;
      await pause(Math.min(LOOK_EVERY_MS * failures, LONGEST_WAIT_MS), signal);
    }
  }
}

// A tab that was duplicated follows the same job: tabs ask one another before they erase it.
const followed = new Set();
const tabs = new BroadcastChannel(STORE);
tabs.addEventListener("message", ({ data: { asked } }) => { if (followed.has(asked)) tabs.postMessage({ follows: asked }); });

function isFollowedElsewhere(id) {
  return new Promise((done) => {
    const hear = ({ data: { follows } }) => { if (follows === id) end(true); };
    const timer = setTimeout(() => end(false), ANSWER_WITHIN_MS);
    const end = (isFollowed) => {
      clearTimeout(timer);
      tabs.removeEventListener("message", hear);
      done(isFollowed);
    };
    tabs.addEventListener("message", hear);
    tabs.postMessage({ asked: id });
  });
}

async function eraseUnlessFollowed(id) {
  if (!(await isFollowedElsewhere(id))) await erase(`jobs/${id}`);
}

// Events as those of a stream: `job` with its progress, `page`, `answer`. Where this is stopped, so is the job, unless another
// tab follows it.
export async function* follow(id, signal) {
  const given = new Set();
  followed.add(id);
  try {
    for (let wait_ms = LOOK_EVERY_MS; ; await pause(wait_ms, signal)) {
      const job = await look(`jobs/${id}`, signal);
      yield ["job", job];
      if (job.num_finished === given.size && !isOver(job)) continue;
      const start_ms = performance.now();
      const result = await look(`jobs/${id}/result`, signal);
      // A long result is not fetched all the time.
      wait_ms = Math.max(LOOK_EVERY_MS, 5 * (performance.now() - start_ms));
      for (const page of result.pages) {
        if (!given.has(page.page)) yield ["page", page];
        given.add(page.page);
      }
      if (isOver(job)) {
        store(null);
        yield ["answer", result];
        return;
      }
    }
  } catch (error) {
    if (error.name === "AbortError") eraseUnlessFollowed(id).catch(() => {});
    if (isAway(error)) throw new Problem({ ...error.body, advice: "The document is read on without this page: load it again to follow" });
    if (error instanceof Problem || error.name === "AbortError") store(null);
    throw error;
  } finally {
    followed.delete(id);
  }
}
