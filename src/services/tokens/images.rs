//! Pictures in a prompt, for prices that have a fee for each.
//!
//! Invariant: a part that any upstream may take for a picture counts as one, however its JSON is
//! written, so that no spelling makes a picture free. Nothing is fetched or decoded.

use super::prompt::{Members, Text, parse};
use crate::models::openai::pairs::Pairs;
use serde_json::value::RawValue;

/// The pictures in the JSON text of a request's `messages`.
#[must_use]
pub fn count_images(messages_json: &str) -> i64 {
    let messages: Vec<&RawValue> = serde_json::from_str(messages_json).unwrap_or_default();
    let contents = messages.into_iter().filter_map(parse::<Members<'_>>).flat_map(contents);
    let parts = contents.filter_map(parse::<Vec<&RawValue>>).flatten();
    let pictures = parts.filter_map(parse::<Members<'_>>).filter(is_picture);
    i64::try_from(pictures.count()).unwrap_or(i64::MAX)
}

/// A key given twice counts twice: the upstream may read either.
fn contents(Pairs(members): Members<'_>) -> impl Iterator<Item = &RawValue> {
    members.into_iter().filter(|(key, _)| key == "content").map(|(_, content)| content)
}

/// By its type, or by what it has.
fn is_picture(Pairs(members): &Members<'_>) -> bool {
    members.iter().any(|(key, value)| match &**key {
        "image_url" => true,
        "type" => parse::<Text<'_>>(value)
            .is_some_and(|Text(kind)| matches!(&*kind, "image_url" | "input_image" | "image")),
        _ => false,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn pictures_are_counted_however_they_are_written() {
        let image = json!({"type": "image_url", "image_url": {"url": "https://a.b/c.png"}});
        let text = json!({"type": "text", "text": "{\"type\":\"image_url\"}"});
        let messages = json!([
            {"role": "user", "content": [image, text, image]},
            {"role": "assistant", "content": "\"type\":\"image_url\""},
            {"role": "user", "content": [{"type": "input_image", "image_url": "data:,"}]},
            {"role": "tool", "content": [{"type": "input_audio", "input_audio": {"data": ""}}]},
        ]);
        for json in [messages.to_string(), serde_json::to_string_pretty(&messages).unwrap()] {
            assert_eq!(count_images(&json), 3, "{json}");
        }
        for (part, expected) in [
            (r#"{"type":"image\u005furl","image_url":{"url":"x"}}"#, 1),
            (r#"{"\u0074ype":"image_url"}"#, 1),
            (r#"{"type":"text","type":"image_url"}"#, 1),
            (r#"{"image_url":{"url":"x"}}"#, 1),
            (r#"{"type":"text","text":"image_url"}"#, 0),
            ("null", 0),
        ] {
            assert_eq!(count_images(&format!(r#"[{{"content":[{part}]}}]"#)), expected, "{part}");
        }
        for json in ["", "[]", "null", "7", "[[]]", r#"[{"content":{}}]"#] {
            assert_eq!(count_images(json), 0, "{json}");
        }
    }
}
