//! A journal that is torn at any byte, overwritten, or on a disk that is full.

use super::*;
use crate::models::ids::RequestId;
use uuid::Uuid;

fn op(number: u128) -> LedgerOp {
    LedgerOp::Abandon(RequestId(Uuid::from_u128(number)))
}

fn number(op: &LedgerOp) -> u128 {
    let LedgerOp::Abandon(id) = op else { panic!("another operation: {op:?}") };
    id.0.as_u128()
}

fn numbers(journal: &Journal) -> Vec<u128> {
    journal.page().unwrap().ops.iter().map(number).collect()
}

fn journal(folder: &Path) -> Journal {
    Journal::create(folder, InstanceId::generate()).unwrap()
}

fn append(journal: &mut Journal, numbers: std::ops::Range<u128>) {
    let ops: Vec<_> = numbers.map(op).collect();
    journal.append(ops.iter()).unwrap();
}

/// Three operations, and the file as it is when its process has died.
fn left(folder: &Path) -> (PathBuf, u64) {
    let mut journal = journal(folder);
    append(&mut journal, 1..4);
    (journal.path.clone(), journal.written)
}

fn adopted(path: &Path) -> Journal {
    Journal::adopt(path).unwrap().expect("nobody lives")
}

#[test]
fn it_is_read_back_in_order_page_by_page() {
    let folder = tempfile::tempdir().unwrap();
    let mut journal = journal(folder.path());
    append(&mut journal, 0..300);
    append(&mut journal, 300..700);
    let path = journal.path.clone();
    assert!(Journal::adopt(&path).unwrap().is_none(), "its process lives");
    drop(journal);
    let mut journal = adopted(&path);
    let mut read = Vec::new();
    while !journal.is_empty() {
        let Page { ops, end } = journal.page().unwrap();
        assert!(ops.len() <= PAGE_OPS_MAX);
        read.extend(ops.iter().map(number));
        journal.replayed(end).unwrap();
    }
    assert_eq!(read, (0..700).collect::<Vec<_>>());
    // It begins anew, and what was in it does not come back.
    append(&mut journal, 9..10);
    drop(journal);
    assert_eq!(numbers(&adopted(&path)), [9]);
}

#[test]
fn what_a_later_version_has_written_is_left_to_it() {
    let folder = tempfile::tempdir().unwrap();
    let (path, written) = left(folder.path());
    let payload = br#"{"Unheard":{"of":1}}"#;
    let length = u32::try_from(payload.len()).unwrap().to_le_bytes();
    let frame = [&length[..], &checksum(payload), payload].concat();
    let file = OpenOptions::new().write(true).open(&path).unwrap();
    file.write_all_at(&frame, written).unwrap();
    let whole = fs::read(&path).unwrap();
    for _ in 0..2 {
        let error = Journal::adopt(&path).err().expect("it is not understood");
        assert_eq!(error.kind(), ErrorKind::InvalidData);
    }
    assert_eq!(fs::read(&path).unwrap(), whole);
}

#[test]
fn what_was_being_written_when_it_died_is_not_read() {
    let folder = tempfile::tempdir().unwrap();
    let (path, written) = left(folder.path());
    let whole = fs::read(&path).unwrap();
    let start = Form::Marked.start();
    let each = (written - start) / 3;
    for length in start..written {
        // Cut off there, or still the zeros that were there before.
        for filled in [false, true] {
            let kept = usize::try_from(length).unwrap();
            let mut torn = whole[..kept].to_vec();
            if filled {
                torn.resize(whole.len(), 0);
            }
            // A frame that ends in zeros of its own is whole a few bytes earlier.
            fs::write(&path, &torn).unwrap();
            let mut journal = adopted(&path);
            let expected: Vec<u128> = (1..=u128::from((length - start) / each)).collect();
            assert_eq!(numbers(&journal), expected, "torn at {length}");
            // And it can be written to again.
            append(&mut journal, 7..8);
            drop(journal);
            assert_eq!(numbers(&adopted(&path)).last(), Some(&7));
        }
    }
}

#[test]
fn a_flipped_byte_ends_it_there() {
    let folder = tempfile::tempdir().unwrap();
    let (path, written) = left(folder.path());
    let whole = fs::read(&path).unwrap();
    let start = Form::Marked.start();
    for at in start..written {
        let mut flipped = whole.clone();
        flipped[usize::try_from(at).unwrap()] ^= 1;
        fs::write(&path, &flipped).unwrap();
        let before = (at - start) / ((written - start) / 3);
        let expected: Vec<u128> = (1..=u128::from(before)).collect();
        assert_eq!(numbers(&adopted(&path)), expected, "flipped at {at}");
    }
    fs::write(&path, b"something else").unwrap();
    assert!(Journal::adopt(&path).is_err());
}

#[test]
fn it_has_a_bound() {
    let folder = tempfile::tempdir().unwrap();
    let mut journal = journal(folder.path());
    assert!(journal.reserve(JOURNAL_BYTES_MAX).is_err());
    assert!(journal.reserve(3 * STEP_BYTES).is_ok());
    assert!(fs::metadata(&journal.path).unwrap().len() > 3 * STEP_BYTES);
}

#[test]
fn its_heir_begins_where_it_was_replayed_to() {
    let folder = tempfile::tempdir().unwrap();
    let mut journal = journal(folder.path());
    append(&mut journal, 0..300);
    let Page { end, .. } = journal.page().unwrap();
    journal.replayed(end).unwrap();
    append(&mut journal, 300..310);
    let path = journal.path.clone();
    drop(journal);
    let rest: Vec<_> = (256..310).collect();
    assert_eq!(numbers(&adopted(&path)), rest);
    // A mark that was half written, or stands where no operation ends, is none.
    let whole = fs::read(&path).unwrap();
    let odd = (end - 1).to_le_bytes();
    let odd = [odd, checksum(&odd)].concat();
    for mark in [&[1; MARK_BYTES][..], &odd[..], &whole[MAGIC_BYTES..MAGIC_BYTES + 8]] {
        let mut file = whole.clone();
        file[MAGIC_BYTES..MAGIC_BYTES + MARK_BYTES].fill(0);
        file[MAGIC_BYTES..MAGIC_BYTES + mark.len()].copy_from_slice(mark);
        fs::write(&path, &file).unwrap();
        assert_eq!(numbers(&adopted(&path)).first(), Some(&0), "{mark:?}");
    }
    // That of an earlier life is no mark of this one.
    fs::write(&path, &whole).unwrap();
    let mut journal = adopted(&path);
    journal.replayed(journal.written).unwrap();
    append(&mut journal, 0..300);
    drop(journal);
    assert_eq!(numbers(&adopted(&path)).first(), Some(&0));
}

#[test]
fn one_of_an_earlier_version_is_read() {
    let folder = tempfile::tempdir().unwrap();
    let (path, written) = left(folder.path());
    let whole = fs::read(&path).unwrap();
    let frames = &whole[usize::try_from(Form::Marked.start()).unwrap()..];
    fs::write(&path, [&UNMARKED[..], frames].concat()).unwrap();
    let mut journal = adopted(&path);
    assert_eq!(numbers(&journal), [1, 2, 3]);
    let first = UNMARKED.len() as u64 + (written - Form::Marked.start()) / 3;
    journal.replayed(first).unwrap();
    assert_eq!(numbers(&journal), [2, 3]);
    drop(journal);
    assert_eq!(numbers(&adopted(&path)), [1, 2, 3], "it has no mark");
}
