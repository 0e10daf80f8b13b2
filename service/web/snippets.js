// The request that the page sends, as a command and as a program.

const shell = (text) => (/^[\w./:@=,+-]+$/.test(text) ? text : `'${text.replaceAll("'", "'\\''")}'`);
const python = (text) => JSON.stringify(text);

export function curl(url, name, fields) {
  const parts = [`-F file=@${shell(name)}`, ...fields.map(([key, value]) => `-F ${shell(`${key}=${value}`)}`)];
  return `curl ${parts.join(" \\\n  ")} \\\n  ${shell(url)}\n`;
}

export function program(url, name, fields) {
  const data = fields.map(([key, value]) => `${python(key)}: ${python(value)}`).join(", ");
  return `import httpx

with open(${python(name)}, "rb") as file:
    answer = httpx.post(
        ${python(url)},
        files={"file": file},
        data={${data}},
        timeout=300,
    )
answer.raise_for_status()
for page in answer.json()["pages"]:
    print(page["status"], page["text"])
`;
}
