// Words that a person should look at: tinted and underlined in the text, and reached one after another.

const MARKS = /[*_`#|\\~]/g;
// Words are looked for this far ahead: a word that is not shown must not take the place of one further down.
const REACH = 400;

// The [start, end] of each word in the shown text, null where it is not found; both have the same order.
export function places(words, shown) {
  let at = 0;
  return words.map((word) => {
    for (const text of [word.text, word.text.replace(MARKS, "")]) {
      if (!text) continue;
      const start = shown.slice(0, at + REACH + text.length).indexOf(text, at);
      if (start < 0) continue;
      at = start + text.length;
      return [start, at];
    }
    return null;
  });
}

// Rounded down, so that a word below the threshold never seems to be at it.
const percent = (confidence) => `${Math.floor(confidence * 100)} %`;

export class Review {
  // `sections()` gives the pages' elements in order.
  constructor(root, sections) {
    this.root = root;
    this.sections = sections;
    this.threshold = root.querySelector("#threshold");
    this.said = root.querySelector("#review-said");
    this.answers = new Map();
    this.current = null;
    this.threshold.addEventListener("input", () => this.again());
    root.querySelector("#doubtful-previous").addEventListener("click", () => this.go(-1));
    root.querySelector("#doubtful-next").addEventListener("click", () => this.go(1));
    document.addEventListener("keydown", (event) => {
      if (event.key !== "F8" || root.hidden || event.altKey || event.ctrlKey || event.metaKey) return;
      event.preventDefault();
      this.go(event.shiftKey ? -1 : 1);
    });
  }

  clear() {
    this.answers.clear();
    this.current = null;
    this.root.hidden = true;
  }

  // Mark a page's doubtful words; `answer` is null while it is read, or where two models are compared.
  show(section, answer) {
    const words = answer?.words ?? answer?.doubtful_words;
    if (!words?.length) {
      this.answers.delete(section);
      return;
    }
    this.answers.set(section, { words });
    this.mark(section, { words });
    this.root.hidden = false;
    this.root.classList.toggle("raw", !answer.calibrated);
    this.count();
  }

  again() {
    this.current = null;
    for (const [section, answer] of this.answers) {
      for (const mark of section.querySelectorAll("mark.doubtful")) mark.replaceWith(...mark.childNodes);
      section.normalize();
      this.mark(section, answer);
    }
    this.count();
  }

  mark(section, { words }) {
    const body = section.querySelector(".plain, .source, .rendered");
    const limit = Number(this.threshold.value);
    if (!body || !(limit > 0)) return;
    const nodes = [];
    const walker = document.createTreeWalker(body, NodeFilter.SHOW_TEXT);
    let shown = "";
    while (walker.nextNode()) {
      nodes.push([shown.length, walker.currentNode]);
      shown += walker.currentNode.data;
    }
    // From the end, so that a node that is split keeps its start.
    const found = places(words, shown).map((place, index) => [place, words[index]]);
    for (const [place, word] of found.reverse()) {
      if (!place || word.confidence >= limit) continue;
      while (nodes.at(-1)[0] > place[0]) nodes.pop();
      const [offset, node] = nodes.at(-1);
      if (place[1] - offset > node.length) continue;
      const range = new Range();
      range.setStart(node, place[0] - offset);
      range.setEnd(node, place[1] - offset);
      const mark = document.createElement("mark");
      mark.className = "doubtful";
      mark.tabIndex = -1;
      mark.title = `${percent(word.confidence)} sure`;
      mark.setAttribute("aria-description", `doubtful, ${mark.title}`);
      range.surroundContents(mark);
    }
  }

  marks() {
    return this.sections().flatMap((section) => [...section.querySelectorAll("mark.doubtful")]);
  }

  count() {
    const { length } = this.marks();
    this.said.textContent = length ? `${length} doubtful word${length === 1 ? "" : "s"}` : "No doubtful words";
    for (const button of this.root.querySelectorAll("button")) button.disabled = !length;
  }

  go(step) {
    const marks = this.marks();
    if (!marks.length) return;
    // The word that has the focus may have been chosen by other means.
    const from = marks.indexOf(document.activeElement?.closest("mark.doubtful") ?? this.current);
    const next = from < 0 ? (step > 0 ? 0 : marks.length - 1) : (from + step + marks.length) % marks.length;
    this.current = marks[next];
    this.current.focus();
    this.current.scrollIntoView({ block: "nearest" });
    this.said.textContent = `${next + 1} of ${marks.length}: ${this.current.textContent}, ${this.current.title}`;
  }
}
