//! Changes single members in JSON text and leaves every other byte as it came.
//!
//! Works on spans that a parser found: callers pass text that is known to be valid JSON.

use serde_json::value::RawValue;
use std::ops::Range;

/// Replacements in one text, made in one copy.
#[derive(Debug, Default)]
pub struct Edits {
    edits: Vec<(Range<usize>, String)>,
}

impl Edits {
    /// Replaces `part`, a value found within `whole`.
    pub fn replace(&mut self, whole: &str, part: &RawValue, with: String) {
        if let Some(range) = span_of(whole, part.get()) {
            self.edits.push((range, with));
        }
    }

    /// Gives the member of an object another name, whose value is `part`. Its own name has no quote
    /// in it.
    pub fn rename(&mut self, whole: &str, part: &RawValue, name: &str) {
        let Some(value) = span_of(whole, part.get()) else { return };
        let before = whole[..value.start].trim_end_matches([' ', '\t', '\n', '\r', ':']);
        let Some(open) = before.strip_suffix('"').and_then(|it| it.rfind('"')) else { return };
        self.edits.push((open..before.len(), format!("\"{name}\"")));
    }

    /// Adds `members` (`"a":1,"b":2`) at the front of `object`, an object within `whole`.
    pub fn add_members(&mut self, whole: &str, object: &str, members: &str) {
        let Some(range) = span_of(whole, object) else {
            return;
        };
        let Some(open) = object.find('{') else { return };
        let is_empty = object[open + 1..].trim_start().starts_with('}');
        let at = range.start + open + 1;
        let comma = if is_empty { "" } else { "," };
        self.edits.push((at..at, format!("{members}{comma}")));
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.edits.is_empty()
    }

    /// The text with all replacements made. Spans must not overlap.
    #[must_use]
    pub fn apply(mut self, whole: &str) -> String {
        // What is added before a member that is renamed comes first.
        self.edits.sort_by_key(|(range, _)| (range.start, range.end));
        let added: usize = self.edits.iter().map(|(_, with)| with.len()).sum();
        let mut text = String::with_capacity(whole.len() + added);
        let mut from = 0;
        for (range, with) in &self.edits {
            text.push_str(&whole[from..range.start]);
            text.push_str(with);
            from = range.end;
        }
        text.push_str(&whole[from..]);
        text
    }
}

/// Where `part`, a slice of `whole`, lies in it.
fn span_of(whole: &str, part: &str) -> Option<Range<usize>> {
    let start = (part.as_ptr() as usize).checked_sub(whole.as_ptr() as usize)?;
    let end = start.checked_add(part.len())?;
    (whole.get(start..end)? == part).then_some(start..end)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    #[test]
    fn members_are_replaced_and_added_in_place() {
        let whole = r#" { "a" : {"x": 1} , "b":null, "c":{ } }"#;
        let members: BTreeMap<&str, &RawValue> = serde_json::from_str(whole).unwrap();
        let mut edits = Edits::default();
        edits.replace(whole, members["b"], "2".to_owned());
        edits.add_members(whole, members["a"].get(), r#""y":3"#);
        edits.add_members(whole, members["c"].get(), r#""z":4"#);
        edits.add_members(whole, whole, r#""d":5"#);
        let text = edits.apply(whole);
        assert_eq!(text, r#" {"d":5, "a" : {"y":3,"x": 1} , "b":2, "c":{"z":4 } }"#);
    }

    #[test]
    fn a_member_gets_another_name() {
        let whole = "{\"a\" : {\"b\":1},\n \"\\u0062\"\t:\r\n 2}";
        let members: BTreeMap<String, &RawValue> = serde_json::from_str(whole).unwrap();
        let mut edits = Edits::default();
        edits.rename(whole, members["b"], "c");
        edits.replace(whole, members["b"], "3".to_owned());
        assert_eq!(edits.apply(whole), "{\"a\" : {\"b\":1},\n \"c\"\t:\r\n 3}");

        let whole = "{\"a\":1}";
        let members: BTreeMap<String, &RawValue> = serde_json::from_str(whole).unwrap();
        let mut edits = Edits::default();
        edits.rename(whole, members["a"], "b");
        edits.add_members(whole, whole, "\"c\":2");
        assert_eq!(edits.apply(whole), "{\"c\":2,\"b\":1}");
    }

    #[test]
    fn a_value_from_elsewhere_is_left_alone() {
        let elsewhere = RawValue::from_string("1".to_owned()).unwrap();
        let mut edits = Edits::default();
        edits.replace(r#"{"a":1}"#, &elsewhere, "2".to_owned());
        assert!(edits.is_empty());
    }
}
