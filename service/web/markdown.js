// Markdown and HTML tables as nodes. Every node is made here, from a short list of elements; all else is shown as text.

const INLINE = new Set(["b", "strong", "i", "em", "u", "s", "del", "sub", "sup", "code"]);
const TABLE = new Set(["table", "caption", "thead", "tbody", "tfoot", "tr", "td", "th"]);
const LEFT_OUT = new Set(["center", "div", "span", "p"]);
const ENTITIES = { amp: "&", lt: "<", gt: ">", quot: '"', apos: "'", nbsp: "\u00a0" };
const TAG = /<(\/?)([A-Za-z][A-Za-z0-9]*)((?:\s[^<>]*)?)\/?>/g;
const MOST_SPAN = 100;
const MARKS = [
  [/\*\*(?=\S)([^]*?\S)\*\*/, "strong"],
  [/~~(?=\S)([^]*?\S)~~/, "del"],
  [/`([^`\n]+)`/, "code"],
  [/(?<![\w*])\*(?=[^\s*])([^*\n]*?[^\s*])\*(?![\w*])/, "em"],
];

const element = (name, ...children) => {
  const made = document.createElement(name);
  made.append(...children);
  return made;
};

export function render(text) {
  const fragment = document.createDocumentFragment();
  let at = 0;
  for (const table of text.matchAll(/<table(?:\s[^<>]*)?>[^]*?(?:<\/table>|$)/gi)) {
    blocks(text.slice(at, table.index), fragment);
    fragment.append(element("div", html(table[0])));
    fragment.lastChild.className = "scroll";
    at = table.index + table[0].length;
  }
  blocks(text.slice(at), fragment);
  for (const table of fragment.querySelectorAll("table")) alignNumbers(table);
  return fragment;
}

// Amounts are set to the right, and so is the head of a column that starts with one.
function alignNumbers(table) {
  const isNumber = (cell) => /^[-+(]?\s?[\p{Sc}]?\s?\d[\d.,'\s]*[\p{Sc}%)]?$/u.test(cell.textContent.trim());
  for (const cell of table.querySelectorAll("td")) if (isNumber(cell)) cell.className = "number";
  const [head, first] = table.rows;
  for (const [index, cell] of [...(head?.querySelectorAll("th") ?? [])].entries()) {
    if (head.cells.length === first?.cells.length && first.cells[index].className) cell.className = "number";
  }
}

function decoded(text) {
  return text.replace(/&(?:#(\d{1,7})|([a-z]{2,4}));/g, (whole, number, name) => {
    if (name) return ENTITIES[name] ?? whole;
    return number > 0 && number <= 0x10ffff ? String.fromCodePoint(number) : whole;
  });
}

// Text with the allowed elements among its tags; a tag that is not allowed stays visible.
function html(source) {
  const root = document.createDocumentFragment();
  const open = [root];
  let at = 0;
  const add = (text) => {
    const top = open[open.length - 1];
    // Between rows and cells there is only white space, which needs no node.
    if (text && (text.trim() || !/^(?:TABLE|THEAD|TBODY|TFOOT|TR)$/.test(top.nodeName))) top.append(...marked(decoded(text)));
  };
  for (const tag of source.matchAll(TAG)) {
    const [whole, isEnd, given, attributes] = tag;
    const name = given.toLowerCase();
    const isKnown = INLINE.has(name) || TABLE.has(name) || LEFT_OUT.has(name) || name === "br";
    add(source.slice(at, tag.index));
    at = tag.index + whole.length;
    if (!isKnown) add(whole);
    else if (name === "br") open[open.length - 1].append(element("br"));
    else if (LEFT_OUT.has(name)) continue;
    else if (isEnd) {
      const index = open.findLastIndex((each) => each.nodeName === name.toUpperCase());
      if (index > 0) open.length = index;
    } else {
      const made = element(name);
      for (const [, key, value] of attributes.matchAll(/\b(colspan|rowspan)\s*=\s*["']?(\d{1,3})/gi)) {
        if (name === "td" || name === "th") made.setAttribute(key.toLowerCase(), String(Math.min(Number(value), MOST_SPAN)));
      }
      open[open.length - 1].append(made);
      if (open.length < 40) open.push(made);
    }
  }
  add(source.slice(at));
  return root;
}

// Nodes of a text without tags, with Markdown's marks.
function marked(text) {
  let first = null;
  for (const [pattern, name] of MARKS) {
    const found = pattern.exec(text);
    if (found && (!first || found.index < first.found.index)) first = { found, name };
  }
  if (!first) return text ? [document.createTextNode(text)] : [];
  const { found, name } = first;
  const inner = name === "code" ? [found[1]] : marked(found[1]);
  return [...marked(text.slice(0, found.index)), element(name, ...inner), ...marked(text.slice(found.index + found[0].length))];
}

const LIST = /^\s*(?:([-*+])|(\d{1,4})[.)])\s+(.*)$/;
const SEPARATOR = /^\s*\|?\s*:?-+:?\s*(?:\|\s*:?-+:?\s*)*\|?\s*$/;
const isRow = (line) => line !== undefined && line.includes("|");
const cells = (line) => line.trim().replace(/^\||\|$/g, "").split("|").map((cell) => cell.trim());

function blocks(text, into) {
  const lines = text.split("\n");
  let paragraph = [];
  const flush = () => {
    if (paragraph.length) {
      const made = element("p");
      paragraph.forEach((line, index) => made.append(...(index ? [element("br")] : []), html(line)));
      into.append(made);
    }
    paragraph = [];
  };
  for (let at = 0; at < lines.length; at += 1) {
    const line = lines[at];
    const heading = /^(#{1,6})\s+(.*?)\s*#*$/.exec(line);
    const item = LIST.exec(line);
    if (!line.trim()) flush();
    else if (heading) {
      flush();
      // The page's own headings are h1 to h3.
      into.append(element(`h${Math.min(heading[1].length + 3, 6)}`, html(heading[2])));
      into.lastChild.dataset.level = heading[1].length;
    } else if (/^\s*(?:[-*_]\s*){3,}$/.test(line)) {
      flush();
      into.append(element("hr"));
    } else if (/^\s*```/.test(line)) {
      flush();
      const code = [];
      for (at += 1; at < lines.length && !/^\s*```/.test(lines[at]); at += 1) code.push(lines[at]);
      into.append(element("pre", code.join("\n")));
    } else if (isRow(line) && SEPARATOR.test(lines[at + 1] ?? "") && isRow(lines[at + 1])) {
      flush();
      const row = (name, of) => element("tr", ...cells(of).map((cell) => element(name, html(cell))));
      const body = element("tbody");
      const table = element("table", element("thead", row("th", line)), body);
      for (at += 2; isRow(lines[at]); at += 1) body.append(row("td", lines[at]));
      at -= 1;
      into.append(element("div", table));
      into.lastChild.className = "scroll";
    } else if (item) {
      flush();
      const list = element(item[1] ? "ul" : "ol");
      if (item[2]) list.start = Number(item[2]);
      for (let next = item; next && Boolean(next[1]) === Boolean(item[1]); next = LIST.exec(lines[(at += 1)] ?? "")) {
        list.append(element("li", html(next[3])));
      }
      at -= 1;
      into.append(list);
    } else if (/^\s*>\s?/.test(line)) {
      flush();
      into.append(element("blockquote", html(line.replace(/^\s*>\s?/, ""))));
    } else paragraph.push(line.trim());
  }
  flush();
}
