//! What a table says of prices, markups and plans, and what is wrong with one.

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
            assert!(fault.contains(&format!("'{odd}'")), "{file}: {fault}");
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
