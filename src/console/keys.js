// The account's API keys: made, shown once, ended.

import { all, call } from "./api.js";
import { ask, el, field, say, section, table, time } from "./dom.js";
import { nanoTyped } from "./exact.js";

export function keys() {
  const list = section("Keys of this account", () => listed(() => list.show()), { id: "keys" });
  const make = el("button", {
    type: "button", id: "new-key", class: "primary", click: () => create(() => list.show()),
  }, "New key");
  return [el("p", { class: "about" }, "All times are in UTC."), el("p", {}, make), list];
}

function state(key) {
  if (key.revoked_at) return "ended";
  if (key.expires_at && new Date(key.expires_at) <= new Date()) return "expired";
  return key.role === "user" ? "in use" : `in use, ${key.role}`;
}

async function listed(again) {
  const { rows, isCut } = await all("/v1/keys");
  rows.reverse();
  const columns = [
    { name: "Name" },
    { name: "Key" },
    { name: "State" },
    { name: "Models" },
    { name: "Made" },
    { name: "Last used" },
    { name: "Ends" },
    { name: "Action" },
  ];
  const shown = rows.map((key) => [
    key.name, el("code", {}, key.hint), state(key), key.models ?? "all", time(key.created_at),
    time(key.last_used_at), time(key.expires_at), end(key, again),
  ]);
  const made = table("Keys, the newest first", columns, shown,
    { id: "key-list", empty: "There is no key yet." });
  return isCut ? [made, el("p", { class: "empty" }, "Newer keys are not shown.")] : made;
}

function end(key, again) {
  if (key.revoked_at) return "";
  const click = () => ask(`End '${key.name}'?`,
    el("p", {}, "Programs that use this key are refused from now on. This cannot be undone."),
    "End this key", async () => {
      await call(`/v1/keys/${key.id}`, { method: "DELETE" });
      say(`The key ${key.name} has ended.`);
      again();
    });
  return el("button", { type: "button", class: "danger", "aria-label": `End ${key.name}`, click },
    "End");
}

function create(again) {
  ask("New key", [
    field("Name", { name: "name", required: true, maxlength: 200 }, "To tell it from others."),
    field("Models", { name: "models", maxlength: 4096 },
      "Names, or beginnings with a * after them, separated by commas. Empty: all."),
    field("Most to spend in a day", { name: "day", inputmode: "decimal" },
      "In US dollars; a day begins at 0:00 UTC. Empty: as the plan says."),
    field("Most to spend in a month", { name: "month", inputmode: "decimal" }),
  ], "Make the key", async (data) => {
    const key = await call("/v1/keys", { method: "POST", body: {
      name: data.get("name").trim(),
      models: data.get("models").trim() || null,
      day_limit_nusd: limit(data, "day"),
      month_limit_nusd: limit(data, "month"),
    } });
    again();
    return () => show(key);
  });
}

function limit(data, name) {
  const nano = nanoTyped(data.get(name));
  if (nano === undefined) throw new Error("Please give an amount like 5 or 0.50, or none.");
  return nano;
}

// The only time that the secret is to be had.
function show(key) {
  const secret = el("input", {
    id: "secret", readonly: true, value: key.secret, "aria-label": "The new key", size: 60,
  });
  const copy = async () => {
    secret.select();
    try {
      await navigator.clipboard.writeText(key.secret);
      say("The key was copied.");
    } catch {
      say("The key is selected: copy it with the keyboard.");
    }
  };
  ask(`The key '${key.name}'`, [
    el("p", {}, "Copy it now: it is not kept, and cannot be shown again."),
    el("p", { class: "field" }, secret),
    el("p", {}, el("button", { type: "button", click: copy }, "Copy")),
  ]);
}
