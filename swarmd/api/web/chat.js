// A chat: the answer as it comes, the route that it takes, and what a lost hop cost.

import { count, el, route } from "./dom.js";
import { ask, events, Refused } from "./server.js";

const TEMPERATURE = 0.6; // calmer than the API's 1, at which small models ramble
const SHORTEST_PAUSE = 300; // ms without a token that are told

export class Chat {
  #messages = [];
  #running = null;
  #turns = document.getElementById("turns");
  #send = document.getElementById("send");
  #stop = document.getElementById("stop");
  #following = true;
  #hint = this.#turns.querySelector(".empty");

  constructor(onRefused) {
    this.onRefused = onRefused;
    this.model = null;
    // Follow the text, unless the reader has scrolled up.
    this.#turns.addEventListener("scroll", () => {
      const list = this.#turns;
      this.#following = list.scrollHeight - list.scrollTop - list.clientHeight < 40;
    });
    new ResizeObserver(() => this.#follow()).observe(this.#turns);
    const question = document.getElementById("question");
    document.getElementById("ask").addEventListener("submit", (event) => {
      event.preventDefault();
      const text = question.value.trim();
      if (!text || this.#running) return;
      question.value = "";
      this.#answer(text);
    });
    question.addEventListener("keydown", (event) => {
      if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
      event.preventDefault();
      question.form.requestSubmit();
    });
    this.#stop.addEventListener("click", () => {
      this.#running?.abort();
      question.focus();
    });
    document.getElementById("fresh").addEventListener("click", () => {
      this.#running?.abort();
      this.#messages = [];
      this.#turns.replaceChildren(this.#hint);
      question.focus();
    });
  }

  async #answer(text) {
    const messages = this.#messages;
    const asked = { role: "user", content: text };
    messages.push(asked);
    this.#hint.remove();
    this.#add("user", "You", text);
    const turn = this.#add("assistant", this.model?.name ?? "model", "");
    turn.box.classList.add("busy");
    const running = new AbortController();
    this.#running = running;
    this.#send.disabled = true;
    this.#stop.disabled = false;
    let said = "";
    try {
      if (!this.model) throw new Error("the server has no model yet; try again in a moment");
      const response = await ask("/v1/chat/completions", {
        method: "POST",
        headers: { "Content-Type": "application/json" },
        body: JSON.stringify({ model: this.model.id, messages, stream: true, temperature: TEMPERATURE }),
        signal: running.signal,
      });
      let fact = null;
      let last = null;
      let pause = 0;
      for await (const { data, comment } of events(response)) {
        if (comment?.startsWith("swarmd ")) {
          fact = JSON.parse(comment.slice(7));
          this.#tell(turn, fact, pause);
          continue;
        }
        if (!data || data === "[DONE]") continue;
        const chunk = JSON.parse(data);
        if (chunk.error) throw new Error(chunk.error.message);
        const piece = chunk.choices[0]?.delta?.content;
        if (!piece) continue;
        const now = performance.now();
        const grew = last !== null && now - last > pause;
        if (grew) pause = now - last;
        if (grew && fact?.losses) this.#tell(turn, fact, pause);
        last = now;
        said += piece;
        turn.text.append(piece);
        this.#follow();
      }
    } catch (error) {
      const stopped = error.name === "AbortError";
      const why = stopped ? "stopped" : `No more came: ${error.message}`;
      turn.facts.append(el("p", { class: stopped ? "quiet" : "failed" }, why));
      this.#follow();
      if (error instanceof Refused && error.status === 401) this.onRefused();
    } finally {
      turn.box.classList.remove("busy");
      if (said) messages.push({ role: "assistant", content: said });
      else if (messages.at(-1) === asked) messages.pop();
      if (this.#running === running) {
        this.#running = null;
        this.#send.disabled = false;
        this.#stop.disabled = true;
      }
    }
  }

  #tell(turn, fact, pause) {
    const lines = fact.recoveries.map((one) => {
      const by = one.by.map((hop) => hop.peer).join(", ");
      return el("p", { class: "loss" },
        `Lost ${one.lost.peer} (blocks ${one.lost.start}:${one.lost.end}) at token position ${one.position}: ${one.reason}. `,
        `${by} took over after ${one.ms.toFixed(0)} ms.`);
    });
    if (fact.losses) {
      const waited = pause >= SHORTEST_PAUSE ? `; longest pause so far ${(pause / 1000).toFixed(1)} s` : "";
      lines.push(el("p", { class: "quiet" },
        `Failover cost: ${count(fact.losses, "hop")} replaced, ${count(fact.replayed, "position")} run again${waited}`));
    }
    turn.facts.replaceChildren(route(fact.route), ...lines);
    this.#follow();
  }

  #add(role, who, text) {
    const turn = {
      text: el("div", { class: "text" }, text),
      facts: el("div", { class: "facts" }),
    };
    turn.box = el("li", { class: `turn ${role}` }, el("span", { class: "who" }, who), turn.text, turn.facts);
    this.#turns.append(turn.box);
    this.#following = true;
    this.#follow();
    return turn;
  }

  #follow() {
    if (this.#following) this.#turns.scrollTop = this.#turns.scrollHeight;
  }
}
