//! OpenRouter's sums by day and model against ours.
//!
//! Invariants: only days that are over are compared. Tokens and cost decide; the number of requests
//! alone does not, because nobody says whether failed ones count. A call at midnight may be of
//! either day there: a difference that those calls can explain is none.

use super::{Source, is_same_cost, rounding};
use crate::error::Error;
use crate::models::reconcile::{Call, CallSum, Day};
use crate::models::report::Span;
use crate::models::timestamp::Timestamp;
use crate::services::reconcile::{Figure, Finding, Kind, Report, Terms};
use crate::services::upstream::Activity;
use crate::store::Store;
use secrecy::SecretString;
use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

/// A call that began before midnight and had not ended: the longest that one may take, and a look
/// at it afterwards.
const LONGEST_CALL: Duration = Duration::from_secs(2 * 3_600);
/// Clocks differ, and a call arrives a little later than it leaves.
const CLOCK_SLACK: Duration = Duration::from_secs(5);
/// Of so many calls at midnight every subset is tried; of more, only what they sum to.
const SUBSET_MAX: usize = 12;

pub async fn check(
    store: &dyn Store,
    source: &Source<'_>,
    key: &SecretString,
    terms: &Terms,
    report: &mut Report,
) -> Result<(), Error> {
    let (over, running): (Vec<Day>, Vec<Day>) =
        terms.days.iter().copied().partition(|day| terms.is_over(*day));
    for day in running {
        let because = "its sums are there when the day is over".to_owned();
        let note = Finding::new(Kind::Note, &source.name, because);
        report.add(Finding { day: Some(day), ..note });
    }
    let only = match over[..] {
        [] => return Ok(()),
        [day] => Some(day),
        _ => None,
    };
    // The management key is for all of the address.
    let mut rows = match source.upstreams[0].activity(key, only).await {
        Ok(rows) => rows,
        Err(error) => {
            report.unread(&source.name, only, error.to_string());
            return Ok(());
        }
    };
    for day in over {
        let (there, rest) = rows.into_iter().partition(|row| row.day == day);
        rows = rest;
        check_day(store, source, (day, there), report).await?;
    }
    Ok(())
}

async fn check_day(
    store: &dyn Store,
    source: &Source<'_>,
    (day, there): (Day, Vec<Activity>),
    report: &mut Report,
) -> Result<(), Error> {
    let against = &source.name;
    let here = source.call_sums(store, day.span()).await?;
    let names = Names::of(&there);
    let pairs = side_by_side(&names, here, &there);
    report.compared(against, pairs.len());
    let mut at_midnight = None;
    for (model, pair) in pairs {
        if pair.here.agrees(&pair.there) {
            if pair.here.calls != pair.there.calls {
                let because = "tokens and cost are the same; failed requests may count there";
                report.add(pair.finding((Kind::Note, against), day, model, because.to_owned()));
            }
            continue;
        }
        // Read only when there is something to explain.
        if at_midnight.is_none() {
            at_midnight = Some(movable(store, source, day, &names).await?);
        }
        let movable = at_midnight.as_ref().and_then(|moves| moves.get(&model));
        let moves = movable.map(Vec::as_slice).unwrap_or_default();
        if is_explained(&pair, moves) {
            let because = format!("{} calls at midnight may be of either day", moves.len());
            report.add(pair.finding((Kind::Note, against), day, model, because));
        } else {
            let because = pair.because();
            report.add(pair.finding((Kind::Difference, against), day, model, because));
        }
    }
    Ok(())
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Sums {
    calls: i64,
    prompt: i64,
    completion: i64,
    cost_pico: i128,
}

/// One model's, here and there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Pair {
    here: Sums,
    there: Sums,
    without_cost: i64,
    untold: i64,
}

impl Sums {
    fn of(call: &Call) -> Self {
        Self {
            calls: 1,
            prompt: call.prompt_tokens.0,
            completion: call.completion_tokens.0,
            cost_pico: i128::from(call.cost_pusd.unwrap_or_default()),
        }
    }

    fn plus(self, other: Self) -> Self {
        Self {
            calls: self.calls.saturating_add(other.calls),
            prompt: self.prompt.saturating_add(other.prompt),
            completion: self.completion.saturating_add(other.completion),
            cost_pico: self.cost_pico.saturating_add(other.cost_pico),
        }
    }

    fn negated(self) -> Self {
        Self {
            calls: self.calls.saturating_neg(),
            prompt: self.prompt.saturating_neg(),
            completion: self.completion.saturating_neg(),
            cost_pico: self.cost_pico.saturating_neg(),
        }
    }

    fn agrees(&self, there: &Self) -> bool {
        let calls = self.calls.max(there.calls);
        (self.prompt, self.completion) == (there.prompt, there.completion)
            && is_same_cost(self.cost_pico, there.cost_pico, calls)
    }
}

impl Pair {
    fn finding(
        &self,
        (kind, against): (Kind, &str),
        day: Day,
        model: String,
        because: String,
    ) -> Finding {
        let Self { here, there, .. } = self;
        let figures = [
            ("requests", here.calls.into(), there.calls.into()),
            ("prompt_tokens", here.prompt.into(), there.prompt.into()),
            ("completion_tokens", here.completion.into(), there.completion.into()),
            ("cost_pusd", here.cost_pico, there.cost_pico),
        ];
        let figures = Figure::differing(&figures);
        let finding = Finding::new(kind, against, because);
        Finding { day: Some(day), model: Some(model), figures, ..finding }
    }

    fn because(&self) -> String {
        let Self { without_cost, untold, .. } = self;
        if (*without_cost, *untold) == (0, 0) {
            return "the upstream's sums of this day and model differ from the records".to_owned();
        }
        format!(
            "the sums differ; of {untold} calls here the upstream never told what they used, of \
             {without_cost} not what they cost"
        )
    }
}

// === names of models ===

/// What OpenRouter calls its models on one day.
struct Names(HashMap<String, String>);

impl Names {
    fn of(rows: &[Activity]) -> Self {
        let mut names = HashMap::new();
        for row in rows {
            names.insert(row.permaslug.clone(), row.model.clone());
        }
        // A plain name is itself, whatever the version of another is called.
        for row in rows {
            names.insert(row.model.clone(), row.model.clone());
        }
        Self(names)
    }

    /// The name under which a call is summed there: that of the model that answered, else that
    /// which was asked for, else either without its variant (`:nitro`).
    fn find(&self, model: &str, served: Option<&str>) -> String {
        let plain = |name: &'_ str| self.0.get(name).cloned();
        let bare = |name: &'_ str| name.rsplit_once(':').and_then(|(bare, _)| plain(bare));
        let served_name = || served.and_then(plain);
        let found = served_name().or_else(|| plain(model));
        let found = found.or_else(|| served.and_then(bare)).or_else(|| bare(model));
        found.unwrap_or_else(|| model.to_owned())
    }
}

fn side_by_side(names: &Names, here: Vec<CallSum>, there: &[Activity]) -> BTreeMap<String, Pair> {
    let mut pairs: BTreeMap<String, Pair> = BTreeMap::new();
    for sum in here {
        let name = names.find(&sum.model, sum.model_served.as_deref());
        let pair = pairs.entry(name).or_default();
        pair.here = pair.here.plus(Sums {
            calls: sum.calls,
            prompt: sum.prompt_tokens,
            completion: sum.completion_tokens,
            cost_pico: i128::from(sum.cost_pusd),
        });
        pair.without_cost += sum.without_cost;
        pair.untold += sum.untold;
    }
    for row in there {
        let pair = pairs.entry(row.model.clone()).or_default();
        pair.there = pair.there.plus(Sums {
            calls: row.requests,
            prompt: row.prompt_tokens,
            completion: row.completion_tokens,
            cost_pico: row.cost_pico,
        });
    }
    pairs
}

// === midnight ===

/// What each call at either midnight would change of our sums, if it were of the other day.
async fn movable(
    store: &dyn Store,
    source: &Source<'_>,
    day: Day,
    names: &Names,
) -> Result<HashMap<String, Vec<Sums>>, Error> {
    let mut moves: HashMap<String, Vec<Sums>> = HashMap::new();
    for midnight in [day.start(), day.end()] {
        let span = Span { from: midnight.minus(LONGEST_CALL), until: midnight.plus(CLOCK_SLACK) };
        let take = |call: Call| {
            if is_at(&call, midnight) {
                let is_ours = Day::of(call.started_at) == day;
                let sums = Sums::of(&call);
                let change = if is_ours { sums.negated() } else { sums };
                let name = names.find(&call.model, call.model_served.as_deref());
                moves.entry(name).or_default().push(change);
            }
        };
        source.each_call(store, span, take).await?;
    }
    Ok(moves)
}

fn is_at(call: &Call, midnight: Timestamp) -> bool {
    call.started_at <= midnight.plus(CLOCK_SLACK) && call.ended_at >= midnight.minus(CLOCK_SLACK)
}

/// Whether some of the moves make the sums agree. Where they are too many to try, whether the
/// difference lies between all that take away and all that add.
fn is_explained(pair: &Pair, moves: &[Sums]) -> bool {
    if moves.len() <= SUBSET_MAX {
        return (0..1_u32 << moves.len()).any(|chosen| {
            let chosen = (0..).zip(moves).filter(|(index, _)| chosen >> index & 1 == 1);
            chosen.fold(pair.here, |sums, (_, moved)| sums.plus(*moved)).agrees(&pair.there)
        });
    }
    let (mut low, mut high) = (pair.here, pair.here);
    for moved in moves {
        let end = if moved.calls < 0 { &mut low } else { &mut high };
        *end = end.plus(*moved);
    }
    let there = &pair.there;
    let within = |of: fn(&Sums) -> i64| (of(&low)..=of(&high)).contains(&of(there));
    let rounding = rounding(there.cost_pico, there.calls);
    within(|sums| sums.prompt)
        && within(|sums| sums.completion)
        && (low.cost_pico - rounding..=high.cost_pico + rounding).contains(&there.cost_pico)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn activity(model: &str, permaslug: &str, prompt: i64) -> Activity {
        Activity {
            day: "2026-11-23".parse().unwrap(),
            model: model.to_owned(),
            permaslug: permaslug.to_owned(),
            requests: 1,
            prompt_tokens: prompt,
            completion_tokens: 1,
            cost_pico: 5,
        }
    }

    fn here(model: &str, served: Option<&str>, prompt: i64) -> CallSum {
        CallSum {
            model: model.to_owned(),
            model_served: served.map(str::to_owned),
            calls: 1,
            prompt_tokens: prompt,
            completion_tokens: 1,
            cost_pusd: 5,
            without_cost: 0,
            untold: 0,
        }
    }

    #[test]
    fn a_model_is_found_by_any_of_its_names() {
        let there = [activity("a/m", "a/m-2026", 31), activity("a/m:free", "a/m-2026:free", 7)];
        let names = Names::of(&there);
        let ours = vec![
            here("a/m", None, 1),
            here("~a/latest", Some("a/m-2026"), 2),
            here("a/m:nitro", Some("a/m"), 4),
            here("a/m-2026", None, 8),
            here("a/m:floor", Some("else"), 16),
            here("a/m:free", None, 7),
            here("b/other", None, 3),
        ];
        let pairs = side_by_side(&names, ours, &there);
        assert_eq!(pairs.keys().collect::<Vec<_>>(), ["a/m", "a/m:free", "b/other"]);
        assert_eq!(pairs["a/m"].here.prompt, 31);
        assert!(pairs["a/m:free"].here.agrees(&pairs["a/m:free"].there));
        assert_eq!(pairs["b/other"].there, Sums::default(), "not there at all");
    }

    fn sums(tokens: i64) -> Sums {
        Sums { calls: 1, prompt: tokens, completion: tokens, cost_pico: i128::from(tokens) }
    }

    #[test]
    fn calls_at_midnight_explain_what_they_sum_to_and_nothing_else() {
        let pair = |there| Pair { here: sums(100), there: sums(there), ..Pair::default() };
        let moves = [sums(7), sums(20).negated()];
        for there in [107, 80, 87] {
            assert!(is_explained(&pair(there), &moves), "{there}");
        }
        for there in [101, 108, 120, 127] {
            assert!(!is_explained(&pair(there), &moves), "{there}");
        }
        assert!(!is_explained(&pair(107), &[]));
        let many = [sums(7); 13];
        assert!(is_explained(&pair(150), &many), "within 91");
        assert!(!is_explained(&pair(99), &many) && !is_explained(&pair(300), &many));
    }
}
