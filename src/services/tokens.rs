//! Counting tokens with tiktoken: of an answer while it streams past, and of a prompt.
//!
//! The numbers made here are for holds, for streams that end without the upstream's usage, and for
//! the alarm when the two disagree. The upstream's usage is the bill.
//!
//! Invariants:
//! - A text counts the same however it is cut into deltas: `cut` says where a text may be cut.
//! - No input panics and no input costs more than linear time (times a logarithm inside tiktoken).
//! - The text of a special token is ordinary text here, as it is for a model that reads it from a
//!   user. Counting it as one token would let a client shrink its own bill.
//! - A number that is not exact says so (`Count::estimated`).
//!
//! This module does no input or output, keeps no global state and knows no prices. What it cannot
//! see it cannot count: hidden reasoning, the framing of tool calls, pictures and sound.

mod counter;
mod cut;
mod media;
mod parts;
mod prompt;
mod vocabulary;
mod words;

pub use counter::{Field, INLINE_BYTES_MAX, Lane, StreamCounter};
pub use media::long_media;
pub use parts::{count_files, count_images};
pub use prompt::{count_prompt, estimate_prompt};
pub use vocabulary::{Count, Tokenizer, TokensError, Vocabularies, Vocabulary};
