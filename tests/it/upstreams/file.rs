//! The file of upstreams: what is in force is shown without its keys, and a fault stops the start
//! with the line it is in.

use super::Two;
use crate::app::process::{Ended, Environment, run};
use crate::app::{Store, UPSTREAM_KEY};

const ONE: &str =
    "[[upstream]]\nname = \"a\"\nkind = \"openai\"\nbase_url = \"http://127.0.0.1:1/v1\"\n";

async fn config(text: &str, more: &[(&str, &str)]) -> Ended {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("upstreams.toml");
    std::fs::write(&path, text).expect("a temporary file");
    let mut environment = Environment::new();
    environment.insert("TOLLGATE_UPSTREAMS".to_string(), path.display().to_string());
    environment.extend(more.iter().map(|(name, value)| (name.to_string(), value.to_string())));
    run(&["config"], &environment, folder.path()).await
}

#[tokio::test]
async fn what_is_in_force_is_shown_without_keys() {
    let two = Two::start(Store::Sqlite, "weight = 7\nretries = 5", |setup| setup).await;
    let shown = two.app.cli(&["config"]).await;
    for line in [
        "upstream.first.kind=openrouter",
        "upstream.first.weight=7",
        "upstream.first.retries=5",
        "upstream.second.order=2",
        "UPSTREAM_API_KEY=***",
    ] {
        assert!(shown.lines().any(|shown| shown == line), "{line} is missing: {shown}");
    }
    assert!(!shown.contains(UPSTREAM_KEY), "{shown}");
    assert!(!two.app.process.stderr().contains(UPSTREAM_KEY));
    two.finish().await;
}

#[tokio::test]
async fn a_variable_of_ones_own_may_hold_a_key() {
    let text = format!("{ONE}api_key_env = \"TOLLGATE_SECOND_KEY\"");
    let shown = config(&text, &[("TOLLGATE_SECOND_KEY", "sk-second")]).await;
    assert!(shown.status.success(), "it is known now: {shown:?}");
    assert!(shown.stdout.contains("TOLLGATE_SECOND_KEY=***"), "{shown:?}");
    let unset = config(&text, &[]).await;
    assert!(
        unset.stderr.contains("line 5: the variable TOLLGATE_SECOND_KEY is not set"),
        "{unset:?}"
    );
}

#[tokio::test]
async fn a_fault_is_told_with_its_line() {
    for (text, words) in [
        (format!("{ONE}api_key = \"sk-secret\""), "line 5: a key does not stand in the file"),
        (format!("{ONE}waight = 2"), "line 5: unknown field `waight`"),
        (format!("{ONE}\n{ONE}"), "two upstreams 'a'"),
        (String::new(), "no [[upstream]]"),
    ] {
        let ended = config(&text, &[]).await;
        assert!(!ended.status.success(), "{ended:?}");
        let said = ended.stderr;
        assert!(said.contains("TOLLGATE_UPSTREAMS: ") && said.contains(words), "{said}");
        assert!(!said.contains("sk-secret"), "{said}");
    }
    let both = config(ONE, &[("UPSTREAM_BASE_URL", "http://127.0.0.1:1/v1")]).await;
    assert!(both.stderr.contains("UPSTREAM_BASE_URL and TOLLGATE_UPSTREAMS"), "{both:?}");
    let nowhere = ("TOLLGATE_UPSTREAMS".to_string(), "/nowhere.toml".to_string());
    let here = std::path::Path::new(".");
    let missing = run(&["config"], &Environment::from([nowhere]), here).await;
    assert!(missing.stderr.contains("TOLLGATE_UPSTREAMS: "), "{missing:?}");
}
