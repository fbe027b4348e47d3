//! `tollgate`: reads the command line and runs one command.

use clap::Parser;
use std::process::ExitCode;
use tollgate::commands::{Cli, run};

fn main() -> ExitCode {
    let cli = Cli::parse();
    match run(cli) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("tollgate: {error:#}");
            ExitCode::from(2)
        }
    }
}
