// The key that the service asks for, kept for this tab alone.

const STORE = "deepsynth-key";

export function keyHeaders() {
  const key = sessionStorage.getItem(STORE);
  return key ? { authorization: `Bearer ${key}` } : {};
}

let asking = null;

// Asks for a key once, however many requests wait for it. False if the person gives none.
export function askForKey(reason) {
  asking ??= ask(reason).finally(() => { asking = null; });
  return asking;
}

async function ask(reason) {
  const dialog = document.querySelector("#key-dialog");
  dialog.querySelector("output").textContent = reason;
  const input = dialog.querySelector("input");
  input.value = "";
  dialog.showModal();
  await new Promise((done) => dialog.addEventListener("close", done, { once: true }));
  const key = input.value.trim();
  if (dialog.returnValue !== "use" || !key) return false;
  sessionStorage.setItem(STORE, key);
  return true;
}
