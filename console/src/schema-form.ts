// A form for a JSON Schema: fields for plain objects of texts, numbers, flags and choices, else a field for JSON. The
// worker checks what comes; this only helps people to write it.

import type { Json, JsonObject } from "../../sdk/typescript/src/index.js";
import { h } from "./dom.js";

export interface SchemaForm {
  element: HTMLElement;
  /** What the fields say. Throws with words for people if that is not JSON. */
  value(): Json | undefined;
}

interface Field {
  element: HTMLElement;
  read(): Json | undefined;
}

let count = 0;

export function schemaForm(schema: Json): SchemaForm {
  const properties = isObject(schema) && isObject(schema["properties"]) ? schema["properties"] : undefined;
  const required = isObject(schema) && Array.isArray(schema["required"]) ? schema["required"] : [];
  const entries = Object.entries(properties ?? {});
  if (!properties || entries.length === 0 || !entries.every(([, property]) => isPlain(property))) return jsonForm(schema);
  const fields = entries.map(([name, property]): [string, Field] => [
    name,
    field(name, property as JsonObject, required.includes(name)),
  ]);
  const element = h("div", { class: "fields" }, ...fields.map(([, { element }]) => element));
  const value = () => {
    const read = fields.map(([name, field]): [string, Json | undefined] => [name, field.read()]);
    return Object.fromEntries(read.filter((pair): pair is [string, Json] => pair[1] !== undefined));
  };
  return { element, value };
}

function isPlain(property: Json): boolean {
  if (!isObject(property)) return false;
  if (isChoice(property)) return true;
  return ["string", "number", "integer", "boolean"].includes(String(property["type"]));
}

function isChoice(property: JsonObject): property is JsonObject & { enum: Json[] } {
  return Array.isArray(property["enum"]) && property["enum"].length > 0;
}

function field(name: string, property: JsonObject, isRequired: boolean): Field {
  const title = typeof property["title"] === "string" ? property["title"] : name.replaceAll("_", " ");
  const made = isChoice(property) ? choice(property) : property["type"] === "boolean" ? flag(property) : line(property);
  const { input, read } = made;
  input.id = `field-${(count += 1)}`;
  input.setAttribute("name", name);
  if (isRequired && !(input instanceof HTMLInputElement && input.type === "checkbox")) input.required = true;
  const label = h("label", { text: title, attrs: { for: input.id } });
  const hint = typeof property["description"] === "string" ? [h("small", { text: property["description"] })] : [];
  return { element: h("div", { class: "one-field" }, label, input, ...hint), read };
}

interface Made {
  input: HTMLInputElement | HTMLSelectElement;
  read(): Json | undefined;
}

function choice(property: { enum: Json[]; default?: Json }): Made {
  const words = property.enum.map((one) => (typeof one === "string" ? one : JSON.stringify(one)));
  const options = words.map((word, i) => h("option", { text: word, attrs: { value: String(i) } }));
  const none = h("option", { text: "Choose…", attrs: { value: "" } });
  const input = h("select", {}, none, ...options);
  const preset = property.enum.findIndex((one) => one === property.default);
  if (preset >= 0) input.value = String(preset);
  return { input, read: () => (input.value === "" ? undefined : property.enum[Number(input.value)]) };
}

function flag(property: JsonObject): Made {
  const input = h("input", { attrs: { type: "checkbox" } });
  input.checked = property["default"] === true;
  return { input, read: () => input.checked };
}

const LIMITS: [keyword: string, attribute: string][] = [
  ["minimum", "min"],
  ["maximum", "max"],
  ["multipleOf", "step"],
  ["minLength", "minlength"],
  ["maxLength", "maxlength"],
];

function line(property: JsonObject): Made {
  const isNumber = property["type"] !== "string";
  const input = h("input", { attrs: { type: isNumber ? "number" : "text", autocomplete: "off" } });
  if (isNumber) input.step = property["type"] === "integer" ? "1" : "any";
  for (const [keyword, attribute] of LIMITS) {
    if (typeof property[keyword] === "number") input.setAttribute(attribute, String(property[keyword]));
  }
  const preset = property["default"];
  if (typeof preset === "string" || typeof preset === "number") input.value = String(preset);
  return { input, read: () => (input.value === "" ? undefined : isNumber ? Number(input.value) : input.value) };
}

function jsonForm(schema: Json): SchemaForm {
  const id = `field-${(count += 1)}`;
  const input = h("textarea", { attrs: { id, rows: "3", spellcheck: "false", placeholder: "{ }" } });
  const label = h("label", { text: "Answer, as JSON", attrs: { for: id } });
  const shape = h("details", { class: "part folded" }, h("summary", { text: "What is expected" }));
  shape.append(h("pre", { text: JSON.stringify(schema, null, 2), attrs: { tabindex: "0" } }));
  const value = () => {
    if (input.value.trim() === "") return undefined;
    try {
      return JSON.parse(input.value) as Json;
    } catch {
      throw new Error("The answer is not JSON.");
    }
  };
  return { element: h("div", { class: "fields" }, h("div", { class: "one-field" }, label, input), shape), value };
}

function isObject(value: Json | undefined): value is JsonObject {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}
