//! The tiktoken vocabularies, and which one a model uses.
//!
//! Invariants: counting never panics, whatever the text; nothing here blocks except
//! [`Vocabularies::load`] and [`Vocabularies::prepare`], which callers keep off the request path;
//! a model that tiktoken does not know is counted with `o200k_base` and marked inexact.
//!
//! Only tiktoken's fallible `encode` is used. Its shorter forms panic when the regular expression
//! gives up, which a run of a million spaces is enough for.
//!
//! This module does not decide when a text is too long to be counted where it stands, and it has no
//! vocabularies of other vendors.

use std::{
    collections::HashSet,
    fmt,
    ops::AddAssign,
    sync::{Arc, OnceLock},
};

use tiktoken_rs::{CoreBPE, tokenizer};

use super::{cut, words::Words};

/// Words are sought among so many tokens. The common ones have the low numbers, and each that is
/// looked at makes every start later.
const TOKENS_MAX: u32 = 100_000;

/// A number of tokens.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Count {
    pub tokens: i64,
    /// The number may be off: the text was not understood, or cut where it should not be, or the
    /// model's own vocabulary is not at hand.
    pub estimated: bool,
}

/// tiktoken vocabularies, loaded once, off the request path. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Vocabularies {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    o200k: Arc<Vocabulary>,
    /// Loaded when a model needs it: it costs 24 MiB. `None` inside when that failed.
    cl100k: OnceLock<Option<Arc<Vocabulary>>>,
}

/// One vocabulary.
pub struct Vocabulary {
    name: &'static str,
    bpe: CoreBPE,
    words: Words,
}

/// What a model's text is counted with.
#[derive(Clone, Debug)]
pub struct Tokenizer {
    pub vocabulary: Arc<Vocabulary>,
    /// False when this is not known to be the model's own vocabulary.
    pub exact: bool,
}

#[derive(Debug, thiserror::Error)]
pub enum TokensError {
    #[error("the vocabulary {name} could not be loaded: {reason}")]
    Load { name: &'static str, reason: String },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Family {
    O200k,
    Cl100k,
}

impl Vocabularies {
    /// Loads `o200k_base`. Blocks for about 0.3 s.
    ///
    /// # Errors
    /// When the vocabulary built into tiktoken-rs cannot be read.
    pub fn load() -> Result<Self, TokensError> {
        let o200k = Arc::new(Vocabulary::o200k()?);
        let cl100k = OnceLock::new();
        Ok(Self { shared: Arc::new(Shared { o200k, cl100k }) })
    }

    /// Loads what these models need beyond `o200k_base`. Blocks for about 0.2 s when it has to.
    /// A vocabulary that cannot be loaded leaves its models inexact: see [`Tokenizer::exact`].
    pub fn prepare<'a>(&self, mut models: impl Iterator<Item = &'a str>) {
        if models.any(|model| family(model) == Some(Family::Cl100k)) {
            self.shared.cl100k.get_or_init(|| Vocabulary::cl100k().ok().map(Arc::new));
        }
    }

    /// The tokenizer of a model. Never blocks: a vocabulary that is not loaded yet is replaced by
    /// `o200k_base`, inexact.
    #[must_use]
    pub fn for_model(&self, model: &str) -> Tokenizer {
        let o200k = &self.shared.o200k;
        let (vocabulary, exact) = match family(model) {
            Some(Family::O200k) => (o200k, true),
            Some(Family::Cl100k) => match self.shared.cl100k.get() {
                Some(Some(cl100k)) => (cl100k, true),
                _ => (o200k, false),
            },
            None => (o200k, false),
        };
        Tokenizer { vocabulary: Arc::clone(vocabulary), exact }
    }
}

impl Vocabulary {
    fn o200k() -> Result<Self, TokensError> {
        Self::new("o200k_base", tiktoken_rs::o200k_base())
    }

    fn cl100k() -> Result<Self, TokensError> {
        Self::new("cl100k_base", tiktoken_rs::cl100k_base())
    }

    fn new<E: fmt::Display>(
        name: &'static str,
        loaded: Result<CoreBPE, E>,
    ) -> Result<Self, TokensError> {
        match loaded {
            Ok(bpe) => Ok(Self { name, words: Words::among(tokens_of(&bpe)), bpe }),
            Err(error) => Err(TokensError::Load { name, reason: format!("{error:#}") }),
        }
    }

    /// `o200k_base` or `cl100k_base`.
    #[must_use]
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// The tokens of `text` as ordinary text. Estimated only where tiktoken gave up on a stretch
    /// that has no safe cut, so that it had to be cut elsewhere.
    #[must_use]
    pub fn count(&self, text: &str) -> Count {
        let mut total = Count::default();
        let (mut counted, mut at) = (0, 0);
        while at < text.len() {
            let (words, end) = self.words.run(text, at);
            if words > 0 {
                total += self.count_split(&text[counted..at]);
                total.tokens = total.tokens.saturating_add(tokens_from(words));
                counted = end;
            }
            let next = text.ceil_char_boundary(end + 1);
            at = cut::first(text, next).unwrap_or(text.len());
        }
        total += self.count_split(&text[counted..]);
        total
    }

    /// What has to be split to be counted.
    fn count_split(&self, text: &str) -> Count {
        if text.is_empty() {
            return Count::default();
        }
        match self.encode(text) {
            Some(tokens) => Count { tokens: tokens_from(tokens.len()), estimated: false },
            None => self.count_halves(text),
        }
    }

    /// The tokens, or nothing when tiktoken gives up.
    pub(super) fn encode(&self, text: &str) -> Option<Vec<u32>> {
        let no_special_tokens = HashSet::new();
        self.bpe.encode(text, &no_special_tokens).ok().map(|(tokens, _)| tokens)
    }

    /// Counts a text that tiktoken refuses as a whole. The depth is logarithmic: a piece without a
    /// safe cut is halved, and one with a cut is cut next to its middle.
    fn count_halves(&self, text: &str) -> Count {
        let middle = text.floor_char_boundary(text.len() / 2);
        let left = &text[..text.ceil_char_boundary(middle + 1)];
        let safe = cut::last(left, 0).or_else(|| cut::first(text, middle));
        let at = safe.unwrap_or(middle);
        if at == 0 {
            // Too short to be halved. A token is at least one byte long.
            return Count { tokens: tokens_from(text.len()), estimated: true };
        }
        let (left, right) = text.split_at(at);
        let mut total = self.count_split(left);
        total += self.count_split(right);
        total.estimated |= safe.is_none();
        total
    }
}

#[cfg(test)]
impl Vocabulary {
    pub(super) fn tokens(&self) -> impl Iterator<Item = Vec<u8>> {
        tokens_of(&self.bpe)
    }

    pub(super) fn has_word(&self, text: &str) -> bool {
        self.words.has(text)
    }
}

/// The bytes of each token that may be a word.
fn tokens_of(bpe: &CoreBPE) -> impl Iterator<Item = Vec<u8>> {
    (0..TOKENS_MAX).filter_map(|token| bpe.decode_bytes(&[token]).ok())
}

impl fmt::Debug for Vocabulary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Vocabulary").field(&self.name).finish()
    }
}

impl AddAssign for Count {
    fn add_assign(&mut self, other: Self) {
        *self = Self {
            tokens: self.tokens.saturating_add(other.tokens),
            estimated: self.estimated || other.estimated,
        };
    }
}

/// A length as a number of tokens.
pub(super) fn tokens_from(len: usize) -> i64 {
    i64::try_from(len).unwrap_or(i64::MAX)
}

/// The vocabulary of a model, by the name that clients and gateways write: `gpt-4o`,
/// `openai/gpt-4o:free`, `openrouter/openai/gpt-4o`, `ft:gpt-4o:org`.
///
/// Who serves a model does not change its vocabulary, so the vendor is dropped and the name
/// decides. Other vendors' models have names that tiktoken does not know.
fn family(model: &str) -> Option<Family> {
    let name = match model.rsplit_once('/') {
        Some((_, name)) if !model.starts_with("ft:") => name,
        _ => model,
    };
    let name = match name.split_once(':') {
        Some((base, _)) if !name.starts_with("ft:") => base,
        _ => name,
    };
    match tokenizer::get_tokenizer(name)? {
        // Harmony differs in its special tokens only, and those are ordinary text here.
        tokenizer::Tokenizer::O200kBase | tokenizer::Tokenizer::O200kHarmony => Some(Family::O200k),
        tokenizer::Tokenizer::Cl100kBase => Some(Family::Cl100k),
        _ => None,
    }
}

#[cfg(test)]
pub(super) mod testing {
    use super::{OnceLock, Tokenizer, Vocabularies};

    /// Both vocabularies, loaded once for all tests.
    pub fn vocabularies() -> &'static Vocabularies {
        static LOADED: OnceLock<Vocabularies> = OnceLock::new();
        LOADED.get_or_init(|| {
            let vocabularies = Vocabularies::load().unwrap();
            vocabularies.prepare(["gpt-4"].into_iter());
            vocabularies
        })
    }

    pub fn o200k() -> Tokenizer {
        vocabularies().for_model("gpt-4o")
    }

    pub fn cl100k() -> Tokenizer {
        vocabularies().for_model("gpt-4")
    }
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*, sample::select};

    use super::{super::cut::testing::fragment, *};
    use testing::{cl100k, o200k, vocabularies};

    /// Words of English and of programs among all that is hard to split.
    fn text() -> impl Strategy<Value = String> {
        const WORDS: &str = "the The gateway, is open. \"Yes\" HTTP/1.1 = camelCase 12 1234 don't \
            I'm ... -- (a) [0] {x} <div> a/b /* */ ;; antidisestablishmentarianism NULL iOS";
        let word = || select(WORDS.split(' ').collect::<Vec<_>>());
        let space = prop_oneof![8 => Just(" "), 1 => Just(""), 1 => Just("  "), 1 => Just("\n")];
        let words = vec((word(), space), 0..12)
            .prop_map(|words| words.iter().flat_map(|(word, space)| [*word, *space]).collect());
        vec(prop_oneof![2 => words, 1 => fragment()], 0..8)
            .prop_map(|texts: Vec<String>| texts.concat())
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(1_500))]

        #[test]
        fn a_count_is_what_tiktoken_says_of_the_whole(text in text()) {
            for tokenizer in [o200k(), cl100k()] {
                let tokens = tokenizer.vocabulary.encode(&text).unwrap().len();
                prop_assert_eq!(tokenizer.vocabulary.count(&text), exactly(tokens_from(tokens)));
            }
        }
    }

    fn exactly(tokens: i64) -> Count {
        Count { tokens, estimated: false }
    }

    #[test]
    fn models_find_their_vocabulary() {
        let cases = [
            ("gpt-4o", "o200k_base", true),
            ("gpt-4o-2024-05-13", "o200k_base", true),
            ("gpt-5.4-mini", "o200k_base", true),
            ("o3", "o200k_base", true),
            ("gpt-oss-120b", "o200k_base", true),
            ("gpt-4", "cl100k_base", true),
            ("gpt-3.5-turbo-0125", "cl100k_base", true),
            ("openai/gpt-4o", "o200k_base", true),
            ("openai/gpt-4o:free", "o200k_base", true),
            ("openai/gpt-oss-20b:free", "o200k_base", true),
            ("openai/gpt-4-turbo", "cl100k_base", true),
            ("azure/gpt-35-turbo", "cl100k_base", true),
            ("azure/eu/gpt-4o", "o200k_base", true),
            ("openrouter/openai/gpt-4o:online", "o200k_base", true),
            ("ft:gpt-4o:org", "o200k_base", true),
            ("ft:gpt-3.5-turbo:org:name:id", "cl100k_base", true),
            ("ft:gpt-4o:org/team:name", "o200k_base", true),
            ("openai/ft:gpt-4o:org", "o200k_base", true),
            // Known to tiktoken, but with a vocabulary that is not loaded here.
            ("text-davinci-003", "o200k_base", false),
            ("gpt2", "o200k_base", false),
            // Not known to tiktoken.
            ("gpt-6", "o200k_base", false),
            ("anthropic/claude-sonnet-4", "o200k_base", false),
            ("meta-llama/llama-3.3-70b-instruct:free", "o200k_base", false),
            ("deepseek/deepseek-r1", "o200k_base", false),
            ("openai/", "o200k_base", false),
            ("", "o200k_base", false),
            (":", "o200k_base", false),
            ("ft:", "o200k_base", false),
        ];
        for (model, name, exact) in cases {
            let tokenizer = vocabularies().for_model(model);
            assert_eq!((tokenizer.vocabulary.name(), tokenizer.exact), (name, exact), "{model}");
        }
    }

    #[test]
    fn cl100k_is_loaded_only_when_a_model_needs_it() {
        let vocabularies = Vocabularies::load().unwrap();
        vocabularies.prepare(["gpt-4o", "anthropic/claude-sonnet-4"].into_iter());
        let before = vocabularies.for_model("gpt-4");
        assert_eq!((before.vocabulary.name(), before.exact), ("o200k_base", false));

        vocabularies.clone().prepare(["gpt-4o", "openai/gpt-4"].into_iter());
        let after = vocabularies.for_model("gpt-4");
        assert_eq!((after.vocabulary.name(), after.exact), ("cl100k_base", true));
    }

    #[test]
    fn known_texts_have_their_known_counts() {
        // The counts of OpenAI's own tiktoken, as printed in OpenAI's cookbook.
        for (text, cl100k_tokens, o200k_tokens) in [
            ("", 0, 0),
            ("antidisestablishmentarianism", 6, 6),
            ("2 + 2 = 4", 7, 7),
            ("お誕生日おめでとう", 9, 8),
        ] {
            assert_eq!(cl100k().vocabulary.count(text), exactly(cl100k_tokens), "{text}");
            assert_eq!(o200k().vocabulary.count(text), exactly(o200k_tokens), "{text}");
        }
    }

    #[test]
    fn special_tokens_are_ordinary_text() {
        assert_eq!(o200k().vocabulary.count("<|endoftext|>"), exactly(7));
        assert_eq!(cl100k().vocabulary.count("<|endoftext|>"), exactly(7));
        assert_eq!(o200k().vocabulary.count(&"<|endoftext|>".repeat(100)), exactly(601));
    }

    #[test]
    fn a_million_of_anything_is_counted_without_a_panic() {
        for tokenizer in [o200k(), cl100k()] {
            for unit in [" ", "\t ", "\u{a0}", "\n", "a", "!", "7"] {
                let count = tokenizer.vocabulary.count(&unit.repeat(1_000_000 / unit.len()));
                assert!((5_000..=600_000).contains(&count.tokens), "{unit:?}: {count:?}");
                assert!(unit.trim().is_empty() || !count.estimated, "{unit:?}");
            }
        }
    }

    #[test]
    fn a_refused_stretch_leaves_the_rest_exact() {
        let run = " ".repeat(1_200_000);
        // Longer than the run, so that the middle of the whole lies within a word.
        let words = "antidisestablishmentarianism; ".repeat(45_001);
        for tokenizer in [o200k(), cl100k()] {
            let count = |text: &str| tokenizer.vocabulary.count(text);
            let text = format!("jumps{run}over, {words}");
            assert!(tokenizer.vocabulary.encode(&text).is_none(), "the run is not refused");
            assert!(
                text[text.len() / 2..].starts_with("tablishment"),
                "the middle is not in a word"
            );

            let mut expected = count("jumps");
            expected += count(&format!("{run}over"));
            expected += count(&format!(", {words}"));
            assert!(expected.estimated);
            assert_eq!(count(&text), expected);
        }
    }
}
