//! `bench`.

use crate::cli::BenchArgs;

/// Runs it.
pub async fn run(_args: &BenchArgs) -> anyhow::Result<()> {
    Ok(())
}
