//! The journal: operations on local disk, for as long as the database is away.
//!
//! Invariants: what [`Journal::append`] has returned from is on the disk, whole and in order, and
//! is read back so by whoever opens the file after a crash; what was being written is not read.
//! Room is taken before it is needed, so that what must be written down finds a place on a full
//! disk. The file is locked for as long as its process lives. How far it is replayed is marked in
//! it, so that the heir of a process that dies begins there: it may count what is replayed. Knows
//! nothing of money.

use crate::models::ids::InstanceId;
use crate::store::LedgerOp;
use aws_lc_rs::digest::{SHA256, digest};
use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

pub struct Journal {
    file: File,
    path: PathBuf,
    /// Where the next operation goes, and from where on nothing is replayed yet.
    written: u64,
    replayed: u64,
    /// Bytes of the file that are on the disk, written or not.
    allocated: u64,
    form: Form,
}

/// How the file begins.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Form {
    /// Of an earlier version, whose process has died: with the first operation.
    Unmarked,
    /// With the mark.
    Marked,
}

/// Operations that are to be replayed, and where they end.
pub struct Page {
    pub ops: Vec<LedgerOp>,
    pub end: u64,
}

const UNMARKED: &[u8; MAGIC_BYTES] = b"tollgate journal 1\n";
const MARKED: &[u8; MAGIC_BYTES] = b"tollgate journal 2\n";
const MAGIC_BYTES: usize = 19;
/// The place up to which all is replayed, and its checksum. Zeros are no mark.
const MARK_BYTES: usize = 8 + SUM_BYTES;
/// Length and checksum before each operation.
const HEAD_BYTES: usize = 4 + SUM_BYTES;
const SUM_BYTES: usize = 8;
/// One operation is a few kilobytes; a longer one is no operation.
const OP_BYTES_MAX: usize = 1 << 20;
/// Room is taken in such steps, and the first before there is an outage.
const STEP_BYTES: u64 = 1 << 20;
/// A journal is no longer than this: minutes of full load, and a disk that is not eaten up.
const JOURNAL_BYTES_MAX: u64 = 1 << 30;
/// Operations of one page.
const PAGE_OPS_MAX: usize = 256;

const EXTENSION: &str = "journal";

// === frames ===

fn checksum(payload: &[u8]) -> [u8; SUM_BYTES] {
    let mut sum = [0; SUM_BYTES];
    sum.copy_from_slice(&digest(&SHA256, payload).as_ref()[..SUM_BYTES]);
    sum
}

fn encode(op: &LedgerOp, into: &mut Vec<u8>) -> io::Result<()> {
    let payload = serde_json::to_vec(op)?;
    let length = u32::try_from(payload.len()).ok().filter(|_| payload.len() <= OP_BYTES_MAX);
    let length = length.ok_or_else(|| io::Error::from(ErrorKind::FileTooLarge))?;
    into.extend_from_slice(&length.to_le_bytes());
    into.extend_from_slice(&checksum(&payload));
    into.extend_from_slice(&payload);
    Ok(())
}

/// How long the payload is that a frame's head announces.
fn length_of(head: &[u8; HEAD_BYTES]) -> Option<usize> {
    let (length, _) = head.split_first_chunk::<4>()?;
    let length = usize::try_from(u32::from_le_bytes(*length)).ok()?;
    (1..=OP_BYTES_MAX).contains(&length).then_some(length)
}

/// The operation of a frame, if it was written to its end.
///
/// # Errors
/// `InvalidData` for a whole one that does not read: it is a later version's, and that version's
/// to replay.
fn decode(head: &[u8; HEAD_BYTES], payload: &[u8]) -> io::Result<Option<LedgerOp>> {
    if checksum(payload) != head[4..] {
        return Ok(None);
    }
    let unknown = |_| io::Error::new(ErrorKind::InvalidData, "a later version has written it");
    serde_json::from_slice(payload).map(Some).map_err(unknown)
}

// === impl Form ===

impl Form {
    /// Where the first operation stands.
    fn start(self) -> u64 {
        match self {
            Self::Unmarked => MAGIC_BYTES as u64,
            Self::Marked => (MAGIC_BYTES + MARK_BYTES) as u64,
        }
    }
}

// === impl Journal ===

impl Journal {
    /// A new and empty one, locked, with room taken.
    ///
    /// # Errors
    /// The disk's.
    pub fn create(folder: &Path, instance: InstanceId) -> io::Result<Self> {
        fs::create_dir_all(folder)?;
        // Under another name until it is locked: nobody is to take it for one that was left.
        let making = folder.join(format!("{instance}.new"));
        let path = folder.join(format!("{instance}.{EXTENSION}"));
        let mut options = OpenOptions::new();
        // It is of accounts and money: for its owner's eyes.
        options.read(true).write(true).create_new(true).mode(0o600);
        let file = options.open(&making)?;
        file.lock()?;
        file.write_all_at(MARKED, 0)?;
        let form = Form::Marked;
        let start = form.start();
        let allocated = MAGIC_BYTES as u64;
        let mut journal = Self { file, path, written: start, replayed: start, allocated, form };
        journal.allocate(allocated + STEP_BYTES)?;
        fs::rename(&making, &journal.path)?;
        File::open(folder)?.sync_all()?;
        Ok(journal)
    }

    /// One that its process has left behind; `None` where that still lives.
    ///
    /// # Errors
    /// The disk's, and `InvalidData` for what is no journal, or not one of this version's.
    pub fn adopt(path: &Path) -> io::Result<Option<Self>> {
        let file = OpenOptions::new().read(true).write(true).open(path)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Ok(None),
            Err(TryLockError::Error(error)) => return Err(error),
        }
        let mut magic = [0; MAGIC_BYTES];
        let form = match file.read_exact_at(&mut magic, 0) {
            Ok(()) if magic == *MARKED => Form::Marked,
            Ok(()) if magic == *UNMARKED => Form::Unmarked,
            Err(error) if error.kind() != ErrorKind::UnexpectedEof => return Err(error),
            _ => return Err(ErrorKind::InvalidData.into()),
        };
        let (start, allocated) = (form.start(), file.metadata()?.len());
        let path = path.to_owned();
        let mut journal = Self { file, path, written: start, replayed: start, allocated, form };
        let mark = journal.mark();
        while let Some((_, end)) = journal.read_at(journal.written, allocated)? {
            journal.written = end;
            // Believed only where an operation ends: what is replayed again changes nothing, and
            // what is passed over is lost.
            if mark == Some(end) {
                journal.replayed = end;
            }
        }
        Ok(Some(journal))
    }

    /// The journals in a folder, whoever they belong to.
    ///
    /// # Errors
    /// The disk's.
    pub fn list(folder: &Path) -> io::Result<Vec<PathBuf>> {
        let mut paths = Vec::new();
        for entry in fs::read_dir(folder)? {
            let path = entry?.path();
            if path.extension() == Some(OsStr::new(EXTENSION)) {
                paths.push(path);
            }
        }
        paths.sort();
        Ok(paths)
    }

    /// Takes room for so many bytes more.
    ///
    /// # Errors
    /// When there is none: on the disk, or below the journal's own bound.
    pub fn reserve(&mut self, bytes: u64) -> io::Result<()> {
        let needed = self.written.saturating_add(bytes);
        if needed > JOURNAL_BYTES_MAX {
            return Err(ErrorKind::FileTooLarge.into());
        }
        if needed > self.allocated { self.allocate(needed) } else { Ok(()) }
    }

    /// Zeros are no operation, and their place is taken on the disk.
    fn allocate(&mut self, to: u64) -> io::Result<()> {
        let zeros = vec![0; usize::try_from(STEP_BYTES).unwrap_or(1 << 20)];
        let mut at = self.allocated;
        let filled = loop {
            if at >= to {
                break self.file.sync_all();
            }
            if let Err(error) = self.file.write_all_at(&zeros, at) {
                break Err(error);
            }
            at = at.saturating_add(STEP_BYTES);
        };
        match filled {
            Ok(()) => self.allocated = at,
            // Others need what is left of the disk.
            Err(_) => self.file.set_len(self.allocated)?,
        }
        filled
    }

    /// Writes operations down, all or none. After an error it must not be written to again.
    ///
    /// # Errors
    /// The disk's.
    pub fn append<'a>(&mut self, ops: impl Iterator<Item = &'a LedgerOp>) -> io::Result<()> {
        let mut bytes = Vec::new();
        for op in ops {
            encode(op, &mut bytes)?;
        }
        if bytes.is_empty() {
            return Ok(());
        }
        let length = bytes.len() as u64;
        self.reserve(length)?;
        let is_written =
            self.file.write_all_at(&bytes, self.written).and_then(|()| self.file.sync_data());
        if let Err(error) = is_written {
            // A crash must not find what was said not to be there.
            let _ = self.file.set_len(self.written);
            return Err(error);
        }
        self.written += length;
        Ok(())
    }

    /// The next operations that are not replayed.
    ///
    /// # Errors
    /// The disk's; `InvalidData` when it gives back something else than was written.
    pub fn page(&self) -> io::Result<Page> {
        let (mut ops, mut end) = (Vec::new(), self.replayed);
        while end < self.written && ops.len() < PAGE_OPS_MAX {
            let read = self.read_at(end, self.written)?;
            let (op, next) = read.ok_or_else(|| io::Error::from(ErrorKind::InvalidData))?;
            ops.push(op);
            end = next;
        }
        Ok(Page { ops, end })
    }

    /// What comes before `end` is in the books. When nothing is left, the file begins anew.
    ///
    /// # Errors
    /// The disk's; what is in the books is then replayed once more, which changes nothing.
    pub fn replayed(&mut self, end: u64) -> io::Result<()> {
        self.replayed = end;
        if !self.is_empty() {
            return self.set_mark(end);
        }
        let start = self.form.start();
        // The mark goes with what it was about.
        self.file.set_len(MAGIC_BYTES as u64)?;
        self.file.sync_all()?;
        (self.written, self.replayed, self.allocated) = (start, start, MAGIC_BYTES as u64);
        self.allocate(self.allocated + STEP_BYTES)
    }

    /// Not synced: a process that is killed leaves it, and after a machine that died all is
    /// replayed once more.
    fn set_mark(&self, end: u64) -> io::Result<()> {
        if self.form == Form::Unmarked {
            return Ok(());
        }
        let place = end.to_le_bytes();
        self.file.write_all_at(&[place, checksum(&place)].concat(), MAGIC_BYTES as u64)
    }

    fn mark(&self) -> Option<u64> {
        let (mut place, mut sum) = ([0; 8], [0; SUM_BYTES]);
        let at = MAGIC_BYTES as u64;
        self.file.read_exact_at(&mut place, at).ok()?;
        self.file.read_exact_at(&mut sum, at + place.len() as u64).ok()?;
        let is_mark = self.form == Form::Marked && sum == checksum(&place);
        is_mark.then(|| u64::from_le_bytes(place))
    }

    /// Nothing is written behind this place.
    #[must_use]
    pub fn ends_at(&self, end: u64) -> bool {
        end == self.written
    }

    /// All of it is in the books.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.replayed >= self.written
    }

    /// Takes the file away: an empty one has nothing to tell.
    ///
    /// # Errors
    /// The disk's.
    pub fn remove(self) -> io::Result<()> {
        fs::remove_file(&self.path)
    }

    /// The operation at a place and the place behind it; `None` where nothing whole stands, an
    /// error where that cannot be understood.
    fn read_at(&self, at: u64, end: u64) -> io::Result<Option<(LedgerOp, u64)>> {
        let mut head = [0; HEAD_BYTES];
        let behind_head = at.saturating_add(HEAD_BYTES as u64);
        if behind_head > end {
            return Ok(None);
        }
        self.file.read_exact_at(&mut head, at)?;
        let Some(length) = length_of(&head) else { return Ok(None) };
        let behind = behind_head.saturating_add(length as u64);
        if behind > end {
            return Ok(None);
        }
        let mut payload = vec![0; length];
        self.file.read_exact_at(&mut payload, behind_head)?;
        Ok(decode(&head, &payload)?.map(|op| (op, behind)))
    }
}

#[cfg(test)]
mod tests;
