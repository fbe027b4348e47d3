//! Counting the tokens of an answer while it streams past.
//!
//! Each lane (the content of a choice, the arguments of a tool call, ...) is a text of its own.
//! Invariant: [`StreamCounter::finish`] gives the sum over all lanes of what counting the whole
//! lane at once would give, however the text was cut into deltas. Where a limit forbids that, the
//! count is marked estimated.
//!
//! How: a lane's text is held until there is enough of it to be worth a call, and is then counted
//! up to its last safe cut. A push tokenises at most one piece of [`INLINE_BYTES_MAX`] bytes. What
//! has no cut within that length is set aside for `finish`, which the caller runs on a blocking
//! thread when [`StreamCounter::held_bytes`] is large. Only a stream that holds more than
//! `HELD_BYTES_MAX` has further pieces counted at once.
//!
//! This module does not parse events, and does not know what the upstream says about the answer.

use super::{
    cut,
    vocabulary::{Count, Tokenizer, tokens_from},
};

/// What may be tokenised where it stands: 1 to 2.5 ms, the worst input included.
pub const INLINE_BYTES_MAX: usize = 16 * 1024;

/// Less than this is not worth a call to the tokenizer.
const PIECE_BYTES_MIN: usize = 1024;

/// What one stream may hold in memory. Above it, exactness gives way.
const HELD_BYTES_MAX: usize = 4 * 1024 * 1024;

/// Lanes with a text of their own. An answer has a handful; an upstream gone mad has many.
const LANES_MAX: usize = 256;

/// Roughly the length of a token. Only used for what is not counted yet.
const BYTES_PER_TOKEN: usize = 4;

/// Which text of the answer a piece belongs to. Each lane is tokenised as one text of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Lane {
    pub choice: u32,
    pub field: Field,
}

/// A member of a choice's `delta` or `message`. The number is the index of the tool call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Field {
    Content,
    Refusal,
    Reasoning,
    ToolArguments(u32),
    FunctionName,
    FunctionArguments,
    ToolName(u32),
}

/// Counts the tokens of one answer.
#[derive(Debug)]
pub struct StreamCounter {
    tokenizer: Tokenizer,
    limits: Limits,
    counted: Count,
    lanes: Vec<LaneText>,
    /// The lane of the last push, which is nearly always the lane of the next one.
    latest: usize,
    /// Stretches without a safe cut, each too long to be counted in a push.
    set_aside: Vec<String>,
    /// Bytes in `lanes` and `set_aside`.
    held_bytes: usize,
}

/// What of a lane is not counted yet.
#[derive(Debug)]
struct LaneText {
    /// `None` for the lane that all lanes beyond the limit share.
    lane: Option<Lane>,
    text: String,
    /// No safe cut lies before this byte, so every byte is searched once.
    searched: usize,
}

#[derive(Clone, Copy, Debug)]
struct Limits {
    piece_bytes_min: usize,
    inline_bytes_max: usize,
    held_bytes_max: usize,
    lanes_max: usize,
}

impl StreamCounter {
    #[must_use]
    pub fn new(tokenizer: Tokenizer) -> Self {
        Self::with_limits(tokenizer, Limits::default())
    }

    fn with_limits(tokenizer: Tokenizer, limits: Limits) -> Self {
        let counted = Count { tokens: 0, estimated: !tokenizer.exact };
        Self {
            tokenizer,
            limits,
            counted,
            lanes: Vec::new(),
            latest: 0,
            set_aside: Vec::new(),
            held_bytes: 0,
        }
    }

    /// Takes the next piece of a lane's text. Amortised linear in the length of the text.
    pub fn push(&mut self, lane: Lane, text: &str) {
        if text.is_empty() {
            return;
        }
        let index = self.index_of(lane);
        let Some(held) = self.lanes.get_mut(index) else {
            return;
        };
        held.text.push_str(text);
        self.held_bytes = self.held_bytes.saturating_add(text.len());
        if held.text.len() >= self.limits.piece_bytes_min {
            self.count_head(index);
        }
        while self.held_bytes > self.limits.held_bytes_max && self.make_room() {}
    }

    /// The count so far: what is counted, and a guess of four bytes a token for what is held. A
    /// guess, not a bound: English comes to four or five bytes a token, CJK to three, a run of one
    /// character to more.
    #[must_use]
    pub fn tokens_so_far(&self) -> i64 {
        let guess = tokens_from(self.held_bytes / BYTES_PER_TOKEN);
        self.counted.tokens.saturating_add(guess)
    }

    /// What [`StreamCounter::finish`] still has to tokenise. Above [`INLINE_BYTES_MAX`] it belongs
    /// on a blocking thread.
    #[must_use]
    pub fn held_bytes(&self) -> usize {
        self.held_bytes
    }

    /// Counts the rest. Estimated also when the tokenizer is not exact.
    #[must_use]
    pub fn finish(self) -> Count {
        let mut total = self.counted;
        let rest = self.lanes.into_iter().map(|held| held.text);
        for text in self.set_aside.into_iter().chain(rest) {
            total += self.tokenizer.vocabulary.count(&text);
        }
        total
    }

    /// The index of a lane in `lanes`, made if it is new. Lanes beyond the limit share the last.
    fn index_of(&mut self, lane: Lane) -> usize {
        let is_lane = |held: &LaneText| held.lane == Some(lane);
        if self.lanes.get(self.latest).is_some_and(is_lane) {
            return self.latest;
        }
        self.latest = match self.lanes.iter().position(is_lane) {
            Some(index) => index,
            None => self.new_lane(lane),
        };
        self.latest
    }

    fn new_lane(&mut self, lane: Lane) -> usize {
        let overflows = self.lanes.len() >= self.limits.lanes_max;
        self.counted.estimated |= overflows;
        if self.lanes.len() <= self.limits.lanes_max {
            self.lanes.push(LaneText::new((!overflows).then_some(lane)));
        }
        self.lanes.len().saturating_sub(1)
    }

    /// Counts a lane up to the last safe cut that a push may reach. When the lane's head has none,
    /// sets the head aside, so that what follows it can go on being counted.
    fn count_head(&mut self, index: usize) {
        let Some(held) = self.lanes.get_mut(index) else {
            return;
        };
        let reach = held.text.floor_char_boundary(self.limits.inline_bytes_max);
        if let Some(at) = cut::last(&held.text[..reach], held.searched) {
            self.counted += self.tokenizer.vocabulary.count(&held.text[..at]);
            held.text.drain(..at);
            held.searched = reach - at;
            self.held_bytes = self.held_bytes.saturating_sub(at);
        } else if reach == held.text.len() {
            held.searched = reach;
        } else if let Some(at) = cut::first(&held.text, held.searched.max(reach)) {
            self.set_aside.push(held.text.drain(..at).collect());
            held.searched = 0;
        } else {
            held.searched = held.text.len();
        }
    }

    /// Counts one piece of the text that stands least chance of being counted otherwise. False
    /// when there is none.
    fn make_room(&mut self) -> bool {
        let bytes_max = self.limits.inline_bytes_max;
        let longest_lane = self.lanes.iter_mut().max_by_key(|held| held.text.len());
        let (piece, safe) = match (self.set_aside.last_mut(), longest_lane) {
            (Some(text), _) => take_head(text, bytes_max),
            (None, Some(held)) => held.take_head(bytes_max),
            (None, None) => return false,
        };
        self.set_aside.pop_if(|text| text.is_empty());
        self.counted += self.tokenizer.vocabulary.count(&piece);
        self.counted.estimated |= !safe;
        self.held_bytes = self.held_bytes.saturating_sub(piece.len());
        !piece.is_empty()
    }
}

impl LaneText {
    fn new(lane: Option<Lane>) -> Self {
        Self { lane, text: String::new(), searched: 0 }
    }

    fn take_head(&mut self, bytes_max: usize) -> (String, bool) {
        let taken = take_head(&mut self.text, bytes_max);
        self.searched = self.searched.saturating_sub(taken.0.len());
        taken
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            piece_bytes_min: PIECE_BYTES_MIN,
            inline_bytes_max: INLINE_BYTES_MAX,
            held_bytes_max: HELD_BYTES_MAX,
            lanes_max: LANES_MAX,
        }
    }
}

/// Takes up to `bytes_max` bytes off a text, and tells whether the cut is a safe one.
fn take_head(text: &mut String, bytes_max: usize) -> (String, bool) {
    let reach = text.floor_char_boundary(bytes_max);
    let safe = cut::last(&text[..reach], 0);
    let head = text.drain(..safe.unwrap_or(reach)).collect();
    (head, safe.is_some())
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::{
        super::{
            cut::testing::fragment,
            vocabulary::testing::{cl100k, o200k},
        },
        *,
    };

    const CONTENT: Lane = Lane { choice: 0, field: Field::Content };

    /// Lanes that differ in one thing only, so that mixing any two of them up shows.
    const LANES: [Lane; 5] = [
        CONTENT,
        Lane { choice: 1, field: Field::Content },
        Lane { choice: 0, field: Field::Reasoning },
        Lane { choice: 0, field: Field::ToolArguments(0) },
        Lane { choice: 0, field: Field::ToolArguments(1) },
    ];

    /// Small enough for a short text to meet every branch.
    fn limits() -> impl Strategy<Value = Limits> {
        let piece = prop_oneof![Just(1_usize), Just(4), Just(16), Just(64)];
        let inline = prop_oneof![Just(4_usize), Just(16), Just(64), Just(INLINE_BYTES_MAX)];
        (piece, inline).prop_map(|(piece_bytes_min, inline_bytes_max)| Limits {
            piece_bytes_min,
            inline_bytes_max,
            ..Limits::default()
        })
    }

    /// Texts for several lanes, cut into deltas of a few characters: `(lane, delta)` in order.
    fn deltas() -> impl Strategy<Value = Vec<(usize, String)>> {
        vec((0..LANES.len(), vec(fragment(), 1..8), 1_usize..5), 0..20).prop_map(|texts| {
            let cut = |(lane, fragments, size): (usize, Vec<String>, usize)| {
                let chars: Vec<char> = fragments.concat().chars().collect();
                let deltas = chars.chunks(size).map(|delta| (lane, delta.iter().collect()));
                deltas.collect::<Vec<(usize, String)>>()
            };
            texts.into_iter().flat_map(cut).collect()
        })
    }

    /// What tiktoken says of each lane at once.
    fn whole(tokenizer: &Tokenizer, deltas: &[(usize, String)]) -> Count {
        let mut tokens = 0;
        for lane in 0..LANES.len() {
            let of_lane = deltas.iter().filter(|delta| delta.0 == lane);
            let text: String = of_lane.map(|delta| delta.1.as_str()).collect();
            tokens += tokenizer.vocabulary.encode(&text).unwrap().len();
        }
        Count { tokens: tokens_from(tokens), estimated: false }
    }

    fn held_by(counter: &StreamCounter) -> usize {
        let lanes = counter.lanes.iter().map(|held| held.text.len());
        let set_aside = counter.set_aside.iter().map(String::len);
        lanes.chain(set_aside).sum()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(1_500))]

        #[test]
        fn any_deltas_over_any_lanes_give_the_whole_count(
            deltas in deltas(),
            limits in limits(),
        ) {
            for tokenizer in [o200k(), cl100k()] {
                let mut counter = StreamCounter::with_limits(tokenizer.clone(), limits);
                for (lane, delta) in &deltas {
                    counter.push(LANES[*lane], delta);
                    prop_assert_eq!(counter.held_bytes(), held_by(&counter));
                }
                prop_assert_eq!(counter.finish(), whole(&tokenizer, &deltas));
            }
        }

        #[test]
        fn the_bound_holds_and_an_unmarked_count_is_exact(
            deltas in deltas(),
            mut limits in limits(),
            held_bytes_max in 4_usize..64,
        ) {
            limits.held_bytes_max = held_bytes_max;
            let mut counter = StreamCounter::with_limits(o200k(), limits);
            let mut pushed = 0;
            for (lane, delta) in &deltas {
                counter.push(LANES[*lane], delta);
                pushed += delta.len();
                prop_assert!(counter.held_bytes() <= held_bytes_max);
                prop_assert_eq!(counter.held_bytes(), held_by(&counter));
            }
            let (count, whole) = (counter.finish(), whole(&o200k(), &deltas));
            prop_assert!(count.estimated || count == whole, "{:?} {:?}", count, whole);
            prop_assert!(count.tokens <= tokens_from(pushed));
        }
    }

    #[test]
    fn text_is_counted_as_it_passes() {
        let text = "Once upon a time there was a gateway, and it counted.\n".repeat(400);
        for tokenizer in [o200k(), cl100k()] {
            let expected = tokenizer.vocabulary.count(&text);
            let mut counter = StreamCounter::new(tokenizer);
            for delta in text.as_bytes().chunks(5) {
                counter.push(CONTENT, std::str::from_utf8(delta).unwrap());
                assert!(counter.held_bytes() <= PIECE_BYTES_MIN);
            }
            let guess = counter.tokens_so_far();
            assert!((guess - expected.tokens).abs() < 100, "{guess} {expected:?}");
            assert_eq!(counter.finish(), expected);
        }
    }

    #[test]
    fn a_huge_delta_is_counted_a_piece_at_a_time() {
        let text = "fn main() { println!(\"{}\", 6 * 7); }\n".repeat(30_000);
        let mut counter = StreamCounter::new(o200k());
        counter.push(CONTENT, &text);
        let mut held = counter.held_bytes();
        assert!(held >= text.len() - INLINE_BYTES_MAX && held < text.len());
        for _ in 0..10 {
            counter.push(CONTENT, "x");
            let piece = held + 1 - counter.held_bytes();
            assert!(piece <= INLINE_BYTES_MAX && piece > INLINE_BYTES_MAX / 2, "{piece}");
            held = counter.held_bytes();
        }
        let text = text + "xxxxxxxxxx";
        assert_eq!(counter.finish(), o200k().vocabulary.count(&text));
    }

    #[test]
    fn what_has_no_cut_waits_without_holding_up_the_rest() {
        let wall = "!".repeat(3 * INLINE_BYTES_MAX);
        let words = "and then it went on as before; ".repeat(4_000);
        let mut counter = StreamCounter::new(o200k());
        let text = format!("Look{wall}{words}");
        for delta in text.as_bytes().chunks(11) {
            counter.push(CONTENT, std::str::from_utf8(delta).unwrap());
            assert!(counter.held_bytes() <= wall.len() + 2 * PIECE_BYTES_MIN);
        }
        assert_eq!(counter.set_aside.len(), 1);
        assert_eq!(counter.finish(), o200k().vocabulary.count(&text));
    }

    #[test]
    fn cuts_are_found_where_the_search_stopped_before() {
        let limits = Limits {
            piece_bytes_min: 1,
            inline_bytes_max: 8,
            held_bytes_max: 16,
            ..Limits::default()
        };
        // The first cut out of reach is where the stretch without cuts ends.
        let mut counter = StreamCounter::with_limits(o200k(), limits);
        counter.push(CONTENT, "!!!!!!!! x");
        assert_eq!((&*counter.set_aside[0], &*counter.lanes[0].text), ("!!!!!!!!", " x"));
        counter.push(CONTENT, " y");
        assert_eq!(counter.lanes[0].text, " y");

        // The same after room was made: 20 came, 8 were counted.
        let mut counter = StreamCounter::with_limits(o200k(), limits);
        counter.push(CONTENT, &"!".repeat(20));
        counter.push(CONTENT, "! x");
        assert_eq!((counter.set_aside[0].len(), &*counter.lanes[0].text), (13, " x"));
    }

    #[test]
    fn a_million_of_anything_counts_the_same_at_once_and_in_pieces() {
        for unit in ["a", " ", "\n\t"] {
            let delta = unit.repeat(7);
            let text = delta.repeat(1_000_000 / delta.len() + 1);
            let expected = o200k().vocabulary.count(&text);

            let mut at_once = StreamCounter::new(o200k());
            at_once.push(CONTENT, &text);
            let mut in_pieces = StreamCounter::new(o200k());
            for _ in 0..text.len() / delta.len() {
                in_pieces.push(CONTENT, &delta);
            }
            assert_eq!(in_pieces.held_bytes(), text.len());
            assert_eq!(at_once.finish(), expected, "{unit:?}");
            assert_eq!(in_pieces.finish(), expected, "{unit:?}");
        }
    }

    #[test]
    fn a_stream_holds_only_so_much() {
        let mut counter = StreamCounter::new(o200k());
        let delta = "=".repeat(100_000);
        for _ in 0..45 {
            counter.push(CONTENT, &delta);
            assert!(counter.held_bytes() <= HELD_BYTES_MAX);
        }
        assert!(counter.counted.tokens > 0 && counter.counted.estimated);

        // A backlog that can be cut stays exact.
        let text = "to be, or not to be; ".repeat(210_000);
        let mut counter = StreamCounter::new(o200k());
        counter.push(CONTENT, &text);
        assert!(text.len() > HELD_BYTES_MAX && counter.held_bytes() <= HELD_BYTES_MAX);
        assert!(!counter.counted.estimated);
    }

    #[test]
    fn lanes_are_bounded_and_the_overflow_is_marked() {
        let lane = |index| Lane { choice: 0, field: Field::ToolName(index) };
        let mut counter = StreamCounter::new(o200k());
        for part in ["get_wea", "ther"] {
            for index in 0..300 {
                counter.push(lane(index), part);
            }
        }
        assert_eq!(counter.lanes.len(), LANES_MAX + 1);
        let shared = "get_wea".repeat(300 - LANES_MAX) + &"ther".repeat(300 - LANES_MAX);
        let own = o200k().vocabulary.count("get_weather").tokens * tokens_from(LANES_MAX);
        let tokens = own + o200k().vocabulary.count(&shared).tokens;
        assert_eq!(counter.finish(), Count { tokens, estimated: true });

        let mut counter = StreamCounter::new(o200k());
        (0..256).for_each(|index| counter.push(lane(index), "x"));
        assert_eq!(counter.finish(), Count { tokens: 256, estimated: false });
    }

    #[test]
    fn special_tokens_in_pieces_are_ordinary_text() {
        let mut counter = StreamCounter::new(o200k());
        for delta in ["<|end", "of", "text", "|>"] {
            counter.push(CONTENT, delta);
        }
        assert_eq!(counter.finish(), Count { tokens: 7, estimated: false });
    }

    #[test]
    fn nothing_counts_nothing_and_an_inexact_tokenizer_is_marked() {
        let mut counter = StreamCounter::new(Tokenizer { exact: false, ..o200k() });
        counter.push(CONTENT, "");
        assert_eq!((counter.lanes.len(), counter.tokens_so_far()), (0, 0));
        assert_eq!(counter.finish(), Count { tokens: 0, estimated: true });
        assert_eq!(StreamCounter::new(o200k()).finish(), Count::default());
    }
}
