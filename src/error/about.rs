//! What an upstream's refusal is about, where a program can do something about it. Says nothing of
//! failures that are not the request's.

/// What of a request an upstream finds at fault, by a word of OpenAI's that programs ask for.
/// <https://platform.openai.com/docs/guides/error-codes>
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum About {
    Request,
    /// It has no such model, or nobody to serve it.
    Model,
    /// Prompt and completion are longer than the model's context.
    Length,
    /// A moderation has flagged the prompt.
    Content,
}
