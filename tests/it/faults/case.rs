//! A fault: its name in the table, and what the upstream plays for it.

use crate::upstream::answer::Answer;
use crate::upstream::script::{Gate, Script};

/// Whether the client asks for a stream.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Form {
    Plain,
    Stream,
}

pub struct Fault {
    /// The table's chapter.
    pub chapter: &'static str,
    /// What is wrong; faults that differ in their variant only share a row where all else is equal.
    pub what: String,
    pub variant: String,
    pub form: Form,
    pub play: Box<dyn Fn(&Answer) -> Script + Send + Sync>,
    /// Runs where waits are short.
    pub waits: bool,
    /// Opened when the client has this text: what was sent until then has arrived for certain.
    pub gate: Option<(Gate, &'static str)>,
}

/// The words of an upstream that are meant for the client.
pub const WORDS: &str = "temperature must be below two";

/// What no client may ever read.
pub const SECRETS: [&str; 15] = [
    "sk-or-v1-5ec2e70451",
    "org-5ecre7A1b2",
    "user_2secretC3d4",
    "proj_5ecre7E5",
    "litellm.internal:4000",
    "https://upstream.secret.example/v1",
    "[fd00::5ec:e7]:4000",
    "vault.5ecre7.internal",
    "5ecre7.openai.azure.com",
    "AIzaSy5ecre7",
    "xai-5ecre7",
    "hf_AbCdEfGhIjKlMnOpQrStUvWxYz",
    "eyJ5ecre7.eyJ5ecre7.5ecre7",
    "arn:aws:bedrock:us-east-1:5ecre7",
    "raw-5ecre7-dump",
];

/// All of them, for where nothing of the upstream's text may pass.
pub fn secrets() -> String {
    SECRETS.join(" ")
}

/// Those that are known by their form, for a message that else may pass.
pub fn formed_secrets() -> String {
    SECRETS[..SECRETS.len() - 1].join(" ")
}

/// Both forms of one fault.
pub fn both(
    chapter: &'static str,
    what: &str,
    variant: &str,
    play: impl Fn(&Answer) -> Script + Send + Sync + Clone + 'static,
) -> [Fault; 2] {
    [
        one(Form::Plain, chapter, what, variant, play.clone()),
        one(Form::Stream, chapter, what, variant, play),
    ]
}

pub fn one(
    form: Form,
    chapter: &'static str,
    what: &str,
    variant: &str,
    play: impl Fn(&Answer) -> Script + Send + Sync + 'static,
) -> Fault {
    let (what, variant) = (what.to_string(), variant.to_string());
    Fault { chapter, what, variant, form, play: Box::new(play), waits: false, gate: None }
}

impl Fault {
    pub fn waiting(mut self) -> Self {
        self.waits = true;
        self
    }
}

/// A stream with these events after its head, ended well.
pub fn streamed(answer: &Answer, events: &[String]) -> Script {
    answer.head().chunks(events).end()
}
