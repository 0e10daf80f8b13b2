// Files that are dropped on the page or pasted into it.

export function onFiles(choose) {
  let depth = 0;
  const over = (change) => {
    depth = Math.max(depth + change, 0);
    document.body.classList.toggle("over", depth > 0);
  };
  document.addEventListener("paste", (event) => choose([...event.clipboardData.files]));
  document.addEventListener("dragenter", (event) => { event.preventDefault(); over(1); });
  document.addEventListener("dragleave", () => over(-1));
  document.addEventListener("dragover", (event) => event.preventDefault());
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    over(-depth);
    choose([...event.dataTransfer.files]);
  });
}
