// The page: follows the swarm's events, and asks for a key where one is needed.

import { Chat } from "./chat.js";
import { ask, events, key, Refused } from "./server.js";
import { showAnswers, showModels, showRates } from "./swarm.js";

const RETRY = 2000; // ms before the stream is asked for again
const SILENCE = 30000; // ms without any event or comment after which a stream is taken for dead

const status = document.getElementById("status");
const form = document.getElementById("key-form");
const field = document.getElementById("key");
let following = false;
const chat = new Chat(askForKey);

function say(state, text) {
  if (status.dataset.state === state && status.textContent === text) return; // it is read aloud
  status.dataset.state = state;
  status.textContent = text;
}

function askForKey() {
  if (!form.hidden) return;
  if (key.get()) document.getElementById("key-note").textContent = "That key is not valid here.";
  form.hidden = false;
  field.focus();
}

form.addEventListener("submit", (event) => {
  event.preventDefault();
  key.set(field.value.trim());
  field.value = "";
  form.hidden = true;
  follow();
});

async function follow() {
  if (following) return;
  following = true;
  for (;;) {
    const silence = new AbortController();
    let timer = setTimeout(() => silence.abort(), SILENCE);
    try {
      const response = await ask("/swarm/events", { signal: silence.signal });
      for await (const { data } of events(response)) {
        clearTimeout(timer);
        timer = setTimeout(() => silence.abort(), SILENCE);
        say("live", "live");
        if (data) show(JSON.parse(data));
      }
      say("lost", "the server has closed the stream");
    } catch (error) {
      if (error instanceof Refused && error.status === 401) {
        say("lost", "an API key is needed");
        following = false;
        askForKey();
        return;
      }
      say("lost", error instanceof Refused ? error.message : "the server does not answer; trying again");
    } finally {
      clearTimeout(timer);
    }
    await new Promise((resolve) => setTimeout(resolve, RETRY));
  }
}

function show(news) {
  if (news.models) {
    chat.model = news.models[0] ?? null;
    showModels(news.models);
  }
  if (news.answers) showAnswers(news.answers);
  if (news.rates) showRates(news.rates);
}

follow();
