//! The project's own source text, for the tests that read it.

use std::path::{Path, PathBuf};

pub fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// A file of the project, by its path from the root.
pub fn read(path: &str) -> String {
    std::fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

pub struct Source {
    /// From the project's root, with `/`.
    pub path: String,
    pub text: String,
}

impl Source {
    /// What ships: the text up to the unit tests, which stand at the end of a file or are a file
    /// of their own that the end of its parent names.
    pub fn code(&self) -> String {
        if self.is_test() {
            return String::new();
        }
        self.text.split("\n#[cfg(test)]").next().unwrap_or_default().to_string()
    }

    fn is_test(&self) -> bool {
        let Some((folder, file)) = self.path.rsplit_once('/') else { return false };
        let name = file.trim_end_matches(".rs");
        let parent = std::fs::read_to_string(root().join(format!("{folder}.rs")));
        parent.is_ok_and(|parent| parent.contains(&format!("#[cfg(test)]\nmod {name};")))
    }

    /// The code's lines without comments, numbered from 1.
    pub fn code_lines(&self) -> Vec<(usize, String)> {
        let code = self.code();
        let lines = code.lines().enumerate();
        lines
            .filter(|(_, line)| !line.trim_start().starts_with("//"))
            .map(|(index, line)| (index + 1, line.to_string()))
            .collect()
    }
}

/// Every Rust file under a folder.
pub fn sources(folder: &str) -> Vec<Source> {
    let mut found = Vec::new();
    collect(&root().join(folder), &mut found);
    found.sort_by(|a, b| a.path.cmp(&b.path));
    assert!(!found.is_empty(), "no source under {folder}");
    found
}

fn collect(folder: &Path, found: &mut Vec<Source>) {
    let entries =
        std::fs::read_dir(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    for entry in entries {
        let path = entry.expect("a readable folder").path();
        if path.is_dir() {
            collect(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = std::fs::read_to_string(&path).expect("readable source");
            let path = path.strip_prefix(root()).expect("a path under the root");
            found.push(Source { path: path.display().to_string(), text });
        }
    }
}

/// The contents of the plain string literals of some code.
pub fn strings(code: &str) -> Vec<String> {
    let mut found = Vec::new();
    for line in code.lines().filter(|line| !line.trim_start().starts_with("//")) {
        found.extend(line.split('"').skip(1).step_by(2).map(str::to_string));
    }
    found
}
