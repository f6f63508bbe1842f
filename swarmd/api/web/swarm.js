// The swarm: blocks with their replicas, peers, running answers, tokens a second.

import { count, el, route } from "./dom.js";

const LEGEND = [["one", "1 replica"], ["two", "2"], ["more", "3 or more"], ["none", "hole: nobody serves it"]];

export function showModels(models) {
  const place = document.getElementById("models");
  if (!models.length) {
    place.replaceChildren(el("p", { class: "quiet" }, "The node is starting."));
    return;
  }
  place.replaceChildren(...models.map(modelView));
  showPeers(models);
}

function modelView(model) {
  const cells = model.replicas.map((replicas, block) => {
    const words = replicas ? count(replicas, "replica") : "hole, nobody serves it";
    return el(
      "li",
      { "data-shade": Math.min(replicas, 3), title: `block ${block}: ${words}`, "aria-label": `block ${block}: ${words}` },
      replicas ? String(block) : `✕${block}`,
    );
  });
  const missing = model.holes.map(([start, end]) => `${start}:${end}`).join(", ");
  const view = el(
    "div",
    { class: "model" },
    el(
      "div",
      { class: "model-head" },
      el("span", { class: "model-name" }, model.name),
      el("span", { class: "quiet" }, `${count(model.blocks, "block")}, ${model.peers_live} of ${count(model.peers_total, "peer")} can serve`),
    ),
    el("ol", { class: "plain blocks", "aria-label": `Blocks of ${model.name}` }, ...cells),
    el("p", { class: "legend quiet", "aria-hidden": "true" }, ...LEGEND.map(([name, text]) => el("span", { class: name }, text))),
  );
  if (missing) view.append(el("p", { class: "hole" }, `Nobody serves blocks ${missing}. Start a node: swarmd serve`));
  return view;
}

function showPeers(models) {
  const peers = models.flatMap((model) => model.peers);
  const total = models.reduce((sum, model) => sum + model.peers_total, 0);
  document.getElementById("peers").replaceChildren(...peers.map(peerRow));
  document.getElementById("peers-note").textContent =
    total > peers.length ? `${peers.length} of ${total} peers are shown.`
    : total ? "" : "No peer is known yet.";
}

function peerRow(peer) {
  const cell = (label, text) => el("td", { "data-label": label }, text);
  const number = (label, text) => el("td", { "data-label": label, class: "n" }, text);
  return el(
    "tr",
    {},
    el("th", { scope: "row", title: `${peer.id} at ${peer.address}` }, el("code", {}, peer.short)),
    el("td", {}, el("span", { class: "state", "data-state": peer.state }, peer.state)),
    cell("Blocks", `${peer.start}:${peer.end}`),
    number("Tokens/s", peer.tokens_per_second.toLocaleString("en")),
    number("Queue", String(peer.queue)),
    number("KV room", peer.kv_free.toLocaleString("en")),
    number("RTT", peer.rtt_ms === null ? "–" : `${peer.rtt_ms.toFixed(1)} ms`),
    cell("Computes in", peer.arithmetic),
    cell("Version", peer.version || "–"),
  );
}

export function showAnswers(answers) {
  const rows = answers.map((answer) =>
    el(
      "li",
      {},
      route(answer.route),
      el("span", { class: "quiet" }, `answer ${answer.number}, ${count(answer.tokens, "token")}` +
        (answer.losses ? `, ${count(answer.losses, "hop")} replaced` : "")),
    ),
  );
  const nothing = el("li", { class: "quiet" }, "No answer is under way.");
  document.getElementById("routes").replaceChildren(...(rows.length ? rows : [nothing]));
}

export function showRates(rates) {
  const peak = Math.max(0, ...rates);
  const scale = Math.max(peak, 1);
  document.getElementById("rate").textContent = (rates.at(-1) ?? 0).toFixed(1);
  document.getElementById("peak").textContent = peak.toFixed(1);
  const spark = document.getElementById("spark");
  const first = 120 - rates.length;
  const points = rates.map((rate, at) => `${((first + at) * 240) / 119},${(42 - (rate / scale) * 40).toFixed(1)}`);
  spark.querySelector(".line").setAttribute("points", points.join(" "));
  const area = points.length ? [`${(first * 240) / 119},44`, ...points, "240,44"] : [];
  spark.querySelector(".area").setAttribute("points", area.join(" "));
}
