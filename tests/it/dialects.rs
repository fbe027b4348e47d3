//! Usage as providers beside OpenAI write it: reasoning beside the completion, cache hits under
//! names of their own, usage on a choice.

use crate::app::books::UsageRecord;
use crate::app::{Kind, Setup, Store, TestApp, question, streamed};
use crate::upstream::answer::{Answer, DONE, event};
use crate::upstream::script::Script;

const PRICED_MODEL: &str = "gpt-4o-mini";

/// The record of an answer with this usage, plain and streamed.
async fn both(app: &TestApp, usage: &str) -> [UsageRecord; 2] {
    let answer = Answer::openai().no_usage();
    let body = answer.plain_body().replacen('{', &format!(r#"{{"usage":{usage},"#), 1);
    app.upstream.script(Script::json(200, body));
    let plain = app.chat(&question(PRICED_MODEL)).await;
    plain.ok();
    let last = answer.finish_event() + &event(&answer.chunk_json("[]", Some(usage)));
    [app.record_of(&plain).await, ended_with(app, &answer, &last).await]
}

/// The record of a streamed answer with `last` after its text.
async fn ended_with(app: &TestApp, answer: &Answer, last: &str) -> UsageRecord {
    let text = answer.content_events().concat();
    app.upstream.script(answer.head().chunk(text + last + DONE).end());
    let got = app.chat(&streamed(PRICED_MODEL)).await;
    got.ok();
    app.record_of(&got).await
}

/// xAI: the total says on which side the reasoning is.
#[tokio::test]
async fn reasoning_beside_the_completion_is_part_of_it() {
    let app = Setup::new(Store::Sqlite).kind(Kind::OpenAi).start().await;
    for (total, reasoning, completion) in [(135, 94, 103), (41, 5, 9)] {
        let details = format!(r#""completion_tokens_details":{{"reasoning_tokens":{reasoning}}}"#);
        let counts = r#""prompt_tokens":32,"completion_tokens":9"#;
        let usage = format!(r#"{{{counts},"total_tokens":{total},{details}}}"#);
        for record in both(&app, &usage).await {
            assert_eq!(record.source, "upstream", "{record:#?}");
            let tokens = (record.prompt_tokens, record.completion_tokens, record.reasoning_tokens);
            assert_eq!(tokens, (32, completion, reasoning), "a total of {total}");
            assert_eq!(record.charge_nusd, 32 * 150 + completion * 600, "a total of {total}");
        }
    }
    app.finish().await;
}

/// Moonshot and DeepSeek.
#[tokio::test]
async fn cache_hits_under_other_names_have_their_price() {
    let app = Setup::new(Store::Sqlite).kind(Kind::OpenAi).start().await;
    for hits in [r#""cached_tokens":8"#, r#""prompt_cache_hit_tokens":8"#] {
        let usage = format!(r#"{{"prompt_tokens":12,"completion_tokens":7,{hits}}}"#);
        for record in both(&app, &usage).await {
            assert_eq!((record.prompt_tokens, record.cached_tokens), (12, 8), "{hits}");
            assert_eq!(record.charge_nusd, 4 * 150 + 8 * 75 + 7 * 600, "{hits}");
        }
    }
    app.finish().await;
}

/// Moonshot's streams have it there.
#[tokio::test]
async fn usage_on_a_choice_counts_where_there_is_no_other() {
    let app = Setup::new(Store::Sqlite).kind(Kind::OpenAi).start().await;
    let answer = Answer::openai().no_usage();
    let own = r#"{"prompt_tokens":12,"completion_tokens":7}"#;
    let choices = format!(r#"[{{"index":0,"delta":{{}},"finish_reason":"stop","usage":{own}}}]"#);
    let usual = r#"{"prompt_tokens":20,"completion_tokens":9}"#;
    for (usage, tokens) in [(None, (12, 7)), (Some(usual), (20, 9))] {
        let last = event(&answer.chunk_json(&choices, usage));
        let record = ended_with(&app, &answer, &last).await;
        assert_eq!(record.source, "upstream", "{usage:?}: {record:#?}");
        assert_eq!((record.prompt_tokens, record.completion_tokens), tokens, "{usage:?}");
    }
    app.finish().await;
}
