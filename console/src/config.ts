// What the server put into the page, or, without that, what the person at the page knows.

import { byId } from "./dom.js";

export interface Config {
  token: string;
  agents: string[];
  subject?: string;
}

const STORED = "everthread.config";
const DEVICE = "everthread.device";

/** The configuration: an earlier answer in this tab, given because the page had none or it was refused, or the page's. */
export function readConfig(): Config | undefined {
  const text = stored(sessionStorage, STORED) ?? document.getElementById("everthread-config")?.textContent;
  if (!text) return undefined;
  const value = JSON.parse(text) as Partial<Config>;
  if (typeof value.token !== "string") return undefined;
  const subject = value.subject === undefined ? {} : { subject: value.subject };
  return { token: value.token, agents: value.agents ?? [], ...subject };
}

/** Asks for a token, and says why if there is a reason. */
export function askConfig(reason: string): Promise<Config> {
  const dialog = byId("token-dialog", HTMLDialogElement);
  const form = byId("token-form", HTMLFormElement);
  byId("token-reason", HTMLElement).textContent = reason;
  dialog.showModal();
  return new Promise((resolve) => {
    form.onsubmit = () => {
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
