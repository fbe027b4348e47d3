//! Golden tests: one for each way that a gateway was seen to price wrongly, named after it.
//! The numbers are worked out by hand in the comments or the expressions, not by the code.

use super::*;
use crate::models::money::Markup;
use crate::models::openai::answer::Answer;
use crate::models::price::Override;
use crate::models::usage::TokenUsage;
use proptest::prelude::*;

fn price(rule: Rule, markup: i64, rates: Rates, overrides: Vec<Override>) -> Price {
    let (model, plan) = ("m".to_owned(), String::new());
    Price::new(Terms {
        model,
        plan,
        upstream: String::new(),
        rule,
        markup_ppm: Markup(markup),
        rates,
        overrides,
    })
}

/// $3 and $15 a million; cache $0.30, $3.75 and $6; as a real model has it.
fn rates() -> Rates {
    Rates {
        prompt: PicoUsd(3_000_000),
        completion: PicoUsd(15_000_000),
        cache_read: Some(PicoUsd(300_000)),
        cache_write: Some(PicoUsd(3_750_000)),
        cache_write_1h: Some(PicoUsd(6_000_000)),
        audio_prompt: Some(PicoUsd(40_000_000)),
        ..Rates::default()
    }
}

fn list() -> Price {
    price(Rule::List, 1_000_000, rates(), vec![])
}

fn noon() -> Timestamp {
    Timestamp::parse("2026-11-24T12:00:00Z").unwrap()
}

/// What an answer with this `usage` costs.
fn cost_of(price: &Price, usage: &str) -> NanoUsd {
    let text = format!(r#"{{"usage":{usage}}}"#);
    let answer: Answer<'_> = serde_json::from_str(&text).unwrap();
    let reported = answer.reported().unwrap();
    let (tokens, cost_pico) = (reported.tokens, reported.cost_pico);
    charge(price, &Used { tokens, images: 0, cost_pico, has_failed: false, at: noon() }).unwrap()
}

#[test]
fn cached_tokens_counted_twice() {
    let usage = r#"{"prompt_tokens":1000,"completion_tokens":0,
        "prompt_tokens_details":{"cached_tokens":900}}"#;
    // 100 at $3 and 900 at $0.30 a million.
    assert_eq!(cost_of(&list(), usage), NanoUsd(100 * 3_000 + 900 * 300));
}

#[test]
fn cache_writes_counted_as_prompt_too() {
    let usage = r#"{"prompt_tokens":1000,"completion_tokens":0,
        "prompt_tokens_details":{"cached_tokens":100,"cache_write_tokens":600}}"#;
    assert_eq!(cost_of(&list(), usage), NanoUsd(300 * 3_000 + 100 * 300 + 600 * 3_750));
}

#[test]
fn long_lived_cache_writes_at_the_short_price() {
    let usage = r#"{"prompt_tokens":1000,"completion_tokens":0,
        "cache_creation_input_tokens":600,"cache_creation":{"ephemeral_1h_input_tokens":500}}"#;
    assert_eq!(cost_of(&list(), usage), NanoUsd(400 * 3_000 + 100 * 3_750 + 500 * 6_000));
}

#[test]
fn cache_parts_larger_than_their_prompt() {
    let usage = r#"{"prompt_tokens":1000,"completion_tokens":0,
        "prompt_tokens_details":{"cached_tokens":1000,"cache_write_tokens":1000}}"#;
    assert_eq!(cost_of(&list(), usage), NanoUsd(1000 * 300));
}

#[test]
fn unset_cache_price_is_free() {
    let without = Rates { cache_read: None, ..rates() };
    let price = price(Rule::List, 1_000_000, without, vec![]);
    let usage = r#"{"prompt_tokens":1000,"completion_tokens":0,
        "prompt_tokens_details":{"cached_tokens":900}}"#;
    assert_eq!(cost_of(&price, usage), NanoUsd(1000 * 3_000));
}

#[test]
fn reasoning_charged_on_top_of_the_completion() {
    let usage = r#"{"prompt_tokens":0,"completion_tokens":100,
        "completion_tokens_details":{"reasoning_tokens":80}}"#;
    assert_eq!(cost_of(&list(), usage), NanoUsd(100 * 15_000));
}

#[test]
fn reasoning_at_its_own_price_replaces_the_completion_price() {
    let own = Rates { reasoning: Some(PicoUsd(60_000_000)), ..rates() };
    let price = price(Rule::List, 1_000_000, own, vec![]);
    let usage = r#"{"prompt_tokens":0,"completion_tokens":100,
        "completion_tokens_details":{"reasoning_tokens":80}}"#;
    assert_eq!(cost_of(&price, usage), NanoUsd(20 * 15_000 + 80 * 60_000));
}

#[test]
fn audio_at_zero() {
    let usage = r#"{"prompt_tokens":100,"completion_tokens":0,
        "prompt_tokens_details":{"audio_tokens":60}}"#;
    assert_eq!(cost_of(&list(), usage), NanoUsd(40 * 3_000 + 60 * 40_000));
}

#[test]
fn cached_and_audio_tokens_counted_twice_where_they_overlap() {
    let usage = r#"{"prompt_tokens":100,"completion_tokens":0,
        "prompt_tokens_details":{"cached_tokens":70,"audio_tokens":60}}"#;
    // 70 cached; of the 60 audio tokens only 30 are left outside of them.
    assert_eq!(cost_of(&list(), usage), NanoUsd(70 * 300 + 30 * 40_000));
}

#[test]
fn total_tokens_charged_instead_of_the_parts() {
    let usage = r#"{"prompt_tokens":10,"completion_tokens":10,"total_tokens":99999}"#;
    assert_eq!(cost_of(&list(), usage), NanoUsd(10 * 3_000 + 10 * 15_000));
}

#[test]
fn upstream_cost_added_to_the_same_upstream_cost() {
    let price = price(Rule::CostPlus, 1_200_000, rates(), vec![]);
    let usage = r#"{"prompt_tokens":10,"completion_tokens":10,"cost":0.001,"is_byok":false,
        "cost_details":{"upstream_inference_cost":0.001}}"#;
    assert_eq!(cost_of(&price, usage), NanoUsd(1_200_000));
}

#[test]
fn own_key_charged_the_fee_alone() {
    let price = price(Rule::CostPlus, 1_200_000, rates(), vec![]);
    let usage = r#"{"prompt_tokens":10,"completion_tokens":10,"cost":0.95,"is_byok":true,
        "cost_details":{"upstream_inference_cost":19}}"#;
    // ($0.95 + $19) x 1.2
    assert_eq!(cost_of(&price, usage), NanoUsd(23_940_000_000));
}

#[test]
fn null_cost_taken_for_free() {
    let price = price(Rule::CostPlus, 1_000_000, rates(), vec![]);
    let usage = r#"{"prompt_tokens":1000,"completion_tokens":0,"cost":null}"#;
    assert_eq!(cost_of(&price, usage), NanoUsd(1000 * 3_000));
}

#[test]
fn explicit_zero_cost_taken_for_missing() {
    let price = price(Rule::CostPlus, 1_200_000, rates(), vec![]);
    let usage = r#"{"prompt_tokens":1000,"completion_tokens":50,"cost":0}"#;
    assert_eq!(cost_of(&price, usage), NanoUsd(0));
}

#[test]
fn explicit_zero_tokens_taken_for_missing() {
    let usage = r#"{"prompt_tokens":0,"completion_tokens":0}"#;
    assert_eq!(cost_of(&list(), usage), NanoUsd(0));
}

#[test]
fn cost_read_as_a_float() {
    let price = price(Rule::CostPlus, 1_000_000, rates(), vec![]);
    // 0.1 + 0.2 style: the decimal text is exact, and rounded up once at the nano-USD.
    for (cost, nano) in
        [("0.1", 100_000_000), ("3e-10", 1), ("0.0000000015", 2), ("1.5E-3", 1_500_000)]
    {
        let usage = format!(r#"{{"prompt_tokens":1,"completion_tokens":1,"cost":{cost}}}"#);
        assert_eq!(cost_of(&price, &usage), NanoUsd(nano), "{cost}");
    }
}

#[test]
fn list_price_of_the_operator_overruled_by_the_upstream_cost() {
    let usage = r#"{"prompt_tokens":1000,"completion_tokens":0,"cost":99}"#;
    assert_eq!(cost_of(&list(), usage), NanoUsd(1000 * 3_000));
}

#[test]
fn long_prompt_tier_ignored() {
    let long = Rates { prompt: PicoUsd(6_000_000), ..rates() };
    let tier = Override { min_prompt_tokens: Some(200_000), utc_minutes: None, rates: long };
    let price = price(Rule::List, 1_000_000, rates(), vec![tier]);
    let usage = |tokens| format!(r#"{{"prompt_tokens":{tokens},"completion_tokens":0}}"#);
    assert_eq!(cost_of(&price, &usage(200_000)), NanoUsd(200_000 * 3_000), "strictly more");
    // The whole prompt is at the higher rate, not only what is beyond the tier.
    assert_eq!(cost_of(&price, &usage(200_001)), NanoUsd(200_001 * 6_000));
}

#[test]
fn time_of_day_ignored() {
    let night = Rates { prompt: PicoUsd(1_000_000), ..rates() };
    let at_night =
        Override { min_prompt_tokens: None, utc_minutes: Some((22 * 60, 6 * 60)), rates: night };
    let price = price(Rule::List, 1_000_000, rates(), vec![at_night]);
    let tokens = TokenUsage { prompt: Tokens(1_000), ..TokenUsage::default() };
    let at = |time: &str| {
        let at = Timestamp::parse(&format!("2026-11-24T{time}:00Z")).unwrap();
        charge(&price, &Used { tokens, images: 0, cost_pico: None, has_failed: false, at }).unwrap()
    };
    assert_eq!(at("21:59"), NanoUsd(3_000_000));
    assert_eq!(at("22:00"), NanoUsd(1_000_000));
    assert_eq!(at("05:59"), NanoUsd(1_000_000));
    assert_eq!(at("06:00"), NanoUsd(3_000_000));
}

#[test]
fn fee_per_request_forgotten() {
    let with_fee = Rates { request: Some(PicoUsd(5_000_000_000)), ..rates() };
    let price = price(Rule::List, 1_000_000, with_fee, vec![]);
    let usage = r#"{"prompt_tokens":0,"completion_tokens":0}"#;
    assert_eq!(cost_of(&price, usage), NanoUsd(5_000_000));
}

#[test]
fn web_searches_forgotten() {
    let with_search = Rates { web_search: Some(PicoUsd(10_000_000_000)), ..rates() };
    let price = price(Rule::List, 1_000_000, with_search, vec![]);
    let usage = r#"{"prompt_tokens":0,"completion_tokens":0,
        "server_tool_use_details":{"web_search_requests":3}}"#;
    assert_eq!(cost_of(&price, usage), NanoUsd(30_000_000));
}

#[test]
fn failed_answer_that_was_free_upstream_charged() {
    let tokens =
        TokenUsage { prompt: Tokens(500), completion: Tokens(20), ..TokenUsage::default() };
    let used =
        |cost_pico, has_failed| Used { tokens, images: 0, cost_pico, has_failed, at: noon() };
    assert_eq!(charge(&list(), &used(Some(0), true)), Ok(NanoUsd(0)));
    assert_eq!(charge(&list(), &used(None, true)), Ok(NanoUsd(500 * 3_000 + 20 * 15_000)));
}

#[test]
fn markup_rounded_per_class() {
    // Three classes of a third of a nano-USD each, with markup: one rounding, up, at the end.
    let third = Rates {
        prompt: PicoUsd(333),
        completion: PicoUsd(333),
        cache_read: Some(PicoUsd(333)),
        ..Rates::default()
    };
    let price = price(Rule::List, 1_000_000, third, vec![]);
    let usage = r#"{"prompt_tokens":2,"completion_tokens":1,
        "prompt_tokens_details":{"cached_tokens":1}}"#;
    assert_eq!(cost_of(&price, usage), NanoUsd(1));
}

proptest! {
    #[test]
    fn the_worst_case_covers_every_charge_within_it(
        prompt in 0..1_000_000_i64, cached in 0..1_000_000_i64, written in 0..1_000_000_i64,
        audio in 0..1_000_000_i64, completion in 0..100_000_i64, reasoning in 0..100_000_i64,
        spare in 0..1_000_i64, minute in 0..1_440_u16, markup in 1_i64..3_000_000,
    ) {
        let cached = cached.min(prompt);
        let written = written.min(prompt - cached);
        let tokens = TokenUsage {
            prompt: Tokens(prompt),
            cached: Tokens(cached),
            cache_write_1h: Tokens(written),
            audio_prompt: Tokens(audio.min(prompt - cached - written)),
            completion: Tokens(completion),
            reasoning: Tokens(reasoning.min(completion)),
            ..TokenUsage::default()
        };
        let dear = Rates { prompt: PicoUsd(9_000_000), ..rates() };
        let tier = Override { min_prompt_tokens: Some(1_000), utc_minutes: None, rates: dear };
        let price = price(Rule::List, markup, rates(), vec![tier]);
        let midnight = Timestamp::parse("2026-11-24T00:00:00Z").unwrap();
        let at = midnight.plus(std::time::Duration::from_secs(u64::from(minute) * 60));
        let worst = WorstCase::new(&price, Tokens(prompt + spare), 1);
        let used = Used { tokens, images: 0, cost_pico: None, has_failed: false, at };
        let charged = charge(&price, &used).unwrap();
        prop_assert!(charged <= worst.amount(Tokens(completion + spare)).unwrap());
    }

    #[test]
    fn an_amount_pays_for_the_tokens_it_is_turned_into(
        nano in 0..100_000_000_000_i64, prompt in 0..100_000_i64, choices in 1..8_i64,
        markup in 1_i64..3_000_000,
    ) {
        let price = price(Rule::List, markup, rates(), vec![]);
        let worst = WorstCase::new(&price, Tokens(prompt), choices);
        let tokens = worst.tokens(NanoUsd(nano)).unwrap();
        if tokens.0 > 0 {
            prop_assert!(worst.amount(tokens).unwrap() <= NanoUsd(nano));
        }
        prop_assert!(worst.amount(Tokens(tokens.0 + 1)).unwrap() > NanoUsd(nano));
    }
}

#[test]
fn pictures_have_a_fee_each_on_top_of_their_tokens() {
    let dear = Rates { input_image: Some(PicoUsd(5_000_000_000)), ..rates() };
    let long = Override { min_prompt_tokens: Some(1_000), utc_minutes: None, rates: dear };
    let priced = Rates { input_image: Some(PicoUsd(2_000_000_000)), ..rates() };
    let price = price(Rule::List, 1_000_000, priced, vec![long]);
    let tokens = |prompt| TokenUsage { prompt: Tokens(prompt), ..TokenUsage::default() };
    let used = |prompt, images, cost_pico| {
        let tokens = tokens(prompt);
        charge(&price, &Used { tokens, images, cost_pico, has_failed: false, at: noon() }).unwrap()
    };
    // $0.002 each, and $3 a million tokens; $0.005 with a long prompt.
    assert_eq!(used(100, 2, None), NanoUsd(100 * 3_000 + 2 * 2_000_000));
    assert_eq!(used(2_000, 2, Some(7)), NanoUsd(2_000 * 3_000 + 2 * 5_000_000), "a list price");
    assert_eq!(used(100, 0, None), NanoUsd(100 * 3_000));
    assert_eq!(
        charge(
            &list(),
            &Used {
                tokens: tokens(100),
                images: 9,
                cost_pico: None,
                has_failed: false,
                at: noon(),
            }
        ),
        Ok(NanoUsd(100 * 3_000)),
        "without a fee they are their tokens"
    );
    // What is set aside covers the dearest.
    let worst = |images| {
        WorstCase::new(&price, Tokens(100), 1).with(Extras { images, ..Extras::default() })
    };
    let more = worst(2).amount(Tokens(0)).unwrap().0 - worst(0).amount(Tokens(0)).unwrap().0;
    assert_eq!(more, 2 * 5_000_000);
}

#[test]
fn a_price_without_a_fee_for_pictures_keeps_its_id() {
    assert!(!list().terms.canonical().contains("input_image"));
}
