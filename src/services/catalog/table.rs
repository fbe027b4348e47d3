//! The operator's table (`TOLLGATE_PRICES`): retail prices, markups and plans.
//!
//! Rows are looked at in their order and the first that fits counts. A row with a plan fits that
//! plan's accounts only; a price counts from its `effective_at` on.

use crate::config::ConfigError;
use crate::error::Error;
use crate::models::account::AccountKind;
use crate::models::key::{KeyLimits, matches_pattern};
use crate::models::limits::{LimitsInForce, RateLimits};
use crate::models::money::{Markup, NanoUsd, PicoUsd, Tokens, is_written_out};
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
    completion_tokens_max: Option<Tokens>,
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
            return Err(format!("'{amount}' is not a number that is written out, like 0.15"));
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
                "'{text}' is neither a decimal number in quotes, nor an RFC 3339 time, nor a rate \
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
                return Err(format!("a plan cannot be called '{}'", name.escape_debug()));
            }
            if !names.insert(name) {
                return Err(format!("there are two plans '{name}'"));
            }
            if plan.kind == AccountKind::Prepaid && plan.limit_nusd.is_some() {
                return Err(format!("plan '{name}' is prepaid, and only postpaid has a limit"));
            }
            if plan.limits().any(|limit| limit < NanoUsd::ZERO) {
                return Err(format!("plan '{name}' has a limit below zero"));
            }
        }
        let prices = self.prices.iter().map(|row| row.plan.as_deref());
        let mut rows = prices.chain(self.markups.iter().map(|row| row.plan.as_deref())).flatten();
        match rows.find(|plan| !names.contains(plan)) {
            Some(plan) => Err(format!("a row is for the plan '{plan}', which is not in the table")),
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

    /// The most that a model answers, where its upstream does not say.
    pub fn completion_tokens_max(&self, model: &str) -> Option<Tokens> {
        let fits = |row: &&PriceRow| matches_pattern(&row.model, model);
        self.prices.iter().filter(fits).find_map(|row| row.completion_tokens_max)
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
    completion_tokens_max: Option<i64>,
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
        let completion_tokens_max = rate(self.completion_tokens_max)?.map(Tokens);
        Ok(PriceRow { model, plan, effective_at, rates, completion_tokens_max })
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
mod tests;
