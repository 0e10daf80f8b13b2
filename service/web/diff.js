// Which characters of two texts differ: Myers' algorithm ("An O(ND) Difference Algorithm", 1986).

const MOST_EDITS = 1500;

// Both texts as runs: [[text, isChanged], ...] of each, and how many characters are in one of them only.
export function diff(before, after) {
  const characters = compare([...before], [...after]);
  // Texts that have little in common are told apart by words, of which there are fewer.
  return characters || compare(before.match(/\s+|\S+/g) || [], after.match(/\s+|\S+/g) || []) || whole(before, after);
}

function whole(before, after) {
  return { before: [[before, true]], after: [[after, true]], changed: [...before].length + [...after].length };
}

function compare(a, b) {
  let start = 0;
  while (start < a.length && start < b.length && a[start] === b[start]) start += 1;
  let end = 0;
  while (end < a.length - start && end < b.length - start && a[a.length - 1 - end] === b[b.length - 1 - end]) end += 1;
  const kept = shared(a.slice(start, a.length - end), b.slice(start, b.length - end));
  if (!kept) return null;
  const inA = new Set(kept.map(([x]) => x + start));
  const inB = new Set(kept.map(([, y]) => y + start));
  const isSame = (index, length, found) => index < start || index >= length - end || found.has(index);
  const runs = (pieces, found) => joined(pieces.map((piece, index) => [piece, !isSame(index, pieces.length, found)]));
  const result = { before: runs(a, inA), after: runs(b, inB), changed: 0 };
  for (const [text, isChanged] of [...result.before, ...result.after]) if (isChanged) result.changed += [...text].length;
  return result;
}

function joined(pieces) {
  const runs = [];
  for (const [text, isChanged] of pieces) {
    const last = runs[runs.length - 1];
    if (last && last[1] === isChanged) last[0] += text;
    else runs.push([text, isChanged]);
  }
  return runs;
}

// Pairs of indices that a longest common subsequence keeps; null if more than MOST_EDITS edits are needed.
function shared(a, b) {
  const most = Math.min(a.length + b.length, MOST_EDITS);
  const furthest = new Int32Array(2 * most + 3);
  const history = [];
  for (let edits = 0; edits <= most; edits += 1) {
    history.push(furthest.slice(most + 1 - edits - 1, most + 1 + edits + 2));
    for (let k = -edits; k <= edits; k += 2) {
      const at = most + 1 + k;
      let x = k === -edits || (k !== edits && furthest[at - 1] < furthest[at + 1]) ? furthest[at + 1] : furthest[at - 1] + 1;
      while (x < a.length && x - k < b.length && a[x] === b[x - k]) x += 1;
      furthest[at] = x;
      if (x >= a.length && x - k >= b.length) return traced(history, a.length, b.length);
    }
  }
  return null;
}

function traced(history, x, y) {
  const pairs = [];
  for (let edits = history.length - 1; edits >= 0; edits -= 1) {
    const before = history[edits];
    const k = x - y;
    const at = edits + 1 + k;
    const goesDown = k === -edits || (k !== edits && before[at - 1] < before[at + 1]);
    const fromX = edits === 0 ? 0 : goesDown ? before[at + 1] : before[at - 1];
    const fromY = edits === 0 ? 0 : fromX - (goesDown ? k + 1 : k - 1);
    while (x > fromX && y > fromY) {
      x -= 1;
      y -= 1;
      pairs.push([x, y]);
    }
    x = fromX;
    y = fromY;
  }
  return pairs;
}
