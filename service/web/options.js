// The options of a request beyond model, task and resolution: a panel with those that the chosen model and task take.

const TRANSCRIBING = new Set(["free", "markdown", "ocr"]);
const isLabelled = ({ model, task }) => task === "markdown" && model.boxes;
const isTranscribed = ({ task }) => TRANSCRIBING.has(task);
// When an option has an effect; one that is not here always has.
const TAKEN = {
  table_format: ({ task }) => task === "markdown" || task === "figure",
  omit: isLabelled,
  figures: isLabelled,
  join_pages: ({ numPages }) => numPages > 1,
  min_confidence: isTranscribed,
  min_coverage: isTranscribed,
  seed: ({ temperature }) => temperature > 0,
  layout: ({ model, task }) => model.layouts.includes("lines") && (task === "free" || task === "markdown"),
  job: ({ hasJobs }) => hasJobs,
};

export class Options {
  constructor(panel, toggle) {
    this.panel = panel;
    this.toggle = toggle;
    this.controls = [...panel.querySelectorAll("select, input")];
    toggle.addEventListener("click", () => this.open(panel.hidden));
    // A field that is not seen could not be mended.
    panel.addEventListener("invalid", () => this.open(true), true);
    panel.querySelector("#options-reset").addEventListener("click", () => this.reset());
  }

  open(isOpen) {
    this.panel.hidden = !isOpen;
    this.toggle.setAttribute("aria-expanded", String(isOpen));
  }

  reset() {
    for (const control of this.controls) {
      if (control.type === "checkbox") control.checked = false;
      else control.value = "";
    }
    this.panel.dispatchEvent(new Event("input", { bubbles: true }));
  }

  get isJob() {
    return this.panel.querySelector("[name=job]").checked;
  }

  set isJob(isJob) {
    this.panel.querySelector("[name=job]").checked = isJob;
  }

  isTaken(name, situation) {
    const temperature = Number(this.panel.querySelector("[name=temperature]").value);
    return TAKEN[name]?.({ ...situation, temperature }) ?? true;
  }

  // Show what can be chosen; `situation` has model, task, numPages and hasJobs.
  show(situation) {
    for (const each of this.panel.querySelectorAll("[data-option]")) each.hidden = !this.isTaken(each.dataset.option, situation);
    if (!situation.hasJobs) this.isJob = false;
    const tokens = this.panel.querySelector("[name=max_new_tokens]");
    tokens.max = tokens.placeholder = String(situation.model.max_new_tokens);
    const num = Object.keys(this.values(situation)).length + Number(this.isJob);
    this.toggle.textContent = num ? `Options (${num})` : "Options";
  }

  // The fields of a request, without those that are left to the service.
  values(situation) {
    const given = {};
    for (const control of this.controls) {
      const { name, value } = control;
      if (name === "job" || !value || !this.isTaken(name, situation)) continue;
      if (control.type !== "checkbox") given[name] = value;
      else if (control.checked) given[name] = given[name] ? `${given[name]},${value}` : value;
    }
    return given;
  }
}
