//! The start: what a fresh run prints, what it refuses, and that what it prints works.

use std::path::Path;

use crate::app::TestApp;
use crate::app::books::Books;
use crate::app::process::{Ended, Environment, Process, run};
use crate::app::store::Database;
use crate::app::{Setup, Store, UPSTREAM_KEY, eventually, mode};
use crate::client::{Ask, Exchange};
use crate::upstream::answer::Answer;
use crate::upstream::catalog::MODEL;

fn environment(pairs: &[(&str, &str)]) -> Environment {
    pairs.iter().map(|(name, value)| (name.to_string(), value.to_string())).collect()
}

/// A run with no configuration at all, but for a port that is free.
fn fresh() -> Environment {
    environment(&[("TOLLGATE_LISTEN", "127.0.0.1:0")])
}

/// A first run in an empty folder, once it is ready.
async fn first_run(folder: &Path) -> (Process, String) {
    let mut process = Process::serve(&fresh(), folder);
    let url = process.base_url().await;
    eventually("the key is printed", async || process.stdout().contains("curl").then_some(()))
        .await;
    (process, url)
}

fn printed_key(stdout: &str) -> &str {
    let key = stdout.lines().find_map(|line| line.split_once("API key (shown once): "));
    let (_, key) = key.unwrap_or_else(|| panic!("no key: {stdout}"));
    key.trim()
}

/// The printed curl command, with the lines that its backslashes continue.
fn printed_curl(stdout: &str) -> String {
    let mut command = String::new();
    for line in stdout.lines().skip_while(|line| !line.trim_start().starts_with("curl ")) {
        command.push_str(line.trim());
        command.push('\n');
        if !line.trim_end().ends_with('\\') {
            break;
        }
    }
    assert!(command.starts_with("curl "), "no curl command: {stdout}");
    command
}

#[tokio::test]
async fn a_fresh_run_prints_what_one_needs_and_it_works() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let (mut process, url) = first_run(folder.path()).await;
    let stdout = process.stdout();
    let first = stdout.lines().next().unwrap_or_default();
    assert_eq!(first, format!("Tollgate listening on {url}"));
    let key = printed_key(&stdout).to_string();
    assert!(key.starts_with("sk-tg-"), "{stdout}");
    for name in ["tollgate.db", "tollgate.db-wal"] {
        assert_eq!(mode(&folder.path().join(name)), 0o600, "{name} is for its owner");
    }
    assert!(stdout.contains("from openai import OpenAI"), "no Python lines: {stdout}");

    let curl = printed_curl(&stdout);
    assert!(curl.contains(&key) && curl.contains(&url), "{curl}");
    let ran = Process::spawn("bash", &["-c", &curl], &fresh(), folder.path()).end().await;
    assert!(ran.status.success(), "{curl}: {ran:?}");
    assert!(ran.stdout.contains("choices"), "{curl}: {ran:?}");
    assert!(ran.stdout.contains("tollgate-demo"), "the answer says that it is a demo: {ran:?}");
    let said = process.stderr();
    assert!(said.to_lowercase().contains("demo"), "and so does the log: {said}");

    process.kill();
    let (again, _) = first_run_again(folder.path()).await;
    assert!(!again.stdout().contains("sk-tg-"), "the key is shown once: {}", again.stdout());
}

async fn first_run_again(folder: &Path) -> (Process, String) {
    let mut process = Process::serve(&fresh(), folder);
    let url = process.base_url().await;
    // Whatever else it has to say stands there when it answers.
    let address = url.trim_start_matches("http://").trim_end_matches("/v1").parse();
    let healthz = Ask::get("/healthz").header("Connection", "close").bytes();
    let got = Exchange::open(address.expect("an address"), &healthz).await.finish().await;
    assert_eq!(got.status, 200);
    (process, url)
}

#[tokio::test]
async fn the_demo_streams_and_its_books_add_up() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let (mut process, url) = first_run(folder.path()).await;
    let key = printed_key(&process.stdout()).to_string();
    let address = url.trim_start_matches("http://").trim_end_matches("/v1").parse();
    let address = address.expect("an address");
    let models = Ask::get("/v1/models").bearer(&key).header("Connection", "close").bytes();
    let models = Exchange::open(address, &models).await.finish().await;
    assert!(models.ok().contains("\"tollgate-demo\""), "{}", models.text());
    let body = crate::app::streamed_with_usage("tollgate-demo").to_string();
    let ask = Ask::post_json("/v1/chat/completions", body).bearer(&key);
    let got = Exchange::open(address, &ask.bytes()).await.finish().await;
    assert!(got.ok().ends_with("data: [DONE]\n\n"), "{}", got.text());
    assert!(!got.content().is_empty(), "{}", got.text());
    let usage = got.events().pop().expect("events")["usage"].clone();
    assert!(usage["completion_tokens"].as_i64() > Some(0), "{usage}");
    // As some programs say that they want none.
    let mut body = crate::app::question("tollgate-demo");
    body["stream"] = serde_json::Value::Null;
    let ask = Ask::post_json("/v1/chat/completions", body.to_string()).bearer(&key);
    let ask = ask.header("Connection", "close");
    let got = Exchange::open(address, &ask.bytes()).await.finish().await;
    got.ok();
    assert_eq!(got.json()["object"], "chat.completion", "{}", got.text());
    let verified = eventually("the books are settled", async || {
        let ended = run(&["verify"], &fresh(), folder.path()).await;
        ended.status.success().then_some(ended)
    })
    .await;
    assert!(!verified.stderr.contains("panicked"), "{verified:?}");
    process.terminate();
    assert_eq!(process.wait().await.code(), Some(0));
}

/// Runs a server that must not come up, and gives how it ended.
async fn refused(folder: &Path, environment: &Environment) -> Ended {
    println!("a server that must not come up: {environment:?}");
    let ended = run(&["serve"], environment, folder).await;
    assert!(!ended.status.success(), "it started: {ended:?}");
    assert!(!ended.stderr.contains("panicked"), "{ended:?}");
    ended
}

#[tokio::test]
async fn an_unknown_variable_is_named() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let mut environment = fresh();
    environment.insert("TOLLGATE_MARKUPS".to_string(), "2".to_string());
    let ended = refused(folder.path(), &environment).await;
    assert_eq!(ended.status.code(), Some(2));
    assert!(ended.stderr.contains("TOLLGATE_MARKUPS"), "{ended:?}");
    let ended = run(&["config"], &environment, folder.path()).await;
    assert_eq!(ended.status.code(), Some(2), "commands refuse it as well: {ended:?}");
}

#[tokio::test]
async fn values_that_make_no_sense_are_named() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let missing = folder.path().join("no-such-file.toml").display().to_string();
    let broken = folder.path().join("broken.toml");
    std::fs::write(&broken, "[[price]]\nmodel = 7\n").expect("the test's own folder");
    let broken = broken.display().to_string();
    let values = [
        ("TOLLGATE_LISTEN", "everywhere"),
        ("TOLLGATE_MARKUP", "much"),
        ("TOLLGATE_MARKUP", "-1"),
        ("TOLLGATE_BODY_BYTES_MAX", "big"),
        ("TOLLGATE_DISCONNECT", "ignore"),
        ("TOLLGATE_PRICES", missing.as_str()),
        ("TOLLGATE_PRICES", broken.as_str()),
        ("TOLLGATE_LEASE_SECONDS", "0"),
        ("TOLLGATE_COMPLETION_TOKENS_MAX", "0"),
        ("TOLLGATE_COMPLETION_TOKENS_MAX", "-1"),
        ("UPSTREAM_KIND", "telepathy"),
        ("DATABASE_URL", "mysql://localhost/x"),
        ("DATABASE_URL", "sqlite::memory:"),
        ("DATABASE_URL", "sqlite://books.db?mode=memory"),
    ];
    for (name, value) in values {
        let mut environment = fresh();
        environment.insert(name.to_string(), value.to_string());
        let ended = refused(folder.path(), &environment).await;
        let named = ended.stderr.contains(name) || ended.stderr.contains(value);
        assert!(named, "{name}={value} is not named: {ended:?}");
    }
}

/// What looks at a database, or changes what is in one, does not make an empty one to do so.
#[tokio::test]
async fn a_command_in_the_wrong_folder_says_so_and_leaves_nothing_there() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let here = folder.path();
    let archive = here.join("archive").display().to_string();
    let key = "00000000-0000-7000-8000-000000000000";
    let commands: [&[&str]; 14] = [
        &["verify"],
        &["reconcile"],
        &["account", "list"],
        &["account", "show", "--account", "acme"],
        &["account", "update", "--account", "acme", "--suspend"],
        &["credit", "grant", "--account", "acme", "--usd", "5", "--reason", "r"],
        &["key", "create", "--account", "acme"],
        &["key", "list", "--account", "acme"],
        &["key", "revoke", key],
        &["member", "list", "--account", "acme"],
        &["audit", "list"],
        &["events", "list"],
        &["payments", "list"],
        &["archive", "--before", "2026-01", "--to", &archive],
    ];
    for command in commands {
        let ended = run(command, &fresh(), here).await;
        assert_eq!(ended.status.code(), Some(2), "{command:?}: {ended:?}");
        assert!(ended.stdout.is_empty(), "{command:?}: {ended:?}");
        let named = format!("there is no database at {}", here.join("tollgate.db").display());
        assert!(ended.stderr.contains(&named), "{command:?}: {ended:?}");
        let left: Vec<_> = std::fs::read_dir(here).expect("the test's own folder").collect();
        assert!(left.is_empty(), "{command:?} left {left:?}");
    }
    for command in [&["migrate"][..], &["account", "create", "--name", "acme"]] {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let made = run(command, &fresh(), folder.path()).await;
        assert!(made.status.success(), "{command:?}: {made:?}");
        let verified = run(&["verify"], &fresh(), folder.path()).await;
        assert!(verified.status.success(), "{command:?}: {verified:?}");
    }
}

#[tokio::test]
async fn a_mistyped_address_or_an_empty_file_is_no_database() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let made = run(&["migrate"], &fresh(), folder.path()).await;
    assert!(made.status.success(), "{made:?}");
    std::fs::write(folder.path().join("empty.db"), "").expect("the test's own folder");
    for name in ["tolgate.db", "empty.db", "no/such/folder.db"] {
        let mut environment = fresh();
        environment.insert("DATABASE_URL".to_string(), format!("sqlite://{name}?mode=rwc"));
        let ended = run(&["verify"], &environment, folder.path()).await;
        assert_eq!(ended.status.code(), Some(2), "{name}: {ended:?}");
        assert!(ended.stderr.contains("there is no database at"), "{name}: {ended:?}");
        let length = std::fs::metadata(folder.path().join(name)).map_or(0, |file| file.len());
        assert_eq!(length, 0, "{name} was made");
    }
}

#[tokio::test]
async fn an_empty_database_of_postgresql_has_no_books() {
    let database = Database::create(Store::Postgres, None).await;
    let here = database.folder.path();
    let mut environment = fresh();
    environment.insert("DATABASE_URL".to_string(), database.url.clone());
    let ended = run(&["verify"], &environment, here).await;
    assert_eq!(ended.status.code(), Some(2), "{ended:?}");
    assert!(ended.stderr.contains("there are no books in the database"), "{ended:?}");
    let tables = "SELECT table_name FROM information_schema.tables WHERE table_schema = 'public'";
    let books = Books::open(&database);
    assert!(books.rows(tables).await.is_empty(), "a command that looks made tables");
    assert!(run(&["migrate"], &environment, here).await.status.success());
    let ended = run(&["verify"], &environment, here).await;
    assert!(ended.status.success(), "{ended:?}");
    books.close().await;
    database.drop_database().await;
}

#[tokio::test]
async fn the_demo_is_for_one_machine_only() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let open = environment(&[("TOLLGATE_LISTEN", "0.0.0.0:0")]);
    let ended = refused(folder.path(), &open).await;
    assert!(ended.stderr.to_lowercase().contains("demo"), "{ended:?}");
    let port = environment(&[("PORT", "0")]);
    let ended = refused(folder.path(), &port).await;
    assert!(ended.stderr.to_lowercase().contains("demo"), "PORT binds 0.0.0.0: {ended:?}");

    let database = Database::create(Store::Postgres, None).await;
    let mut shared = fresh();
    shared.insert("DATABASE_URL".to_string(), database.url.clone());
    let ended = refused(folder.path(), &shared).await;
    assert!(ended.stderr.to_lowercase().contains("demo"), "{ended:?}");
    database.drop_database().await;
}

#[tokio::test]
async fn two_servers_do_not_share_a_sqlite_file() {
    let app = TestApp::start(Store::Sqlite).await;
    let folder = tempfile::tempdir().expect("a temporary folder");
    let mut spelt = app.environment.clone();
    let url = spelt["DATABASE_URL"].replace("books.db", "b%6Foks.db");
    spelt.insert("DATABASE_URL".to_string(), url);
    let mut linked = app.environment.clone();
    let file = app.environment["DATABASE_URL"].trim_start_matches("sqlite://");
    let file = file.split('?').next().unwrap_or(file);
    let link = folder.path().join("link.db");
    std::os::unix::fs::symlink(file, &link).expect("the test's own folder");
    linked.insert("DATABASE_URL".to_string(), format!("sqlite://{}", link.display()));
    for environment in [&app.environment, &spelt, &linked] {
        let ended = refused(folder.path(), environment).await;
        assert!(!ended.stdout.contains("Tollgate listening on"), "{ended:?}");
        assert!(ended.stderr.contains("books.db"), "the file is not named: {ended:?}");
    }
    app.upstream.script(Answer::openrouter().stream());
    app.chat(&crate::app::streamed(MODEL)).await.ok();
    app.finish().await;
}

#[tokio::test]
async fn two_servers_share_a_postgresql() {
    let app = TestApp::start(Store::Postgres).await;
    let folder = tempfile::tempdir().expect("a temporary folder");
    let mut second = Process::serve(&app.environment, folder.path());
    let url = second.base_url().await;
    let address = url.trim_start_matches("http://").trim_end_matches("/v1").parse();
    app.upstream.script(Answer::openrouter().stream());
    let ask = app.chat_ask(&crate::app::streamed(MODEL));
    let got = Exchange::open(address.expect("an address"), &ask.bytes()).await.finish().await;
    got.ok();
    assert_eq!(app.record_of(&got).await.charge_nusd, 147_600);
    app.finish().await;
}

#[tokio::test]
async fn the_configuration_is_shown_with_its_secrets_masked() {
    let setup = Setup::new(Store::Sqlite)
        .env("STRIPE_SECRET_KEY", "sk_test_very_secret")
        .env("STRIPE_API_BASE", "http://127.0.0.1:1")
        .env("OPENMETER_URL", "http://127.0.0.1:1/api/v1/events")
        .env("OPENMETER_TOKEN", "om_very_secret");
    let app = setup.start().await;
    let shown = app.cli(&["config"]).await;
    for name in ["TOLLGATE_LISTEN", "DATABASE_URL", "UPSTREAM_BASE_URL", "TOLLGATE_MARKUP"] {
        assert!(shown.contains(name), "{name} is missing: {shown}");
    }
    assert!(shown.contains("1.2"), "defaults are shown too: {shown}");
    let log = app.process.stderr();
    for secret in [UPSTREAM_KEY, "sk_test_very_secret", "om_very_secret", app.key.as_str()] {
        assert!(!shown.contains(secret), "{secret} is shown: {shown}");
        assert!(!log.contains(secret), "{secret} is logged: {log}");
    }
    app.finish().await;
}

#[tokio::test]
async fn what_is_secret_in_an_address_is_not_shown() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let mut environment = fresh();
    let addresses = [
        ("UPSTREAM_BASE_URL", "http://user:hunter2@host.example/v1?key=hunter3"),
        ("OPENMETER_URL", "https://hunter2@host.example/events?token=hunter3&hunter4"),
        ("TOLLGATE_WEBHOOK_URL", "https://user:hunter2@host.example/hook?key=hunter3#hunter4"),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://user:hunter2@host.example:4318?api-key=hunter3"),
        ("SUPABASE_URL", "https://user:hunter2@host.example"),
        ("STRIPE_API_BASE", "https://user:hunter2@host.example"),
    ];
    for (name, value) in addresses {
        environment.insert(name.to_string(), value.to_string());
    }
    let secret = "whsec_MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIz";
    environment.insert("TOLLGATE_WEBHOOK_SECRET".to_string(), secret.to_string());
    let shown = run(&["config"], &environment, folder.path()).await;
    assert!(shown.status.success(), "{shown:?}");
    assert!(!shown.stdout.contains("hunter"), "{}", shown.stdout);
    for (name, _) in addresses {
        let line = shown.stdout.lines().find(|line| line.starts_with(&format!("{name}=http")));
        let line = line.unwrap_or_else(|| panic!("{name}: {}", shown.stdout));
        assert!(line.contains("***@host.example"), "{line}");
    }
    assert!(shown.stdout.contains("/v1?key=***\n"), "{}", shown.stdout);
}

/// A thousand dollars for 1e3 may be what was meant, and may be a slip of the keyboard.
#[tokio::test]
async fn amounts_that_are_not_written_out_are_refused() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let here = folder.path();
    for odd in ["1e3", "5e-9", "5.", ".5", "-0", "-5", "five", ""] {
        let credit = format!("--credit={odd}");
        let ended = run(&["account", "create", "--name", "a", &credit], &fresh(), here).await;
        assert_eq!(ended.status.code(), Some(2), "{odd}: {ended:?}");
        assert!(ended.stderr.contains("--credit"), "{odd}: {ended:?}");
        if odd.is_empty() {
            continue; // As good as not set.
        }
        for name in ["TOLLGATE_MARKUP", "TOLLGATE_SIGNUP_CREDIT", "TOLLGATE_LOW_BALANCE_USD"] {
            let mut environment = fresh();
            environment.insert(name.to_string(), odd.to_string());
            let ended = run(&["config"], &environment, here).await;
            assert_eq!(ended.status.code(), Some(2), "{name}={odd}: {ended:?}");
            assert!(ended.stderr.contains(name), "{name}={odd}: {ended:?}");
        }
    }
    let made =
        run(&["account", "create", "--name", "a", "--credit", "12.50"], &fresh(), here).await;
    assert!(made.status.success(), "{made:?}");
    let shown = run(&["account", "list"], &fresh(), here).await;
    assert!(shown.stdout.contains("balance 12.5 USD"), "{shown:?}");
}

#[tokio::test]
async fn a_sink_that_is_none_is_named() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let made = run(&["migrate"], &fresh(), folder.path()).await;
    assert!(made.status.success(), "{made:?}");
    let list = |sink| ["events", "list", "--sink", sink];
    let ended = run(&list("strpie"), &fresh(), folder.path()).await;
    assert_eq!(ended.status.code(), Some(2), "{ended:?}");
    assert!(ended.stderr.contains("strpie") && ended.stderr.contains("stripe"), "{ended:?}");
    for sink in ["stripe", "openmeter", "webhook"] {
        let ended = run(&list(sink), &fresh(), folder.path()).await;
        assert!(ended.status.success(), "{sink}: {ended:?}");
    }
}

#[tokio::test]
async fn a_database_password_is_not_shown() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let mut environment = fresh();
    let address = "postgres://tollgate:hunter2hunter2@127.0.0.1:1/books";
    environment.insert("DATABASE_URL".to_string(), address.to_string());
    let shown = run(&["config"], &environment, folder.path()).await;
    assert!(shown.status.success(), "{shown:?}");
    let ended = run(&["verify"], &environment, folder.path()).await;
    assert!(!ended.status.success(), "{ended:?}");
    for said in [shown.stdout, shown.stderr, ended.stdout, ended.stderr] {
        assert!(!said.contains("hunter2"), "{said}");
    }
}

#[tokio::test]
async fn prompts_and_keys_are_not_logged() {
    let app = Setup::new(Store::Sqlite).env("TOLLGATE_LOG", "trace").start().await;
    app.upstream.script(Answer::openrouter().pieces(["rosebud answer"]).stream());
    let mut body = crate::app::streamed(MODEL);
    body["messages"][0]["content"] = serde_json::json!("rosebud prompt");
    app.chat(&body).await.ok();
    app.record().await;
    let log = app.process.stderr();
    // At this level the HTTP library traces buffers; what Tollgate itself logs must stay clean.
    let own = log.lines().filter(|line| line.contains("tollgate"));
    for line in own {
        assert!(!line.contains("rosebud") && !line.contains(&app.key), "{line}");
    }
    app.finish().await;
}
