//! A stream's chunks are alike but for their text: a chunk that differs from an earlier one in
//! nothing but the inside of its content needs no parsing.
//!
//! Invariant: what a template reads is what parsing reads. It holds the bytes before and after the
//! inside of the one `"content"` string of a parsed event; an event with the same bytes around, and
//! between them nothing that could end the string or be an escape, is the same JSON with another
//! content. Everything else is left to the parser.

use memchr::memmem;

/// An event as bytes, without the inside of its content.
pub struct Template {
    before: Vec<u8>,
    after: Vec<u8>,
    pub choice: u32,
}

/// Longer ones are no stream's common chunk.
const BYTES_MAX: usize = 4_096;
const MEMBER: &[u8] = b"\"content\"";

impl Template {
    /// Learns from an event whose only news is `content`, the text of its one delta.
    #[must_use]
    pub fn learn(event: &[u8], content: &str, choice: u32) -> Option<Self> {
        if event.len() > BYTES_MAX {
            return None;
        }
        let mut found = memmem::find_iter(event, MEMBER);
        let (at, None) = (found.next()?, found.next()) else { return None };
        let value = &event[at + MEMBER.len()..];
        let blanks = value.iter().take_while(|byte| matches!(byte, b' ' | b':')).count();
        let start = at + MEMBER.len() + blanks + 1;
        // Told apart only where the text stands in the event as it is.
        let (before, rest) = event.split_at_checked(start)?;
        let after = rest.strip_prefix(content.as_bytes())?;
        let is_whole = before.ends_with(b"\"") && after.starts_with(b"\"") && is_plain(content);
        is_whole.then(|| Self { before: before.to_vec(), after: after.to_vec(), choice })
    }

    /// The content of an event that fits.
    #[must_use]
    pub fn read<'a>(&self, event: &'a [u8]) -> Option<&'a str> {
        let inside = event.strip_prefix(&self.before[..])?.strip_suffix(&self.after[..])?;
        std::str::from_utf8(inside).ok().filter(|text| is_plain(text))
    }
}

/// Nothing in it that ends a JSON string, begins an escape, or may not stand in one.
fn is_plain(text: &str) -> bool {
    text.bytes().all(|byte| byte >= b' ' && byte != b'"' && byte != b'\\')
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::models::openai::answer;
    use proptest::prelude::*;

    /// What parsing says of an event: all that a reading takes from it.
    fn parsed(event: &[u8]) -> Option<(Option<String>, Option<String>)> {
        let data = crate::services::sse::data(event)?;
        answer::read(std::str::from_utf8(&data).ok()?, |chunk| {
            let is_plain = !chunk.usage.given && chunk.failure().is_none();
            let choice = chunk.choices.0.first().filter(|_| is_plain && chunk.choices.0.len() == 1);
            let content = choice.and_then(|choice| choice.value.only_content().map(str::to_owned));
            (chunk.id.0.as_ref().map(ToString::to_string), content)
        })
    }

    proptest! {
        #[test]
        fn what_a_template_reads_is_what_parsing_reads(
            first in "[ -!#-Z^-~é]{0,12}",
            pieces in prop::collection::vec("\\PC{0,12}|[\"\\\\{}:,a\n]{0,6}", 1..20),
            at in any::<prop::sample::Index>(),
            byte in any::<u8>(),
            escaped in any::<bool>(),
        ) {
            let event = |text: &str| EVENT.replace("\"the\"", text).into_bytes();
            let Some(template) = Template::learn(&event(&format!("\"{first}\"")), &first, 0) else {
                return Ok(());
            };
            for piece in pieces {
                let text = serde_json::to_string(&piece).unwrap();
                let mut event = event(&if escaped { text } else { format!("\"{piece}\"") });
                let whole = event.clone();
                let at = at.index(event.len());
                event[at] = byte;
                for event in [whole, event] {
                    if let Some(read) = template.read(&event) {
                        let expected = (Some("g".to_owned()), Some(read.to_owned()));
                        prop_assert_eq!(parsed(&event), Some(expected));
                    }
                }
            }
        }
    }

    const EVENT: &str = "data: {\"id\":\"g\",\"choices\":[{\"index\":0,\"delta\":{\"content\": \
                         \"the\"},\"finish_reason\":null}]}\n\n";

    fn learnt() -> Template {
        Template::learn(EVENT.as_bytes(), "the", 0).unwrap()
    }

    #[test]
    fn another_text_in_the_same_place_is_read() {
        let read = |text: &str| {
            let event = EVENT.replace("the", text);
            learnt().read(event.as_bytes()).map(str::to_owned)
        };
        for text in ["toll", "", " é 🛂", "a}b]", "the the"] {
            assert_eq!(read(text).as_deref(), Some(text));
        }
        for odd in ["a\\nb", "\\", "\"", "x\",\"usage\":{\"a\":\"", "\u{1}", "a\nb"] {
            assert_eq!(read(odd), None, "{odd:?} is the parser's");
        }
    }

    #[test]
    fn other_events_are_not_read() {
        let template = learnt();
        for other in [
            EVENT.replace("\"g\"", "\"h\""),
            EVENT.replace("null", "\"stop\""),
            EVENT.replace("}]}", "}],\"usage\":{}}"),
            EVENT.replace("\n\n", "\r\n\r\n"),
            EVENT[..EVENT.len() - 5].to_owned(),
            "data: [DONE]\n\n".to_owned(),
            String::new(),
        ] {
            assert_eq!(template.read(other.as_bytes()), None, "{other:?}");
        }
        let cut = [&EVENT.as_bytes()[..EVENT.len() - 20], b"\xff", b"\"},\"x\n\n"].concat();
        assert_eq!(template.read(&cut), None);
    }

    #[test]
    fn what_is_not_clear_is_not_learnt() {
        let learn = |event: &str, content: &str| Template::learn(event.as_bytes(), content, 0);
        assert!(learn(&EVENT.replace("\"g\"", "\"content\""), "the").is_none(), "two of them");
        assert!(learn(&EVENT.replace("the", "a\\nb"), "a\nb").is_none(), "escaped");
        assert!(learn(&EVENT.replace("the", "\\u0074he"), "the").is_none(), "escaped");
        assert!(learn("data: {}\n\n", "").is_none());
        assert!(learn("data: {\"content\"", "").is_none());
        assert!(learn("data: {\"content\":[\"the\"]}\n\n", "the").is_none());
        assert!(
            learn(&EVENT.replace("\"g\"", &format!("\"{}\"", "g".repeat(5_000))), "the").is_none()
        );
    }
}
