//! Several upstreams, two of each kind that keeps a list: what is wrong at one of them is named as
//! its own, by its own name for the model, and of the others nothing is.

use std::collections::BTreeSet;

use super::{Said, calls, calls_of, price_of, reconcile};
use crate::app::{Setup, Store, TestApp};
use crate::random::Random;
use crate::seed;
use crate::upstream::Upstream;
use crate::upstream::catalog;
use crate::upstream::listed::{Listed, MANAGEMENT_KEY};

const CALLS: usize = 60;
/// The only model of a LiteLLM proxy here.
const PROXYS_MODEL: &str = "gpt-4o-mini";

/// An entry of the file. Clients know its models with `prefix` before their names.
struct Entry {
    name: &'static str,
    kind: &'static str,
    prefix: &'static str,
}

const ENTRIES: [Entry; 5] = [
    Entry { name: "east", kind: "openrouter", prefix: "" },
    Entry { name: "west", kind: "openrouter", prefix: "west/" },
    Entry { name: "house", kind: "litellm", prefix: "house/" },
    Entry { name: "guest", kind: "litellm", prefix: "guest/" },
    // At the first one's address, whose sums are of both.
    Entry { name: "east-eu", kind: "openrouter", prefix: "eu/" },
];
/// As findings name them, by server.
const NAMES: [&str; 4] = ["east+east-eu", "west", "house", "guest"];

impl Entry {
    fn text(&self, url: &str) -> String {
        let Self { name, kind, prefix } = self;
        format!(
            "[[upstream]]\nname = \"{name}\"\nkind = \"{kind}\"\nbase_url = \"{url}\"\n\
             api_key_env = \"UPSTREAM_API_KEY\"\nprefix = \"{prefix}\"\n\n"
        )
    }

    async fn record(&self, app: &TestApp, rows: &[Listed], first: u64) {
        let store = seed::open(&app.database_url(), &[]).await;
        let models: BTreeSet<&str> = rows.iter().map(|row| row.model.as_str()).collect();
        for (index, model) in (0_u64..).zip(models) {
            let offered = format!("{}{model}", self.prefix);
            let price = price_of(app, store.as_ref(), &offered).await;
            let calls = calls_of(rows, model, self.name);
            seed::write(store.as_ref(), &price, &calls, first + index * 10_000).await;
        }
    }
}

/// The program, and by server who is there and what they have of it.
struct World {
    app: TestApp,
    others: Vec<Upstream>,
    rows: [Vec<Listed>; 4],
}

impl World {
    async fn start(store: Store, random: &Random) -> Self {
        let first = Upstream::start(catalog::openrouter_models()).await;
        let mut others = vec![Upstream::start(catalog::openrouter_models()).await];
        for _ in 0..2 {
            others.push(Upstream::start(catalog::openai_models()).await);
        }
        let servers = [&first, &others[0], &others[1], &others[2], &first];
        let file = ENTRIES.iter().zip(servers).map(|(entry, server)| entry.text(&server.url()));
        let setup = Setup::new(store).credit("1000000").upstreams(file.collect());
        let setup = setup.env("OPENROUTER_MANAGEMENT_KEY", MANAGEMENT_KEY);
        let app = setup.start_with(first).await;
        let users = [(app.account.clone(), String::new())];
        let mut rows: [Vec<Listed>; 4] = Default::default();
        for (number, entry) in (0_u64..).zip(&ENTRIES) {
            let mut own = calls(entry.name, CALLS, &users, random);
            if entry.kind == "litellm" {
                for row in &mut own {
                    row.model = PROXYS_MODEL.to_string();
                }
            }
            entry.record(&app, &own, 1 + number * 1_000_000).await;
            let server = usize::try_from(number).expect("few") % NAMES.len();
            rows[server].extend(own);
        }
        Self { app, others, rows }
    }

    /// Runs it on what they have now.
    async fn reconcile(&self) -> Said {
        let servers = [&self.app.upstream].into_iter().chain(&self.others);
        for (server, rows) in servers.zip(&self.rows) {
            server.list(rows.clone());
        }
        reconcile(&self.app, &[]).await
    }
}

/// The differences: against whom, and the sum or the call.
fn named(said: &Said) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    for (against, is_list) in NAMES.into_iter().zip([false, false, true, true]) {
        let members: &[&str] = if is_list { &["call"] } else { &["day", "model"] };
        names.extend(said.named(against, members).iter().map(|name| format!("{against} {name}")));
    }
    assert_eq!(names.len(), said.of("difference").len(), "{:#?}", said.findings);
    names
}

/// Of a sum.
fn name(against: &str, row: &Listed) -> String {
    format!("{against} {} {}", row.at.date(), row.model)
}

pub async fn what_is_wrong_at_one_of_several_is_named_as_its_own(store: Store) {
    let random = Random::from_environment();
    let mut world = World::start(store, &random).await;
    let said = world.reconcile().await;
    assert!(said.is_content && said.findings.is_empty(), "{random}: {:#?}", said.findings);
    let mut expected = BTreeSet::new();
    // A token at one OpenRouter, a micro-USD at the other.
    let place = random.below(CALLS);
    // The one of two behind the address whose rows come second.
    let row = &mut world.rows[0][CALLS + place];
    row.completion += 1;
    expected.insert(name(NAMES[0], row));
    let row = &mut world.rows[1][place];
    row.cost_pico += 1_000_000;
    expected.insert(name(NAMES[1], row));
    // A call that one proxy has and the other answered, as if they were mistaken for each other.
    let row = world.rows[2].remove(place);
    expected.extend([format!("house {}", row.id), format!("guest {}", row.id)]);
    world.rows[3].push(row);
    let row = &mut world.rows[3][place];
    row.prompt += 1;
    expected.insert(format!("guest {}", row.id));
    let said = world.reconcile().await;
    assert!(!said.is_content, "{random}");
    assert_eq!(named(&said), expected, "{random}");
    // One that is away is no agreement, and keeps nobody from being compared.
    world.others[1].stop().await;
    let said = world.reconcile().await;
    let unread: BTreeSet<&str> =
        said.of("unread").iter().filter_map(|row| row["against"].as_str()).collect();
    assert_eq!(unread, ["house"].into(), "{random}: {:#?}", said.findings);
    expected.retain(|name| !name.starts_with("house "));
    assert_eq!(named(&said), expected, "{random}");
    world.app.finish().await;
}
