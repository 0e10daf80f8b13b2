// Text and files taken out of the page.

export async function copy(words) {
  try {
    // Only in a secure context, which plain HTTP on another host is not.
    await navigator.clipboard.writeText(words);
    return true;
  } catch {
    const area = document.createElement("textarea");
    area.className = "aside";
    area.value = words;
    document.body.append(area);
    const { activeElement } = document;
    area.select();
    const isCopied = document.execCommand("copy");
    area.remove();
    activeElement?.focus();
    return isCopied;
  }
}

export function save(blob, name) {
  const link = document.createElement("a");
  link.className = "aside";
  link.href = URL.createObjectURL(blob);
  link.download = name;
  document.body.append(link);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(link.href), 60000);
}
