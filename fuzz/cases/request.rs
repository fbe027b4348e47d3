//! The view of a request: any bytes. It must not panic, and what is forwarded must mean to another
//! JSON reader what was priced here.

use serde_json::Value;
use tollgate::models::money::Tokens;
use tollgate::models::openai::request::{ChatRequest, Dialect, NEWER, OLDER};

const CAP: Option<Tokens> = Some(Tokens(7));

/// One body.
pub fn case(body: &[u8]) {
    let Ok(request) = ChatRequest::parse(body) else { return };
    for (cap, is_sole) in [(None, false), (CAP, false), (None, true), (CAP, true)] {
        let dialect = Dialect { cap: OLDER, is_sole, takes_user: true };
        let sent = request.forwarded("the-account", cap, dialect, None);
        // Halves of surrogate pairs are text to some readers and a fault to others.
        let Ok(value) = serde_json::from_str::<Value>(&sent) else { continue };
        assert_eq!(value["model"], request.model.as_ref());
        assert_eq!(value["user"], "the-account");
        assert_eq!(value["stream"].as_bool().unwrap_or(false), request.stream);
        assert_eq!(value["n"].as_i64().unwrap_or(1), request.choices);
        let told = [OLDER, NEWER].iter().filter_map(|name| value[name].as_i64()).max();
        assert_eq!(told.map(Tokens), cap.or(request.completion_tokens_max));
        assert!(!is_sole || value[OLDER].is_i64() == told.is_some(), "{sent}");
        if request.stream {
            assert_eq!(value["stream_options"]["include_usage"], true);
        }
    }
}
