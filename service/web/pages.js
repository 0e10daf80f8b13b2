// A chosen file as pictures of its pages: by the browser where it can show the file, else by POST /preview.

import { preview } from "./client.js";

const MOST_AHEAD_BYTES = 16 * 2 ** 20;

// What browsers show in an <img>; animations and the rest of the file are theirs. All other files are the service's.
async function isForBrowser(file) {
  const head = new Uint8Array(await file.slice(0, 16).arrayBuffer());
  const text = String.fromCharCode(...head);
  return (
    text.startsWith("\x89PNG") || text.startsWith("\xff\xd8\xff") || text.startsWith("GIF8") || text.startsWith("BM") ||
    (text.startsWith("RIFF") && text.slice(8, 12) === "WEBP") || (text.slice(4, 8) === "ftyp" && text.slice(8, 11) === "avi")
  );
}

function sizeOf(url) {
  return new Promise((done) => {
    const image = new Image();
    image.onload = () => done({ width: image.naturalWidth, height: image.naturalHeight });
    image.onerror = () => done(null);
    image.src = url;
  });
}

export class Pages {
  constructor(file) {
    this.file = file;
    this.count = 1;
    this.isOpen = false;
    // Empty for what the service does by itself.
    this.orientation = "";
    // By how much pages were turned that were read.
    this.turns = new Map();
    this.pictures = new Map();
    this.waiting = new Map();
    this.stopped = new AbortController();
    this.queue = Promise.resolve();
  }

  // Find out how many pages there are; a Problem if the file cannot be shown.
  async open() {
    if (await isForBrowser(this.file)) {
      const url = URL.createObjectURL(this.file);
      const size = await sizeOf(url);
      if (size) {
        this.pictures.set(1, { url, ...size, turned: 0 });
        this.isOpen = true;
        return;
      }
      URL.revokeObjectURL(url);
    }
    await this.picture(1);
    this.isOpen = true;
  }

  // Whether pages are fetched before someone looks at them: each costs an upload of the whole file.
  get isSmall() {
    return this.file.size <= MOST_AHEAD_BYTES;
  }

  picture(page) {
    if (!this.waiting.has(page)) {
      // One after another, so that looking takes no more than one of the service's places.
      const made = this.queue.then(() => this.fetch(page));
      this.queue = made.catch(() => {});
      made.catch(() => this.waiting.delete(page));
      this.waiting.set(page, made);
    }
    return this.waiting.get(page);
  }

  async fetch(page) {
    if (this.pictures.has(page)) return this.pictures.get(page);
    this.stopped.signal.throwIfAborted();
    const orientation = this.orientationOf(page);
    const { blob, width, height, turned, numPages } = await preview(this.file, page, orientation, this.stopped.signal);
    this.count = numPages;
    // Read meanwhile, and in another turn.
    const isOld = this.turns.has(page) && this.turns.get(page) !== turned && this.orientationOf(page) !== orientation;
    if (isOld) return this.fetch(page);
    const picture = { url: URL.createObjectURL(blob), width, height, turned };
    this.pictures.set(page, picture);
    return picture;
  }

  // A page whose turn led to nothing was read as it is.
  orientationOf(page) {
    if (!this.turns.has(page)) return this.orientation;
    return this.turns.get(page) ? "auto" : "as-is";
  }

  // Whether the picture of a page that was read is as it was read, so that boxes fit; if not, it will be made again.
  isAsRead({ page, turned_degrees: turned }) {
    this.turns.set(page, turned);
    const picture = this.pictures.get(page);
    if (!picture || picture.turned === turned) return true;
    URL.revokeObjectURL(picture.url);
    this.pictures.delete(page);
    this.waiting.delete(page);
    return false;
  }

  close() {
    this.stopped.abort();
    for (const { url } of this.pictures.values()) URL.revokeObjectURL(url);
  }
}
