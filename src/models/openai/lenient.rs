//! Scalars and containers that read what they can and take anything else as missing.
//!
//! An upstream that sends `"created": 1.5`, `choices: null` or a number for an id still has its
//! text counted; a strict type would lose the whole chunk over one odd member.

use serde::Deserialize;
use serde::de::value::MapAccessDeserializer;
use serde::de::{Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;
use std::borrow::Cow;
use std::fmt;
use std::marker::PhantomData;

/// A string, else nothing.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Text<'a>(pub Option<Cow<'a, str>>);

/// A string, or whatever else there is as its JSON text; null is nothing.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Written<'a>(pub Option<Cow<'a, str>>);

/// A string, or the texts of a list of parts one after the other, else nothing.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Content<'a> {
    pub text: Option<Cow<'a, str>>,
    /// One of the parts was no text.
    pub has_more: bool,
}

/// An integer, else nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Int(pub Option<i64>);

/// A boolean, else false.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Flag(pub bool);

/// An array, else empty.
#[derive(Debug, PartialEq, Eq)]
pub struct List<T>(pub Vec<T>);

/// An object, else its default; `given` tells which.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Object<T> {
    pub value: T,
    pub given: bool,
}

// === the visits of everything that is not wanted ===

macro_rules! take_as_missing {
    ($($visit:ident($type:ty)),* $(,)?) => {
        $(fn $visit<E>(self, _: $type) -> Result<Self::Value, E> {
            Ok(Self::Value::default())
        })*
    };
    (unit) => {
        fn visit_unit<E>(self) -> Result<Self::Value, E> {
            Ok(Self::Value::default())
        }
    };
    (seq) => {
        fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
            while seq.next_element::<IgnoredAny>()?.is_some() {}
            Ok(Self::Value::default())
        }
    };
    (map) => {
        fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
            while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
            Ok(Self::Value::default())
        }
    };
}

// === Text ===

impl<'de: 'a, 'a> Deserialize<'de> for Text<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct TextVisitor<'a>(PhantomData<&'a ()>);

        impl<'de: 'a, 'a> Visitor<'de> for TextVisitor<'a> {
            type Value = Text<'a>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("anything")
            }

            fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Text<'a>, E> {
                Ok(Text(Some(Cow::Borrowed(text))))
            }

            fn visit_str<E>(self, text: &str) -> Result<Text<'a>, E> {
                Ok(Text(Some(Cow::Owned(text.to_owned()))))
            }

            take_as_missing!(visit_bool(bool), visit_i64(i64), visit_u64(u64), visit_f64(Float));
            take_as_missing!(unit);
            take_as_missing!(seq);
            take_as_missing!(map);
        }

        deserializer.deserialize_any(TextVisitor(PhantomData))
    }
}

// === Written ===

impl<'de: 'a, 'a> Deserialize<'de> for Written<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let raw = <&'de RawValue>::deserialize(deserializer)?.get();
        if raw.starts_with('"') {
            let Text(text) = serde_json::from_str(raw).map_err(D::Error::custom)?;
            return Ok(Self(text));
        }
        Ok(Self((raw != "null").then_some(Cow::Borrowed(raw))))
    }
}

// === Content ===

/// A part of a content: a text, or a thought, which may have parts of its own.
/// <https://docs.mistral.ai/capabilities/reasoning/>
#[derive(Default, Deserialize)]
#[serde(default)]
struct Part<'a> {
    #[serde(borrow)]
    text: Text<'a>,
    #[serde(borrow)]
    thinking: Content<'a>,
}

impl<'de: 'a, 'a> Deserialize<'de> for Content<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct ContentVisitor<'a>(PhantomData<&'a ()>);

        impl<'de: 'a, 'a> Visitor<'de> for ContentVisitor<'a> {
            type Value = Content<'a>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("anything")
            }

            fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Content<'a>, E> {
                Ok(Content { text: Some(Cow::Borrowed(text)), has_more: false })
            }

            fn visit_str<E>(self, text: &str) -> Result<Content<'a>, E> {
                Ok(Content { text: Some(Cow::Owned(text.to_owned())), has_more: false })
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Content<'a>, A::Error> {
                let (mut said, mut has_more) = (None::<String>, false);
                while let Some(part) = seq.next_element::<Object<Part<'de>>>()? {
                    let Part { text, thinking } = part.value;
                    has_more |= thinking.has_more || text.0.is_none() && thinking.text.is_none();
                    for text in [text.0, thinking.text].into_iter().flatten() {
                        said.get_or_insert_default().push_str(&text);
                    }
                }
                Ok(Content { text: said.map(Cow::Owned), has_more })
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Content<'a>, A::Error> {
                while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
                Ok(Content { text: None, has_more: true })
            }

            take_as_missing!(visit_bool(bool), visit_i64(i64), visit_u64(u64), visit_f64(Float));
            take_as_missing!(unit);
        }

        deserializer.deserialize_any(ContentVisitor(PhantomData))
    }
}

// === Int ===

impl<'de> Deserialize<'de> for Int {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct IntVisitor;

        impl<'de> Visitor<'de> for IntVisitor {
            type Value = Int;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("anything")
            }

            fn visit_i64<E>(self, number: i64) -> Result<Int, E> {
                Ok(Int(Some(number)))
            }

            fn visit_u64<E>(self, number: u64) -> Result<Int, E> {
                Ok(Int(i64::try_from(number).ok()))
            }

            take_as_missing!(visit_bool(bool), visit_f64(Float), visit_str(&str));
            take_as_missing!(unit);
            take_as_missing!(seq);
            take_as_missing!(map);
        }

        deserializer.deserialize_any(IntVisitor)
    }
}

// === Flag ===

impl<'de> Deserialize<'de> for Flag {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct FlagVisitor;

        impl<'de> Visitor<'de> for FlagVisitor {
            type Value = Flag;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("anything")
            }

            fn visit_bool<E>(self, value: bool) -> Result<Flag, E> {
                Ok(Flag(value))
            }

            take_as_missing!(visit_i64(i64), visit_u64(u64), visit_f64(Float), visit_str(&str));
            take_as_missing!(unit);
            take_as_missing!(seq);
            take_as_missing!(map);
        }

        deserializer.deserialize_any(FlagVisitor)
    }
}

// === List ===

/// A container stops growing here; real answers have far fewer choices and tool calls per chunk.
const LIST_ITEMS_MAX: usize = 1_024;

impl<T> Default for List<T> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for List<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct ListVisitor<T>(PhantomData<T>);

        impl<'de, T: Deserialize<'de>> Visitor<'de> for ListVisitor<T> {
            type Value = List<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("anything")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<List<T>, A::Error> {
                let mut items = Vec::new();
                while items.len() < LIST_ITEMS_MAX {
                    match seq.next_element()? {
                        Some(item) => items.push(item),
                        None => return Ok(List(items)),
                    }
                }
                while seq.next_element::<IgnoredAny>()?.is_some() {}
                Ok(List(items))
            }

            take_as_missing!(
                visit_bool(bool),
                visit_i64(i64),
                visit_u64(u64),
                visit_f64(Float),
                visit_str(&str)
            );
            take_as_missing!(unit);
            take_as_missing!(map);
        }

        deserializer.deserialize_any(ListVisitor(PhantomData))
    }
}

// === Object ===

impl<'de, T: Deserialize<'de> + Default> Deserialize<'de> for Object<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct ObjectVisitor<T>(PhantomData<T>);

        impl<'de, T: Deserialize<'de> + Default> Visitor<'de> for ObjectVisitor<T> {
            type Value = Object<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("anything")
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Object<T>, A::Error> {
                let value = T::deserialize(MapAccessDeserializer::new(map))?;
                Ok(Object { value, given: true })
            }

            take_as_missing!(
                visit_bool(bool),
                visit_i64(i64),
                visit_u64(u64),
                visit_f64(Float),
                visit_str(&str)
            );
            take_as_missing!(unit);
            take_as_missing!(seq);
        }

        deserializer.deserialize_any(ObjectVisitor(PhantomData))
    }
}

/// Named once, because serde hands such numbers over and nothing here may compute with them.
type Float = f64;

#[cfg(test)]
mod tests {
    use super::*;

    fn read<'a, T: Deserialize<'a>>(text: &'a str) -> T {
        serde_json::from_str(text).unwrap()
    }

    #[test]
    fn odd_types_are_missing_and_do_not_fail() {
        for odd in ["null", "true", "1.5", "-3", "[1,[2]]", r#"{"a":{}}"#] {
            assert_eq!(read::<Text<'_>>(odd), Text(None), "{odd}");
        }
        for odd in ["null", "true", "1.5", r#""7""#, "18446744073709551615", "[]", "{}"] {
            assert_eq!(read::<Int>(odd), Int(None), "{odd}");
        }
        for odd in ["null", "1", r#""x""#, r#"{"a":1}"#] {
            assert_eq!(read::<List<Int>>(odd), List(vec![]), "{odd}");
        }
        assert_eq!(read::<List<Int>>("[1,null,2]").0, [Int(Some(1)), Int(None), Int(Some(2))]);
    }

    #[test]
    fn text_is_borrowed_where_nothing_is_escaped() {
        assert!(matches!(read::<Text<'_>>(r#""plain""#).0, Some(Cow::Borrowed("plain"))));
        assert_eq!(read::<Text<'_>>(r#""a\nb""#).0.unwrap(), "a\nb");
    }

    #[test]
    fn what_is_no_string_is_read_as_it_is_written() {
        assert_eq!(read::<Written<'_>>(r#""a\"b""#).0.unwrap(), "a\"b");
        assert_eq!(read::<Written<'_>>(r#"{"a": [1]}"#).0.unwrap(), r#"{"a": [1]}"#);
        assert_eq!(read::<Written<'_>>("null"), Written(None));
    }

    #[test]
    fn a_content_says_whether_it_has_more_than_text() {
        for (text, said, has_more) in [
            (r#""x""#, Some("x"), false),
            (r#"[{"type":"text","text":"x"},{"text":"y"}]"#, Some("xy"), false),
            (r#"[{"text":"x"},{"type":"image_url","image_url":{}}]"#, Some("x"), true),
            (r#"[{"thinking":[{"text":"x"},{"reference_ids":[1]}]}]"#, Some("x"), true),
            (r#"[{"type":"text","text":""}]"#, Some(""), false),
            (r#"[{"thinking":[{"text":""}]}]"#, Some(""), false),
            (r#"{"type":"image"}"#, None, true),
            ("null", None, false),
        ] {
            let content = read::<Content<'_>>(text);
            assert_eq!((content.text.as_deref(), content.has_more), (said, has_more), "{text}");
        }
    }
}
