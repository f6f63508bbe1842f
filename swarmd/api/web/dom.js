// Elements and their text. Everything that comes from peers passes here, as text only.

export function el(name, options = {}, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(options)) element.setAttribute(key, String(value));
  element.append(...children); // strings become text nodes
  return element;
}

export function route(hops) {
  const line = el("span", { class: "route" });
  hops.forEach((hop, at) => {
    if (at) line.append("→");
    line.append(
      el("span", { class: "hop" }, `${hop.start}:${hop.end} `, el("code", {}, hop.peer), ` ${hop.ms.toFixed(1)} ms`),
    );
  });
  return line;
}

export function count(number, one, many = `${one}s`) {
  return `${number.toLocaleString("en")} ${number === 1 ? one : many}`;
}
