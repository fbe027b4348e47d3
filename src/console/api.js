// Calls the JSON APIs of the server that this page came from, as whoever is signed in.

import { reviver } from "./exact.js";
import { forget, renew, session } from "./session.js";

const WAIT_MS = 30_000;
// Pages of one list that are followed; a longer list is cut, and says so.
const PAGES_MAX = 20;

let supabase = null;
let ended = () => {};

// Tells where users sign in, and whom to tell that a session is over.
export function prepare(config, whenEnded) {
  supabase = config.supabase;
  ended = whenEnded;
}

// What the server says, as JSON. Throws what can be shown to a person.
export async function call(path, { method = "GET", body } = {}) {
  let token = session()?.token;
  let answer = await send(path, method, body, token);
  if (answer.status === 401 && await renew(supabase)) {
    token = session()?.token;
    answer = await send(path, method, body, token);
  }
  const said = read(await answer.text());
  if (answer.ok && said !== undefined) return said;
  const error = new Error(said?.error?.message ?? `The server answered ${answer.status}.`);
  error.status = answer.status;
  error.code = said?.error?.code;
  // It ends the session that it was asked in, and none that somebody has begun since.
  if (answer.status === 401 && session()?.token === token) {
    error.isSessionOver = true;
    forget();
    ended(said?.error?.message);
  }
  throw error;
}

// Undefined: it is no JSON, so a proxy in between has said it.
function read(text) {
  try {
    return JSON.parse(text || "null", reviver);
  } catch (error) {
    if (error instanceof SyntaxError) return undefined;
    throw error;
  }
}

async function send(path, method, body, token) {
  const headers = { Authorization: `Bearer ${token}` };
  if (body !== undefined) headers["Content-Type"] = "application/json";
  try {
    return await fetch(path, {
      method,
      headers,
      body: body === undefined ? undefined : JSON.stringify(body),
      cache: "no-store",
      signal: AbortSignal.timeout(WAIT_MS),
    });
  } catch {
    throw new Error("The server cannot be reached. Please try again.");
  }
}

// All rows of a list that has pages, and whether it was cut.
export async function all(path) {
  const rows = [];
  let after = "";
  for (let page = 0; page < PAGES_MAX; page += 1) {
    const joint = path.includes("?") ? "&" : "?";
    const list = await call(`${path}${joint}limit=100${after}`);
    rows.push(...list.data);
    if (!list.has_more) return { rows, isCut: false };
    after = `&after=${encodeURIComponent(list.last_id)}`;
  }
  return { rows, isCut: true };
}
