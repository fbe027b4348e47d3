//! The members of a JSON object as they stand in its text, doubles included.

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
