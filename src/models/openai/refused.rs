//! Members of a request that are refused, whatever they say, but for null in most of them.
//!
//! Invariant: nothing passes that is known to change the model, its price, its cap, an answer's
//! length, whose upstream is called or what it tells of its usage, behind admission's back.

use serde_json::value::RawValue;

/// OpenRouter's `models` bills the model that answered; its `debug` shows what its operator sends.
/// Anthropic's `speed` multiplies the price; xAI's `deferred` gives an answer that has no usage;
/// vLLM's `prompt_logprobs` makes one that is longer than any estimate.
const OF_OTHERS: &[&str] = &["models", "preset", "speed", "debug", "deferred", "prompt_logprobs"];

/// Names of the cap that no hold goes by, and that some upstreams obey before its own.
const CAPS: &[&str] = &[
    "max_output_tokens",
    "maxoutputtokens",
    "max_new_tokens",
    "max_tokens_to_sample",
    "n_predict",
    "num_predict",
];

/// What LiteLLM takes from a client and makes a setting of its call: another model after a failure
/// that the client can bring about, another upstream, a prompt that nobody has counted, a cap taken
/// away. From `all_litellm_params` of its 1.109.
/// <https://github.com/BerriAI/litellm/blob/main/litellm/types/utils.py>
const LITELLMS: &[&str] = &[
    "additional_drop_params",
    "api_base",
    "api_key",
    "base_model",
    "base_url",
    "client_side_timeout",
    "complete_response",
    "context_window_fallback_dict",
    "custom_llm_provider",
    "extra_body",
    "extra_headers",
    "extra_query",
    "fallbacks",
    "force_timeout",
    "headers",
    "hf_model_name",
    "max_agentic_loops",
    "max_fallbacks",
    "max_retries",
    "model_alias_map",
    "model_config",
    "model_info",
    "model_list",
    "num_retries",
    "prompt_id",
    "prompt_label",
    "prompt_variables",
    "prompt_version",
    "provider_specific_header",
    "request_timeout",
    "retry_policy",
    "retry_strategy",
    "router_settings_override",
    "search_tool_name",
    "silent_model",
    "stream_timeout",
    "text_completion",
    "tiered_pricing",
    "timeout",
    "use_litellm_proxy",
    "user_config",
];

/// How the names begin of what LiteLLM sets itself on its way, and of what makes it answer without
/// a model.
const BEGINNINGS: &[&str] = &["_", "litellm_", "mock_"];
/// … but for those by which a client only names its calls.
const NAMES: &[&str] = &["litellm_session_id", "litellm_trace_id"];
/// How the other lists of models to turn to end.
const FALLBACKS: &str = "_fallbacks";
/// What is in the names of all prices by which LiteLLM says what an answer cost.
const PRICES: &[&str] = &["cost_per_", "token_cost"];

/// `name` without its case. Clients in typed languages send all members that they know: null sets
/// nothing, but in LiteLLM's settings, where it would take away the operator's own.
#[must_use]
pub fn is_refused(name: &str, value: &RawValue) -> bool {
    let is_given = value.get() != "null";
    is_given && [OF_OTHERS, CAPS].iter().any(|names| names.contains(&name))
        || LITELLMS.contains(&name)
        || BEGINNINGS.iter().any(|it| name.starts_with(it)) && !NAMES.contains(&name)
        || name.ends_with(FALLBACKS)
        || PRICES.iter().any(|part| name.contains(part))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_of_the_call_are_refused_and_openais_members_pass() {
        let is_refused = |name: &str| is_refused(name, serde_json::from_str("1").unwrap());
        for name in [
            "models",
            "prompt_logprobs",
            "content_policy_fallbacks",
            "output_cost_per_token_above_200k_tokens",
            "cache_read_input_token_cost_batches",
            "_litellm_strip_stream_usage",
            "litellm_system_prompt",
            "mock_testing_fallbacks",
            "additional_drop_params",
        ] {
            assert!(is_refused(name), "{name}");
        }
        for name in [
            "audio",
            "drop_params",
            "frequency_penalty",
            "litellm_session_id",
            "logprobs",
            "max_completion_tokens",
            "metadata",
            "min_p",
            "modalities",
            "parallel_tool_calls",
            "prediction",
            "prompt_cache_key",
            "provider",
            "reasoning_effort",
            "response_format",
            "route",
            "safety_identifier",
            "seed",
            "store",
            "tags",
            "temperature",
            "top_logprobs",
            "transforms",
            "verbosity",
            "web_search_options",
        ] {
            assert!(!is_refused(name), "{name}");
        }
    }

    #[test]
    fn null_sets_nothing_but_in_litellms_settings() {
        let is_refused = |name: &str| is_refused(name, serde_json::from_str("null").unwrap());
        assert!(["models", "preset", "max_output_tokens"].iter().all(|name| !is_refused(name)));
        assert!(["api_base", "timeout", "mock_response"].iter().all(|name| is_refused(name)));
    }
}
