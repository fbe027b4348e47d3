//! Tools and plugins that an upstream runs by itself, at prices of their own.
//!
//! Invariants: what an upstream runs while it answers is refused, unless it happens once and is
//! held for. A list that is none, or has what is no object, is the upstream's to refuse.

use super::pairs::{Pairs, folded};
use serde_json::value::RawValue;

/// The tools that a client runs itself. Whatever else a tool may be, its upstream runs it, and
/// calls the model again with what it brought, as often as the model likes: OpenRouter up to thirty
/// times, its `web_search` (`web_search_preview` and the like are the same) and `datetime`
/// included. No hold goes by that.
/// <https://openrouter.ai/docs/guides/features/server-tools/overview>
const OF_CLIENTS: &[&str] = &["function", "custom"];
/// Anthropic's, which have dates at their ends.
/// <https://platform.claude.com/docs/en/agents-and-tools/tool-use/overview>
const ANTHROPICS: &[&str] = &["bash_", "computer_", "memory_", "text_editor_"];
/// Of a `tool_choice`: one of those in a list, which are told apart by name.
const ALLOWED_TOOLS: &str = "allowed_tools";
/// Of Anthropic's form of one.
const ANTHROPICS_CHOICES: &[&str] = &["auto", "any", "tool", "none"];
/// The plugins that change a request or its answer once.
/// <https://openrouter.ai/docs/guides/features/plugins/overview>
const PLUGINS: &[&str] =
    &[WEB, FILE_PARSER, "response-healing", "context-compression", "moderation"];
/// What a search may bring into the prompt, by the plugin's own settings.
const MOST: &[(&str, i64)] = &[("max_uses", 5), ("max_results", 10)];

/// The one that searches.
const WEB: &str = "web";
/// The one that reads files, and its engines.
/// <https://openrouter.ai/docs/guides/overview/multimodal/pdfs>
const FILE_PARSER: &str = "file-parser";
const FREE_ENGINES: &[&str] = &["native", "cloudflare-ai", "pdf-text"];
const PAID_ENGINE: &str = "mistral-ocr";

/// By what OpenRouter reads the files in a prompt. In the order of what they may cost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum FileEngine {
    /// At no fee.
    Free,
    /// The request names none: the model itself, where it can, else the one that has a fee.
    #[default]
    Usual,
    Paid,
}

/// Of what is not supported, shown to its sender.
const NAME_CHARS_SHOWN: usize = 64;

/// Whether tools bring fees on top of tokens: what has no type is a provider's own (Google's search
/// is `{"googleSearch": {}}`).
///
/// # Errors
/// The name of one that is not supported.
pub fn bring_fees(tools: &RawValue) -> Result<bool, String> {
    let mut has_others = false;
    for tool in objects(tools)? {
        let types = texts(&tool, "type");
        if let Some(name) = types.iter().find(|name| !is_of_clients(name)) {
            return Err(shown(name));
        }
        let is_named = tool.iter().any(|(name, _)| ["function", "name"].contains(&name.as_str()));
        has_others |= types.is_empty() && !is_named;
    }
    Ok(has_others)
}

/// # Errors
/// The name of a tool that is not supported, and that a choice asks for by its type.
pub fn check_choice(choice: &RawValue) -> Result<(), String> {
    if !choice.get().starts_with('{') {
        return Ok(());
    }
    let types = texts(&members(choice)?, "type");
    let is_usual = |name: &str| name == ALLOWED_TOOLS || ANTHROPICS_CHOICES.contains(&name);
    let other = types.iter().find(|name| !is_usual(name) && !is_of_clients(name));
    other.map_or(Ok(()), |name| Err(shown(name)))
}

fn is_of_clients(name: &str) -> bool {
    OF_CLIENTS.contains(&name) || ANTHROPICS.iter().any(|beginning| name.starts_with(beginning))
}

/// What plugins bring.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Plugins {
    /// They may search, at a fee.
    pub searches: bool,
    pub engine: FileEngine,
}

/// # Errors
/// The name of a plugin that is not supported, or of its setting.
pub fn plugins(list: &RawValue) -> Result<Plugins, String> {
    let read = objects(list)?;
    let items: Result<Option<Vec<&RawValue>>, _> = serde_json::from_str(list.get());
    let is_all = items.is_ok_and(|items| items.unwrap_or_default().len() == read.len());
    // What is no plugin to us may be one to somebody.
    let (mut searches, mut engine) = (!is_all, None);
    for plugin in read {
        if let Some(name) = texts(&plugin, "id").iter().find(|id| !PLUGINS.contains(&id.as_str())) {
            return Err(shown(name));
        }
        let is_beyond = |(name, value): &(String, &RawValue)| {
            let most = MOST.iter().find(|(setting, _)| setting == name);
            let given = serde_json::from_str::<Option<i64>>(value.get());
            // What is no whole number may be read as any.
            most.is_some_and(|(_, most)| given.map_or(true, |given| given > Some(*most)))
        };
        if let Some((name, _)) = plugin.iter().find(|member| is_beyond(member)) {
            return Err(name.clone());
        }
        let ids = texts(&plugin, "id");
        searches |= ids.is_empty() || ids.iter().any(|id| id == WEB);
        if ids.iter().any(|id| id == FILE_PARSER) {
            engine = engine.max(Some(file_engine(&plugin)?));
        }
    }
    Ok(Plugins { searches, engine: engine.unwrap_or_default() })
}

/// The dearest of those that a plugin names.
fn file_engine(plugin: &Members<'_>) -> Result<FileEngine, String> {
    let mut dearest = None;
    for (name, value) in plugin {
        let engine = match name.as_str() {
            // Without the plugin the usual one may read them nevertheless.
            "enabled" if value.get() != "true" => FileEngine::Usual,
            "pdf" if value.get().starts_with('{') => {
                let names = texts(&members(value)?, "engine");
                let engines: Result<Vec<_>, _> = names.iter().map(|name| engine_of(name)).collect();
                let Some(engine) = engines?.into_iter().max() else { continue };
                engine
            }
            _ => continue,
        };
        dearest = dearest.max(Some(engine));
    }
    Ok(dearest.unwrap_or_default())
}

fn engine_of(name: &str) -> Result<FileEngine, String> {
    match name {
        PAID_ENGINE => Ok(FileEngine::Paid),
        name if FREE_ENGINES.contains(&name) => Ok(FileEngine::Free),
        name => Err(shown(name)),
    }
}

fn shown(name: &str) -> String {
    name.chars().take(NAME_CHARS_SHOWN).collect()
}

/// The members of an object, doubles included, their names without case.
type Members<'a> = Vec<(String, &'a RawValue)>;

/// The objects in a list.
fn objects(list: &RawValue) -> Result<Vec<Members<'_>>, String> {
    let Ok(items) = serde_json::from_str::<Vec<&RawValue>>(list.get()) else { return Ok(vec![]) };
    items.into_iter().filter(|item| item.get().starts_with('{')).map(members).collect()
}

fn members(object: &RawValue) -> Result<Members<'_>, String> {
    // It has too many members for anybody to be sure of them.
    let Pairs(pairs): Pairs<'_> = serde_json::from_str(object.get()).map_err(|_| "…".to_owned())?;
    Ok(pairs.into_iter().map(|(name, value)| (folded(&name), value)).collect())
}

/// What an object says under a name, each time that it says it, without case.
fn texts(members: &Members<'_>, name: &str) -> Vec<String> {
    let values = members.iter().filter(|(member, _)| member == name);
    values
        .filter_map(|(_, value)| serde_json::from_str::<String>(value.get()).ok())
        .map(|text| folded(&text))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn raw(text: &str) -> Box<RawValue> {
        serde_json::from_str(text).unwrap()
    }

    #[test]
    fn what_an_upstream_runs_is_refused() {
        let of = |tools: &str| bring_fees(&raw(tools));
        for (tools, name) in [
            (r#"[{"type":"openrouter:fusion"}]"#, "openrouter:fusion"),
            (r#"[{"type":"function"},{"type":"openrouter:web_search"}]"#, "openrouter:web_search"),
            (r#"[{"type":"function","type":"openrouter:subagent"}]"#, "openrouter:subagent"),
            (r#"[{"type":"openrouter:subagent","type":"function"}]"#, "openrouter:subagent"),
            (r#"[{"\u0074ype":"\u006fpenrouter:datetime"}]"#, "openrouter:datetime"),
            (r#"[{"Type":"OpenRouter:bash"}]"#, "openrouter:bash"),
            (r#"[{"type":"web_search_preview"}]"#, "web_search_preview"),
            (r#"[{"type":"web_fetch_20250910"}]"#, "web_fetch_20250910"),
            (r#"[{"type":"mcp","server_url":"litellm_proxy"}]"#, "mcp"),
        ] {
            assert_eq!(of(tools), Err(name.to_owned()), "{tools}");
        }
        let many: Vec<String> = (0..300).map(|number| format!(r#""m{number}":1"#)).collect();
        let many = format!(r#"[{{{},"type":"openrouter:fusion"}}]"#, many.join(","));
        assert!(of(&many).is_err(), "not read to its end");
    }

    #[test]
    fn what_clients_run_brings_no_fees() {
        let of = |tools: &str| bring_fees(&raw(tools));
        let function = r#"[{"type":"function","function":{"name":"openrouter:fusion"}}]"#;
        let untyped = r#"[{"function":{"name":"f"}},{"name":"f","input_schema":{}}]"#;
        let anthropics = r#"[{"type":"bash_20250124"},{"type":"text_editor_20250728"}]"#;
        for tools in [function, untyped, anthropics, "[]", "{}", "null", "7", r#"["mcp"]"#] {
            assert_eq!(of(tools), Ok(false), "{tools}");
        }
        assert_eq!(
            of(r#"[{"type":"custom","custom":{"name":"f"}},{"type":"function"}]"#),
            Ok(false)
        );
        assert_eq!(of(r#"[{"googleSearch":{}}]"#), Ok(true));
    }

    #[test]
    fn a_plugin_happens_once() {
        let of = |list: &str| plugins(&raw(list)).map(|found| found.searches);
        assert_eq!(of(r#"[{"id":"web","max_results":10},{"id":"response-healing"}]"#), Ok(true));
        assert_eq!(of(r#"[{"id":"moderation"},{"id":"file-parser"}]"#), Ok(false));
        for (unread, may_search) in [("null", false), ("[]", false), (r#"["web"]"#, true)] {
            assert_eq!(of(unread), Ok(may_search), "{unread}");
        }
        assert_eq!(of(r#"[{"max_results":10}]"#), Ok(true));
        for (plugins, name) in [
            (r#"[{"id":"web"},{"id":"Fusion"}]"#, "fusion"),
            (r#"[{"id":"web-fetch"}]"#, "web-fetch"),
            (r#"[{"id":"web","max_results":11}]"#, "max_results"),
            (r#"[{"id":"web","engine":"native","max_uses":5e1}]"#, "max_uses"),
            (r#"[{"id":"file-parser","pdf":{"engine":"newest-ocr"}}]"#, "newest-ocr"),
        ] {
            assert_eq!(of(plugins), Err(name.to_owned()), "{plugins}");
        }
    }

    #[test]
    fn an_engine_that_costs_is_told_from_those_that_do_not() {
        let of = |pdf: &str| {
            let list = raw(&format!(r#"[{{"id":"web"}},{{"id":"file-parser"{pdf}}}]"#));
            plugins(&list).map(|found| found.engine)
        };
        for (pdf, engine) in [
            ("", FileEngine::Usual),
            (r#","pdf":null"#, FileEngine::Usual),
            (r#","pdf":{"engine":null}"#, FileEngine::Usual),
            (r#","pdf":{"engine":"cloudflare-ai"}"#, FileEngine::Free),
            (r#","enabled":true,"pdf":{"engine":"native"}"#, FileEngine::Free),
            (r#","enabled":false,"pdf":{"engine":"native"}"#, FileEngine::Usual),
            (r#","pdf":{"engine":"Mistral-OCR"}"#, FileEngine::Paid),
            (r#","pdf":{"engine":"native","engine":"mistral-ocr"}"#, FileEngine::Paid),
            (r#","pdf":{"engine":"native"},"pdf":{"engine":"mistral-ocr"}"#, FileEngine::Paid),
        ] {
            assert_eq!(of(pdf), Ok(engine), "{pdf}");
        }
    }

    #[test]
    fn a_choice_of_what_an_upstream_runs_is_refused() {
        let of = |choice: &str| check_choice(&raw(choice));
        for choice in [
            "null",
            r#""required""#,
            r#"{"type":"function","function":{"name":"f"}}"#,
            r#"{"type":"allowed_tools","allowed_tools":{"mode":"auto","tools":[]}}"#,
            r#"{"type":"tool","name":"f"}"#,
        ] {
            assert_eq!(of(choice), Ok(()), "{choice}");
        }
        let search = r#"{"type":"openrouter:web_search"}"#;
        assert_eq!(of(search), Err("openrouter:web_search".to_owned()));
    }
}
