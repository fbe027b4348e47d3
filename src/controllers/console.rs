//! `/console`: the web console, whose files are in the binary (`src/console`).
//!
//! Invariants: the pages are the same for everybody and know nothing: all that is shown comes from
//! the JSON APIs, with the key or token that the person gives. They load nothing from elsewhere and
//! run no script but their own (the policy below). No cookie is set. Switched off, these paths are
//! unknown.

use crate::error::Error;
use crate::models::ledger::sha256_hex;
use crate::state::App;
use axum::Json;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use axum::http::header::{
    CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, ETAG, IF_NONE_MATCH, REFERRER_POLICY,
    X_CONTENT_TYPE_OPTIONS,
};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use serde_json::json;
use std::future::{Ready, ready};
use std::sync::Arc;

type Name = Result<Path<String>, PathRejection>;

const HTML: &str = "text/html; charset=utf-8";
const STYLE: &str = "text/css; charset=utf-8";
const SCRIPT: &str = "text/javascript; charset=utf-8";
const TEXT: &str = "text/plain; charset=utf-8";

/// Name, type and contents.
type Source = (&'static str, &'static str, &'static str);

const PAGE: Source = ("", HTML, include_str!("../console/index.html"));
const FILES: [Source; 12] = [
    ("style.css", STYLE, include_str!("../console/style.css")),
    ("app.js", SCRIPT, include_str!("../console/app.js")),
    ("session.js", SCRIPT, include_str!("../console/session.js")),
    ("api.js", SCRIPT, include_str!("../console/api.js")),
    ("exact.js", SCRIPT, include_str!("../console/exact.js")),
    ("dom.js", SCRIPT, include_str!("../console/dom.js")),
    ("charts.js", SCRIPT, include_str!("../console/charts.js")),
    ("account.js", SCRIPT, include_str!("../console/account.js")),
    ("keys.js", SCRIPT, include_str!("../console/keys.js")),
    ("operator.js", SCRIPT, include_str!("../console/operator.js")),
    ("chart.umd.min.js", SCRIPT, include_str!("../console/vendor/chart.umd.min.js")),
    ("LICENSE.txt", TEXT, include_str!("../console/vendor/LICENSE.txt")),
];

/// The files with what their caches know them by.
pub struct Assets {
    page: Asset,
    files: Vec<Asset>,
}

struct Asset {
    name: &'static str,
    kind: &'static str,
    text: &'static str,
    etag: String,
}

impl Assets {
    #[must_use]
    pub fn new() -> Self {
        Self { page: Asset::of(PAGE), files: FILES.map(Asset::of).into() }
    }
}

impl Default for Assets {
    fn default() -> Self {
        Self::new()
    }
}

impl Asset {
    fn of((name, kind, text): Source) -> Self {
        Self { name, kind, text, etag: format!("\"{}\"", sha256_hex(text.as_bytes())) }
    }

    /// The file, or that it has not changed. A browser asks each time, so that an update counts at
    /// once and the files are always of one version.
    fn answer(&self, app: &App, asked: &HeaderMap) -> Response {
        let mut headers = common(app);
        let known = asked.get(IF_NONE_MATCH).and_then(|value| value.to_str().ok());
        let is_known = known.is_some_and(|list| {
            list.split(',')
                .map(|tag| tag.trim().trim_start_matches("W/"))
                .any(|tag| tag == self.etag || tag == "*")
        });
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
        // Hexadecimal digits in quotes have no way to fail.
        if let Ok(etag) = HeaderValue::from_str(&self.etag) {
            headers.insert(ETAG, etag);
        }
        if is_known {
            return (StatusCode::NOT_MODIFIED, headers).into_response();
        }
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(self.kind));
        (headers, self.text).into_response()
    }
}

/// Answers with the page.
pub fn page(
    assets: Arc<Assets>,
) -> impl Fn(State<Arc<App>>, HeaderMap) -> Ready<Result<Response, Error>> + Clone {
    move |State(app), asked| ready(is_on(&app).map(|()| assets.page.answer(&app, &asked)))
}

/// Answers with one of the page's files.
pub fn file(
    assets: Arc<Assets>,
) -> impl Fn(State<Arc<App>>, Name, HeaderMap) -> Ready<Result<Response, Error>> + Clone {
    move |State(app), name, asked| {
        let found =
            name.ok().and_then(|Path(name)| assets.files.iter().find(|file| file.name == name));
        let answer = is_on(&app).and_then(|()| found.ok_or(Error::UnknownUrl));
        ready(answer.map(|file| file.answer(&app, &asked)))
    }
}

/// What the page has to know of this service before anybody has signed in.
pub async fn config(State(app): State<Arc<App>>) -> Result<Response, Error> {
    is_on(&app)?;
    let mut headers = common(&app);
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    let sign_in = app.config.identity.sign_in.as_ref();
    let sign_in = sign_in.map(|it| json!({ "url": it.url, "anon_key": it.anon_key }));
    let cents = app.payments.topup_cents();
    let cents = cents.map(|cents| json!({ "least": cents.start(), "most": cents.end() }));
    let body = json!({ "supabase": sign_in, "topup_cents": cents });
    Ok((headers, Json(body)).into_response())
}

fn is_on(app: &App) -> Result<(), Error> {
    if app.config.server.console { Ok(()) } else { Err(Error::UnknownUrl) }
}

const NO_SNIFFING: HeaderValue = HeaderValue::from_static("nosniff");
const NO_REFERRER: HeaderValue = HeaderValue::from_static("no-referrer");
const OPENER_POLICY: HeaderName = HeaderName::from_static("cross-origin-opener-policy");

/// <https://owasp.org/www-project-secure-headers>
fn common(app: &App) -> HeaderMap {
    let sign_in = app.config.identity.sign_in.as_ref();
    let auth_server = sign_in.map(|it| format!(" {}", it.origin)).unwrap_or_default();
    let policy = format!(
        "default-src 'none'; script-src 'self'; style-src 'self'; \
         connect-src 'self'{auth_server}; img-src 'self' data:; form-action 'none'; \
         frame-ancestors 'none'; base-uri 'none'"
    );
    let mut headers = HeaderMap::new();
    // The origin was checked when the configuration was read.
    if let Ok(policy) = HeaderValue::from_str(&policy) {
        headers.insert(CONTENT_SECURITY_POLICY, policy);
    }
    headers.insert(X_CONTENT_TYPE_OPTIONS, NO_SNIFFING);
    headers.insert(REFERRER_POLICY, NO_REFERRER);
    headers.insert(OPENER_POLICY, HeaderValue::from_static("same-origin"));
    headers
}
