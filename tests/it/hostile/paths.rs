//! Paths that a proxy and a server may read differently: each is one path here, and leads nowhere
//! that the same caller could not go by its plain name.

use crate::app::{Store, TestApp, both_stores};
use crate::bad_input::assert_refused;
use crate::client::Ask;

both_stores!(odd_paths_lead_nowhere);

const NOWHERE: [&str; 20] = [
    "//v1/models",
    "/v1//models",
    "/v1/models//",
    "/v1/./models",
    "/v1/../v1/models",
    "/V1/models",
    "/v1/models;x=1",
    "/v1%2fmodels",
    "/v1/%6dodels",
    "/%76%31/models",
    "/v1\\models",
    "/./v1/models",
    "/healthz/",
    "/healthz/../v1/models",
    "/v1/chat/completions/",
    "/v1/chat//completions",
    "/v1/chat%2fcompletions",
    "/v1/organization/../models",
    "/admin/v1/../../v1/models",
    "/admin/v1/accounts/../../../v1/models",
];

/// Under `/v1/models/` everything is a name.
const NAMES: [&str; 9] = [
    "..",
    "%2e%2e",
    "%2e%2e/%2e%2e/admin/v1/accounts",
    "..%2f..%2fadmin%2fv1%2faccounts",
    "../../admin/v1/accounts",
    "%00",
    "%ff%fe",
    "%",
    "openai%252fgpt-4o-mini",
];

async fn odd_paths_lead_nowhere(store: Store) {
    let app = TestApp::start(store).await;
    for path in NOWHERE {
        for method in ["GET", "POST"] {
            let ask = Ask::new(method, path).header("Content-Type", "application/json");
            let got = app.ask(&ask.body("{}").bearer(&app.key)).await;
            assert!([400, 404, 405].contains(&got.status), "{method} {path}: {}", got.text());
            let error = got.json()["error"].clone();
            assert!(error["code"].is_string(), "{method} {path}: {error}");
        }
    }
    for name in NAMES {
        let path = format!("/v1/models/{name}");
        let got = app.get(&path).await;
        assert_refused(&got, &path, 404, "model_not_found", "model");
        assert_eq!(app.ask(&Ask::get(&path)).await.status, 401, "{path} without a key");
    }
    for path in ["/admin/v1/accounts", "/admin/v1/accounts?x=/v1/models", "/admin/v1/prices#x"] {
        let got = app.get(path).await;
        assert!([403, 404].contains(&got.status), "{path}: {}", got.text());
    }
    app.assert_untouched().await;
    app.finish().await;
}
