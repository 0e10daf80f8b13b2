// The request that the page sends, as a command and as a program.

const shell = (text) => (/^[\w./:@=,+-]+$/.test(text) ? text : `'${text.replaceAll("'", "'\\''")}'`);
const python = (text) => JSON.stringify(text);
const members = (entries) => entries.map(([key, value]) => `${python(key)}: ${python(value)}`).join(", ");

export function curl(url, name, fields, headers, isJob) {
  const parts = [
    `-F file=@${shell(name)}`,
    ...fields.map(([key, value]) => `-F ${shell(`${key}=${value}`)}`),
    ...Object.entries(headers).map(([key, value]) => `-H ${shell(`${key}: ${value}`)}`),
  ];
  const sent = `curl ${parts.join(" \\\n  ")} \\\n  ${shell(url)}\n`;
  return isJob ? `${sent}curl ${shell(`${url}/ID/result`)}\n` : sent;
}

export function program(url, name, fields, headers, isJob) {
  const given = Object.entries(headers);
  if (isJob) return jobProgram(url, name, fields);
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

const jobProgram = (url, name, fields) => `import time

import httpx

jobs = ${python(url)}
with open(${python(name)}, "rb") as file:
    job = httpx.post(jobs, files={"file": file}, data={${members(fields)}}).raise_for_status().json()
while job["state"] in ("waiting", "running"):
    time.sleep(1)
    job = httpx.get(f"{jobs}/{job['id']}").raise_for_status().json()
answer = httpx.get(f"{jobs}/{job['id']}/result").raise_for_status()
for page in answer.json()["pages"]:
    print(page["status"], page["text"])
`;
