//! Makes rows wrong where others keep them: one in a hundred, each in a way of its own, and no two
//! in the same sum, where one could hide the other. Gives the names of what is then to be found.

use std::collections::BTreeSet;

use serde_json::json;
use time::format_description::well_known::Rfc3339;
use time::{Duration, OffsetDateTime};

use super::{CHARGE_METER, MODELS, SAMPLED_DAY, World, days_ago};
use crate::random::Random;
use crate::upstream::listed::Listed;

/// The sums that are wrong by now.
#[derive(Default)]
struct Touched(BTreeSet<String>);

impl Touched {
    /// True when all of these were right until now.
    fn take(&mut self, names: [String; 2]) -> bool {
        let is_new = names.iter().all(|name| !self.0.contains(name));
        if is_new {
            self.0.extend(names);
        }
        is_new
    }
}

/// Rows in random order.
fn shuffled(count: usize, random: &Random) -> Vec<usize> {
    let mut order: Vec<usize> = (0..count).collect();
    for index in (1..count).rev() {
        order.swap(index, random.below(index + 1));
    }
    order
}

/// Another of these.
fn other<'a>(of: &'a [&str], than: &str) -> &'a str {
    let found = of.iter().find(|name| **name != than);
    found.expect("more than one")
}

/// By sums of a day and a model.
pub fn openrouter(world: &World, random: &Random) -> BTreeSet<String> {
    let name = |row: &Listed| format!("{} {}", row.at.date(), row.model);
    let mut rows = world.openrouter.clone();
    let (mut touched, mut wrong, mut removed) = (Touched::default(), 0, vec![]);
    for index in shuffled(rows.len(), random) {
        if wrong == rows.len() / 100 {
            break;
        }
        let row = rows[index].clone();
        let mut changed = row.clone();
        match wrong % 6 {
            0 | 1 => {}
            2 => changed.completion += 1,
            3 => changed.cost_pico += 1_000_000,
            4 => changed.model = other(&MODELS, &row.model).to_string(),
            _ => changed.at -= Duration::DAY,
        }
        // Days that nobody remembers, and the midnight that has a reason, stay as they are.
        let is_known = row.at > days_ago(SAMPLED_DAY) + Duration::DAY;
        if !is_known || !touched.take([name(&row), name(&changed)]) {
            continue;
        }
        match wrong % 6 {
            0 => removed.push(index),
            1 => rows.push(row),
            _ => rows[index] = changed,
        }
        wrong += 1;
    }
    assert_eq!(wrong, world.openrouter.len() / 100, "there was room for all");
    removed.sort_unstable();
    for index in removed.into_iter().rev() {
        rows.remove(index);
    }
    world.app.upstream.list(rows);
    touched.0
}

/// By the ids of the calls of one day, whose every call is asked about.
pub fn generations(world: &World, random: &Random) -> (String, BTreeSet<String>) {
    let mut rows = world.openrouter.clone();
    let day = days_ago(SAMPLED_DAY).date();
    let of_day = rows.iter().enumerate().filter(|(_, row)| row.at.date() == day);
    let of_day: Vec<usize> = of_day.map(|(index, _)| index).collect();
    let chosen: Vec<usize> =
        shuffled(of_day.len(), random).into_iter().take(3).map(|place| of_day[place]).collect();
    let expected = chosen.iter().map(|index| rows[*index].id.clone()).collect();
    rows[chosen[0]].prompt += 1;
    rows[chosen[1]].cost_pico += 2;
    rows[chosen[1]].cost_pico *= 2;
    rows[chosen[2]].id = "gen-unknown".to_string();
    world.app.upstream.list(rows);
    (day.to_string(), expected)
}

/// By the ids of calls.
pub fn litellm(world: &World, random: &Random) -> BTreeSet<String> {
    let mut rows = world.litellm.clone();
    let mut expected = BTreeSet::new();
    let mut removed = BTreeSet::new();
    let users: Vec<&str> = world.accounts.iter().map(|(id, _)| id.as_str()).collect();
    // All seven ways, more than one in a hundred.
    for (number, index) in shuffled(rows.len(), random).into_iter().take(7).enumerate() {
        let row = rows[index].clone();
        expected.insert(row.id.clone());
        match number {
            0 => drop(removed.insert(row.id.clone())),
            1 => {
                let id = format!("{}-again", row.id);
                expected.remove(&row.id);
                expected.insert(id.clone());
                rows.push(Listed { id, ..row });
            }
            2 => rows[index].completion += 1,
            3 => rows[index].cost_pico += 1_000_000,
            4 => rows[index].model = other(&MODELS, &row.model).to_string(),
            5 => rows[index].at -= Duration::DAY,
            _ => rows[index].user = other(&users, &row.user).to_string(),
        }
    }
    rows.retain(|row| !removed.contains(&row.id));
    world.app.upstream.list(rows);
    expected
}

/// By sums of a day, an account and a model.
pub fn openmeter(world: &World, random: &Random) -> BTreeSet<String> {
    let mut touched = Touched::default();
    let users: Vec<&str> = world.accounts.iter().map(|(id, _)| id.as_str()).collect();
    world.openmeter.tamper(|events| {
        let keys: Vec<(String, String)> = events.keys().cloned().collect();
        let (mut wrong, wanted) = (0, keys.len() / 100);
        for index in shuffled(keys.len(), random) {
            if wrong == wanted {
                break;
            }
            let event = events[&keys[index]].clone();
            let mut changed = event.clone();
            let text = |path: &str| event.pointer(path).and_then(|v| v.as_str()).expect("a text");
            let charge = event["data"]["charge_nusd"].as_i64().expect("a number");
            match wrong % 6 {
                0 | 1 => {}
                2 => changed["data"]["charge_nusd"] = json!(charge + 1),
                3 => changed["data"]["model"] = json!(other(&MODELS, text("/data/model"))),
                4 => {
                    let at = OffsetDateTime::parse(text("/time"), &Rfc3339).expect("a time");
                    let at = (at - Duration::DAY).format(&Rfc3339).expect("a time");
                    changed["time"] = json!(at);
                }
                _ => changed["subject"] = json!(other(&users, text("/subject"))),
            }
            let name = |event: &serde_json::Value| {
                let text = |member: &serde_json::Value| member.as_str().unwrap_or("").to_string();
                let (subject, model) = (text(&event["subject"]), text(&event["data"]["model"]));
                format!("{} {subject} {model}", &text(&event["time"])[..10])
            };
            if charge == 0 || !touched.take([name(&event), name(&changed)]) {
                continue;
            }
            match wrong % 6 {
                0 => drop(events.remove(&keys[index])),
                1 => {
                    let (source, id) = &keys[index];
                    events.insert((source.clone(), format!("{id}-again")), event);
                }
                _ => drop(events.insert(keys[index].clone(), changed)),
            }
            wrong += 1;
        }
        assert_eq!(wrong, wanted, "there was room for all");
    });
    touched.0
}

/// By sums of a day and a customer.
pub fn stripe(world: &World, random: &Random) -> BTreeSet<String> {
    let mut touched = Touched::default();
    let customers: Vec<&str> = world.accounts.iter().map(|(_, name)| name.as_str()).collect();
    world.stripe.tamper(|taken| {
        let (mut wrong, wanted) = (0, taken.len() / 100);
        let mut removed = BTreeSet::new();
        for index in shuffled(taken.len(), random) {
            if wrong == wanted {
                break;
            }
            let event = taken[index].clone();
            let mut changed = event.clone();
            match wrong % 5 {
                0 | 1 => {}
                2 => changed.value += 1,
                3 => changed.timestamp -= 86_400,
                _ => changed.customer = other(&customers, &event.customer).to_string(),
            }
            let names = [&event, &changed].map(|event| {
                let at = OffsetDateTime::from_unix_timestamp(event.timestamp);
                let day = at.expect("a time").date();
                format!("{day} {} {CHARGE_METER}", event.customer)
            });
            if !touched.take(names) {
                continue;
            }
            match wrong % 5 {
                0 => drop(removed.insert(event.identifier.clone())),
                1 => taken.push(event),
                _ => taken[index] = changed,
            }
            wrong += 1;
        }
        assert_eq!(wrong, wanted, "there was room for all");
        taken.retain(|event| !removed.contains(&event.identifier));
    });
    touched.0
}
