//! Money and tokens as integers with their units in the type.
//!
//! Amounts are nano-USD, prices pico-USD per token (= micro-USD per million tokens). Intermediates
//! are `i128`; one rounding per charge, and its rule is [`NanoUsd::from_pico_ceil`]. No floats:
//! decimals are read from their text.

use serde::{Deserialize, Serialize, Serializer};
use serde_json::value::RawValue;
use std::fmt;

/// An amount in nano-USD; up to about 9.2 billion dollars.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct NanoUsd(pub i64);

/// A price in pico-USD per token or other unit.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct PicoUsd(pub i64);

/// A factor in millionths: 1.20 is 1,200,000.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Markup(pub i64);

/// A number of tokens.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Tokens(pub i64);

/// A sum or product left the range of its type. Nothing is charged from such a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("amount out of range")]
pub struct OutOfRange;

const NANO_PER_USD_DIGITS: u32 = 9;
const PICO_PER_USD_DIGITS: u32 = 12;
const MILLIONTHS_DIGITS: u32 = 6;
const PICO_PER_NANO: i128 = 1_000;

impl NanoUsd {
    pub const ZERO: Self = Self(0);

    /// The one rounding rule: up to the next nano-USD. It keeps a charge from falling below its
    /// cost, and it is monotonic, so a hold for more tokens is never smaller than the charge for
    /// fewer.
    ///
    /// # Errors
    /// [`OutOfRange`] when the amount does not fit.
    pub fn from_pico_ceil(pico: i128) -> Result<Self, OutOfRange> {
        let nano = pico.div_euclid(PICO_PER_NANO) + i128::from(pico.rem_euclid(PICO_PER_NANO) > 0);
        i64::try_from(nano).map(Self).map_err(|_| OutOfRange)
    }

    /// Dollars as decimal text, exact to the nano-USD.
    #[must_use]
    pub fn parse_usd(text: &str) -> Option<Self> {
        parse_decimal(text, NANO_PER_USD_DIGITS, Rest::Refuse)
            .and_then(|nano| i64::try_from(nano).ok())
            .map(Self)
    }

    /// Dollars as a person types them.
    #[must_use]
    pub fn parse_typed(text: &str) -> Option<Self> {
        Self::parse_usd(text).filter(|_| is_written_out(text))
    }

    /// # Errors
    /// [`OutOfRange`] on overflow.
    pub fn plus(self, other: Self) -> Result<Self, OutOfRange> {
        self.0.checked_add(other.0).map(Self).ok_or(OutOfRange)
    }

    /// # Errors
    /// [`OutOfRange`] on overflow.
    pub fn minus(self, other: Self) -> Result<Self, OutOfRange> {
        self.0.checked_sub(other.0).map(Self).ok_or(OutOfRange)
    }

    #[must_use]
    pub fn is_zero(self) -> bool {
        self.0 == 0
    }
}

impl fmt::Display for NanoUsd {
    /// Dollars as a decimal number without superfluous zeros: `0.00012`, `10`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&decimal(self.0.into(), NANO_PER_USD_DIGITS))
    }
}

/// An amount of 10^-`digits` as a decimal number without superfluous zeros.
fn decimal(amount: i128, digits: u32) -> String {
    let unit = 10_u128.pow(digits);
    let sign = if amount < 0 { "-" } else { "" };
    let whole = amount.unsigned_abs() / unit;
    let width = usize::try_from(digits).unwrap_or_default();
    let fraction = format!("{:0width$}", amount.unsigned_abs() % unit);
    match fraction.trim_end_matches('0') {
        "" => format!("{sign}{whole}"),
        digits => format!("{sign}{whole}.{digits}"),
    }
}

/// An amount as a JSON number of dollars: its decimal text, which no float has touched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Usd(pub NanoUsd);

impl Serialize for Usd {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let number =
            RawValue::from_string(self.0.to_string()).map_err(serde::ser::Error::custom)?;
        number.serialize(serializer)
    }
}

/// A sum in pico-USD, as [`Usd`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UsdOfPico(pub i128);

impl Serialize for UsdOfPico {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let number = RawValue::from_string(decimal(self.0, PICO_PER_USD_DIGITS))
            .map_err(serde::ser::Error::custom)?;
        number.serialize(serializer)
    }
}

impl PicoUsd {
    /// A price as decimal dollars per unit, rounded up to the next pico-USD. Negative prices mean
    /// "unknown" (OpenRouter's router models) and are `None`.
    #[must_use]
    pub fn parse_usd(text: &str) -> Option<Self> {
        let pico = parse_decimal(text, PICO_PER_USD_DIGITS, Rest::Up)?;
        i64::try_from(pico).ok().filter(|pico| *pico >= 0).map(Self)
    }

    /// A price as decimal dollars per million tokens.
    #[must_use]
    pub fn parse_usd_per_million(text: &str) -> Option<Self> {
        let pico = parse_decimal(text, PICO_PER_USD_DIGITS - MILLIONTHS_DIGITS, Rest::Up)?;
        i64::try_from(pico).ok().filter(|pico| *pico >= 0).map(Self)
    }

    /// The price of so many units, in pico-USD. Cannot overflow: both factors are 64 bits wide.
    #[must_use]
    pub fn times(self, units: i64) -> i128 {
        i128::from(self.0) * i128::from(units)
    }
}

impl Markup {
    pub const NONE: Self = Self(1_000_000);

    /// A factor such as `1.20`; negative ones are refused.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let millionths = parse_decimal(text, MILLIONTHS_DIGITS, Rest::Refuse)?;
        i64::try_from(millionths).ok().filter(|millionths| *millionths >= 0).map(Self)
    }

    /// A factor as a person types it.
    #[must_use]
    pub fn parse_typed(text: &str) -> Option<Self> {
        Self::parse(text).filter(|_| is_written_out(text))
    }

    /// An amount in pico-USD times this factor, as nano-USD.
    ///
    /// # Errors
    /// [`OutOfRange`] when the product does not fit.
    pub fn apply(self, pico: i128) -> Result<NanoUsd, OutOfRange> {
        let product = pico.checked_mul(i128::from(self.0)).ok_or(OutOfRange)?;
        let pico = product.div_euclid(1_000_000) + i128::from(product.rem_euclid(1_000_000) > 0);
        NanoUsd::from_pico_ceil(pico)
    }
}

/// An upstream's `cost`: decimal dollars in pico-USD, to the nearest. Upstreams that compute in
/// floats write 0.00022500000000000002 for 0.000225: rounding that up would charge the noise.
#[must_use]
pub fn parse_cost_pico(text: &str) -> Option<i128> {
    parse_decimal(text, PICO_PER_USD_DIGITS, Rest::Nearest)
}

/// A whole number as a vendor may write it: `12`, `12.0`, `1.2e1`.
#[must_use]
pub fn parse_whole(text: &str) -> Option<i64> {
    parse_decimal(text, 0, Rest::Refuse).and_then(|number| i64::try_from(number).ok())
}

/// Whether a number is as people write amounts: `12`, `12.50`, `-0.5`. Vendors' programs write
/// 5e-9; from a person an exponent, half a fraction or a signed zero is a typing error about money.
#[must_use]
pub fn is_written_out(text: &str) -> bool {
    let unsigned = text.strip_prefix('-').unwrap_or(text);
    let (whole, fraction) = unsigned.split_once('.').unwrap_or((unsigned, "0"));
    let are_digits = |part: &str| part.bytes().all(|byte| byte.is_ascii_digit());
    let is_number = |part: &str| !part.is_empty() && are_digits(part);
    let is_zero = |part: &str| part.bytes().all(|byte| byte == b'0');
    let is_signed = unsigned.len() < text.len();
    is_number(whole) && is_number(fraction) && !(is_signed && is_zero(whole) && is_zero(fraction))
}

/// What to do with digits beyond the wanted precision.
#[derive(Clone, Copy)]
enum Rest {
    Up,
    Nearest,
    Refuse,
}

/// Longest decimal text read: a JSON number of a real vendor is far shorter.
const DECIMAL_TEXT_BYTES_MAX: usize = 64;

/// `text` × 10^`digits` as an integer. Reads JSON numbers, exponents included.
fn parse_decimal(text: &str, digits: u32, rest: Rest) -> Option<i128> {
    if text.is_empty() || text.len() > DECIMAL_TEXT_BYTES_MAX {
        return None;
    }
    let (mantissa, exponent) = match text.split_once(['e', 'E']) {
        Some((mantissa, exponent)) => (mantissa, exponent.parse::<i32>().ok()?),
        None => (text, 0),
    };
    let (negative, mantissa) = match mantissa.strip_prefix('-') {
        Some(mantissa) => (true, mantissa),
        None => (false, mantissa),
    };
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let all_digits = |part: &str| part.bytes().all(|byte| byte.is_ascii_digit());
    if whole.is_empty() || !all_digits(whole) || !all_digits(fraction) {
        return None;
    }
    let number = format!("{whole}{fraction}").trim_start_matches('0').to_owned();
    if number.is_empty() {
        return Some(0);
    }
    let shift = i32::try_from(digits).ok()?.checked_add(exponent)?;
    let shift = shift.checked_sub(i32::try_from(fraction.len()).ok()?)?;
    let magnitude = scale(&number, shift, rest)?;
    Some(if negative { -magnitude } else { magnitude })
}

fn scale(number: &str, shift: i32, rest: Rest) -> Option<i128> {
    if shift >= 0 {
        let factor = 10_i128.checked_pow(u32::try_from(shift).ok()?)?;
        return number.parse::<i128>().ok()?.checked_mul(factor);
    }
    let dropped = usize::try_from(shift.unsigned_abs()).ok()?.min(number.len());
    let (kept, tail) = number.split_at(number.len() - dropped);
    let kept = if kept.is_empty() { 0 } else { kept.parse::<i128>().ok()? };
    // Digits that lie beyond all of the number's own: 0.0…0 before the first of them.
    let is_far = usize::try_from(shift.unsigned_abs()).ok()? > number.len();
    let is_half = !is_far && tail.as_bytes().first().is_some_and(|digit| *digit >= b'5');
    match (tail.bytes().all(|digit| digit == b'0'), rest) {
        (true, _) => Some(kept),
        (false, Rest::Up) => kept.checked_add(1),
        (false, Rest::Nearest) => kept.checked_add(i128::from(is_half)),
        (false, Rest::Refuse) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn prices_are_read_from_their_decimal_text() {
        assert_eq!(PicoUsd::parse_usd("0.000000075"), Some(PicoUsd(75_000)));
        assert_eq!(PicoUsd::parse_usd("7.5e-08"), Some(PicoUsd(75_000)));
        assert_eq!(PicoUsd::parse_usd_per_million("0.075"), Some(PicoUsd(75_000)));
        assert_eq!(PicoUsd::parse_usd("0"), Some(PicoUsd(0)));
        assert_eq!(PicoUsd::parse_usd("-1"), None, "a negative price is unknown");
        assert_eq!(PicoUsd::parse_usd("0.0000000000001"), Some(PicoUsd(1)), "rounded up");
        for odd in ["", ".", "1.", "x", "1e", "0x1", "1_0", "NaN", "1e99", " 1"] {
            let parsed = PicoUsd::parse_usd(odd);
            assert!(parsed.is_none() || odd == "1.", "{odd:?} was read as {parsed:?}");
        }
    }

    #[test]
    fn what_a_person_types_is_written_out() {
        for (text, nano) in
            [("0", 0), ("25", 25_000_000_000), ("0.50", 500_000_000), ("-1.5", -1_500_000_000)]
        {
            assert_eq!(NanoUsd::parse_typed(text), Some(NanoUsd(nano)), "{text}");
        }
        for odd in ["1e3", "1E3", "5e-9", "1.5e0", "5.", "-5.", ".5", "-", "-0", "-0.00", "", "x"] {
            assert_eq!(NanoUsd::parse_typed(odd), None, "{odd:?}");
            assert_eq!(Markup::parse_typed(odd), None, "{odd:?}");
            assert!(!is_written_out(odd), "{odd:?}");
        }
        assert_eq!(Markup::parse_typed("1.20"), Some(Markup(1_200_000)));
    }

    #[test]
    fn a_cost_computed_in_floats_is_not_rounded_up_for_its_noise() {
        assert_eq!(parse_cost_pico("0.00022500000000000002"), Some(225_000_000));
        assert_eq!(parse_cost_pico("0.00018499999999999997"), Some(185_000_000));
        assert_eq!(parse_cost_pico("5e-13"), Some(1));
        assert_eq!(parse_cost_pico("4.9e-13"), Some(0));
        assert_eq!(parse_cost_pico("9e-14"), Some(0));
        assert_eq!(parse_cost_pico("1.1e-5"), Some(11_000_000));
    }

    #[test]
    fn whole_numbers_are_read_without_a_float() {
        assert_eq!(parse_whole("12"), Some(12));
        assert_eq!(parse_whole("-12.0"), Some(-12));
        assert_eq!(parse_whole("1.2e3"), Some(1_200));
        assert_eq!(parse_whole("9007199254740993"), Some(9_007_199_254_740_993));
        for odd in ["12.5", "1e-1", "", "null", "\"1\"", "1e30"] {
            assert_eq!(parse_whole(odd), None, "{odd}");
        }
    }

    #[test]
    fn dollars_are_written_without_superfluous_zeros() {
        assert_eq!(NanoUsd(120_000).to_string(), "0.00012");
        assert_eq!(NanoUsd(10_000_000_000).to_string(), "10");
        assert_eq!(NanoUsd(-1).to_string(), "-0.000000001");
        assert_eq!(NanoUsd(i64::MIN).to_string(), "-9223372036.854775808");
    }

    #[test]
    fn dollars_in_json_are_their_exact_text() {
        let json = |nano| serde_json::to_string(&Usd(NanoUsd(nano))).unwrap();
        assert_eq!(json(300_000_000), "0.3");
        assert_eq!(json(9_007_199_254_740_993), "9007199.254740993");
        assert_eq!(json(-1), "-0.000000001");
        assert_eq!(json(0), "0");
        let json = |pico| serde_json::to_string(&UsdOfPico(pico)).unwrap();
        assert_eq!(json(1), "0.000000000001");
        assert_eq!(json(-20_000_000_000_000_000_000_000), "-20000000000");
    }

    #[test]
    fn a_charge_is_rounded_up_once() {
        assert_eq!(Markup(1_200_000).apply(1_000), Ok(NanoUsd(2)));
        assert_eq!(Markup(1_200_000).apply(0), Ok(NanoUsd(0)));
        assert_eq!(Markup::NONE.apply(2_000), Ok(NanoUsd(2)));
        assert_eq!(Markup::NONE.apply(i128::from(i64::MAX) * 1_001), Err(OutOfRange));
    }

    proptest! {
        #[test]
        fn dollars_come_back_from_their_text(nano in any::<i64>()) {
            prop_assert_eq!(NanoUsd::parse_usd(&NanoUsd(nano).to_string()), Some(NanoUsd(nano)));
        }

        #[test]
        fn more_tokens_never_cost_less(price in 0..1_000_000_000_i64, a in 0..10_000_000_i64,
                                       b in 0..10_000_000_i64, markup in 0..10_000_000_i64) {
            let charge = |tokens| Markup(markup).apply(PicoUsd(price).times(tokens)).unwrap();
            prop_assert!(charge(a.min(b)) <= charge(a.max(b)));
        }
    }
}
