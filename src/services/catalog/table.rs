//! The operator's table (`TOLLGATE_PRICES`): retail prices, markups and plans.
//!
//! Rows are looked at in their order and the first that fits counts. A row with a plan fits that
//! plan's accounts only; a price counts from its `effective_at` on.

use crate::config::ConfigError;
use crate::error::Error;
use crate::models::account::AccountKind;
use crate::models::key::{KeyLimits, matches_pattern};
use crate::models::limits::{LimitsInForce, RateLimits};
use crate::models::money::{Markup, NanoUsd, PicoUsd, is_written_out};
use crate::models::price::Rates;
use crate::models::timestamp::Timestamp;
use crate::store::Store;
use serde::Deserialize;
use std::collections::BTreeSet;
use std::path::Path;

/// Every state of a table is kept, and the audit log has it once more.
const TABLE_BYTES_MAX: usize = 1 << 20;

#[derive(Clone, Debug, Default)]
pub struct OperatorTable {
    prices: Vec<PriceRow>,
    markups: Vec<MarkupRow>,
    plans: Vec<Plan>,
}

/// What accounts of a plan start with, what their keys get, and how fast both may go.
#[derive(Clone, Debug)]
pub struct Plan {
    pub name: String,
    pub kind: AccountKind,
    pub limit_nusd: Option<NanoUsd>,
    pub markup: Option<Markup>,
    pub key_limits: KeyLimits,
    /// Of accounts and keys without their own.
    pub rates: LimitsInForce,
}

impl Plan {
    fn limits(&self) -> impl Iterator<Item = NanoUsd> {
        let KeyLimits { day, week, month, total } = self.key_limits;
        [self.limit_nusd, day, week, month, total].into_iter().flatten()
    }
}

#[derive(Clone, Debug)]
struct PriceRow {
    model: String,
    plan: Option<String>,
    effective_at: Option<Timestamp>,
    rates: Rates,
}

#[derive(Clone, Debug)]
struct MarkupRow {
    model: String,
    plan: Option<String>,
    factor: Markup,
}

impl OperatorTable {
    /// Reads the file; without one the table is empty.
    pub fn read(path: Option<&str>) -> Result<Self, ConfigError> {
        let Some(path) = path else { return Ok(Self::default()) };
        let fault = |what: String| ConfigError(format!("TOLLGATE_PRICES: {what}"));
        let text = std::fs::read_to_string(Path::new(path)).map_err(|e| fault(e.to_string()))?;
        Self::parse(&text).map_err(fault)
    }

    /// The file where there is one, else the table that was set while running.
    ///
    /// # Errors
    /// Why it cannot be read.
    pub async fn in_force(store: &dyn Store, path: Option<&str>) -> Result<Self, Error> {
        if path.is_some() {
            return Self::read(path).map_err(|error| Error::Internal(error.to_string()));
        }
        match store.price_table().await? {
            Some(stored) => Self::stored(&stored.text).map_err(Error::Internal),
            None => Ok(Self::default()),
        }
    }

    /// As an operator writes it.
    ///
    /// # Errors
    /// What is wrong with it, for whoever wrote it.
    pub fn parse(text: &str) -> Result<Self, String> {
        if text.len() > TABLE_BYTES_MAX {
            return Err(format!("it is larger than {TABLE_BYTES_MAX} bytes"));
        }
        let file = File::parse(text)?;
        if let Some(amount) = file.amounts().find(|text| !is_written_out(text)) {
            return Err(format!("«{amount}» is not a number that is written out, like 0.15"));
        }
        Self::of(&file)
    }

    /// One that was taken once: earlier versions took numbers that are not written out.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn stored(text: &str) -> Result<Self, String> {
        Self::of(&File::parse(text)?)
    }

    fn of(file: &File) -> Result<Self, String> {
        let table = file.read().map_err(|Unreadable(text)| {
            format!(
                "«{text}» is neither a decimal number in quotes, nor an RFC 3339 time, nor a rate \
                 of 1 or more"
            )
        })?;
        table.check()?;
        Ok(table)
    }

    /// What reads well and cannot be meant. A plan's name is stored and shown, and two plans of one
    /// name, or rows for a plan that is none, would be passed over in silence.
    fn check(&self) -> Result<(), String> {
        let mut names = BTreeSet::new();
        for plan in &self.plans {
            let name = plan.name.as_str();
            if name.trim().is_empty() || name.chars().any(char::is_control) {
                return Err(format!("a plan cannot be called «{}»", name.escape_debug()));
            }
            if !names.insert(name) {
                return Err(format!("there are two plans «{name}»"));
            }
            if plan.kind == AccountKind::Prepaid && plan.limit_nusd.is_some() {
                return Err(format!("plan «{name}» is prepaid, and only postpaid has a limit"));
            }
            if plan.limits().any(|limit| limit < NanoUsd::ZERO) {
                return Err(format!("plan «{name}» has a limit below zero"));
            }
        }
        let prices = self.prices.iter().map(|row| row.plan.as_deref());
        let mut rows = prices.chain(self.markups.iter().map(|row| row.plan.as_deref())).flatten();
        match rows.find(|plan| !names.contains(plan)) {
            Some(plan) => Err(format!("a row is for the plan «{plan}», which is not in the table")),
            None => Ok(()),
        }
    }

    /// The fixed retail price of a model, now.
    pub fn rates(&self, model: &str, plan: &str, now: Timestamp) -> Option<Rates> {
        let fits = |row: &&PriceRow| {
            matches_pattern(&row.model, model)
                && fits_plan(row.plan.as_deref(), plan)
                && row.effective_at.is_none_or(|at| at <= now)
        };
        self.prices.iter().find(fits).map(|row| row.rates)
    }

    /// The markup of a model: a row's, else the plan's.
    pub fn markup(&self, model: &str, plan: &str) -> Option<Markup> {
        let fits = |row: &&MarkupRow| {
            matches_pattern(&row.model, model) && fits_plan(row.plan.as_deref(), plan)
        };
        let row = self.markups.iter().find(fits).map(|row| row.factor);
        row.or_else(|| self.plan(plan)?.markup)
    }

    /// The markups that fit accounts of a plan, in their order.
    pub fn markups_of(&self, plan: &str) -> impl Iterator<Item = (&str, Markup)> {
        let fits = move |row: &&MarkupRow| fits_plan(row.plan.as_deref(), plan);
        self.markups.iter().filter(fits).map(|row| (row.model.as_str(), row.factor))
    }

    pub fn plan(&self, name: &str) -> Option<&Plan> {
        self.plans.iter().find(|plan| plan.name == name)
    }

    pub fn plans(&self) -> impl Iterator<Item = &str> {
        self.plans.iter().map(|plan| plan.name.as_str())
    }

    /// When the next price begins to count.
    pub fn next_change(&self, now: Timestamp) -> Option<Timestamp> {
        self.prices.iter().filter_map(|row| row.effective_at).filter(|at| *at > now).min()
    }
}

fn fits_plan(wanted: Option<&str>, plan: &str) -> bool {
    wanted.is_none_or(|wanted| wanted == plan)
}

// === the file ===

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    price: Vec<FilePrice>,
    #[serde(default)]
    markup: Vec<FileMarkup>,
    #[serde(default)]
    plan: Vec<FilePlan>,
}

/// Prices are texts, because a TOML number with a fraction is a float.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FilePrice {
    model: String,
    plan: Option<String>,
    effective_at: Option<String>,
    prompt_usd_per_mtok: String,
    completion_usd_per_mtok: String,
    cached_usd_per_mtok: Option<String>,
    cache_write_usd_per_mtok: Option<String>,
    cache_write_1h_usd_per_mtok: Option<String>,
    reasoning_usd_per_mtok: Option<String>,
    audio_prompt_usd_per_mtok: Option<String>,
    audio_completion_usd_per_mtok: Option<String>,
    image_completion_usd_per_mtok: Option<String>,
    request_usd: Option<String>,
    web_search_usd: Option<String>,
    input_image_usd: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FileMarkup {
    model: String,
    plan: Option<String>,
    factor: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FilePlan {
    name: String,
    #[serde(default)]
    postpaid: bool,
    limit_usd_per_month: Option<String>,
    markup: Option<String>,
    key_usd_per_day: Option<String>,
    key_usd_per_week: Option<String>,
    key_usd_per_month: Option<String>,
    key_usd_total: Option<String>,
    requests_per_minute: Option<i64>,
    tokens_per_minute: Option<i64>,
    concurrent_requests: Option<i64>,
    key_requests_per_minute: Option<i64>,
    key_tokens_per_minute: Option<i64>,
    key_concurrent_requests: Option<i64>,
}

/// A text that does not say what it should.
struct Unreadable(String);

fn must<T>(text: &str, read: impl Fn(&str) -> Option<T>) -> Result<T, Unreadable> {
    read(text).ok_or_else(|| Unreadable(text.to_owned()))
}

fn may<T>(
    text: Option<&String>,
    read: impl Fn(&str) -> Option<T>,
) -> Result<Option<T>, Unreadable> {
    text.map(|text| must(text, read)).transpose()
}

/// A limit of nothing is a suspended account, and that is said elsewhere.
fn rate(limit: Option<i64>) -> Result<Option<i64>, Unreadable> {
    match limit {
        Some(limit) if limit < 1 => Err(Unreadable(limit.to_string())),
        limit => Ok(limit),
    }
}

impl File {
    fn parse(text: &str) -> Result<Self, String> {
        toml::from_str(text).map_err(|error| error.to_string())
    }

    /// Every amount and factor.
    fn amounts(&self) -> impl Iterator<Item = &str> {
        let prices = self.price.iter().flat_map(FilePrice::amounts);
        let factors = self.markup.iter().map(|row| &row.factor);
        let plans = self.plan.iter().flat_map(FilePlan::amounts);
        prices.chain(factors).chain(plans).map(String::as_str)
    }

    fn read(&self) -> Result<OperatorTable, Unreadable> {
        Ok(OperatorTable {
            prices: self.price.iter().map(FilePrice::read).collect::<Result<_, _>>()?,
            markups: self.markup.iter().map(FileMarkup::read).collect::<Result<_, _>>()?,
            plans: self.plan.iter().map(FilePlan::read).collect::<Result<_, _>>()?,
        })
    }
}

impl FilePrice {
    fn amounts(&self) -> impl Iterator<Item = &String> {
        let always = [&self.prompt_usd_per_mtok, &self.completion_usd_per_mtok];
        let others = [
            &self.cached_usd_per_mtok,
            &self.cache_write_usd_per_mtok,
            &self.cache_write_1h_usd_per_mtok,
            &self.reasoning_usd_per_mtok,
            &self.audio_prompt_usd_per_mtok,
            &self.audio_completion_usd_per_mtok,
            &self.image_completion_usd_per_mtok,
            &self.request_usd,
            &self.web_search_usd,
            &self.input_image_usd,
        ];
        always.into_iter().chain(others.into_iter().flatten())
    }

    fn read(&self) -> Result<PriceRow, Unreadable> {
        let per_million =
            |text: &Option<String>| may(text.as_ref(), PicoUsd::parse_usd_per_million);
        let each = |text: &Option<String>| may(text.as_ref(), PicoUsd::parse_usd);
        let rates = Rates {
            prompt: must(&self.prompt_usd_per_mtok, PicoUsd::parse_usd_per_million)?,
            completion: must(&self.completion_usd_per_mtok, PicoUsd::parse_usd_per_million)?,
            cache_read: per_million(&self.cached_usd_per_mtok)?,
            cache_write: per_million(&self.cache_write_usd_per_mtok)?,
            cache_write_1h: per_million(&self.cache_write_1h_usd_per_mtok)?,
            reasoning: per_million(&self.reasoning_usd_per_mtok)?,
            audio_prompt: per_million(&self.audio_prompt_usd_per_mtok)?,
            audio_completion: per_million(&self.audio_completion_usd_per_mtok)?,
            image_completion: per_million(&self.image_completion_usd_per_mtok)?,
            request: each(&self.request_usd)?,
            web_search: each(&self.web_search_usd)?,
            input_image: each(&self.input_image_usd)?,
        };
        let effective_at = may(self.effective_at.as_ref(), Timestamp::parse)?;
        let (model, plan) = (self.model.clone(), self.plan.clone());
        Ok(PriceRow { model, plan, effective_at, rates })
    }
}

impl FileMarkup {
    fn read(&self) -> Result<MarkupRow, Unreadable> {
        let factor = must(&self.factor, Markup::parse)?;
        Ok(MarkupRow { model: self.model.clone(), plan: self.plan.clone(), factor })
    }
}

impl FilePlan {
    fn amounts(&self) -> impl Iterator<Item = &String> {
        let all = [
            &self.limit_usd_per_month,
            &self.markup,
            &self.key_usd_per_day,
            &self.key_usd_per_week,
            &self.key_usd_per_month,
            &self.key_usd_total,
        ];
        all.into_iter().flatten()
    }

    fn read(&self) -> Result<Plan, Unreadable> {
        let usd = |text: &Option<String>| may(text.as_ref(), NanoUsd::parse_usd);
        Ok(Plan {
            name: self.name.clone(),
            kind: if self.postpaid { AccountKind::Postpaid } else { AccountKind::Prepaid },
            limit_nusd: usd(&self.limit_usd_per_month)?,
            markup: may(self.markup.as_ref(), Markup::parse)?,
            key_limits: KeyLimits {
                day: usd(&self.key_usd_per_day)?,
                week: usd(&self.key_usd_per_week)?,
                month: usd(&self.key_usd_per_month)?,
                total: usd(&self.key_usd_total)?,
            },
            rates: LimitsInForce {
                account: RateLimits {
                    requests_per_minute: rate(self.requests_per_minute)?,
                    tokens_per_minute: rate(self.tokens_per_minute)?,
                    concurrent_requests: rate(self.concurrent_requests)?,
                },
                key: RateLimits {
                    requests_per_minute: rate(self.key_requests_per_minute)?,
                    tokens_per_minute: rate(self.key_tokens_per_minute)?,
                    concurrent_requests: rate(self.key_concurrent_requests)?,
                },
            },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &str = r#"
        [[price]]
        model = "house/*"
        plan = "pro"
        prompt_usd_per_mtok = "1"
        completion_usd_per_mtok = "2"
        [[price]]
        model = "house/*"
        effective_at = "2027-01-01T00:00:00Z"
        prompt_usd_per_mtok = "5"
        completion_usd_per_mtok = "5"
        [[price]]
        model = "house/*"
        prompt_usd_per_mtok = "3"
        completion_usd_per_mtok = "4"
        [[markup]]
        model = "anthropic/*"
        factor = "1.5"
        [[plan]]
        name = "pro"
        postpaid = true
        limit_usd_per_month = "100"
        markup = "1.1"
        key_usd_per_day = "2.50"
        requests_per_minute = 600
        key_tokens_per_minute = 40000
    "#;

    #[test]
    fn the_first_row_that_fits_counts() {
        let table = OperatorTable::parse(TABLE).unwrap();
        let at = |time| Timestamp::parse(time).unwrap();
        let (before, after) = (at("2026-12-31T23:59:59Z"), at("2027-01-01T00:00:00Z"));
        let prompt = |plan, now| table.rates("house/m", plan, now).unwrap().prompt;
        assert_eq!(prompt("pro", after), PicoUsd(1_000_000));
        assert_eq!(prompt("", before), PicoUsd(3_000_000));
        assert_eq!(prompt("", after), PicoUsd(5_000_000));
        assert!(table.rates("other", "", after).is_none());
        assert_eq!(table.next_change(before), Some(after));
        assert_eq!(table.next_change(after), None);
        assert_eq!(table.markup("anthropic/x", "pro"), Some(Markup(1_500_000)));
        assert_eq!(table.markup("openai/x", "pro"), Some(Markup(1_100_000)));
        assert_eq!(table.markup("openai/x", ""), None);
        let plan = table.plan("pro").unwrap();
        assert_eq!(plan.key_limits.day, Some(NanoUsd(2_500_000_000)));
        assert_eq!(plan.rates.account.requests_per_minute, Some(600));
        assert_eq!(plan.rates.account.tokens_per_minute, None);
        assert_eq!(plan.rates.key.tokens_per_minute, Some(40_000));
    }

    #[test]
    fn every_amount_is_written_out_but_in_a_table_that_was_taken_before() {
        let price = |more: &str| {
            let row = "[[price]]\nmodel = \"m\"\nprompt_usd_per_mtok = \"1\"\n\
                       completion_usd_per_mtok = \"2\"\n";
            format!("{row}{more}")
        };
        let files = [
            price("cached_usd_per_mtok = \"#\""),
            price("cache_write_usd_per_mtok = \"#\""),
            price("cache_write_1h_usd_per_mtok = \"#\""),
            price("reasoning_usd_per_mtok = \"#\""),
            price("audio_prompt_usd_per_mtok = \"#\""),
            price("audio_completion_usd_per_mtok = \"#\""),
            price("image_completion_usd_per_mtok = \"#\""),
            price("request_usd = \"#\""),
            price("web_search_usd = \"#\""),
            price("input_image_usd = \"#\""),
            price("").replace("\"1\"", "\"#\""),
            price("").replace("\"2\"", "\"#\""),
            "[[markup]]\nmodel = \"m\"\nfactor = \"#\"".to_owned(),
            "[[plan]]\nname = \"p\"\npostpaid = true\nlimit_usd_per_month = \"#\"".to_owned(),
            "[[plan]]\nname = \"p\"\nmarkup = \"#\"".to_owned(),
            "[[plan]]\nname = \"p\"\nkey_usd_per_day = \"#\"".to_owned(),
            "[[plan]]\nname = \"p\"\nkey_usd_per_week = \"#\"".to_owned(),
            "[[plan]]\nname = \"p\"\nkey_usd_per_month = \"#\"".to_owned(),
            "[[plan]]\nname = \"p\"\nkey_usd_total = \"#\"".to_owned(),
        ];
        for file in files {
            OperatorTable::parse(&file.replace('#', "1.5")).unwrap();
            for odd in ["1e1", "1.", "-0"] {
                let file = file.replace('#', odd);
                let fault = OperatorTable::parse(&file).unwrap_err();
                assert!(fault.contains(&format!("«{odd}»")), "{file}: {fault}");
                assert!(OperatorTable::stored(&file).is_ok(), "{file}");
            }
        }
    }

    #[test]
    fn a_fault_in_the_file_is_said() {
        for file in [
            "[[price]]\nmodel = \"m\"\nprompt_usd_per_mtok = \"x\"\ncompletion_usd_per_mtok = \"1\"",
            "[[price]]\nmodel = \"m\"\nprompt_usd_per_mtok = 1.5\ncompletion_usd_per_mtok = \"1\"",
            "[[plan]]\nname = \"p\"\nlimmit = \"1\"",
            "[[plan]]\nname = \"p\"\nrequests_per_minute = 0",
            "[[markup]]\nmodel = \"m\"\nfactor = \"-1\"",
            "[[markup]]\nmodel = \"m\"\nfactor = \"1\"\nplan = \"nowhere\"",
            "[[plan]]\nname = \"\"",
            "[[plan]]\nname = \"a\\u0000\"",
            "[[plan]]\nname = \"p\"\n[[plan]]\nname = \"p\"",
            "[[plan]]\nname = \"p\"\nkey_usd_total = \"-1\"",
            "[[plan]]\nname = \"p\"\nlimit_usd_per_month = \"1\"",
        ] {
            assert!(OperatorTable::parse(file).is_err(), "{file}");
        }
    }
}
