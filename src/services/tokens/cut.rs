//! Where a text may be cut so that both halves can be tokenised on their own.
//!
//! Invariant: for a cut `i` found by [`last`] or [`first`], and for `o200k_base` and `cl100k_base`
//! alike, `tokens(text) == tokens(text[..i]) ++ tokens(text[i..])`, whatever surrounds the cut.
//!
//! Why it holds. Both vocabularies first split the text with a regular expression and never merge
//! across that split. Every alternative of both expressions is a chain of greedy runs of character
//! classes. The only parts that look past their own match are `\s+(?!\S)` and `$`, and both are
//! reached only inside a run of whitespace. There is no look-behind, so the right half starts
//! afresh. Each rule below puts `b` outside every class that can follow `a` within one alternative,
//! and none cuts inside or directly after whitespace other than a line break.
//!
//! This module counts nothing and does not promise to find a cut: a run of one letter has none.

/// The last safe cut of `text` at or after byte `from`. The ends of the text are not cuts: nothing
/// is known about what follows.
pub(super) fn last(text: &str, from: usize) -> Option<usize> {
    let mut chars = text.char_indices().rev();
    let (mut at, mut after) = chars.next()?;
    for (start, before) in chars {
        if at < from {
            return None;
        }
        if is_safe(before, after) {
            return Some(at);
        }
        (at, after) = (start, before);
    }
    None
}

/// The first safe cut of `text` at or after byte `from`.
pub(super) fn first(text: &str, from: usize) -> Option<usize> {
    let from = text.floor_char_boundary(from);
    let (head, tail) = text.split_at(from);
    let mut chars = tail.char_indices();
    let mut before = match head.chars().next_back() {
        Some(before) => before,
        None => chars.next()?.1,
    };
    for (at, after) in chars {
        if is_safe(before, after) {
            return Some(from + at);
        }
        before = after;
    }
    None
}

/// May a text be cut between `a` and `b`?
pub(super) fn is_safe(a: char, b: char) -> bool {
    // 1. A run of whitespace belongs to what follows it. A line break is left out of `b` because
    //    it can end a run of punctuation.
    if b.is_whitespace() && !is_line_break(b) && !a.is_whitespace() {
        return true;
    }
    // 2. Line breaks end whatever they are part of, but a slash can go on after punctuation and
    //    line breaks (o200k), and whitespace can go on after line breaks.
    if is_line_break(a) && !b.is_whitespace() && b != '/' {
        return true;
    }
    // 3. Only a letter, a mark or an apostrophe goes on after a letter, and a digit after a digit.
    if is_word(a) && is_separator(b) && b != '\'' {
        return true;
    }
    // 4. Digits stand alone. Both sides are ASCII because other numbers count as digits too.
    a.is_ascii() && b.is_ascii() && a.is_ascii_digit() != b.is_ascii_digit() && !a.is_whitespace()
}

fn is_line_break(c: char) -> bool {
    matches!(c, '\r' | '\n')
}

/// Characters that are certainly letters or digits. Blocks are cut short of the marks and symbols
/// among them (U+0482..0489, U+3099..309C, U+30FB): a mark is a letter for one vocabulary only.
fn is_word(c: char) -> bool {
    c.is_ascii_alphanumeric()
        || matches!(c,
            '\u{0400}'..='\u{0481}' | '\u{048A}'..='\u{052F}' // Cyrillic
            | '\u{3041}'..='\u{3096}' // Hiragana
            | '\u{30A1}'..='\u{30FA}' // Katakana
            | '\u{3400}'..='\u{4DBF}' | '\u{4E00}'..='\u{9FFF}' // CJK ideographs
            | '\u{AC00}'..='\u{D7A3}' // Hangul
        )
}

/// Characters that are certainly neither letter nor mark nor number.
fn is_separator(c: char) -> bool {
    (c.is_ascii() && !c.is_ascii_alphanumeric())
        || matches!(c,
            '\u{3001}'..='\u{3003}' | '\u{3008}'..='\u{301F}' // CJK punctuation
            | '\u{FF01}'..='\u{FF0F}' | '\u{FF1A}'..='\u{FF20}' // full-width punctuation
            | '\u{FF3B}'..='\u{FF40}' | '\u{FF5B}'..='\u{FF65}'
        )
}

#[cfg(test)]
pub(super) mod testing {
    use proptest::{collection::vec, prelude::*, sample::select};

    const LETTERS: &str = "a B hello World camelCase HTTPServer \u{e9} e\u{301} \u{301} \u{1c5} \
        \u{2b0} \u{aa} \u{17f} \u{212a} 中 漢字 ひら カナ \u{30fc} \u{3099} \u{30fb} 한글 Привет \u{482} \
        \u{483} ไทย \u{e33} مرحبا हिन्दी \u{93c} \u{20000}";
    const DIGITS: &str = "1 12 123 4567 \u{663} \u{2167} \u{bd} \u{2082} \u{ff11}";
    const SIGNS: &str = "/ / // ! ... - _ \" ( } $ ` += 、 。 「 \u{ff01} \u{ff0f} \u{301c} \u{2019} \
        \u{0} \u{7f} \u{180e} \u{200b} \u{feff} \u{1c}";
    const CONTRACTIONS: &str = "' 's 't 'RE 'll 'd '\u{17f} it's WE'VE \u{2019}s";
    const SEQUENCES: &str = "\u{1f469}\u{200d}\u{1f4bb} \u{1f1e9}\u{1f1ea} \u{1f44d}\u{1f3fd} \
        \u{2764}\u{fe0f} 1\u{fe0f}\u{20e3} <|endoftext|> <|im_start|> <|fim_prefix|> \
        <|endofprompt|> https://a.b/c?d=1&e=%20";
    const SPACES: &str = "   \t\n\n\r\r\u{b}\u{c}\u{85}\u{a0}\u{1680}\u{2003}\u{2028}\u{2029}\
        \u{202f}\u{205f}\u{3000}";

    fn one_of(words: &'static str) -> impl Strategy<Value = String> {
        select(words.split(' ').collect::<Vec<_>>()).prop_map(String::from)
    }

    fn whitespace() -> impl Strategy<Value = String> {
        let kinds = SPACES.chars().map(String::from).chain(["\r\n".into(), "    ".into()]);
        select(kinds.collect::<Vec<_>>())
    }

    /// A piece of text that is likely to matter for the splitting expressions.
    pub fn fragment() -> impl Strategy<Value = String> {
        prop_oneof![
            4 => one_of(LETTERS),
            4 => whitespace(),
            2 => one_of(DIGITS),
            3 => one_of(SIGNS),
            2 => one_of(CONTRACTIONS),
            1 => one_of(SEQUENCES),
            1 => any::<char>().prop_map(String::from),
        ]
    }

    pub fn text() -> impl Strategy<Value = String> {
        vec(fragment(), 0..30).prop_map(|fragments| fragments.concat())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{
        super::vocabulary::testing::{cl100k, o200k},
        testing::text,
        *,
    };

    /// All safe cuts, found the slow way.
    fn cuts(text: &str) -> Vec<usize> {
        let starts = text.char_indices().skip(1);
        let pairs = text.chars().zip(starts);
        pairs.filter(|(a, (_, b))| is_safe(*a, *b)).map(|(_, (at, _))| at).collect()
    }

    /// Does cutting here leave the tokens as they are, for both vocabularies?
    fn keeps_tokens(left: &str, right: &str) -> bool {
        [o200k(), cl100k()].iter().all(|tokenizer| {
            let encode = |text: &str| tokenizer.vocabulary.encode(text).unwrap();
            encode(&format!("{left}{right}")) == [encode(left), encode(right)].concat()
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(1_500))]

        #[test]
        fn a_safe_cut_keeps_every_token(text in text()) {
            for at in cuts(&text) {
                let (left, right) = text.split_at(at);
                prop_assert!(keeps_tokens(left, right), "{:?} | {:?}", left, right);
            }
        }

        #[test]
        fn searching_finds_the_outermost_cuts(text in text(), from in 0_usize..80) {
            let from = text.floor_char_boundary(from);
            let cuts: Vec<usize> = cuts(&text).into_iter().filter(|at| *at >= from).collect();
            prop_assert_eq!(last(&text, from), cuts.last().copied());
            prop_assert_eq!(first(&text, from), cuts.first().copied());
        }
    }

    #[test]
    fn each_rule_finds_its_cuts() {
        for text in ["a b", "! b", "中\u{3000}", "\nb", "\r!", "a!", "中。", "я,", "1a", "a1", "!1"]
        {
            assert_eq!(last(text, 0), text.char_indices().nth(1).map(|(at, _)| at), "{text:?}");
        }
    }

    #[test]
    fn unsafe_places_are_not_cut() {
        // Each of these changes the tokens of at least one vocabulary when it is cut.
        for (left, right) in [
            ("a ", "  b"),  // whitespace | whitespace
            ("a\n", "\n"),  // line break | line break
            ("a\n", " \n"), // line break | whitespace
            (";\n", "//"),  // line break | slash
            ("!", "\n"),    // punctuation | line break
            ("/", "\n"),    // slash | line break
            ("!", "/"),     // punctuation | slash
            ("12", "3"),    // digit | digit
            ("it", "'s"),   // word | apostrophe
            ("hel", "lo"),  // letter | letter
            ("a ", "word"), // space | word
            ("a  ", "1"),   // spaces | digit
            ("a  ", "!"),   // spaces | punctuation
        ] {
            let (a, b) = (left.chars().next_back().unwrap(), right.chars().next().unwrap());
            assert!(!is_safe(a, b), "{left:?} | {right:?} is cut");
            assert!(!keeps_tokens(left, right), "{left:?} | {right:?} would be safe");
        }
        // These may or may not keep the tokens, but no rule covers them.
        for (a, b) in [
            ('a', 'B'),
            ('e', '\u{301}'),
            ('か', '\u{3099}'),
            ('\t', '\n'),
            ('\n', '\t'),
            ('\u{483}', '!'),
            ('\u{30fb}', '!'),
        ] {
            assert!(!is_safe(a, b), "{a:?} | {b:?} is cut");
        }
    }

    #[test]
    fn word_characters_are_letters_and_separators_are_not() {
        let all = '\0'..=char::MAX;
        for c in all {
            assert!(!(is_word(c) && is_separator(c)), "{c:?}");
            assert!(!is_word(c) || c.is_alphanumeric(), "{c:?}");
            assert!(!is_separator(c) || !c.is_alphanumeric(), "{c:?}");
        }
    }

    #[test]
    fn every_word_and_separator_character_can_be_cut_between() {
        let all = || '\u{80}'..='\u{ffff}';
        for word in all().filter(|c| is_word(*c)).step_by(7) {
            assert!(keeps_tokens(&format!("!{word}"), "!\n"), "{word:?}");
        }
        for separator in all().filter(|c| is_separator(*c)) {
            assert!(keeps_tokens("! A中", &format!("{separator}a")), "{separator:?}");
        }
    }
}
