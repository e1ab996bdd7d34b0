// Who is in the session now, and who is writing something there.

import type { Member, Presence, Session } from "../../sdk/typescript/src/index.js";
import { arrange, byId, h, hueClass, setText } from "./dom.js";

const SHOWN_MAX = 5;

interface Person {
  name: string;
  isMe: boolean;
  devices: number;
}

export class Here {
  readonly #list = byId("people", HTMLUListElement);
  readonly #typing = byId("typing", HTMLElement);
  readonly #device: string;
  readonly #chips = new Map<string, HTMLLIElement>();
  #off: () => void = () => undefined;
  #session: Session | undefined;
  #isTyping = false;

  constructor(device: string) {
    this.#device = device;
  }

  watch(session: Session | undefined): void {
    this.#off();
    this.#session = session;
    this.#isTyping = false;
    this.#off = session?.presence.on("change", (presence) => this.#draw(presence)) ?? (() => undefined);
    arrange(this.#list, []);
    this.#list.hidden = true;
    setText(this.#typing, "");
  }

  /** What the person at this page does; the others are told when it changes. */
  setTyping(isTyping: boolean): void {
    if (isTyping === this.#isTyping) return;
    this.#isTyping = isTyping;
    this.#session?.presence.set(isTyping ? { typing: true } : {});
  }

  #draw(presence: Presence): void {
    const people = this.#people(presence.members);
    const isAlone = presence.count < 2;
    this.#list.hidden = isAlone;
    const shown = presence.isCounted ? [] : people.slice(0, SHOWN_MAX);
    const left = presence.isCounted ? presence.count : people.length - shown.length;
    const chips = shown.map((person) => this.#chip(person));
    if (left > 0) chips.push(this.#rest(presence.isCounted ? `${left}` : `+${left}`, presence.count));
    arrange(this.#list, isAlone ? [] : chips);
    setText(this.#typing, this.#whoTypes(presence.members));
  }

  /** A person is there once, with however many devices; oneself comes first. */
  #people(members: Member[]): Person[] {
    const mine = this.#myName(members);
    const groups = [...Map.groupBy(members, ({ subject }) => subject)];
    const people = groups.map(([name, all]) => ({ name, isMe: name === mine, devices: all.length }));
    return people.sort((a, b) => Number(b.isMe) - Number(a.isMe));
  }

  #myName(members: Member[]): string | undefined {
    return members.find(({ device }) => device === this.#device)?.subject;
  }

  #chip({ name, isMe, devices }: Person): HTMLLIElement {
    const chip = this.#chips.get(name) ?? newChip(name);
    this.#chips.set(name, chip);
    const [seen, spoken] = chip.children;
    const words = `${isMe ? "You" : name}${devices > 1 ? `, on ${devices} devices` : ""}`;
    if (seen) setText(seen, [...name][0]?.toUpperCase() ?? "?");
    if (spoken) setText(spoken, words);
    chip.title = words;
    chip.classList.toggle("me", isMe);
    return chip;
  }

  #rest(text: string, count: number): HTMLLIElement {
    return h("li", { class: "person more", text, attrs: { title: `${count} are here` } });
  }

  #whoTypes(members: Member[]): string {
    const mine = this.#myName(members);
    const typing = members.filter(({ data, device }) => data?.["typing"] === true && device !== this.#device);
    const [first, second, third] = new Set(typing.map(({ subject }) => subject));
    if (first === undefined) return "";
    if (third !== undefined) return "Several people are typing…";
    if (second !== undefined) return `${first} and ${second} are typing…`;
    return first === mine ? "You are typing on another device…" : `${first} is typing…`;
  }
}

function newChip(name: string): HTMLLIElement {
  const letter = h("span", { attrs: { "aria-hidden": "true" } });
  return h("li", { class: `person ${hueClass(name)}` }, letter, h("span", { class: "unseen" }));
}
