//! Calls that reach the books when their month was archived already, as from an outage's journal:
//! they are in no file, and stay.

use super::{CHARGE_NUSD, Calls, Past, at};
use crate::app::Store;

/// Calls of July that were entered in the middle of September.
const SECONDS: u64 = 70 * 24 * 3_600;

impl Past {
    async fn write_late(&self) {
        let own = self.of_test("2026-07", 900).await;
        let began = at("2026-07-03T10:00:00Z");
        self.write(&Calls { began, seconds: SECONDS, ..own }).await;
    }

    /// Names them, and puts the sums right, for whoever looks at the books in the end.
    async fn finish_with_late(self) {
        let said = self.app.try_cli(&["verify"]).await;
        assert!(!said.status.success() && said.stdout.contains("archive 2026-07"), "{said:?}");
        let sums = format!("charge_nusd = charge_nusd + {}", 3 * CHARGE_NUSD);
        let of = "WHERE month = '2026-07'";
        let archive = format!("UPDATE archives SET records = records + 3, {sums} {of}");
        self.app.books.tamper(&archive).await;
        let sums = format!("spent_nusd = spent_nusd + {}", 3 * CHARGE_NUSD);
        self.app.books.tamper(&format!("UPDATE archived_spending SET {sums} {of}")).await;
        self.finish().await;
    }
}

pub(super) async fn what_came_late_hinders_no_later_month(store: Store) {
    let past = Past::start(store).await;
    past.archive("2026-08").await;
    past.app.books.tamper("UPDATE archives SET archived_at = '2026-09-05T10:00:00.000000Z'").await;
    past.write_late().await;
    let ended = past.app.try_cli(&["archive", "--before", "2026-09", "--to", past.folder()]).await;
    assert!(ended.status.success(), "{ended:?}");
    assert!(ended.stdout.starts_with("2026-08: 3 usage records"), "{ended:?}");
    assert!(ended.stderr.contains("2026-07"), "it is said what stays: {ended:?}");
    assert_eq!(past.count("usage_records").await, 6);
    past.finish_with_late().await;
}

pub(super) async fn what_came_late_is_not_removed(store: Store) {
    let past = Past::start(store).await;
    let key = past.key_of(&past.app.account).await;
    let sums = 3 * CHARGE_NUSD;
    let begun = format!(
        "INSERT INTO archives (month, records, charge_nusd, corrections, difference_nusd, \
         manifest_hash, state, archived_at) VALUES ('2026-07', '3', '{sums}', '0', '0', 'x', \
         'removing', '2026-09-05T10:00:00.000000Z')"
    );
    past.app.books.tamper(&begun).await;
    let spent = format!(
        "INSERT INTO archived_spending (month, api_key_id, spent_nusd, corrections) \
         VALUES ('2026-07', '{key}', '{sums}', '0')"
    );
    past.app.books.tamper(&spent).await;
    past.write_late().await;
    assert_eq!(past.archive("2026-08").await, "2026-07: 3 usage records, x");
    assert_eq!(past.count("usage_records").await, 9, "three of twelve are gone");
    let late = "usage_records WHERE started_at >= '2026-07-03T00:00:00.000000Z' \
                AND started_at < '2026-08-01T00:00:00.000000Z'";
    assert_eq!(past.count(late).await, 3);
    assert_eq!(past.count("archives WHERE state = 'removed'").await, 1);
    past.finish_with_late().await;
}
