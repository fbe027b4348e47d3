//! Pictures and files in a prompt, where there is a fee for each.
//!
//! Invariant: a part that any upstream may take for one counts as one, however its JSON is written,
//! so that no spelling makes it free. Nothing is fetched or decoded.

use super::prompt::{Members, Text, parse};
use crate::models::openai::pairs::Pairs;
use memchr::memmem;
use serde_json::value::RawValue;

/// The pictures in the JSON text of a request's `messages`.
#[must_use]
pub fn count_images(messages_json: &str) -> i64 {
    count(messages_json, &["image_url"], &["image_url", "input_image", "image"])
}

/// The files in the JSON text of a request's `messages`.
#[must_use]
pub fn count_files(messages_json: &str) -> i64 {
    count(messages_json, &["file", "file_data"], &["file", "input_file", "document"])
}

/// The parts that have one of these members, or are of one of these types.
fn count(messages_json: &str, names: &[&str], types: &[&str]) -> i64 {
    // Most prompts are text: they are not taken apart. An escape may spell any word.
    let has = |word: &str| memmem::find(messages_json.as_bytes(), word.as_bytes()).is_some();
    if !names.iter().chain(types).chain([&"\\u"]).any(|word| has(word)) {
        return 0;
    }
    let messages: Vec<&RawValue> = serde_json::from_str(messages_json).unwrap_or_default();
    let contents = messages.into_iter().filter_map(parse::<Members<'_>>).flat_map(contents);
    let parts = contents.filter_map(parse::<Vec<&RawValue>>).flatten();
    let such = parts.filter_map(parse::<Members<'_>>).filter(|part| is_one(part, names, types));
    i64::try_from(such.count()).unwrap_or(i64::MAX)
}

/// A key given twice counts twice: the upstream may read either.
fn contents(Pairs(members): Members<'_>) -> impl Iterator<Item = &RawValue> {
    members.into_iter().filter(|(key, _)| key == "content").map(|(_, content)| content)
}

fn is_one(Pairs(members): &Members<'_>, names: &[&str], types: &[&str]) -> bool {
    members.iter().any(|(key, value)| match &**key {
        "type" => parse::<Text<'_>>(value).is_some_and(|Text(kind)| types.contains(&kind.as_ref())),
        key => names.contains(&key),
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
        let file = json!({"type": "file", "file": {"filename": "a.pdf", "file_data": "data:,"}});
        let asked = json!([{"role": "user", "content": [file, image, {"type": "input_file"}]}]);
        assert_eq!(count_files(&asked.to_string()), 2, "{asked}");
        for json in ["", "[]", "null", "7", "[[]]", r#"[{"content":{}}]"#] {
            assert_eq!(count_images(json), 0, "{json}");
        }
    }
}
