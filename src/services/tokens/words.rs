//! The words of a vocabulary: short texts that are one token each, told by looking them up.
//!
//! Invariant: what [`Words::has`] is one token for tiktoken too, where it stands between two safe
//! cuts. The expressions by which the vocabularies split a text match it whole: it is one run of
//! letters with at most a space before it (in o200k capitals come first), one run of punctuation,
//! or up to three digits. And the vocabulary has it, so that nothing is left to be merged.
//!
//! Why it exists: those expressions are most of the price of counting, and most of an answer is
//! such words. This module splits nothing, and what it does not have is tiktoken's to count.

use super::cut;
use rustc_hash::FxHashSet;

/// Longer words are rare, and dearer to keep.
const WORD_BYTES_MAX: usize = size_of::<u128>() - 1;
const DIGITS_MAX: usize = 3;

pub(super) struct Words(FxHashSet<u128>);

impl Words {
    /// Of a vocabulary's tokens, those that are words.
    pub fn among(tokens: impl Iterator<Item = Vec<u8>>) -> Self {
        let mut words: FxHashSet<u128> =
            tokens.filter(|token| is_matched_whole(token)).filter_map(|word| key(&word)).collect();
        words.shrink_to_fit();
        Self(words)
    }

    /// How many words follow one another from this safe cut on, and where they end, which is one
    /// too.
    pub fn run(&self, text: &str, start: usize) -> (usize, usize) {
        let (mut words, mut end) = (0, start);
        while let Some(next) = self.end(text, end) {
            (words, end) = (words + 1, next);
        }
        (words, end)
    }

    /// The end of a word that begins at this safe cut.
    fn end(&self, text: &str, start: usize) -> Option<usize> {
        let bytes = text.as_bytes().get(start..)?;
        let space = usize::from(bytes.first() == Some(&b' '));
        let run = bytes.get(space..)?;
        let length = match run.first()? {
            byte if byte.is_ascii_alphabetic() => length(run, u8::is_ascii_alphabetic),
            byte if byte.is_ascii_punctuation() => length(run, u8::is_ascii_punctuation),
            byte if byte.is_ascii_digit() => length(run, u8::is_ascii_digit),
            _ => return None,
        };
        let last = char::from(*run.get(length - 1)?);
        let end = start + space + length;
        let is_whole = match text[end..].chars().next() {
            Some(after) => cut::is_safe(last, after),
            None => true,
        };
        (is_whole && self.has(&text[start..end])).then_some(end)
    }

    pub fn has(&self, text: &str) -> bool {
        key(text.as_bytes()).is_some_and(|key| self.0.contains(&key))
    }
}

fn length(bytes: &[u8], is_alike: impl Fn(&u8) -> bool) -> usize {
    bytes.iter().take_while(|byte| is_alike(byte)).count()
}

/// A word's bytes and its length.
fn key(word: &[u8]) -> Option<u128> {
    let mut bytes = [0; WORD_BYTES_MAX + 1];
    let (text, length) = bytes.split_at_mut(WORD_BYTES_MAX);
    text.get_mut(..word.len())?.copy_from_slice(word);
    length[0] = u8::try_from(word.len()).ok()?;
    Some(u128::from_le_bytes(bytes))
}

/// Whether both vocabularies' expressions match all of it at once.
fn is_matched_whole(token: &[u8]) -> bool {
    let run = token.strip_prefix(b" ").unwrap_or(token);
    let is_letters = || {
        let capitals = run.iter().take_while(|byte| byte.is_ascii_uppercase()).count();
        run.iter().skip(capitals).all(u8::is_ascii_lowercase)
    };
    let is_digits = || token.len() <= DIGITS_MAX && token.iter().all(u8::is_ascii_digit);
    let is_punctuation = || run.iter().all(u8::is_ascii_punctuation);
    !run.is_empty() && (is_letters() || is_punctuation() || is_digits())
}

#[cfg(test)]
mod tests {
    use super::super::vocabulary::testing::{cl100k, o200k};
    use super::*;

    #[test]
    fn each_word_is_one_token() {
        for tokenizer in [o200k(), cl100k()] {
            let vocabulary = tokenizer.vocabulary;
            let mut count = 0;
            for token in vocabulary.tokens() {
                let Ok(text) = std::str::from_utf8(&token) else { continue };
                if vocabulary.has_word(text) {
                    count += 1;
                    assert_eq!(vocabulary.encode(text).map(|it| it.len()), Some(1), "{text:?}");
                }
            }
            assert!(count > 40_000, "{}: {count} words", vocabulary.name());
        }
    }

    #[test]
    fn what_is_split_is_no_word() {
        let split =
            ["", " ", "\n", " 1", "1234", "it's", "camelCase", "a b", "a,", "é", "\0", "a\0"];
        let words = Words::among(split.iter().map(|text| text.as_bytes().to_vec()));
        assert!(split.iter().all(|text| !words.has(text)));
        let whole = ["the", " the", " The", "HTTPServer", "NASA", "...", " (", "7", "123"];
        let words = Words::among(whole.iter().map(|text| text.as_bytes().to_vec()));
        assert!(whole.iter().all(|text| words.has(text)));
        assert!(!words.has("7\0") && !words.has(""), "what a word is filled up with is not in it");
    }
}
