//! A month's files: JSON rows by line, and a manifest with the hash of each.
//!
//! Invariant: a folder under its name is complete and on the disk; what was interrupted is under
//! another name, and is written anew. A complete one is never written over.

use crate::models::archive::Month;
use crate::models::ledger::{hex, sha256_hex};
use crate::models::money::NanoUsd;
use aws_lc_rs::digest::{Context, SHA256};
use serde::Serialize;
use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

pub struct Folder {
    /// Where it is written, and where it is put then.
    partial: PathBuf,
    whole: PathBuf,
    files: Vec<Entry>,
}

/// A file that is written.
pub struct Sheet {
    name: &'static str,
    file: BufWriter<File>,
    hash: Context,
    rows: u64,
    bytes: u64,
}

#[derive(Serialize)]
pub struct Manifest<'a> {
    pub month: Month,
    pub records: i64,
    pub charge_nusd: NanoUsd,
    pub corrections: i64,
    pub difference_nusd: NanoUsd,
    pub files: &'a [Entry],
}

/// What the manifest says of a file.
#[derive(Serialize)]
pub struct Entry {
    name: &'static str,
    rows: u64,
    bytes: u64,
    sha256: String,
}

impl Folder {
    /// # Errors
    /// Also when there is a complete one.
    pub fn create(parent: &Path, month: Month) -> io::Result<Self> {
        let whole = parent.join(month.to_string());
        if whole.exists() {
            let what = format!("there are files of {month} already: move them away first");
            return Err(io::Error::new(io::ErrorKind::AlreadyExists, what));
        }
        let partial = parent.join(format!("{month}.partial"));
        if partial.exists() {
            fs::remove_dir_all(&partial)?;
        }
        // What is in it is for its owner's eyes.
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&partial)?;
        Ok(Self { partial, whole, files: Vec::new() })
    }

    pub fn file(&self, name: &'static str) -> io::Result<Sheet> {
        let file = BufWriter::new(File::create_new(self.partial.join(name))?);
        Ok(Sheet { name, file, hash: Context::new(&SHA256), rows: 0, bytes: 0 })
    }

    pub fn close(&mut self, sheet: Sheet) -> io::Result<()> {
        let Sheet { name, file, hash, rows, bytes } = sheet;
        file.into_inner()?.sync_all()?;
        let sha256 = hex(hash.finish().as_ref());
        self.files.push(Entry { name, rows, bytes, sha256 });
        Ok(())
    }

    /// Writes the manifest with what the files are, and puts the folder under its name; gives the
    /// manifest's hash.
    pub fn finish(self, manifest: &Manifest<'_>) -> io::Result<String> {
        let Self { partial, whole, files } = self;
        let text = serde_json::to_string_pretty(&Manifest { files: &files, ..*manifest })? + "\n";
        let mut file = File::create_new(partial.join("manifest.json"))?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        File::open(&partial)?.sync_all()?;
        fs::rename(&partial, &whole)?;
        if let Some(parent) = whole.parent() {
            File::open(parent)?.sync_all()?;
        }
        Ok(sha256_hex(text.as_bytes()))
    }
}

impl Sheet {
    pub fn write<T: Serialize>(&mut self, row: &T) -> Result<(), serde_json::Error> {
        let mut line = serde_json::to_vec(row)?;
        line.push(b'\n');
        self.hash.update(&line);
        self.rows += 1;
        self.bytes += u64::try_from(line.len()).unwrap_or_default();
        self.file.write_all(&line).map_err(serde_json::Error::io)
    }
}
