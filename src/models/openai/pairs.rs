//! The members of a JSON object as they stand in its text, doubles included; a text without them.

use super::lenient::Text;
use serde::de::{Error as _, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;
use std::borrow::Cow;
use std::fmt;
use std::marker::PhantomData;

/// Names and values, in their order. An object with more than `MAX` of them is none.
#[derive(Debug, Default)]
pub struct Pairs<'a, const MAX: usize = MEMBERS_MAX>(pub Vec<(Cow<'a, str>, &'a RawValue)>);

/// Members of one object; no real request, answer or usage comes near.
const MEMBERS_MAX: usize = 256;

impl<'de: 'a, 'a, const MAX: usize> Deserialize<'de> for Pairs<'a, MAX> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct PairsVisitor<'a, const MAX: usize>(PhantomData<&'a ()>);

        impl<'de: 'a, 'a, const MAX: usize> Visitor<'de> for PairsVisitor<'a, MAX> {
            type Value = Pairs<'a, MAX>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Pairs<'a, MAX>, A::Error> {
                let mut pairs = Vec::new();
                while let Some(name) = map.next_key::<Text<'a>>()? {
                    if pairs.len() == MAX {
                        return Err(A::Error::custom("too many members"));
                    }
                    pairs.push((name.0.unwrap_or_default(), map.next_value()?));
                }
                Ok(Pairs(pairs))
            }
        }

        deserializer.deserialize_map(PairsVisitor(PhantomData))
    }
}

/// A name without its case. Two letters beyond ASCII have one of ASCII's as their other case: the
/// sign for Kelvin and the long s. Go's JSON takes `max_to\u{212a}ens` for `max_tokens`.
/// <https://pkg.go.dev/encoding/json#Unmarshal>
#[must_use]
pub fn folded(name: &str) -> String {
    let fold = |character| match character {
        '\u{212a}' => 'k',
        '\u{17f}' => 's',
        other => other.to_ascii_lowercase(),
    };
    name.chars().map(fold).collect()
}

/// A JSON text in which each object has the last of its members of one name only, so many levels
/// deep. What cannot be read member by member stays as it is.
#[must_use]
pub fn last_of_each(text: &str, levels: u32) -> String {
    let is_list = text.trim_start().starts_with('[');
    let below = levels.checked_sub(1);
    let all = below.and_then(|below| if is_list { list(text, below) } else { object(text, below) });
    all.unwrap_or_else(|| text.to_owned())
}

fn list(text: &str, levels: u32) -> Option<String> {
    let items: Vec<&RawValue> = serde_json::from_str(text).ok()?;
    let items: Vec<_> = items.iter().map(|item| last_of_each(item.get(), levels)).collect();
    Some(format!("[{}]", items.join(",")))
}

fn object(text: &str, levels: u32) -> Option<String> {
    let Pairs(pairs): Pairs<'_> = serde_json::from_str(text).ok()?;
    let mut members = Vec::new();
    for (place, (name, value)) in pairs.iter().enumerate() {
        if pairs[place + 1..].iter().any(|(other, _)| other == name) {
            continue;
        }
        let name = serde_json::to_string(name).ok()?;
        members.push(format!("{name}:{}", last_of_each(value.get(), levels)));
    }
    Some(format!("{{{}}}", members.join(",")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_of_each_name_stays() {
        for (text, last) in [
            (r#"{"a":1,"b":2,"\u0061":3}"#, r#"{"b":2,"a":3}"#),
            (r#" {"a":[{"b":1,"b":"x"} , 1.50]}"#, r#"{"a":[{"b":"x"},1.50]}"#),
            (r#"{"a":{"a":{"b":1,"b":2}}}"#, r#"{"a":{"a":{"b":2}}}"#),
            (r#"{"a":{"a":{"a":{"b":1,"b":2}}}}"#, r#"{"a":{"a":{"a":{"b":1,"b":2}}}}"#),
            ("[]", "[]"),
            ("{", "{"),
            ("null", "null"),
        ] {
            assert_eq!(last_of_each(text, 3), last, "{text}");
        }
    }
}
