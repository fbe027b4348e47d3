//! Billing events that an operator tries again, dismisses or keeps back, and what one says of the
//! exports they were merged into.

use super::{REASON_CHARACTERS_MAX, check_text, shown};
use crate::error::Error;
use crate::models::audit::AuditEntry;
use crate::models::billing::{BillingEvent, Export, reasons};
use crate::models::timestamp::Timestamp;
use crate::store::Store;
use crate::store::exports::corrected::Word;

/// Parked events wait again, together with what they were merged with; gives their number.
///
/// # Errors
/// The store's.
pub async fn retry_events(store: &dyn Store, actor: &str, ids: &[String]) -> Result<u64, Error> {
    let now = Timestamp::now();
    Ok(store.retry_events(ids, &told(actor, "event.retry", now), now).await?)
}

/// Parked events, and what they were merged with, are dealt with by other means: they are not sent
/// any more. Gives their number, without those of which something is on its way or may be there.
///
/// # Errors
/// The store's.
pub async fn dismiss_events(store: &dyn Store, actor: &str, ids: &[String]) -> Result<u64, Error> {
    let now = Timestamp::now();
    Ok(store.dismiss_events(ids, &told(actor, "event.dismiss", now), now).await?)
}

/// Keeps waiting events back until they are tried again; gives their number. What is on its way to
/// a sink in a merged event cannot be kept back.
///
/// # Errors
/// [`Error::Invalid`] for the reason, or the store's.
pub async fn park_events(
    store: &dyn Store,
    actor: &str,
    ids: &[String],
    reason: &str,
) -> Result<u64, Error> {
    check_text("reason", reason, REASON_CHARACTERS_MAX)?;
    // They mean something to the program: what an operator has parked would not stay so.
    if reasons::ALL.contains(&reason) {
        return Err(Error::invalid("reason", "this word is the program's own"));
    }
    let now = Timestamp::now();
    Ok(store.park_events(ids, reason, &told(actor, "event.park", now), now).await?)
}

fn told(
    actor: &str,
    action: &'static str,
    now: Timestamp,
) -> impl Fn(&BillingEvent, &BillingEvent) -> AuditEntry + Sync {
    move |before, after| {
        AuditEntry::new(actor, action, &after.id, now)
            .of_account(after.account_id)
            .from(&shown(before))
            .to(&shown(after))
    }
}

/// Takes a person's word for what became of exports; gives the number of those that it fits.
///
/// # Errors
/// The store's.
pub async fn correct_exports(
    store: &dyn Store,
    actor: &str,
    ids: &[String],
    word: Word,
) -> Result<u64, Error> {
    let now = Timestamp::now();
    let action = match word {
        Word::Counted => "export.counted",
        Word::Missing => "export.missing",
    };
    let told = |before: &Export, after: &Export| {
        AuditEntry::new(actor, action, &after.id, now).from(&shown(before)).to(&shown(after))
    };
    Ok(store.correct_exports(ids, word, &told, now).await?)
}
