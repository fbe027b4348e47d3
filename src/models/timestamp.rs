//! UTC time in microseconds, written as RFC 3339 text of fixed width.
//!
//! Invariant: the text of an earlier time sorts before that of a later one, so that SQLite can
//! compare times as text. Reads no clock except in [`Timestamp::now`].

use serde::{Deserialize, Deserializer, Serialize, Serializer, de, ser};
use std::fmt;
use std::time::Duration;
use time::format_description::well_known::Rfc3339;
use time::{OffsetDateTime, UtcOffset};

/// Microseconds since 1970 UTC.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp(i64);

const MICROS_PER_SECOND: i64 = 1_000_000;

impl Timestamp {
    /// The wall clock. Pure code takes a `Timestamp` as an argument instead.
    #[must_use]
    pub fn now() -> Self {
        Self::from_datetime(OffsetDateTime::now_utc())
    }

    #[must_use]
    pub fn from_unix_seconds(seconds: i64) -> Self {
        Self(seconds.saturating_mul(MICROS_PER_SECOND))
    }

    #[must_use]
    pub fn from_unix_micros(micros: i64) -> Self {
        Self(micros)
    }

    #[must_use]
    pub fn unix_micros(self) -> i64 {
        self.0
    }

    /// Whole seconds since 1970, what is below one cut off.
    #[must_use]
    pub fn unix_seconds(self) -> i64 {
        self.0.div_euclid(MICROS_PER_SECOND)
    }

    /// Whole milliseconds since 1970: what a UUIDv7 begins with.
    #[must_use]
    pub fn unix_millis(self) -> i64 {
        self.0.div_euclid(MICROS_PER_SECOND / 1_000)
    }

    fn from_datetime(at: OffsetDateTime) -> Self {
        let micros = at.unix_timestamp_nanos() / 1_000;
        Self(i64::try_from(micros).unwrap_or(i64::MAX))
    }

    /// Parses RFC 3339 with any offset; PostgreSQL writes `+00:00`, we write `Z`. A time whose text
    /// in UTC would not have four digits of a year, or the year 0 that PostgreSQL has not, is none.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let at = OffsetDateTime::parse(text, &Rfc3339).ok()?.checked_to_offset(UtcOffset::UTC)?;
        (1..=9_999).contains(&at.year()).then(|| Self::from_datetime(at))
    }

    #[must_use]
    pub fn plus(self, duration: Duration) -> Self {
        Self(self.0.saturating_add(micros(duration)))
    }

    #[must_use]
    pub fn minus(self, duration: Duration) -> Self {
        Self(self.0.saturating_sub(micros(duration)))
    }

    /// The last multiple of `step` that is not later, counted from 1970.
    #[must_use]
    pub fn floor(self, step: Duration) -> Self {
        Self(self.0.saturating_sub(self.0.rem_euclid(micros(step).max(1))))
    }

    /// Time since `earlier`; zero when the clock went back.
    #[must_use]
    pub fn since(self, earlier: Self) -> Duration {
        let micros = self.0.saturating_sub(earlier.0);
        Duration::from_micros(u64::try_from(micros).unwrap_or(0))
    }

    /// The first instant of this calendar month, UTC: where a postpaid period begins.
    #[must_use]
    pub fn month_start(self) -> Self {
        let date = self.datetime().date();
        let first = date.replace_day(1).unwrap_or(date);
        Self::from_datetime(first.midnight().assume_utc())
    }

    /// The first instant of this day, UTC.
    #[must_use]
    pub fn day_start(self) -> Self {
        Self::from_datetime(self.datetime().date().midnight().assume_utc())
    }

    /// The first instant of this minute.
    #[must_use]
    pub fn minute_start(self) -> Self {
        self.floor(Duration::from_secs(60))
    }

    /// The first instant of this week, which begins on Monday, UTC.
    #[must_use]
    pub fn week_start(self) -> Self {
        let date = self.datetime().date();
        let days = i64::from(date.weekday().number_days_from_monday());
        let monday = date.checked_sub(time::Duration::days(days)).unwrap_or(date);
        Self::from_datetime(monday.midnight().assume_utc())
    }

    /// Minutes since this day's midnight, UTC.
    #[must_use]
    pub fn minute_of_day(self) -> u16 {
        let at = self.datetime();
        u16::from(at.hour()) * 60 + u16::from(at.minute())
    }

    /// The same in UTC; 1970 for what is beyond any date.
    #[must_use]
    pub fn datetime(self) -> OffsetDateTime {
        OffsetDateTime::from_unix_timestamp_nanos(i128::from(self.0) * 1_000)
            .unwrap_or(OffsetDateTime::UNIX_EPOCH)
    }
}

fn micros(duration: Duration) -> i64 {
    i64::try_from(duration.as_micros()).unwrap_or(i64::MAX)
}

impl Timestamp {
    /// `2026-11-24T18:00:20.000001Z`. By hand, for a request writes a dozen of them.
    fn text(self) -> [u8; 27] {
        let at = self.datetime();
        let mut text = *b"0000-00-00T00:00:00.000000Z";
        put_digits(&mut text[0..4], u32::try_from(at.year()).unwrap_or(0));
        put_digits(&mut text[5..7], u8::from(at.month()).into());
        put_digits(&mut text[8..10], at.day().into());
        put_digits(&mut text[11..13], at.hour().into());
        put_digits(&mut text[14..16], at.minute().into());
        put_digits(&mut text[17..19], at.second().into());
        put_digits(&mut text[20..26], at.microsecond());
        text
    }
}

/// Fills the places with the number's last digits.
fn put_digits(places: &mut [u8], mut number: u32) {
    for place in places.iter_mut().rev() {
        *place = b'0' + u8::try_from(number % 10).unwrap_or(0);
        number /= 10;
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(std::str::from_utf8(&self.text()).map_err(|_| fmt::Error)?)
    }
}

impl Serialize for Timestamp {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(std::str::from_utf8(&self.text()).map_err(ser::Error::custom)?)
    }
}

impl<'de> Deserialize<'de> for Timestamp {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Self::parse(&text).ok_or_else(|| de::Error::custom("not an RFC 3339 time"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_has_fixed_width_and_comes_back() {
        let at = Timestamp(1_795_521_600_000_001);
        assert_eq!(at.to_string(), "2026-11-24T12:00:00.000001Z");
        assert_eq!(Timestamp::parse(&at.to_string()), Some(at));
        assert_eq!(Timestamp::parse("2026-11-24T13:00:00.000001+01:00"), Some(at));
        for odd in
            ["0000-06-01T00:00:00Z", "0001-01-01T00:00:00+01:00", "9999-12-31T23:59:59-01:00"]
        {
            assert_eq!(Timestamp::parse(odd), None, "its text in UTC could not be stored: {odd}");
        }
    }

    #[test]
    fn a_week_starts_on_its_monday() {
        let at = Timestamp::parse("2026-11-29T23:59:59Z").unwrap();
        assert_eq!(at.week_start().to_string(), "2026-11-23T00:00:00.000000Z");
        assert_eq!(at.week_start().week_start(), at.week_start());
        assert_eq!(at.minute_of_day(), 24 * 60 - 1);
    }

    #[test]
    fn a_month_starts_at_its_first_midnight() {
        let at = Timestamp::parse("2028-02-29T23:59:59Z").unwrap();
        assert_eq!(at.month_start().to_string(), "2028-02-01T00:00:00.000000Z");
    }
}
