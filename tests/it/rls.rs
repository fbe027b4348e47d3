//! What a browser sees of the books through Supabase's data API with its user's token: every
//! column of every table, as every kind of caller, held against the list below.
//!
//! Roles belong to a whole server, so each test has one of its own.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use futures::future::join_all;
use serde_json::Value;

use crate::app::cluster::Cluster;
use crate::app::supabase::{
    Caller, DataApi, Got, create_owner, create_roles, execute, give_everything_by_default,
};
use crate::app::{Setup, Store, TestApp, streamed};
use crate::client::Exchange;
use crate::upstream::answer::Answer;
use crate::upstream::catalog::MODEL;

/// All that a member may read, of its own account only.
const READABLE: [(&str, &[&str]); 5] = [
    (
        "accounts",
        &[
            "id",
            "name",
            "kind",
            "status",
            "plan",
            "limit_nusd",
            "balance_nusd",
            "held_nusd",
            "period_start",
            "period_charged_nusd",
            "created_at",
        ],
    ),
    (
        "api_keys",
        &[
            "id",
            "account_id",
            "name",
            "hint",
            "models",
            "role",
            "created_at",
            "expires_at",
            "revoked_at",
            "last_used_at",
        ],
    ),
    (
        "ledger_entries",
        &[
            "account_id",
            "seq",
            "kind",
            "amount_nusd",
            "balance_nusd",
            "request_id",
            "reason",
            "created_at",
        ],
    ),
    ("members", &["user_id", "account_id"]),
    (
        "usage_records",
        &[
            "id",
            "account_id",
            "api_key_id",
            "model",
            "streamed",
            "ending",
            "finish_reason",
            "source",
            "prompt_tokens",
            "cached_tokens",
            "cache_write_tokens",
            "cache_write_1h_tokens",
            "audio_prompt_tokens",
            "completion_tokens",
            "reasoning_tokens",
            "audio_completion_tokens",
            "image_completion_tokens",
            "web_searches",
            "charge_nusd",
            "started_at",
            "first_byte_at",
            "ended_at",
        ],
    ),
];

const OWN: &str = "11111111-1111-4111-8111-111111111111";
const SHARER: &str = "22222222-2222-4222-8222-222222222222";
const OTHER: &str = "33333333-3333-4333-8333-333333333333";
const STRANGER: &str = "44444444-4444-4444-8444-444444444444";

/// A caller of each role.
const CHANGERS: [&str; 2] = ["own", "anon"];

fn is_readable(table: &str, column: &str) -> bool {
    READABLE.iter().any(|(name, columns)| *name == table && columns.contains(&column))
}

/// Every kind of caller, with the account whose rows it is to see.
fn callers(own: &str, other: &str) -> Vec<(Caller, Option<String>)> {
    let edited = format!(r#"{{"sub":"{STRANGER}","user_metadata":{{"sub":"{OWN}"}}}}"#);
    let anon = Caller { role: "anon", ..Caller::user("anon", OWN) };
    let nobody = Caller { claims: None, ..Caller::user("no claims", OWN) };
    let (own, other) = (Some(own.to_string()), Some(other.to_string()));
    vec![
        (Caller::user("own", OWN), own.clone()),
        (Caller::user("sharer", SHARER), own),
        (Caller::user("suspended", OTHER), other),
        (Caller::user("stranger", STRANGER), None),
        (nobody, None),
        (Caller::claiming("no sub", "{}"), None),
        (Caller::claiming("empty", ""), None),
        (Caller::user("odd sub", "' OR true --"), None),
        (Caller::claiming("number", r#"{"sub":11111111}"#), None),
        (Caller::claiming("list", &format!(r#"["{OWN}"]"#)), None),
        (Caller::claiming("edited", &edited), None),
        (Caller::claiming("broken", r#"{"sub":"#), None),
        (anon, None),
    ]
}

struct Books {
    app: TestApp,
    own: String,
    other: String,
    /// Table and columns, as the database has them.
    tables: BTreeMap<String, Vec<String>>,
}

impl Books {
    /// Two accounts that have used and paid something, one of them suspended since; three members.
    async fn of(app: TestApp) -> Self {
        let (own, other) = (app.account.clone(), app.create_account("other", &["--credit", "5"]));
        let other = other.await;
        let key = app.create_key("other", &[]).await;
        for _ in 0..3 {
            app.upstream.script(Answer::openrouter().stream());
        }
        app.chat(&streamed(MODEL)).await.ok();
        app.chat(&streamed(MODEL)).await.ok();
        let ask = app.chat_ask(&streamed(MODEL)).bearer(&key);
        Exchange::open(app.address(), &ask.bytes()).await.finish().await.ok();
        app.records(3).await;
        for (user, account) in [(OWN, &own), (SHARER, &own), (OTHER, &other)] {
            let member = format!("INSERT INTO members VALUES ('{user}', '{account}', now())");
            app.books.tamper(&member).await;
        }
        let suspend = format!("UPDATE accounts SET status = 'suspended' WHERE id = '{other}'");
        app.books.tamper(&suspend).await;
        app.books.tamper("SELECT tollgate_ensure_partitions('2031-03-01')").await;
        let tables = columns(&app).await;
        Self { app, own, other, tables }
    }

    /// The first column of a query that the owner makes.
    async fn number(&self, sql: &str) -> usize {
        let rows = self.app.books.rows(sql).await;
        let number = rows[0].as_object().and_then(|row| row.values().next()?.as_u64());
        usize::try_from(number.expect("a number")).expect("few")
    }

    /// How many rows of a table are a caller's own.
    async fn own_rows(&self, table: &str, caller: &Caller, account: Option<&str>) -> usize {
        let Some(account) = account else { return 0 };
        let condition = match table {
            "accounts" => format!("id = '{account}'"),
            // Not those of the others who share the account.
            "members" => {
                let claims: Value =
                    serde_json::from_str(caller.claims.as_deref().unwrap_or_default())
                        .expect("a member's claims");
                format!("user_id::TEXT = '{}'", claims["sub"].as_str().unwrap_or_default())
            }
            _ => format!("account_id = '{account}'"),
        };
        let count = self.number(&format!("SELECT count(*) FROM {table} WHERE {condition}")).await;
        assert!(count > 0, "{} owns nothing in {table}: what is shown then?", caller.name);
        count
    }
}

async fn columns(app: &TestApp) -> BTreeMap<String, Vec<String>> {
    let sql = "SELECT c.relname AS name, a.attname AS column FROM pg_class c \
        JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped \
        WHERE c.relnamespace = 'public'::regnamespace AND c.relkind IN ('r', 'p', 'v', 'm', 'f') \
        ORDER BY c.relname, a.attnum";
    let mut tables: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for row in app.books.rows(sql).await {
        let text = |name: &str| row[name].as_str().expect("a name").to_string();
        tables.entry(text("name")).or_default().push(text("column"));
    }
    let parts = tables.keys().filter(|name| name.starts_with("usage_records_2")).count();
    assert!(tables.contains_key("_sqlx_migrations") && parts >= 6, "{:?}", tables.keys());
    tables
}

/// Reads and changes every column of every table as every caller; the table of what each got.
async fn matrix(books: &Books, api: &mut DataApi) -> (String, Vec<String>) {
    let callers = callers(&books.own, &books.other);
    let (mut shown, mut wrong) = (format!("{:42}", "reads: rows, - is denied"), Vec::new());
    for (caller, _) in &callers {
        let _ = write!(shown, "{:>10}", caller.name);
    }
    for (table, columns) in &books.tables {
        for column in columns {
            let _ = write!(shown, "\n{:42}", format!("{table}.{column}"));
            for (caller, account) in &callers {
                let read = format!("SELECT count(*)::TEXT FROM (SELECT {column} FROM {table}) t");
                let got = api.ask(caller, &read).await;
                let _ = write!(shown, "{got:>10}");
                let expected = match (is_readable(table, column), caller.name) {
                    (false, _) | (true, "anon") => Got::Denied,
                    // Not a text that PostgREST would ever set: an error, and nothing shown.
                    (true, "broken") => Got::Failed("22P02".to_string()),
                    _ => Got::count(books.own_rows(table, caller, account.as_deref()).await),
                };
                if got != expected {
                    wrong.push(format!("{}: {read}: {got:?}, not {expected:?}", caller.name));
                }
            }
        }
        // Rights to change hang on the role alone, and it has none.
        for (caller, _) in callers.iter().filter(|(caller, _)| CHANGERS.contains(&caller.name)) {
            for change in changes(table, columns) {
                let got = api.ask(caller, &change).await;
                if got != Got::Denied {
                    wrong.push(format!("{}: {change}: {got:?}", caller.name));
                }
            }
        }
    }
    (shown, wrong)
}

fn changes(table: &str, columns: &[String]) -> Vec<String> {
    let updates = columns.iter().map(|column| format!("UPDATE {table} SET {column} = DEFAULT"));
    let more = [
        format!("INSERT INTO {table} DEFAULT VALUES"),
        format!("DELETE FROM {table}"),
        format!("TRUNCATE {table}"),
        format!("SELECT '' FROM {table} FOR UPDATE"),
        format!("SELECT t::TEXT FROM {table} t"),
        format!("ALTER TABLE {table} DISABLE ROW LEVEL SECURITY"),
    ];
    // The last one is refused to whoever is not the owner, with the same code.
    updates.chain(more).collect()
}

async fn supabase() -> (Cluster, Books) {
    let cluster = Cluster::start().await;
    let owner = create_owner(&cluster).await;
    create_roles(&cluster).await;
    give_everything_by_default(&cluster).await;
    let app = Setup::new(Store::Postgres).server(owner).start().await;
    let books = Books::of(app).await;
    (cluster, books)
}

#[tokio::test]
async fn each_caller_sees_its_own_and_nothing_else() {
    let (cluster, books) = supabase().await;
    let mut api = DataApi::connect(&books.app.environment["DATABASE_URL"]).await;
    let (shown, wrong) = matrix(&books, &mut api).await;
    println!("{shown}");
    let advice = "a new table belongs into tollgate_tables(), see migration 0008";
    assert!(wrong.is_empty(), "{} findings ({advice}):\n{}", wrong.len(), wrong.join("\n"));

    // The right rows, and not only their number.
    let own = Caller::user("own", OWN);
    let sql = "SELECT id FROM usage_records WHERE account_id =";
    let rows = books.app.books.rows(&format!("{sql} '{}' ORDER BY id", books.own)).await;
    let ids = rows.iter().map(|row| row["id"].as_str().expect("an id").to_string());
    let ids: Vec<String> = ids.collect();
    assert_eq!(ids.len(), 2);
    let shown = api.ask(&own, "SELECT id::TEXT FROM usage_records ORDER BY id").await;
    assert_eq!(shown, Got::Rows(ids));
    let name = api.ask(&own, "SELECT name FROM accounts").await;
    assert_eq!(name, Got::Rows(vec!["test".to_string()]));

    // What is hidden does not show in conditions, orders and joins either.
    for question in [
        "SELECT id::TEXT FROM usage_records WHERE upstream_cost_pusd > 0",
        "SELECT id::TEXT FROM usage_records ORDER BY shortfall_nusd",
        "SELECT max(price_id) FROM usage_records",
        "SELECT k.id::TEXT FROM api_keys k WHERE secret_hash LIKE '0%'",
        "SELECT u.id::TEXT FROM usage_records u JOIN prices p ON p.model = u.model",
        "SELECT hash FROM ledger_entries",
    ] {
        assert_eq!(api.ask(&own, question).await, Got::Denied, "{question}");
    }
    api.close().await;
    books.app.finish().await;
    drop(cluster);
}

#[tokio::test]
async fn no_function_of_ours_is_offered() {
    let (cluster, books) = supabase().await;
    let sql = "SELECT p.proname AS name, r.rolname AS role FROM pg_proc p, pg_roles r \
        WHERE p.pronamespace = 'public'::regnamespace AND r.rolname IN ('anon', 'authenticated') \
        AND has_function_privilege(r.oid, p.oid, 'EXECUTE') ORDER BY 1, 2";
    let offered = books.app.books.rows(sql).await;
    let expected = serde_json::json!({"name": "tollgate_current_user_id", "role": "authenticated"});
    assert_eq!(offered, [expected]);
    // Nothing runs with the rights of its owner.
    let sql = "SELECT proname FROM pg_proc WHERE prosecdef AND proname LIKE 'tollgate%'";
    assert_eq!(books.app.books.rows(sql).await, Vec::<Value>::new());
    let sql = "SELECT relname FROM pg_class WHERE NOT relrowsecurity AND relkind IN ('r', 'p') \
        AND relnamespace = 'public'::regnamespace";
    assert_eq!(books.app.books.rows(sql).await, Vec::<Value>::new(), "without row level security");
    books.app.finish().await;
    drop(cluster);
}

/// A policy costs one look at the membership for a query, and none for each row.
#[tokio::test]
async fn policies_meet_indexes() {
    let (cluster, books) = supabase().await;
    let mut api = DataApi::connect(&books.app.environment["DATABASE_URL"]).await;
    let own = Caller::user("own", OWN);
    for (table, index) in [
        ("usage_records", "_account_id_id_idx"),
        ("ledger_entries", "ledger_entries_pkey"),
        ("accounts", "accounts_pkey"),
        ("api_keys", "api_keys_account"),
    ] {
        // Tables as small as these are read whole unless that is forbidden.
        let explain = format!("SET LOCAL enable_seqscan = off; EXPLAIN SELECT 1 FROM {table}");
        let Got::Rows(plan) = api.ask(&own, &explain).await else { panic!("{explain}") };
        let plan = plan.join("\n");
        for part in [index, "Index Cond", "members_pkey", "InitPlan"] {
            assert!(plan.contains(part), "{part} is not in the plan of {table}:\n{plan}");
        }
        assert!(!plan.contains("SubPlan"), "evaluated for each row of {table}:\n{plan}");
    }
    api.close().await;
    books.app.finish().await;
    drop(cluster);
}

/// Plain PostgreSQL first; then the roles come, then a dump is restored that gave all away.
#[tokio::test]
async fn grants_appear_when_the_roles_do_and_are_put_back() {
    let cluster = Cluster::start().await;
    let owner = create_owner(&cluster).await;
    let app = Setup::new(Store::Postgres).server(owner).start().await;
    let books = Books::of(app).await;
    let url = books.app.environment["DATABASE_URL"].clone();
    books.app.cli(&["migrate"]).await;

    create_roles(&cluster).await;
    let mut api = DataApi::connect(&url).await;
    let own = Caller::user("own", OWN);
    let anon = Caller { role: "anon", ..own.clone() };
    let (charges, costs) = (
        "SELECT charge_nusd::TEXT FROM usage_records",
        "SELECT upstream_cost_pusd::TEXT FROM usage_records",
    );
    assert_eq!(api.ask(&own, charges).await, Got::Denied);
    books.app.cli(&["migrate"]).await;
    let two = Got::Rows(vec!["147600".to_string(); 2]);
    assert_eq!(api.ask(&own, charges).await, two);
    assert_eq!(api.ask(&own, costs).await, Got::Denied);
    assert_eq!(api.ask(&anon, charges).await, Got::Denied);

    // Another table in the same schema is none of our business.
    books.app.books.tamper("CREATE TABLE notes (note TEXT)").await;
    execute(&url, "GRANT ALL ON ALL TABLES IN SCHEMA public TO anon, authenticated").await;
    assert!(matches!(api.ask(&own, costs).await, Got::Rows(_)), "the dump did give it away");
    let starts = join_all((0..4).map(|_| books.app.try_cli(&["migrate"]))).await;
    assert!(starts.iter().all(|ended| ended.status.success()), "{starts:?}");
    assert_eq!(api.ask(&anon, "SELECT note FROM notes").await, Got::Rows(Vec::new()));
    books.app.books.tamper("DROP TABLE notes").await;
    let (shown, wrong) = matrix(&books, &mut api).await;
    assert!(wrong.is_empty(), "{shown}\n{}", wrong.join("\n"));
    api.close().await;
    books.app.finish().await;
    drop(cluster);
}
