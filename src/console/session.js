// Who is signed in: an API key, or a user of Supabase. Kept in this tab's session storage, so that
// it ends with the tab, and sent in a header, never in an address.

const PLACE = "tollgate-session";
const WAIT_MS = 20_000;

export function session() {
  return JSON.parse(sessionStorage.getItem(PLACE) ?? "null");
}

const keep = (one) => sessionStorage.setItem(PLACE, JSON.stringify(one));
export const forget = () => sessionStorage.removeItem(PLACE);

export function keepKey(key) {
  // A header cannot carry anything else, and a pasted line break would say nothing of itself.
  if (!/^[\x21-\x7e]{1,4096}$/.test(key)) throw new Error("This is not an API key.");
  keep({ token: key });
}

// Signs in at the auth server. <https://supabase.com/docs/reference/self-hosting-auth>
export async function keepUser(supabase, email, password) {
  keep(await grant(supabase, "password", { email, password }));
}

let renewal = null;

// Gets another token for a user whose token has ended; false where that cannot be. One at a time:
// the token that it is got with works once.
export function renew(supabase) {
  renewal ??= again(supabase).finally(() => { renewal = null; });
  return renewal;
}

async function again(supabase) {
  const refresh = session()?.refresh;
  if (!refresh || !supabase) return false;
  try {
    const renewed = await grant(supabase, "refresh_token", { refresh_token: refresh });
    // Somebody may have signed out meanwhile, or in as somebody else.
    if (session()?.refresh !== refresh) return false;
    keep(renewed);
    return true;
  } catch {
    return false;
  }
}

// Ends the session, at the auth server too.
export async function signOut(supabase) {
  const known = session();
  forget();
  if (!known?.refresh || !supabase) return;
  try {
    await fetch(`${supabase.url}/logout?scope=local`, {
      method: "POST",
      headers: { apikey: supabase.anon_key, Authorization: `Bearer ${known.token}` },
      signal: AbortSignal.timeout(WAIT_MS),
    });
  } catch {
    // It ends by itself within the hour.
  }
}

async function grant(supabase, kind, body) {
  let answer;
  try {
    answer = await fetch(`${supabase.url}/token?grant_type=${kind}`, {
      method: "POST",
      headers: { apikey: supabase.anon_key, "Content-Type": "application/json" },
      body: JSON.stringify(body),
      signal: AbortSignal.timeout(WAIT_MS),
    });
  } catch {
    throw new Error("The sign-in service cannot be reached. Please try again later.");
  }
  if (answer.status === 400 || answer.status === 401 || answer.status === 422) {
    throw new Error("E-mail address or password is wrong.");
  }
  if (answer.status === 429) throw new Error("Too many attempts. Please wait a while.");
  if (!answer.ok) throw new Error("The sign-in service has failed. Please try again later.");
  const said = await answer.json();
  return { token: said.access_token, refresh: said.refresh_token };
}
