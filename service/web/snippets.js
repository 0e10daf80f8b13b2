// The request that the page sends, as a command and as a program.

const shell = (text) => (/^[\w./:@=,+-]+$/.test(text) ? text : `'${text.replaceAll("'", "'\\''")}'`);
const python = (text) => JSON.stringify(text);
const members = (entries) => entries.map(([key, value]) => `${python(key)}: ${python(value)}`).join(", ");

export function curl(url, name, fields, headers) {
  const parts = [
    `-F file=@${shell(name)}`,
    ...fields.map(([key, value]) => `-F ${shell(`${key}=${value}`)}`),
    ...Object.entries(headers).map(([key, value]) => `-H ${shell(`${key}: ${value}`)}`),
  ];
  return `curl ${parts.join(" \\\n  ")} \\\n  ${shell(url)}\n`;
}

export function program(url, name, fields, headers) {
  const given = Object.entries(headers);
  return `import httpx

with open(${python(name)}, "rb") as file:
    answer = httpx.post(
        ${python(url)},
        files={"file": file},
        data={${members(fields)}},${given.length ? `\n        headers={${members(given)}},` : ""}
        timeout=300,
    )
answer.raise_for_status()
for page in answer.json()["pages"]:
    print(page["status"], page["text"])
`;
}
