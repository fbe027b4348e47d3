//! Callers of several accounts, whose usage leaves rests of a unit, and what becomes of it in the
//! end.

use std::net::SocketAddr;

use futures::future::join_all;

use crate::app::{TestApp, in_its_time, streamed};
use crate::client::Exchange;
use crate::random::Random;
use crate::upstream::answer::Answer;
use crate::upstream::catalog::MODEL;

/// So many that no two sums of some calls' tokens are the same.
const TOKENS_MAX: usize = 50_000;

/// An account with a key, and who it is at Stripe.
pub struct Caller {
    pub account: String,
    pub key: String,
    pub customer: &'static str,
}

/// An account for each of these customers; one customer may have several.
pub async fn callers(app: &TestApp, customers: &[&'static str]) -> Vec<Caller> {
    let mut callers = Vec::new();
    for (number, customer) in customers.iter().enumerate() {
        let name = format!("caller-{number}");
        let more = ["--credit", "1000", "--stripe-customer", customer];
        let account = app.create_account(&name, &more).await;
        callers.push(Caller { account, key: app.create_key(&name, &[]).await, customer });
    }
    callers
}

/// So many calls at once, each caller's in turn, to these processes in turn.
pub async fn load(
    app: &TestApp,
    processes: &[SocketAddr],
    callers: &[Caller],
    calls: usize,
    random: &Random,
) {
    let tokens = || i64::try_from(1 + random.below(TOKENS_MAX)).expect("few");
    for _ in 0..calls {
        let answer = Answer::openrouter().no_cost().tokens(tokens(), tokens());
        app.upstream.script(answer.stream());
    }
    let calls = (0..calls).map(|number| {
        let ask = app.chat_ask(&streamed(MODEL)).bearer(&callers[number % callers.len()].key);
        let process = processes[number % processes.len()];
        async move { Exchange::open(process, &ask.bytes()).await.finish().await.ok() }
    });
    join_all(calls).await;
    app.settled().await;
}

/// Events that no sink has said yes to.
pub async fn waiting(app: &TestApp) -> usize {
    let events = app.books.events().await;
    events.iter().filter(|event| event.state != "exported").count()
}

/// Waits as long as ever fewer events wait: pauses may have grown longer than any patience.
pub async fn drained(app: &TestApp, random: &Random) {
    loop {
        let before = waiting(app).await;
        if before == 0 {
            return;
        }
        in_its_time(&format!("fewer than {before} wait ({random})"), async || {
            (waiting(app).await < before).then_some(())
        })
        .await;
    }
}
