// What is printed where a doubtful word was read: its line, cut from the page's picture and shown below the word.

const TALLEST_PX = 72;
// Of the page's height: more than a line or two would hide the text and show no more than the page does.
const TALLEST_SHARE = 0.2;

let shown = null;

export function hideCloseUp() {
  shown?.remove();
  shown = null;
}

// `image` shows the page of `answer`; the regions with these `indices` hold the word that `mark` is around.
export async function showCloseUp(mark, image, answer, indices) {
  hideCloseUp();
  const boxes = indices.map((index) => answer?.regions[index]?.box_px).filter(Boolean);
  const section = mark.closest(".page");
  if (!boxes.length || !section) return;
  const canvas = document.createElement("canvas");
  shown = canvas;
  try {
    await image.decode();
  } catch {
    return;
  }
  if (shown !== canvas || !mark.isConnected) return;
  const [left, top] = [0, 1].map((side) => Math.min(...boxes.map((box) => box[side])));
  const [right, bottom] = [2, 3].map((side) => Math.max(...boxes.map((box) => box[side])));
  if (bottom - top > TALLEST_SHARE * answer.height_px) return;
  // Boxes are tight: letters reach over them.
  const margin = 0.5 * (bottom - top);
  const cut = { left: Math.max(left - margin, 0), top: Math.max(top - margin, 0) };
  const width = Math.min(right + margin, answer.width_px) - cut.left;
  const height = Math.min(bottom + margin, answer.height_px) - cut.top;
  const scale = Math.min(section.clientWidth / width, TALLEST_PX / height);
  canvas.className = "closeup";
  canvas.setAttribute("aria-hidden", "true");
  canvas.width = Math.round(width * scale * devicePixelRatio);
  canvas.height = Math.round(height * scale * devicePixelRatio);
  canvas.style.width = `${width * scale}px`;
  const ratio = image.naturalWidth / answer.width_px;
  canvas.getContext("2d").drawImage(
    image, cut.left * ratio, cut.top * ratio, width * ratio, height * ratio, 0, 0, canvas.width, canvas.height,
  );
  canvas.style.top = `${mark.getBoundingClientRect().bottom - section.getBoundingClientRect().top + 6}px`;
  section.append(canvas);
  canvas.scrollIntoView({ block: "nearest" });
}
