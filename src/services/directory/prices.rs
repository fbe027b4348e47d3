//! The operator's table of prices, set while running.

use crate::error::Error;
use crate::models::audit::AuditEntry;
use crate::models::price::PriceTable;
use crate::models::timestamp::Timestamp;
use crate::services::catalog::OperatorTable;
use crate::store::Store;
use crate::store::prices::Next;
use serde_json::json;

/// Sets the table, in place of the one before it. One of the same text stays.
///
/// # Errors
/// [`Error::Invalid`] with what is wrong with the text, or the store's.
pub async fn set_price_table(
    store: &dyn Store,
    actor: &str,
    text: &str,
) -> Result<PriceTable, Error> {
    OperatorTable::parse(text).map_err(|fault| Error::invalid("text", fault.trim_end()))?;
    let now = Timestamp::now();
    let decide = |before: Option<PriceTable>| {
        let before = match before {
            Some(same) if same.text == text => return Next::Stays(same),
            before => before,
        };
        let table = PriceTable {
            version: before.as_ref().map_or(1, |before| before.version + 1),
            text: text.to_owned(),
            actor: actor.to_owned(),
            created_at: now,
        };
        let audit = AuditEntry::new(actor, "price_table.set", &table.version, now)
            .to(&json!({ "version": table.version, "text": table.text }));
        let audit = match before {
            Some(before) => audit.from(&json!({ "version": before.version, "text": before.text })),
            None => audit,
        };
        Next::Follows(table, audit)
    };
    Ok(store.put_price_table(&decide).await?)
}
