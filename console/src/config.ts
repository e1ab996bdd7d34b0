// What the server put into the page, or, without that, what the person at the page knows.

import { byId } from "./dom.js";

export interface Config {
  token: string;
  agents: string[];
  subject?: string;
}

const STORED = "everthread.config";
const DEVICE = "everthread.device";

/** The configuration: the page's, and over it what was answered in this tab because the page had no token or a bad one. */
export function readConfig(): Config | undefined {
  const page = parse(document.getElementById("everthread-config")?.textContent);
  const answered = parse(stored(sessionStorage, STORED));
  const token = answered.token ?? page.token;
  if (typeof token !== "string") return undefined;
  // Under the development token the address may say who is looking: two names, two people.
  const subject = new URLSearchParams(location.search).get("as") ?? page.subject;
  const agents = [...new Set([...(page.agents ?? []), ...(answered.agents ?? [])])];
  return { token, agents, ...(subject ? { subject } : {}) };
}

function parse(text: string | null | undefined): Partial<Config> {
  try {
    return text ? (JSON.parse(text) as Partial<Config>) : {};
  } catch {
    return {};
  }
}

/** Asks for a token, and says why if there is a reason. */
export function askConfig(reason: string): Promise<Config> {
  const dialog = byId("token-dialog", HTMLDialogElement);
  const form = byId("token-form", HTMLFormElement);
  byId("token-reason", HTMLElement).textContent = reason;
  dialog.showModal();
  return new Promise((resolve) => {
    form.onsubmit = (event) => {
      event.preventDefault();
      dialog.close();
      const token = byId("token", HTMLInputElement).value.trim();
      const agents = byId("token-agents", HTMLInputElement).value.split(/[\s,]+/).filter(Boolean);
      const config: Config = { token, agents };
      sessionStorage.setItem(STORED, JSON.stringify(config));
      resolve(config);
    };
    // Without a token there is nothing behind the dialog.
    dialog.oncancel = (event) => event.preventDefault();
  });
}

/** This browser, over reloads. */
export function deviceId(): string {
  const known = stored(localStorage, DEVICE);
  if (known) return known;
  const bytes = crypto.getRandomValues(new Uint8Array(8));
  const made = `web-${[...bytes].map((byte) => byte.toString(16).padStart(2, "0")).join("")}`;
  try {
    localStorage.setItem(DEVICE, made);
  } catch {
    // A browser that keeps nothing is a new device each time.
  }
  return made;
}

function stored(storage: Storage, key: string): string | undefined {
  try {
    return storage.getItem(key) ?? undefined;
  } catch {
    return undefined;
  }
}
