// Boxes over the page: what the model saw, each with its text, and print that the text does not account for.

const area = ([left, top, right, bottom]) => (right - left) * (bottom - top);

function rectangle([left, top, right, bottom], title) {
  const box = document.createElementNS("http://www.w3.org/2000/svg", "rect");
  const sides = { x: left, y: top, width: Math.max(right - left, 1), height: Math.max(bottom - top, 1) };
  for (const [name, value] of Object.entries(sides)) box.setAttribute(name, value);
  const said = document.createElementNS("http://www.w3.org/2000/svg", "title");
  said.textContent = title;
  box.append(said);
  return box;
}

// `onLight(index)` is told which region is under the pointer, -1 for none.
export function drawBoxes(drawing, answer, onLight) {
  drawing.setAttribute("viewBox", `0 0 ${answer.width_px} ${answer.height_px}`);
  const unread = answer.unread.map((box) => {
    const made = rectangle(box, "Not in the text");
    made.classList.add("unread");
    return made;
  });
  // The largest first, so that a box within another can be reached.
  const order = answer.regions.map((region, index) => ({ region, index })).sort((a, b) => area(b.region.box_px) - area(a.region.box_px));
  const regions = order.map(({ region, index }) => {
    const made = rectangle(region.box_px, region.label);
    made.dataset.region = index;
    made.addEventListener("pointerenter", () => onLight(index));
    made.addEventListener("pointerleave", () => onLight(-1));
    return made;
  });
  drawing.replaceChildren(...unread, ...regions);
}

export function light(drawing, indices) {
  for (const box of drawing.children) box.classList.toggle("lit", indices.includes(Number(box.dataset.region ?? -1)));
}
