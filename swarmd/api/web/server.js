// Requests to the server that this page came from, with the API key of this tab if there is one.

const KEY = "swarmd-api-key";

export const key = {
  get: () => sessionStorage.getItem(KEY) ?? "",
  set: (value) => sessionStorage.setItem(KEY, value),
};

export class Refused extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

export async function ask(path, options = {}) {
  const headers = { ...options.headers };
  if (key.get()) headers.Authorization = `Bearer ${key.get()}`;
  const response = await fetch(path, { ...options, headers });
  if (response.ok) return response;
  let message = `the server answers ${response.status}`;
  try {
    message = (await response.json()).error.message;
  } catch {
    // a proxy between may answer in any form
  }
  throw new Refused(response.status, message);
}

// Events of a stream (https://html.spec.whatwg.org/multipage/server-sent-events.html), as
// {data} or {comment}. EventSource cannot send a key.
export async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      const blocks = (rest + value).split("\n\n");
      rest = blocks.pop();
      for (const block of blocks) {
        if (block.startsWith("data: ")) yield { data: block.slice(6) };
        else if (block.startsWith(": ")) yield { comment: block.slice(2) };
      }
    }
  } finally {
    await reader.cancel().catch(() => {});
  }
}
