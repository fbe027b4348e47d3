//! `tollgate reconcile` beside archives: what is in files is not taken for missing.

use tollgate::models::timestamp::Timestamp;

use super::{Calls, Past, at};
use crate::app::clock::Clock;
use crate::app::process::{self, Ended};
use crate::app::{Setup, Store};
use crate::billing::with_openmeter;
use crate::sinks::openmeter::OpenMeter;

/// As on the tenth of November, whatever day it is.
async fn reconcile(past: &Past, clock: &Clock, more: &[&str]) -> Ended {
    let tenth = at("2026-11-10T12:00:00Z").unix_millis() - Timestamp::now().unix_millis();
    clock.set(tenth / 1_000);
    let arguments = [&["reconcile", "--samples", "0"], more].concat();
    process::run(&arguments, &clock.of(&past.app.environment), past.app.folder()).await
}

pub(super) async fn archived_days_are_not_compared(store: Store) {
    let openmeter = OpenMeter::start().await;
    let app = with_openmeter(Setup::new(store), &openmeter).start().await;
    let past = Past::of(app, &["openmeter"]).await;
    let own = past.of_test("2026-10", 0).await;
    // The second ones are told to the sink on the first of November.
    for (number, began) in
        [(0, "2026-10-20T10:00:00Z"), (10, "2026-10-31T23:59:58Z"), (20, "2026-11-04T10:00:00Z")]
    {
        past.write(&Calls { began: at(began), seconds: 4, number, ..own }).await;
    }
    past.exported().await;
    let clock = Clock::default();
    let said = reconcile(&past, &clock, &[]).await;
    assert!(said.status.success(), "{said:?}");
    assert!(said.stdout.contains("compared: openmeter 3:"), "three days have calls: {said:?}");

    past.archive("2026-11").await;
    let said = reconcile(&past, &clock, &[]).await;
    assert!(said.status.success(), "{said:?}");
    assert!(said.stdout.contains("compared: openmeter 1:"), "{said:?}");
    let archived = |day: &str| said.stdout.contains(&format!("archive  {day}"));
    assert!(
        archived("2026-10-11") && archived("2026-11-02") && !archived("2026-11-03"),
        "{said:?}"
    );
    let said = reconcile(&past, &clock, &["--day", "2026-10-31"]).await;
    assert!(!said.status.success() && said.stderr.contains("archived"), "{said:?}");
    // What is still here is.
    openmeter.tamper(|events| {
        let last = events.values_mut().find(|event| event["time"].as_str() > Some("2026-11-02"));
        last.expect("an event")["data"]["charge_nusd"] = 1.into();
    });
    let said = reconcile(&past, &clock, &[]).await;
    assert!(!said.status.success() && said.stdout.contains("1 differences"), "{said:?}");
    past.finish().await;
}
