//! The table as Markdown: faults that come to the same share a row.

use std::fmt;

use super::case::{Fault, Form};
use super::observe::Seen;
use crate::source::{read, root};

const PATH: &str = "tests/fault-table.md";
const UPDATE: &str = "UPDATE_FAULT_TABLE";

struct Row {
    chapter: &'static str,
    what: String,
    variants: Vec<String>,
    forms: Vec<Form>,
    /// The client's, OpenRouter's charge, LiteLLM's charge, the log's.
    cells: [String; 4],
}

pub struct Table(Vec<Row>);

impl Table {
    pub fn of(faults: &[Fault], seen: Vec<[Seen; 2]>) -> Self {
        assert_eq!(faults.len(), seen.len());
        let mut rows: Vec<Row> = Vec::new();
        for (fault, [openrouter, litellm]) in faults.iter().zip(seen) {
            let what = format!("{} ({}), {:?}", fault.what, fault.variant, fault.form);
            assert_eq!(openrouter.client, litellm.client, "{what}: clients see different things");
            assert_eq!(openrouter.logged, litellm.logged, "{what}");
            let Seen { client, charged, logged, .. } = openrouter;
            let cells = [client, charged, litellm.charged, logged];
            let row = rows.iter_mut().find(|row| {
                row.chapter == fault.chapter
                    && row.what == fault.what
                    && row.cells == cells
                    && row.forms == [fault.form]
            });
            match row {
                Some(row) if row.variants.contains(&fault.variant) => {}
                Some(row) => row.variants.push(fault.variant.clone()),
                None => rows.push(Row {
                    chapter: fault.chapter,
                    what: fault.what.clone(),
                    variants: vec![fault.variant.clone()],
                    forms: vec![fault.form],
                    cells,
                }),
            }
        }
        Self(numbered(joined(rows)))
    }

    #[track_caller]
    pub fn assert_is_the_one_checked_in(&self) {
        let text = self.to_string();
        if std::env::var_os(UPDATE).is_some() {
            std::fs::write(root().join(PATH), &text).expect("the project's own folder");
            panic!("{PATH} was written anew, for {UPDATE} is set: nothing was compared");
        }
        let known = read(PATH);
        let news = text.lines().filter(|line| !known.lines().any(|other| other == *line));
        let news: Vec<_> = news.collect();
        assert!(text == known, "{PATH} says otherwise; {UPDATE}=1 renews it:\n{}", news.join("\n"));
    }
}

/// Rows that are the same for plain and streamed requests become one.
fn joined(rows: Vec<Row>) -> Vec<Row> {
    let mut all: Vec<Row> = Vec::new();
    for row in rows {
        let same = all.iter_mut().find(|other| {
            let names = (other.chapter, &other.what, &other.variants);
            names == (row.chapter, &row.what, &row.variants) && other.cells == row.cells
        });
        match same {
            Some(same) => same.forms.extend(row.forms),
            None => all.push(row),
        }
    }
    all
}

/// Rows that differ in the number at the end of their name only become one.
fn numbered(rows: Vec<Row>) -> Vec<Row> {
    let mut all: Vec<Row> = Vec::new();
    for row in rows {
        let parts = row.what.rsplit_once(' ').filter(|(_, end)| end.parse::<u16>().is_ok());
        let same = parts.and_then(|(start, _)| {
            all.iter_mut().find(|other| {
                let rest = other.what.strip_prefix(start).unwrap_or("x");
                let is_numbers = rest.chars().all(|one| one.is_ascii_digit() || ", ".contains(one));
                let alike = (other.chapter, &other.variants, &other.forms, &other.cells);
                is_numbers && alike == (row.chapter, &row.variants, &row.forms, &row.cells)
            })
        });
        match (same, parts) {
            (Some(same), Some((_, number))) => same.what = format!("{}, {number}", same.what),
            _ => all.push(row),
        }
    }
    all
}

const OPENING: &str = "# What an upstream can do wrong\n\n\
    Written by `cargo test --test it faults` from what it saw; the test fails when this file\n\
    says otherwise. Each row was driven against the real program, on SQLite and on PostgreSQL,\n\
    with Tollgate's own retries off. Every stream asks for usage. The answer is four tokens of\n\
    text, for which the upstream claims 12+7; where usage is missing, OpenRouter answers a\n\
    look-up with 12+5. Charges are nano-USD. In no row does the client or the log get anything of\n\
    the keys, addresses, ids and raw texts that the upstream's errors are full of.\n";

const HEAD: &str =
    "| fault | request | the client sees | charged, OpenRouter | charged, LiteLLM | logged |";

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(OPENING)?;
        let mut chapter = "";
        for row in &self.0 {
            if row.chapter != chapter {
                chapter = row.chapter;
                writeln!(f, "\n## {chapter}\n")?;
                writeln!(f, "{HEAD}")?;
                writeln!(f, "|---|---|---|---|---|---|")?;
            }
            let variants = row.variants.join("; ");
            let colon = if variants.is_empty() { "" } else { ": " };
            let form = match row.forms[..] {
                [Form::Plain] => "plain",
                [Form::Stream] => "stream",
                _ => "both",
            };
            let [client, openrouter, litellm, logged] = &row.cells;
            writeln!(
                f,
                "| {}{colon}{variants} | {form} | {client} | {openrouter} | {litellm} | {logged} |",
                row.what
            )?;
        }
        Ok(())
    }
}
