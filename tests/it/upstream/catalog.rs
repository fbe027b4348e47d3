//! The upstream's lists of models and prices, in the forms of OpenRouter, OpenAI and LiteLLM.

use serde_json::{Value, json};

/// Known to tiktoken; 150 nano-USD a prompt token, 75 when cached, 600 a completion token.
pub const MODEL: &str = "openai/gpt-4o-mini";
/// Priced 1,000 and 2,000 nano-USD, of a family that tiktoken has no vocabulary for.
pub const FOREIGN_MODEL: &str = "vendor/own-tokens";
/// Tokenised with cl100k_base; 30,000 and 60,000 nano-USD a token.
pub const OLD_MODEL: &str = "openai/gpt-4";
/// Two slashes and a suffix; free of charge.
pub const FREE_MODEL: &str = "vendor/family/deep:free";
/// Listed without a usable price.
pub const UNPRICED_MODEL: &str = "vendor/unpriced";
/// Listed with OpenRouter's mark for a variable price.
pub const VARIABLE_MODEL: &str = "router/variable";

pub fn openrouter_models() -> Value {
    json!({ "data": [
        openrouter_model(MODEL, &json!({
            "prompt": "0.00000015",
            "completion": "0.0000006",
            "input_cache_read": "0.000000075",
        })),
        openrouter_model(FOREIGN_MODEL, &json!({"prompt": "0.000001", "completion": "0.000002"})),
        openrouter_model(OLD_MODEL, &json!({"prompt": "0.00003", "completion": "0.00006"})),
        openrouter_model(FREE_MODEL, &json!({"prompt": "0", "completion": "0"})),
        openrouter_model(VARIABLE_MODEL, &json!({"prompt": "-1", "completion": "-1"})),
        openrouter_model(UNPRICED_MODEL, &Value::Null),
    ] })
}

fn openrouter_model(id: &str, pricing: &Value) -> Value {
    json!({
        "id": id,
        "canonical_slug": id,
        "name": id,
        "created": 1_721_260_800,
        "context_length": 128_000,
        "architecture": {"tokenizer": "GPT", "modality": "text->text"},
        "pricing": pricing,
        "top_provider": {"max_completion_tokens": 16384, "is_moderated": true},
        "supported_parameters": ["max_tokens", "tools"],
    })
}

/// `GET /v1/models` of OpenAI and of a LiteLLM proxy: ids only.
pub fn openai_models() -> Value {
    let models = ["gpt-4o-mini", "gpt-4", "local/own-tokens", "unpriced-model"];
    let data = models.map(
        |id| json!({"id": id, "object": "model", "created": 1_721_260_800, "owned_by": "openai"}),
    );
    json!({"object": "list", "data": data})
}

/// `GET /model/info` of a LiteLLM proxy; one model there has no price.
pub fn litellm_model_info() -> Value {
    let priced = json!({
        "input_cost_per_token": 1.5e-7,
        "output_cost_per_token": 6e-7,
        "cache_read_input_token_cost": 7.5e-8,
        "mode": "chat",
    });
    json!({ "data": [
        {"model_name": "gpt-4o-mini", "litellm_params": {"model": "gpt-4o-mini"}, "model_info": priced},
        {"model_name": "unpriced-model", "litellm_params": {"model": "x"}, "model_info": {
            "input_cost_per_token": null, "output_cost_per_token": null, "mode": "chat",
        }},
    ] })
}

/// The operator's table for the kind `openai`, whose list of models carries no prices.
pub const PRICES_TOML: &str = r#"
[[price]]
model = "gpt-4o-mini*"
prompt_usd_per_mtok = "0.15"
completion_usd_per_mtok = "0.60"
cached_usd_per_mtok = "0.075"

[[price]]
model = "gpt-4"
prompt_usd_per_mtok = "30"
completion_usd_per_mtok = "60"

[[price]]
model = "local/*"
prompt_usd_per_mtok = "1"
completion_usd_per_mtok = "2"
"#;
