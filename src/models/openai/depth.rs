//! How deep JSON is nested, without reading it into anything.
//!
//! Members that Tollgate does not know are only skipped, and a skipping parser goes down without
//! end; the upstream's may not.

use memchr::{memchr2, memchr2_iter};

/// As deep as serde_json goes itself. Schemas of tools, the deepest of real requests, are far
/// shallower.
pub const DEPTH_MAX: usize = 128;

/// Whether brackets are nested deeper than [`DEPTH_MAX`]. For valid JSON; else anything.
#[must_use]
pub fn is_too_deep(json: &[u8]) -> bool {
    // So few brackets cannot go so deep, wherever they stand.
    if memchr2_iter(b'[', b'{', json).take(DEPTH_MAX + 1).count() <= DEPTH_MAX {
        return false;
    }
    let mut depth = 0_usize;
    let mut rest = json;
    while let [first, after @ ..] = rest {
        rest = after;
        match first {
            b'"' => rest = behind_string(after),
            b'[' | b'{' => depth += 1,
            b']' | b'}' => depth = depth.saturating_sub(1),
            _ => {}
        }
        if depth > DEPTH_MAX {
            return true;
        }
    }
    false
}

/// What follows the end of a string whose inside begins here.
fn behind_string(mut inside: &[u8]) -> &[u8] {
    while let Some(at) = memchr2(b'"', b'\\', inside) {
        let length = if inside[at] == b'"' { 1 } else { 2 };
        let rest = inside.get(at + length..).unwrap_or_default();
        if length == 1 {
            return rest;
        }
        inside = rest;
    }
    &[]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nested(depth: usize) -> String {
        format!("{}{}", "[".repeat(depth), "]".repeat(depth))
    }

    #[test]
    fn brackets_count_where_they_nest() {
        assert!(!is_too_deep(nested(DEPTH_MAX).as_bytes()));
        assert!(is_too_deep(nested(DEPTH_MAX + 1).as_bytes()));
        assert!(!is_too_deep(format!("[{}]", vec!["{}"; 1_000].join(",")).as_bytes()));
        let text = format!(r#"["{}\"{}","\\",{{}}]"#, "[".repeat(500), "{".repeat(500));
        assert!(!is_too_deep(text.as_bytes()), "within strings");
        assert!(is_too_deep(format!(r#"["\\",{}]"#, nested(DEPTH_MAX)).as_bytes()));
        assert!(!is_too_deep(br#"["unfinished \"#));
    }
}
