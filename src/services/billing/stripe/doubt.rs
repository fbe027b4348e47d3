//! An export whose answer never came, past Stripe's window for duplicates: counted, or not?
//!
//! Pure: told by which sums of values can explain what the meter counted.

/// What can be told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    Counted,
    Missing,
    /// Both could be, or neither.
    Unclear,
}

/// More in doubt within one minute are not worth 2¹² sums: for a person.
const DOUBTFUL_MAX: usize = 12;

/// `counted` is what the meter has beyond the exports that are known to have arrived; `others` are
/// in doubt like this one of `value`.
pub fn judge(counted: i64, value: i64, others: &[i64]) -> Found {
    if others.len() > DOUBTFUL_MAX {
        return Found::Unclear;
    }
    let sums = (0..1_u32 << others.len()).map(|chosen| {
        let chosen = (0..).zip(others).filter(|(index, _)| chosen >> index & 1 == 1);
        chosen.fold(0_i64, |sum, (_, other)| sum.saturating_add(*other))
    });
    let (mut with, mut without) = (false, false);
    for sum in sums {
        with |= sum.saturating_add(value) == counted;
        without |= sum == counted;
    }
    match (with, without) {
        (true, false) => Found::Counted,
        (false, true) => Found::Missing,
        (true, true) | (false, false) => Found::Unclear,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_one_sum_explains_is_clear() {
        assert_eq!(judge(0, 5, &[]), Found::Missing);
        assert_eq!(judge(5, 5, &[]), Found::Counted);
        assert_eq!(judge(3, 5, &[]), Found::Unclear, "somebody else wrote to this meter");
        assert_eq!(judge(5, 5, &[7]), Found::Counted);
        assert_eq!(judge(7, 5, &[7]), Found::Missing);
        assert_eq!(judge(12, 5, &[7]), Found::Counted);
        assert_eq!(judge(5, 5, &[5]), Found::Unclear, "which of the two?");
        assert_eq!(judge(10, 5, &[5]), Found::Counted);
        assert_eq!(judge(0, 5, &[5]), Found::Missing);
        assert_eq!(judge(-2, -2, &[]), Found::Counted, "a correction");
        assert_eq!(judge(0, 5, &[1; 13]), Found::Unclear);
    }
}
