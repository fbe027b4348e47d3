//! The pages of OpenAI's usage and costs endpoints, as Tollgate writes them.
//!
//! Invariant: every member that OpenAI's types have room for and the books have a number for is
//! there; what the books do not know is null. Amounts are the exact decimals of integers.
//! <https://platform.openai.com/docs/api-reference/usage>

use crate::models::ids::{ApiKeyId, UserId};
use crate::models::money::{Tokens, Usd};
use serde::Serialize;

/// One page of buckets.
#[derive(Debug, Serialize)]
pub struct Page<T> {
    pub object: &'static str,
    pub data: Vec<Bucket<T>>,
    pub has_more: bool,
    pub next_page: Option<String>,
}

#[derive(Debug, Serialize)]
pub struct Bucket<T> {
    pub object: &'static str,
    /// Seconds since 1970.
    pub start_time: i64,
    pub end_time: i64,
    /// Empty where nothing was used.
    pub results: Vec<T>,
}

#[derive(Debug, Serialize)]
pub struct CompletionsResult {
    pub object: &'static str,
    pub input_tokens: Tokens,
    pub output_tokens: Tokens,
    pub input_cached_tokens: Tokens,
    pub input_cache_write_tokens: Tokens,
    /// Without the cached and the cache-write ones.
    pub input_uncached_tokens: Tokens,
    pub input_audio_tokens: Tokens,
    pub output_text_tokens: Tokens,
    pub output_audio_tokens: Tokens,
    pub output_image_tokens: Tokens,
    pub num_model_requests: i64,
    pub project_id: Option<String>,
    pub user_id: Option<UserId>,
    pub api_key_id: Option<ApiKeyId>,
    pub model: Option<String>,
    pub batch: Option<bool>,
    pub service_tier: Option<String>,
    pub api_source: Option<&'static str>,
}

#[derive(Debug, Serialize)]
pub struct CostsResult {
    pub object: &'static str,
    pub amount: Amount,
    pub line_item: Option<String>,
    pub quantity: Option<Tokens>,
    pub quantity_unit: Option<&'static str>,
    pub project_id: Option<String>,
    pub user_id: Option<UserId>,
    pub api_key_id: Option<ApiKeyId>,
    pub api_source: Option<&'static str>,
}

#[derive(Debug, Serialize)]
pub struct Amount {
    pub value: Usd,
    /// In lower case.
    pub currency: &'static str,
}
