// Money as integers. An amount comes as decimal text, is kept in pico-USD as a BigInt, and is
// written from that. No float computes or shows an amount; only the height of a bar is one.

const DIGITS = 12;
const ONE = 10n ** BigInt(DIGITS);

// What JSON.parse would make a float of stays the text that it was. Whole numbers up to 2^53 are
// exact as they are.
export function reviver(_, value, context) {
  if (typeof value !== "number" || Number.isSafeInteger(value)) return value;
  if (!context?.source) {
    throw new Error("This browser cannot read amounts exactly. Please use a newer one.");
  }
  return context.source;
}

// Pico-USD of a decimal number.
export function pico(amount) {
  const found = /^(-?)(\d+)(?:\.(\d{1,12}))?$/.exec(String(amount));
  if (!found) throw new Error(`not an amount: ${amount}`);
  const [, sign, whole, fraction = ""] = found;
  const value = BigInt(whole) * ONE + BigInt(fraction.padEnd(DIGITS, "0"));
  return sign ? -value : value;
}

// Pico-USD of nano-USD, which the admin API has.
export const picoOfNano = (nano) => BigInt(nano) * 1000n;

export const picoOfCents = (cents) => BigInt(cents) * (ONE / 100n);

export const sum = (amounts) => amounts.reduce((one, other) => one + other, 0n);

// Dollars, all digits that are not superfluous, at least two of them behind the point.
export function usd(amount) {
  const positive = amount < 0n ? -amount : amount;
  const whole = (positive / ONE).toLocaleString("en");
  const digits = (positive % ONE).toString().padStart(DIGITS, "0").replace(/0+$/, "");
  return `${amount < 0n ? "−" : ""}$${whole}.${digits.padEnd(2, "0")}`;
}

// For the height of a bar, and for nothing that is read.
export const height = (amount) => Number(amount / 1_000_000n) / 1_000_000;

// A share in percent with one digit, or a dash where there is no whole.
export function percent(part, whole) {
  if (whole === 0n) return "–";
  const negative = part < 0n !== whole < 0n && part !== 0n;
  const size = (n) => (n < 0n ? -n : n);
  const tenths = (size(part) * 2000n + size(whole)) / (size(whole) * 2n);
  return `${negative ? "−" : ""}${tenths / 10n}.${tenths % 10n} %`;
}

// Nano-USD of what somebody typed, as a number for JSON; null where nothing was, undefined where
// it is no amount.
export function nanoTyped(text) {
  const typed = text.trim().replace(/^\$/, "");
  if (typed === "") return null;
  if (!/^\d{1,6}(\.\d{1,9})?$/.test(typed)) return undefined;
  return Number(pico(typed) / 1000n);
}

// Cents, in the same way.
export function centsTyped(text) {
  const typed = text.trim().replace(/^\$/, "");
  if (!/^\d{1,6}(\.\d{1,2})?$/.test(typed)) return undefined;
  return Number(pico(typed) / (ONE / 100n));
}

export const whole = (number) => BigInt(number).toLocaleString("en");
