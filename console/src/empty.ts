// What stands in place of a conversation: how to begin one, or that there is none.

import { h } from "./dom.js";

interface Example {
  agent: string;
  title: string;
  text: string;
}

const EXAMPLES: Example[] = [
  {
    agent: "guide",
    title: "Watch an answer survive",
    text: "Explain how a durable session works, and why my answer survives a reload.",
  },
  {
    agent: "orchestra",
    title: "See three agents at once",
    text: "Plan a launch: have your specialists work on it side by side.",
  },
  {
    agent: "guide",
    title: "Steer one half-way",
    text: "Tell me at length what happens when I write to you, or press Stop, while you are writing.",
  },
  {
    agent: "guide",
    title: "Be asked first",
    text: "Please delete my old drafts. I know that somebody must approve this.",
  },
];

/** The page for a new session. */
export function showEmpty(
  welcome: HTMLElement,
  agents: string[],
  onPick: (agent: string | undefined, text: string) => void,
): void {
  const offered = EXAMPLES.filter((example) => agents.length === 0 || agents.includes(example.agent));
  const cards = offered.map((example) => {
    const agent = agents.includes(example.agent) ? example.agent : undefined;
    const on = { click: () => onPick(agent, example.text) };
    const title = h("strong", { text: example.title });
    const text = h("span", { text: example.text });
    return h("button", { class: "example", attrs: { type: "button" }, on }, title, text);
  });
  const tries = [
    ["Reload", "in the middle of an answer. It goes on where it is."],
    ["Open a second tab", "or your phone. Both show the same thing, live."],
    ["Cut the connection", "with the button above. Nothing is lost, nothing comes twice."],
  ].map(([what, why]) => h("li", {}, h("strong", { text: what ?? "" }), document.createTextNode(` ${why}`)));
  welcome.replaceChildren(
    h("h2", { text: "A conversation that outlives its connection" }),
    h("p", {
      class: "lead",
      text: "Agents write to a session, a durable and ordered log. This page only follows it. Ask something, then try to break it:",
    }),
    h("ul", { class: "tries" }, ...tries),
    h("div", { class: "examples" }, ...cards),
  );
  welcome.hidden = false;
}

/** The page for an address without a session. */
export function showMissing(welcome: HTMLElement, id: string, onNew: () => void): void {
  const button = h("button", { class: "primary", text: "New session", attrs: { type: "button" }, on: { click: onNew } });
  welcome.replaceChildren(
    h("h2", { text: "There is no such session" }),
    h("p", { class: "lead", text: `Nothing is kept under “${id}”, or it is not yours to see.` }),
    button,
  );
  welcome.hidden = false;
}

/** The page of a session that was deleted while it was looked at. */
export function showGone(welcome: HTMLElement, title: string, onNew: () => void): void {
  const button = h("button", { class: "primary", text: "New session", attrs: { type: "button" }, on: { click: onNew } });
  welcome.replaceChildren(
    h("h2", { text: "This session was deleted" }),
    h("p", { class: "lead", text: `“${title}” and everything in it is gone, for everybody.` }),
    button,
  );
  welcome.hidden = false;
}
