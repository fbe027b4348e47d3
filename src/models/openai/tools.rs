//! Tools and plugins that an upstream runs by itself, at prices of their own.
//!
//! Invariants: what calls another model, or costs what no book has, is refused; what searches is
//! held for. A list that is none, or has what is no object, is the upstream's to refuse.

use super::pairs::{Pairs, folded};
use serde_json::value::RawValue;

/// How the names of OpenRouter's tools begin.
const OPENROUTERS: &str = "openrouter:";
/// Those that cost tokens and searches, and no more.
/// <https://openrouter.ai/docs/guides/features/server-tools/overview>
const PRICED: &[&str] = &["openrouter:web_search", "openrouter:web_fetch", "openrouter:datetime"];
/// How every name of a search begins, dates follow: what it brings is charged on top of tokens.
/// <https://openrouter.ai/docs/api-reference/chat-completion>
const SEARCHES: &[&str] = &["openrouter:web_search", "openrouter:web_fetch", "web_search"];
/// Asks up to eight other models. <https://openrouter.ai/docs/guides/features/plugins/overview>
const FUSION: &str = "fusion";

/// Of what is not supported, shown to its sender.
const NAME_CHARS_SHOWN: usize = 64;

/// Whether tools bring fees on top of tokens.
///
/// # Errors
/// The name of one that is not supported.
pub fn bring_fees(tools: &RawValue) -> Result<bool, String> {
    let names = named(tools, "type")?;
    let is_unpriced =
        |name: &&String| name.starts_with(OPENROUTERS) && !PRICED.contains(&name.as_str());
    match names.iter().find(is_unpriced) {
        Some(name) => Err(name.chars().take(NAME_CHARS_SHOWN).collect()),
        None => Ok(names.iter().any(|name| SEARCHES.iter().any(|it| name.starts_with(it)))),
    }
}

/// # Errors
/// The name of a plugin that is not supported.
pub fn check_plugins(plugins: &RawValue) -> Result<(), String> {
    match named(plugins, "id")?.into_iter().find(|name| name == FUSION) {
        Some(name) => Err(name),
        None => Ok(()),
    }
}

/// What the objects of a list say under a name, each time that they say it, without case.
fn named(list: &RawValue, member: &str) -> Result<Vec<String>, String> {
    let Ok(items) = serde_json::from_str::<Vec<&RawValue>>(list.get()) else { return Ok(vec![]) };
    let mut names = Vec::new();
    for item in items.into_iter().filter(|item| item.get().starts_with('{')) {
        // It has too many members for anybody to be sure of them.
        let Pairs(pairs): Pairs<'_> =
            serde_json::from_str(item.get()).map_err(|_| "…".to_owned())?;
        for (_, value) in pairs.into_iter().filter(|(name, _)| folded(name) == member) {
            names.extend(serde_json::from_str::<String>(value.get()).map(|name| folded(&name)));
        }
    }
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn raw(text: &str) -> Box<RawValue> {
        serde_json::from_str(text).unwrap()
    }

    #[test]
    fn what_asks_other_models_is_refused() {
        let of = |tools: &str| bring_fees(&raw(tools));
        for tools in [
            r#"[{"type":"openrouter:fusion"}]"#,
            r#"[{"type":"function"},{"type":"openrouter:advisor","parameters":{"model":"x"}}]"#,
            r#"[{"type":"function","type":"openrouter:subagent"}]"#,
            r#"[{"type":"openrouter:subagent","type":"function"}]"#,
            r#"[{"\u0074ype":"\u006fpenrouter:image_generation"}]"#,
            r#"[{"Type":"OpenRouter:bash"}]"#,
        ] {
            let refused = of(tools).unwrap_err();
            assert!(refused.starts_with("openrouter:"), "{tools}: {refused}");
        }
        let many: Vec<String> = (0..300).map(|number| format!(r#""m{number}":1"#)).collect();
        let many = format!(r#"[{{{},"type":"openrouter:fusion"}}]"#, many.join(","));
        assert!(of(&many).is_err(), "not read to its end");
        assert!(check_plugins(&raw(r#"[{"id":"web"},{"id":"Fusion"}]"#)).is_err());
    }

    #[test]
    fn searches_bring_fees_and_functions_do_not() {
        let of = |tools: &str| bring_fees(&raw(tools));
        for name in ["openrouter:web_search", "web_search", "web_search_preview_2025_03_11"] {
            let tools = format!(r#"[{{"type":"{name}"}}]"#);
            assert_eq!(of(&tools), Ok(true), "{tools}");
        }
        let function = r#"[{"type":"function","function":{"name":"openrouter:fusion"}}]"#;
        for tools in [function, "[]", "{}", "null", "7", r#"["openrouter:fusion"]"#, r"[{}]"] {
            assert_eq!(of(tools), Ok(false), "{tools}");
        }
        assert_eq!(of(r#"[{"type":"openrouter:datetime"},{"type":7}]"#), Ok(false));
        assert_eq!(check_plugins(&raw(r#"[{"id":"web"},{"id":"response-healing"}]"#)), Ok(()));
    }
}
