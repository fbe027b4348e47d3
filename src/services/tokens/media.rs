//! What long media in a prompt may come to beyond the flat numbers of `prompt`, for the money that
//! is set aside: an hour of sound is not a minute.
//!
//! Invariants: a guess by the length of inline data, never charged and never counted in a limit;
//! nothing for an address, whose contents are not looked at, and for a picture, which has a largest
//! size. Costs nothing for a short prompt.

use super::prompt::{Literal, TOKENS_PER_AUDIO, TOKENS_PER_FILE, TOKENS_PER_VIDEO, values};
use super::vocabulary::tokens_from;

/// Characters of base64 for each token: of sound at 48 kbit/s and 32 tokens a second …
const AUDIO_CHARS_PER_TOKEN: usize = 256;
/// … of sound that is not compressed, at 24 kB a second …
const WAV_CHARS_PER_TOKEN: usize = 1_024;
/// … of a PDF between dense text and pictures of pages …
const FILE_CHARS_PER_TOKEN: usize = 32;
/// … and of video at 115 kbit/s and 300 tokens a second.
const VIDEO_CHARS_PER_TOKEN: usize = 64;
/// What most models take as a prompt.
const LONG_MEDIA_TOKENS_MAX: i64 = 200_000;
/// No data in a shorter text is long: a file, the first to be so, has its flat number's worth then.
const SHORT_BYTES_MAX: usize = 160_000;
/// How a WAV file begins, in base64.
const RIFF: &[u8] = b"UklGR";

/// Tokens beyond the flat numbers, from the JSON text of `messages`.
#[must_use]
pub fn long_media(messages_json: &str) -> i64 {
    let json = messages_json.as_bytes();
    if json.len() <= SHORT_BYTES_MAX {
        return 0;
    }
    let beyond = values(json).map(|Literal { parent, key, start, end }| {
        let data = &json[start..end];
        let Some((chars_per_token, flat)) = rate(parent, key, data) else { return 0 };
        tokens_from(data.len() / chars_per_token).saturating_sub(flat).max(0)
    });
    beyond.fold(0, i64::saturating_add).min(LONG_MEDIA_TOKENS_MAX)
}

fn rate(parent: &[u8], key: &[u8], data: &[u8]) -> Option<(usize, i64)> {
    match (parent, key) {
        (b"input_audio", b"data") if data.starts_with(RIFF) => {
            Some((WAV_CHARS_PER_TOKEN, TOKENS_PER_AUDIO))
        }
        (b"input_audio", b"data") => Some((AUDIO_CHARS_PER_TOKEN, TOKENS_PER_AUDIO)),
        (_, b"file_data") => Some((FILE_CHARS_PER_TOKEN, TOKENS_PER_FILE)),
        (b"video_url", b"url") | (_, b"video_url") => {
            Some((VIDEO_CHARS_PER_TOKEN, TOKENS_PER_VIDEO))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn part(kind: &str, member: &Value) -> String {
        json!([{ "role": "user", "content": [{ "type": kind, kind: member }] }]).to_string()
    }

    fn data(start: &str, chars: usize) -> String {
        start.to_owned() + &"A".repeat(chars - start.len())
    }

    #[test]
    fn long_data_is_reckoned_by_its_length() {
        let sound = |start: &str, chars| {
            part("input_audio", &json!({ "data": data(start, chars), "format": "mp3" }))
        };
        let file = |chars| part("file", &json!({ "file_data": data("", chars) }));
        let video = |chars| part("video_url", &json!({ "url": data("data:", chars) }));
        let picture = |chars| part("image_url", &json!({ "url": data("data:", chars) }));
        for (text, tokens) in [
            (sound("", 20_000 * 256), 20_000 - 1_920),
            (sound("UklGR", 20_000 * 1_024), 20_000 - 1_920),
            (sound("", 1_920 * 256), 0),
            (file(20_000 * 32), 15_000),
            (file(5_000 * 32), 0),
            (file(5_001 * 32), 1),
            (video(20_000 * 64), 11_000),
            (picture(1 << 20), 0),
            (file(1 << 25), LONG_MEDIA_TOKENS_MAX),
        ] {
            assert_eq!(long_media(&text), tokens, "{}", text.len());
        }
        let text = json!([{ "role": "user", "content": data("", 1 << 20) }]).to_string();
        assert_eq!(long_media(&text), 0, "text is not media");
    }
}
